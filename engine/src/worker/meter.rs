//! How fast a run is and where its time goes: sums that fade over half a second of running, so that neither the wait before a run nor
//! its first, cold tokens count for long, and a short run is told as truly as a long one.

use std::time::{Duration, Instant};

/// Seconds of running after which a token counts for 1/e.
const FADE: f32 = 0.5;

/// What was measured between two frames, or of the last half second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    /// Tokens made, and of those the ones before which the run had begun: the first of a run says nothing of its rate.
    tokens: f32,
    timed: f32,
    /// Seconds of running, and those that went into the model, its pictures and their way here.
    run: f32,
    model: f32,
    probes: f32,
    transfer: f32,
}

/// Measures runs.
#[derive(Debug, Default)]
pub(super) struct Meter {
    sums: Sums,
    new: Sums,
    /// Until when the time of this run is counted; none before its first token.
    since: Option<Instant>,
}

impl Meter {
    /// A run begins.
    pub fn begin(&mut self) {
        self.since = None;
    }

    /// A token was made in so many seconds at `now`, and what was recorded of it copied in so many more.
    pub fn token(&mut self, now: Instant, model: f32, copied: f32) {
        self.new.tokens += 1.0;
        self.new.model += model;
        self.new.transfer += copied;
        match self.since {
            Some(_) => self.new.timed += 1.0,
            None => self.since = Some(now),
        }
    }

    /// What is new was drawn and told in these times, at `now`.
    pub fn frame(&mut self, now: Instant, drawn: Duration, told: Duration) {
        if self.new.tokens == 0.0 {
            return;
        }
        if let Some(since) = self.since.replace(now) {
            self.new.run = now.saturating_duration_since(since).as_secs_f32();
        }
        self.new.probes += drawn.as_secs_f32();
        self.new.transfer += told.as_secs_f32();
        let (old, new) = (self.sums, std::mem::take(&mut self.new));
        let keep = (-new.run / FADE).exp();
        let sum = |of: fn(&Sums) -> f32| keep * of(&old) + of(&new);
        self.sums = Sums {
            tokens: sum(|s| s.tokens),
            timed: sum(|s| s.timed),
            run: sum(|s| s.run),
            model: sum(|s| s.model),
            probes: sum(|s| s.probes),
            transfer: sum(|s| s.transfer),
        };
    }

    /// 0 while unknown.
    pub fn tokens_per_s(&self) -> f32 {
        if self.sums.timed > 0.0 { self.sums.timed / self.sums.run.max(1e-6) } else { 0.0 }
    }

    /// Milliseconds a token for the model, the pictures and their way here.
    pub fn costs(&self) -> [f32; 3] {
        let tokens = self.sums.tokens.max(1.0);
        [self.sums.model, self.sums.probes, self.sums.transfer].map(|seconds| 1e3 * seconds / tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A frame of `count` tokens of 1 ms each.
    fn run(meter: &mut Meter, now: &mut Instant, count: usize) {
        for _ in 0..count {
            *now += MS;
            meter.token(*now, 0.9e-3, 0.0);
        }
        meter.frame(*now, MS / 2, Duration::ZERO);
    }

    #[test]
    fn a_short_run_is_as_fast_as_it_was() {
        let (mut meter, mut now) = (Meter::default(), Instant::now());
        // The first frame of a run comes with its first token, however long nothing ran before.
        run(&mut meter, &mut now, 1);
        assert_eq!(meter.tokens_per_s(), 0.0);
        run(&mut meter, &mut now, 16);
        run(&mut meter, &mut now, 16);
        assert!((meter.tokens_per_s() - 1000.0).abs() < 1.0, "{}", meter.tokens_per_s());
        let [model, probes, transfer] = meter.costs();
        assert!((model - 0.9).abs() < 1e-3 && (probes - 1.5 / 33.0).abs() < 1e-2 && transfer == 0.0);
        // A pause is no part of it.
        now += 5000 * MS;
        meter.begin();
        run(&mut meter, &mut now, 1);
        run(&mut meter, &mut now, 16);
        assert!((meter.tokens_per_s() - 1000.0).abs() < 1.0, "{}", meter.tokens_per_s());
    }

    #[test]
    fn the_newest_half_second_counts() {
        let (mut meter, mut now) = (Meter::default(), Instant::now());
        (0..200).for_each(|_| run(&mut meter, &mut now, 16));
        for _ in 0..100 {
            now += 15 * MS;
            run(&mut meter, &mut now, 1);
        }
        assert!((meter.tokens_per_s() - 62.5).abs() < 62.5, "{}", meter.tokens_per_s());
        let before = meter.tokens_per_s();
        meter.frame(now + 100 * MS, MS, MS);
        assert_eq!(meter.tokens_per_s(), before, "a frame without tokens says nothing");
    }
}
