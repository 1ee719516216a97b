//! The time mixing of RWKV-5.2 (Peng et al. 2024, arXiv 2404.05892, Eagle), in the names of its Hugging Face files and of its authors' (Bo Peng's
//! `RWKV_v5_demo.py` and `rwkv` package in ChatRWKV, which are followed here).
//!
//! ```text
//! r, k, v, g = W (u_t m + u_{t−1} (1 − m))          W and m of each
//! w = exp(−exp(b)) ∈ (0, 1)          per head and key dimension, the same at every token
//! y_t = S_{t−1}ᵀ r_t + (Σ_n r_t u k_t) v_t          S_t = diag(w) S_{t−1} + k_t v_tᵀ          per head
//! out = W_o (LN_head(y) ⊙ silu(g))
//! ```
//!
//! The state is read before it is written: what a token reads of its own value is the bonus Σ r u k. Older versions are not read: 5.0 and 5.1 have one
//! decay and one u a head, 5.0 no gate. The authors' norm of y/8 with ε = 1e-5 is one of y with ε = 64e-5.

use std::ops::Range;

use statescope_kernels::activation::silu_mul;
use statescope_kernels::linear::linear;
use statescope_kernels::linear_attention::{KeyDecay, LinearAttention as Op};
use statescope_kernels::matrix::Matrix;
use statescope_kernels::mixing::{Decay, Lowered, Recurrent, Strided};

use super::rwkv4::Mixed;
use super::rwkv6::{own_reads, read_without_bonus};
use super::{Mixer, StateSlot, derive_of_keys, head_layer_norm, shifted};
use crate::hooks::Hooks;
use crate::loader::weights::Scope;
use crate::loader::{ConfigError, LoadError};
use crate::model::spec::Rwkv5Spec;
use crate::protocol::{Geometry, MixerKind, Point};
use crate::tape::LayerTape;

/// Weights of one time mixing.
pub struct Rwkv5 {
    spec: Rwkv5Spec,
    r: Mixed,
    k: Mixed,
    v: Mixed,
    g: Mixed,
    /// −e^b `[H, N]`: the logarithm of w.
    log_decay: Vec<f32>,
    /// u `[H, N]`.
    bonus: Vec<f32>,
    /// `[H N]` each.
    norm: Vec<f32>,
    norm_bias: Vec<f32>,
    output: Matrix,
}

impl Rwkv5 {
    /// # Errors
    /// [`LoadError`]; [`ConfigError::Inconsistent`] for the weights of an older version, by its name.
    pub fn load(spec: &Rwkv5Spec, hidden_size: usize, scope: &Scope<'_>) -> Result<Self, LoadError> {
        let Rwkv5Spec { heads, head_dim, .. } = *spec;
        let inner = heads * head_dim;
        if scope.shape("time_decay").is_some_and(|shape| shape.iter().product::<usize>() == heads && head_dim > 1) {
            let older = if scope.has("gate.weight") { "5.1" } else { "5.0" };
            let problem = ConfigError::Inconsistent(format!(
                "the weights are those of RWKV-{older}, with one decay a head: of RWKV-5 only version 5.2 is supported"
            ));
            return Err(LoadError::Config { file: "config.json".to_owned(), problem });
        }
        let mixed = |name: &str| Mixed::load(name, inner, hidden_size, scope);
        Ok(Self {
            r: mixed("receptance")?,
            k: mixed("key")?,
            v: mixed("value")?,
            g: mixed("gate")?,
            log_decay: super::negative_exp(scope.tensor("time_decay", &[heads, head_dim])?),
            bonus: scope.tensor("time_faaaa", &[heads, head_dim])?,
            norm: scope.vector("ln_x.weight", inner)?,
            norm_bias: scope.vector("ln_x.bias", inner)?,
            output: scope.matrix("output.weight", hidden_size, inner)?,
            spec: spec.clone(),
        })
    }

    /// `log`: of the decay `[T, H, N]`.
    fn op<'a>(&self, q: &'a [f32], k: &'a [f32], v: &'a [f32], log: &'a [f32], bonus: &'a [f32]) -> Op<'a> {
        let Rwkv5Spec { heads, head_dim, .. } = self.spec;
        let (decay, bonus) = (KeyDecay::Key(log), Some(bonus));
        Op { heads, key_dim: head_dim, head_dim, q, k, v, decay, weight: None, correction: None, bonus }
    }

    /// The logarithm of the decay at every one of so many tokens.
    fn repeated(&self, tokens: usize) -> Vec<f32> {
        self.log_decay.repeat(tokens)
    }
}

