//! `zamba` and `zamba2`: a Mamba backbone in which a few layers first consult a transformer block that is stored once or twice and used
//! again and again.

use statescope_kernels::activation::Activation;

use super::mamba::inner_width;
use super::parts::{
    Kind, activation, check_attention, check_mamba2, finish, is_periodic, layer_kinds, mamba1, require_silu, rope,
};
use super::{elements, layer_count};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{
    AttentionSpec, GateNorm, LayerSpec, Mamba1Spec, Mamba2Spec, MixerSpec, MlpLayout, MlpSpec, ModelSpec, NormSpec,
    SharedSpec,
};

/// As `ZambaConfig` reads it: Mamba-1 whose channels fall into heads, one shared block.
pub fn zamba(keys: Keys) -> Result<ModelSpec, ConfigError> {
    require_silu(keys, "hidden_mamba_act")?;
    let hidden_size = keys.size("hidden_size", 3712)?;
    let layers = layer_count(keys, "num_hidden_layers", 76)?;
    let kinds = match layer_kinds(keys, Some(layers), &[Kind::Linear, Kind::Hybrid])? {
        Some(kinds) => kinds,
        None => zamba_kinds(keys, layers)?,
    };
    let heads = keys.size("n_mamba_heads", 2)?;
    let mamba = Mamba1Spec { heads: Some(heads), ..mamba1(keys, hidden_size)? };
    if !mamba.channels.is_multiple_of(heads) {
        return Err(ConfigError::Inconsistent(format!(
            "`n_mamba_heads` is {heads}, which must divide the inner width {}",
            mamba.channels
        )));
    }
    let shared = SharedSpec {
        stored_at: 0,
        attention: shared_attention(keys, hidden_size, 16, Some(16))?,
        mlp: shared_mlp(keys, hidden_size, 14_848, MlpLayout::Gated)?,
        usage: 0,
        attention_rank: None,
        mlp_rank: None,
    };
    let layers = with_shared(&kinds, &MixerSpec::Mamba1(mamba), &shared, 1);
    let norm = NormSpec::rms(keys.epsilon("rms_norm_eps", 1e-5)?);
    finish(ModelSpec::new("zamba", keys.size("vocab_size", 32_000)?, hidden_size, norm, layers), keys, true, Some(2))
}

/// As `Zamba2Config` reads it: Mamba-2, several shared blocks in turn, low-rank adapters for each use.
pub fn zamba2(keys: Keys) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size", 2560)?;
    let layers = layer_count(keys, "num_hidden_layers", 54)?;
    let kinds = match layer_kinds(keys, Some(layers), &[Kind::Linear, Kind::Hybrid])? {
        Some(kinds) => kinds,
        None => zamba2_kinds(layers)?,
    };
    let bias = keys.flag("add_bias_linear", false)?;
    let rank = keys.size("adapter_rank", 128)?;
    let attention = shared_attention(keys, hidden_size, 32, None)?;
    let attention_rank = keys.flag("use_shared_attention_adapter", false)?.then_some(rank);
    if attention_rank.is_some() && attention.kv_heads != attention.heads {
        return Err(ConfigError::Inconsistent(
            "`use_shared_attention_adapter` needs `num_key_value_heads` to equal `num_attention_heads`".to_owned(),
        ));
    }
    let rope = if keys.flag("use_mem_rope", false)? { rope(keys, &attention, None, 4096)? } else { None };
    let shared = SharedSpec {
        stored_at: 0,
        attention: AttentionSpec { rope, ..attention },
        mlp: MlpSpec { bias, ..shared_mlp(keys, hidden_size, 4 * hidden_size, MlpLayout::FusedGate)? },
        usage: 0,
        attention_rank,
        mlp_rank: Some(rank),
    };
    let mixer = MixerSpec::Mamba2(zamba2_mamba(keys, hidden_size, bias)?);
    let layers = with_shared(&kinds, &mixer, &shared, keys.size("num_mem_blocks", 1)?);
    let norm = NormSpec::rms(keys.epsilon("rms_norm_eps", 1e-5)?);
    finish(ModelSpec::new("zamba2", keys.size("vocab_size", 32_000)?, hidden_size, norm, layers), keys, true, Some(2))
}

