//! Kinds of token mixers, and what each has.

/// What kind of token mixer a layer (or a part of it) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MixerKind {
    /// Selective scan (S6): one diagonal state per channel.
    Mamba1,
    /// State-space duality (SSD): one scalar decay per head.
    Mamba2,
    /// State space with a turning state, written by the trapezoid rule (Mamba-3).
    Mamba3,
    /// The same with several inputs and outputs a head, which makes a matrix for each channel (Mamba-3 MIMO).
    Mamba3Mimo,
    /// Gated delta rule: a state that corrects what it holds under a key.
    DeltaRule,
    /// Linear attention: a state that forgets nothing.
    LinearAttention,
    /// Retention: one fixed decay a head (RetNet).
    Retention,
    /// Gated linear attention: a decay for each key dimension (GLA).
    Gla,
    /// Gated linear attention whose key is what its decay leaves (HGRN2).
    Hgrn2,
    /// Exponentially weighted mean of the values, one number a channel (RWKV-4).
    Rwkv4,
    /// Linear attention with a fixed decay for each key dimension that reads before it writes, with a bonus for the token itself (RWKV-5).
    Rwkv5,
    /// The same with a decay of the token (RWKV-6).
    Rwkv6,
    /// Linear attention that corrects what it holds: decay by key and a rank-one correction (RWKV-7).
    Rwkv7,
    /// Real-gated linear recurrent unit, one number a channel (Griffin).
    RgLru,
    /// Matrix LSTM: exponential input gate, normalised read (xLSTM).
    Mlstm,
    /// Scalar LSTM: exponential gates that see what was read before (xLSTM).
    Slstm,
    /// Linear time-invariant state space, diagonal plus low rank (S4).
    S4,
    /// Linear time-invariant state space, diagonal (S4D).
    S4d,
    /// A shift and a diagonal state space between two gates (H3).
    H3,
    /// The same with several channels a head: outer products in the state (H3 with heads).
    H3Heads,
    /// A filter as long as the text between two gates (Hyena).
    Hyena,
    /// Double-gated short convolution: the last few tokens and nothing else.
    ShortConv,
    /// Causal softmax attention with a KV cache.
    Attention,
    /// No mixer: a layer that is feed-forward alone.
    FeedForward,
}

impl MixerKind {
    /// The name shown to people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Mamba1 => "Mamba-1",
            Self::Mamba2 => "Mamba-2",
            Self::Mamba3 => "Mamba-3",
            Self::Mamba3Mimo => "Mamba-3 MIMO",
            Self::DeltaRule => "gated delta rule",
            Self::LinearAttention => "linear attention",
            Self::Retention => "retention",
            Self::Gla => "gated linear attention",
            Self::Hgrn2 => "HGRN2",
            Self::Rwkv4 => "RWKV-4",
            Self::Rwkv5 => "RWKV-5",
            Self::Rwkv6 => "RWKV-6",
            Self::Rwkv7 => "RWKV-7",
            Self::RgLru => "RG-LRU",
            Self::Mlstm => "mLSTM",
            Self::Slstm => "sLSTM",
            Self::S4 => "S4",
            Self::S4d => "S4D",
            Self::H3 => "H3",
            Self::H3Heads => "H3 with heads",
            Self::Hyena => "Hyena",
            Self::ShortConv => "short convolution",
            Self::Attention => "attention",
            Self::FeedForward => "feed-forward",
        }
    }

    /// Whether the mixer carries a state of fixed size instead of a growing KV cache.
    pub fn is_recurrent(self) -> bool {
        !matches!(self, Self::Attention | Self::Hyena | Self::FeedForward)
    }

    /// Whether tokens are mixed at all, so that there are a matrix, strengths, keys and values.
    pub fn mixes(self) -> bool {
        self != Self::FeedForward
    }

    /// Whether the state fades by a factor, [`Point::Decay`].
    pub fn decays(self) -> bool {
        self.is_recurrent() && !matches!(self, Self::ShortConv | Self::LinearAttention)
    }

    /// Whether the logarithm of the decay is part of the run, [`Point::LogDecay`].
    pub fn has_log_decay(self) -> bool {
        let given = matches!(self, Self::Mamba1 | Self::Mamba2 | Self::Retention | Self::Rwkv5);
        self.decays() && !self.is_time_invariant() && !given
    }

    /// Whether a token asks with a query or a read vector of its own, [`Point::Query`].
    pub fn has_query(self) -> bool {
        self.has_key() && !matches!(self, Self::Rwkv4 | Self::RgLru)
    }

    /// Whether a token writes under a key, a gate or a write vector of its own, [`Point::Key`].
    pub fn has_key(self) -> bool {
        self.mixes() && !matches!(self, Self::S4 | Self::S4d | Self::Slstm)
    }

    /// Whether there is a state space that is the same at every token, with two forms to run it in, [`Point::Form`].
    pub fn is_time_invariant(self) -> bool {
        matches!(self, Self::S4 | Self::S4d | Self::H3 | Self::H3Heads)
    }

    /// Whether an input gate weighs what is written, [`Point::InputGate`].
    pub fn has_input_gate(self) -> bool {
        matches!(self, Self::Rwkv4 | Self::RgLru | Self::Mlstm | Self::Slstm | Self::Mamba3 | Self::Mamba3Mimo)
    }

    /// Whether a step size is selected, [`Point::Delta`].
    pub fn has_delta(self) -> bool {
        matches!(self, Self::Mamba1 | Self::Mamba2 | Self::Mamba3 | Self::Mamba3Mimo) || self.is_time_invariant()
    }

    /// What one row of `Geometry::heads` is called.
    pub fn head_noun(self) -> &'static str {
        match self {
            Self::Mamba1
            | Self::Mamba3Mimo
            | Self::S4
            | Self::S4d
            | Self::H3
            | Self::Hyena
            | Self::ShortConv
            | Self::Slstm
            | Self::Rwkv4
            | Self::RgLru => "channel",
            _ => "head",
        }
    }
}
