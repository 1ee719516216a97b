//! CPU twin of [`crate::mixing`].

use std::ops::Range;

use crate::{
    Decay, Lowered, Recurrent, Strided,
    cpu::{
        simd::{Kernel, LANES, Simd, dispatch},
        vector::{dot, exp},
    },
    par,
};

/// An exponential in units of multiply-adds.
const EXP: usize = 12;

pub(crate) fn row(lowered: &Lowered, t: usize, out: &mut [f32]) {
    match lowered {
        Lowered::Recurrent(recurrent) => dispatch(Row { recurrent, t, out }),
        Lowered::Softmax { attention, query, head } => attention.row(query.row(t), *head, t, out),
    }
}

pub(crate) fn rows(lowered: &Lowered, range: Range<usize>, out: &mut [f32]) {
    let per_entry = match lowered {
        Lowered::Recurrent(r) => {
            r.key.width.div_ceil(LANES) * if matches!(r.decay, Decay::Diagonal { .. }) { EXP } else { 1 }
        }
        Lowered::Softmax { attention, .. } => attention.head_dim.div_ceil(LANES),
    };
    let work = out.len() * per_entry / 2;
    par::for_each_chunk(out, range.end, work, |i, out| {
        let t = range.start + i;
        row(lowered, t, &mut out[..=t]);
        out[t + 1..].fill(0.0);
    });
}

struct Row<'a> {
    recurrent: &'a Recurrent<'a>,
    t: usize,
    out: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Row { recurrent: r, t, out } = self;
        let query = r.query.row(t);
        match r.decay {
            Decay::None => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = dot(s, query, r.key.row(i));
                }
            }
            Decay::Scalar { log, factor } => scalar(s, r, query, log, factor, out),
            Decay::Diagonal { log, rates } => diagonal(s, r, query, log, rates, out),
        }
        if let Some(weight) = r.weight {
            out.iter_mut().enumerate().for_each(|(i, out)| *out *= weight.at(i));
        }
        out[t] += r.diagonal;
    }
}

/// From the diagonal backwards, the decay being the exponential of a running sum ≤ 0; once it is 0 it stays so.
#[inline(always)]
fn scalar<S: Simd>(s: S, r: &Recurrent, query: &[f32], log: Strided, factor: f32, out: &mut [f32]) {
    let mut sum = 0.0f64;
    for i in (0..out.len()).rev() {
        let decay = (sum.min(0.0) as f32).exp();
        if decay == 0.0 {
            return out[..=i].fill(0.0);
        }
        out[i] = decay * dot(s, query, r.key.row(i));
        sum += f64::from(log.at(i)) * f64::from(factor);
    }
}

/// u[n] = q[n] e^{rates[n] · Σ log}: Σ log is one running sum for all n.
#[inline(always)]
fn diagonal<S: Simd>(s: S, r: &Recurrent, query: &[f32], log: Strided, rates: &[f32], out: &mut [f32]) {
    let zero = s.splat(0.0);
    let mut sum = 0.0f64;
    for i in (0..out.len()).rev() {
        let elapsed = s.splat(sum as f32);
        let (mut total, mut largest) = (zero, zero);
        for ((q, k), rates) in query.chunks(LANES).zip(r.key.row(i).chunks(LANES)).zip(rates.chunks(LANES)) {
            let decay = exp(s, s.min(s.mul(elapsed, s.load_some(rates)), zero));
            largest = s.max(largest, decay);
            total = s.fma(s.mul(s.load_some(q), decay), s.load_some(k), total);
        }
        if s.sum(largest) == 0.0 {
            return out[..=i].fill(0.0);
        }
        out[i] = s.sum(total);
        sum += f64::from(log.at(i));
    }
}
