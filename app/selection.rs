//! The one selection that every view shows, the hover that only highlights, and the one time axis.

use std::ops::Range;

/// What is pinned. Changing it changes the probes.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Selection {
    pub layer: usize,
    /// Parallel mixer inside the layer.
    pub part: usize,
    /// Head, or channel of a Mamba-1 layer.
    pub head: usize,
    /// Channel inside the head; none means the mean over them where a matrix needs one.
    pub channel: Option<usize>,
    /// The token looked at (query, matrix row). None follows the newest one: *live*.
    pub query: Option<usize>,
    /// The token looked back to (key, matrix column).
    pub key: Option<usize>,
    /// Other end of a range of tokens pinned with Shift.
    pub range_end: Option<usize>,
}

/// What the pointer is on, in whichever view; all views highlight it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hover {
    pub layer: Option<usize>,
    /// Parallel mixer inside the layer; without one, whichever is looked at.
    pub part: Option<usize>,
    pub head: Option<usize>,
    /// Token, or matrix row.
    pub query: Option<usize>,
    /// Matrix column.
    pub key: Option<usize>,
}

/// The tokens in sight, shared by layer map, gates, norms, matrix columns and timeline.
#[derive(Clone, Debug, PartialEq)]
pub enum TimeAxis {
    /// All tokens, growing with the text.
    Fit,
    /// A fixed stretch of tokens.
    Window(Range<f64>),
}

impl TimeAxis {
    /// The visible stretch for a text of `length` tokens, in token units (token t covers t..t+1).
    pub fn visible(&self, length: usize) -> Range<f64> {
        match self {
            // A few tokens should not be drawn as slabs half a screen wide.
            Self::Fit => 0.0..length.max(32) as f64,
            Self::Window(range) => range.clone(),
        }
    }
}
