//! CPU twin of [`crate::ssd`].

use crate::{
    Room, Ssd,
    cpu::{
        heads,
        product::{View, add_product, rows_of_tile, transpose},
        simd::{Kernel, Simd, UNIT, dispatch},
        vector::exp,
    },
    par::{self, Columns},
};

/// Tokens of a chunk.
const CHUNK: usize = 64;

/// Work of the recurrence for T tokens: it reads and writes the state.
fn recurrence_work(ssd: &Ssd) -> usize {
    2 * ssd.x.len() * ssd.state_dim
}

/// One token: y [H, P].
pub(crate) fn step(ssd: &Ssd, state: &mut [f32], y: &mut [f32]) {
    let size = ssd.head_dim * ssd.state_dim;
    let heads = state.chunks_mut(size.max(1)).zip(y.chunks_mut(ssd.head_dim.max(1))).enumerate();
    par::for_each(heads, recurrence_work(ssd), |(head, (state, y))| dispatch(Step { ssd, head, state, y }));
}

struct Step<'a> {
    ssd: &'a Ssd<'a>,
    head: usize,
    state: &'a mut [f32],
    y: &'a mut [f32],
}

impl Kernel for Step<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Step { ssd, head, state, y } = self;
        let n = ssd.state_dim;
        let at = ssd.group(head) * n;
        let (b, c) = (&ssd.b[at..][..n], &ssd.c[at..][..n]);
        let x = &ssd.x[head * ssd.head_dim..][..ssd.head_dim];
        let delta = ssd.delta[head];
        let decay = s.splat((delta * ssd.a[head]).exp());
        // Four rows at once: their sums are independent, and B and C are loaded once for all.
        for (i, (state, y)) in state.chunks_mut(ROWS * n).zip(y.chunks_mut(ROWS)).enumerate() {
            let x = &x[i * ROWS..][..y.len()];
            if let Ok(x) = x.try_into() {
                y.copy_from_slice(&advance::<S, ROWS>(s, state, decay, delta, x, b, c));
            } else {
                for ((state, y), x) in state.chunks_exact_mut(n).zip(y.iter_mut()).zip(x) {
                    *y = advance(s, state, decay, delta, &[*x], b, c)[0];
                }
            }
            for (p, (y, x)) in y.iter_mut().zip(x).enumerate() {
                *y += ssd.skip(head, i * ROWS + p) * x;
            }
        }
    }
}

/// Rows of the state that go together.
const ROWS: usize = 4;

/// R rows of the state [R, N], each to `decay`·S + Δ x Bᵀ; returns S C.
#[inline(always)]
fn advance<S: Simd, const R: usize>(
    s: S,
    state: &mut [f32],
    decay: S::V,
    delta: f32,
    x: &[f32; R],
    b: &[f32],
    c: &[f32],
) -> [f32; R] {
    let n = b.len();
    let writes = x.map(|x| s.splat(delta * x));
    let mut sums = [s.splat(0.0); R];
    for k in (0..n).step_by(S::LANES) {
        let end = n.min(k + S::LANES);
        let (b, c) = (s.load_some(&b[k..end]), s.load_some(&c[k..end]));
        for r in 0..R {
            let h = &mut state[r * n + k..r * n + end];
            let next = s.fma(decay, s.load_some(h), s.mul(writes[r], b));
            s.store_some(next, h);
            sums[r] = s.fma(c, next, sums[r]);
        }
    }
    let mut out = [0.0; R];
    for r in 0..R {
        out[r] = s.sum(sums[r]);
    }
    out
}

/// The recurrence without y; `norms` [T, H].
pub(crate) fn fold(ssd: &Ssd, state: &mut [f32], norms: Option<&mut [f32]>) {
    let (size, tokens) = (ssd.head_dim * ssd.state_dim, ssd.tokens());
    let mut by_head = vec![0.0; if norms.is_some() { tokens * ssd.heads } else { 0 }];
    let mut columns = by_head.chunks_mut(tokens.max(1));
    let heads: Vec<_> =
        state.chunks_mut(size.max(1)).enumerate().map(|(head, state)| (head, state, columns.next())).collect();
    par::for_each(heads.into_iter(), recurrence_work(ssd), |(head, state, norms)| {
        dispatch(Fold { ssd, head, state, norms })
    });
    if let Some(norms) = norms {
        for (head, column) in by_head.chunks_exact(tokens.max(1)).enumerate() {
            norms[head..].iter_mut().step_by(ssd.heads).zip(column).for_each(|(out, norm)| *out = *norm);
        }
    }
}

