//! Mamba-1 and Mamba-2: reference, splitting, extremes, and norms that change nothing.

use super::*;
use crate::{SelectiveScan, Ssd};

pub(crate) struct ScanData {
    pub(crate) tokens: usize,
    pub(crate) e: usize,
    pub(crate) n: usize,
    delta: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    x: Vec<f32>,
    d: Vec<f32>,
}

impl ScanData {
    pub(crate) fn new(rng: &mut Rng, tokens: usize, e: usize, n: usize) -> ScanData {
        ScanData {
            tokens,
            e,
            n,
            delta: rng.log_uniform(tokens * e, 1e-3, 1.0),
            a: rng.log_uniform(e * n, 0.5, 16.0).iter().map(|a| -a).collect(),
            b: rng.vec(tokens * n),
            c: rng.vec(tokens * n),
            x: rng.vec(tokens * e),
            d: rng.vec(e),
        }
    }

    pub(crate) fn op(&self) -> SelectiveScan<'_> {
        self.part(0, self.tokens)
    }

    fn part(&self, from: usize, to: usize) -> SelectiveScan<'_> {
        let (e, n) = (from * self.e..to * self.e, from * self.n..to * self.n);
        SelectiveScan {
            delta: &self.delta[e.clone()],
            a: &self.a,
            b: &self.b[n.clone()],
            c: &self.c[n],
            x: &self.x[e],
            d: &self.d,
        }
    }
}

pub(crate) struct SsdData {
    pub(crate) tokens: usize,
    /// heads, head_dim, state_dim, groups
    pub(crate) shape: (usize, usize, usize, usize),
    delta: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    x: Vec<f32>,
    d: Vec<f32>,
}

impl SsdData {
    pub(crate) fn new(rng: &mut Rng, tokens: usize, shape: (usize, usize, usize, usize)) -> SsdData {
        let (heads, head_dim, state_dim, groups) = shape;
        SsdData {
            tokens,
            shape,
            delta: rng.log_uniform(tokens * heads, 1e-3, 1.0),
            a: rng.log_uniform(heads, 0.5, 16.0).iter().map(|a| -a).collect(),
            b: rng.vec(tokens * groups * state_dim),
            c: rng.vec(tokens * groups * state_dim),
            x: rng.vec(tokens * heads * head_dim),
            d: rng.vec(heads),
        }
    }

    pub(crate) fn state_len(&self) -> usize {
        self.shape.0 * self.shape.1 * self.shape.2
    }

    pub(crate) fn op(&self) -> Ssd<'_> {
        self.part(0, self.tokens)
    }

    fn part(&self, from: usize, to: usize) -> Ssd<'_> {
        let (heads, head_dim, state_dim, groups) = self.shape;
        let (h, g) = (from * heads..to * heads, from * groups * state_dim..to * groups * state_dim);
        let x = &self.x[from * heads * head_dim..to * heads * head_dim];
        Ssd {
            heads,
            head_dim,
            state_dim,
            groups,
            delta: &self.delta[h],
            a: &self.a,
            b: &self.b[g.clone()],
            c: &self.c[g],
            x,
            d: &self.d,
        }
    }
}

const SCANS: [(usize, usize); 5] = [(1, 1), (5, 4), (65, 16), (130, 16), (3, 17)];
const SSDS: [(usize, usize, usize, usize); 5] =
    [(1, 1, 1, 1), (4, 2, 3, 2), (3, 5, 9, 1), (2, 64, 64, 1), (4, 16, 40, 4)];

fn check_scan(data: &ScanData, start: &[f32], what: &str) {
    let (count, op) = (data.tokens * data.e, data.op());
    let (mut h, mut y, mut norm) = (start.to_vec(), nan(count), nan(count));
    op.forward(&mut h, &mut y, Some(&mut norm));
    let (mut h64, mut y64, mut norm64) = (widened(start), vec![f64::NAN; count], vec![f64::NAN; count]);
    op.reference(&mut h64, &mut y64, &mut norm64);
    assert_close(&y, &y64, 1e-5, &format!("{what} y"));
    assert_close(&h, &h64, 1e-5, &format!("{what} state"));
    assert_close(&norm, &norm64, 1e-5, &format!("{what} norm"));

    let (mut h2, mut y2) = (start.to_vec(), nan(count));
    op.forward(&mut h2, &mut y2, None);
    assert_eq!((bits(&y), bits(&h)), (bits(&y2), bits(&h2)), "{what}: norms changed the output");
    let mut h3 = start.to_vec();
    op.fold(&mut h3);
    assert_eq!(bits(&h), bits(&h3), "{what}: fold");
    let gate: Vec<f32> = (0..count).map(|i| (i % 23) as f32 - 11.0).collect();
    let (mut h5, mut gated, mut y5) = (start.to_vec(), nan(count), nan(count));
    op.forward_gated(&gate, &mut h5, &mut gated);
    crate::silu_mul(&gate, &y, &mut y5);
    assert_eq!((bits(&gated), bits(&h5)), (bits(&y5), bits(&h)), "{what}: gated");
    for at in [1, 7, 64].into_iter().filter(|&at| at < data.tokens) {
        let (mut h4, mut y4) = (start.to_vec(), nan(count));
        let (first, rest) = y4.split_at_mut(at * data.e);
        data.part(0, at).forward(&mut h4, first, None);
        data.part(at, data.tokens).forward(&mut h4, rest, None);
        assert_eq!((bits(&y), bits(&h)), (bits(&y4), bits(&h4)), "{what}: split at {at}");
    }
}

