//! The update equation of one mixer with one step's numbers filled in, as lines of text.

mod mamba;
mod rwkv;
mod time_invariant;

use statescope_engine::protocol::{FeedForwardInfo, MixerKind};

use crate::view::quantity::{half_life, percent, short, spread_of, tokens_words};
use crate::widget::format;
use mamba::{mamba1, mamba2, mamba3, mamba3_mimo};
use rwkv::{rwkv4, rwkv567};
use time_invariant::{h3, h3_heads, hyena, s4};

/// What one head did at one token; what is not known yet is None.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    pub kind: Option<MixerKind>,
    pub token: usize,
    pub delta: Option<f32>,
    /// One factor, or N of them for Mamba-1; empty while unknown and for attention.
    pub decay: Vec<f32>,
    /// Share β that the delta rule replaces.
    pub beta: Option<f32>,
    /// Input gate of RWKV-4, RG-LRU and mLSTM.
    pub input: Option<f32>,
    /// The further numbers that the kind alone has, in the order of its facts.
    pub own: Vec<Option<f32>>,
    /// ‖B‖ or ‖k‖; of a short convolution B itself.
    pub key: Option<f32>,
    /// ‖C‖ or ‖q‖; of a short convolution C itself.
    pub query: Option<f32>,
    /// ‖x‖ or ‖v‖; of a short convolution x itself.
    pub value: Option<f32>,
    /// Of a short convolution: how far back, the input B x of then, and the weight it has.
    pub taps: Vec<(usize, Option<f32>, Option<f32>)>,
    pub write: Option<f32>,
    pub read: Option<f32>,
    pub state_before: Option<f32>,
    pub state_after: Option<f32>,
    /// ‖z‖ of the output gate before its activation.
    pub gate: Option<f32>,
    /// ‖o‖ that is added to the residual stream.
    pub out: Option<f32>,
    /// ‖y‖, skip included; of a short convolution y itself.
    pub core: Option<f32>,
    /// Bits of the softmax row.
    pub entropy: Option<f32>,
    /// Width of a key, for 1/√d.
    pub key_width: usize,
    /// Filters of a Hyena.
    pub filters: usize,
    /// Tokens in sight.
    pub window: Option<usize>,
    pub feed_forward: Option<FeedForwardInfo>,
}

impl Step {
    /// A = ln(decay)/Δ of a scalar decay, which the model stores as −exp(A_log).
    pub fn a(&self) -> Option<f32> {
        match (&self.decay[..], self.delta) {
            (&[decay], Some(delta)) if delta > 0.0 && decay > 0.0 => {
                Some((f64::from(decay).ln() / f64::from(delta)) as f32)
            }
            _ => None,
        }
    }

    /// What the write is in size beside what was kept: write / (decay · ‖S_{t−1}‖). Needs a scalar decay.
    pub fn novelty(&self) -> Option<f32> {
        let (&[decay], Some(before), Some(write)) = (&self.decay[..], self.state_before, self.write) else {
            return None;
        };
        let kept = decay * before;
        (kept > 0.0).then(|| write / kept)
    }
}

/// The equation, top to bottom.
pub fn lines(step: &Step) -> Vec<String> {
    match step.kind {
        None => Vec::new(),
        Some(MixerKind::Mamba2) => mamba2(step),
        Some(MixerKind::Mamba1) => mamba1(step),
        Some(MixerKind::Mamba3) => mamba3(step),
        Some(MixerKind::Mamba3Mimo) => mamba3_mimo(step),
        Some(MixerKind::DeltaRule) => delta_rule(step),
        Some(MixerKind::LinearAttention | MixerKind::Retention | MixerKind::Gla | MixerKind::Hgrn2) => {
            linear_attention(step)
        }
        Some(MixerKind::Rwkv4) => rwkv4(step),
        Some(MixerKind::Rwkv5 | MixerKind::Rwkv6 | MixerKind::Rwkv7) => rwkv567(step),
        Some(MixerKind::RgLru) => rg_lru(step),
        Some(MixerKind::Mlstm) => mlstm(step),
        Some(MixerKind::Slstm) => slstm(step),
        Some(MixerKind::S4 | MixerKind::S4d) => s4(step),
        Some(MixerKind::H3) => h3(step),
        Some(MixerKind::H3Heads) => h3_heads(step),
        Some(MixerKind::Hyena) => hyena(step),
        Some(MixerKind::ShortConv) => short_conv(step),
        Some(MixerKind::Attention) => attention(step),
        Some(MixerKind::FeedForward) => feed_forward(step),
    }
}

