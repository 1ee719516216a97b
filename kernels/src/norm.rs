//! Root-mean-square norms.

use crate::cpu;

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
    let width = weight.len();
    assert!(ys.len() == zs.len() && ys.len() == out.len(), "gated_group_rms_norm: y, z and out differ in length");
    assert!(
        width > 0 && ys.len().is_multiple_of(width),
        "gated_group_rms_norm: y of {} elements is not [T, {width}]",
        ys.len()
    );
    assert!(groups > 0 && width.is_multiple_of(groups), "gated_group_rms_norm: {width} channels in {groups} groups");
    if let Some(scale) = &scale_out {
        assert_eq!(scale.len(), ys.len() / width * groups, "gated_group_rms_norm: scale is not [T, G]");
    }
    cpu::norm::gated_group_rms_norm(ys, zs, weight, groups, eps, out, scale_out);
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
    let silu = |z: f64| z / (1.0 + (-z).exp());
    let v: Vec<f64> = ys.iter().zip(zs).map(|(&y, &z)| f64::from(y) * silu(z.into())).collect();
    let size = weight.len() / groups;
    let (mut out, mut scales) = (Vec::new(), Vec::new());
    for (i, v) in v.chunks_exact(size).enumerate() {
        let (normalised, scale) = normalised(v, &weight[i % groups * size..][..size], eps);
        out.extend(normalised);
        scales.push(scale);
    }
    (out, scales)
}

fn normalised(x: &[f64], weight: &[f32], eps: f32) -> (Vec<f64>, f64) {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    (x.iter().zip(weight).map(|(x, &w)| x * scale * f64::from(w)).collect(), scale)
}