impl Mixer for Rwkv5 {
    fn geometry(&self) -> Geometry {
        let Rwkv5Spec { heads, head_dim, .. } = self.spec;
        Geometry {
            kind: MixerKind::Rwkv5,
            heads,
            head_dim,
            state_dim: head_dim,
            groups: heads,
            rank: 1,
            decay_dim: head_dim,
            conv_taps: 0,
            gated: true,
            window: None,
            state_bytes: (heads * head_dim * head_dim + self.output.rows()) * size_of::<f32>(),
            kv_bytes_per_token: 0,
        }
    }

    fn slot(&self) -> StateSlot {
        StateSlot {
            state: vec![0.0; self.norm.len() * self.spec.head_dim],
            conv: vec![0.0; self.output.rows()],
            ..StateSlot::default()
        }
    }

    fn prefill(&self, xs: &[f32], slot: &mut StateSlot, hooks: &mut Hooks<'_>, out: &mut [f32]) {
        let spec = &self.spec;
        let before = shifted(xs, &mut slot.conv);
        let [mut r, mut k, mut v, mut gate] = [&self.r, &self.k, &self.v, &self.g].map(|map| map.forward(xs, &before));
        hooks.pass(Point::Query, &mut r);
        hooks.pass(Point::Key, &mut k);
        hooks.pass(Point::Value, &mut v);
        hooks.pass(Point::Gate, &mut gate);
        let mut bonus = own_reads(&r, &k, &self.bonus, spec.head_dim);
        hooks.pass(Point::Bonus, &mut bonus);

        let mut y = vec![0.0; v.len()];
        let log = self.repeated(v.len() / self.norm.len());
        self.op(&r, &k, &v, &log, &bonus).forward(&mut slot.state, &mut y);
        hooks.pass(Point::Core, &mut y);
        let normed = head_layer_norm(&y, spec.head_dim, &self.norm, Some(&self.norm_bias), spec.norm_eps);
        silu_mul(&gate, &normed, &mut y);
        linear(&self.output, None, &y, out);
    }

    fn lower(&self, tape: &LayerTape, head: usize, draw: &mut dyn FnMut(&Lowered<'_>)) {
        let n = self.spec.head_dim;
        let keys = |point| tape.strided(point, head * n, n);
        draw(&Lowered::Recurrent(Recurrent {
            decay: Decay::Key { log: Strided { data: &self.log_decay, stride: 0, offset: head * n, width: n } },
            bonus: Some(tape.strided(Point::Bonus, head, 1)),
            ..Recurrent::new(tape.positions().len(), keys(Point::Query), keys(Point::Key))
        }));
    }

    fn derive(&self, point: Point, tape: &LayerTape, position: usize, heads: Range<usize>, out: &mut Vec<f32>) -> bool {
        let n = self.spec.head_dim;
        match point {
            Point::Decay => out.extend(self.log_decay[heads.start * n..heads.end * n].iter().map(|log| log.exp())),
            Point::Read => return read_without_bonus(tape, position, heads, n, out),
            _ => return derive_of_keys(point, tape, position, heads, [n, n], out),
        }
        true
    }

    fn fold(&self, tape: &LayerTape, positions: Range<usize>, state: &mut [f32]) {
        let rows = |point| tape.rows(point, positions.clone()).unwrap_or_default();
        let (k, v, bonus) = (rows(Point::Key), rows(Point::Value), rows(Point::Bonus));
        self.op(&[], k, v, &self.repeated(v.len() / self.norm.len()), bonus).fold(state);
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::loader::weights::Weights;

    #[test]
    fn older_versions_are_refused_by_name() {
        let spec = Rwkv5Spec { heads: 2, head_dim: 4, norm_eps: 64e-5 };
        for (names, shape, version) in [
            (&["a.time_decay"][..], vec![2], "RWKV-5.0"),
            (&["a.time_decay", "a.gate.weight"], vec![2, 1, 1], "RWKV-5.1"),
        ] {
            let numbers = [0; 8];
            let tensors =
                names.iter().map(|name| (*name, TensorView::new(Dtype::F32, shape.clone(), &numbers).unwrap()));
            let file = safetensors::serialize(tensors, None).unwrap().leak();
            let weights = Weights::embedded("model.safetensors".to_owned(), file, None).unwrap();
            let error = Rwkv5::load(&spec, 8, &weights.scope("a")).err().unwrap().to_string();
            assert!(error.contains(version) && error.contains("5.2"), "{error}");
        }
    }
}
