//! CPU twin of [`crate::attention`].

use std::{
    f32::consts::{LN_2, LOG2_E},
    ops::Range,
};

use crate::{
    Attention, PAGE, Room,
    cpu::{
        product::{View, add_product, panel, transpose},
        simd::{Kernel, MOST_LANES, Simd, dispatch, lanes},
        vector::{axpy, dot, exp, exp2_to_zero},
    },
    par,
};

/// Pages whose logits are in the first cache together.
const BLOCK: usize = 2;
/// The most queries that share what they read of keys and values; what each has summed up waits in the second cache.
const GROUP: usize = 256;
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
    let Attention { heads, kv_heads, head_dim, value_dim, .. } = *attention;
    let tokens = q.len() / (heads * head_dim);
    let window = attention.window.map_or(usize::MAX, |window| window + attention.sinks);
    let seen = (first_position + tokens / 2 + 1).min(window);
    let work = (q.len() + y.len()) * seen;
    if tokens < FEW {
        // Pieces are the heads of a token that read the same keys.
        let of_piece = heads / kv_heads;
        let mut entropy_bits = entropy_bits.map(|bits| bits.chunks_mut(of_piece));
        let pieces = q.chunks(of_piece * head_dim).zip(y.chunks_mut(of_piece * value_dim)).enumerate();
        let pieces: Vec<_> =
            pieces.map(|(i, (q, y))| (i, q, y, entropy_bits.as_mut().and_then(Iterator::next))).collect();
        return par::for_each(pieces.into_iter(), work, |(i, q, y, entropy_bits)| {
            let (position, kv_head) = (first_position + i / kv_heads, i % kv_heads);
            dispatch(Single { attention, kv_head, q, position, y, entropy_bits });
        });
    }
    // Pieces are groups of tokens of one head: what they read of keys and values is read once for all of them. The queries of a tile are
    // the columns of its products. (A query has the same bits in any group, so this may depend on the number of threads.)
    let tile = 2 * lanes();
    let group = (q.len() / head_dim).div_ceil(4 * par::threads()).next_multiple_of(tile).min(GROUP);
    let mut pieces: Vec<_> = (0..tokens.div_ceil(group) * heads)
        .map(|i| Group {
            attention,
            q,
            head: i % heads,
            first: i / heads * group,
            first_position,
            y: vec![],
            entropy_bits: vec![],
        })
        .collect();
    for (i, y) in y.chunks_exact_mut(value_dim).enumerate() {
        pieces[i / heads / group * heads + i % heads].y.push(y);
    }
    for (i, bits) in entropy_bits.into_iter().flatten().enumerate() {
        pieces[i / heads / group * heads + i % heads].entropy_bits.push(bits);
    }
    // The last tokens see most and take longest: they begin first.
    par::for_each(pieces.into_iter().rev(), work, dispatch);
}

/// Positions `seen`, whose first has number `row` among all that are seen, by page: the page, the first in it, its number, how many.
fn by_page(seen: Range<usize>, row: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> + Clone {
    (seen.start / PAGE..seen.end.div_ceil(PAGE)).map(move |page| {
        let (first, end) = (seen.start.max(page * PAGE), seen.end.min((page + 1) * PAGE));
        (page, first % PAGE, row + first - seen.start, end - first)
    })
}

/// The vectors of `kv_head` in a page from its position `at` on.
#[inline(always)]
fn vectors<'a>(attention: &Attention, page: &'a [f32], kv_head: usize, dim: usize, at: usize) -> View<'a> {
    let (start, stride) = attention.layout.place(attention.kv_heads, kv_head, dim);
    View { data: &page[start + at * stride..], stride }
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
    for logits in logits.chunks_mut(S::LANES) {
        // Lanes beyond the last logit: −∞.
        let mut lanes = [f32::NEG_INFINITY; MOST_LANES];
        lanes[..logits.len()].copy_from_slice(logits);
        let (weight, product) = weigh(s, s.sub(s.load(&lanes), s.splat(max)));
        s.store_some(weight, logits);
        (sum, inner) = (s.add(sum, weight), s.add(inner, product));
    }
    Moments { sum: s.sum(sum), inner: s.sum(inner) }
}

/// One query of the heads that read the keys and values of `kv_head`: two streams of memory, whose bytes bound decoding.
struct Single<'a> {
    attention: &'a Attention<'a>,
    kv_head: usize,
    /// [H / H_kv, head_dim]
    q: &'a [f32],
    position: usize,
    /// [H / H_kv, value_dim]
    y: &'a mut [f32],
    /// [H / H_kv]
    entropy_bits: Option<&'a mut [f32]>,
}

