//! S4 (Gu, Goel & Ré 2022, arXiv 2111.00396) and its diagonal form S4D (Gu et al. 2022, arXiv 2206.11893), in a layout of our own
//! (`assets/layouts.md`).
//!
//! ```text
//! x'(τ) = A x + B u          A = diag(λ) − P Pᴴ (S4), diag(λ) (S4D), λ = −e^{log_A_real} + i A_imag          per channel, N/2 complex states
//! x_t = Ā x_{t−1} + B̄ u_t          y_t = 2 Re C x_t + D u_t          by a step Δ = e^{log_dt}: zero-order hold or bilinear
//! y = K ∗ u          K[l] = 2 Re C Āˡ B̄, + D at l = 0
//! out = GLU(W gelu(y) + b) = a ⊙ σ(z)
//! ```
//!
//! Nothing here depends on the token. Tokens that are read together are read by the convolution, one alone by the recurrence; the record
//! says which ran ([`Point::Form`]).

use std::ops::Range;

use statescope_kernels::activation::{gelu_slice, sigmoid};
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Lowered, Toeplitz};
use statescope_kernels::reduce::l2_norm;
use statescope_kernels::state_space::{Complex, Continuous, Discrete, StateSpace};

use super::{Mixer, StateSlot, constant, project};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::S4Spec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// One linear time-invariant system a channel, in steps.
pub(super) struct Systems {
    channels: usize,
    /// `[C, N]` each, as [`StateSpace`] has them.
    discrete: Discrete,
    /// D `[C]`.
    skip: Vec<f32>,
    /// Δ `[C]`.
    steps: Vec<f32>,
}

impl Systems {
    /// `kernel.C`, `kernel.log_dt`, `kernel.log_A_real`, `kernel.A_imag`, `D`, and for a DPLR system `kernel.B` and `kernel.P`.
    pub(super) fn load(spec: &S4Spec, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (channels, half) = (spec.channels, spec.state_dim / 2);
        let kernel = scope.scope("kernel");
        let complex = |name: &str| -> Result<Vec<Complex>, LoadError> {
            let stored = kernel.tensor(name, &[channels, half, 2])?;
            Ok(stored.chunks_exact(2).map(|x| Complex::new(x[0].into(), x[1].into())).collect())
        };
        let (real, imaginary) =
            (kernel.tensor("log_A_real", &[channels, half])?, kernel.tensor("A_imag", &[channels, half])?);
        let parts = real.iter().zip(&imaginary);
        let lambda: Vec<Complex> = parts.map(|(re, im)| Complex::new(-f64::from(*re).exp(), (*im).into())).collect();
        let c = complex("C")?;
        let (b, p) = match spec.low_rank {
            true => (complex("B")?, Some(complex("P")?)),
            false => (vec![Complex::ONE; lambda.len()], None),
        };
        let steps: Vec<f64> = kernel.vector("log_dt", channels)?.into_iter().map(|log| f64::from(log).exp()).collect();
        let mut all = Discrete::default();
        for (channel, &step) in steps.iter().enumerate() {
            let at = channel * half..(channel + 1) * half;
            let low_rank = p.as_ref().map(|p| &p[at.clone()]);
            let system = Continuous { lambda: &lambda[at.clone()], b: &b[at.clone()], c: &c[at], low_rank, step };
            let one = system.discretise(spec.discretisation);
            all.decay.extend(one.decay);
            all.input.extend(one.input);
            all.output.extend(one.output);
            all.look.extend(one.look);
            all.take.extend(one.take);
        }
        let steps = steps.into_iter().map(|step| step as f32).collect();
        Ok(Self { channels, discrete: all, skip: scope.vector("D", channels)?, steps })
    }

    /// The same with every channel there so many times, one beside the other.
    pub(super) fn repeated(&self, times: usize) -> Self {
        let width = self.width();
        let rows = |xs: &[f32], width: usize| xs.chunks_exact(width).flat_map(|row| row.repeat(times)).collect();
        let Discrete { decay, input, output, look, take } = &self.discrete;
        let [decay, input, output, look, take] = [decay, input, output, look, take].map(|xs| rows(xs, width));
        Self {
            channels: self.channels * times,
            discrete: Discrete { decay, input, output, look, take },
            skip: rows(&self.skip, 1),
            steps: rows(&self.steps, 1),
        }
    }

