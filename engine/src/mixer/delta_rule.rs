//! Gated delta rule, the linear attention of Qwen3-Next and Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464). Without a decay it is
//! DeltaNet (Yang et al. 2024, arXiv 2406.06484).
//!
//! ```text
//! [q; k; v; z], [b; a] = W u          q, k, v = silu(conv([q; k; v]))          q ← l2(q) D_k^{−1/2}, k ← l2(k)
//! β = σ(b)          α = exp(−exp(A_log) softplus(a + dt_bias))
//! S_t = α_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ          y_t = S_tᵀ q_t          per value head, S ∈ ℝ^{D_k×D_v}
//! out = W_out (w ⊙ RMS_head(y) ⊙ silu(z))
//! ```

use std::ops::Range;

use statescope_kernels::activation::{exp_slice, sigmoid_slice, silu, softplus_slice};
use statescope_kernels::delta_rule::DeltaRule;
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent};
use statescope_kernels::norm::{group_rms_norm_gated, l2_normalise, rms_norm};
use statescope_kernels::reduce::l2_norm;
use statescope_kernels::room::Room;

use super::{Mixer, StateSlot, Surroundings, columns, conv_silu, negative_exp, project, project_parts};
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::weights::Scope;
use crate::model::spec::{DeltaLayout, DeltaRuleSpec};
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Inside the root of the norm of q and k.
const L2_EPS: f32 = 1e-6;

/// Weights of one gated delta rule.
pub struct GatedDeltaRule {
    spec: DeltaRuleSpec,
    /// `[2 H_k D_k + 2 H D_v, d]`: all q, all k, all v, all z; without a gate no z.
    qkvz: Matrix,
    /// `[2H, d]`: all b, all a; what is not learned is missing.
    ba: Option<Matrix>,
    /// `[2 H_k D_k + H D_v, K]`.
    conv_weight: Vec<f32>,
    /// `[H]`, negative.
    rates: Vec<f32>,
    /// `[H]`.
    dt_bias: Vec<f32>,
    /// `[D_v]`.
    norm: Vec<f32>,
    /// `[d, H D_v]`.
    out_proj: Matrix,
}

impl GatedDeltaRule {
    pub fn load(spec: &DeltaRuleSpec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let (keys, values) = (key_width(spec), value_width(spec));
        let shared = spec.heads / spec.key_heads;
        let (dk, dv) = (spec.key_dim, shared * spec.head_dim);
        let conv =
            |name: &str, channels: usize| scope.tensor(&format!("{name}.weight"), &[channels, 1, spec.conv_taps]);
        let (qkvz, ba, conv_weight) = match spec.layout {
            DeltaLayout::ByHead => {
                let qkvz = scope.matrix("in_proj_qkvz.weight", 2 * keys + 2 * values, hidden_size)?;
                let ba = scope.matrix("in_proj_ba.weight", 2 * spec.heads, hidden_size)?;
                let qkvz = qkvz.pick_rows(&kind_by_kind(spec.key_heads, &[dk, dk, dv, dv]));
                let ba = ba.pick_rows(&kind_by_kind(spec.key_heads, &[shared, shared]));
                (qkvz, Some(ba), conv("conv1d", 2 * keys + values)?)
            }
            DeltaLayout::Separate => {
                let load = |parts: &[(&str, usize, bool)]| -> Result<Vec<Matrix>, LoadError> {
                    let wanted = parts.iter().filter(|(_, _, wanted)| *wanted);
                    wanted
                        .map(|(name, rows, _)| scope.matrix(&format!("{name}_proj.weight"), *rows, hidden_size))
                        .collect()
                };
                let qkvz =
                    load(&[("q", keys, true), ("k", keys, true), ("v", values, true), ("g", values, spec.gated)])?;
                let ba = load(&[("b", spec.heads, spec.learned_beta), ("a", spec.heads, spec.decays)])?;
                let taps = [conv("q_conv1d", keys)?, conv("k_conv1d", keys)?, conv("v_conv1d", values)?];
                (Matrix::stacked(&qkvz), (!ba.is_empty()).then(|| Matrix::stacked(&ba)), taps.concat())
            }
        };
        let (norm, out_proj) = match spec.layout {
            DeltaLayout::ByHead => ("norm.weight", "out_proj.weight"),
            DeltaLayout::Separate => ("o_norm.weight", "o_proj.weight"),
        };
        Ok(Self {
            qkvz,
            ba,
            conv_weight,
            rates: negative_exp(scope.vector_if(spec.decays, "A_log", spec.heads)?.unwrap_or_default()),
            dt_bias: scope.vector_if(spec.decays, "dt_bias", spec.heads)?.unwrap_or_default(),
            norm: scope.vector(norm, spec.head_dim)?,
            out_proj: scope.matrix(out_proj, hidden_size, values)?,
            spec: spec.clone(),
        })
    }

