//! The equations of RWKV.

use statescope_engine::protocol::MixerKind;

use super::{Step, before, show, sub};
use crate::view::quantity::{short, spread_of};

pub(super) fn rwkv4(step: &Step) -> Vec<String> {
    let (at, before) = (sub(step.token), before(step.token));
    vec![
        "y = Σ eᵏ v / Σ eᵏ, faded by eʷ a token".to_owned(),
        format!("h{at} = (1 − g)h{before} + g v{at}"),
        format!("  g = {}, |v| = {}", show(step.input), show(step.value)),
        format!("  |h| {} → {}", show(step.state_before), show(step.state_after)),
        format!("y{at} = (1 − c)h{before} + c v{at}"),
        format!("  c = {}", show(step.own.first().copied().flatten())),
        format!("  |y| = {}", show(step.core)),
        format!("out = W (σ(r{at}) ⊙ y{at})"),
    ]
}

/// RWKV-5, with decays that are the same at every token, and RWKV-6 read before they write, RWKV-7 corrects what it holds.
pub(super) fn rwkv567(step: &Step) -> Vec<String> {
    let (at, before) = (sub(step.token), before(step.token));
    let corrects = step.kind == Some(MixerKind::Rwkv7);
    let mut lines = vec![format!("S{at} = S{before} diag(w) + v{at}k{at}ᵀ")];
    if corrects {
        lines.push(format!("  − (S{before}κ)(a ⊙ κ)ᵀ"));
    }
    lines.extend([
        "write = ‖k‖·‖v‖".to_owned(),
        format!("  = {} · {} = {}", show(step.key), show(step.value), show(step.write)),
        format!("  ‖S‖ {} → {}", show(step.state_before), show(step.state_after)),
    ]);
    if corrects {
        lines.push(format!("y{at} = S{at}r{at},  ‖y‖ = {}", show(step.core.or(step.read))));
    } else {
        lines.push(format!("y{at} = S{before}r{at} + (Σ r u k) v{at}"));
        lines.push(format!("  Σ r u k = {}", show(step.own.first().copied().flatten())));
        lines.push(format!("  ‖y‖ = {}", show(step.core)));
    }
    if let Some([low, middle, high]) = spread_of(&step.decay) {
        lines.push(format!("w from {} to {}", short(low), short(high)));
        lines.push(format!("  median {}", short(middle)));
    }
    lines
}
