//! What the families have in common: the same mixers under the same keys.

use serde_json::Value;

use super::mamba::inner_width;
use super::{MAX_HEAD_DIM, elements, end_tokens, trained_context};
use crate::loader::error::ConfigError;
use crate::loader::keys::{Keys, whole_number};
use crate::loader::rope::inverse_frequencies;
use crate::model::spec::{
    AttentionSpec, GateNorm, Mamba1Spec, Mamba2Spec, MlpLayout, MlpSpec, ModelSpec, SharedExpertSpec,
};
use crate::protocol::TokenId;
use statescope_kernels::activation::Activation;

/// The activation at `key`, under any of its names.
pub fn activation(keys: Keys, key: &str, default: Activation) -> Result<Activation, ConfigError> {
    match keys.text(key)? {
        None => Ok(default),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some("relu2") => Ok(Activation::Relu2),
        Some(other) => Err(keys.unsupported(key, &other.into(), "\"silu\", \"gelu\", \"gelu_new\" or \"relu2\"")),
    }
}

/// For mixers in which SiLU is the one activation.
pub fn require_silu(keys: Keys, key: &str) -> Result<(), ConfigError> {
    match keys.text(key)? {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => Err(keys.unsupported(key, &other.into(), "\"silu\"")),
    }
}

/// `intermediate_size`, `hidden_act` and `mlp_bias` of a gated MLP.
pub fn gated_mlp(keys: Keys, hidden_size: usize, default: usize) -> Result<MlpSpec, ConfigError> {
    let mlp = MlpSpec {
        activation: activation(keys, "hidden_act", Activation::Silu)?,
        ..MlpSpec::swiglu(keys.size("intermediate_size", default)?, keys.flag("mlp_bias", false)?)
    };
    elements("the MLP", &[hidden_size, mlp.intermediate_size])?;
    Ok(mlp)
}

/// An MLP of another width, without bias.
pub fn expert(of: &MlpSpec, intermediate_size: usize, layout: MlpLayout) -> MlpSpec {
    MlpSpec { intermediate_size, layout, bias: false, ..of.clone() }
}

/// The expert that every token goes to.
pub fn shared_expert(mlp: MlpSpec, gated: bool) -> Option<SharedExpertSpec> {
    Some(SharedExpertSpec { mlp, gated })
}

/// What a layer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A state space, or another linear recurrence.
    Linear,
    Attention,
    SlidingAttention,
    /// A shared block before a state space.
    Hybrid,
    ShortConv,
    Mlp,
    Moe,
}

/// The kinds by layer, from `layers_block_type` or `layer_types` in either spelling; none where the file has neither.
pub fn layer_kinds(keys: Keys, layers: Option<usize>, allowed: &[Kind]) -> Result<Option<Vec<Kind>>, ConfigError> {
    for key in ["layers_block_type", "layer_types"] {
        let Some(list) = keys.list(key)? else { continue };
        let kind = |value: &Value| {
            let kind = match value.as_str() {
                Some("mamba" | "mamba2" | "linear_attention") => Some(Kind::Linear),
                Some("attention" | "full_attention") => Some(Kind::Attention),
                Some("sliding_attention") => Some(Kind::SlidingAttention),
                Some("hybrid") => Some(Kind::Hybrid),
                Some("conv") => Some(Kind::ShortConv),
                Some("mlp") => Some(Kind::Mlp),
                Some("moe") => Some(Kind::Moe),
                _ => None,
            };
            kind.filter(|kind| allowed.contains(kind))
                .ok_or_else(|| keys.unsupported(key, value, "a kind of layer that this `model_type` has"))
        };
        let kinds: Vec<Kind> = list.iter().map(kind).collect::<Result<_, _>>()?;
        if layers.is_some_and(|layers| layers != kinds.len()) || kinds.is_empty() {
            return Err(ConfigError::Inconsistent(format!(
                "`{key}` has {} entries, which must be as many as the {} layers of `num_hidden_layers`",
                kinds.len(),
                layers.unwrap_or(1)
            )));
        }
        return Ok(Some(kinds));
    }
    Ok(None)
}

