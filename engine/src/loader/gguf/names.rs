//! llama.cpp's names of tensors, as a name map: the same parts of a layer under the same names in every architecture.

use crate::loader::names::{LLAMA, Names};
use crate::loader::weights::Located;

/// All architectures.
pub const GGUF: Names = Names {
    embeddings: "token_embd.weight",
    final_norm: "output_norm",
    head: "output.weight",
    layers: "blk",
    mixer_norm: "attn_norm",
    mlp_norm: "ffn_norm",
    mamba: "",
    attention: "",
    mlp: "",
    moe: "",
    shared_expert: "shared",
    renames: &[
        ("in_proj", "ssm_in"),
        ("conv1d", "ssm_conv1d"),
        ("x_proj", "ssm_x"),
        ("dt_proj", "ssm_dt"),
        ("dt_bias", "ssm_dt.bias"),
        ("A_log", "ssm_a"),
        ("D", "ssm_d"),
        ("norm", "ssm_norm"),
        ("out_proj", "ssm_out"),
        ("dt_layernorm", "ssm_dt_norm"),
        ("b_layernorm", "ssm_b_norm"),
        ("c_layernorm", "ssm_c_norm"),
        ("q_proj", "attn_q"),
        ("k_proj", "attn_k"),
        ("v_proj", "attn_v"),
        ("o_proj", "attn_output"),
        ("q_norm", "attn_q_norm"),
        ("k_norm", "attn_k_norm"),
        ("gate_proj", "ffn_gate"),
        ("up_proj", "ffn_up"),
        ("down_proj", "ffn_down"),
        ("router.e_score_correction_bias", "exp_probs_b.bias"),
        ("router", "ffn_gate_inp"),
        ("fc1_latent_proj", "ffn_latent_down"),
        ("fc2_latent_proj", "ffn_latent_up"),
    ],
    holds_rates: true,
    ..LLAMA
};

/// Nemotron-H: one norm a layer.
pub const ONE_NORM: Names = Names { mlp_norm: "attn_norm", ..GGUF };

/// What RWKV-6 and RWKV-7 have in common: time mixing under `time_mix.`, channel mixing under `channel_mix.`, as
/// [`as_asked_for`] puts them.
const RWKV: Names = Names {
    embedding_norm: "token_embd_norm",
    mlp_norm: "attn_norm_2",
    recurrence: "time_mix",
    mlp: "channel_mix",
    holds_rates: false,
    ..GGUF
};

pub const RWKV6: Names = Names {
    renames: &[
        ("time_maa_x", "lerp_x.weight"),
        ("time_maa_w", "lerp_w.weight"),
        ("time_maa_k", "lerp_k.weight"),
        ("time_maa_v", "lerp_v.weight"),
        ("time_maa_r", "lerp_r.weight"),
        ("time_maa_g", "lerp_g.weight"),
        ("time_maa_w1", "w1.weight"),
        ("time_maa_w2", "w2.weight"),
        ("time_decay", "decay.weight"),
        ("time_decay_w1", "decay_w1.weight"),
        ("time_decay_w2", "decay_w2.weight"),
        ("bonus", "first.weight"),
        ("r_proj.linear", "receptance"),
        ("k_proj.linear", "key"),
        ("v_proj.linear", "value"),
        ("g_proj.linear", "gate"),
        ("o_proj", "output"),
        ("g_norm", "ln"),
        ("key.mu", "lerp_k.weight"),
        ("receptance.mu", "lerp_r.weight"),
        ("key.linear", "key"),
        ("receptance.linear", "receptance"),
    ],
    ..RWKV
};

pub const RWKV7: Names = Names {
    renames: &[
        ("x_r", "lerp_r.weight"),
        ("x_w", "lerp_w.weight"),
        ("x_k", "lerp_k.weight"),
        ("x_v", "lerp_v.weight"),
        ("x_a", "lerp_a.weight"),
        ("x_g", "lerp_g.weight"),
        ("r_proj", "receptance"),
        ("k_proj", "key"),
        ("v_proj", "value"),
        ("o_proj", "output"),
        ("w_lora.lora.0", "w1"),
        ("w_lora.lora.2.weight", "w2.weight"),
        ("w_lora.lora.2.bias", "w0.weight"),
        ("a_lora.lora.0", "a1"),
        ("a_lora.lora.2.weight", "a2.weight"),
        ("a_lora.lora.2.bias", "a0.weight"),
        ("v_lora.lora.0", "v1"),
        ("v_lora.lora.2.weight", "v2.weight"),
        ("v_lora.lora.2.bias", "v0.weight"),
        ("g_lora.lora.0", "g1"),
        ("g_lora.lora.2", "g2"),
        ("k_k", "k_k.weight"),
        ("k_a", "k_a.weight"),
        ("r_k", "r_k.weight"),
        ("g_norm", "ln"),
    ],
    ..RWKV
};

