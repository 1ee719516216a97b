//! The time that looking may take while tokens are being made: one part in so many, with a little saved and a little owed; more while what
//! is shown is so far behind that it might never be seen.

use std::time::Duration;

/// One part in so many of a run's time, and while what is shown is far behind the text.
const SHARE: f64 = 64.0;
const SHARE_BEHIND: f64 = 16.0;
/// Seconds that can be saved up, and that an answer longer than its slice can owe the next ones.
const SAVED: f64 = 0.001;
const OWED: f64 = 0.008;

/// Seconds left to look at things; negative: owed.
#[derive(Debug, Default)]
pub(crate) struct Allowance(f64);

impl Allowance {
    /// What may be spent now that `ran` has passed since the last time. `behind`: what is shown is far behind the text.
    pub fn after(&mut self, ran: Duration, behind: bool) -> Duration {
        let share = if behind { SHARE_BEHIND } else { SHARE };
        self.0 = (self.0 + ran.as_secs_f64() / share).min(ran.as_secs_f64() / share + SAVED);
        Duration::from_secs_f64(self.0.max(0.0))
    }

    pub fn spend(&mut self, spent: Duration) {
        self.0 = (self.0 - spent.as_secs_f64()).max(-OWED);
    }
}

/// What the calling thread has had of a processor. What the system gave to others meanwhile, such as to a window drawn in software, is not
/// time that looking took; where the system does not tell them apart, it is the time of the clock.
pub(crate) fn thread_time() -> Duration {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
    }
    #[cfg(not(unix))]
    {
        use std::{sync::LazyLock, time::Instant};
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_is_paid_before_more_is_granted() {
        let (ms, mut allowance) = (Duration::from_millis, Allowance::default());
        assert_eq!(allowance.after(ms(16), false), Duration::from_micros(250));
        allowance.spend(ms(1));
        assert_eq!(allowance.after(ms(16), false), Duration::ZERO);
        allowance.spend(ms(100));
        assert_eq!(allowance.after(ms(256), false), Duration::ZERO);
        assert_eq!(allowance.after(ms(80), true), ms(1));
    }

    #[test]
    fn a_thread_that_sleeps_takes_no_time() {
        let (before, began) = (thread_time(), std::time::Instant::now());
        std::thread::sleep(Duration::from_millis(30));
        assert!(cfg!(not(unix)) || thread_time() - before < Duration::from_millis(15));
        let mut n = 0u64;
        while began.elapsed() < Duration::from_millis(40) {
            n = std::hint::black_box(n + 1);
        }
        assert!(thread_time() > before);
    }
}
