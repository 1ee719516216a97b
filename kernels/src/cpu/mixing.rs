//! CPU twin of [`crate::mixing`].
//!
//! Rows of a recurrence are drawn in groups that share an anchor a, a multiple of [`GROUP`]: for s ≤ a ≤ t the decay between s and t
//! is that from s to a times that from a to t, so the exponentials of a column are taken once a group and a row is products alone.
//! Anchors stand at fixed tokens, so a row has the same bits whichever rows it is drawn with.

use std::ops::Range;

use crate::{
    Decay, Lowered, Recurrent, Strided, Toeplitz,
    cpu::{
        simd::{Kernel, Simd, UNIT, dispatch},
        vector::{axpy, dot, exp},
    },
    par,
};

/// Logarithm of a decay that counts as 0. Smaller factors would meet the range in which the processor takes a hundred times as long.
const FORGOTTEN: f32 = -69.5;
/// Rows that share their exponentials.
const GROUP: usize = 32;

pub(crate) fn row(lowered: &Lowered, t: usize, out: &mut [f32]) {
    rows(lowered, t..t + 1, out);
}

pub(crate) fn rows(lowered: &Lowered, range: Range<usize>, out: &mut [f32]) {
    let width = range.end;
    match lowered {
        Lowered::Recurrent(recurrent) => {
            let drawing = Drawing::new(recurrent, width);
            let work = out.len() * recurrent.key.width.div_ceil(UNIT) / 2;
            par::for_each(groups(range, out).into_iter(), work, |(rows, out)| {
                dispatch(Group { drawing: &drawing, rows, out })
            });
        }
        Lowered::Softmax { attention, query, head } => {
            let work = out.len() * attention.head_dim.div_ceil(UNIT) / 2;
            par::for_each_chunk(out, width, work, |i, out| {
                let t = range.start + i;
                attention.row(query.row(t), *head, t, &mut out[..=t]);
                out[t + 1..].fill(0.0);
            });
        }
        Lowered::Product(bands) => {
            // The newest tap first, as each token meets those before it.
            let forward: Vec<Vec<f32>> = bands.iter().map(|band| band.taps.iter().rev().copied().collect()).collect();
            let work = out.len() * width.div_ceil(UNIT) / 2 * bands.len();
            par::for_each_chunk(out, width, work, |i, out| {
                dispatch(Product { bands, forward: &forward, row: range.start + i, out });
            });
        }
        Lowered::Toeplitz(band) => {
            let work = out.len() * band.pre.width.div_ceil(UNIT) / 2;
            par::for_each_chunk(out, width, work, |i, out| dispatch(Band { band, row: range.start + i, out }));
        }
    }
}

/// Row `row` of a band and what lies above the diagonal.
struct Band<'a> {
    band: &'a Toeplitz<'a>,
    row: usize,
    out: &'a mut [f32],
}

impl Kernel for Band<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Band { band: Toeplitz { taps, pre, post, .. }, row, out } = self;
        out.fill(0.0);
        for (age, tap) in taps.iter().rev().enumerate().take(row + 1) {
            let at = row - age;
            out[at] = match pre.width {
                1 => post.at(row) * tap * pre.at(at),
                _ => dot(s, post.row(row), pre.row(at)) * tap,
            };
        }
    }
}

/// Row `row` of a product of bands: a row of the first, which then goes through the others, uᵀ(M₂ M₃ …). It needs a row's room.
struct Product<'a> {
    bands: &'a [Toeplitz<'a>],
    /// The taps of each, the first for the token itself.
    forward: &'a [Vec<f32>],
    row: usize,
    out: &'a mut [f32],
}

impl Kernel for Product<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Product { bands, forward, row, out } = self;
        Band { band: &bands[0], row, out }.run(s);
        let mut weights = vec![0.0; row + 1];
        for (Toeplitz { pre, post, .. }, taps) in bands.iter().zip(forward).skip(1) {
            for (at, (weight, out)) in weights.iter_mut().zip(&*out).enumerate() {
                *weight = out * post.at(at);
            }
            for (at, out) in out[..=row].iter_mut().enumerate() {
                let reach = taps.len().min(row + 1 - at);
                *out = dot(s, &weights[at..at + reach], &taps[..reach]) * pre.at(at);
            }
        }
    }
}

pub(crate) fn apply_rows(rows: &[f32], width: usize, values: Strided<'_>, out: &mut [f32]) {
    dispatch(Apply { rows, width, values, out });
}