impl Kernel for Single<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Single { attention, kv_head, q, position, y, mut entropy_bits } = self;
        let Attention { head_dim, value_dim, scale, .. } = *attention;
        let first = attention.first_seen(position);
        let sunk = attention.sunk(first);
        let mut weights = vec![0.0; sunk + position + 1 - first];
        let pages = by_page(0..sunk, 0).chain(by_page(first..position + 1, sunk));
        for (head, (q, y)) in q.chunks_exact(head_dim).zip(y.chunks_exact_mut(value_dim)).enumerate() {
            for (page, at, row, length) in pages.clone() {
                let keys = vectors(attention, attention.keys[page], kv_head, head_dim, at);
                dots(s, q, keys, scale, &mut weights[row..row + length]);
            }
            let moments = soften(s, &mut weights);
            y.fill(0.0);
            for (page, at, row, length) in pages.clone() {
                let values = vectors(attention, attention.values[page], kv_head, value_dim, at);
                add_weighted(s, &weights[row..row + length], values, y);
            }
            y.iter_mut().for_each(|y| *y /= moments.sum);
            if let Some(bits) = &mut entropy_bits {
                bits[head] = moments.entropy_bits();
            }
        }
    }
}

/// Keys that go together.
const KEYS: usize = 8;

/// out_i = scale · q·k_i, eight keys at a time, whose sums are added up together.
#[inline(always)]
fn dots<S: Simd>(s: S, q: &[f32], keys: View, scale: f32, out: &mut [f32]) {
    let whole = q.len() / S::LANES * S::LANES;
    for (block, out) in out.chunks_mut(KEYS).enumerate() {
        // Beyond the last key it is read again, and left out.
        let key: [&[f32]; KEYS] =
            std::array::from_fn(|i| &keys.data[(block * KEYS + i.min(out.len() - 1)) * keys.stride..][..q.len()]);
        let mut sums = [s.splat(0.0); KEYS];
        for d in (0..whole).step_by(S::LANES) {
            let q = s.load(&q[d..]);
            for (sum, key) in sums.iter_mut().zip(&key) {
                *sum = s.fma(q, s.load(&key[d..]), *sum);
            }
        }
        if whole < q.len() {
            let q = s.load_some(&q[whole..]);
            for (sum, key) in sums.iter_mut().zip(&key) {
                *sum = s.fma(q, s.load_some(&key[whole..]), *sum);
            }
        }
        out.iter_mut().zip(s.sums(sums)).for_each(|(out, sum)| *out = scale * sum);
    }
}

/// y += Σ_i w_i v_i.
#[inline(always)]
fn add_weighted<S: Simd>(s: S, weights: &[f32], values: View, y: &mut [f32]) {
    let mut at = 0;
    while y.len() - at >= 4 * S::LANES {
        add_columns::<S, 4>(s, weights, values, at, y);
        at += 4 * S::LANES;
    }
    while y.len() - at >= S::LANES {
        add_columns::<S, 1>(s, weights, values, at, y);
        at += S::LANES;
    }
    if at < y.len() {
        let y = &mut y[at..];
        for (i, &weight) in weights.iter().enumerate() {
            axpy(s, weight, &values.data[i * values.stride + at..][..y.len()], y);
        }
    }
}

/// [`add_weighted`] for N vectors of y. Even and odd positions have sums of their own, so that more multiply-adds overlap.
#[inline(always)]
fn add_columns<S: Simd, const N: usize>(s: S, weights: &[f32], values: View, at: usize, y: &mut [f32]) {
    let y = &mut y[at..][..N * S::LANES];
    let mut sums: [[S::V; N]; 2] = [std::array::from_fn(|j| s.load(&y[j * S::LANES..])), [s.splat(0.0); N]];
    let (pairs, last) = weights.as_chunks::<2>();
    for (i, pair) in pairs.iter().enumerate() {
        for (sums, (i, weight)) in sums.iter_mut().zip([(2 * i, pair[0]), (2 * i + 1, pair[1])]) {
            add_row(s, weight, &values.data[i * values.stride + at..], sums);
        }
    }
    if let [weight] = last {
        add_row(s, *weight, &values.data[(weights.len() - 1) * values.stride + at..], &mut sums[0]);
    }
    let [even, odd] = sums;
    for (j, (even, odd)) in even.into_iter().zip(odd).enumerate() {
        s.store(s.add(even, odd), &mut y[j * S::LANES..]);
    }
}

