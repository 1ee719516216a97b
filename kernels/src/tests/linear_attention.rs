//! Linear attention in every variation, the scan of one number a channel, and their matrices.

use super::{
    goldens::s,
    mixing::{check_rows_to, column, product},
    *,
};
use crate::channel_scan::WKV_EMPTY;
use crate::{
    ChannelScan, Correction, Decay, KeyDecay, LinearAttention, Lowered, Recurrent, Strided, l2_normalise,
    sigmoid_slice, softplus, wkv_gates,
};

/// What makes one family of the op.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Variant {
    Plain,
    Fixed,
    /// With a weight.
    Scalar,
    Key,
    /// By key, read before it is written.
    Bonus,
    /// By key, with a correction.
    Corrected,
}

use Variant::*;

pub(crate) const VARIANTS: [Variant; 6] = [Plain, Fixed, Scalar, Key, Bonus, Corrected];

pub(crate) struct Data {
    tokens: usize,
    /// (H, Dk, Dv)
    shape: (usize, usize, usize),
    variant: Variant,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    log: Vec<f32>,
    weight: Vec<f32>,
    erase: Vec<f32>,
    replace: Vec<f32>,
    bonus: Vec<f32>,
}

impl Data {
    pub(crate) fn new(rng: &mut Rng, tokens: usize, shape: (usize, usize, usize), variant: Variant) -> Data {
        let (heads, key_dim, head_dim) = shape;
        let (rows, keys) = (tokens * heads, tokens * heads * key_dim);
        let logs = match variant {
            Plain => 0,
            Fixed => heads,
            Scalar => rows,
            Key | Bonus | Corrected => keys,
        };
        let mut erase = rng.vec(keys);
        l2_normalise(&mut erase, key_dim, 1e-6, 1.0);
        let lowest = if variant == Corrected { 0.6 } else { 1.0 };
        Data {
            tokens,
            shape,
            variant,
            q: rng.vec(keys),
            k: rng.vec(keys),
            v: rng.vec(rows * head_dim),
            log: rng.log_uniform(logs, 1e-3, lowest).iter().map(|g| -g).collect(),
            weight: rng.vec(rows),
            replace: erase.iter().map(|e| e * (0.5 + 0.5 * rng.unit())).collect(),
            erase,
            bonus: rng.vec(rows),
        }
    }

    pub(crate) fn op(&self) -> LinearAttention<'_> {
        self.part(0, self.tokens)
    }

    fn part(&self, from: usize, to: usize) -> LinearAttention<'_> {
        let (heads, key_dim, head_dim) = self.shape;
        let part = |data: &'_ [f32], width: usize| from * heads * width..(to * heads * width).min(data.len());
        let keys = |data: &'static str| match data {
            "q" => &self.q[part(&self.q, key_dim)],
            "k" => &self.k[part(&self.k, key_dim)],
            "erase" => &self.erase[part(&self.erase, key_dim)],
            _ => &self.replace[part(&self.replace, key_dim)],
        };
        LinearAttention {
            heads,
            key_dim,
            head_dim,
            q: keys("q"),
            k: keys("k"),
            v: &self.v[part(&self.v, head_dim)],
            decay: match self.variant {
                Plain => KeyDecay::None,
                Fixed => KeyDecay::Fixed(&self.log),
                Scalar => KeyDecay::Scalar(&self.log[part(&self.log, 1)]),
                Key | Bonus | Corrected => KeyDecay::Key(&self.log[part(&self.log, key_dim)]),
            },
            weight: (self.variant == Scalar).then(|| &self.weight[part(&self.weight, 1)]),
            correction: (self.variant == Corrected)
                .then(|| Correction { erase: keys("erase"), replace: keys("replace") }),
            bonus: (self.variant == Bonus).then(|| &self.bonus[part(&self.bonus, 1)]),
        }
    }

    pub(crate) fn lowered(&self, head: usize) -> Lowered<'_> {
        let (heads, key_dim, _) = self.shape;
        let keys = |data| Strided { data, stride: heads * key_dim, offset: head * key_dim, width: key_dim };
        let decay = match self.variant {
            Plain => Decay::None,
            Fixed => Decay::Scalar { log: column(&self.log, 0, head), factor: 1.0 },
            Scalar => Decay::Scalar { log: column(&self.log, heads, head), factor: 1.0 },
            Key | Bonus => Decay::Key { log: keys(&self.log) },
            Corrected => {
                Decay::Corrected { log: keys(&self.log), erase: keys(&self.erase), replace: keys(&self.replace) }
            }
        };
        Lowered::Recurrent(Recurrent {
            decay,
            weight: (self.variant == Scalar).then(|| column(&self.weight, heads, head)),
            bonus: (self.variant == Bonus).then(|| column(&self.bonus, heads, head)),
            ..Recurrent::new(self.tokens, keys(&self.q), keys(&self.k))
        })
    }
}

