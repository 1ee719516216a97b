//! The four or three gate quantities of a mixer: where they come from and what a value means in words.

use statescope_engine::protocol::{Fold, MixerKind, Point, Probe, Reduction};

use crate::theme::ColourMap;
use crate::view::quantity::{Subject, half_life, retention_words, short, tokens_words};
use crate::widget::heatmap::ValueScale;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Gate {
    Delta,
    Decay,
    Write,
    Read,
    Entropy,
}

impl Gate {
    pub const ALL: [Self; 5] = [Self::Delta, Self::Decay, Self::Write, Self::Read, Self::Entropy];

    /// What this kind of mixer has.
    pub fn of(kind: MixerKind) -> &'static [Self] {
        if kind.is_recurrent() {
            &[Self::Delta, Self::Decay, Self::Write, Self::Read]
        } else {
            &[Self::Write, Self::Read, Self::Entropy]
        }
    }

    pub fn index(self) -> usize {
        Self::ALL.iter().position(|gate| *gate == self).unwrap_or(0)
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Delta => "Δ",
            Self::Decay => "decay",
            Self::Write => "write",
            Self::Read => "read",
            Self::Entropy => "entropy",
        }
    }

    /// The name with formula, as far as it depends on the mixer.
    pub fn caption(self, kind: MixerKind) -> &'static str {
        match (self, kind) {
            (Self::Delta, _) => "step size Δ",
            (Self::Decay, MixerKind::Mamba1) => "retention exp(ΔA), mean over n",
            (Self::Decay, _) => "retention exp(ΔA)",
            (Self::Write, MixerKind::Attention) => "write ‖k‖‖v‖",
            (Self::Write, _) => "write ‖Δ B xᵀ‖",
            (Self::Read, MixerKind::Attention) => "read ‖Σ p v‖",
            (Self::Read, _) => "read ‖S C‖",
            (Self::Entropy, _) => "entropy of the softmax row",
        }
    }

    pub fn unit(self) -> &'static str {
        if self == Self::Entropy { "bits" } else { "" }
    }

    pub fn map(self) -> ColourMap {
        ColourMap::Sequential
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
        }
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

    #[test]
    fn every_kind_has_gates_and_words() {
        for kind in [MixerKind::Mamba1, MixerKind::Mamba2, MixerKind::Attention] {
            assert!(Gate::of(kind).iter().all(|gate| !gate.caption(kind).is_empty()));
        }
        assert!(!Gate::of(MixerKind::Attention).contains(&Gate::Delta));
        assert_eq!(Gate::Entropy.words("head 1", 2.0), "head 1 spreads over about 4.0 tokens");
        assert_eq!(half_lives([0.5, 0.94, 1.0]), "half-life 1 – 11 – over 10,000 tokens");
    }
}
