//! The gate quantities of a mixer under its own names: where they come from and what a value means in words.

use statescope_engine::protocol::{Fold, Geometry, MixerKind, Point, Probe, Reduction};

use crate::theme::ColourMap;
use crate::view::quantity::{Subject, half_life, percent, retention_words, short, tokens_words};
use crate::widget::heatmap::ValueScale;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Gate {
    Delta,
    Decay,
    Write,
    Read,
    Entropy,
    /// Write strength of the delta rule.
    Beta,
    /// B of a short convolution.
    Input,
    /// C of a short convolution.
    Output,
    /// Gates between the filters of a Hyena.
    Inner,
    /// z of gated attention.
    Shutter,
    /// What weighs the write: of RWKV-4, RG-LRU and mLSTM.
    Weight,
    /// r of an RG-LRU.
    Recurrence,
    /// σ(f̃) of an mLSTM.
    Forget,
    /// c of RWKV-4.
    Bonus,
    /// What an mLSTM divides its read by.
    Normaliser,
    /// r of RWKV-4 before its σ.
    Receptance,
    /// a of RWKV-7.
    Rate,
}

impl Gate {
    pub const ALL: [Self; 17] = [
        Self::Delta,
        Self::Decay,
        Self::Write,
        Self::Read,
        Self::Entropy,
        Self::Beta,
        Self::Input,
        Self::Output,
        Self::Inner,
        Self::Shutter,
        Self::Weight,
        Self::Recurrence,
        Self::Forget,
        Self::Bonus,
        Self::Normaliser,
        Self::Receptance,
        Self::Rate,
    ];

