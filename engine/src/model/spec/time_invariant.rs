//! The ancestors: state spaces that do not depend on the token, and long convolutions.

pub use statescope_kernels::state_space::Discretisation;

/// S4 (Gu, Goel & Ré 2022) and S4D (Gu et al. 2022): a linear time-invariant system a channel.
#[derive(Clone, Debug, PartialEq)]
pub struct S4Spec {
    /// C.
    pub channels: usize,
    /// N, even: N/2 complex states stand for N.
    pub state_dim: usize,
    pub discretisation: Discretisation,
    /// Whether A is diagonal plus low rank (S4) or diagonal (S4D).
    pub low_rank: bool,
}

/// H3 (Fu et al. 2023): a shift and a diagonal state space between two gates.
#[derive(Clone, Debug, PartialEq)]
pub struct H3Spec {
    /// The diagonal system of every head.
    pub system: S4Spec,
    /// P: channels of a head, which share its system.
    pub head_dim: usize,
    /// Inputs that the shift holds.
    pub shift_dim: usize,
}

/// Hyena (Poli et al. 2023): filters as long as the text, made by a small network, between gates.
#[derive(Clone, Debug, PartialEq)]
pub struct HyenaSpec {
    pub channels: usize,
    /// O, from 2: gates, one more than filters.
    pub order: usize,
    /// Taps of a filter: what is older is out of its sight.
    pub length: usize,
    /// K of the short convolution before it.
    pub short_taps: usize,
    /// Features of a position: itself and pairs of sine and cosine; odd.
    pub features: usize,
    /// Width of the network.
    pub width: usize,
    /// Its layers between the first and the last.
    pub inner_layers: usize,
    /// Added to the window that the filter fades by.
    pub shift: f32,
}

impl HyenaSpec {
    /// Filters of a channel.
    pub fn filters(&self) -> usize {
        self.order - 1
    }
}
