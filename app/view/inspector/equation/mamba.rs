//! The equations of Mamba-1, Mamba-2 and both forms of Mamba-3.

use super::{Step, before, show, sub};
use crate::view::quantity::{half_life, short, spread_of, tokens_words};

pub(super) fn mamba2(step: &Step) -> Vec<String> {
    let at = sub(step.token);
    let before = before(step.token);
    let decay = step.decay.first().copied();
    let mut lines = vec![
        "decay = exp(ΔA)".to_owned(),
        format!("  = exp({} · {}) = {}", show(step.delta), show(step.a()), show(decay)),
    ];
    lines.extend(write_lines(step, "‖x‖"));
    lines.push(format!("S{at} = {}·S{before} + {}·x{at}B{at}ᵀ", show(decay), show(step.delta)));
    lines.push(format!("  ‖S‖ {} → {}", show(step.state_before), show(step.state_after)));
    lines.push(format!("y{at} = S{at}C{at} + D x{at}"));
    lines.push(format!("  ‖S C‖ = {}, ‖y‖ = {}", show(step.read), show(step.core)));
    if let Some(tokens) = decay.and_then(half_life) {
        lines.push("half-life = ln 2 / −ln decay".into());
        lines.push(format!("  = {}", tokens_words(tokens)));
    }
    lines
}

pub(super) fn mamba1(step: &Step) -> Vec<String> {
    let at = sub(step.token);
    let before = before(step.token);
    let mut lines = vec![format!("decay[n] = exp(Δ A[n]), Δ = {}", show(step.delta))];
    if let Some([low, middle, high]) = spread_of(&step.decay) {
        let life = |retention: f32| half_life(retention).map_or_else(|| "?".into(), tokens_words);
        lines.push(format!("  slowest {}, {}", short(high), life(high)));
        lines.push(format!("  median  {}, {}", short(middle), life(middle)));
        lines.push(format!("  fastest {}, {}", short(low), life(low)));
    }
    lines.extend(write_lines(step, "|x|"));
    lines.push(format!("S{at}[n] = decay[n]·S{before}[n]"));
    lines.push(format!("  + {}·x{at}B{at}[n]", show(step.delta)));
    lines.push(format!("  ‖S‖ {} → {}", show(step.state_before), show(step.state_after)));
    lines.push(format!("y{at} = Σₙ C{at}[n]S{at}[n] + D x{at}"));
    lines.push(format!("  |S·C| = {}, |y| = {}", show(step.read), show(step.core)));
    lines
}

pub(super) fn mamba3(step: &Step) -> Vec<String> {
    let (at, before) = (sub(step.token), before(step.token));
    let alpha = step.decay.first().copied();
    let mut lines = vec![
        format!("α = exp(ΔA) = {},  Δ = {}", show(alpha), show(step.delta)),
        format!("λ = σ(trap) = {}", show(step.input)),
        format!("S{at} = α (S{before} + (1−λ)Δ x{before}B{before}ᵀ)"),
        format!("  + λΔ x{at}B{at}ᵀ, at once {}", show(step.write)),
        format!("  ‖S‖ {} → {}", show(step.state_before), show(step.state_after)),
        format!("y{at} = S{at}C{at} + D x{at}"),
        format!("  ‖S C‖ = {}, ‖y‖ = {}", show(step.read), show(step.core)),
        "B and C turned by Σ Δ π tanh(angle)".to_owned(),
    ];
    if let Some(tokens) = alpha.and_then(half_life) {
        lines.push(format!("half-life {}", tokens_words(tokens)));
    }
    lines
}

pub(super) fn mamba3_mimo(step: &Step) -> Vec<String> {
    let (at, before) = (sub(step.token), before(step.token));
    let alpha = step.decay.first().copied();
    let mut lines = vec![
        format!("α = exp(ΔA) = {},  Δ = {}", show(alpha), show(step.delta)),
        format!("λ = σ(trap) = {}", show(step.input)),
        "k = Σ X^ρ B^ρ, of the channel".to_owned(),
        format!("S{at} = α (S{before} + (1−λ)Δ x{before}k{before})"),
        format!("  + λΔ x{at}k{at}, at once {}", show(step.write)),
        format!("  ‖S‖ {} → {}", show(step.state_before), show(step.state_after)),
        format!("y{at} = Σ g^ρ (S{at}·C^ρ + D X^ρ x{at})"),
        format!("  ‖g‖ = {}, read {}", show(step.gate), show(step.read)),
        format!("  |y| = {}", show(step.core)),
        "B and C turned by Σ Δ π tanh(angle)".to_owned(),
    ];
    if let Some(tokens) = alpha.and_then(half_life) {
        lines.push(format!("half-life {}", tokens_words(tokens)));
    }
    lines
}

fn write_lines(step: &Step, value: &str) -> [String; 2] {
    [
        format!("write = Δ·‖B‖·{value}"),
        format!("  = {} · {} · {} = {}", show(step.delta), show(step.key), show(step.value), show(step.write)),
    ]
}