const SHAPES: [(usize, usize, usize); 5] = [(1, 1, 1), (6, 3, 2), (3, 17, 19), (2, 64, 33), (1, 128, 5)];

fn check(data: &Data, start: &[f32], what: &str) {
    let width = data.shape.0 * data.shape.2;
    let (mut state, mut y) = (start.to_vec(), nan(data.tokens * width));
    data.op().forward(&mut state, &mut y);
    let (mut state64, mut y64) = (widened(start), vec![f64::NAN; y.len()]);
    data.op().reference(&mut state64, &mut y64);
    assert_close_to(&y, &y64, 1e-5, 1.0, &format!("{what} y"));
    assert_close_to(&state, &state64, 1e-5, 1.0, &format!("{what} state"));
    let mut folded = start.to_vec();
    LinearAttention { q: &[], ..data.op() }.fold(&mut folded);
    assert_eq!(bits(&state), bits(&folded), "{what}: fold");
    for at in [1, 7, 64].into_iter().filter(|&at| at < data.tokens) {
        let (mut state2, mut y2) = (start.to_vec(), nan(y.len()));
        let (first, rest) = y2.split_at_mut(at * width);
        data.part(0, at).forward(&mut state2, first);
        data.part(at, data.tokens).forward(&mut state2, rest);
        assert_eq!((bits(&y), bits(&state)), (bits(&y2), bits(&state2)), "{what}: split at {at}");
    }
}

#[test]
fn equals_the_reference_and_its_matrix() {
    on_each_set(|| {
        let mut rng = Rng::new(30);
        for (variant, shape) in VARIANTS.into_iter().flat_map(|variant| SHAPES.map(|shape| (variant, shape))) {
            let (heads, key_dim, head_dim) = shape;
            for tokens in LENGTHS {
                let what = format!("{variant:?} {shape:?} T={tokens}");
                let data = Data::new(&mut rng, tokens, shape, variant);
                check(&data, &rng.vec(heads * key_dim * head_dim), &what);
                let (mut state, mut y) = (vec![0.0; heads * key_dim * head_dim], nan(data.v.len()));
                data.op().forward(&mut state, &mut y);
                for head in [0, heads - 1] {
                    let m = check_rows_to(&data.lowered(head), tokens, 0.1, &what);
                    let at = |t: usize| (t * heads + head) * head_dim + head_dim - 1;
                    let y: Vec<f32> = (0..tokens).map(|t| y[at(t)]).collect();
                    assert_close_to(&y, &product(&m, |s| data.v[at(s)]), 1e-5, 1.0, "M·v = y");
                }
            }
            check(&Data::new(&mut rng, 0, shape, variant), &rng.vec(heads * key_dim * head_dim), "no tokens");
        }
    });
}

#[test]
fn survives_extremes() {
    let mut rng = Rng::new(31);
    for (variant, log) in VARIANTS.into_iter().flat_map(|v| [0.0, -1e-30, -1e4, -1e30].map(|log| (v, log))) {
        let mut data = Data::new(&mut rng, 70, (2, 12, 5), variant);
        let what = format!("{variant:?} log {log}");
        data.log.iter_mut().step_by(7).for_each(|g| *g = log);
        check(&data, &rng.vec(120), &what);
        check_rows_to(&data.lowered(1), 70, 0.1, &what);
        if log < 0.0 {
            data.log.fill(log);
            check(&data, &rng.vec(120), &what);
            check_rows_to(&data.lowered(0), 70, 0.1, &what);
        }
    }
}

#[test]
fn a_row_divided_by_its_normaliser() {
    let mut rng = Rng::new(32);
    let data = Data::new(&mut rng, 100, (2, 6, 3), Scalar);
    let normaliser: Vec<f32> = rng.vec(100).iter().map(|n| 1.5 + n).collect();
    let Lowered::Recurrent(plain) = data.lowered(1) else { unreachable!() };
    let divided = Recurrent { normaliser: Some(column(&normaliser, 1, 0)), diagonal: 0.25, ..plain };
    let m = check_rows_to(&Lowered::Recurrent(divided), 100, 0.1, "normaliser");
    let plain = check_rows_to(&Lowered::Recurrent(plain), 100, 0.1, "no normaliser");
    assert_close(&[m[99 * 100 + 3]], &[f64::from(plain[99 * 100 + 3] / normaliser[99])], 1e-6, "divided");
}

