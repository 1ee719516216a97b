//! CPU twin of [`crate::delta_rule`].
//!
//! A row of the state needs no other: a block of rows goes through all tokens while it lies in L1, the keys and queries
//! streaming past.

use std::ops::Range;

use crate::{
    DeltaRule,
    cpu::{
        heads,
        simd::{Kernel, Simd, UNIT, dispatch},
    },
    par::Columns,
};

/// Rows of the state that go through the tokens together.
const BLOCK: usize = 16;
/// Of those, rows whose sums run side by side.
const ROWS: usize = 4;

pub(crate) fn run(rule: &DeltaRule, state: &mut [f32], y: Option<&mut [f32]>) {
    let DeltaRule { heads, key_dim, head_dim, .. } = *rule;
    if rule.tokens() == 0 {
        return;
    }
    let work = 4 * rule.v.len() * key_dim.div_ceil(UNIT);
    heads::for_each(heads, head_dim, state, y, work, |head, state, y| dispatch(Head { rule, head, state, y }));
}

struct Head<'a> {
    rule: &'a DeltaRule<'a>,
    /// Of the values.
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
        let Head { rule, head, state, mut y } = self;
        let DeltaRule { key_heads, heads, key_dim, head_dim, .. } = *rule;
        for (block, state) in state.chunks_mut(BLOCK * key_dim).enumerate() {
            let rows = state.len() / key_dim;
            for t in 0..rule.tokens() {
                let at = (t * key_heads + rule.key_head(head)) * key_dim;
                let token = Token {
                    decay: rule.log_decay[t * heads + head].exp(),
                    beta: rule.beta[t * heads + head],
                    k: &rule.k[at..][..key_dim],
                    q: if y.is_some() { &rule.q[at..][..key_dim] } else { &[] },
                };
                let v = &rule.v[(t * heads + head) * head_dim + block * BLOCK..][..rows];
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

/// What a token brings to every row of a state.
struct Token<'a> {
    /// α
    decay: f32,
    /// β
    beta: f32,
    /// [Dk]
    k: &'a [f32],
    /// [Dk]; empty where the state is not read.
    q: &'a [f32],
}

/// R rows of the state [R, Dk] by one token; returns R of y, zeros where the state is not read.
#[inline(always)]
fn advance<S: Simd, const R: usize>(s: S, mut state: &mut [f32], v: &[f32; R], token: &Token) -> [f32; R] {
    let n = token.k.len();
    let mut rows: [&mut [f32]; R] = std::array::from_fn(|_| state.split_off_mut(..n).unwrap_or_default());
    // Whole vectors apart from the last: of those the compiler knows the length.
    let (whole, zero) = (n - n % S::LANES, [s.splat(0.0); R]);
    let mut sums = zero;
    for at in (0..whole).step_by(S::LANES) {
        predict(s, &rows, token, at..at + S::LANES, &mut sums);
    }
    if whole < n {
        predict(s, &rows, token, whole..n, &mut sums);
    }
    // The decayed state predicts; decaying the prediction saves a pass.
    let Token { decay, beta, .. } = *token;
    let writes = std::array::from_fn(|r| s.splat(beta * (v[r] - decay * s.sum(sums[r]))));
    let mut sums = zero;
    for at in (0..whole).step_by(S::LANES) {
        correct(s, &mut rows, token, at..at + S::LANES, &writes, &mut sums);
    }
    if whole < n {
        correct(s, &mut rows, token, whole..n, &writes, &mut sums);
    }
    sums.map(|sum| s.sum(sum))
}

/// Sᵀk, the part of elements `at`.
#[inline(always)]
fn predict<S: Simd, const R: usize>(
    s: S,
    rows: &[&mut [f32]; R],
    token: &Token,
    at: Range<usize>,
    sums: &mut [S::V; R],
) {
    let key = s.load_some(&token.k[at.clone()]);
    for (row, sum) in rows.iter().zip(sums) {
        *sum = s.fma(s.load_some(&row[at.clone()]), key, *sum);
    }
}

/// S ← α S + e kᵀ and Sᵀq, the part of elements `at`.
#[inline(always)]
fn correct<S: Simd, const R: usize>(
    s: S,
    rows: &mut [&mut [f32]; R],
    token: &Token,
    at: Range<usize>,
    writes: &[S::V; R],
    sums: &mut [S::V; R],
) {
    let (decay, key) = (s.splat(token.decay), s.load_some(&token.k[at.clone()]));
    let query = token.q.get(at.clone()).map_or(s.splat(0.0), |q| s.load_some(q));
    for ((row, write), sum) in rows.iter_mut().zip(writes).zip(sums) {
        let row = &mut row[at.clone()];
        let next = s.fma(decay, s.load_some(row), s.mul(*write, key));
        s.store_some(next, row);
        *sum = s.fma(next, query, *sum);
    }
}
