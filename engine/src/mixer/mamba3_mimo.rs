//! Mamba-3 with several inputs and outputs (MIMO; Lahoti et al. 2026, arXiv 2603.15569), in the layout of flash-linear-attention.
//!
//! ```text
//! Δ, α, λ, x, z, and B^ρ and C^ρ of r ranks turned as `trapezoid` makes them          x^ρ = x ⊙ X^ρ, z^ρ = z ⊙ Z^ρ          (`mimo_x`, `mimo_z`)
//! S_t = α_t (S_{t−1} + (1 − λ_t) Δ_t Σ_ρ x^ρ_{t−1} B^ρ_{t−1}ᵀ) + λ_t Δ_t Σ_ρ x^ρ_t B^ρ_tᵀ          y^ρ_t = S_t C^ρ_t + D x^ρ_t
//! y = Σ_ρ g^ρ ⊙ y^ρ          g^ρ = O^ρ ⊙ silu(z^ρ), with the norm also ⊙ w / RMS_head(y^ρ)          (`mimo_o`)
//! out = W_out y
//! ```
//!
//! A gate stands in front of every one of the r reads, so there is no output before the gate that one matrix could give. What is called y here is what
//! enters W_out, and the gates are in the matrix, as those of a short convolution are. They differ between the channels p of a head, and so do the
//! inputs: each channel has a matrix of its own, that of a state of N numbers that is written under k^p and read with q^p,
//!
//! ```text
//! k^p_j = Σ_ρ X^ρ[p] B^ρ_j          q^p_i = Σ_ρ g^ρ_i[p] C^ρ_i
//! M_ij = q^p_iᵀ k^p_j Π_{s=j+1..i} α_s (λ_j Δ_j + (1 − λ_{j+1}) Δ_{j+1}), and q^p_iᵀ k^p_i λ_i Δ_i + D Σ_ρ g^ρ_i[p] X^ρ[p] on the diagonal
//! ```
//!
//! This is exact; with the norm it is so for this text, since g then holds a number that depends on all channels. Key and query are recorded by rank.

use std::ops::Range;

use statescope_kernels::activation::sigmoid;
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent, Strided};
use statescope_kernels::reduce::l2_norm;

use super::trapezoid::{Shares, Trapezoid};
use super::{Mixer, StateSlot};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::Mamba3Spec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one Mamba-3. Every channel has a matrix of its own, and is a head of its own for whoever looks; those of a head share Δ, α, λ, B and C.
pub struct Mamba3Mimo {
    core: Trapezoid,
    /// Z and O `[H, r, P]`.
    gates: Vec<f32>,
    outputs: Vec<f32>,
    /// w `[E]`.
    norm: Option<Vec<f32>>,
    /// `[d, E]`.
    out_proj: Matrix,
}

impl Mamba3Mimo {
    pub fn load(spec: &Mamba3Spec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let Mamba3Spec { heads, head_dim, .. } = *spec;
        let ranked = |name: &str| scope.tensor(name, &[heads, spec.rank(), head_dim]);
        Ok(Self {
            core: Trapezoid::load(spec, hidden_size, scope)?,
            gates: ranked("mimo_z")?,
            outputs: ranked("mimo_o")?,
            norm: scope.vector_if(spec.output_norm, "norm.weight", heads * head_dim)?,
            out_proj: scope.matrix("out_proj.weight", hidden_size, heads * head_dim)?,
        })
    }

    /// g `[T, E, r]` of z `[T, E]` and the reads `[T, r, E]`.
    fn output_gates(&self, z: &[f32], reads: &[f32]) -> Vec<f32> {
        let Mamba3Spec { heads, head_dim, norm_eps, .. } = self.core.spec;
        let (rank, inner) = (self.core.spec.rank(), heads * head_dim);
        let mut gates = Vec::with_capacity(reads.len());
        for (z, reads) in z.chunks_exact(inner).zip(reads.chunks_exact(rank * inner)) {
            let scale = |read: &[f32]| {
                let mean = read.iter().map(|y| y * y).sum::<f32>() / head_dim as f32;
                if self.norm.is_some() { (mean + norm_eps).sqrt().recip() } else { 1.0 }
            };
            // `[r, H]`.
            let scales: Vec<f32> = reads.chunks_exact(head_dim).map(scale).collect();
            for (channel, z) in z.iter().enumerate() {
                let head = channel / head_dim;
                let weight = self.norm.as_ref().map_or(1.0, |norm| norm[channel]);
                gates.extend((0..rank).map(|r| {
                    let at = (head * rank + r) * head_dim + channel % head_dim;
                    let z = z * self.gates[at];
                    self.outputs[at] * z * sigmoid(z) * weight * scales[r * heads + head]
                }));
            }
        }
        gates
    }

    /// Σ_ρ shares^ρ rows^ρ of rows `[r, N]`, into `out` `[N]`.
    fn combined(shares: impl Iterator<Item = f32>, rows: &[f32], out: &mut [f32]) {
        out.fill(0.0);
        for (share, row) in shares.zip(rows.chunks_exact(out.len())) {
            out.iter_mut().zip(row).for_each(|(out, x)| *out += share * x);
        }
    }