#[test]
fn one_number_a_channel() {
    on_each_set(|| {
        let mut rng = Rng::new(33);
        for (channels, tokens) in [1, 7, 20].into_iter().flat_map(|c| LENGTHS.map(|t| (c, t))) {
            let len = channels * tokens;
            let log_decay: Vec<f32> = rng.log_uniform(len, 1e-3, 1.0).iter().map(|g| -g).collect();
            let (input, x, c, start) = (rng.vec(len), rng.vec(len), rng.vec(len), rng.vec(channels));
            for bonus in [None, Some(&c[..])] {
                let op = ChannelScan { channels, log_decay: &log_decay, input: &input, x: &x, bonus };
                let (mut state, mut y) = (start.clone(), nan(len));
                op.forward(&mut state, &mut y);
                let (mut state64, mut y64) = (widened(&start), vec![f64::NAN; len]);
                op.reference(&mut state64, &mut y64);
                assert_close_to(&y, &y64, 1e-5, 1.0, "channel scan y");
                assert_close_to(&state, &state64, 1e-5, 1.0, "channel scan state");
                let mut folded = start.clone();
                op.fold(&mut folded);
                assert_eq!(bits(&state), bits(&folded));
            }
        }
    });
}

/// The mean by its gates is the weighted mean, however long and however uneven.
#[test]
fn wkv_is_the_weighted_mean() {
    let mut rng = Rng::new(34);
    let channels = 3;
    for (tokens, spread) in LENGTHS.into_iter().flat_map(|tokens| [1.0, 60.0].map(|spread| (tokens, spread))) {
        let k: Vec<f32> = rng.vec(tokens * channels).iter().map(|k| spread * k).collect();
        let (v, u) = (rng.vec(tokens * channels), rng.vec(channels));
        let w: Vec<f32> = rng.log_uniform(channels, 1e-3, 2.0).iter().map(|w| -w).collect();
        let mut log_sum = vec![WKV_EMPTY; channels];
        let [mut log_decay, mut input, mut bonus, mut y] = [(); 4].map(|_| nan(tokens * channels));
        wkv_gates(&k, &w, &u, &mut log_sum, &mut log_decay, &mut input, &mut bonus);
        let op = ChannelScan { channels, log_decay: &log_decay, input: &input, x: &v, bonus: Some(&bonus) };
        op.forward(&mut vec![0.0; channels], &mut y);
        let at = |data: &[f32], t: usize, c: usize| f64::from(data[t * channels + c]);
        let mut expected = vec![0.0; y.len()];
        for (i, expected) in expected.iter_mut().enumerate() {
            let (t, c) = (i / channels, i % channels);
            let weight = |s: usize| match t - s {
                0 => f64::from(u[c]) + at(&k, t, c),
                age => at(&k, s, c) + (age - 1) as f64 * f64::from(w[c]),
            };
            let highest = (0..=t).map(weight).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..=t).map(|s| (weight(s) - highest).exp()).sum();
            *expected = (0..=t).map(|s| (weight(s) - highest).exp() / sum * at(&v, s, c)).sum();
        }
        // k is known to 4·10⁻⁶ at 60, and so is the logarithm of every weight.
        let tolerance = if spread > 1.0 { 1e-4 } else { 1e-5 };
        assert_close_to(&y, &expected, tolerance, 1.0, &format!("wkv T={tokens} spread {spread}"));
        // Cut anywhere, it goes on from the sum.
        let cut = tokens / 2 * channels;
        let (mut again, mut carried) = (log_decay.clone(), vec![WKV_EMPTY; channels]);
        let (a, b) = again.split_at_mut(cut);
        let (mut g, mut c) = (nan(k.len()), nan(k.len()));
        wkv_gates(&k[..cut], &w, &u, &mut carried, a, &mut g[..cut], &mut c[..cut]);
        wkv_gates(&k[cut..], &w, &u, &mut carried, b, &mut g[cut..], &mut c[cut..]);
        assert_eq!((bits(&again), bits(&g), bits(&c)), (bits(&log_decay), bits(&input), bits(&bonus)));
    }
}

