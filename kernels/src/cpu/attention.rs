//! CPU twin of [`crate::attention`].

use crate::{
    Attention,
    cpu::{
        simd::{Kernel, LANES, Simd, dispatch},
        vector::{axpy, dot, exp},
    },
    par,
};

/// y [T, H, head_dim].
pub(crate) fn forward(
    attention: &Attention,
    q: &[f32],
    first_position: usize,
    y: &mut [f32],
    entropy_bits: Option<&mut [f32]>,
) {
    let Attention { heads, head_dim, .. } = *attention;
    let tokens = q.len() / (heads * head_dim);
    let work = 2 * q.len() * (first_position + tokens / 2 + 1) / LANES;
    let mut entropies = entropy_bits.map(|e| e.chunks_mut(1));
    let items: Vec<_> = q
        .chunks_exact(head_dim)
        .zip(y.chunks_exact_mut(head_dim))
        .enumerate()
        .map(|(i, (q, y))| (i, q, y, entropies.as_mut().and_then(|e| e.next())))
        .collect();
    par::for_each(items.into_iter(), work, |(i, q, y, entropy)| {
        let (t, head) = (i / heads, i % heads);
        let mut weights = vec![0.0; first_position + t + 1];
        let (max, sum) = dispatch(Row { attention, q, head, out: &mut weights });
        dispatch(Mix { attention, head, weights: &weights, sum, y });
        if let Some(entropy) = entropy {
            // −Σ p log₂ p with p = w / Σ w: log₂ Σ w − Σ w log₂ w / Σ w.
            let inner: f32 = weights.iter().filter(|&&w| w > 0.0).map(|w| w * w.log2()).sum();
            entropy[0] = (sum.log2() - inner / sum).max(0.0);
        }
        let _ = max;
    });
}

pub(crate) fn row(attention: &Attention, q: &[f32], head: usize, out: &mut [f32]) {
    let (_, sum) = dispatch(Row { attention, q, head, out });
    out.iter_mut().for_each(|w| *w /= sum);
}

/// Weights before the division by their sum: e^{logit − max}. Returns (max, sum).
struct Row<'a> {
    attention: &'a Attention<'a>,
    q: &'a [f32],
    head: usize,
    out: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Output = (f32, f32);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let Row { attention, q, head, out } = self;
        let kv_head = head * attention.kv_heads / attention.heads;
        let mut max = f32::NEG_INFINITY;
        for (position, logit) in out.iter_mut().enumerate() {
            *logit = attention.scale * dot(s, q, attention.key(position, kv_head));
            max = max.max(*logit);
        }
        let mut sum = 0.0;
        for logits in out.chunks_mut(LANES) {
            s.store_some(exp(s, s.sub(s.load_some(logits), s.splat(max))), logits);
            sum += logits.iter().sum::<f32>();
        }
        (max, sum)
    }
}

/// y = Σ_s w_s v_s / Σ w.
struct Mix<'a> {
    attention: &'a Attention<'a>,
    head: usize,
    weights: &'a [f32],
    sum: f32,
    y: &'a mut [f32],
}

impl Kernel for Mix<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Mix { attention, head, weights, sum, y } = self;
        let kv_head = head * attention.kv_heads / attention.heads;
        y.fill(0.0);
        for (position, &weight) in weights.iter().enumerate() {
            axpy(s, weight, attention.value(position, kv_head), y);
        }
        y.iter_mut().for_each(|y| *y /= sum);
    }
}
