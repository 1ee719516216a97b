//! `nemotron_h` (Nemotron-H, Nemotron 3): one thing a layer: Mamba-2, attention, an MLP or experts.

use statescope_kernels::activation::Activation;

use super::parts::{
    AttentionDefaults, Kind, activation, attention, check_mamba2, expert, finish, layer_kinds, require_silu,
    shared_expert,
};
use super::{MAX_LAYERS, elements};
use crate::loader::error::ConfigError;
use crate::loader::keys::Keys;
use crate::model::spec::{
    AttentionSpec, ExpertStorage, FeedForwardSpec, GateNorm, LayerSpec, Mamba2Spec, MixerSpec, MlpLayout, MlpSpec,
    ModelSpec, MoeSpec, NormSpec, RouterSpec,
};

/// As `NemotronHConfig` reads it.
pub fn nemotron(keys: Keys) -> Result<ModelSpec, ConfigError> {
    require_silu(keys, "mamba_hidden_act")?;
    let hidden_size = keys.size("hidden_size", 4096)?;
    let eps = keys.epsilon("layer_norm_epsilon", 1e-5)?;
    let mlp = MlpSpec {
        activation: activation(keys, "mlp_hidden_act", Activation::Relu2)?,
        layout: MlpLayout::Plain,
        ..MlpSpec::swiglu(keys.size("intermediate_size", 21_504)?, keys.flag("mlp_bias", false)?)
    };
    elements("the MLP", &[hidden_size, mlp.intermediate_size])?;
    // Prediction of several tokens at once takes no part in ordinary generation; experts matter to the layers that have them.
    for key in ["num_nextn_predict_layers", "n_routed_experts", "num_local_experts", "moe_latent_size"] {
        keys.get(key);
    }
    let layer = |kind: Kind| -> Result<LayerSpec, ConfigError> {
        // Old files have the head's width under a longer name too.
        let head_dim = Some(keys.size("attention_head_dim", 128)?);
        let defaults = AttentionDefaults { heads: 32, kv_heads: Some(8), head_dim };
        Ok(match kind {
            Kind::Linear => LayerSpec::new(MixerSpec::Mamba2(mamba(keys, hidden_size, eps)?), None),
            Kind::Mlp => LayerSpec::feed_forward(FeedForwardSpec::Mlp(mlp.clone())),
            Kind::Moe => LayerSpec::feed_forward(FeedForwardSpec::Moe(moe(keys, hidden_size, &mlp)?)),
            // The class builds its attention without biases, whatever `attention_bias` says.
            _ => {
                let (qkv_bias, out_bias) = (false, false);
                let spec = AttentionSpec { qkv_bias, out_bias, ..attention(keys, hidden_size, defaults)? };
                LayerSpec::new(MixerSpec::Attention(spec), None)
            }
        })
    };
    let layers = kinds(keys)?.into_iter().map(layer).collect::<Result<_, _>>()?;
    let vocab_size = keys.size("vocab_size", 131_072)?;
    finish(ModelSpec::new("nemotron_h", vocab_size, hidden_size, NormSpec::rms(eps), layers), keys, false, Some(2))
}

/// The list of kinds, or the older pattern of letters; the number of layers follows from it.
fn kinds(keys: Keys) -> Result<Vec<Kind>, ConfigError> {
    let allowed = [Kind::Linear, Kind::Attention, Kind::Mlp, Kind::Moe];
    if let Some(kinds) = layer_kinds(keys, None, &allowed)? {
        return Ok(kinds);
    }
    let key = "hybrid_override_pattern";
    let Some(pattern) = keys.text(key)? else { return Ok(vec![Kind::Linear, Kind::Moe, Kind::Attention, Kind::Mlp]) };
    let kind = |letter: char| match letter {
        'M' => Some(Kind::Linear),
        '*' => Some(Kind::Attention),
        '-' => Some(Kind::Mlp),
        'E' => Some(Kind::Moe),
        _ => None,
    };
    let kinds: Option<Vec<Kind>> = pattern.chars().map(kind).collect();
    kinds
        .filter(|kinds| (1..=MAX_LAYERS).contains(&kinds.len()))
        .ok_or_else(|| keys.invalid(key, &pattern.into(), "the letters M, *, - and E, one a layer"))
}

/// The key, or the older spelling of it.
fn either<'a>(keys: Keys, new: &'a str, old: &'a str) -> &'a str {
    if keys.get(old).is_some() { old } else { new }
}

fn mamba(keys: Keys, hidden_size: usize, eps: f32) -> Result<Mamba2Spec, ConfigError> {
    let bias = keys.flag("use_bias", false)?;
    let spec = Mamba2Spec {
        heads: keys.size("mamba_num_heads", 128)?,
        head_dim: keys.size("mamba_head_dim", 64)?,
        state_dim: keys.size("ssm_state_size", 128)?,
        groups: keys.size(either(keys, "n_groups", "mamba_n_groups"), 8)?,
        conv_taps: keys.size(either(keys, "conv_kernel", "mamba_d_conv"), 4)?,
        proj_bias: bias,
        out_bias: bias,
        conv_bias: keys.flag(either(keys, "use_conv_bias", "mamba_conv_bias"), true)?,
        delta_limit: keys.interval(either(keys, "time_step_limit", "mamba_dt_limit"))?,
        norm: GateNorm::GateFirst,
        norm_eps: eps,
        multipliers: [1.0; 5],
    };
    let inner = elements("the inner width", &[spec.heads, spec.head_dim])?;
    check_mamba2(&spec, hidden_size, inner, ["mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size"])?;
    Ok(spec)
}

fn moe(keys: Keys, hidden_size: usize, mlp: &MlpSpec) -> Result<MoeSpec, ConfigError> {
    let experts = keys.size(either(keys, "n_routed_experts", "num_local_experts"), 8)?;
    let width = keys.size("moe_intermediate_size", 7688)?;
    elements("the experts", &[experts, hidden_size, width])?;
    let groups = keys.size("n_group", 1)?;
    let chosen_groups = keys.size("topk_group", 1)?;
    if !experts.is_multiple_of(groups) || chosen_groups > groups {
        return Err(ConfigError::Inconsistent(format!(
            "`n_group` is {groups}, which must divide the {experts} experts and be at least `topk_group`, {chosen_groups}"
        )));
    }
    let shared = MlpSpec {
        intermediate_size: keys.size("moe_shared_expert_intermediate_size", 7688)?,
        layout: MlpLayout::Plain,
        ..mlp.clone()
    };
    if mlp.bias {
        return Err(keys.unsupported("mlp_bias", &true.into(), "false beside experts"));
    }
    Ok(MoeSpec {
        experts,
        chosen: keys.size("num_experts_per_tok", 2)?.min(experts),
        router: RouterSpec::Sigmoid {
            groups,
            chosen_groups,
            renormalise: keys.flag("norm_topk_prob", true)?,
            scale: keys.factor("routed_scaling_factor", 1.0)?,
        },
        expert: expert(mlp, width, MlpLayout::Plain),
        storage: ExpertStorage::Each,
        shared: shared_expert(shared, false),
        latent_size: keys.optional_size("moe_latent_size")?,
    })
}
