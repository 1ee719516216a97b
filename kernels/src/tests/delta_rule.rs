//! The delta rule: reference, splitting, extremes, M·v = y, and the goldens.

use super::{
    goldens::s,
    mixing::{check_rows, column, product},
    *,
};
use crate::{Decay, DeltaRule, Lowered, Recurrent, Strided, l2_normalise, sigmoid_slice, softplus};

pub(crate) struct DeltaData {
    pub(crate) tokens: usize,
    /// H_k, H, Dk, Dv
    pub(crate) shape: (usize, usize, usize, usize),
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    log_decay: Vec<f32>,
    beta: Vec<f32>,
}

impl DeltaData {
    pub(crate) fn new(rng: &mut Rng, tokens: usize, shape: (usize, usize, usize, usize)) -> DeltaData {
        let (key_heads, heads, key_dim, head_dim) = shape;
        let [mut q, mut k] = [(); 2].map(|_| rng.vec(tokens * key_heads * key_dim));
        l2_normalise(&mut q, key_dim, 1e-6, 1.0 / (key_dim as f32).sqrt());
        l2_normalise(&mut k, key_dim, 1e-6, 1.0);
        DeltaData {
            tokens,
            shape,
            q,
            k,
            v: rng.vec(tokens * heads * head_dim),
            log_decay: rng.log_uniform(tokens * heads, 1e-3, 1.0).iter().map(|g| -g).collect(),
            // Up to 2: eigenvalues down to −α.
            beta: rng.vec(tokens * heads).iter().map(|b| 1.0 + b).collect(),
        }
    }

    pub(crate) fn state_len(&self) -> usize {
        self.shape.1 * self.shape.2 * self.shape.3
    }

    pub(crate) fn op(&self) -> DeltaRule<'_> {
        self.part(0, self.tokens)
    }

    fn part(&self, from: usize, to: usize) -> DeltaRule<'_> {
        let (key_heads, heads, key_dim, head_dim) = self.shape;
        let part = |width: usize| from * width..to * width;
        DeltaRule {
            key_heads,
            heads,
            key_dim,
            head_dim,
            q: &self.q[part(key_heads * key_dim)],
            k: &self.k[part(key_heads * key_dim)],
            v: &self.v[part(heads * head_dim)],
            log_decay: &self.log_decay[part(heads)],
            beta: &self.beta[part(heads)],
        }
    }

    pub(crate) fn lowered(&self, head: usize) -> Lowered<'_> {
        let (key_heads, heads, key_dim, _) = self.shape;
        let offset = head * key_heads / heads * key_dim;
        let read = |data| Strided { data, stride: key_heads * key_dim, offset, width: key_dim };
        Lowered::Recurrent(Recurrent {
            tokens: self.tokens,
            query: read(&self.q),
            key: read(&self.k),
            weight: None,
            decay: Decay::Delta { log: column(&self.log_decay, heads, head), beta: column(&self.beta, heads, head) },
            diagonal: 0.0,
            bonus: None,
            normaliser: None,
        })
    }
}

const SHAPES: [(usize, usize, usize, usize); 6] =
    [(1, 1, 1, 1), (2, 6, 3, 2), (1, 3, 9, 5), (3, 3, 17, 19), (2, 4, 64, 33), (1, 2, 128, 16)];

