//! One number per layer and token: the choices of the layer map, and why a layer may have no such number.

use statescope_engine::protocol::{Fold, LayerInfo, MixerKind, Point, Probe, Reduction};

use super::with_part;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum LayerQuantity {
    Write,
    Resid,
    State,
    Delta,
    Beta,
    Decay,
    Read,
    Entropy,
    Out,
}

impl LayerQuantity {
    pub const ALL: [Self; 9] = [
        Self::Write,
        Self::Resid,
        Self::State,
        Self::Delta,
        Self::Beta,
        Self::Decay,
        Self::Read,
        Self::Entropy,
        Self::Out,
    ];

    /// The name with its reduction over the layer.
    pub fn label(self) -> &'static str {
        match self {
            Self::Write => "write strength",
            Self::Resid => "residual norm",
            Self::State => "state norm",
            Self::Delta => "mean Δ",
            Self::Beta => "mean β",
            Self::Decay => "mean retention",
            Self::Read => "read strength",
            Self::Entropy => "attention entropy",
            Self::Out => "mixer output norm",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::Entropy => "bits",
            _ => "",
        }
    }

    /// How the numbers of the layer became one.
    pub fn reduction(self) -> &'static str {
        match self {
            Self::Write | Self::Read => "norm over heads",
            Self::State => "norm over all entries",
            Self::Resid | Self::Out => "norm over the width",
            Self::Delta | Self::Beta => "mean over heads",
            Self::Decay => "mean over heads and state entries",
            Self::Entropy => "mean over heads",
        }
    }

    pub fn formula(self) -> &'static str {
        match self {
            Self::Write => {
                "√Σ_h ‖Δ_t B_t x_tᵀ‖²; of the delta rule √Σ_h (β‖k_t‖·‖v_t‖)², of attention √Σ_h (‖k_t‖·‖v_t‖)², of a short convolution ‖B_t ⊙ x_t‖"
            }
            Self::Resid => "‖r_t‖ of the residual stream after the layer",
            Self::State => "‖S_t‖_F = √Σ S²",
            Self::Delta => "mean of Δ_t = softplus(W_Δ u_t + b)",
            Self::Beta => "mean of β_t = σ(W_β u_t), the share of what is held under a key that is replaced",
            Self::Decay => "mean of exp(Δ_t A), of the delta rule of α_t: 1 keeps all, 0 forgets all",
            Self::Read => "√Σ_h ‖S_tᵀ C_t‖², the skip D·x left out",
            Self::Entropy => "mean of −Σ_j p_ij log₂ p_ij over the softmax rows",
            Self::Out => "‖o_t‖, what the mixer (or a layer that is feed-forward alone) adds to the residual stream",
        }
    }

    pub fn point(self) -> Point {
        match self {
            Self::Write => Point::Write,
            Self::Resid => Point::Resid,
            Self::State => Point::State,
            Self::Delta => Point::Delta,
            Self::Beta => Point::Beta,
            Self::Decay => Point::Decay,
            Self::Read => Point::Read,
            Self::Entropy => Point::Entropy,
            Self::Out => Point::Out,
        }
    }

    pub fn probe(self, layer: usize, part: usize) -> Probe {
        let fold = match self {
            Self::Delta | Self::Beta | Self::Decay | Self::Entropy => Fold::Mean,
            _ => Fold::Norm,
        };
        with_part(Probe::series(layer, self.point(), Reduction::Layer(fold)), part)
    }

    pub fn exists_in(self, kind: MixerKind) -> bool {
        match self {
            Self::State => kind.is_recurrent(),
            Self::Delta => kind.has_delta(),
            Self::Beta => kind == MixerKind::DeltaRule,
            Self::Decay => kind.decays(),
            Self::Entropy => kind == MixerKind::Attention,
            Self::Write | Self::Read => kind.mixes(),
            Self::Resid | Self::Out => true,
        }
    }

    /// The mixers of a layer that have the number: what belongs to the layer as a whole is told once.
    pub fn parts_of(self, layer: &LayerInfo) -> Vec<usize> {
        match self {
            Self::Resid => vec![0],
            _ => (0..layer.parts.len()).filter(|part| self.exists_in(layer.parts[*part].kind)).collect(),
        }
    }

    /// Why a layer of this kind has no such number; empty where it has.
    pub fn absence(self, kind: MixerKind) -> &'static str {
        if self.exists_in(kind) {
            return "";
        }
        match (self, kind) {
            (_, MixerKind::FeedForward) => "feed-forward alone: no mixer",
            (Self::State, MixerKind::Hyena) => "Hyena keeps the tokens themselves",
            (Self::State, _) => "attention keeps no state",
            (Self::Delta, MixerKind::Attention) => "no Δ in attention",
            (Self::Delta, MixerKind::DeltaRule) => "no Δ: the delta rule has β and α",
            (Self::Delta, MixerKind::ShortConv) => "no Δ in a short convolution",
            (Self::Delta, _) => "no Δ: the gates are its own",
            (Self::Beta, _) => "no β: not a delta rule",
            (Self::Decay, MixerKind::Hyena) => "Hyena's filter does what it likes",
            (Self::Decay, MixerKind::Attention) => "attention forgets nothing",
            (Self::Decay, MixerKind::LinearAttention) => "linear attention forgets nothing",
            (Self::Decay, _) => "a short convolution holds its last inputs whole",
            _ => "no softmax here",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [MixerKind; 24] = [
        MixerKind::Mamba1,
        MixerKind::Mamba2,
        MixerKind::Mamba3,
        MixerKind::Mamba3Mimo,
        MixerKind::DeltaRule,
        MixerKind::LinearAttention,
        MixerKind::Retention,
        MixerKind::Gla,
        MixerKind::Hgrn2,
        MixerKind::Rwkv4,
        MixerKind::Rwkv5,
        MixerKind::Rwkv6,
        MixerKind::Rwkv7,
        MixerKind::RgLru,
        MixerKind::Mlstm,
        MixerKind::Slstm,
        MixerKind::S4,
        MixerKind::S4d,
        MixerKind::H3,
        MixerKind::H3Heads,
        MixerKind::Hyena,
        MixerKind::ShortConv,
        MixerKind::Attention,
        MixerKind::FeedForward,
    ];

    #[test]
    fn what_is_absent_has_a_reason() {
        for quantity in LayerQuantity::ALL {
            for kind in KINDS {
                assert_eq!(quantity.exists_in(kind), quantity.absence(kind).is_empty(), "{quantity:?} of {kind:?}");
            }
        }
        assert!(LayerQuantity::Resid.exists_in(MixerKind::FeedForward));
        assert!(!LayerQuantity::Delta.exists_in(MixerKind::DeltaRule));
    }
}
