//! The time that looking may take while tokens are being made: one part in so many, with a little saved and a little owed; more while what
//! is shown is so far behind that it might never be seen.

use std::time::Duration;

/// One part in so many of a run's time, and while what is shown is far behind the text.
const SHARE: f64 = 64.0;
const SHARE_BEHIND: f64 = 48.0;
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
        assert_eq!(allowance.after(ms(240), true), ms(1));
    }
}