fn attention(step: &Step) -> Vec<String> {
    let at = sub(step.token);
    let first = step.window.map_or(0, |window| (step.token + 1).saturating_sub(window));
    let mut lines = vec![
        format!("p{at}ⱼ = softmaxⱼ(q{at}·kⱼ / √{})", step.key_width),
        format!("  over j = {first} … {}, {} bits", step.token, show(step.entropy)),
        format!("y{at} = Σⱼ p{at}ⱼ vⱼ,  ‖y‖ = {}", show(step.core.or(step.read))),
        format!("cache + (k{at}, v{at})"),
        format!("  ‖k‖ = {}, ‖v‖ = {}", show(step.key), show(step.value)),
    ];
    if step.gate.is_some() {
        lines.push(format!("out = W (σ(z{at}) ⊙ y{at}), ‖z‖ = {}", show(step.gate)));
    }
    lines.push(match step.window {
        Some(window) => format!("sliding window: sees {window} tokens"),
        None => "nothing is forgotten".into(),
    });
    lines
}

fn delta_rule(step: &Step) -> Vec<String> {
    let at = sub(step.token);
    let before = before(step.token);
    let alpha = step.decay.first().copied();
    let mut lines = vec![
        format!("α = exp(−exp(A_log) Δ) = {}", show(alpha)),
        format!("β = σ(b{at}) = {}", show(step.beta)),
        "S ← α(I − βkkᵀ)S + βkvᵀ".to_owned(),
        format!("S{at} = {}·(I − {}·k{at}k{at}ᵀ)S{before}", show(alpha), show(step.beta)),
        format!("  + {}·k{at}v{at}ᵀ", show(step.beta)),
        "write = β·‖k‖·‖v‖".to_owned(),
        format!("  = {} · {} · {} = {}", show(step.beta), show(step.key), show(step.value), show(step.write)),
        format!("  ‖S‖ {} → {}", show(step.state_before), show(step.state_after)),
        format!("y{at} = S{at}ᵀq{at},  ‖y‖ = {}", show(step.core.or(step.read))),
    ];
    if let Some(beta) = step.beta {
        lines.push(format!("{} of what k{at} held is replaced", percent(beta)));
    }
    if let Some(tokens) = alpha.and_then(half_life) {
        lines.push("half-life of the rest, by α alone".into());
        lines.push(format!("  = {}", tokens_words(tokens)));
    }
    lines
}

fn linear_attention(step: &Step) -> Vec<String> {
    let (at, before) = (sub(step.token), before(step.token));
    let mut lines = match step.kind {
        Some(MixerKind::Retention) => {
            vec![format!("γ = {}", show(step.decay.first().copied())), format!("S{at} = γ S{before} + v{at}k{at}ᵀ")]
        }
        Some(MixerKind::Gla) => vec![format!("S{at} = S{before} diag(α{at}) + v{at}k{at}ᵀ")],
        Some(MixerKind::Hgrn2) => {
            vec![format!("S{at} = S{before} diag(α{at}) + v{at}k{at}ᵀ"), format!("k{at} = 1 − α{at}")]
        }
        _ => vec![format!("S{at} = S{before} + v{at}k{at}ᵀ")],
    };
    let life = |retention: f32| half_life(retention).map_or_else(|| "?".into(), tokens_words);
    match (step.kind, spread_of(&step.decay)) {
        (Some(MixerKind::Retention), Some([gamma, ..])) => lines.push(format!("  half-life {}", life(gamma))),
        (_, Some([low, middle, high])) => {
            lines.push(format!("  slowest {}, {}", short(high), life(high)));
            lines.push(format!("  median  {}, {}", short(middle), life(middle)));
            lines.push(format!("  fastest {}, {}", short(low), life(low)));
        }
        _ => lines.push("  nothing is forgotten".to_owned()),
    }
    lines.push("write = ‖k‖·‖v‖".to_owned());
    lines.push(format!("  = {} · {} = {}", show(step.key), show(step.value), show(step.write)));
    lines.push(format!("  ‖S‖ {} → {}", show(step.state_before), show(step.state_after)));
    lines.push(format!("y{at} = S{at}q{at},  ‖y‖ = {}", show(step.core.or(step.read))));
    lines
}

fn rg_lru(step: &Step) -> Vec<String> {
    let (at, before) = (sub(step.token), before(step.token));
    let a = step.decay.first().copied();
    let mut lines = vec![
        "a = exp(−8 r softplus(Λ))".to_owned(),
        format!("  r = {}, a = {}", show(step.own.first().copied().flatten()), show(a)),
        format!("h{at} = a h{before} + √(1−a²) i x{at}"),
        format!("  i = {}, |x| = {}", show(step.input), show(step.value)),
        format!("  √(1−a²) i = {}", show(step.key)),
        format!("  |h| {} → {}", show(step.state_before), show(step.state_after)),
        format!("out = W (h{at} ⊙ gelu(z{at}))"),
    ];
    if let Some(tokens) = a.and_then(half_life) {
        lines.push(format!("half-life {}", tokens_words(tokens)));
    }
    lines
}

