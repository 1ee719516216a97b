//! What a matrix, a stage, a scale and a cell are called.

use statescope_engine::protocol::{Geometry, MixerKind, Scale, Stage};

use crate::view::quantity::{exact, percent, window_words};
use crate::widget::format;

pub const STAGES: [(Stage, &str); 3] = [(Stage::Core, "core"), (Stage::Conv, "+conv"), (Stage::Gate, "+conv+gate")];
pub const SCALES: [(Scale, &str); 3] =
    [(Scale::Raw, "signed"), (Scale::RowShare, "row share"), (Scale::Contribution, "contribution")];

/// What is in the matrix, in a few words under the title.
pub fn stage_words(mixer: &Geometry, stage: Stage) -> String {
    let words = match (mixer.kind, stage) {
        (MixerKind::Attention, _) if mixer.window.is_some() => {
            return format!("softmax weights, {}", window_words(mixer));
        }
        (MixerKind::ShortConv, _) => return format!("exact, banded: {}", window_words(mixer)),
        (MixerKind::Attention, _) => "softmax weights",
        (MixerKind::FeedForward, _) => "",
        (MixerKind::DeltaRule, Stage::Core) => "exact equivalent of the delta rule",
        (MixerKind::Mamba3, _) => "exact: both parts of every write, and D, included",
        (MixerKind::Mamba3Mimo, _) => "exact: all ranks, the gates of this run and D included",
        (MixerKind::Rwkv7, _) => "exact equivalent of the corrections, without the bonus after the norm",
        (MixerKind::DeltaRule, Stage::Conv) => "exact equivalent of the delta rule, conv included",
        (MixerKind::DeltaRule, Stage::Gate) => "exact equivalent of the delta rule, conv, gate included",
        (MixerKind::Rwkv5 | MixerKind::Rwkv6, _) => "decays included, the bonus on the diagonal",
        (MixerKind::Rwkv4, _) => "exact: rows are shares of a mean",
        (MixerKind::Mlstm, _) => "exact for this text: the normaliser of each row is in it",
        (MixerKind::Slstm, _) => "exact equivalent, given the gates of this run, which see what was read before",
        (MixerKind::S4 | MixerKind::S4d, _) => "exact, the same at every token: a band for each distance, D included",
        (MixerKind::H3, _) => "exact: the kernel between the gates k̄ and q, D included",
        (MixerKind::H3Heads, _) => "exact: the kernel times q·k̄, D included; one matrix for all channels of the head",
        (MixerKind::Hyena, _) => "exact: the filters between the gates from k to q, their skips included",
        (MixerKind::RgLru, Stage::Core) => "input gate included",
        (MixerKind::RgLru, Stage::Conv) => "input gate, conv included",
        (MixerKind::RgLru, Stage::Gate) => "input gate, conv, gate included",
        (MixerKind::Mamba1 | MixerKind::Mamba2, Stage::Core) => "Δⱼ and D included",
        (MixerKind::Mamba1 | MixerKind::Mamba2, Stage::Conv) => "Δⱼ, D, conv included",
        (MixerKind::Mamba1 | MixerKind::Mamba2, Stage::Gate) => "Δⱼ, D, conv, gate included",
        (_, Stage::Core) => "decays included",
        (_, Stage::Conv) => "decays, conv included",
        (_, Stage::Gate) => "decays, conv, gate included",
    };
    words.into()
}

/// Why there is nothing beyond the core.
pub fn core_alone(kind: MixerKind) -> &'static str {
    match kind {
        MixerKind::ShortConv => "This mixer is the short convolution itself, its two gates included.",
        MixerKind::Attention => "Attention has no short convolution in front of it.",
        _ => "This mixer has no short convolution in front of it.",
    }
}

