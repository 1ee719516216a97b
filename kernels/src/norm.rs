//! Norms of rows, and of heads and groups inside them.

use crate::{activation::silu_reference, cpu};

/// RMS norm, Llama style (Zhang & Sennrich 2019): y = x · (mean x² + ε)^{−1/2} ⊙ w over each row.
///
/// `xs`, `ys` [T, d], `weight` [d].
pub fn rms_norm(xs: &[f32], weight: &[f32], eps: f32, ys: &mut [f32]) {
    assert_eq!(xs.len(), ys.len(), "rms_norm: x and y differ in length");
    assert!(
        !weight.is_empty() && xs.len().is_multiple_of(weight.len()),
        "rms_norm: x of {} elements is not [T, {}]",
        xs.len(),
        weight.len()
    );
    cpu::norm::rms_norm(xs, weight, eps, ys);
}

/// Layer norm (Ba et al. 2016): out = (x − mean x) · (var x + ε)^{−1/2} ⊙ w + b over each row, var = mean (x − mean
/// x)².
///
/// `xs`, `out` [T, d], `weight`, `bias` [d].
pub fn layer_norm(xs: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    assert_eq!(xs.len(), out.len(), "layer_norm: x and out differ in length");
    assert!(
        !weight.is_empty() && xs.len().is_multiple_of(weight.len()),
        "layer_norm: x of {} elements is not [T, {}]",
        xs.len(),
        weight.len()
    );
    assert!(bias.is_none_or(|bias| bias.len() == weight.len()), "layer_norm: bias is not [{}]", weight.len());
    cpu::norm::layer_norm(xs, weight, bias, eps, out);
}

/// x ← x · scale · (Σ x² + ε)^{−1/2} over each row of `width`: the queries and keys of a delta rule (Yang et al. 2024).
///
/// `xs` [T, heads, width].
pub fn l2_normalise(xs: &mut [f32], width: usize, eps: f32, scale: f32) {
    assert!(
        width > 0 && xs.len().is_multiple_of(width),
        "l2_normalise: x of {} elements is not of rows of {width}",
        xs.len()
    );
    cpu::norm::l2_normalise(xs, width, eps, scale);
}

/// Gated group RMS norm of Mamba-2 (Dao & Gu 2024), gate first: v = y ⊙ silu(z); per group of E/G channels
/// out = v · ρ ⊙ w, ρ = (mean v² + ε)^{−1/2}.
///
/// `ys`, `zs`, `out` [T, E], `weight` [E]; `scale_out` [T, G] receives ρ and changes nothing else.
pub fn gated_group_rms_norm(
    ys: &[f32],
    zs: &[f32],
    weight: &[f32],
    groups: usize,
    eps: f32,
    out: &mut [f32],
    scale_out: Option<&mut [f32]>,
) {
    let arguments = Gated { ys, zs, weight, groups, eps, order: Order::GateFirst };
    arguments.check(out.len(), scale_out.as_deref());
    cpu::norm::gated(arguments, out, scale_out);
}

/// Gated group RMS norm of Gated DeltaNet (Yang et al. 2024), norm first: out = (y · ρ ⊙ w) ⊙ silu(z), ρ = (mean y² +
/// ε)^{−1/2} per group of E/G channels. Heads that share w [Dv] are rows: `groups` 1.
///
/// Shapes as in [`gated_group_rms_norm`].
pub fn group_rms_norm_gated(
    ys: &[f32],
    zs: &[f32],
    weight: &[f32],
    groups: usize,
    eps: f32,
    out: &mut [f32],
    scale_out: Option<&mut [f32]>,
) {
    let arguments = Gated { ys, zs, weight, groups, eps, order: Order::NormFirst };
    arguments.check(out.len(), scale_out.as_deref());
    cpu::norm::gated(arguments, out, scale_out);
}

/// Which of the two a gated norm does first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    GateFirst,
    NormFirst,
}

