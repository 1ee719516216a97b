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

/// One number a head, as `Step` wants it: a channel's own number, else a norm.
fn of_head(subject: &Subject<'_>, point: Point) -> Probe {
    if matches!(subject.kind(), MixerKind::ShortConv | MixerKind::H3 | MixerKind::Hyena) {
        subject.series(point, Reduction::Full).head(subject.head)
    } else {
        subject.series(point, Reduction::Head(Fold::Norm))
    }
}

/// What the mixer adds to the residual stream.
fn out_probe(subject: &Subject<'_>) -> Probe {
    subject.series(Point::Out, Reduction::Layer(Fold::Norm))
}

/// The series that `facts` and `step` read: only what this kind of mixer has.
pub fn probes(subject: &Subject<'_>, probes: &mut Vec<Probe>) {
    let kind = subject.kind();
    probes.push(subject.residual());
    probes.push(out_probe(subject));
    if !kind.mixes() {
        return;
    }
    probes.push(subject.series(Point::Write, Reduction::Full));
    probes.push(subject.series(Point::Read, Reduction::Full));
    probes.extend([Point::Value, Point::Core].map(|point| of_head(subject, point)));
    if kind.has_key() {
        probes.push(of_head(subject, Point::Key));
    }
    if kind.has_query() {
        probes.push(of_head(subject, Point::Query));
    }
    if kind.has_input_gate() {
        probes.push(subject.series(Point::InputGate, Reduction::Full));
    }
    probes.extend(own_points(kind).iter().map(|(point, ..)| subject.series(*point, Reduction::Full)));
    probes.push(subject.series(Point::Mixing(CORE), Reduction::Full).head(subject.head));
    if kind.has_delta() {
        probes.push(subject.series(Point::Delta, Reduction::Full));
    }
    if kind.decays() {
        probes.push(decay_probe(subject));
    }
    if kind == MixerKind::DeltaRule {
        probes.push(subject.series(Point::Beta, Reduction::Full));
    }
    if kind.is_recurrent() {
        probes.push(subject.series(Point::State, Reduction::Head(Fold::Norm)));
    }
    if subject.mixer.gated {
        probes.push(subject.series(Point::Gate, Reduction::Head(Fold::Norm)));
    }
    if kind == MixerKind::Attention {
        probes.push(subject.series(Point::Entropy, Reduction::Full));
    }
}

