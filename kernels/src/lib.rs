//! The numeric operations behind every mixer. Raw f32 slices in, raw slices out, row-major; the number of tokens T is read off the
//! lengths. A wrong shape is a programming error and panics.
//!
//! | op | equation | shapes | paper |
//! |---|---|---|---|
//! | [`fn@linear`] | y = W x + b | W [out, in] f32, bf16, f16, q8 · x [T, in] | |
//! | [`rms_norm`] | y = x (mean x² + ε)^{−1/2} ⊙ w | x [T, d] | Zhang & Sennrich 2019 |
//! | [`layer_norm`] | y = (x − mean x) (var x + ε)^{−1/2} ⊙ w + b | x [T, d] | Ba et al. 2016 |
//! | [`l2_normalise`] | x ← x · scale · (Σ x² + ε)^{−1/2} | x [rows, width] | Yang et al. 2024 |
//! | [`gated_group_rms_norm`] | the RMS norm of y ⊙ silu(z), by group | y, z [T, E] | Dao & Gu 2024 |
//! | [`group_rms_norm_gated`] | the RMS norm of y, by group, ⊙ silu(z) | y, z [T, E] | Yang et al. 2024 |
//! | [`silu_slice`], [`softplus_slice`], [`exp_slice`], … | pointwise | any | |
//! | [`Activation`], [`sigmoid_mul`] | f(x), f(gate) ⊙ up; silu, gelu, relu² | any | Shazeer 2020 |
//! | [`causal_conv`] | out_t = b + Σ_j W_j ⊙ x_{t−K+1+j} | x [T, C] · W [C, K] · history [K−1, C] | |
//! | [`SelectiveScan`] | h_t = e^{ΔA} h + Δ B x, y = C·h + D x | Δ, x [T, E] · A [E, N] · B, C [T, N] | Gu & Dao 2023 |
//! | [`Ssd`] | S_t = e^{ΔA} S + Δ x Bᵀ, y = S C + D x | Δ [T, H] · x [T, H, P] · B, C [T, G, N] | Dao & Gu 2024 |
//! | [`DeltaRule`] | S_t = e^g (I − β k kᵀ) S + β k vᵀ, y = Sᵀ q | q, k [T, H_k, Dk] · v [T, H, Dv] · g, β [T, H] | Yang et al. 2024 |
//! | [`LinearAttention`] | S_t = Λ_t S + w k vᵀ (− b κᵀ S), y = Sᵀ q, or Sᵀ_{t−1} q + c v | q, k [T, H, Dk] · v [T, H, Dv] | Yang et al. 2024; Peng et al. 2024, 2025 |
//! | [`ChannelScan`], [`wkv_gates`] | h_t = e^{log} h + i x, y = h | all [T, C] | De et al. 2024; Peng et al. 2023 |
//! | [`StateSpace`] | x_t = Ā x + b u, y = c·x + D u; or y = K ∗ u, K[l] = c·Āˡ b | u [T, C] · Ā, b, c [C, N] | Gu et al. 2022 |
//! | [`fn@long_conv`] | y_t = Σ_l K_l ⊙ x_{t−l} | x [S, C] · K [L, C] | Poli et al. 2023 |
//! | [`Rope`] | pairs turned by position · f | x [T, heads, head_dim] | Su et al. 2021 |
//! | [`Attention`] | y_t = Σ_s softmax(scale q·k)_s v_s, s in a window | q [T, H, head_dim] · pages [64, H_kv, head_dim] | Vaswani et al. 2017 |
//! | [`Lowered`] | M[t, s] = w_s Σ_n q_t k_s Π Λ, the softmax, or a band | rows of M [t + 1] | Dao & Gu 2024; Ali et al. 2024 |
//! | [`mod@reduce`], [`mod@pool`] | norms, top-k, entropy, signed max-abs pooling | any | |
//!
//! `src/<op>.rs` says what an op is — equation, shapes, checks — and holds its plain f64 `reference`; `src/cpu/<op>.rs` is the fast twin.
//! Sums are f32. Results have the same bits for any number of threads ([`par`]). Unsafe code stands in `cpu/simd.rs` and
//! `simd/`, `mmap.rs`, `par/team.rs`, `par/columns.rs`, `cuda/launch.rs` and `launch/`. With feature `cuda`, `src/cuda/` has twins over device memory for some of them.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod activation;
pub mod attention;
pub mod channel_scan;
mod complex;
pub mod conv;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod delta_rule;
pub mod limits;
pub mod linear;
pub mod linear_attention;
pub mod long_conv;
pub mod matrix;
pub mod mixing;
pub mod mmap;
pub mod norm;
pub mod par;
pub mod pool;
pub mod q8;
pub mod reduce;
pub mod room;
pub mod rope;
pub mod selective_scan;
pub mod ssd;
pub mod state_space;
#[cfg(test)]
mod tests;

pub use activation::{
    Activation, exp_slice, gelu_slice, gelu_tanh_slice, relu2_slice, sigmoid, sigmoid_mul, sigmoid_slice, silu,
    silu_mul, silu_slice, softplus, softplus_slice,
};
pub use attention::{Attention, Layout, PAGE};
pub use channel_scan::{ChannelScan, wkv_gates};
pub use conv::causal_conv;
pub use delta_rule::DeltaRule;
pub use linear::{linear, linear_parts};
pub use linear_attention::{Correction, KeyDecay, LinearAttention};
pub use long_conv::long_conv;
pub use matrix::{Dtype, Elements, Matrix, ShapeError, UnknownDtype, Values};
pub use mixing::{Decay, Lowered, Recurrent, Strided, Toeplitz, apply_rows, extend_row_over_conv};
pub use mmap::MappedFile;
pub use norm::{gated_group_rms_norm, group_rms_norm_gated, l2_normalise, layer_norm, rms_norm};
pub use par::set_threads;
pub use pool::{pool_row, pool_signed_absmax, pooled_row};
pub use q8::Q8Block;
pub use room::Room;
pub use rope::Rope;
pub use selective_scan::SelectiveScan;
pub use ssd::Ssd;
pub use state_space::StateSpace;