fn mlstm(step: &Step) -> Vec<String> {
    let (at, before) = (sub(step.token), before(step.token));
    let own = |index: usize| show(step.own.get(index).copied().flatten());
    vec![
        format!("C{at} = f C{before} + i v{at}k{at}ᵀ"),
        format!("  σ(f̃) = {}", own(0)),
        format!("  f = {}, with m: as kept", show(step.decay.first().copied())),
        format!("  i = exp(ĩ − m) = {}", show(step.input)),
        "write = i·‖k‖·‖v‖".to_owned(),
        format!("  = {} · {} · {} = {}", show(step.input), show(step.key), show(step.value), show(step.write)),
        format!("  ‖C‖ {} → {}", show(step.state_before), show(step.state_after)),
        format!("h{at} = C{at}q{at} / max(|n·q|, e⁻ᵐ)"),
        format!("  normaliser {}, ‖h‖ = {}", own(1), show(step.core)),
    ]
}

fn slstm(step: &Step) -> Vec<String> {
    let (at, before) = (sub(step.token), before(step.token));
    let own = |index: usize| show(step.own.get(index).copied().flatten());
    vec![
        format!("ĩ, f̃, z̃, õ = W u{at} + R h{before} + b"),
        format!("c{at} = f c{before} + i tanh(z̃{at})"),
        format!("n{at} = f n{before} + i"),
        format!("  σ(f̃) = {}", own(0)),
        format!("  f = {}, with m: as kept", show(step.decay.first().copied())),
        format!("  i = exp(ĩ − m) = {}", show(step.input)),
        format!("  |tanh z̃| = {}, write {}", show(step.value), show(step.write)),
        format!("  |c| {} → {}", show(step.state_before), show(step.state_after)),
        format!("h{at} = σ(õ{at}) c{at} / n{at}"),
        format!("  n = {}, |h| = {}", own(1), show(step.core)),
        "linear in tanh z̃, given these gates".to_owned(),
    ]
}

/// One channel; the weights are worked out from the matrix, M_ij / (C_i B_j).
fn short_conv(step: &Step) -> Vec<String> {
    let at = sub(step.token);
    let mut lines = vec![
        "y = C ⊙ (W * (B ⊙ x))".to_owned(),
        format!("(Bx){at} = {} · {} = {}", show(step.key), show(step.value), show(product(step.key, step.value))),
        format!("y{at} = C{at} Σₖ Wₖ (Bx)ₜ₋ₖ"),
        format!("  C{at} = {}", show(step.query)),
    ];
    for (back, written, weight) in &step.taps {
        let then = step.token.checked_sub(*back).map_or_else(|| "₋".to_owned(), sub);
        lines.push(format!("  k = {back}: {} · (Bx){then} = {}", show(*weight), show(product(*weight, *written))));
    }
    lines.push(format!("  y{at} = {}", show(step.core)));
    let held = format::plural(step.taps.len().max(1) - 1, "token");
    lines.push(format!("older than {held}: forgotten whole"));
    lines
}

fn feed_forward(step: &Step) -> Vec<String> {
    let at = sub(step.token);
    let mut lines = vec![
        format!("r{at} ← r{at} + FF(norm(r{at}))"),
        format!("  ‖FF‖ = {}", show(step.out)),
        "no token is mixed with another".to_owned(),
    ];
    if let Some(info) = step.feed_forward {
        lines.push(format!("width {}", info.width));
        if let Some((all, taken)) = info.experts {
            lines.push(format!("{taken} of {all} experts a token"));
        }
    }
    lines
}

fn product(a: Option<f32>, b: Option<f32>) -> Option<f32> {
    Some(a? * b?)
}

/// Subscript of the token before.
fn before(token: usize) -> String {
    token.checked_sub(1).map_or_else(|| "₋₁".to_owned(), sub)
}

fn show(value: Option<f32>) -> String {
    value.map_or("?".into(), short)
}