    /// What this mixer has.
    pub fn of(mixer: &Geometry) -> &'static [Self] {
        match mixer.kind {
            MixerKind::Mamba1 | MixerKind::Mamba2 => &[Self::Delta, Self::Decay, Self::Write, Self::Read],
            MixerKind::Mamba3 | MixerKind::Mamba3Mimo => {
                &[Self::Delta, Self::Weight, Self::Decay, Self::Write, Self::Read]
            }
            MixerKind::DeltaRule => &[Self::Decay, Self::Beta, Self::Write, Self::Read],
            MixerKind::LinearAttention => &[Self::Write, Self::Read],
            MixerKind::Retention | MixerKind::Gla | MixerKind::Hgrn2 => &[Self::Decay, Self::Write, Self::Read],
            MixerKind::Rwkv4 => &[Self::Weight, Self::Decay, Self::Bonus, Self::Receptance, Self::Write, Self::Read],
            MixerKind::Rwkv5 | MixerKind::Rwkv6 => &[Self::Decay, Self::Bonus, Self::Write, Self::Read],
            MixerKind::Rwkv7 => &[Self::Decay, Self::Rate, Self::Write, Self::Read],
            MixerKind::RgLru => &[Self::Weight, Self::Recurrence, Self::Decay, Self::Write, Self::Read],
            MixerKind::Mlstm => &[Self::Weight, Self::Forget, Self::Decay, Self::Normaliser, Self::Write, Self::Read],
            MixerKind::Slstm => {
                &[Self::Weight, Self::Forget, Self::Decay, Self::Receptance, Self::Normaliser, Self::Write, Self::Read]
            }
            MixerKind::S4 | MixerKind::S4d | MixerKind::H3Heads => &[Self::Delta, Self::Decay, Self::Write, Self::Read],
            MixerKind::H3 => &[Self::Input, Self::Output, Self::Delta, Self::Decay, Self::Write, Self::Read],
            MixerKind::Hyena if mixer.rank > 1 => &[Self::Input, Self::Inner, Self::Output, Self::Write, Self::Read],
            MixerKind::Hyena => &[Self::Input, Self::Output, Self::Write, Self::Read],
            MixerKind::ShortConv => &[Self::Input, Self::Output, Self::Write, Self::Read],
            MixerKind::Attention if mixer.gated => &[Self::Write, Self::Read, Self::Shutter, Self::Entropy],
            MixerKind::Attention => &[Self::Write, Self::Read, Self::Entropy],
            MixerKind::FeedForward => &[],
        }
    }

    pub fn index(self) -> usize {
        Self::ALL.iter().position(|gate| *gate == self).unwrap_or(0)
    }

    pub fn label(self, kind: MixerKind) -> &'static str {
        match (self, kind) {
            (Self::Delta, _) => "Δ",
            (Self::Decay, MixerKind::DeltaRule | MixerKind::Gla | MixerKind::Hgrn2) => "α decay",
            (Self::Decay, MixerKind::Retention) => "γ decay",
            (Self::Decay, MixerKind::Rwkv5 | MixerKind::Rwkv6 | MixerKind::Rwkv7) => "w decay",
            (Self::Decay, MixerKind::RgLru) => "a decay",
            (Self::Decay, MixerKind::S4 | MixerKind::S4d | MixerKind::H3 | MixerKind::H3Heads) => "|Ā| decay",
            (Self::Decay, _) => "decay",
            (Self::Write, _) => "write",
            (Self::Read, _) => "read",
            (Self::Entropy, _) => "entropy",
            (Self::Beta, _) => "β",
            (Self::Input, MixerKind::H3) => "gate k̄",
            (Self::Input, MixerKind::Hyena) => "gate k",
            (Self::Output, MixerKind::H3 | MixerKind::Hyena) => "gate q",
            (Self::Input, _) => "B",
            (Self::Output, _) => "C",
            (Self::Inner, _) => "gates x",
            (Self::Shutter, _) => "gate",
            (Self::Weight, MixerKind::Rwkv4) => "input g",
            (Self::Weight, MixerKind::Mamba3 | MixerKind::Mamba3Mimo) => "share λ",
            (Self::Weight, _) => "input i",
            (Self::Recurrence, _) => "recurrence r",
            (Self::Forget, _) => "forget σ(f̃)",
            (Self::Bonus, MixerKind::Rwkv4) => "bonus c",
            (Self::Bonus, _) => "bonus",
            (Self::Normaliser, _) => "normaliser",
            (Self::Receptance, MixerKind::Slstm) => "output õ",
            (Self::Receptance, _) => "receptance r",
            (Self::Rate, _) => "rate a",
        }
    }

    /// The name with formula, as far as it depends on the mixer.
    pub fn caption(self, kind: MixerKind) -> &'static str {
        match (self, kind) {
            (Self::Delta, kind) if kind.is_time_invariant() => "step size Δ, the same at every token",
            (Self::Delta, _) => "step size Δ",
            (Self::Decay, MixerKind::Mamba1) => "retention exp(ΔA), mean over n",
            (Self::Decay, MixerKind::DeltaRule) => "retention α",
            (Self::Decay, MixerKind::Retention) => "retention γ, the same at every token",
            (Self::Decay, MixerKind::Gla | MixerKind::Hgrn2) => "retention α, mean over the key dims",
            (Self::Decay, MixerKind::Rwkv5) => "retention w in (0, 1), mean over the key dims, the same at every token",
            (Self::Decay, MixerKind::Rwkv6) => "retention w in (0, 1), mean over the key dims",
            (Self::Decay, MixerKind::Rwkv7) => "retention w in (0.545, 1), mean over the key dims",
            (Self::Decay, MixerKind::RgLru) => "retention a = exp(−8 r softplus(Λ))",
            (Self::Decay, MixerKind::Rwkv4) => "retention 1 − g",
            (Self::Decay, MixerKind::Mlstm | MixerKind::Slstm) => {
                "retention σ(f̃) e^{m before − m} of the state as it is kept"
            }
            (Self::Decay, MixerKind::S4) => "retention |Ā| of the diagonal part, mean over n, the same at every token",
            (Self::Decay, MixerKind::S4d | MixerKind::H3 | MixerKind::H3Heads) => {
                "retention |Ā|, mean over n, the same at every token"
            }
            (Self::Decay, _) => "retention exp(ΔA)",
            (Self::Write, MixerKind::Mamba3) => "write ‖λ Δ B xᵀ‖",
            (Self::Write, MixerKind::Mamba3Mimo) => "write ‖λ Δ Σ X^ρ B^ρ x‖",
            (Self::Write, MixerKind::Attention) => "write ‖k‖·‖v‖",
            (Self::Write, MixerKind::DeltaRule) => "write β‖k‖·‖v‖",
            (Self::Write, MixerKind::ShortConv) => "write |B x|",
            (Self::Write, MixerKind::S4 | MixerKind::S4d) => "write ‖B̄‖|u|",
            (Self::Write, MixerKind::H3) => "write ‖B̄‖|k̄ v|",
            (Self::Write, MixerKind::H3Heads) => "write ‖B̄‖·‖k̄‖·‖v‖",
            (Self::Write, MixerKind::Hyena) => "write |k v|",
            (Self::Write, MixerKind::Rwkv4) => "write |g v|",
            (Self::Write, MixerKind::RgLru) => "write √(1 − a²) i |x|",
            (Self::Write, MixerKind::Rwkv5 | MixerKind::Rwkv6 | MixerKind::Rwkv7) => "write ‖k‖·‖v‖",
            (Self::Write, MixerKind::Slstm) => "write i |tanh z̃|",
            (Self::Write, MixerKind::Mlstm) => "write i‖k‖·‖v‖",
            (Self::Write, MixerKind::LinearAttention | MixerKind::Retention | MixerKind::Gla | MixerKind::Hgrn2) => {
                "write ‖k‖·‖v‖"
            }
            (Self::Write, _) => "write ‖Δ B xᵀ‖",
            (Self::Read, MixerKind::Attention) => "read ‖Σ p v‖",
            (Self::Read, MixerKind::DeltaRule) => "read ‖S q‖",
            (Self::Read, MixerKind::ShortConv | MixerKind::RgLru) => "read |y|",
            (Self::Read, MixerKind::S4 | MixerKind::S4d) => "read |2 Re C x|",
            (Self::Read, MixerKind::H3) => "read |q 2 Re C x|",
            (Self::Read, MixerKind::H3Heads) => "read ‖2 Re C x q‖",
            (Self::Read, MixerKind::Slstm) => "read |h|",
            (Self::Read, MixerKind::Hyena) => "read |q (K ∗ …)|",
            (Self::Read, MixerKind::Rwkv4) => "read (1 − c) |h|",
            (Self::Read, MixerKind::Mamba3Mimo) => "read |Σ g^ρ S C^ρ|",
            (Self::Read, MixerKind::Mamba1 | MixerKind::Mamba2 | MixerKind::Mamba3) => "read ‖S C‖",
            (Self::Read, _) => "read ‖S q‖",
            (Self::Entropy, _) => "entropy of the softmax row",
            (Self::Beta, _) => "write strength β",
            (Self::Input, MixerKind::H3) => "input gate k̄: the key after its shift",
            (Self::Input, MixerKind::Hyena) => "input gate k",
            (Self::Output, MixerKind::H3 | MixerKind::Hyena) => "output gate q",
            (Self::Input, _) => "input gate B",
            (Self::Output, _) => "output gate C",
            (Self::Inner, _) => "gates x between the filters, their mean",
            (Self::Shutter, _) => "output gate z before its σ, mean over the head",
            (Self::Weight, MixerKind::Rwkv4) => "input gate g in (0, 1]: the token's share of the mean",
            (Self::Weight, MixerKind::Mlstm | MixerKind::Slstm) => "input gate exp(ĩ − m) in (0, 1]",
            (Self::Weight, MixerKind::Mamba3 | MixerKind::Mamba3Mimo) => {
                "share λ in (0, 1) that is written at once, the rest with the next token"
            }
            (Self::Weight, _) => "input gate i in (0, 1)",
            (Self::Recurrence, _) => "recurrence gate r in (0, 1)",
            (Self::Forget, _) => "forget gate σ(f̃) in (0, 1)",
            (Self::Bonus, MixerKind::Rwkv5 | MixerKind::Rwkv6) => {
                "bonus Σ r u k: what the token reads of its own value"
            }
            (Self::Bonus, _) => "bonus c in (0, 1): the share of its own value that the token reads",
            (Self::Normaliser, MixerKind::Slstm) => "normaliser n: the sum of the weights",
            (Self::Normaliser, _) => "normaliser max(|n·q|, e^−m)",
            (Self::Receptance, MixerKind::Slstm) => "output gate õ before its σ",
            (Self::Receptance, _) => "receptance r before its σ",
            (Self::Rate, _) => "rate a in (0, 1) of the correction, mean over the key dims",
        }
    }

    pub fn unit(self) -> &'static str {
        if self == Self::Entropy { "bits" } else { "" }
    }

    /// Signed or not.
    pub fn map(self) -> ColourMap {
        match self {
            Self::Input | Self::Output | Self::Inner | Self::Shutter | Self::Receptance | Self::Bonus => {
                ColourMap::Diverging
            }
            _ => ColourMap::Sequential,
        }
    }

    /// Δ spans decades; the rest is read best linearly.
    pub fn scale(self) -> ValueScale {
        if matches!(self, Self::Delta | Self::Normaliser) { ValueScale::Log } else { ValueScale::Linear }
    }

    /// One number per head. Mamba-1 has N decays per channel: their mean.
    pub fn probe(self, subject: &Subject<'_>) -> Probe {
        match self {
            Self::Delta => subject.series(Point::Delta, Reduction::Full),
            Self::Decay if subject.mixer.decay_dim > 1 => subject.series(Point::Decay, Reduction::Head(Fold::Mean)),
            Self::Decay => subject.series(Point::Decay, Reduction::Full),
            Self::Write => subject.series(Point::Write, Reduction::Full),
            Self::Read => subject.series(Point::Read, Reduction::Full),
            Self::Entropy => subject.series(Point::Entropy, Reduction::Full),
            Self::Beta => subject.series(Point::Beta, Reduction::Full),
            Self::Input => subject.series(Point::Key, Reduction::Full),
            Self::Output => subject.series(Point::Query, Reduction::Full),
            Self::Inner => subject.series(Point::InnerGate, Reduction::Head(Fold::Mean)),
            Self::Shutter => subject.series(Point::Gate, Reduction::Head(Fold::Mean)),
            Self::Weight => subject.series(Point::InputGate, Reduction::Full),
            Self::Recurrence => subject.series(Point::RecurrenceGate, Reduction::Full),
            Self::Forget => subject.series(Point::ForgetGate, Reduction::Full),
            Self::Bonus => subject.series(Point::Bonus, Reduction::Full),
            Self::Normaliser => subject.series(Point::Normaliser, Reduction::Full),
            Self::Receptance => subject.series(Point::Gate, Reduction::Full),
            Self::Rate => subject.series(Point::Beta, Reduction::Head(Fold::Mean)),
        }
    }

    /// What the value of one head at one token means.
    pub fn words(self, who: &str, value: f32) -> String {
        match self {
            Self::Delta => format!("{who} takes a step of Δ = {}: larger writes more and forgets more", short(value)),
            Self::Decay => retention_words(who, value),
            Self::Write => format!("{who} writes {} at this token", short(value)),
            Self::Read => format!("{who} reads {} at this token", short(value)),
            Self::Entropy => format!("{who} spreads over about {}", tokens_words(value.exp2())),
            Self::Beta => format!("{who} replaces {} of what it holds under this key", percent(value)),
            Self::Input => format!("{who} takes its input in times {}", short(value)),
            Self::Output => format!("{who} lets its sum out times {}", short(value)),
            Self::Inner => format!("{who} lets from one filter to the next times {}", short(value)),
            Self::Weight => format!("{who} lets {} of this token in", percent(value)),
            Self::Recurrence => {
                format!("{who} has its recurrence gate at {}: the higher, the faster it forgets", short(value))
            }
            Self::Forget => retention_words(who, value),
            Self::Rate => format!("{who} takes out {} of what it holds under κ", percent(value)),
            Self::Bonus => format!("{who} reads {} of its own value beside its memory", short(value)),
            Self::Normaliser => format!("{who} divides what it reads by {}", short(value)),
            Self::Shutter | Self::Receptance => {
                let open = 1.0 / (1.0 + (-value).exp());
                format!("σ of it is {}: so far the gate of {who} is open", percent(open))
            }
        }
    }
}