/// sums += weight · value.
#[inline(always)]
fn add_row<S: Simd, const N: usize>(s: S, weight: f32, value: &[f32], sums: &mut [S::V; N]) {
    let (weight, value) = (s.splat(weight), &value[..N * S::LANES]);
    for (j, sum) in sums.iter_mut().enumerate() {
        *sum = s.fma(weight, s.load(&value[j * S::LANES..]), *sum);
    }
}

/// Some queries of one head.
struct Group<'a> {
    attention: &'a Attention<'a>,
    /// [T, H, head_dim]
    q: &'a [f32],
    head: usize,
    /// The first of the queries in `q`.
    first: usize,
    /// Position of the first in `q`.
    first_position: usize,
    /// [queries][value_dim]
    y: Vec<&'a mut [f32]>,
    /// [queries], or none
    entropy_bits: Vec<&'a mut f32>,
}

/// Up to two vectors of queries of a group.
struct Tile<V> {
    /// Position of the first.
    first: usize,
    queries: usize,
    softmax: Softmax<V>,
}

impl Kernel for Group<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Group { attention, q, head, first, first_position, y, entropy_bits } = self;
        let Attention { heads, head_dim, value_dim, scale, .. } = *attention;
        let (panel, kv_head, stride) = (panel::<S>(), attention.kv_head(head), heads * head_dim);
        let begin = first_position + first;
        let mut tiles: Vec<_> = (0..y.len())
            .step_by(panel)
            .map(|i| Tile { first: begin + i, queries: panel.min(y.len() - i), softmax: Softmax::new(s) })
            .collect();
        // Of each tile [head_dim, panel] and [panel, value_dim].
        let mut queries = Room::new(tiles.len() * head_dim * panel);
        let mut out = Room::zeros(tiles.len() * panel * value_dim);
        let mut weights = Room::new(BLOCK * PAGE * panel);
        for (i, (tile, columns)) in tiles.iter().zip(queries.chunks_exact_mut(head_dim * panel)).enumerate() {
            let of_tile = View { data: &q[(first + i * panel) * stride + head * head_dim..], stride };
            transpose(s, of_tile, (tile.queries, head_dim), columns, panel);
            // What lies beyond the last query is computed with them.
            for column in columns.chunks_exact_mut(panel) {
                column[..tile.queries].iter_mut().for_each(|q| *q *= scale * LOG2_E);
                column[tile.queries..].fill(0.0);
            }
        }
        // Positions that any query sees: sinks, and a window of all. Where blocks of them begin does not depend on the queries, and so no
        // sum of a query does.
        let start = attention.first_seen(begin);
        let pages = by_page(0..attention.sunk(start), 0).chain(by_page(start..begin + y.len(), 0)).collect::<Vec<_>>();
        for block in pages.chunk_by(|a, b| a.0 / BLOCK == b.0 / BLOCK) {
            let of_tiles = queries.chunks_exact(head_dim * panel).zip(out.chunks_exact_mut(panel * value_dim));
            for (tile, (columns, out)) in tiles.iter_mut().zip(of_tiles) {
                let after = tile.first + tile.queries;
                // Of a page that the tile sees: the page, the first position in it, how many.
                let seen = block.iter().filter_map(|&(page, at, _, length)| {
                    let position = page * PAGE + at;
                    let ends = position + length;
                    let out_of_window = position >= attention.sinks && ends <= attention.first_seen(tile.first);
                    (position < after && !out_of_window).then(|| (page, at, length.min(after - position)))
                });
                let mut rows = 0;
                for (page, at, length) in seen.clone() {
                    let keys = vectors(attention, attention.keys[page], kv_head, head_dim, at);
                    let logits = &mut weights[rows * panel..][..length * panel];
                    logits.fill(0.0);
                    let columns = View { data: columns, stride: panel };
                    add_product::<S, false>(s, keys, columns, (length, panel, head_dim), logits, panel);
                    hide(attention, tile.first, tile.queries, page * PAGE + at, logits, panel);
                    rows += length;
                }
                if rows == 0 {
                    continue;
                }
                if let Some(shrink) = tile.softmax.weigh(s, &mut weights[..rows * panel]) {
                    for (out, shrink) in out.chunks_exact_mut(value_dim).zip(lanes_of(s, shrink)) {
                        out.iter_mut().for_each(|out| *out *= shrink);
                    }
                }
                let mut row = 0;
                for (page, at, length) in seen {
                    let weights = View { data: &weights[row * panel..], stride: panel };
                    let values = vectors(attention, attention.values[page], kv_head, value_dim, at);
                    add_product::<S, true>(s, weights, values, (tile.queries, value_dim, length), out, value_dim);
                    row += length;
                }
            }
        }
        let mut results = y.into_iter().zip(out.chunks_exact(value_dim));
        let mut entropy_bits = entropy_bits.into_iter();
        for tile in tiles {
            let (sums, inner) = (lanes_of(s, tile.softmax.sum), lanes_of(s, tile.softmax.inner));
            for ((sum, inner), (y, out)) in sums.into_iter().zip(inner).take(tile.queries).zip(&mut results) {
                y.iter_mut().zip(out).for_each(|(y, out)| *y = out / sum);
                if let Some(bits) = entropy_bits.next() {
                    *bits = Moments { sum, inner: inner * LN_2 }.entropy_bits();
                }
            }
        }
    }
}

