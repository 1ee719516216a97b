//! CPU twin of [`crate::ssd`].

use crate::{
    Ssd,
    cpu::{
        simd::{Kernel, LANES, Simd, dispatch},
        vector::{axpy, dot},
    },
    par,
};

/// Tokens of a chunk.
const CHUNK: usize = 64;

/// Multiply-adds of the recurrence for T tokens, in vectors.
fn recurrence_work(ssd: &Ssd) -> usize {
    3 * ssd.x.len() * ssd.state_dim / LANES
}

/// One token: y [H, P].
pub(crate) fn step(ssd: &Ssd, state: &mut [f32], y: &mut [f32]) {
    let size = ssd.head_dim * ssd.state_dim;
    let heads = state
        .chunks_mut(size.max(1))
        .zip(y.chunks_mut(ssd.head_dim.max(1)))
        .enumerate();
    par::for_each(heads, recurrence_work(ssd), |(head, (state, y))| {
        dispatch(Step {
            ssd,
            head,
            state,
            y,
        })
    });
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
        let Step {
            ssd,
            head,
            state,
            y,
        } = self;
        let n = ssd.state_dim;
        let at = ssd.group(head) * n;
        let (b, c) = (&ssd.b[at..][..n], &ssd.c[at..][..n]);
        let x = &ssd.x[head * ssd.head_dim..][..ssd.head_dim];
        let delta = ssd.delta[head];
        let decay = s.splat((delta * ssd.a[head]).exp());
        for (p, (state, y)) in state.chunks_exact_mut(n).zip(y).enumerate() {
            let write = s.splat(delta * x[p]);
            let mut sum = s.splat(0.0);
            for ((h, b), c) in state
                .chunks_mut(LANES)
                .zip(b.chunks(LANES))
                .zip(c.chunks(LANES))
            {
                let next = s.fma(decay, s.load_some(h), s.mul(write, s.load_some(b)));
                s.store_some(next, h);
                sum = s.fma(s.load_some(c), next, sum);
            }
            *y = s.sum(sum) + ssd.skip(head, p) * x[p];
        }
    }
}

/// The recurrence without y; `norms` [T, H].
pub(crate) fn fold(ssd: &Ssd, state: &mut [f32], norms: Option<&mut [f32]>) {
    let (size, tokens) = (ssd.head_dim * ssd.state_dim, ssd.tokens());
    let mut by_head = vec![
        0.0;
        if norms.is_some() {
            tokens * ssd.heads
        } else {
            0
        }
    ];
    let mut columns = by_head.chunks_mut(tokens.max(1));
    let heads: Vec<_> = state
        .chunks_mut(size.max(1))
        .enumerate()
        .map(|(head, state)| (head, state, columns.next()))
        .collect();
    par::for_each(
        heads.into_iter(),
        recurrence_work(ssd),
        |(head, state, norms)| {
            dispatch(Fold {
                ssd,
                head,
                state,
                norms,
            })
        },
    );
    if let Some(norms) = norms {
        for (head, column) in by_head.chunks_exact(tokens.max(1)).enumerate() {
            norms[head..]
                .iter_mut()
                .step_by(ssd.heads)
                .zip(column)
                .for_each(|(out, norm)| *out = *norm);
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
        let Ssd {
            heads,
            head_dim,
            state_dim: n,
            groups,
            ..
        } = *self.ssd;
        for t in 0..self.ssd.tokens() {
            let b = &self.ssd.b[(t * groups + self.ssd.group(self.head)) * n..][..n];
            let x = &self.ssd.x[(t * heads + self.head) * head_dim..][..head_dim];
            let delta = self.ssd.delta[t * heads + self.head];
            let decay = s.splat((delta * self.ssd.a[self.head]).exp());
            let mut square = s.splat(0.0);
            for (state, x) in self.state.chunks_exact_mut(n).zip(x) {
                let write = s.splat(delta * x);
                for (h, b) in state.chunks_mut(LANES).zip(b.chunks(LANES)) {
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
pub(crate) fn chunked(ssd: &Ssd, state: &mut [f32], y: &mut [f32]) {
    let (size, tokens) = (ssd.head_dim * ssd.state_dim, ssd.tokens());
    if size == 0 {
        return y.fill(0.0);
    }
    // A head owns columns of y, which are no slice of it: it works on a strip [T, P], copied into place at the end.
    let mut strips = vec![0.0; y.len()];
    let work = tokens * ssd.heads * (2 * size + CHUNK / 2 * (ssd.head_dim + ssd.state_dim)) / LANES;
    let heads = state
        .chunks_mut(size)
        .zip(strips.chunks_mut(tokens * ssd.head_dim))
        .enumerate();
    par::for_each(heads, work, |(head, (state, y))| {
        dispatch(Chunked {
            ssd,
            head,
            state,
            y,
        })
    });
    for (i, y) in y.chunks_exact_mut(ssd.head_dim).enumerate() {
        let (t, head) = (i / ssd.heads, i % ssd.heads);
        y.copy_from_slice(&strips[(head * tokens + t) * ssd.head_dim..][..ssd.head_dim]);
    }
}

struct Chunked<'a> {
    ssd: &'a Ssd<'a>,
    head: usize,
    /// [P, N]
    state: &'a mut [f32],
    /// [T, P]
    y: &'a mut [f32],
}

impl Kernel for Chunked<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Chunked {
            ssd,
            head,
            state,
            y,
        } = self;
        let Ssd {
            heads,
            head_dim,
            state_dim: n,
            groups,
            ..
        } = *ssd;
        let b = |t: usize| &ssd.b[(t * groups + ssd.group(head)) * n..][..n];
        let c = |t: usize| &ssd.c[(t * groups + ssd.group(head)) * n..][..n];
        let x = |t: usize| &ssd.x[(t * heads + head) * head_dim..][..head_dim];
        for (chunk, y) in y.chunks_mut(CHUNK * head_dim).enumerate() {
            let (first, length) = (chunk * CHUNK, y.len() / head_dim);
            // Inclusive sums of the log-decays in f64: differences of f32 sums lose the small steps that follow a large one.
            let mut logs = [0.0f64; CHUNK];
            let mut sum = 0.0;
            for (i, log) in logs[..length].iter_mut().enumerate() {
                sum += f64::from(ssd.delta[(first + i) * heads + head]) * f64::from(ssd.a[head]);
                *log = sum;
            }
            for (i, y) in y.chunks_exact_mut(head_dim).enumerate() {
                let t = first + i;
                let carried = (logs[i] as f32).exp();
                for (p, y) in y.iter_mut().enumerate() {
                    *y = carried * dot(s, &state[p * n..][..n], c(t)) + ssd.skip(head, p) * x(t)[p];
                }
                for j in 0..=i {
                    let decay = ((logs[i] - logs[j]).min(0.0) as f32).exp();
                    let weight =
                        dot(s, c(t), b(first + j)) * decay * ssd.delta[(first + j) * heads + head];
                    axpy(s, weight, x(first + j), y);
                }
            }
            let last = logs[length - 1];
            let carried = (last as f32).exp();
            state.iter_mut().for_each(|h| *h *= carried);
            for j in 0..length {
                let weight = ((last - logs[j]).min(0.0) as f32).exp()
                    * ssd.delta[(first + j) * heads + head];
                for (p, state) in state.chunks_exact_mut(n).enumerate() {
                    axpy(s, weight * x(first + j)[p], b(first + j), state);
                }
            }
        }
    }
}
