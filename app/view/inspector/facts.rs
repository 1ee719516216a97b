//! What is known at the selection: read out of the store's series, as numbers with a name, a meaning and a unit.

use statescope_engine::protocol::{Fold, MixerKind, MixingView, Point, Probe, Reduction, Scale, Stage, TokenSource};

use super::equation::Step;
use crate::store::Store;
use crate::view::ViewContext;
use crate::view::quantity::{Subject, exact};

/// The matrix the inspector speaks of: the model's own weights, signed.
pub const CORE: MixingView = MixingView { stage: Stage::Core, scale: Scale::Raw };

/// A named number or text. Its accessible text is `name = value`, the value exact.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    pub name: String,
    /// Exact; None while unknown.
    pub value: Option<String>,
    pub unit: &'static str,
    pub meaning: String,
}

impl Fact {
    pub fn number(name: impl Into<String>, value: Option<f32>, unit: &'static str, meaning: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.map(exact), unit, meaning: meaning.into() }
    }

    pub fn text(name: impl Into<String>, value: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self { name: name.into(), value: Some(value.into()), unit: "", meaning: meaning.into() }
    }

    /// What a screen reader and a test read.
    pub fn accessible(&self) -> String {
        let value = self.value.as_deref().unwrap_or("unknown");
        match self.unit {
            "" => format!("{} = {value}", self.name),
            unit => format!("{} = {value} {unit}", self.name),
        }
    }
}

/// The series that `facts` and `step` read.
pub fn probes(subject: &Subject<'_>, probes: &mut Vec<Probe>) {
    let norm = Reduction::Head(Fold::Norm);
    probes.push(subject.series(Point::Write, Reduction::Full));
    probes.push(subject.series(Point::Read, Reduction::Full));
    probes.push(subject.series(Point::Key, norm));
    probes.push(subject.series(Point::Query, norm));
    probes.push(subject.series(Point::Value, norm));
    probes.push(subject.series(Point::Core, norm));
    probes.push(subject.series(Point::Resid, Reduction::Layer(Fold::Norm)));
    probes.push(subject.series(Point::Mixing(CORE), Reduction::Full).head(subject.head));
    if subject.kind().is_recurrent() {
        probes.push(subject.series(Point::Delta, Reduction::Full));
        probes.push(decay_probe(subject));
        probes.push(subject.series(Point::State, norm));
        probes.push(subject.series(Point::Gate, norm));
    } else {
        probes.push(subject.series(Point::Entropy, Reduction::Full));
    }
}

/// Mamba-1's decays are [channels, N] a token: only the selected channel's are asked for.
fn decay_probe(subject: &Subject<'_>) -> Probe {
    let probe = subject.series(Point::Decay, Reduction::Full);
    if subject.mixer.decay_dim > 1 { probe.head(subject.head) } else { probe }
}

/// One head's number out of a row per head or per group.
fn pick(store: &Store, probe: &Probe, subject: &Subject<'_>, token: usize) -> Option<f32> {
    let row = store.series(probe)?.row(token)?;
    let index = match row.len() {
        1 => 0,
        n if n == subject.mixer.heads => subject.head,
        n if n == subject.mixer.groups => subject.group(),
        _ => return None,
    };
    row.get(index).copied()
}

/// This step's numbers.
pub fn step(store: &Store, subject: &Subject<'_>, token: usize) -> Step {
    let norm = Reduction::Head(Fold::Norm);
    let one = |point, reduction| pick(store, &subject.series(point, reduction), subject, token);
    let recurrent = subject.kind().is_recurrent();
    let state = |t: usize| pick(store, &subject.series(Point::State, norm), subject, t);
    Step {
        kind: subject.kind(),
        token,
        delta: one(Point::Delta, Reduction::Full).filter(|_| recurrent),
        decay: decay(store, subject, token),
        key: one(Point::Key, norm),
        query: one(Point::Query, norm),
        value: one(Point::Value, norm),
        write: one(Point::Write, Reduction::Full),
        read: one(Point::Read, Reduction::Full),
        state_before: if token == 0 { recurrent.then_some(0.0) } else { state(token - 1) },
        state_after: state(token),
        core: one(Point::Core, norm),
        entropy: one(Point::Entropy, Reduction::Full).filter(|_| !recurrent),
        key_width: subject.mixer.state_dim,
    }
}

