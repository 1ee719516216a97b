//! Work on both cores, with the same bits whatever the number of threads.
//!
//! The caller cuts the work into pieces whose boundaries depend on the shapes alone; threads only decide who computes a piece.

mod columns;
mod team;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

pub(crate) use columns::{Columns, columns};
use team::{Ended, Team};

/// Work (in multiply-adds, or as many ns × 8) below which handing it over costs more than it saves.
pub const MIN_PARALLEL_WORK: usize = 1 << 16;

/// Work that another thread's help is worth waiting for even where other programs, or the window, want the cores too.
const LARGE_WORK: usize = 1 << 20;
/// So many smaller ops are done alone after one whose helper did not come back in time: it had lost its core, and a time slice lasts as
/// long as a hundred ops. Twice as many each time it happens again soon.
const ALONE: std::ops::RangeInclusive<usize> = 32..=8192;
/// What is left of them, and how many they were.
static CROWDED: AtomicUsize = AtomicUsize::new(0);
static LAST_ALONE: AtomicUsize = AtomicUsize::new(0);

static TEAM: RwLock<Option<Arc<Team>>> = RwLock::new(None);

/// Sets how many threads share the work of an op, the calling one included (0 counts as 1). Before the first call: one a core.
pub fn set_threads(threads: usize) {
    *TEAM.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(Team::new(threads.max(1) - 1)));
}

fn team() -> Arc<Team> {
    if let Some(team) = &*TEAM.read().unwrap_or_else(PoisonError::into_inner) {
        return team.clone();
    }
    let threads = || std::thread::available_parallelism().map_or(1, |n| n.get());
    TEAM.write()
        .unwrap_or_else(PoisonError::into_inner)
        .get_or_insert_with(|| Arc::new(Team::new(threads() - 1)))
        .clone()
}

/// How many threads share the work of an op.
pub fn threads() -> usize {
    team().helpers() + 1
}

/// Calls `f` once for every item, on all threads where `work` (multiply-adds in total) is worth it. Items must not depend on the
/// thread count, or no bit on how they are cut: then neither do the results.
pub fn for_each<I>(items: I, work: usize, f: impl Fn(I::Item) + Sync)
where
    I: ExactSizeIterator<Item: Send> + Send,
{
    let count = items.len();
    // A test that forces a set does so for its own thread only.
    #[cfg(test)]
    if crate::cpu::simd::FORCED.get().is_some() {
        return items.for_each(f);
    }
    if count < 2 || work < MIN_PARALLEL_WORK {
        return items.for_each(f);
    }
    let alone = CROWDED.load(Ordering::Relaxed);
    if work < LARGE_WORK && alone > 0 {
        CROWDED.store(alone - 1, Ordering::Relaxed);
        return items.for_each(f);
    }
    let queue = Mutex::new(items);
    let take = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let ended = team().share(&|| {
        while let Some(item) = take() {
            f(item);
        }
    });
    if work < LARGE_WORK && ended != Ended::Alone {
        let last = LAST_ALONE.load(Ordering::Relaxed);
        let late = ended == Ended::Late;
        let next = if late { (2 * last).clamp(*ALONE.start(), *ALONE.end()) } else { last.saturating_sub(8) };
        LAST_ALONE.store(next, Ordering::Relaxed);
        if late {
            CROWDED.store(next, Ordering::Relaxed);
        }
    }
}

/// Calls `f(index, chunk)` for chunks of `size` elements (the last may be shorter); see [`for_each`].
pub fn for_each_chunk<T: Send>(data: &mut [T], size: usize, work: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    for_each(data.chunks_mut(size.max(1)).enumerate(), work, |(i, chunk)| f(i, chunk));
}