#[test]
fn scan_equals_the_reference() {
    on_each_set(|| {
        let mut rng = Rng::new(7);
        for (e, n) in SCANS {
            for tokens in LENGTHS {
                let data = ScanData::new(&mut rng, tokens, e, n);
                check_scan(&data, &rng.vec(e * n), &format!("E={e} N={n} T={tokens}"));
            }
        }
    });
}

#[test]
fn scan_survives_extreme_steps() {
    let mut rng = Rng::new(8);
    for extreme in [0.0, 1e-30, 1e4] {
        let mut data = ScanData::new(&mut rng, 100, 20, 16);
        data.delta.iter_mut().step_by(3).for_each(|d| *d = extreme);
        check_scan(&data, &rng.vec(320), &format!("delta {extreme}"));
        data.delta.fill(extreme);
        check_scan(&data, &rng.vec(320), &format!("all delta {extreme}"));
    }
}

fn check_ssd(data: &SsdData, start: &[f32], what: &str) {
    let (heads, head_dim, ..) = data.shape;
    let (count, op) = (data.tokens * heads * head_dim, data.op());
    let (mut s, mut y, mut norms) = (start.to_vec(), nan(count), nan(data.tokens * heads));
    op.forward(&mut s, &mut y);
    op.state_norms(start, &mut norms);
    let (mut s64, mut y64, mut norms64) = (widened(start), vec![f64::NAN; count], vec![f64::NAN; data.tokens * heads]);
    op.reference(&mut s64, &mut y64, &mut norms64);
    assert_close(&y, &y64, 1e-5, &format!("{what} y"));
    assert_close(&s, &s64, 1e-5, &format!("{what} state"));
    assert_close(&norms, &norms64, 1e-5, &format!("{what} norms"));
    let mut folded = start.to_vec();
    op.fold(&mut folded);
    assert_close(&folded, &s64, 1e-5, &format!("{what} fold"));
    for at in [1, 7, 64].into_iter().filter(|&at| at < data.tokens) {
        let (mut s2, mut y2) = (start.to_vec(), nan(count));
        let (first, rest) = y2.split_at_mut(at * heads * head_dim);
        data.part(0, at).forward(&mut s2, first);
        data.part(at, data.tokens).forward(&mut s2, rest);
        assert_close(&y2, &widened(&y), 1e-5, &format!("{what} split at {at}"));
        assert_close(&s2, &widened(&s), 1e-5, &format!("{what} state split at {at}"));
    }
    // One by one.
    let (mut s3, mut y3) = (start.to_vec(), nan(count));
    for (t, y) in y3.chunks_exact_mut(heads * head_dim).enumerate() {
        data.part(t, t + 1).forward(&mut s3, y);
    }
    assert_close(&y3, &widened(&y), 1e-5, &format!("{what} steps"));
}

#[test]
fn ssd_equals_the_reference() {
    on_each_set(|| {
        let mut rng = Rng::new(9);
        for shape in SSDS {
            for tokens in LENGTHS {
                let mut data = SsdData::new(&mut rng, tokens, shape);
                let start = rng.vec(data.state_len());
                check_ssd(&data, &start, &format!("{shape:?} T={tokens}"));
                data.d = rng.vec(shape.0 * shape.1);
                check_ssd(&data, &start, &format!("{shape:?} T={tokens} D by channel"));
            }
        }
    });
}

#[test]
fn ssd_survives_extreme_steps() {
    let mut rng = Rng::new(10);
    for extreme in [0.0, 1e-30, 1e4] {
        for tokens in [2, 65, 200] {
            let mut data = SsdData::new(&mut rng, tokens, (3, 9, 20, 1));
            let start = rng.vec(data.state_len());
            data.delta.iter_mut().step_by(7).for_each(|d| *d = extreme);
            check_ssd(&data, &start, &format!("delta {extreme} T={tokens}"));
            data.delta.fill(extreme);
            check_ssd(&data, &start, &format!("all delta {extreme} T={tokens}"));
        }
    }
}

/// Small steps after a huge one: differences of f32 sums would lose them.
#[test]
fn ssd_keeps_small_steps_after_a_large_one() {
    let mut rng = Rng::new(11);
    let mut data = SsdData::new(&mut rng, 64, (1, 4, 8, 1));
    data.a = vec![-16.0];
    data.delta.fill(1e-3);
    data.delta[5] = 1e5;
    // The write of the huge step itself is silenced, so that what follows is not measured against it.
    data.x[5 * 4..6 * 4].fill(0.0);
    let start = rng.vec(data.state_len());
    check_ssd(&data, &start, "small after large");
}