fn decay(store: &Store, subject: &Subject<'_>, token: usize) -> Vec<f32> {
    if subject.mixer.decay_dim == 0 {
        return Vec::new();
    }
    let Some(row) = store.series(&decay_probe(subject)).and_then(|series| series.row(token)) else {
        return Vec::new();
    };
    if subject.mixer.decay_dim > 1 { row.to_vec() } else { row.get(subject.head).copied().into_iter().collect() }
}

/// The token itself and what the model made of it.
pub fn token_facts(cx: &ViewContext<'_>, token: usize) -> Vec<Fact> {
    let mut facts = vec![Fact::text("position", token.to_string(), "index in the text, from 0")];
    if let Some(record) = cx.store.tokens.get(token) {
        let source = match record.source {
            TokenSource::Prompt => "prompt",
            TokenSource::Sampled => "sampled",
            TokenSource::Forced => "forced",
        };
        let bytes: Vec<String> = record.bytes.iter().map(|b| format!("{b:02x}")).collect();
        facts.push(Fact::text(
            "token",
            cx.store.token_label(token),
            "the text it stands for; · is a space, ↵ a line break",
        ));
        facts.push(Fact::text("token id", record.id.to_string(), "row of the embedding"));
        facts.push(Fact::text("bytes", bytes.join(" "), "UTF-8, hexadecimal; a character may be split over tokens"));
        facts.push(Fact::text("source", source, "prompt, sampled by the model, or forced by you"));
    }
    let prediction = cx.store.predictions.get(token).and_then(Option::as_ref);
    facts.push(Fact::number(
        "surprisal",
        prediction.and_then(|p| p.surprisal_bits),
        "bits",
        "−log₂ p of this token under the prediction before it",
    ));
    facts.push(Fact::number(
        "entropy of next token",
        prediction.map(|p| p.entropy_bits),
        "bits",
        "how undecided the model is after this token: −Σ p log₂ p",
    ));
    facts
}

/// The selected head's numbers.
pub fn head_facts(cx: &ViewContext<'_>, subject: &Subject<'_>, step: &Step) -> Vec<Fact> {
    let (key, query, value) = match step.kind {
        MixerKind::Attention => ("‖k‖", "‖q‖", "‖v‖"),
        MixerKind::Mamba1 => ("‖B‖", "‖C‖", "|x|"),
        MixerKind::Mamba2 => ("‖B‖", "‖C‖", "‖x‖"),
    };
    let mut facts = Vec::new();
    if subject.kind().is_recurrent() {
        facts.push(Fact::number("Δ", step.delta, "", "step size after softplus and clamp"));
        match step.decay.as_slice() {
            [decay] => {
                facts.push(Fact::number("decay", Some(*decay), "", "exp(ΔA): the share of the state that is kept"))
            }
            [] => facts.push(Fact::number("decay", None, "", "exp(ΔA): the share of the state that is kept")),
            all => facts.extend(all.iter().enumerate().map(|(n, decay)| {
                Fact::number(
                    format!("decay n={n}"),
                    Some(*decay),
                    "",
                    format!("exp(ΔA[{n}]): the share of state entry {n} that is kept"),
                )
            })),
        }
        if step.decay.len() == 1 {
            facts.push(Fact::number(
                "A",
                step.a(),
                "",
                "ln(decay)/Δ, worked out from the two: the model stores A = −exp(A_log)",
            ));
        }
    }
    facts.push(Fact::number(key, step.key, "", "write direction"));
    facts.push(Fact::number(query, step.query, "", "read direction"));
    facts.push(Fact::number(value, step.value, "", "what is mixed"));
    let written = if subject.kind().is_recurrent() {
        "‖Δ B xᵀ‖_F: what is added to the state"
    } else {
        "‖k‖‖v‖: what is added to the cache"
    };
    facts.push(Fact::number("write", step.write, "", written));
    facts.push(Fact::number("read", step.read, "", "norm of what is read, skip D·x left out"));
    if subject.kind().is_recurrent() {
        facts.push(Fact::number("‖S‖ before", step.state_before, "", "state of this head before the token"));
        facts.push(Fact::number("‖S‖ after", step.state_after, "", "state of this head after the token"));
        facts.push(Fact::number(
            "novelty",
            step.novelty(),
            "",
            "write / (decay · ‖S before‖): above 1 the token outweighs the memory",
        ));
    } else {
        facts.push(Fact::number(
            "row entropy",
            step.entropy,
            "bits",
            "−Σ p log₂ p of the softmax row: 0 looks at one token",
        ));
    }
    facts.push(Fact::number("‖y‖", step.core, "", "mixer output before gate and norm, D·x included"));
    let resid = subject.series(Point::Resid, Reduction::Layer(Fold::Norm));
    facts.push(Fact::number(
        "residual norm",
        pick(cx.store, &resid, subject, step.token),
        "",
        "‖r‖ of the residual stream after this layer",
    ));
    facts
}

