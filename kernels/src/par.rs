//! Work on both cores, with the same bits whatever the number of threads.
//!
//! The caller cuts the work into pieces whose boundaries depend on the shapes alone; threads only decide who computes a piece.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Work (in multiply-adds, or as many ns × 8) below which handing it over costs more than it saves.
pub const MIN_PARALLEL_WORK: usize = 1 << 16;

/// Work that another thread's help is worth waiting for even where other programs, or the window, want the cores too.
const LARGE_WORK: usize = 1 << 20;
/// So many smaller ops are done alone after one whose helper did not come back in time: it had lost its core, and a time slice lasts as
/// long as a hundred ops. Twice as many each time it happens again soon.
const ALONE: std::ops::RangeInclusive<usize> = 128..=8192;
/// What is left of them, and how many they were.
static CROWDED: AtomicUsize = AtomicUsize::new(0);
static LAST_ALONE: AtomicUsize = AtomicUsize::new(0);

/// How long a thread looks for more work before it sleeps: longer than what lies between two ops of a forward pass, whose threads
/// would otherwise be woken, which takes longer than many an op.
const LINGER: Duration = Duration::from_micros(200);
/// How long the calling thread watches the others end before it sleeps, too.
const WATCH: Duration = Duration::from_micros(100);

struct Workers {
    /// Threads that share the work, the calling one included.
    threads: usize,
    /// The others; none when the caller works alone.
    pool: Option<Arc<rayon::ThreadPool>>,
}

static WORKERS: RwLock<Option<Workers>> = RwLock::new(None);

fn start(threads: usize) -> Workers {
    let threads = threads.max(1);
    let build = || {
        rayon::ThreadPoolBuilder::new().num_threads(threads - 1).thread_name(|i| format!("kernels-{}", i + 1)).build()
    };
    // Without threads the results are the same, only later.
    let pool = if threads > 1 { build().ok().map(Arc::new) } else { None };
    Workers { threads: if pool.is_some() { threads } else { 1 }, pool }
}

/// Sets how many threads share the work of an op, the calling one included (0 counts as 1). Before the first call: one a core.
pub fn set_threads(threads: usize) {
    *WORKERS.write().unwrap_or_else(PoisonError::into_inner) = Some(start(threads));
}

fn workers() -> (usize, Option<Arc<rayon::ThreadPool>>) {
    if let Some(workers) = &*WORKERS.read().unwrap_or_else(PoisonError::into_inner) {
        return (workers.threads, workers.pool.clone());
    }
    let mut slot = WORKERS.write().unwrap_or_else(PoisonError::into_inner);
    let workers = slot.get_or_insert_with(|| start(std::thread::available_parallelism().map_or(1, |n| n.get())));
    (workers.threads, workers.pool.clone())
}

/// How many threads share the work of an op.
pub fn threads() -> usize {
    workers().0
}

/// Calls `f` once for every item, on all threads where `work` (multiply-adds in total) is worth it. Items must not depend on the
/// thread count: then neither do the results.
pub fn for_each<I>(items: I, work: usize, f: impl Fn(I::Item) + Sync)
where
    I: ExactSizeIterator<Item: Send> + Send,
{
    let count = items.len();
    // A test that forces the portable set does so for its own thread only.
    #[cfg(test)]
    if crate::cpu::simd::FORCE_PORTABLE.get() {
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
    let (threads, pool) = workers();
    let Some(pool) = pool else {
        return items.for_each(f);
    };
    let queue = Mutex::new(items);
    let take = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let drain = || {
        while let Some(item) = take() {
            f(item);
        }
    };
    let helpers = AtomicUsize::new(threads.min(count) - 1);
    let help = || {
        drain();
        if !LINGERS.get() {
            rayon::spawn(linger);
        }
        helpers.fetch_sub(1, Ordering::Release);
    };
    pool.in_place_scope(|scope| {
        for _ in 1..threads.min(count) {
            scope.spawn(|_| help());
        }
        drain();
        let back_in_time = spin_while(WATCH, || helpers.load(Ordering::Acquire) > 0);
        if work < LARGE_WORK {
            let last = LAST_ALONE.load(Ordering::Relaxed);
            let next =
                if back_in_time { last.saturating_sub(8) } else { (2 * last).clamp(*ALONE.start(), *ALONE.end()) };
            LAST_ALONE.store(next, Ordering::Relaxed);
            if !back_in_time {
                CROWDED.store(next, Ordering::Relaxed);
            }
        }
    });
}

thread_local! {
    /// Whether this thread of the pool is in [`linger`].
    static LINGERS: Cell<bool> = const { Cell::new(false) };
}

/// Keeps a thread of the pool awake, doing what is handed over, until nothing was for a while.
fn linger() {
    if LINGERS.replace(true) {
        return;
    }
    while spin_while(LINGER, || !matches!(rayon::yield_now(), Some(rayon::Yield::Executed))) {}
    LINGERS.set(false);
}

/// Spins as long as `go_on` says, but not longer than `limit`. Whether it was `go_on` that ended it.
fn spin_while(limit: Duration, mut go_on: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if !go_on() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > limit {
            return false;
        }
    }
}

/// Calls `f(index, chunk)` for chunks of `size` elements (the last may be shorter); see [`for_each`].
pub fn for_each_chunk<T: Send>(data: &mut [T], size: usize, work: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    for_each(data.chunks_mut(size.max(1)).enumerate(), work, |(i, chunk)| f(i, chunk));
}
