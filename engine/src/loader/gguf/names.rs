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

/// The tensors of a file as a model asks for them: experts, stacked in the file, one by one, `blk.3.experts.5.ffn_up.weight`; those that
/// every token goes to as `blk.3.shared.ffn_up.weight`; a group norm as one vector.
///
/// # Errors
/// Experts that are no stack of as many matrices.
pub fn as_asked_for(tensors: Vec<Located>, experts: usize) -> Result<Vec<Located>, String> {
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
        Located { name: name(expert), stored: stack.stored, shape: vec![rows, cols], range: start..start + len }
    };
    Ok((0..count).map(one).collect())
}