/// Some rows of M on the values: each value is read once for all rows.
struct Apply<'a> {
    /// [rows, width]
    rows: &'a [f32],
    width: usize,
    values: Strided<'a>,
    /// [rows, P]
    out: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Output = ();
    // Loops, not closures: those would be compiled without the instruction set.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Apply { rows, width, values, out } = self;
        out.fill(0.0);
        if values.width == 1 {
            let column: Vec<f32> = (0..width).map(|i| values.at(i)).collect();
            for (out, row) in out.iter_mut().zip(rows.chunks_exact(width)) {
                // One running sum, so that zeros at the end of a row change no bit.
                let mut sum = s.splat(0.0);
                for (row, column) in row.chunks(S::LANES).zip(column.chunks(S::LANES)) {
                    sum = s.fma(s.load_some(row), s.load_some(column), sum);
                }
                *out = s.sum(sum);
            }
            return;
        }
        for i in 0..width {
            let value = values.row(i);
            for (out, row) in out.chunks_exact_mut(values.width).zip(rows.chunks_exact(width)) {
                if row[i] != 0.0 {
                    axpy(s, row[i], value, out);
                }
            }
        }
    }
}

/// Cuts rows `range` of `out` `[rows, range.end]` at the anchors.
fn groups(range: Range<usize>, mut out: &mut [f32]) -> Vec<(Range<usize>, &mut [f32])> {
    let mut groups = Vec::with_capacity(range.len() / GROUP + 2);
    let mut start = range.start;
    while start < range.end {
        let end = ((start / GROUP + 1) * GROUP).min(range.end);
        let (group, rest) = out.split_at_mut((end - start) * range.end);
        groups.push((start..end, group));
        (start, out) = (end, rest);
    }
    groups
}

/// A recurrence with what lies far apart in memory gathered.
struct Drawing<'a> {
    recurrent: &'a Recurrent<'a>,
    /// [T] log-decay; empty without decay, or where it is by key.
    log: Vec<f32>,
    /// [T, N] decay by key; else empty.
    factors: Vec<f32>,
    /// [T]; β of a delta rule.
    weight: Option<Vec<f32>>,
}

impl<'a> Drawing<'a> {
    fn new(recurrent: &'a Recurrent<'a>, tokens: usize) -> Self {
        let gather = |column: Strided<'_>| (0..tokens).map(|t| column.at(t)).collect();
        let mut factors = Vec::new();
        if let Decay::Key { log } | Decay::Corrected { log, .. } = recurrent.decay {
            (0..tokens).for_each(|t| factors.extend_from_slice(log.row(t)));
            crate::exp_slice(&mut factors);
        }
        let log = match recurrent.decay {
            Decay::None | Decay::Key { .. } | Decay::Corrected { .. } => Vec::new(),
            Decay::Scalar { log, .. } | Decay::Diagonal { log, .. } | Decay::Delta { log, .. } => gather(log),
        };
        let weight = match recurrent.decay {
            Decay::Delta { beta, .. } => Some(beta),
            _ => recurrent.weight,
        };
        Self { recurrent, log, factors, weight: weight.map(gather) }
    }
}

/// Rows of one anchor.
struct Group<'a> {
    drawing: &'a Drawing<'a>,
    rows: Range<usize>,
    /// [rows, width of the whole drawing]
    out: &'a mut [f32],
}

impl Kernel for Group<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Group { drawing, rows, out } = self;
        let Drawing { recurrent: r, log, factors, weight } = drawing;
        let width = out.len() / rows.len();
        // Where the state is read before it is written, row t is as row t − 1 would be with another query.
        let early = usize::from(r.bonus.is_some());
        let mut lines: Vec<Line> = Vec::with_capacity(rows.len());
        for (t, line) in rows.clone().zip(out.chunks_exact_mut(width)) {
            let (line, later) = line.split_at_mut(t + 1);
            later.fill(0.0);
            if t >= early {
                lines.push(Line { query: r.query.row(t), out: &mut line[..=t - early] });
            }
        }
        let anchor = (rows.start / GROUP * GROUP).saturating_sub(early);
        if !lines.is_empty() {
            match r.decay {
                Decay::None => {
                    for line in &mut lines {
                        for (i, out) in line.out.iter_mut().enumerate() {
                            *out = dot(s, line.query, r.key.row(i));
                        }
                    }
                }
                Decay::Scalar { factor, .. } => scalar(s, r, log, factor, anchor, &mut lines),
                Decay::Diagonal { rates, .. } => diagonal(s, r, log, rates, anchor, &mut lines),
                Decay::Key { .. } => by_key(s, r, factors, anchor, &mut lines),
                Decay::Corrected { erase, replace, .. } => {
                    for line in &mut lines {
                        corrected(s, r, factors, erase, replace, line);
                    }
                }
                Decay::Delta { .. } => {
                    let beta = weight.as_deref().unwrap_or_default();
                    for line in &mut lines {
                        delta(s, r, log, beta, line);
                    }
                }
            }
        }
        for line in lines {
            if let Some(weight) = weight {
                line.out.iter_mut().zip(weight).for_each(|(out, weight)| *out *= weight);
            }
        }
        for (t, line) in rows.zip(out.chunks_exact_mut(width)) {
            if let Some(bonus) = r.bonus {
                line[t] = bonus.at(t);
            }
            if let Some(normaliser) = r.normaliser {
                line[..=t].iter_mut().for_each(|m| *m /= normaliser.at(t));
            }
            line[t] += r.diagonal;
        }
    }
}