/// The hovered cell, else the pinned one: (query, key).
pub fn cell(cx: &ViewContext<'_>, subject: &Subject<'_>) -> Option<(usize, usize)> {
    let (query, key) = match (cx.hover.query, cx.hover.key) {
        (Some(query), Some(key)) => (query, key),
        _ => (subject.cursor?, cx.selection.key?),
    };
    (key <= query).then_some((query, key))
}

/// M_ij and where it stands in its row; without a cell, row `token` and what to do.
pub fn cell_facts(store: &Store, subject: &Subject<'_>, token: usize, cell: Option<(usize, usize)>) -> Vec<Fact> {
    let name = |t: usize| format!("{t} {}", store.token_label(t));
    let Some((i, j)) = cell else {
        return vec![
            Fact::text("query i", name(token), "the row: the token that reads"),
            Fact::text("key j", "point at a cell", "the column: the token read from"),
            Fact::text("M[i, j]", "–", "core, signed: y_i = Σ_j M_ij v_j"),
            Fact::text("share of the row", "–", "|M_ij| / Σ_j |M_ij|"),
        ];
    };
    let matrix = store.matrix(&subject.series(Point::Mixing(CORE), Reduction::Full).head(subject.head));
    let value = matrix.and_then(|m| m.get(i, j));
    let share = matrix.and_then(|m| m.row(i)).and_then(|row| {
        let total: f64 = row.iter().map(|v| f64::from(v.abs())).sum();
        let value = f64::from(row.get(j)?.abs());
        (total > 0.0).then_some((value / total) as f32)
    });
    vec![
        Fact::text("query i", name(i), "the row: the token that reads"),
        Fact::text("key j", name(j), "the column: the token read from"),
        Fact::number(format!("M[{i}, {j}]"), value, "", "core, signed: y_i = Σ_j M_ij v_j"),
        Fact::number("share of the row", share, "", "|M_ij| / Σ_j |M_ij|"),
    ]
}

/// The `count` largest weights of row `i`: (key position, weight).
pub fn largest_keys(store: &Store, subject: &Subject<'_>, i: usize, count: usize) -> Vec<(usize, f32)> {
    let probe = subject.series(Point::Mixing(CORE), Reduction::Full).head(subject.head);
    let Some(row) = store.matrix(&probe).and_then(|m| m.row(i)) else { return Vec::new() };
    let mut keys: Vec<(usize, f32)> =
        row.iter().copied().enumerate().take(i + 1).filter(|(_, v)| v.is_finite()).collect();
    keys.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
    keys.truncate(count);
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_read_back() {
        let fact = Fact::number("Δ", Some(0.1), "", "");
        assert_eq!(fact.accessible(), "Δ = 0.1");
        assert_eq!(Fact::number("surprisal", None, "bits", "").accessible(), "surprisal = unknown bits");
    }
}
