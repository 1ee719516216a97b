//! CPU twin of [`crate::attention`].

use std::ops::Range;

use crate::{
    Attention, PAGE,
    cpu::{
        product::{View, add_product, transpose},
        simd::{Kernel, LANES, Simd, dispatch},
        vector::{axpy, dot, exp},
    },
    par,
};

/// Queries of a tile: they are the columns of its products, two vectors.
const QUERIES: usize = 2 * LANES;
/// Fewer queries than this go one by one: a tile would be mostly empty.
const FEW: usize = 4;

/// y [T, H, value_dim].
pub(crate) fn forward(
    attention: &Attention,
    q: &[f32],
    first_position: usize,
    y: &mut [f32],
    entropy_bits: Option<&mut [f32]>,
) {
    let Attention { heads, head_dim, value_dim, .. } = *attention;
    let tokens = q.len() / (heads * head_dim);
    let window = attention.window.map_or(usize::MAX, |window| window + attention.sinks);
    let seen = (first_position + tokens / 2 + 1).min(window);
    let work = (q.len() + y.len()) * seen / LANES;
    // Pieces are tokens, or tiles of tokens, with all heads.
    let queries = if tokens < FEW { 1 } else { QUERIES };
    let mut entropy_bits = entropy_bits.map(|bits| bits.chunks_mut(queries * heads));
    let pieces: Vec<_> = q
        .chunks(queries * heads * head_dim)
        .zip(y.chunks_mut(queries * heads * value_dim))
        .enumerate()
        .map(|(i, (q, y))| (first_position + i * queries, q, y, entropy_bits.as_mut().and_then(Iterator::next)))
        .collect();
    par::for_each(pieces.into_iter(), work, |(first, q, y, entropy_bits)| {
        if tokens < FEW {
            dispatch(Single { attention, q, position: first, y, entropy_bits });
        } else {
            dispatch(Tile { attention, q, first, y, entropy_bits });
        }
    });
}

pub(crate) fn row(attention: &Attention, q: &[f32], head: usize, out: &mut [f32]) {
    let first = attention.first_seen(out.len() - 1);
    let sunk = attention.sunk(first);
    // Between sinks and window −∞ becomes 0; without sinks the window is a slice of its own.
    let (unseen, out) = out.split_at_mut(if sunk > 0 { 0 } else { first });
    unseen.fill(0.0);
    let sum = dispatch(Row { attention, q, head, first: unseen.len(), hidden: sunk..first, out }).sum;
    out.iter_mut().for_each(|w| *w /= sum);
}

/// Of w = e^l, l the logits less their largest: Σ w and Σ w l.
struct Moments {
    sum: f32,
    inner: f32,
}

impl Moments {
    /// −Σ p log₂ p of p = w / Σ w.
    #[inline(always)]
    fn entropy_bits(&self) -> f32 {
        (self.sum.log2() - self.inner / self.sum * std::f32::consts::LOG2_E).max(0.0)
    }
}

/// e^x and x e^x, 0 for x = −∞.
#[inline(always)]
fn weigh<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let weight = exp(s, x);
    // The least finite x whose exponential is 0, second NaN.
    (weight, s.mul(weight, s.max(s.splat(-110.0), x)))
}

/// Weights of one query before the division by their sum.
struct Row<'a> {
    attention: &'a Attention<'a>,
    q: &'a [f32],
    head: usize,
    /// The position of the first weight.
    first: usize,
    /// Positions that the query does not see.
    hidden: Range<usize>,
    /// [positions from the first to the query's own]
    out: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Output = Moments;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Moments {
        let Row { attention, q, head, first, hidden, out } = self;
        let kv_head = attention.kv_head(head);
        for (i, logit) in out.iter_mut().enumerate() {
            *logit = match hidden.contains(&(first + i)) {
                true => f32::NEG_INFINITY,
                false => attention.scale * dot(s, q, attention.key(first + i, kv_head)),
            };
        }
        soften(s, out)
    }
}

/// Logits become weights, not yet divided by their sum.
#[inline(always)]
fn soften<S: Simd>(s: S, logits: &mut [f32]) -> Moments {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut sum, mut inner) = (s.splat(0.0), s.splat(0.0));
    for logits in logits.chunks_mut(LANES) {
        // Lanes beyond the last logit: −∞.
        let mut lanes = [f32::NEG_INFINITY; LANES];
        lanes[..logits.len()].copy_from_slice(logits);
        let (weight, product) = weigh(s, s.sub(s.load(&lanes), s.splat(max)));
        s.store_some(weight, logits);
        (sum, inner) = (s.add(sum, weight), s.add(inner, product));
    }
    Moments { sum: s.sum(sum), inner: s.sum(inner) }
}

/// One query, all heads. Positions go outermost, so that keys and values stream through once, in the order they lie in memory: a pass a
/// head would jump from line to line, and decoding is bound by these bytes.
struct Single<'a> {
    attention: &'a Attention<'a>,
    /// [H, head_dim]
    q: &'a [f32],
    position: usize,
    /// [H, value_dim]
    y: &'a mut [f32],
    /// [H]
    entropy_bits: Option<&'a mut [f32]>,
}