/// Numbers made by others, as in [`super::goldens`].
#[test]
fn goldens() {
    let (q, k, v) = (s(0.5, &[6, 3]), s(0.8, &[6, 3]), s(0.1, &[6, 2]));
    let scaled: Vec<f32> = q.iter().map(|q| q / 3f32.sqrt()).collect();
    let op = LinearAttention {
        heads: 1,
        key_dim: 3,
        head_dim: 2,
        q: &scaled,
        k: &k,
        v: &v,
        decay: KeyDecay::None,
        weight: None,
        correction: None,
        bonus: None,
    };
    let check = |op: LinearAttention, last: &[f64], [sum, squares]: [f64; 2], m: &[f64], decay, bonus| {
        let (mut y, mut row) = (nan(op.v.len()), nan(6));
        op.forward(&mut vec![0.0; op.key_dim * op.head_dim], &mut y);
        super::goldens::check(&y, last, sum, squares);
        let keys = |data| Strided { data, stride: 3, offset: 0, width: 3 };
        let lowered = Recurrent { decay, bonus, ..Recurrent::new(6, keys(op.q), keys(op.k)) };
        Lowered::Recurrent(lowered).row(5, &mut row);
        assert_close(&row, m, 1e-5, "M[5]");
    };
    let rows = |data| Strided { data, stride: 3, offset: 0, width: 3 };

    // RetNet, the second head.
    let gamma = [(1.0f32 - 1.0 / 64.0).ln()];
    check(
        LinearAttention { decay: KeyDecay::Fixed(&gamma), ..op },
        &[-1.01759706, 0.361365302],
        [-3.35992366, 17.6824638],
        &[0.49627693, -0.107053141, -0.610816122, -0.4524447, 0.213391537, 0.663581977],
        Decay::Scalar { log: column(&gamma, 0, 0), factor: 1.0 },
        None,
    );
    // GLA.
    let log: Vec<f32> = s(0.2, &[6, 3]).iter().map(|x| -softplus(-x) / 16.0).collect();
    check(
        LinearAttention { decay: KeyDecay::Key(&log), ..op },
        &[-0.959841352, 0.316109195],
        [-2.96635736, 16.015868],
        &[0.415372597, -0.0917818069, -0.542348711, -0.432315043, 0.207574192, 0.663581977],
        Decay::Key { log: rows(&log) },
        None,
    );
    // RWKV-6.
    let log: Vec<f32> = s(0.2, &[6, 3]).iter().map(|x| -(x - 1.0).exp()).collect();
    let (u, v3) = (s(0.6, &[3]), s(0.1, &[6, 3]));
    let bonus: Vec<f32> =
        q.chunks(3).zip(k.chunks(3)).map(|(q, k)| q.iter().zip(k).zip(&u).map(|((q, k), u)| q * k * u).sum()).collect();
    let op = LinearAttention { head_dim: 3, q: &q, v: &v3, ..op };
    check(
        LinearAttention { decay: KeyDecay::Key(&log), bonus: Some(&bonus), ..op },
        &[-1.14481223, 0.227192671, 1.49234531],
        [-2.70187873, 43.0621682],
        &[0.279062968, -0.0591432948, -0.747473787, -0.624208917, 0.37547173, 0.558605776],
        Decay::Key { log: rows(&log) },
        Some(column(&bonus, 1, 0)),
    );
    // RWKV-7.
    let mut log = s(0.2, &[6, 3]);
    sigmoid_slice(&mut log);
    log.iter_mut().for_each(|log| *log *= -(-0.5f32).exp());
    let (mut erase, mut a) = (s(1.3, &[6, 3]), s(0.9, &[6, 3]));
    l2_normalise(&mut erase, 3, 0.0, 1.0);
    sigmoid_slice(&mut a);
    let replace: Vec<f32> = a.iter().zip(&erase).map(|(a, e)| a * e).collect();
    let correction = Some(Correction { erase: &erase, replace: &replace });
    check(
        LinearAttention { decay: KeyDecay::Key(&log), correction, ..op },
        &[-1.38237806, -0.736458329, 0.255829261],
        [-3.34306572, 43.7538961],
        &[-0.0221726927, -0.100008014, -0.0420325486, 0.272866277, 0.470910805, 1.1493577],
        Decay::Corrected { log: rows(&log), erase: rows(&erase), replace: rows(&replace) },
        None,
    );
    // RWKV-4.
    let (k, v, w) = (s(0.8, &[6, 2]), s(0.1, &[6, 2]), s(0.3, &[2]));
    let w: Vec<f32> = w.iter().map(|w| -w.exp()).collect();
    let [mut log_decay, mut input, mut bonus, mut y] = [(); 4].map(|_| nan(12));
    wkv_gates(&k, &w, &s(0.6, &[2]), &mut [WKV_EMPTY; 2], &mut log_decay, &mut input, &mut bonus);
    ChannelScan { channels: 2, log_decay: &log_decay, input: &input, x: &v, bonus: Some(&bonus) }
        .forward(&mut [0.0; 2], &mut y);
    super::goldens::check(&y, &[-0.596005081, -0.0913056525], 2.00980098, 4.13319612);
    let share: Vec<f32> = bonus.iter().map(|c| 1.0 - c).collect();
    let (one, mut row) = ([1.0], nan(6));
    let lowered = Recurrent {
        weight: Some(column(&input, 2, 0)),
        decay: Decay::Scalar { log: column(&log_decay, 2, 0), factor: 1.0 },
        bonus: Some(column(&bonus, 2, 0)),
        ..Recurrent::new(6, column(&share, 2, 0), column(&one, 0, 0))
    };
    Lowered::Recurrent(lowered).row(5, &mut row);
    let m = [0.00387080335, 0.0186571847, 0.0319725101, 0.0469603955, 0.168671375, 0.729867731];
    assert_close(&row, &m, 1e-5, "M[5]");
}
