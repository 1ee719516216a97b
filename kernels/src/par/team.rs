//! Threads that help the calling one with one piece of work at a time.
//!
//! A forward pass hands over a hundred ops a millisecond. So helpers spin a while before they sleep, and whoever hands over never waits
//! for a helper that has not begun: on a busy machine that one may have lost its core, and gets it back many ops later.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a helper looks for more work before it sleeps: longer than what lies between two ops of a forward pass, since to wake it
/// takes longer than many an op.
const LINGER: Duration = Duration::from_micros(200);
/// How long the calling thread watches the helpers end before it sleeps in between, which leaves its core to them.
const WATCH: Duration = Duration::from_micros(30);
const NAP: Duration = Duration::from_micros(20);

/// Bit of [`Shared::gate`]: helpers may still begin. The other bits count those inside.
const OPEN: usize = 1 << (usize::BITS - 1);

/// What is called by every thread at once, and may be called again when there is nothing left to do.
type Work<'a> = &'a (dyn Fn() + Sync + 'a);

struct Shared {
    /// Held by the one caller that has the helpers.
    taken: AtomicBool,
    /// Valid as long as the gate is open or somebody inside.
    work: UnsafeCell<Option<Work<'static>>>,
    gate: AtomicUsize,
    /// Counts pieces of work, so that a helper notices a new one.
    turn: AtomicUsize,
    ends: AtomicBool,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    alarm: Condvar,
    /// What a helper panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `work` is written only by the holder of `taken` while the gate is shut and nobody inside, and read only from inside the gate.
unsafe impl Sync for Shared {}
// SAFETY: nothing in it belongs to a thread; `work` points to something `Sync`.
unsafe impl Send for Shared {}

/// How a piece of work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Another caller had the helpers: it was done alone.
    Alone,
    InTime,
    /// A helper did not end its part in time: it had lost its core.
    Late,
}

/// Helpers that wait for work. They end with it.
pub struct Team {
    shared: Arc<Shared>,
    helpers: usize,
}

impl Team {
    /// Starts up to `helpers` threads; fewer where the system gives no more.
    pub fn new(helpers: usize) -> Self {
        let shared = Arc::new(Shared {
            taken: AtomicBool::new(false),
            work: UnsafeCell::new(None),
            gate: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            ends: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            alarm: Condvar::new(),
            panic: Mutex::new(None),
        });
        let start = |i: usize| {
            let shared = shared.clone();
            thread::Builder::new().name(format!("kernels-{}", i + 1)).spawn(move || shared.help())
        };
        let helpers = (0..helpers).take_while(|&i| start(i).is_ok()).count();
        Self { shared, helpers }
    }

    /// The helpers there are.
    pub fn helpers(&self) -> usize {
        self.helpers
    }

    /// Calls `work` here and on the helpers, and returns when all calls have ended. Panics if one of them does.
    pub fn share(&self, work: Work) -> Ended {
        let shared = &*self.shared;
        if shared.taken.swap(true, Ordering::Acquire) {
            work();
            return Ended::Alone;
        }
        // SAFETY: the lifetime is stretched, but nobody uses `work` after this function: the gate is shut and everybody has left before
        // it ends, also when `work` panics. `taken` makes this the only writer, and the gate is shut and empty now.
        unsafe { *shared.work.get() = Some(std::mem::transmute::<Work<'_>, Work<'static>>(work)) };
        shared.gate.store(OPEN, Ordering::Release);
        shared.turn.fetch_add(1, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(shared.bed.lock());
            shared.alarm.notify_all();
        }
        let here = catch_unwind(AssertUnwindSafe(work));
        shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let in_time = spin_while(WATCH, || shared.gate.load(Ordering::Acquire) != 0);
        while shared.gate.load(Ordering::Acquire) != 0 {
            thread::sleep(NAP);
        }
        let there = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        shared.taken.store(false, Ordering::Release);
        if let Some(panic) = here.err().or(there) {
            resume_unwind(panic);
        }
        if in_time { Ended::InTime } else { Ended::Late }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        self.shared.turn.fetch_add(1, Ordering::SeqCst);
        drop(self.shared.bed.lock());
        self.shared.alarm.notify_all();
    }
}

impl Shared {
    /// The life of a helper.
    fn help(&self) {
        let mut seen = 0;
        while !self.ends.load(Ordering::SeqCst) {
            seen = self.next_turn(seen);
            let enter = |gate: usize| (gate & OPEN != 0).then_some(gate + 1);
            if self.gate.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).is_ok() {
                // SAFETY: inside the gate, so `work` was written before it was opened and stays until this thread has left.
                let work = unsafe { *self.work.get() };
                if let Some(Err(panic)) = work.map(|work| catch_unwind(AssertUnwindSafe(work))) {
                    *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                }
                self.gate.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Waits until there is another turn than `seen`, and returns it.
    fn next_turn(&self, seen: usize) -> usize {
        if !spin_while(LINGER, || self.turn.load(Ordering::Acquire) == seen) {
            let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            while self.turn.load(Ordering::SeqCst) == seen {
                bed = self.alarm.wait(bed).unwrap_or_else(PoisonError::into_inner);
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
        }
        self.turn.load(Ordering::Acquire)
    }
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