/// The layers that a list of their numbers names.
pub fn layers_in(keys: Keys, key: &str, layers: usize) -> Result<Option<Vec<bool>>, ConfigError> {
    let Some(indices) = keys.list(key)? else { return Ok(None) };
    let mut named = vec![false; layers];
    for index in indices {
        match whole_number(index).and_then(|i| named.get_mut(usize::try_from(i).ok()?)) {
            Some(named) => *named = true,
            None => return Err(keys.invalid(key, index, &format!("layer numbers from 0 to {}", layers - 1))),
        }
    }
    Ok(Some(named))
}

/// For the families whose layers are all alike: `layer_types`, where given, must say so.
pub fn require_uniform_layers(keys: Keys, layers: usize, kind: Kind) -> Result<(), ConfigError> {
    match layer_kinds(keys, Some(layers), &[Kind::Linear, Kind::Attention])? {
        Some(kinds) if kinds.iter().any(|&found| found != kind) => Err(ConfigError::Inconsistent(
            "`layer_types` names layers that this `model_type` does not have: expected all alike".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// Every `period`-th layer, from `offset` on.
pub fn is_periodic(keys: Keys, name: &str, default: [usize; 2], layer: usize) -> Result<bool, ConfigError> {
    let period = keys.size(&format!("{name}_period"), default[0])?;
    let key = format!("{name}_offset");
    let offset = match keys.get(&key) {
        None => default[1],
        Some(value) => whole_number(value)
            .filter(|&offset| offset < period as u64)
            .ok_or_else(|| keys.invalid(&key, value, &format!("a whole number below {period}")))?
            as usize,
    };
    Ok(layer % period == offset)
}

/// Sizes that a config class assumes where the file does not say.
pub struct AttentionDefaults {
    pub heads: usize,
    /// None: as many as heads.
    pub kv_heads: Option<usize>,
    /// None: hidden size / heads.
    pub head_dim: Option<usize>,
}

/// Grouped attention without positions; `attention_bias` is of all four projections.
pub fn attention(keys: Keys, hidden_size: usize, defaults: AttentionDefaults) -> Result<AttentionSpec, ConfigError> {
    let heads = keys.size("num_attention_heads", defaults.heads)?;
    // An explicit null means as many as heads.
    let kv_heads = match keys.raw("num_key_value_heads") {
        None => defaults.kv_heads.unwrap_or(heads),
        Some(_) => keys.size("num_key_value_heads", heads)?,
    };
    let head_dim = match (keys.raw("head_dim"), defaults.head_dim) {
        (None, Some(default)) => default,
        _ => head_dim(keys, hidden_size, heads)?,
    };
    let bias = keys.flag("attention_bias", false)?;
    let spec = AttentionSpec { qkv_bias: bias, out_bias: bias, ..AttentionSpec::new(heads, kv_heads, head_dim) };
    check_attention(&spec, hidden_size)?;
    Ok(spec)
}

/// The rotary frequencies of these heads. `partial`: the family's share of a head that rotates; none where it is always the whole.
pub fn rope(
    keys: Keys,
    spec: &AttentionSpec,
    partial: Option<f64>,
    positions: usize,
) -> Result<Option<Vec<f32>>, ConfigError> {
    let positions = keys.size("max_position_embeddings", positions)?;
    inverse_frequencies(keys, spec.head_dim, partial, positions).map(Some)
}

/// Mamba-1 under the keys `mamba_…`.
pub fn mamba1(keys: Keys, hidden_size: usize) -> Result<Mamba1Spec, ConfigError> {
    let spec = Mamba1Spec {
        channels: inner_width(keys, "mamba_expand", hidden_size)?,
        state_dim: keys.size("mamba_d_state", 16)?,
        dt_rank: super::mamba::dt_rank(keys, "mamba_dt_rank", hidden_size)?,
        conv_taps: keys.size("mamba_d_conv", 4)?,
        proj_bias: keys.flag("mamba_proj_bias", false)?,
        conv_bias: keys.flag("mamba_conv_bias", true)?,
        dbc_norm: None,
        heads: None,
        in_offset: 0,
        out_norm: None,
    };
    super::mamba::check_mamba1(&spec, hidden_size)?;
    Ok(spec)
}

/// Mamba-2 under the keys `mamba_…`, of inner width `inner`.
pub fn mamba2(keys: Keys, hidden_size: usize, inner: usize, norm_eps: f32) -> Result<Mamba2Spec, ConfigError> {
    let heads = keys.size("mamba_n_heads", 128)?;
    if !inner.is_multiple_of(heads) {
        return Err(ConfigError::Inconsistent(format!(
            "`mamba_n_heads` is {heads}, which must divide the inner width {inner} of the Mamba layers"
        )));
    }
    let head_dim = match keys.get("mamba_d_head").and_then(Value::as_str) {
        Some("auto") => inner / heads,
        _ => keys.size("mamba_d_head", inner / heads)?,
    };
    let bias = keys.flag("mamba_proj_bias", false)?;
    let spec = Mamba2Spec {
        heads,
        head_dim,
        state_dim: keys.size("mamba_d_state", 256)?,
        groups: keys.size("mamba_n_groups", 1)?,
        conv_taps: keys.size("mamba_d_conv", 4)?,
        proj_bias: bias,
        out_bias: bias,
        conv_bias: keys.flag("mamba_conv_bias", true)?,
        delta_limit: keys.interval("time_step_limit")?,
        norm: GateNorm::GateFirst,
        norm_eps,
        multipliers: [1.0; 5],
    };
    check_mamba2(&spec, hidden_size, inner, ["mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state"])?;
    Ok(spec)
}

/// Fills in what every config says at its end: tying, context, end tokens. `end`: the class's default end token.
pub fn finish(mut spec: ModelSpec, keys: Keys, tied: bool, end: Option<TokenId>) -> Result<ModelSpec, ConfigError> {
    spec.tied_embeddings = keys.flag("tie_word_embeddings", tied)?;
    spec.trained_context = trained_context(keys)?;
    spec.end_tokens = end_tokens(keys, end)?;
    Ok(spec)
}

/// Checks the sizes of a Mamba-2 mixer against the inner width E = expand · hidden_size, which H · P must make. `names` are the keys
/// of heads, head dim, groups and state size, for messages.
pub fn check_mamba2(spec: &Mamba2Spec, hidden_size: usize, inner: usize, names: [&str; 4]) -> Result<(), ConfigError> {
    let [heads, head_dim, groups, state] = names;
    if spec.heads.checked_mul(spec.head_dim) != Some(inner) {
        return Err(ConfigError::Inconsistent(format!(
            "`{heads}` · `{head_dim}` is {} · {}, which must equal the inner width {inner} (expand · hidden size)",
            spec.heads, spec.head_dim
        )));
    }
    if !spec.heads.is_multiple_of(spec.groups) {
        return Err(ConfigError::Inconsistent(format!(
            "`{heads}` is {}, which must be a multiple of `{groups}`, {}",
            spec.heads, spec.groups
        )));
    }
    let group_width = elements("one of B and C", &[spec.groups, spec.state_dim])?;
    elements("in_proj", &[hidden_size, 2 * inner + 2 * group_width + spec.heads])?;
    elements(&format!("a state of `{heads}` · `{head_dim}` · `{state}`"), &[inner, spec.state_dim])?;
    Ok(())
}

/// Checks that the KV heads divide the heads and that the projections can be counted.
pub fn check_attention(spec: &AttentionSpec, hidden_size: usize) -> Result<(), ConfigError> {
    if !spec.heads.is_multiple_of(spec.kv_heads) {
        return Err(ConfigError::Inconsistent(format!(
            "`num_attention_heads` is {}, which must be a multiple of `num_key_value_heads`, {}",
            spec.heads, spec.kv_heads
        )));
    }
    elements("q_proj", &[hidden_size, spec.heads, spec.head_dim]).map(drop)
}

/// `head_dim`, or hidden_size / num_attention_heads, which must divide.
pub fn head_dim(keys: Keys, hidden_size: usize, heads: usize) -> Result<usize, ConfigError> {
    let head_dim = match keys.optional_size("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(ConfigError::Inconsistent(format!(
                "`hidden_size` is {hidden_size}, which must be a multiple of `num_attention_heads`, {heads}, as there is no `head_dim`"
            )));
        }
    };
    if head_dim <= MAX_HEAD_DIM {
        return Ok(head_dim);
    }
    Err(ConfigError::Inconsistent(format!(
        "`head_dim` is {head_dim}, more than any model: expected at most {MAX_HEAD_DIM}"
    )))
}
