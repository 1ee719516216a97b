//! Pointwise nonlinearities. The scalar forms go through std; the slice forms through an eight-lane exponential that is right to
//! 3·10⁻⁷ of its value (tested), underflows to 0 and overflows to ∞ as e ˣ itself does in f32.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use crate::cpu::activation;

/// The nonlinearity of an MLP, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// [`silu_slice`]
    Silu,
    /// [`gelu_slice`]
    Gelu,
    /// [`gelu_tanh_slice`]
    GeluTanh,
    /// [`relu2_slice`]
    Relu2,
}

impl Activation {
    /// x ← f(x).
    pub fn apply(self, xs: &mut [f32]) {
        match self {
            Activation::Silu => silu_slice(xs),
            Activation::Gelu => gelu_slice(xs),
            Activation::GeluTanh => gelu_tanh_slice(xs),
            Activation::Relu2 => relu2_slice(xs),
        }
    }

    /// out = f(gate) ⊙ up: the middle of a gated MLP (Shazeer 2020). All of one length.
    pub fn apply_mul(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && gate.len() == out.len(), "{self:?}: gate, up and out differ in length");
        match self {
            Activation::Silu => activation::mul(activation::Silu, gate, up, out),
            Activation::Gelu => activation::mul(activation::Gelu, gate, up, out),
            Activation::GeluTanh => activation::mul(activation::GeluTanh, gate, up, out),
            Activation::Relu2 => activation::mul(activation::Relu2, gate, up, out),
        }
    }

    /// f in f64.
    pub fn reference(self, x: f64) -> f64 {
        match self {
            Activation::Silu => silu_reference(x),
            Activation::Gelu => gelu_reference(x),
            Activation::GeluTanh => gelu_tanh_reference(x),
            Activation::Relu2 => x.max(0.0) * x.max(0.0),
        }
    }
}

/// σ(x) = 1 / (1 + e⁻ˣ), 0 and 1 at the ends.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// silu(x) = x σ(x) (Elfwing et al. 2017).
pub fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// softplus(x) = ln(1 + eˣ) = max(x, 0) + ln(1 + e^{−|x|}), which cannot overflow.
pub fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// x ← eˣ.
pub fn exp_slice(xs: &mut [f32]) {
    activation::exp(xs);
}

/// x ← σ(x).
pub fn sigmoid_slice(xs: &mut [f32]) {
    activation::sigmoid(xs);
}

/// x ← silu(x).
pub fn silu_slice(xs: &mut [f32]) {
    activation::silu(xs);
}

/// x ← softplus(x).
pub fn softplus_slice(xs: &mut [f32]) {
    activation::softplus(xs);
}

/// x ← gelu(x) = x Φ(x) = ½ x (1 + erf(x / √2)) (Hendrycks & Gimpel 2016), right to 6·10⁻⁷ of its value down to −13,
/// where it leaves the normal range.
pub fn gelu_slice(xs: &mut [f32]) {
    activation::gelu(xs);
}

/// x ← ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), the approximation of gelu that some models were trained with, right to
/// 2·10⁻⁶ of its value from −4 on and to 2·10⁻⁵ below.
pub fn gelu_tanh_slice(xs: &mut [f32]) {
    activation::gelu_tanh(xs);
}

/// x ← max(x, 0)² (So et al. 2021).
pub fn relu2_slice(xs: &mut [f32]) {
    activation::relu2(xs);
}

/// [`Activation::apply_mul`] of silu.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    Activation::Silu.apply_mul(gate, up, out);
}

/// out = σ(gate) ⊙ up: an output gate. All of one length.
pub fn sigmoid_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len(), "sigmoid_mul: gate, up and out differ in length");
    activation::mul(activation::Sigmoid, gate, up, out);
}

/// silu in f64.
pub fn silu_reference(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// softplus in f64.
pub fn softplus_reference(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// gelu in f64.
pub fn gelu_reference(x: f64) -> f64 {
    let z = x.abs() * FRAC_1_SQRT_2;
    let bell = (-z * z).exp() / PI.sqrt();
    // ½ erfc(z): near 0 by the series of erf, whose terms have one sign, else by its continued fraction.
    let tail = if z < 2.0 {
        let terms =
            std::iter::successors(Some((2.0 * z, 1.0)), |(term, n)| Some((term * 2.0 * z * z / (n + 2.0), n + 2.0)));
        0.5 - 0.5 * bell * terms.take(60).map(|(term, _)| term).sum::<f64>()
    } else {
        0.5 * bell / (1..=100).rev().fold(z, |rest, n| z + 0.5 * f64::from(n) / rest)
    };
    x.max(0.0) - x.abs() * tail
}

/// The tanh form of gelu in f64, by σ: 1 + tanh loses the small values.
pub fn gelu_tanh_reference(x: f64) -> f64 {
    x / (1.0 + (-2.0 * (2.0 / PI).sqrt() * (x + 0.044715 * x * x * x)).exp())
}