/// The tensors of a file as a model asks for them: experts, stacked in the file, one by one, `blk.3.experts.5.ffn_up.weight`; those that
/// every token goes to as `blk.3.shared.ffn_up.weight`; a group norm as one vector; what RWKV fuses or flattens apart, heads of
/// `head_dim`.
///
/// # Errors
/// Experts that are no stack of as many matrices.
pub fn as_asked_for(tensors: Vec<Located>, experts: usize, head_dim: usize) -> Result<Vec<Located>, String> {
    let mut asked = Vec::with_capacity(tensors.len());
    for mut tensor in tensors {
        let Some((layer, part)) = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            asked.push(tensor);
            continue;
        };
        let within = |part: &str, of: &str| format!("blk.{layer}.{of}.{part}.weight");
        if let Some(part) = part.strip_suffix("_shexp.weight") {
            tensor.name = within(part, "shared");
        } else if let Some(part) = part.strip_suffix("_exps.weight") {
            asked.extend(each(&tensor, experts, |expert| within(part, &format!("experts.{expert}")))?);
            continue;
        } else if let Some(part) = part.strip_prefix("channel_mix_") {
            tensor.name = format!("blk.{layer}.channel_mix.{part}");
        } else if let Some(part) = part.strip_prefix("time_mix_") {
            match part {
                "lerp_fused.weight" => asked.extend(shares(&tensor, layer)?),
                // The first layer mixes no values in: these are copies that llama.cpp wants to find and does not read.
                "v0.weight" | "v1.weight" | "v2.weight" if layer == "0" => {}
                _ => {
                    let name = format!("blk.{layer}.time_mix.{part}");
                    if let (&[width], "r_k.weight") = (&tensor.shape[..], part)
                        && width % head_dim.max(1) == 0
                    {
                        tensor.shape = vec![width / head_dim.max(1), head_dim];
                    }
                    tensor.name = name;
                    asked.push(tensor);
                }
            }
            continue;
        } else if part == "ffn_norm" {
            // As Falcon-H1's files have it.
            tensor.name.push_str(".weight");
        } else if part == "ssm_norm.weight" {
            tensor.shape = vec![tensor.shape.iter().product()];
        }
        asked.push(tensor);
    }
    Ok(asked)
}

/// The token shift's shares, which are stored one after the other: five of w, k, v, r, g (RWKV-6), or six of r, w, k, v, a, g (RWKV-7).
fn shares(fused: &Located, layer: &str) -> Result<Vec<Located>, String> {
    let (count, width) = (fused.shape.first().copied().unwrap_or(0), fused.shape.last().copied().unwrap_or(0));
    let order: &[&str] = match count {
        5 => &["w", "k", "v", "r", "g"],
        6 => &["r", "w", "k", "v", "a", "g"],
        _ => return Err(format!("tensor {} has shape {:?}, expected 5 or 6 rows", fused.name, fused.shape)),
    };
    let len = fused.range.len() / count;
    let one = |(index, name): (usize, &&str)| {
        let start = fused.range.start + index * len;
        let name = format!("blk.{layer}.time_mix.lerp_{name}.weight");
        Located { name, shape: vec![width], range: start..start + len, ..*fused }
    };
    Ok(order.iter().enumerate().map(one).collect())
}

/// The matrices of a stack.
fn each(stack: &Located, experts: usize, name: impl Fn(usize) -> String) -> Result<Vec<Located>, String> {
    let [count, rows, cols] = stack.shape[..] else {
        return Err(format!("tensor {} has shape {:?}, expected a stack of matrices", stack.name, stack.shape));
    };
    if count != experts || count == 0 {
        return Err(format!("tensor {} holds {count} experts, but its metadata says {experts}", stack.name));
    }
    let len = stack.range.len() / count;
    let one = |expert: usize| {
        let start = stack.range.start + expert * len;
        Located { name: name(expert), shape: vec![rows, cols], range: start..start + len, ..*stack }
    };
    Ok((0..count).map(one).collect())
}