struct Fold<'a> {
    ssd: &'a Ssd<'a>,
    head: usize,
    state: &'a mut [f32],
    /// [T], of this head.
    norms: Option<&'a mut [f32]>,
}

impl Kernel for Fold<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Ssd { heads, head_dim, state_dim: n, groups, .. } = *self.ssd;
        for t in 0..self.ssd.tokens() {
            let b = &self.ssd.b[(t * groups + self.ssd.group(self.head)) * n..][..n];
            let x = &self.ssd.x[(t * heads + self.head) * head_dim..][..head_dim];
            let delta = self.ssd.delta[t * heads + self.head];
            let decay = s.splat((delta * self.ssd.a[self.head]).exp());
            let mut square = s.splat(0.0);
            for (state, x) in self.state.chunks_exact_mut(n).zip(x) {
                let write = s.splat(delta * x);
                for (h, b) in state.chunks_mut(S::LANES).zip(b.chunks(S::LANES)) {
                    let next = s.fma(decay, s.load_some(h), s.mul(write, s.load_some(b)));
                    s.store_some(next, h);
                    square = s.fma(next, next, square);
                }
            }
            if let Some(norms) = &mut self.norms {
                norms[t] = s.sum(square).sqrt();
            }
        }
    }
}

/// T tokens in chunks of 64.
///
/// In a chunk, with α the running sum of Δ A and S the carried state: y_t = e^{α_t} S C_t + Σ_{s≤t} (C_t·B_s) e^{α_t−α_s} Δ_s x_s + D x_t,
/// and S ← e^{α_last} S + Σ_s e^{α_last−α_s} Δ_s x_s B_sᵀ: three matrix products.
pub(crate) fn chunked(ssd: &Ssd, state: &mut [f32], y: &mut [f32]) {
    let (size, tokens) = (ssd.head_dim * ssd.state_dim, ssd.tokens());
    if size == 0 {
        return y.fill(0.0);
    }
    // What the heads of a group share, by chunk and group.
    let shared_size = CHUNK * (CHUNK + ssd.state_dim);
    let mut shared = Room::zeros(tokens.div_ceil(CHUNK) * ssd.groups * shared_size);
    let work = tokens * ssd.groups * CHUNK * ssd.state_dim / UNIT;
    par::for_each_chunk(&mut shared, shared_size, work, |i, shared| {
        dispatch(Gram { ssd, first: i / ssd.groups * CHUNK, group: i % ssd.groups, shared });
    });
    let shared = &shared[..];

    let work = tokens * ssd.heads * (2 * size + CHUNK / 2 * ssd.head_dim) / UNIT;
    heads::for_each(ssd.heads, ssd.head_dim, state, Some(y), work, |head, state, y| {
        dispatch(Chunked { ssd, head, shared, state, y: y.expect("there is y") });
    });
}

/// Of one chunk and group: Cᵀ [N, 64] and the products [s, t] = B_s·C_t [64, 64].
struct Gram<'a> {
    ssd: &'a Ssd<'a>,
    /// First token.
    first: usize,
    group: usize,
    shared: &'a mut [f32],
}

impl Kernel for Gram<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Gram { ssd, first, group, shared } = self;
        let (n, stride) = (ssd.state_dim, ssd.groups * ssd.state_dim);
        let length = CHUNK.min(ssd.tokens() - first);
        let from = first * stride + group * n;
        let (c_columns, products) = shared.split_at_mut(n * CHUNK);
        transpose(s, View { data: &ssd.c[from..], stride }, (length, n), c_columns, CHUNK);
        let (b, c) = (View { data: &ssd.b[from..], stride }, View { data: c_columns, stride: CHUNK });
        add_product::<S, false>(s, b, c, (length, length, n), products, CHUNK);
    }
}

struct Chunked<'a> {
    ssd: &'a Ssd<'a>,
    head: usize,
    /// By chunk and group: see [`Gram`].
    shared: &'a [f32],
    /// [P, N]
    state: &'a mut [f32],
    /// [T, P]
    y: Columns<'a>,
}