    /// β and the logarithm of the decay `[T, H]`.
    fn gates(&self, xs: &[f32], hooks: &mut Hooks<'_>) -> [Room; 2] {
        let spec = &self.spec;
        let len = xs.len() / self.qkvz.cols() * spec.heads;
        let ba = self.ba.as_ref().map(|ba| project(ba, None, xs)).unwrap_or_default();
        let stride = self.ba.as_ref().map_or(1, Matrix::rows);
        let mut beta = Room::full(len, 1.0);
        if spec.learned_beta {
            beta = columns(&ba, stride, 0, spec.heads);
            sigmoid_slice(&mut beta);
        }
        beta.iter_mut().for_each(|beta| *beta *= spec.beta_scale);
        hooks.pass(Point::Beta, &mut beta);
        let mut log_decay = Room::zeros(len);
        if spec.decays {
            log_decay = columns(&ba, stride, stride - spec.heads, spec.heads);
            for row in log_decay.chunks_exact_mut(spec.heads) {
                row.iter_mut().zip(&self.dt_bias).for_each(|(a, bias)| *a += bias);
            }
            softplus_slice(&mut log_decay);
            for row in log_decay.chunks_exact_mut(spec.heads) {
                row.iter_mut().zip(&self.rates).for_each(|(a, rate)| *a *= rate);
            }
        }
        hooks.pass(Point::LogDecay, &mut log_decay);
        [beta, log_decay]
    }

    fn key_head(&self, head: usize) -> usize {
        head * self.spec.key_heads / self.spec.heads
    }

    fn op<'a>(&self, q: &'a [f32], k: &'a [f32], v: &'a [f32], log_decay: &'a [f32], beta: &'a [f32]) -> DeltaRule<'a> {
        let DeltaRuleSpec { key_heads, heads, key_dim, head_dim, .. } = self.spec;
        DeltaRule { key_heads, heads, key_dim, head_dim, q, k, v, log_decay, beta }
    }
}

/// H_k D_k.
fn key_width(spec: &DeltaRuleSpec) -> usize {
    spec.key_heads * spec.key_dim
}

/// H D_v.
fn value_width(spec: &DeltaRuleSpec) -> usize {
    spec.heads * spec.head_dim
}

/// The file goes by key head, each with so many rows of every kind; here all rows of a kind stand together.
fn kind_by_kind(key_heads: usize, rows: &[usize]) -> Vec<Range<usize>> {
    let stride: usize = rows.iter().sum();
    let mut runs = Vec::with_capacity(key_heads * rows.len());
    let mut offset = 0;
    for len in rows {
        runs.extend((0..key_heads).map(|head| head * stride + offset..head * stride + offset + len));
        offset += len;
    }
    runs
}