/// The formula of a cell.
pub fn formula(kind: MixerKind, stage: Stage) -> &'static str {
    match (kind, stage) {
        (MixerKind::Attention, _) => "M_ij = softmax_j(q_i·k_j / √d)",
        (MixerKind::Mamba2, Stage::Core) => "M_ij = (C_iᵀB_j) exp(A Σ_{k=j+1..i} Δ_k) Δ_j, plus D on the diagonal",
        (MixerKind::Mamba3, _) => {
            "M_ij = C_iᵀB_j Π_{s=j+1..i} α_s (λ_j Δ_j + (1 − λ_{j+1}) Δ_{j+1}), and C_iᵀB_i λ_i Δ_i + D on the diagonal; B and C turned"
        }
        (MixerKind::Mamba3Mimo, _) => {
            "M_ij = q_iᵀk_j Π_{s=j+1..i} α_s (λ_j Δ_j + (1 − λ_{j+1}) Δ_{j+1}), and q_iᵀk_i λ_i Δ_i + D Σ_ρ g^ρ_i X^ρ on the diagonal, with k = Σ_ρ X^ρ B^ρ and q = Σ_ρ g^ρ C^ρ of the channel: the gates g stand between the r reads and their sum, so they are in it"
        }
        (MixerKind::Mamba1, Stage::Core) => {
            "M_ij = Σ_n C_i[n] exp(A[n] Σ_{k=j+1..i} Δ_k) Δ_j B_j[n], plus D on the diagonal"
        }
        (MixerKind::DeltaRule, Stage::Core) => {
            "M_ij = β_j q_iᵀ [Π_{s=j+1..i} α_s (I − β_s k_s k_sᵀ)] k_j, the exact equivalent of the delta rule: a product over all tokens between, for which there is no plain kernel of i and j"
        }
        (MixerKind::ShortConv, _) => "M_ij = C_i W[K−1−(i−j)] B_j for the K newest tokens, 0 before",
        (MixerKind::Slstm, _) => {
            "M_ij = σ(õ_i) i_j Π_{s=j+1..i} f_s / n_i, on tanh(z̃_j): rows sum to σ(õ_i). The gates depend on what was read before, so there is no matrix but this one, given the gates of the run"
        }
        (MixerKind::S4, _) => "M_ij = 2 Re C Ā^{i−j} B̄, Ā diagonal less rank one; plus D on the diagonal",
        (MixerKind::S4d, _) => "M_ij = 2 Re Σ_n C[n] Ā[n]^{i−j} B̄[n], plus D on the diagonal",
        (MixerKind::H3, _) => "M_ij = q_i (2 Re Σ_n C[n] Ā[n]^{i−j} B̄[n]) k̄_j, plus q_i D k̄_i on the diagonal",
        (MixerKind::H3Heads, _) => "M_ij = q_iᵀk̄_j (2 Re Σ_n C[n] Ā[n]^{i−j} B̄[n]), plus D q_iᵀk̄_i on the diagonal",
        (MixerKind::Hyena, _) => {
            "M_ij = q_i K[i−j] k_j, K the filter with its skip β in K[0]; of an order above 2 the product diag(q) T_{O−1} diag(x) … T_1 diag(k) of such bands, drawn row by row"
        }
        (MixerKind::LinearAttention, Stage::Core) => "M_ij = q_iᵀk_j, over Σ_j of it where the model normalises",
        (MixerKind::Retention, Stage::Core) => "M_ij = γ^{i−j} q_iᵀk_j",
        (MixerKind::Gla | MixerKind::Hgrn2, Stage::Core) => "M_ij = Σ_n q_i[n] k_j[n] Π_{s=j+1..i} α_s[n]",
        (MixerKind::Rwkv4, _) => {
            "M_ij = softmax_j of k_j + (i−1−j) w, and of u + k_i on the diagonal: (1 − c_i) g_j Π_{s=j+1..i−1} (1 − g_s), c_i on the diagonal"
        }
        (MixerKind::Rwkv5, _) => "M_ij = Σ_n r_i[n] k_j[n] w[n]^{i−1−j}, Σ_n r_i u k_i on the diagonal",
        (MixerKind::Rwkv6, _) => "M_ij = Σ_n r_i[n] k_j[n] Π_{s=j+1..i−1} w_s[n], Σ_n r_i u k_i on the diagonal",
        (MixerKind::Rwkv7, _) => {
            "M_ij = r_iᵀ [Π_{s=j+1..i} (diag(w_s) − (a_s ⊙ κ_s) κ_sᵀ)] k_j, the exact equivalent of the corrections: a product over all tokens between, for which there is no plain kernel of i and j"
        }
        (MixerKind::RgLru, Stage::Core) => "M_ij = √(1 − a_j²) i_j Π_{s=j+1..i} a_s",
        (MixerKind::Mlstm, _) => {
            "M_ij = q_iᵀk_j exp(ĩ_j − m_i) Π_{s=j+1..i} σ(f̃_s), over max(|n_iᵀq_i|, e^{−m_i}), which depends on the whole row: exact for this text, not a kernel of i and j"
        }
        (MixerKind::FeedForward, _) => "",
        (MixerKind::RgLru, Stage::Conv) => "M · Conv, on the values before the short convolution",
        (MixerKind::RgLru, Stage::Gate) => "diag(gelu(z)) · M · Conv, up to the output projection",
        (_, Stage::Conv) => "M · diag(σ(v)) · Conv, on the values before the short convolution",
        (_, Stage::Gate) => "diag(silu(z) · norm) · M · diag(σ(v)) · Conv, up to the output projection",
    }
}