/// A row of M up to the last token whose decay is in it.
struct Line<'a> {
    /// [N]
    query: &'a [f32],
    out: &'a mut [f32],
}

/// e^x for x ≤ 0 (more counts as 0), less the floor: exactly 0 from [`FORGOTTEN`] on, all digits long before.
#[inline(always)]
fn decay<S: Simd>(s: S, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    let kept = exp(s, s.max(s.min(x, zero), s.splat(FORGOTTEN)));
    s.max(s.sub(kept, s.splat(1e-30)), zero)
}

/// `xs` become their decays; e^0 is 1.
#[inline(always)]
fn decays<S: Simd>(s: S, xs: &mut [f32]) {
    for xs in xs.chunks_mut(S::LANES) {
        s.store_some(decay(s, s.load_some(xs)), xs);
    }
}

/// The decay is the exponential of a running sum ≤ 0; once it is 0 it stays so.
#[inline(always)]
fn scalar<S: Simd>(s: S, r: &Recurrent, log: &[f32], factor: f32, anchor: usize, lines: &mut [Line]) {
    let step = |i: usize| f64::from(log[i]) * f64::from(factor);

    // From each token up to the anchor, as far back as anything is left.
    let mut before = vec![0.0; anchor + 1];
    let (mut sum, mut first) = (0.0, anchor + 1);
    while first > 0 && sum >= f64::from(FORGOTTEN) {
        first -= 1;
        before[first] = sum as f32;
        sum += step(first);
    }
    decays(s, &mut before[first..]);
    let mut since = vec![0.0; lines.len()];
    for (Line { query, out: line }, since) in lines.iter_mut().zip(&mut since) {
        let t = line.len() - 1;
        line[..first].fill(0.0);
        let mut sum = 0.0;
        for i in (anchor + 1..=t).rev() {
            line[i] = sum as f32;
            sum += step(i);
        }
        decays(s, &mut line[anchor + 1..]);
        for i in anchor + 1..=t {
            line[i] *= dot(s, query, r.key.row(i));
        }
        *since = sum as f32;
    }
    decays(s, &mut since);
    // Each key is read once for all rows: they stay in the cache, the keys of a long text would not.
    for i in first..=anchor {
        let key = r.key.row(i);
        for (Line { query, out: line }, since) in lines.iter_mut().zip(&since) {
            line[i] = since * before[i] * dot(s, query, key);
        }
    }
}

/// u[n] = q[n] e^{rates[n] · Σ log}: Σ log is one running sum for all n.
#[inline(always)]
fn diagonal<S: Simd>(s: S, r: &Recurrent, log: &[f32], rates: &[f32], anchor: usize, lines: &mut [Line]) {
    let zero = s.splat(0.0);
    let padded = rates.len().next_multiple_of(S::LANES);
    let blocks = |row: usize| (r.key.row(row).chunks(S::LANES)).zip(rates.chunks(S::LANES));

    // k[n] decayed from each token up to the anchor [anchor + 1, N padded], as far back as anything is left.
    let mut keys = vec![0.0; (anchor + 1) * padded];
    let (mut sum, mut first) = (0.0f64, anchor + 1);
    while first > 0 {
        let mut largest = zero;
        let decayed = &mut keys[(first - 1) * padded..first * padded];
        for ((key, rates), decayed) in blocks(first - 1).zip(decayed.chunks_exact_mut(S::LANES)) {
            let decay = decay(s, s.mul(s.splat(sum as f32), s.load_some(rates)));
            largest = s.max(largest, decay);
            s.store(s.mul(decay, s.load_some(key)), decayed);
        }
        if s.sum(largest) == 0.0 {
            break;
        }
        first -= 1;
        sum += f64::from(log[first]);
    }
    let mut query = vec![0.0; padded];
    for Line { query: read, out: line } in lines {
        let t = line.len() - 1;
        line[..first].fill(0.0);
        let mut sum = 0.0f64;
        for i in (anchor + 1..=t).rev() {
            let (elapsed, mut total) = (s.splat(sum as f32), zero);
            for ((key, rates), query) in blocks(i).zip(read.chunks(S::LANES)) {
                total = s.fma(
                    s.mul(s.load_some(query), decay(s, s.mul(elapsed, s.load_some(rates)))),
                    s.load_some(key),
                    total,
                );
            }
            line[i] = s.sum(total);
            sum += f64::from(log[i]);
        }
        let parts = query.chunks_exact_mut(S::LANES).zip(read.chunks(S::LANES)).zip(rates.chunks(S::LANES));
        let since = s.splat(sum as f32);
        for ((query, q), rates) in parts {
            s.store(s.mul(s.load_some(q), decay(s, s.mul(since, s.load_some(rates)))), query);
        }
        for (out, key) in line[first..=anchor].iter_mut().zip(keys[first * padded..].chunks_exact(padded)) {
            let mut total = zero;
            for (query, key) in query.chunks_exact(S::LANES).zip(key.chunks_exact(S::LANES)) {
                total = s.fma(s.load(query), s.load(key), total);
            }
            *out = s.sum(total);
        }
    }
}