    /// What a channel reads of its own value beside the state: D Σ_ρ g^ρ X^ρ, with the g `[r]` of the token.
    fn own_share(&self, channel: usize, gates: &[f32]) -> f32 {
        let pairs = gates.iter().zip(self.core.shares(channel));
        self.core.skip(channel / self.core.spec.head_dim) * pairs.map(|(gate, share)| gate * share).sum::<f32>()
    }
}

impl Mixer for Mamba3Mimo {
    fn geometry(&self) -> Geometry {
        let Mamba3Spec { heads, head_dim, state_dim, .. } = self.core.spec;
        Geometry {
            kind: MixerKind::Mamba3Mimo,
            heads: heads * head_dim,
            head_dim: 1,
            state_dim,
            groups: heads,
            rank: self.core.spec.rank(),
            decay_dim: 1,
            conv_taps: 0,
            gated: true,
            window: None,
            state_bytes: self.core.state_bytes(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        self.core.slot()
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let (rank, inner) = (self.core.spec.rank(), self.out_proj.cols());
        let (tokens, reads) = self.core.forward(xs, slot, hooks);
        let mut gates = self.output_gates(&tokens.z, &reads);
        hooks.pass(Point::Gate, &mut gates);
        let mut y = Vec::with_capacity(tokens.x.len());
        for (reads, gates) in reads.chunks_exact(rank * inner).zip(gates.chunks_exact(rank * inner)) {
            let channel = |(c, gates): (usize, &[f32])| {
                gates.iter().enumerate().map(|(r, g)| g * reads[r * inner + c]).sum::<f32>()
            };
            y.extend(gates.chunks_exact(rank).enumerate().map(channel));
        }
        hooks.pass(Point::Core, &mut y);
        linear(&self.out_proj, None, &y, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let (channel, head, n) = (head, head / self.core.spec.head_dim, self.core.spec.state_dim);
        let (tokens, rank) = (tape.positions().len(), self.core.spec.rank());
        let of_head = |point| tape.strided(point, head * rank * n, rank * n);
        let (keys, queries) = (of_head(Point::Key), of_head(Point::Query));
        let (gates, log) = (tape.strided(Point::Gate, channel * rank, rank), tape.strided(Point::LogDecay, head, 1));
        let (mut key, mut query) = (vec![0.0; tokens * n], vec![0.0; tokens * n]);
        let Shares { own, all } = Shares::of(tape, head);
        let mut bonus = Vec::with_capacity(tokens);
        for (t, (key, query)) in key.chunks_exact_mut(n).zip(query.chunks_exact_mut(n)).enumerate() {
            Self::combined(self.core.shares(channel), keys.row(t), key);
            Self::combined(gates.row(t).iter().copied(), queries.row(t), query);
            let dot = query.iter().zip(&*key).map(|(q, k)| q * k).sum::<f32>();
            bonus.push(own[t] * dot + self.own_share(channel, gates.row(t)));
            // As a state that is read before it is written: what fades at the token that reads is in the query.
            query.iter_mut().for_each(|q| *q *= log.at(t).exp());
        }
        let rows = |data, width| Strided { data, stride: width, offset: 0, width };
        draw(&Lowered::Recurrent(Recurrent {
            weight: Some(rows(&all, 1)),
            decay: Decay::Scalar { log, factor: 1.0 },
            bonus: Some(rows(&bonus, 1)),
            ..Recurrent::new(tokens, rows(&query, n), rows(&key, n))
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let Mamba3Spec { head_dim, state_dim, .. } = self.core.spec;
        let rank = self.core.spec.rank();
        let row = |point| tape.row(point, position);
        match point {
            Point::Decay => {
                let Some(log) = row(Point::LogDecay) else { return false };
                out.extend(heads.map(|channel| log[channel / head_dim].exp()));
            }
            Point::Write => {
                let (Some(k), Some(x)) = (row(Point::Key), row(Point::Value)) else { return false };
                let (Some(delta), Some(lambda)) = (row(Point::Delta), row(Point::InputGate)) else { return false };
                let mut key = vec![0.0; state_dim];
                for channel in heads {
                    let head = channel / head_dim;
                    Self::combined(self.core.shares(channel), &k[head * rank * state_dim..], &mut key);
                    out.push(lambda[head] * delta[head] * l2_norm(&key) * x[channel].abs());
                }
            }
            Point::Read => {
                let (Some(y), Some(x), Some(gates)) = (row(Point::Core), row(Point::Value), row(Point::Gate)) else {
                    return false;
                };
                let gates = |c: usize| &gates[c * rank..(c + 1) * rank];
                out.extend(heads.map(|c| (y[c] - self.own_share(c, gates(c)) * x[c]).abs()));
            }
            _ => return false,
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        self.core.fold(tape, positions, state);
    }
}