impl Mixer for GatedDeltaRule {
    fn geometry(&self) -> Geometry {
        let spec = &self.spec;
        let state = value_width(spec) * spec.key_dim;
        let conv = (2 * key_width(spec) + value_width(spec)) * (spec.conv_taps - 1);
        Geometry {
            kind: MixerKind::DeltaRule,
            heads: spec.heads,
            head_dim: spec.head_dim,
            state_dim: spec.key_dim,
            groups: spec.key_heads,
            rank: 1,
            decay_dim: 1,
            conv_taps: spec.conv_taps,
            gated: spec.gated,
            window: None,
            state_bytes: (state + conv) * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        let spec = &self.spec;
        StateSlot {
            state: vec![0.0; value_width(spec) * spec.key_dim],
            conv: vec![0.0; (spec.conv_taps - 1) * (2 * key_width(spec) + value_width(spec))],
            ..StateSlot::default()
        }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let spec = &self.spec;
        let (keys, values) = (key_width(spec), value_width(spec));
        let (rows, conv_dim) = (xs.len() / self.qkvz.cols(), 2 * keys + values);

        let gates = if spec.gated { values } else { 0 };
        let [conv_in, mut gate] = project_parts(&self.qkvz, None, xs, [conv_dim, gates]);
        if spec.gated {
            hooks.pass(Point::Gate, &mut gate);
        }
        let [mut q, mut k, mut v] = [keys, keys, values].map(|width| Room::new(rows * width));
        if hooks.wanted() {
            hooks.show(Point::ConvIn, &columns(&conv_in, conv_dim, 2 * keys, values));
        }
        let taps = (&self.conv_weight[..], None);
        conv_silu(taps, &conv_in, &mut slot.conv, [&mut q, &mut k, &mut v], 2, hooks);
        hooks.pass(Point::Value, &mut v);
        l2_normalise(&mut q, spec.key_dim, L2_EPS, (spec.key_dim as f32).powf(-0.5));
        l2_normalise(&mut k, spec.key_dim, L2_EPS, 1.0);
        hooks.pass(Point::Key, &mut k);
        hooks.pass(Point::Query, &mut q);

        let [beta, log_decay] = self.gates(xs, hooks);
        let mut y = vec![0.0; rows * values];
        self.op(&q, &k, &v, &log_decay, &beta).forward(&mut slot.state, &mut y);
        hooks.pass(Point::Core, &mut y);
        let mut normed = vec![0.0; y.len()];
        match spec.gated {
            true => group_rms_norm_gated(&y, &gate, &self.norm, 1, spec.norm_eps, &mut normed, None),
            false => rms_norm(&y, &self.norm, spec.norm_eps, &mut normed),
        }
        linear(&self.out_proj, None, &normed, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let (n, offset) = (self.spec.key_dim, self.key_head(head) * self.spec.key_dim);
        let (log, beta) = (tape.strided(Point::LogDecay, head, 1), tape.strided(Point::Beta, head, 1));
        draw(&Lowered::Recurrent(Recurrent {
            tokens: tape.positions().len(),
            query: tape.strided(Point::Query, offset, n),
            key: tape.strided(Point::Key, offset, n),
            weight: None,
            decay: Decay::Delta { log, beta },
            diagonal: 0.0,
            bonus: None,
            normaliser: None,
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let (p, n) = (self.spec.head_dim, self.spec.key_dim);
        let row = |point| tape.row(point, position);
        match point {
            Point::Decay => {
                let Some(log) = row(Point::LogDecay) else { return false };
                let start = out.len();
                out.extend_from_slice(&log[heads]);
                exp_slice(&mut out[start..]);
            }
            Point::Write => {
                let (Some(beta), Some(k), Some(v)) = (row(Point::Beta), row(Point::Key), row(Point::Value)) else {
                    return false;
                };
                out.extend(heads.map(|head| {
                    let key = self.key_head(head);
                    beta[head] * l2_norm(&k[key * n..(key + 1) * n]) * l2_norm(&v[head * p..(head + 1) * p])
                }));
            }
            Point::Read => {
                let Some(y) = row(Point::Core) else { return false };
                out.extend(heads.map(|head| l2_norm(&y[head * p..(head + 1) * p])));
            }
            _ => return false,
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        let rows = |p| tape.rows(p, positions.clone()).unwrap_or_default();
        let (q, k, v) = (rows(Point::Query), rows(Point::Key), rows(Point::Value));
        self.op(q, k, v, rows(Point::LogDecay), rows(Point::Beta)).fold(state);
    }

    fn surroundings(&self, head: usize, channel: usize) -> Option<Surroundings<'_>> {
        let (taps, c) = (self.spec.conv_taps, 2 * key_width(&self.spec) + head * self.spec.head_dim + channel);
        Some(Surroundings { taps: &self.conv_weight[c * taps..(c + 1) * taps], bias: 0.0, activated: true })
    }

    fn output_gain(&self, tape: &LayerTape, position: usize, head: usize, channel: usize) -> f32 {
        let Some(y) = tape.row(Point::Core, position) else { return f32::NAN };
        let gate = match (self.spec.gated, tape.row(Point::Gate, position)) {
            (false, _) => 1.0,
            (true, Some(z)) => silu(z[head * self.spec.head_dim + channel]),
            (true, None) => return f32::NAN,
        };
        let p = self.spec.head_dim;
        let square: f32 = y[head * p..(head + 1) * p].iter().map(|y| y * y).sum();
        let scale = (square / p as f32 + self.spec.norm_eps).sqrt().recip();
        gate * scale * self.norm[channel]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_by_kind() {
        // Per key head: q 3, k 3, v 2, z 2.
        let rows: Vec<usize> = kind_by_kind(2, &[3, 3, 2, 2]).into_iter().flatten().collect();
        assert_eq!(rows, [0, 1, 2, 10, 11, 12, 3, 4, 5, 13, 14, 15, 6, 7, 16, 17, 8, 9, 18, 19]);
    }
}