/// What a gated norm reads.
#[derive(Clone, Copy)]
pub(crate) struct Gated<'a> {
    pub(crate) ys: &'a [f32],
    pub(crate) zs: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) groups: usize,
    pub(crate) eps: f32,
    pub(crate) order: Order,
}

impl Gated<'_> {
    fn check(&self, out: usize, scale: Option<&[f32]>) {
        let (elements, width, groups) = (self.ys.len(), self.weight.len(), self.groups);
        assert!(elements == self.zs.len() && elements == out, "gated norm: y, z and out differ in length");
        assert!(
            width > 0 && elements.is_multiple_of(width),
            "gated norm: y of {elements} elements is not [T, {width}]"
        );
        assert!(groups > 0 && width.is_multiple_of(groups), "gated norm: {width} channels in {groups} groups");
        assert!(scale.is_none_or(|scale| scale.len() == elements / width * groups), "gated norm: scale is not [T, G]");
    }

    fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        let silu = |z: &f32| silu_reference(f64::from(*z));
        let mut v: Vec<f64> = self.ys.iter().map(|&y| y.into()).collect();
        if self.order == Order::GateFirst {
            v.iter_mut().zip(self.zs).for_each(|(v, z)| *v *= silu(z));
        }
        let size = self.weight.len() / self.groups;
        let (mut out, mut scales) = (Vec::new(), Vec::new());
        for (i, v) in v.chunks_exact(size).enumerate() {
            let (normalised, scale) = normalised(v, &self.weight[i % self.groups * size..][..size], self.eps);
            out.extend(normalised);
            scales.push(scale);
        }
        if self.order == Order::NormFirst {
            out.iter_mut().zip(self.zs).for_each(|(out, z)| *out *= silu(z));
        }
        (out, scales)
    }
}

/// [`rms_norm`] in f64.
pub fn rms_norm_reference(xs: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let xs: Vec<f64> = xs.iter().map(|&x| x.into()).collect();
    xs.chunks_exact(weight.len()).flat_map(|x| normalised(x, weight, eps).0).collect()
}

/// [`gated_group_rms_norm`] in f64: the output and ρ.
pub fn gated_group_rms_norm_reference(
    ys: &[f32],
    zs: &[f32],
    weight: &[f32],
    groups: usize,
    eps: f32,
) -> (Vec<f64>, Vec<f64>) {
    Gated { ys, zs, weight, groups, eps, order: Order::GateFirst }.reference()
}

/// [`group_rms_norm_gated`] in f64: the output and ρ.
pub fn group_rms_norm_gated_reference(
    ys: &[f32],
    zs: &[f32],
    weight: &[f32],
    groups: usize,
    eps: f32,
) -> (Vec<f64>, Vec<f64>) {
    Gated { ys, zs, weight, groups, eps, order: Order::NormFirst }.reference()
}

/// [`layer_norm`] in f64.
pub fn layer_norm_reference(xs: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) -> Vec<f64> {
    let mut out = Vec::with_capacity(xs.len());
    for x in xs.chunks_exact(weight.len()) {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64;
        let centred: Vec<f64> = x.iter().map(|&x| f64::from(x) - mean).collect();
        // The variance is the mean square of what is left.
        let row = normalised(&centred, weight, eps).0;
        out.extend(row.iter().enumerate().map(|(i, y)| y + bias.map_or(0.0, |bias| bias[i].into())));
    }
    out
}

/// [`l2_normalise`] in f64.
pub fn l2_normalise_reference(xs: &[f32], width: usize, eps: f32, scale: f32) -> Vec<f64> {
    let row = |x: &[f32]| {
        let square: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let scale = f64::from(scale) / (square + f64::from(eps)).sqrt();
        x.iter().map(|&x| f64::from(x) * scale).collect::<Vec<_>>()
    };
    xs.chunks_exact(width).flat_map(row).collect()
}

fn normalised(x: &[f64], weight: &[f32], eps: f32) -> (Vec<f64>, f64) {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    (x.iter().zip(weight).map(|(x, &w)| x * scale * f64::from(w)).collect(), scale)
}