fn zamba2_mamba(keys: Keys, hidden_size: usize, bias: bool) -> Result<Mamba2Spec, ConfigError> {
    let inner = inner_width(keys, "mamba_expand", hidden_size)?;
    let heads = keys.size("n_mamba_heads", 8)?;
    let spec = Mamba2Spec {
        heads,
        head_dim: inner / heads,
        state_dim: keys.size("mamba_d_state", 64)?,
        groups: keys.size("mamba_ngroups", 1)?,
        conv_taps: keys.size("mamba_d_conv", 4)?,
        proj_bias: bias,
        out_bias: bias,
        conv_bias: true,
        // The class has no limit of its own and takes the least step of the initialisation.
        delta_limit: (keys.factor("time_step_min", 1e-3)?, f32::INFINITY),
        norm: GateNorm::GateFirst,
        norm_eps: 1e-5,
        multipliers: [1.0; 5],
    };
    check_mamba2(&spec, hidden_size, inner, ["n_mamba_heads", "mamba_headdim", "mamba_ngroups", "mamba_d_state"])?;
    Ok(spec)
}

/// Over `[x; x₀]`, scaled by (head_dim / 2)^{−1/2}.
fn shared_attention(
    keys: Keys,
    hidden_size: usize,
    default_heads: usize,
    default_kv_heads: Option<usize>,
) -> Result<AttentionSpec, ConfigError> {
    let heads = keys.size("num_attention_heads", default_heads)?;
    let kv_heads = match keys.raw("num_key_value_heads") {
        None => default_kv_heads.unwrap_or(heads),
        Some(_) => keys.size("num_key_value_heads", heads)?,
    };
    let head_dim = keys.size("attention_head_dim", (2 * hidden_size / heads).max(1))?;
    if let Some(width) = keys.optional_size("attention_hidden_size")?.filter(|&width| width != 2 * hidden_size) {
        return Err(keys.unsupported("attention_hidden_size", &width.into(), "twice `hidden_size`"));
    }
    let scale = (head_dim as f64 / 2.0).powf(-0.5) as f32;
    let spec = AttentionSpec { scale, ..AttentionSpec::new(heads, kv_heads, head_dim) };
    check_attention(&spec, 2 * hidden_size)?;
    Ok(spec)
}

fn shared_mlp(keys: Keys, hidden_size: usize, default: usize, layout: MlpLayout) -> Result<MlpSpec, ConfigError> {
    let mlp = MlpSpec {
        activation: activation(keys, "hidden_act", Activation::Gelu)?,
        layout,
        ..MlpSpec::swiglu(keys.size("intermediate_size", default)?, false)
    };
    elements("the MLP", &[hidden_size, 2 * mlp.intermediate_size])?;
    Ok(mlp)
}

/// Use j of the shared blocks is of block j mod `blocks`, which is stored where it is used first.
fn with_shared(kinds: &[Kind], mixer: &MixerSpec, shared: &SharedSpec, blocks: usize) -> Vec<LayerSpec> {
    let hybrid: Vec<usize> = (0..kinds.len()).filter(|&layer| kinds[layer] == Kind::Hybrid).collect();
    let layer = |index: usize| {
        let usage = hybrid.iter().position(|&layer| layer == index);
        let shared = usage.map(|usage| SharedSpec { stored_at: hybrid[usage % blocks], usage, ..shared.clone() });
        LayerSpec { shared, ..LayerSpec::new(mixer.clone(), None) }
    };
    (0..kinds.len()).map(layer).collect()
}

/// Two plain layers, a hybrid one, then a hybrid one in every period.
fn zamba_kinds(keys: Keys, layers: usize) -> Result<Vec<Kind>, ConfigError> {
    let kind = |index: usize| {
        let hybrid = match index {
            0 | 1 => false,
            2 => true,
            _ => is_periodic(keys, "attn_layer", [6, 4], index - 3)?,
        };
        Ok(if hybrid { Kind::Hybrid } else { Kind::Linear })
    };
    (0..layers).map(kind).collect()
}

/// The published order of 54 layers.
fn zamba2_kinds(layers: usize) -> Result<Vec<Kind>, ConfigError> {
    let hybrid = [6, 12, 18, 24, 30, 36, 42, 47, 51];
    if layers != 54 {
        return Err(ConfigError::Inconsistent(format!(
            "`layers_block_type` is missing, which is only known for 54 layers, not for {layers}"
        )));
    }
    Ok((0..layers).map(|layer| if hybrid.contains(&layer) { Kind::Hybrid } else { Kind::Linear }).collect())
}