/// What is kept of each key dimension, a product of factors ≤ 1. Once it is 0 it stays so.
#[inline(always)]
fn fade<S: Simd>(s: S, kept: &mut [f32], factors: &[f32]) {
    for (kept, factors) in kept.chunks_mut(S::LANES).zip(factors.chunks(S::LANES)) {
        let product = s.fma(s.load_some(kept), s.load_some(factors), s.splat(-1e-30));
        s.store_some(s.max(product, s.splat(0.0)), kept);
    }
}

#[inline(always)]
fn times<S: Simd>(s: S, a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((a, b), out) in a.chunks(S::LANES).zip(b.chunks(S::LANES)).zip(out.chunks_mut(S::LANES)) {
        s.store_some(s.mul(s.load_some(a), s.load_some(b)), out);
    }
}

/// Every key dimension has a running product of its own, `factors` [T, N].
#[inline(always)]
fn by_key<S: Simd>(s: S, r: &Recurrent, factors: &[f32], anchor: usize, lines: &mut [Line]) {
    let n = r.key.width;
    let factors = |i: usize| &factors[i * n..][..n];
    // k decayed from each token up to the anchor [anchor + 1, N], as far back as anything is left.
    let mut keys = vec![0.0; (anchor + 1) * n];
    let (mut kept, mut first) = (vec![1.0; n], anchor + 1);
    while first > 0 && kept.iter().any(|&kept| kept > 0.0) {
        first -= 1;
        times(s, &kept, r.key.row(first), &mut keys[first * n..][..n]);
        fade(s, &mut kept, factors(first));
    }
    let mut query = vec![0.0; n];
    for Line { query: read, out: line } in lines {
        line[..first].fill(0.0);
        kept.fill(1.0);
        for i in (anchor + 1..line.len()).rev() {
            times(s, &kept, read, &mut query);
            line[i] = dot(s, &query, r.key.row(i));
            fade(s, &mut kept, factors(i));
        }
        times(s, &kept, read, &mut query);
        for i in first..=anchor {
            line[i] = dot(s, &query, &keys[i * n..][..n]);
        }
    }
}

/// M_s = k_s·u_s from the diagonal backwards, u_{s−1} = Λ_s u_s − κ_s (b_s·u_s).
#[inline(always)]
fn corrected<S: Simd>(s: S, r: &Recurrent, factors: &[f32], erase: Strided<'_>, replace: Strided<'_>, line: &mut Line) {
    let n = r.key.width;
    let (mut u, mut faded) = (line.query.to_vec(), vec![0.0; n]);
    for i in (0..line.out.len()).rev() {
        line.out[i] = dot(s, r.key.row(i), &u);
        let found = dot(s, replace.row(i), &u);
        times(s, &u, &factors[i * n..][..n], &mut faded);
        axpy(s, -found, erase.row(i), &mut faded);
        std::mem::swap(&mut u, &mut faded);
        // Nothing is left, and the processor is slow with what is almost nothing.
        if u.iter().all(|u| u.abs() < 1e-30) {
            return line.out[..i].fill(0.0);
        }
    }
}

/// p_s = k_s·u_s from the diagonal backwards, u_{s−1} = e^{g_s} (u_s − β_s p_s k_s). The decay is kept apart, as the
/// exponential of a running sum: u does not grow then, and where the decay is 0 nothing is left of it.
#[inline(always)]
fn delta<S: Simd>(s: S, r: &Recurrent, log: &[f32], beta: &[f32], line: &mut Line) {
    let Line { query, out: line } = line;
    let mut sum = 0.0f64;
    for (decay, log) in line.iter_mut().zip(log).rev() {
        *decay = sum.min(0.0) as f32;
        sum += f64::from(*log);
    }
    for decay in line.chunks_mut(S::LANES) {
        s.store_some(exp(s, s.load_some(decay)), decay);
    }
    let mut u = query.to_vec();
    for i in (0..line.len()).rev() {
        if line[i] == 0.0 {
            return line[..=i].fill(0.0);
        }
        let product = dot(s, r.key.row(i), &u);
        line[i] *= product;
        axpy(s, -beta[i] * product, r.key.row(i), &mut u);
    }
}
