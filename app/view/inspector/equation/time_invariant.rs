//! The equations of the ancestors: state spaces that do not depend on the token, and Hyena.

use statescope_engine::protocol::MixerKind;

use super::{Step, before, product, show, sub};
use crate::view::quantity::{half_life, short, spread_of, tokens_words};

/// Which of its forms a time-invariant system ran in.
fn form(step: &Step) -> String {
    match step.own.first().copied().flatten() {
        None => "runs as: ?".to_owned(),
        Some(1.0) => "runs as: convolution of a whole chunk".to_owned(),
        Some(_) => "runs as: one step of the recurrence".to_owned(),
    }
}

/// How the complex states fade, slowest and fastest.
fn fading(step: &Step) -> Vec<String> {
    let Some([low, _, high]) = spread_of(&step.decay) else { return Vec::new() };
    let life = |retention: f32| half_life(retention).map_or_else(|| "?".into(), tokens_words);
    vec![
        format!("  slowest |Ā| {}, {}", short(high), life(high)),
        format!("  fastest |Ā| {}, {}", short(low), life(low)),
    ]
}

pub(super) fn s4(step: &Step) -> Vec<String> {
    let (at, before) = (sub(step.token), before(step.token));
    let mut lines = vec![
        "x'(τ) = A x + B u, y = 2 Re C x + D u".to_owned(),
        match step.kind {
            Some(MixerKind::S4) => "  A = diag(λ) − P Pᴴ".to_owned(),
            _ => "  A = diag(λ)".to_owned(),
        },
        format!("x{at} = Ā x{before} + B̄ u{at},  Δ = {}", show(step.delta)),
    ];
    lines.extend(fading(step));
    lines.extend([
        format!("  |u| = {}, write {}", show(step.value), show(step.write)),
        format!("  ‖x‖ {} → {}", show(step.state_before), show(step.state_after)),
        format!("y{at} = 2 Re C x{at} + D u{at}"),
        format!("  |2 Re C x| = {}, |y| = {}", show(step.read), show(step.core)),
        "y = K ∗ u,  K[l] = 2 Re C Āˡ B̄ (+ D)".to_owned(),
        form(step),
    ]);
    lines
}

pub(super) fn h3(step: &Step) -> Vec<String> {
    let (at, before) = (sub(step.token), before(step.token));
    let mut lines = vec![
        "k̄ = shift(k),  z = k̄ ⊙ v".to_owned(),
        format!("  z{at} = {} · {} = {}", show(step.key), show(step.value), show(product(step.key, step.value))),
        format!("x{at} = Ā x{before} + B̄ z{at},  Δ = {}", show(step.delta)),
    ];
    lines.extend(fading(step));
    lines.extend([
        format!("  ‖x‖ {} → {}", show(step.state_before), show(step.state_after)),
        format!("y{at} = q{at} (2 Re C x{at} + D z{at})"),
        format!("  q = {}, y = {}", show(step.query), show(step.core)),
        "y = q ⊙ (K ∗ z),  K[l] = 2 Re C Āˡ B̄".to_owned(),
        form(step),
    ]);
    lines
}

pub(super) fn h3_heads(step: &Step) -> Vec<String> {
    let (at, before) = (sub(step.token), before(step.token));
    let mut lines = vec![
        "k̄ = shift(k),  Z = v k̄ᵀ of the head".to_owned(),
        format!("  ‖k̄‖ = {}, ‖v‖ = {}", show(step.key), show(step.value)),
        format!("X{at} = Ā X{before} + B̄ Z{at},  Δ = {}", show(step.delta)),
    ];
    lines.extend(fading(step));
    lines.extend([
        format!("  write {}, ‖X‖ {} → {}", show(step.write), show(step.state_before), show(step.state_after)),
        format!("y{at} = (2 Re C X{at} + D Z{at}) q{at}"),
        format!("  ‖q‖ = {}, ‖y‖ = {}", show(step.query), show(step.core)),
        "y = Σⱼ (q·k̄ⱼ) K[i−j] vⱼ".to_owned(),
        form(step),
    ]);
    lines
}

pub(super) fn hyena(step: &Step) -> Vec<String> {
    let at = sub(step.token);
    let mut lines = vec![
        "z = k ⊙ v".to_owned(),
        format!("  z{at} = {} · {} = {}", show(step.key), show(step.value), show(product(step.key, step.value))),
    ];
    if step.filters > 1 {
        lines.push(format!("z ← x ⊙ (K ∗ z + β z), {} times", step.filters - 1));
        lines.push("  K, β and the gate x of each its own".to_owned());
    }
    lines.extend([
        format!("y{at} = q{at} (Σₗ K[l] zₜ₋ₗ + β z{at})"),
        format!("  q = {}, y = {}", show(step.query), show(step.core)),
        "K: a network of the distance l".to_owned(),
        "runs as: convolution, there is no other".to_owned(),
    ]);
    lines
}