/// Numbers that one kind alone has: point, name, meaning.
fn own_points(kind: MixerKind) -> &'static [(Point, &'static str, &'static str)] {
    match kind {
        MixerKind::Rwkv4 => &[(Point::Bonus, "c", "bonus: the share of its own value that the token reads")],
        MixerKind::Rwkv5 | MixerKind::Rwkv6 => {
            &[(Point::Bonus, "Σ r u k", "bonus: what the token reads of its own value")]
        }
        MixerKind::S4 | MixerKind::S4d | MixerKind::H3 | MixerKind::H3Heads => &[(
            Point::Form,
            "form",
            "1: read together with others, by the convolution; 0: alone, by a step of the recurrence",
        )],
        MixerKind::RgLru => {
            &[(Point::RecurrenceGate, "r", "recurrence gate in (0, 1): the higher, the faster it forgets")]
        }
        MixerKind::Slstm => &[
            (Point::ForgetGate, "σ(f̃)", "forget gate in (0, 1)"),
            (Point::Normaliser, "n", "sum of the weights, by which the read is divided"),
        ],
        MixerKind::Mlstm => &[
            (Point::ForgetGate, "σ(f̃)", "forget gate in (0, 1)"),
            (Point::Normaliser, "normaliser", "max(|n·q|, e^−m): what the read is divided by"),
        ],
        _ => &[],
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

/// This step's numbers. What was not asked for is not known.
pub fn step(store: &Store, subject: &Subject<'_>, token: usize) -> Step {
    let kind = subject.kind();
    let one = |probe: Probe| pick(store, &probe, subject, token);
    let if_has = |has: bool, point, reduction| one(subject.series(point, reduction)).filter(|_| has);
    let state = |t: usize| pick(store, &subject.series(Point::State, Reduction::Head(Fold::Norm)), subject, t);
    Step {
        kind: Some(kind),
        token,
        delta: if_has(kind.has_delta(), Point::Delta, Reduction::Full),
        decay: decay(store, subject, token),
        beta: if_has(kind == MixerKind::DeltaRule, Point::Beta, Reduction::Full),
        input: if_has(kind.has_input_gate(), Point::InputGate, Reduction::Full),
        own: own_points(kind).iter().map(|(point, ..)| one(subject.series(*point, Reduction::Full))).collect(),
        key: one(of_head(subject, Point::Key)).filter(|_| kind.has_key()),
        query: one(of_head(subject, Point::Query)).filter(|_| kind.has_query()),
        value: one(of_head(subject, Point::Value)),
        taps: taps(store, subject, token),
        write: one(subject.series(Point::Write, Reduction::Full)),
        read: one(subject.series(Point::Read, Reduction::Full)),
        state_before: if token == 0 { kind.is_recurrent().then_some(0.0) } else { state(token - 1) },
        state_after: state(token),
        gate: if_has(subject.mixer.gated, Point::Gate, Reduction::Head(Fold::Norm)),
        out: one(out_probe(subject)),
        core: one(of_head(subject, Point::Core)),
        entropy: if_has(kind == MixerKind::Attention, Point::Entropy, Reduction::Full),
        key_width: subject.mixer.state_dim,
        filters: subject.mixer.rank,
        window: subject.mixer.window.filter(|_| kind == MixerKind::Attention),
        feed_forward: subject.info().feed_forward,
    }
}

/// Of a short convolution: how far back, the input B x of then, and its weight, M_ij / (C_i B_j).
fn taps(store: &Store, subject: &Subject<'_>, token: usize) -> Vec<(usize, Option<f32>, Option<f32>)> {
    if subject.kind() != MixerKind::ShortConv {
        return Vec::new();
    }
    let at = |point: Point, t: usize| pick(store, &of_head(subject, point), subject, t);
    let matrix = store.matrix(&subject.series(Point::Mixing(CORE), Reduction::Full).head(subject.head));
    let tap = |back: usize| {
        let Some(then) = token.checked_sub(back) else { return (back, Some(0.0), None) };
        let (key, value) = (at(Point::Key, then), at(Point::Value, then));
        let scale = at(Point::Query, token).zip(key).map(|(c, b)| c * b).filter(|scale| *scale != 0.0);
        let weight = matrix.and_then(|m| m.get(token, then)).zip(scale).map(|(m, scale)| m / scale);
        (back, key.zip(value).map(|(b, x)| b * x), weight)
    };
    (0..=subject.mixer.state_dim).map(tap).collect()
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
    let kind = subject.kind();
    let mut facts = Vec::new();
    if kind.mixes() {
        if kind.has_delta() {
            facts.push(Fact::number(
                "Δ",
                step.delta,
                "",
                match kind.is_time_invariant() {
                    true => "step size of the discretisation, the same at every token",
                    false => "step size after softplus and clamp",
                },
            ));
        }
        if kind.decays() {
            decay_facts(kind, step, &mut facts);
        }
        if kind == MixerKind::DeltaRule {
            facts.push(Fact::number("β", step.beta, "", "share of what is held under the key that is replaced"));
        }
        if kind.has_input_gate() {
            let (name, meaning) = match kind {
                MixerKind::Mamba3 | MixerKind::Mamba3Mimo => {
                    ("λ", "share in (0, 1) that is written at once, the rest with the next token")
                }
                MixerKind::Rwkv4 => ("g", "input gate in (0, 1]: the token's share of the mean"),
                MixerKind::Mlstm | MixerKind::Slstm => ("i", "input gate exp(ĩ − m) in (0, 1]"),
                _ => ("i", "input gate in (0, 1)"),
            };
            facts.push(Fact::number(name, step.input, "", meaning));
        }
        for ((_, name, meaning), value) in own_points(kind).iter().zip(&step.own) {
            facts.push(Fact::number(*name, *value, "", *meaning));
        }
        strength_facts(kind, step, &mut facts);
        memory_facts(kind, step, &mut facts);
        if kind == MixerKind::Mamba3Mimo {
            facts.push(Fact::number(
                "‖g‖",
                step.gate,
                "",
                "factors with which the channel takes the r reads: mimo_o ⊙ silu(z ⊙ mimo_z), and the norm",
            ));
        } else if subject.mixer.gated {
            let activation = match kind {
                MixerKind::Attention | MixerKind::Rwkv4 | MixerKind::Mlstm | MixerKind::Slstm => "σ",
                MixerKind::RgLru => "GELU",
                MixerKind::Rwkv7 => "use (it has no activation)",
                _ => "SiLU",
            };
            facts.push(Fact::number("‖z‖", step.gate, "", format!("output gate before its {activation}")));
        }
        let (name, meaning) = match kind {
            MixerKind::H3 | MixerKind::Hyena => ("y", "mixer output of the channel, both gates included"),
            MixerKind::H3Heads => ("‖y‖", "mixer output of the head"),
            MixerKind::Mamba3Mimo => ("|y|", "mixer output of the channel, gates and D·x included"),
            MixerKind::Slstm => ("h", "mixer output before its norm, output gate included"),
            MixerKind::S4 | MixerKind::S4d => ("|y|", "mixer output before GELU and GLU, D·u included"),
            MixerKind::ShortConv => ("y", "mixer output of the channel, both gates included"),
            MixerKind::Mamba1 | MixerKind::Mamba2 | MixerKind::Mamba3 => {
                ("‖y‖", "mixer output before gate and norm, D·x included")
            }
            _ => ("‖y‖", "mixer output before gate and norm"),
        };
        facts.push(Fact::number(name, step.core, "", meaning));
    } else if let Some(info) = step.feed_forward {
        facts.push(Fact::text("width", info.width.to_string(), "of the MLP, or of one expert"));
        if let Some((all, taken)) = info.experts {
            facts.push(Fact::text("experts", format!("{taken} of {all}"), "that a token goes to, and all there are"));
        }
    }
    facts.push(Fact::number("output norm", step.out, "", "‖o‖: what this adds to the residual stream"));
    let resid = pick(cx.store, &subject.residual(), subject, step.token);
    facts.push(Fact::number("residual norm", resid, "", "‖r‖ of the residual stream after this layer"));
    facts
}

/// How much is kept from one token to the next.
fn decay_facts(kind: MixerKind, step: &Step, facts: &mut Vec<Fact>) {
    let (name, meaning) = match kind {
        MixerKind::DeltaRule => ("α", "exp(−exp(A_log) Δ): the share of the state that is kept"),
        MixerKind::Retention => ("γ", "1 − 2^(−5−h): the share of the state that is kept, the same at every token"),
        MixerKind::RgLru => ("a", "exp(−8 r softplus(Λ)): the share of the state that is kept"),
        MixerKind::Rwkv4 => ("1 − g", "the share of the mean that is kept"),
        MixerKind::Mlstm | MixerKind::Slstm => {
            ("decay", "σ(f̃) e^(m before − m): the share of the state, as it is kept, that stays")
        }
        _ => ("decay", "exp(ΔA): the share of the state that is kept"),
    };
    match step.decay.as_slice() {
        [decay] => facts.push(Fact::number(name, Some(*decay), "", meaning)),
        [] => facts.push(Fact::number(name, None, "", meaning)),
        all => facts.extend(all.iter().enumerate().map(|(n, decay)| {
            Fact::number(
                format!("decay n={n}"),
                Some(*decay),
                "",
                match kind {
                    MixerKind::Mamba1 => format!("exp(ΔA[{n}]): the share of state entry {n} that is kept"),
                    MixerKind::S4 => {
                        format!("|Ā[{n}]| of the diagonal part: the share of complex state {n} that is kept")
                    }
                    MixerKind::S4d | MixerKind::H3 | MixerKind::H3Heads => {
                        format!("|Ā[{n}]|: the share of complex state {n} that is kept")
                    }
                    _ => format!("α[{n}]: the share that is kept under key dim {n}"),
                },
            )
        })),
    }
    if step.decay.len() == 1 && kind.has_delta() {
        let meaning = "ln(decay)/Δ, worked out from the two: the model stores A = −exp(A_log)";
        facts.push(Fact::number("A", step.a(), "", meaning));
    }
}

/// What is written, read and mixed.
fn strength_facts(kind: MixerKind, step: &Step, facts: &mut Vec<Fact>) {
    let (key, query, value) = match kind {
        MixerKind::Rwkv4 => ("|k|", "", "|v|"),
        MixerKind::RgLru => ("√(1 − a²) i", "", "|x|"),
        MixerKind::ShortConv | MixerKind::FeedForward => ("B", "C", "x"),
        MixerKind::Slstm => ("", "", "|tanh z̃|"),
        MixerKind::S4 | MixerKind::S4d => ("", "", "|u|"),
        MixerKind::H3 => ("k̄", "q", "v"),
        MixerKind::H3Heads => ("‖k̄‖", "‖q‖", "‖v‖"),
        MixerKind::Hyena => ("k", "q", "v"),
        MixerKind::Mamba1 => ("‖B‖", "‖C‖", "|x|"),
        MixerKind::Mamba3Mimo => ("‖B‖", "‖C‖", "|x|"),
        MixerKind::Mamba2 | MixerKind::Mamba3 => ("‖B‖", "‖C‖", "‖x‖"),
        _ => ("‖k‖", "‖q‖", "‖v‖"),
    };
    let (writes, reads) = if matches!(kind, MixerKind::ShortConv | MixerKind::H3 | MixerKind::Hyena) {
        ("gate before the convolution", "gate after the convolution")
    } else {
        ("write direction", "read direction")
    };
    if kind.has_key() {
        facts.push(Fact::number(key, step.key, "", writes));
    }
    if kind.has_query() {
        facts.push(Fact::number(query, step.query, "", reads));
    }
    facts.push(Fact::number(value, step.value, "", "what is mixed"));
    let (written, read) = match kind {
        MixerKind::Attention => ("‖k‖·‖v‖: what is added to the cache", "norm of what is read"),
        MixerKind::DeltaRule => ("β‖k‖·‖v‖: what is added to the state", "norm of what is read"),
        MixerKind::ShortConv => ("|B x|: what is put into the register", "|y|: what is read"),
        MixerKind::Mamba1 | MixerKind::Mamba2 => {
            ("‖Δ B xᵀ‖_F: what is added to the state", "norm of what is read, skip D·x left out")
        }
        MixerKind::Slstm => ("i |tanh z̃|: what is added to c", "|h|: what is read, normalised and gated"),
        MixerKind::S4 | MixerKind::S4d => {
            ("‖B̄‖|u|: what is added to the state", "|2 Re C x|: what is read, skip D·u left out")
        }
        MixerKind::H3 => ("‖B̄‖|k̄ v|: what is added to the state", "|q 2 Re C x|: what is read, skip left out"),
        MixerKind::H3Heads => ("‖B̄‖·‖k̄‖·‖v‖: what is added to the state", "norm of what is read, skip left out"),
        MixerKind::Hyena => {
            ("|k v|: what the filter weighs", "|q (K ∗ …)|: what is read; of one filter its skip left out")
        }
        MixerKind::Mamba3 => ("‖λ Δ B xᵀ‖_F: what is added at once", "norm of what is read, skip D·x left out"),
        MixerKind::Mamba3Mimo => {
            ("‖λ Δ Σ X^ρ B^ρ x‖: what is added at once", "|Σ g^ρ S C^ρ|: what is read, gated, skip D·x left out")
        }
        MixerKind::Rwkv4 => ("|g v|: what enters the mean", "(1 − c) |h|: what is read of the mean before"),
        MixerKind::RgLru => ("√(1 − a²) i |x|: what is added to the state", "|h|: what is read"),
        MixerKind::Mlstm => ("i‖k‖·‖v‖: what is added to the state", "norm of what is read, normalised"),
        _ => ("‖k‖·‖v‖: what is added to the state", "norm of what is read"),
    };
    facts.push(Fact::number("write", step.write, "", written));
    facts.push(Fact::number("read", step.read, "", read));
}

/// The state before and after, or what attention spreads over.
fn memory_facts(kind: MixerKind, step: &Step, facts: &mut Vec<Fact>) {
    if kind == MixerKind::Hyena {
        return;
    }
    if !kind.is_recurrent() {
        let meaning = "−Σ p log₂ p of the softmax row: 0 looks at one token";
        return facts.push(Fact::number("row entropy", step.entropy, "bits", meaning));
    }
    facts.push(Fact::number("‖S‖ before", step.state_before, "", "state of this head before the token"));
    facts.push(Fact::number("‖S‖ after", step.state_after, "", "state of this head after the token"));
    if kind.decays() {
        let meaning = "write / (decay · ‖S before‖): above 1 the token outweighs the memory";
        facts.push(Fact::number("novelty", step.novelty(), "", meaning));
    }
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