fn check(data: &DeltaData, start: &[f32], what: &str) {
    let width = data.shape.1 * data.shape.3;
    let (mut state, mut y) = (start.to_vec(), nan(data.tokens * width));
    data.op().forward(&mut state, &mut y);
    let (mut state64, mut y64) = (widened(start), vec![f64::NAN; y.len()]);
    data.op().reference(&mut state64, &mut y64);
    assert_close(&y, &y64, 1e-5, &format!("{what} y"));
    assert_close(&state, &state64, 1e-5, &format!("{what} state"));
    let mut folded = start.to_vec();
    DeltaRule { q: &[], ..data.op() }.fold(&mut folded);
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
fn equals_the_reference() {
    on_each_set(|| {
        let mut rng = Rng::new(20);
        for shape in SHAPES {
            for tokens in LENGTHS {
                let data = DeltaData::new(&mut rng, tokens, shape);
                check(&data, &rng.vec(data.state_len()), &format!("{shape:?} T={tokens}"));
            }
        }
        let data = DeltaData::new(&mut rng, 0, SHAPES[1]);
        check(&data, &rng.vec(data.state_len()), "no tokens");
    });
}

#[test]
fn survives_extremes() {
    let mut rng = Rng::new(21);
    for log in [0.0, -1e-30, -1e4, f32::NEG_INFINITY] {
        for beta in [0.0, 1.0, 2.0] {
            let mut data = DeltaData::new(&mut rng, 70, (1, 2, 12, 5));
            data.log_decay.iter_mut().step_by(7).for_each(|g| *g = log);
            data.beta.iter_mut().step_by(5).for_each(|b| *b = beta);
            let what = format!("g {log} β {beta}");
            check(&data, &rng.vec(data.state_len()), &what);
            check_rows(&data.lowered(1), 70, &what);
            data.log_decay.fill(log);
            data.beta.fill(beta);
            check(&data, &rng.vec(data.state_len()), &what);
            check_rows(&data.lowered(0), 70, &what);
        }
    }
}

#[test]
fn mixing_is_the_model() {
    on_each_set(|| {
        let mut rng = Rng::new(22);
        for shape in SHAPES {
            for tokens in LENGTHS {
                let data = DeltaData::new(&mut rng, tokens, shape);
                let (heads, head_dim) = (shape.1, shape.3);
                let (mut state, mut y) = (vec![0.0; data.state_len()], nan(data.v.len()));
                data.op().forward(&mut state, &mut y);
                for head in [0, heads - 1] {
                    let m = check_rows(&data.lowered(head), tokens, &format!("delta {shape:?} T={tokens}"));
                    let at = |t: usize| (t * heads + head) * head_dim + head_dim - 1;
                    let y: Vec<f32> = (0..tokens).map(|t| y[at(t)]).collect();
                    assert_close(&y, &product(&m, |s| data.v[at(s)]), 1e-5, "M·v = y");
                }
            }
        }
    });
}

/// A state never decayed, each key written with β = 1: the same key again replaces what stood under it.
#[test]
fn a_repeated_key_replaces() {
    let data = DeltaData {
        tokens: 3,
        shape: (1, 1, 2, 1),
        q: vec![1.0, 0.0, 0.0, 1.0, 1.0, 0.0],
        k: vec![1.0, 0.0, 0.0, 1.0, 1.0, 0.0],
        v: vec![5.0, 7.0, 9.0],
        log_decay: vec![0.0; 3],
        beta: vec![1.0; 3],
    };
    let (mut state, mut y, mut row) = ([0.0; 2], nan(3), nan(3));
    data.op().forward(&mut state, &mut y);
    assert_eq!((state, y.as_slice()), ([9.0, 7.0], [5.0, 7.0, 9.0].as_slice()));
    data.lowered(0).row(2, &mut row);
    assert_eq!(row, [0.0, 0.0, 1.0]);
}

/// Numbers made by others, as in [`super::goldens`].
#[test]
fn goldens() {
    let [mut q, mut k] = [s(0.5, &[6, 3]), s(0.8, &[6, 3])];
    l2_normalise(&mut q, 3, 1e-6, 1.0 / 3f32.sqrt());
    l2_normalise(&mut k, 3, 1e-6, 1.0);
    let mut beta = s(0.9, &[6]);
    sigmoid_slice(&mut beta);
    let decays = s(0.4, &[6]).iter().map(|&a| -0.2f32.exp() * softplus(a)).collect();
    let gated = (
        decays,
        [-0.233891669, -0.02069125],
        [0.576151793, 0.612886442],
        [0.000582743749, -0.00491863767, -0.0258847442, -0.0126718769, 0.0317236082, 0.288769416],
    );
    let plain = (
        vec![0.0; 6],
        [-0.396564728, -0.0793319373],
        [-0.145736217, 1.28068424],
        [0.0470932369, -0.080108606, -0.126779001, -0.0352606889, 0.0601333385, 0.288769416],
    );
    for (log_decay, last, [sum, squares], m) in [gated, plain] {
        let (q, k, v, beta) = (q.clone(), k.clone(), s(0.1, &[6, 2]), beta.clone());
        let data = DeltaData { tokens: 6, shape: (1, 1, 3, 2), q, k, v, log_decay, beta };
        let (mut y, mut row) = (nan(12), nan(6));
        data.op().forward(&mut [0.0; 6], &mut y);
        super::goldens::check(&y, &last, sum, squares);
        data.lowered(0).row(5, &mut row);
        assert_close(&row, &m, 1e-5, "M[5]");
    }
}