/// Subscript digits.
pub fn sub(number: usize) -> String {
    number.to_string().chars().map(|c| char::from_u32(c as u32 - '0' as u32 + 0x2080).unwrap_or(c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(kind: MixerKind) -> Step {
        Step {
            kind: Some(kind),
            token: 12,
            delta: Some(0.0431),
            decay: vec![0.9202],
            key: Some(2.0),
            query: Some(1.5),
            value: Some(3.0),
            write: Some(0.2586),
            read: Some(0.5),
            state_before: Some(1.0),
            state_after: Some(1.1),
            core: Some(0.7),
            entropy: Some(1.25),
            key_width: 64,
            beta: Some(0.25),
            out: Some(0.125),
            taps: vec![(0, Some(0.5), Some(2.0)), (1, None, None)],
            feed_forward: Some(FeedForwardInfo { width: 96, experts: Some((8, 2)) }),
            ..Step::default()
        }
    }

    #[test]
    fn the_other_recurrences_have_short_lines() {
        use MixerKind::*;
        for kind in [
            LinearAttention,
            Retention,
            Gla,
            Hgrn2,
            Rwkv4,
            Rwkv5,
            Rwkv6,
            Rwkv7,
            RgLru,
            Mlstm,
            Slstm,
            S4,
            S4d,
            H3,
            H3Heads,
            Hyena,
            Mamba3,
            Mamba3Mimo,
        ] {
            let own = vec![Some(0.5), Some(2.0)];
            let lines = lines(&Step { input: Some(0.75), own, decay: vec![0.9, 0.5], ..step(kind) });
            assert!(lines.len() > 3 && lines.iter().all(|line| line.chars().count() <= 40), "{lines:?}");
        }
    }

    #[test]
    fn mamba2_fills_in_every_number() {
        let text = lines(&step(MixerKind::Mamba2)).join("\n");
        assert!(text.contains("exp(0.04310 · -1.930) = 0.9202"), "{text}");
        assert!(text.contains("S₁₂ = 0.9202·S₁₁ + 0.04310·x₁₂B₁₂ᵀ"), "{text}");
        assert!(text.contains("= 8.3 tokens"), "{text}");
        assert!(lines(&step(MixerKind::Mamba2)).iter().all(|line| line.chars().count() <= 40), "{text}");
        assert!(!text.contains('?'), "{text}");
    }

    #[test]
    fn what_is_unknown_is_said() {
        let text = lines(&Step { delta: None, decay: vec![], token: 0, ..step(MixerKind::Mamba2) }).join("\n");
        assert!(text.contains("S₀ = ?·S₋₁ + ?·x₀B₀ᵀ"), "{text}");
    }

    #[test]
    fn mamba1_says_how_its_decays_spread() {
        let text = lines(&Step { decay: vec![0.9, 0.5], ..step(MixerKind::Mamba1) }).join("\n");
        assert!(text.contains("fastest 0.5000, 1 token"), "{text}");
    }

    #[test]
    fn attention_names_the_scale() {
        let text = lines(&step(MixerKind::Attention)).join("\n");
        assert!(text.contains("√64"), "{text}");
        assert!(text.contains("1.250 bits"), "{text}");
    }

    #[test]
    fn the_delta_rule_says_what_it_replaces() {
        let lines = lines(&step(MixerKind::DeltaRule));
        let text = lines.join("\n");
        assert!(text.contains("S₁₂ = 0.9202·(I − 0.2500·k₁₂k₁₂ᵀ)S₁₁"), "{text}");
        assert!(text.contains("25 % of what k₁₂ held is replaced"), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 40) && !text.contains('?'), "{text}");
    }

    #[test]
    fn a_short_convolution_lists_its_taps() {
        let text = lines(&step(MixerKind::ShortConv)).join("\n");
        assert!(text.contains("(Bx)₁₂ = 2.000 · 3.000 = 6.000"), "{text}");
        assert!(text.contains("k = 0: 2.000 · (Bx)₁₂ = 1.000") && text.contains("k = 1: ? · (Bx)₁₁ = ?"), "{text}");
        assert!(text.contains("older than 1 token:"), "{text}");
    }

    #[test]
    fn a_layer_without_a_mixer_says_so() {
        let text = lines(&step(MixerKind::FeedForward)).join("\n");
        assert!(text.contains("‖FF‖ = 0.1250") && text.contains("2 of 8 experts"), "{text}");
    }

    #[test]
    fn a_window_begins_late() {
        let text = lines(&Step { window: Some(4), ..step(MixerKind::Attention) }).join("\n");
        assert!(text.contains("over j = 9 … 12") && text.contains("sees 4 tokens"), "{text}");
    }

    #[test]
    fn novelty_is_write_over_kept() {
        assert!((step(MixerKind::Mamba2).novelty().unwrap() - 0.2586 / 0.9202).abs() < 1e-6);
        assert_eq!(Step { state_before: None, ..step(MixerKind::Mamba2) }.novelty(), None);
    }
}
