//! What a model takes on a GPU, and whether there is room for it: arithmetic that needs no GPU.

use crate::protocol::{Geometry, ModelInfo};
use crate::runner::DeviceError;

/// Positions that a KV cache starts with, and that it grows by where there is no room to double.
pub const CACHE_PAGE: usize = 2048;
/// The shortest stretch of a prompt that a GPU reads at once.
pub const SHORTEST_CHUNK: usize = 128;
/// Rows of logits made at once.
pub const LOGIT_ROWS: usize = 1024;
/// Bytes that are left to others (graphs, the driver, other programs) when a model is said to fit.
const SPARE: usize = 1 << 30;
const MIB: usize = 1 << 20;
/// Bytes for what is staged on its way to the tape, tables and ranks.
const STAGED: usize = 4 << 20;

/// Bytes of GPU memory that a model takes before its first token is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    pub weights: usize,
    /// States, convolutions, and keys and values of the first [`CACHE_PAGE`] tokens.
    pub memory: usize,
    /// What reading [`SHORTEST_CHUNK`] tokens takes.
    pub workspace: usize,
}

/// How much can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes free on the GPU.
    pub free: usize,
    /// Bytes that the user allows; all if none.
    pub allowed: Option<usize>,
}

impl Needed {
    pub fn of(info: &ModelInfo) -> Self {
        Self {
            weights: info.weights_bytes,
            memory: info.state_bytes + info.kv_bytes_per_token * CACHE_PAGE,
            workspace: workspace(info, SHORTEST_CHUNK),
        }
    }

    fn total(&self) -> usize {
        self.weights.saturating_add(self.memory).saturating_add(self.workspace)
    }
}

impl Room {
    /// # Errors
    /// The model `name` does not fit: what it needs, what is allowed, what is free.
    pub fn check(&self, name: &str, needed: Needed) -> Result<(), DeviceError> {
        let total = needed.total();
        let spared = total.max(needed.weights.saturating_add(needed.memory).saturating_add(SPARE));
        let Needed { weights, memory, workspace } = needed;
        let [weights, memory, workspace, total] = [weights, memory, workspace, total].map(|bytes| bytes.div_ceil(MIB));
        let parts = match memory + workspace {
            0 => format!("at least {weights} MiB of GPU memory for its weights"),
            _ => format!(
                "{total} MiB of GPU memory (weights {weights}, states and caches {memory}, workspace {workspace})"
            ),
        };
        let free = self.free / MIB;
        match self.allowed {
            Some(allowed) if needed.total() > allowed => Err(DeviceError::memory(format!(
                "{name} needs {parts}; {} MiB are allowed and {free} MiB are free; allow more with --gpu-memory, take a smaller model, or run on the CPU",
                allowed / MIB
            ))),
            _ if spared > self.free => Err(DeviceError::memory(format!(
                "{name} needs {parts} and 1 GiB to spare, and {free} MiB are free; take a smaller model, or run on the CPU"
            ))),
            _ => Ok(()),
        }
    }
}

/// Bytes that reading `tokens` tokens at once takes besides weights and memories: the rows of one layer and of logits, in f32. A little more
/// than is used.
pub fn workspace(info: &ModelInfo, tokens: usize) -> usize {
    let mixer = |part: &Geometry| 8 * part.heads * part.head_dim + 8 * part.groups * part.state_dim + 2 * part.heads;
    let layer = info.layers.iter().map(|layer| {
        layer.parts.iter().map(mixer).sum::<usize>()
            + layer.feed_forward.map_or(0, |feed_forward| 3 * feed_forward.width)
    });
    let row = 6 * info.hidden_size + layer.max().unwrap_or(0);
    STAGED + size_of::<f32>() * (tokens * row + (tokens.min(LOGIT_ROWS) + 1) * info.vocab_size)
}

