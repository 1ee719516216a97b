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
    /// z of gated attention.
    Shutter,
}

impl Gate {
    pub const ALL: [Self; 9] = [
        Self::Delta,
        Self::Decay,
        Self::Write,
        Self::Read,
        Self::Entropy,
        Self::Beta,
        Self::Input,
        Self::Output,
        Self::Shutter,
    ];

    /// What this mixer has.
    pub fn of(mixer: &Geometry) -> &'static [Self] {
        match mixer.kind {
            MixerKind::Mamba1 | MixerKind::Mamba2 => &[Self::Delta, Self::Decay, Self::Write, Self::Read],
            MixerKind::DeltaRule => &[Self::Decay, Self::Beta, Self::Write, Self::Read],
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
            (Self::Decay, MixerKind::DeltaRule) => "α decay",
            (Self::Decay, _) => "decay",
            (Self::Write, _) => "write",
            (Self::Read, _) => "read",
            (Self::Entropy, _) => "entropy",
            (Self::Beta, _) => "β",
            (Self::Input, _) => "B",
            (Self::Output, _) => "C",
            (Self::Shutter, _) => "gate",
        }
    }

    /// The name with formula, as far as it depends on the mixer.
    pub fn caption(self, kind: MixerKind) -> &'static str {
        match (self, kind) {
            (Self::Delta, _) => "step size Δ",
            (Self::Decay, MixerKind::Mamba1) => "retention exp(ΔA), mean over n",
            (Self::Decay, MixerKind::DeltaRule) => "retention α",
            (Self::Decay, _) => "retention exp(ΔA)",
            (Self::Write, MixerKind::Attention) => "write ‖k‖‖v‖",
            (Self::Write, MixerKind::DeltaRule) => "write β‖k‖‖v‖",
            (Self::Write, MixerKind::ShortConv) => "write |B x|",
            (Self::Write, _) => "write ‖Δ B xᵀ‖",
            (Self::Read, MixerKind::Attention) => "read ‖Σ p v‖",
            (Self::Read, MixerKind::DeltaRule) => "read ‖S q‖",
            (Self::Read, MixerKind::ShortConv) => "read |y|",
            (Self::Read, _) => "read ‖S C‖",
            (Self::Entropy, _) => "entropy of the softmax row",
            (Self::Beta, _) => "write strength β",
            (Self::Input, _) => "input gate B",
            (Self::Output, _) => "output gate C",
            (Self::Shutter, _) => "output gate z before its σ, mean over the head",
        }
    }

    pub fn unit(self) -> &'static str {
        if self == Self::Entropy { "bits" } else { "" }
    }

    /// Signed or not.
    pub fn map(self) -> ColourMap {
        match self {
            Self::Input | Self::Output | Self::Shutter => ColourMap::Diverging,
            _ => ColourMap::Sequential,
        }
    }

    /// Δ spans decades; the rest is read best linearly.
    pub fn scale(self) -> ValueScale {
        if self == Self::Delta { ValueScale::Log } else { ValueScale::Linear }
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
            Self::Shutter => subject.series(Point::Gate, Reduction::Head(Fold::Mean)),
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
            Self::Shutter => {
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
        for kind in [Mamba1, Mamba2, DeltaRule, ShortConv, Attention] {
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