/// What tells far-looking heads from near-looking ones: retention, of attention the entropy of its rows; a short convolution, all of whose
/// channels see the same few tokens, goes by its writes.
pub fn order_probe(subject: &Subject<'_>) -> Probe {
    match subject.kind() {
        MixerKind::Attention => Gate::Entropy.probe(subject),
        kind if kind.decays() => retention_probe(subject),
        _ => Gate::Write.probe(subject),
    }
}

/// What [`order_probe`] sorts by.
pub fn order_words(kind: MixerKind) -> &'static str {
    match kind {
        MixerKind::Attention => "focused to broad",
        kind if kind.decays() => "local to global",
        _ => "weak to strong",
    }
}

/// Retention per head, `[H]`; of a Mamba-1 channel that of the state entry that keeps longest, which sets how far it remembers.
pub fn retention_probe(subject: &Subject<'_>) -> Probe {
    let reduction = if subject.mixer.decay_dim > 1 { Reduction::Head(Fold::Max) } else { Reduction::Full };
    subject.series(Point::Decay, reduction)
}

/// 'half-life 0.4 – 3.1 – 120 tokens' of min, median and max retention.
pub fn half_lives(spread: [f32; 3]) -> String {
    let words = spread.map(|r| {
        half_life(r).map_or_else(|| "?".to_owned(), |t| tokens_words(t).replace(" tokens", "").replace(" token", ""))
    });
    format!("half-life {} – {} – {} tokens", words[0], words[1], words[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixer(kind: MixerKind, gated: bool) -> Geometry {
        Geometry {
            kind,
            heads: 2,
            head_dim: 4,
            state_dim: 4,
            groups: 1,
            rank: 1,
            decay_dim: 0,
            conv_taps: 0,
            gated,
            window: None,
            state_bytes: 0,
            kv_bytes_per_token: 0,
        }
    }

    #[test]
    fn every_kind_has_gates_and_words() {
        use MixerKind::*;
        for kind in [
            Mamba1,
            Mamba2,
            Mamba3,
            Mamba3Mimo,
            DeltaRule,
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
            ShortConv,
            Attention,
        ] {
            let gates = Gate::of(&mixer(kind, true));
            assert!(!gates.is_empty() && gates.iter().all(|gate| !gate.caption(kind).is_empty()));
            assert_eq!(gates.contains(&Gate::Delta), kind.has_delta(), "{kind:?}");
            assert_eq!(gates.contains(&Gate::Decay), kind.decays(), "{kind:?}");
        }
        assert!(Gate::of(&mixer(FeedForward, false)).is_empty());
        assert!(!Gate::of(&mixer(Attention, false)).contains(&Gate::Shutter));
        assert_eq!(Gate::Beta.words("head 1", 0.25), "head 1 replaces 25 % of what it holds under this key");
        assert_eq!(Gate::Entropy.words("head 1", 2.0), "head 1 spreads over about 4.0 tokens");
        assert_eq!(half_lives([0.5, 0.94, 1.0]), "half-life 1 – 11 – over 10,000 tokens");
    }
}