/// Tokens of a prompt to read at once: at most `longest`, a multiple of the grid, and as many as there is `room` for.
pub fn chunk(longest: usize, room: usize, workspace: impl Fn(usize) -> usize) -> usize {
    let mut chunk = longest;
    while chunk > SHORTEST_CHUNK && workspace(chunk) > room {
        chunk = (chunk / 2).next_multiple_of(SHORTEST_CHUNK);
    }
    chunk
}

/// Positions that a KV cache of `now` should get so that `wanted` fit, each of `bytes` over all layers, and of `largest` in the layer that has
/// most: a power of two if that takes no more than half of the `room`, else whole pages. A layer's cache is moved while both copies are there.
///
/// # Errors
/// How many bytes more the least of these takes.
pub fn grown_cache(now: usize, wanted: usize, bytes: usize, largest: usize, room: usize) -> Result<usize, usize> {
    let least = wanted.next_multiple_of(CACHE_PAGE);
    let takes = |capacity: usize| (capacity - now).saturating_mul(bytes).saturating_add(now * largest);
    let doubled = wanted.next_power_of_two().max(CACHE_PAGE);
    match (takes(doubled), takes(least)) {
        (much, _) if much <= room / 2 => Ok(doubled),
        (_, little) if little <= room => Ok(least),
        (_, little) => Err(little),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: usize = 1 << 30;

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let needed = Needed { weights: 600 * MIB, memory: 20 * MIB, workspace: 30 * MIB };
        let check = |free, allowed| Room { free, allowed }.check("toy", needed);
        assert_eq!(check(80 * GIB, None), Ok(()));
        assert_eq!(check(80 * GIB, Some(650 * MIB)), Ok(()), "exactly what it needs");
        let refused = check(80 * GIB, Some(650 * MIB - 1)).unwrap_err();
        assert!(refused.is_memory());
        let text = refused.to_string();
        for number in ["toy", "650 MiB", "weights 600", "caches 20", "workspace 30", "649 MiB are allowed", "81920 MiB"]
        {
            assert!(text.contains(number), "{number} in {text}");
        }
        // Of what is free, 1 GiB is left to others.
        assert_eq!(check(620 * MIB + GIB, None), Ok(()));
        let full = check(620 * MIB + GIB - 1, Some(4 * GIB)).unwrap_err().to_string();
        assert!(full.contains("1643 MiB are free") && !full.contains("allowed"), "{full}");
        let early = Needed { weights: 5 * GIB, ..Needed::default() };
        let early = Room { free: 8 * GIB, allowed: Some(4 * GIB) }.check("toy", early).unwrap_err().to_string();
        assert!(early.contains("at least 5120 MiB") && early.contains("4096 MiB are allowed"), "{early}");
        let absurd = Needed { weights: usize::MAX, memory: 1, workspace: 1 };
        assert!(Room { free: usize::MAX, allowed: Some(usize::MAX - 1) }.check("toy", absurd).is_err());
    }

    #[test]
    fn chunks_shrink_until_they_fit() {
        let workspace = |tokens| tokens * 100;
        assert_eq!(chunk(8192, usize::MAX, workspace), 8192);
        assert_eq!(chunk(8192, 819_200, workspace), 8192);
        assert_eq!(chunk(8192, 819_199, workspace), 4096);
        assert_eq!(chunk(640, 60_000, workspace), 384);
        assert_eq!(chunk(8192, 0, workspace), SHORTEST_CHUNK);
    }

    #[test]
    fn caches_double_while_there_is_room() {
        assert_eq!(grown_cache(0, 1, 10, 4, 10 * CACHE_PAGE), Ok(CACHE_PAGE));
        assert_eq!(grown_cache(2048, 2049, 10, 4, usize::MAX), Ok(4096));
        assert_eq!(grown_cache(8192, 8193, 10, 4, 8192 * 28), Ok(16384));
        assert_eq!(grown_cache(8192, 8193, 10, 4, 8192 * 28 - 1), Ok(10240), "a page more");
        assert_eq!(grown_cache(8192, 8193, 10, 4, 2048 * 10 + 8192 * 4 - 1), Err(2048 * 10 + 8192 * 4));
    }
}