/// Logits [position, query] of positions from `position` on become −∞ where a query, the first of which stands at `first`, does not
/// see: what comes after it, and what lies before its window and is no sink.
#[inline(always)]
fn hide(attention: &Attention, first: usize, queries: usize, position: usize, logits: &mut [f32], panel: usize) {
    let last = position + logits.len() / panel - 1;
    let before_a_window = attention.first_seen(first + queries - 1) > position;
    if last <= first && !before_a_window {
        return;
    }
    for (position, logits) in (position..).zip(logits.chunks_exact_mut(panel)) {
        logits[..position.saturating_sub(first).min(queries)].fill(f32::NEG_INFINITY);
        if position >= attention.sinks {
            for (i, logit) in logits[..queries].iter_mut().enumerate() {
                if attention.first_seen(first + i) > position {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Softmax of two vectors of queries over positions that come block by block (Milakov and Gimelshein 2018): logits are in powers of two,
/// weights relative to the largest logit so far, and so are the sums.
struct Softmax<V> {
    max: [V; 2],
    /// Σ w.
    sum: [V; 2],
    /// Σ w log₂ w.
    inner: [V; 2],
}

impl<V: Copy> Softmax<V> {
    #[inline(always)]
    fn new<S: Simd<V = V>>(s: S) -> Self {
        // As good as less than any logit, and finite, so that a difference of two is a number.
        Softmax { max: [s.splat(f32::MIN / 2.0); 2], sum: [s.splat(0.0); 2], inner: [s.splat(0.0); 2] }
    }

    /// Logits [position, query] become weights. Returns by what earlier sums of weights are to be multiplied, if not by 1.
    #[inline(always)]
    fn weigh<S: Simd<V = V>>(&mut self, s: S, logits: &mut [f32]) -> Option<[V; 2]> {
        let panel = panel::<S>();
        let mut max = self.max;
        for logits in logits.chunks_exact(panel) {
            max = [s.max(max[0], s.load(logits)), s.max(max[1], s.load(&logits[S::LANES..]))];
        }
        let mut shrink = None;
        if s.any_greater(max[0], self.max[0]) || s.any_greater(max[1], self.max[1]) {
            let mut factors = [s.splat(1.0); 2];
            for i in 0..2 {
                let less = s.max(s.splat(f32::MIN), s.sub(self.max[i], max[i]));
                factors[i] = exp2_to_zero(s, less);
                // Each w log₂ w becomes w f (log₂ w + log₂ f).
                self.inner[i] = s.mul(factors[i], s.fma(less, self.sum[i], self.inner[i]));
                self.sum[i] = s.mul(factors[i], self.sum[i]);
            }
            shrink = Some(factors);
            self.max = max;
        }
        let (mut sum, mut inner) = (self.sum, self.inner);
        for logits in logits.chunks_exact_mut(panel) {
            for i in 0..2 {
                let logits = &mut logits[i * S::LANES..];
                // The least finite power of two that is 0, second NaN.
                let less = s.max(s.splat(-160.0), s.sub(s.load(logits), max[i]));
                let weight = exp2_to_zero(s, less);
                s.store(weight, logits);
                (sum[i], inner[i]) = (s.add(sum[i], weight), s.fma(weight, less, inner[i]));
            }
        }
        (self.sum, self.inner) = (sum, inner);
        shrink
    }
}

/// The lanes of two vectors.
#[inline(always)]
fn lanes_of<S: Simd>(s: S, [first, second]: [S::V; 2]) -> [f32; 2 * MOST_LANES] {
    let mut lanes = [0.0; 2 * MOST_LANES];
    s.store(first, &mut lanes);
    s.store(second, &mut lanes[S::LANES..]);
    lanes
}
