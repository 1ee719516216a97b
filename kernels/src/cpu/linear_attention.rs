//! CPU twin of [`crate::linear_attention`].
//!
//! A row of the state needs no other: a block of rows goes through all tokens while it lies in L1, the keys and queries streaming
//! past.

use std::ops::Range;

use crate::{
    KeyDecay, LinearAttention,
    cpu::{
        heads,
        simd::{Kernel, Simd, UNIT, dispatch},
        vector::{dot, exp},
    },
    par::Columns,
};

/// Rows of the state that go through the tokens together.
const BLOCK: usize = 16;
/// Of those, rows whose sums run side by side.
const ROWS: usize = 4;

pub(crate) fn run(op: &LinearAttention, state: &mut [f32], y: Option<&mut [f32]>) {
    if op.tokens() > 0 {
        let work = 4 * op.v.len() * op.key_dim.div_ceil(UNIT);
        heads::for_each(op.heads, op.head_dim, state, y, work, |head, state, y| dispatch(Head { op, head, state, y }));
    }
}

struct Head<'a> {
    op: &'a LinearAttention<'a>,
    head: usize,
    /// [Dv, Dk]
    state: &'a mut [f32],
    /// [T, Dv]
    y: Option<Columns<'a>>,
}

impl Kernel for Head<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Head { op, head, state, mut y } = self;
        let LinearAttention { heads, key_dim, head_dim, .. } = *op;
        let (decays, stride) = decays(s, op, head);
        for (block, state) in state.chunks_mut(BLOCK * key_dim).enumerate() {
            let rows = state.len() / key_dim;
            for t in 0..op.tokens() {
                let i = t * heads + head;
                let keys = i * key_dim..(i + 1) * key_dim;
                let part = |data: Option<&'_ [f32]>| data.map_or(0..0, |_| keys.clone());
                let (erase, replace) = op.correction.map_or((None, None), |c| (Some(c.erase), Some(c.replace)));
                let token = Token {
                    decay: &decays[t * stride..][..key_dim],
                    weight: op.weight.map_or(1.0, |weight| weight[i]),
                    k: &op.k[keys.clone()],
                    q: if y.is_some() { &op.q[keys.clone()] } else { &[] },
                    erase: &erase.unwrap_or_default()[part(erase)],
                    replace: &replace.unwrap_or_default()[part(replace)],
                    bonus: op.bonus.map(|bonus| bonus[i]),
                };
                let v = &op.v[i * head_dim + block * BLOCK..][..rows];
                let mut read = [0.0; BLOCK];
                for ((state, v), read) in
                    state.chunks_mut(ROWS * key_dim).zip(v.chunks(ROWS)).zip(read.chunks_mut(ROWS))
                {
                    if let Ok(v) = v.try_into() {
                        read.copy_from_slice(&advance::<S, ROWS>(s, state, v, &token));
                    } else {
                        for ((state, v), read) in state.chunks_exact_mut(key_dim).zip(v).zip(read) {
                            *read = advance(s, state, &[*v], &token)[0];
                        }
                    }
                }
                if let Some(y) = &mut y {
                    y.row(t)[block * BLOCK..][..rows].copy_from_slice(&read[..rows]);
                }
            }
        }
    }
}

/// e^log of one head [T, Dk], and how far apart the tokens are: 0 where all are alike.
#[inline(always)]
fn decays<S: Simd>(s: S, op: &LinearAttention, head: usize) -> (Vec<f32>, usize) {
    let LinearAttention { heads, key_dim, .. } = *op;
    match op.decay {
        KeyDecay::None => (vec![1.0; key_dim], 0),
        KeyDecay::Fixed(log) => (vec![log[head].exp(); key_dim], 0),
        KeyDecay::Scalar(log) => {
            let mut decays = Vec::with_capacity(op.tokens() * key_dim);
            for row in log.chunks_exact(heads) {
                decays.resize(decays.len() + key_dim, row[head].exp());
            }
            (decays, key_dim)
        }
        KeyDecay::Key(log) => {
            let mut decays = vec![0.0; op.tokens() * key_dim];
            for (out, row) in decays.chunks_exact_mut(key_dim).zip(log.chunks_exact(heads * key_dim)) {
                let row = &row[head * key_dim..][..key_dim];
                for (out, log) in out.chunks_mut(S::LANES).zip(row.chunks(S::LANES)) {
                    s.store_some(exp(s, s.load_some(log)), out);
                }
            }
            (decays, key_dim)
        }
    }
}

/// What a token brings to every row of a state.
struct Token<'a> {
    /// [Dk]
    decay: &'a [f32],
    weight: f32,
    /// [Dk]
    k: &'a [f32],
    /// [Dk]; empty where the state is not read.
    q: &'a [f32],
    /// [Dk]; empty without a correction.
    erase: &'a [f32],
    replace: &'a [f32],
    bonus: Option<f32>,
}

/// R rows of the state [R, Dk] by one token; returns R of y, zeros where the state is not read.
#[inline(always)]
fn advance<S: Simd, const R: usize>(s: S, mut state: &mut [f32], v: &[f32; R], token: &Token) -> [f32; R] {
    let n = token.k.len();
    let mut rows: [&mut [f32]; R] = std::array::from_fn(|_| state.split_off_mut(..n).unwrap_or_default());
    let (mut found, mut before) = ([0.0; R], [0.0; R]);
    if !token.erase.is_empty() {
        for (found, row) in found.iter_mut().zip(&rows) {
            *found = -dot(s, row, token.erase);
        }
    }
    if let (Some(bonus), false) = (token.bonus, token.q.is_empty()) {
        for ((before, row), v) in before.iter_mut().zip(&rows).zip(v) {
            *before = dot(s, row, token.q) + bonus * v;
        }
    }
    let mut write = [s.splat(0.0); R];
    for (write, v) in write.iter_mut().zip(v) {
        *write = s.splat(token.weight * v);
    }
    // Whole vectors apart from the last: of those the compiler knows the length.
    let (whole, mut sums) = (n - n % S::LANES, [s.splat(0.0); R]);
    for at in (0..whole).step_by(S::LANES) {
        update(s, &mut rows, token, at..at + S::LANES, &write, &found, &mut sums);
    }
    if whole < n {
        update(s, &mut rows, token, whole..n, &write, &found, &mut sums);
    }
    match token.bonus {
        Some(_) => before,
        None => sums.map(|sum| s.sum(sum)),
    }
}

/// S ← Λ S + v kᵀ − found bᵀ and Sᵀq, the part of elements `at`.
#[inline(always)]
fn update<S: Simd, const R: usize>(
    s: S,
    rows: &mut [&mut [f32]; R],
    token: &Token,
    at: Range<usize>,
    write: &[S::V; R],
    found: &[f32; R],
    sums: &mut [S::V; R],
) {
    let (decay, key) = (s.load_some(&token.decay[at.clone()]), s.load_some(&token.k[at.clone()]));
    let query = token.q.get(at.clone()).map_or(s.splat(0.0), |q| s.load_some(q));
    let replace = token.replace.get(at.clone()).map(|b| s.load_some(b));
    for (((row, write), found), sum) in rows.iter_mut().zip(write).zip(found).zip(sums) {
        let row = &mut row[at.clone()];
        let mut next = s.fma(decay, s.load_some(row), s.mul(*write, key));
        if let Some(replace) = replace {
            next = s.fma(s.splat(*found), replace, next);
        }
        s.store_some(next, row);
        *sum = s.fma(next, query, *sum);
    }
}