impl Kernel for Chunked<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Chunked { ssd, head, shared, state, mut y } = self;
        let Ssd { heads, head_dim, state_dim: n, groups, .. } = *ssd;
        let group = ssd.group(head);
        // [N, P] while it is worked on: P then runs along the vectors of every product.
        let mut columns = Room::new(state.len());
        transpose(s, View { data: state, stride: n }, (head_dim, n), &mut columns, head_dim);
        let mut weights = Room::new(CHUNK * CHUNK);
        let [mut inputs, mut outputs, mut writes] = [(); 3].map(|()| Room::new(CHUNK * head_dim));
        for (chunk, first) in (0..ssd.tokens()).step_by(CHUNK).enumerate() {
            let length = CHUNK.min(ssd.tokens() - first);
            let delta = |i: usize| ssd.delta[(first + i) * heads + head];
            // Rows that lie a power of two or so apart would push each other out of the cache.
            let rows = ssd.x[first * heads * head_dim..].chunks(heads * head_dim);
            for (input, row) in inputs.chunks_exact_mut(head_dim).zip(rows.take(length)) {
                input.copy_from_slice(&row[head * head_dim..][..head_dim]);
            }
            let x = View { data: &inputs, stride: head_dim };
            let shared = &shared[(chunk * groups + group) * CHUNK * (CHUNK + n)..][..CHUNK * (CHUNK + n)];
            let (c_columns, products) = shared.split_at(n * CHUNK);
            // Running sums of the log-decays in f64: differences of f32 sums lose the small steps that follow a large one.
            let mut logs = [0.0f64; CHUNK];
            let mut sum = 0.0;
            for (i, log) in logs[..length].iter_mut().enumerate() {
                sum += f64::from(delta(i)) * f64::from(ssd.a[head]);
                *log = sum;
            }
            let logs = &logs[..length];

            // What the carried state gives, then D x.
            let outputs = &mut outputs[..length * head_dim];
            outputs.fill(0.0);
            let c = View { data: c_columns, stride: CHUNK };
            add_product::<S, true>(
                s,
                c,
                View { data: &columns, stride: head_dim },
                (length, head_dim, n),
                outputs,
                head_dim,
            );
            for (i, (y, log)) in outputs.chunks_exact_mut(head_dim).zip(logs).enumerate() {
                let carried = (*log as f32).exp();
                for (p, (y, x)) in y.iter_mut().zip(x.from(i, 0).data).enumerate() {
                    *y = carried * *y + ssd.skip(head, p) * x;
                }
            }

            // What the chunk's own tokens give: weights [s, t], 0 where s > t.
            for (j, (weights, products)) in
                weights.chunks_exact_mut(CHUNK).zip(products.chunks_exact(CHUNK)).take(length).enumerate()
            {
                weights[..j].fill(0.0);
                decays(s, logs, j, weights);
                for (w, product) in weights[j..length].iter_mut().zip(&products[j..length]) {
                    *w *= product * delta(j);
                }
            }
            let tile = rows_of_tile(S::LANES);
            for (i, y) in outputs.chunks_mut(tile * head_dim).enumerate() {
                let (row, rows) = (i * tile, y.len() / head_dim);
                let weights = View { data: &weights, stride: CHUNK }.from(0, row);
                add_product::<S, true>(s, weights, x, (rows, head_dim, row + rows), y, head_dim);
            }

            for (i, from) in outputs.chunks_exact(head_dim).enumerate() {
                y.row(first + i).copy_from_slice(from);
            }

            // The state after the chunk.
            let last = logs[length - 1];
            for (j, (writes, log)) in writes.chunks_exact_mut(head_dim).zip(logs).enumerate() {
                let weight = ((last - log).min(0.0) as f32).exp() * delta(j);
                writes.iter_mut().zip(x.from(j, 0).data).for_each(|(write, x)| *write = weight * x);
            }
            let carried = (last as f32).exp();
            columns.iter_mut().for_each(|h| *h *= carried);
            let b = View { data: &ssd.b[(first * groups + group) * n..], stride: groups * n };
            add_product::<S, true>(
                s,
                b,
                View { data: &writes, stride: head_dim },
                (n, head_dim, length),
                &mut columns,
                head_dim,
            );
        }
        transpose(s, View { data: &columns, stride: head_dim }, (n, head_dim), state, n);
    }
}

/// out[t] = e^{α_t − α_s} for t ≥ s: exponentials of differences ≤ 0 alone.
#[inline(always)]
fn decays<S: Simd>(s: S, logs: &[f64], source: usize, out: &mut [f32]) {
    let out = &mut out[source..logs.len()];
    for (out, log) in out.iter_mut().zip(&logs[source..]) {
        *out = (log - logs[source]).min(0.0) as f32;
    }
    for out in out.chunks_mut(S::LANES) {
        s.store_some(exp(s, s.load_some(out)), out);
    }
}
