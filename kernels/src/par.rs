//! Work on both cores, with the same bits whatever the number of threads.
//!
//! The caller cuts the work into pieces whose boundaries depend on the shapes alone; threads only decide who computes a piece.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Work (in multiply-adds, or as many ns × 8) below which waking a thread costs more than it saves.
pub const MIN_PARALLEL_WORK: usize = 1 << 20;

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
    pool.in_place_scope(|scope| {
        for _ in 1..threads.min(count) {
            scope.spawn(|_| drain());
        }
        drain();
    });
}

/// Calls `f(index, chunk)` for chunks of `size` elements (the last may be shorter); see [`for_each`].
pub fn for_each_chunk<T: Send>(data: &mut [T], size: usize, work: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    for_each(data.chunks_mut(size.max(1)).enumerate(), work, |(i, chunk)| f(i, chunk));
}