impl Kernel for Single<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Single { attention, q, position, y, mut entropy_bits } = self;
        let Attention { heads, kv_heads, head_dim, value_dim, scale, .. } = *attention;
        let first = attention.first_seen(position);
        let seen = attention.sunk(first) + position + 1 - first;
        let mut weights = vec![0.0; heads * seen];
        for (i, position) in attention.seen(position).enumerate() {
            let stride = kv_heads * head_dim;
            let keys = &attention.keys[position / PAGE][position % PAGE * stride..][..stride];
            for (head, q) in q.chunks_exact(head_dim).enumerate() {
                let key = &keys[attention.kv_head(head) * head_dim..][..head_dim];
                weights[head * seen + i] = scale * dot(s, q, key);
            }
        }
        y.fill(0.0);
        let mut sums = vec![0.0; heads];
        for (head, weights) in weights.chunks_exact_mut(seen).enumerate() {
            let moments = soften(s, weights);
            sums[head] = moments.sum;
            if let Some(bits) = &mut entropy_bits {
                bits[head] = moments.entropy_bits();
            }
        }
        for (i, position) in attention.seen(position).enumerate() {
            let stride = kv_heads * value_dim;
            let values = &attention.values[position / PAGE][position % PAGE * stride..][..stride];
            for (head, y) in y.chunks_exact_mut(value_dim).enumerate() {
                let value = &values[attention.kv_head(head) * value_dim..][..value_dim];
                axpy(s, weights[head * seen + i], value, y);
            }
        }
        for (y, sum) in y.chunks_exact_mut(value_dim).zip(sums) {
            y.iter_mut().for_each(|y| *y /= sum);
        }
    }
}

/// Up to 16 queries, all heads.
struct Tile<'a> {
    attention: &'a Attention<'a>,
    /// [queries, H, head_dim]
    q: &'a [f32],
    /// Position of the first query.
    first: usize,
    /// [queries, H, value_dim]
    y: &'a mut [f32],
    /// [queries, H]
    entropy_bits: Option<&'a mut [f32]>,
}

impl Kernel for Tile<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tile { attention, q, first, y, mut entropy_bits } = self;
        let Attention { heads, kv_heads, head_dim, value_dim, scale, .. } = *attention;
        let (width, value_width) = (heads * head_dim, heads * value_dim);
        let queries = q.len() / width;
        // Positions that any query of the tile sees: sinks, and a window of all. Each has a row of weights, in that order.
        let (start, end) = (attention.first_seen(first), first + queries);
        let sunk = attention.sunk(start);
        let mut columns = vec![0.0; head_dim * QUERIES];
        let mut weights = vec![0.0; (sunk + end - start) * QUERIES];
        // By page: the first position in it, its row of weights, and how many there are.
        let pieces = |seen: Range<usize>, row: usize| {
            (seen.start / PAGE..seen.end.div_ceil(PAGE)).map(move |page| {
                let (first, end) = (seen.start.max(page * PAGE), seen.end.min((page + 1) * PAGE));
                (page, first % PAGE, (row + first - seen.start) * QUERIES, end - first)
            })
        };
        let pages = pieces(0..sunk, 0).chain(pieces(start..end, sunk));
        y.fill(0.0);
        for head in 0..heads {
            let kv_head = attention.kv_head(head);

            // Logits [position, query].
            transpose(q.chunks_exact(width).map(|q| &q[head * head_dim..][..head_dim]), &mut columns, QUERIES);
            columns.iter_mut().for_each(|q| *q *= scale);
            weights.fill(0.0);
            for (page, at, row, length) in pages.clone() {
                let stride = kv_heads * head_dim;
                let keys = View { data: &attention.keys[page][at * stride + kv_head * head_dim..], stride };
                let logits = &mut weights[row..];
                add_product::<S, false>(
                    s,
                    keys,
                    View { data: &columns, stride: QUERIES },
                    (length, QUERIES, head_dim),
                    logits,
                    QUERIES,
                );
            }
            // Query i sees the positions up to first + i, and before its window only sinks.
            for i in 0..queries {
                let before = start.max(attention.sinks)..attention.first_seen(first + i);
                for unseen in before.chain(first + i + 1..end) {
                    weights[(sunk + unseen - start) * QUERIES + i] = f32::NEG_INFINITY;
                }
            }

            let mut max = [s.splat(f32::NEG_INFINITY); 2];
            for logits in weights.chunks_exact(QUERIES) {
                max = [s.max(max[0], s.load(logits)), s.max(max[1], s.load(&logits[LANES..]))];
            }
            let (mut sums, mut inner) = ([s.splat(0.0); 2], [s.splat(0.0); 2]);
            for logits in weights.chunks_exact_mut(QUERIES) {
                for (half, logits) in logits.chunks_exact_mut(LANES).enumerate() {
                    let (weight, product) = weigh(s, s.sub(s.load(logits), max[half]));
                    s.store(weight, logits);
                    (sums[half], inner[half]) = (s.add(sums[half], weight), s.add(inner[half], product));
                }
            }

            let y = &mut y[head * value_dim..];
            for (page, at, row, length) in pages.clone() {
                let stride = kv_heads * value_dim;
                let weights = View { data: &weights[row..], stride: QUERIES };
                let values = View { data: &attention.values[page][at * stride + kv_head * value_dim..], stride };
                add_product::<S, true>(s, weights, values, (queries, value_dim, length), y, value_width);
            }
            let lanes = |halves: [S::V; 2]| {
                let mut lanes = [0.0; QUERIES];
                s.store(halves[0], &mut lanes);
                s.store(halves[1], &mut lanes[LANES..]);
                lanes
            };
            let (sums, inner) = (lanes(sums), lanes(inner));
            for i in 0..queries {
                y[i * value_width..][..value_dim].iter_mut().for_each(|y| *y /= sums[i]);
                if let Some(bits) = &mut entropy_bits {
                    bits[i * heads + head] = Moments { sum: sums[i], inner: inner[i] }.entropy_bits();
                }
            }
        }
    }
}