    fn space(&self) -> StateSpace<'_> {
        let Discrete { decay, input, output, look, take } = &self.discrete;
        StateSpace { channels: self.channels, decay, input, output, look, take, skip: &self.skip }
    }

    /// u `[T, C]` → y, by the form that fits, which the record is told.
    pub(super) fn forward(&self, u: &[f32], state: &mut [f32], hooks: &mut Hooks<'_>) -> Vec<f32> {
        let (mut y, rows) = (vec![0.0; u.len()], u.len() / self.channels);
        match rows {
            1 => self.space().forward(u, state, &mut y),
            _ => self.space().convolve(u, state, &mut y),
        }
        hooks.show(Point::Form, &vec![f32::from(u8::from(rows > 1)); rows]);
        y
    }

    pub(super) fn fold(&self, u: &[f32], state: &mut [f32]) {
        self.space().fold(u, state);
    }

    /// The kernel of a channel as the band of a matrix of so many tokens: the last for the token itself, D in it.
    pub(super) fn band(&self, channel: usize, tokens: usize) -> Vec<f32> {
        let mut taps = self.space().taps(channel, tokens);
        taps.reverse();
        taps
    }

    /// Numbers in the state of a channel.
    pub(super) fn width(&self) -> usize {
        self.discrete.decay.len() / self.channels
    }

    pub(super) fn skip(&self, channel: usize) -> f32 {
        self.skip[channel]
    }

    /// ‖B̄‖ of a channel.
    pub(super) fn write_norm(&self, channel: usize) -> f32 {
        l2_norm(&self.discrete.input[channel * self.width()..(channel + 1) * self.width()])
    }

    /// Δ, or |Ā_n| of the diagonal part, of some channels; they are the same at every token.
    pub(super) fn derive(&self, point: Point, channels: Range<usize>, out: &mut Vec<f32>) -> bool {
        match point {
            Point::Delta => out.extend_from_slice(&self.steps[channels]),
            Point::Decay => {
                for row in self.discrete.decay.chunks_exact(self.width()).take(channels.end).skip(channels.start) {
                    let (re, im) = row.split_at(row.len() / 2);
                    out.extend(re.iter().zip(im).map(|(re, im)| re.hypot(*im)));
                }
            }
            _ => return false,
        }
        true
    }
}

/// Weights of one S4 or S4D. Every channel is a head of its own.
pub struct S4 {
    spec: S4Spec,
    systems: Systems,
    /// `[2d, C]`: a, then z.
    out_proj: Matrix,
    out_bias: Vec<f32>,
}

impl S4 {
    pub fn load(spec: &S4Spec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        Ok(Self {
            systems: Systems::load(spec, scope)?,
            out_proj: scope.matrix("output_linear.weight", 2 * hidden_size, spec.channels)?,
            out_bias: scope.vector("output_linear.bias", 2 * hidden_size)?,
            spec: spec.clone(),
        })
    }
}

impl Mixer for S4 {
    fn geometry(&self) -> Geometry {
        let S4Spec { channels, state_dim, low_rank, .. } = self.spec;
        Geometry {
            kind: if low_rank { MixerKind::S4 } else { MixerKind::S4d },
            heads: channels,
            head_dim: 1,
            state_dim,
            groups: channels,
            rank: 1,
            decay_dim: state_dim / 2,
            conv_taps: 0,
            gated: false,
            window: None,
            state_bytes: channels * state_dim * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        StateSlot { state: vec![0.0; self.spec.channels * self.spec.state_dim], ..StateSlot::default() }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let mut u = xs.to_vec();
        hooks.pass(Point::Value, &mut u);
        let mut y = self.systems.forward(&u, &mut slot.state, hooks);
        hooks.pass(Point::Core, &mut y);
        gelu_slice(&mut y);
        let pairs = project(&self.out_proj, Some(&self.out_bias), &y);
        let width = self.out_bias.len() / 2;
        for (out, row) in out.chunks_exact_mut(width).zip(pairs.chunks_exact(2 * width)) {
            let (a, z) = row.split_at(width);
            out.iter_mut().zip(a.iter().zip(z)).for_each(|(out, (a, z))| *out = a * sigmoid(*z));
        }
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let tokens = tape.positions().len();
        let taps = self.systems.band(head, tokens);
        draw(&Lowered::Toeplitz(Toeplitz { tokens, taps: &taps, pre: constant(&[1.0]), post: constant(&[1.0]) }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let row = |point| tape.row(point, position);
        match point {
            Point::Write => {
                let Some(u) = row(Point::Value) else { return false };
                out.extend(heads.map(|c| self.systems.write_norm(c) * u[c].abs()));
            }
            Point::Read => {
                let (Some(u), Some(y)) = (row(Point::Value), row(Point::Core)) else { return false };
                out.extend(heads.map(|c| (y[c] - self.systems.skip(c) * u[c]).abs()));
            }
            _ => return self.systems.derive(point, heads, out),
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        self.systems.fold(tape.rows(Point::Value, positions).unwrap_or_default(), state);
    }
}