pub fn scale_words(scale: Scale) -> &'static str {
    match scale {
        Scale::Raw => "M_ij, signed",
        Scale::RowShare => "|M_ij| / Σ_j |M_ij|, comparable with softmax weights",
        Scale::Contribution => "‖M_ij v_j‖, what the key token contributes",
    }
}

/// What stands beside the upper end of the colours.
pub fn unit(scale: Scale) -> &'static str {
    match scale {
        Scale::Raw => "",
        Scale::RowShare => "of the row",
        Scale::Contribution => "‖M v‖",
    }
}

/// '7 tokens back'.
pub fn back(i: usize, j: usize) -> String {
    match i - j {
        0 => "itself".into(),
        n => format!("{} back", format::plural(n, "token")),
    }
}

/// What a cell says about its two tokens. `share` is the part of the row's total size.
pub fn cell_words(i: usize, j: usize, query: &str, key: &str, share: Option<f32>) -> String {
    let from = if i == j { "itself".to_owned() } else { format!("{key}, {}", back(i, j)) };
    match share {
        Some(share) => format!("{query} reads {} of its row from {from}", percent(share)),
        None => format!("{query} reads from {from}"),
    }
}

/// The whole tag of a cell.
pub fn cell_tag(scale: Scale, (i, j): (usize, usize), value: Option<f32>, words: &str) -> String {
    let name = match scale {
        Scale::Raw => format!("M[{i}, {j}]"),
        Scale::RowShare => format!("share[{i}, {j}]"),
        Scale::Contribution => format!("‖M[{i}, {j}] v‖"),
    };
    if j > i {
        return format!("token {j} comes after token {i}\nno token looks ahead: there is no such entry");
    }
    match value {
        Some(value) => format!("{name} = {}\n{words}", exact(value)),
        None => format!("{name} not known\n{words}"),
    }
}

/// 'max |M·v − y| 3e-7'.
pub fn badge(error: f32) -> String {
    format!("max |M·v − y| {}", if error == 0.0 { "0".into() } else { format!("{error:.0e}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_in_words() {
        assert_eq!(
            cell_words(12, 5, "“fox”", "“quick”", Some(0.12)),
            "“fox” reads 12 % of its row from “quick”, 7 tokens back"
        );
        assert_eq!(cell_words(3, 3, "“a”", "“a”", Some(0.5)), "“a” reads 50 % of its row from itself");
        assert_eq!(cell_words(3, 2, "“a”", "“b”", None), "“a” reads from “b”, 1 token back");
        assert_eq!(cell_tag(Scale::Raw, (12, 5), Some(-0.25), "w"), "M[12, 5] = -0.25\nw");
        assert!(cell_tag(Scale::Raw, (2, 5), None, "").contains("no token looks ahead"));
        assert_eq!(badge(3.2e-7), "max |M·v − y| 3e-7");
    }
}
