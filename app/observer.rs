//! What the views in sight read, told to the engine only when it changed, and not more often than it can matter.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use statescope_engine::protocol::{Observation, Probe};

/// Between two changes of what is observed: a held arrow key does not flood the engine.
const INTERVAL: Duration = Duration::from_millis(30);
/// Likely next tokens asked for.
const CANDIDATES: usize = 12;

/// What was told last, and when.
#[derive(Default)]
pub struct Observer {
    told: Option<Vec<Probe>>,
    at: Option<Instant>,
}

/// What is to be done.
pub enum Change {
    None,
    /// Too soon; ask again then.
    Later(Duration),
    Tell { observation: Observation, wanted: HashSet<Probe> },
}

impl Observer {
    /// Forgets what was told, for an engine that has a new model.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Compares the probes wanted `now`, in any number of repetitions, with those told.
    pub fn compare(&mut self, mut probes: Vec<Probe>, now: Instant) -> Change {
        let mut wanted = HashSet::new();
        probes.retain(|probe| wanted.insert(*probe));
        if self.told.as_ref() == Some(&probes) {
            return Change::None;
        }
        let since = self.at.map_or(INTERVAL, |at| now.saturating_duration_since(at));
        if since < INTERVAL {
            return Change::Later(INTERVAL - since);
        }
        self.at = Some(now);
        self.told = Some(probes.clone());
        Change::Tell { observation: Observation { probes, candidates: CANDIDATES }, wanted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use statescope_engine::protocol::{Point, Reduction};

    #[test]
    fn changes_are_told_once_and_not_too_often() {
        let probe = |layer| Probe::series(layer, Point::Delta, Reduction::Full);
        let (mut observer, start) = (Observer::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        let Change::Tell { observation, .. } = observer.compare(vec![probe(0), probe(0)], after(0)) else { panic!("told") };
        assert_eq!((observation.probes.len(), observation.candidates), (1, CANDIDATES));
        assert!(matches!(observer.compare(vec![probe(0)], after(1)), Change::None));
        assert!(matches!(observer.compare(vec![probe(1)], after(10)), Change::Later(_)));
        assert!(matches!(observer.compare(vec![probe(2)], after(31)), Change::Tell { .. }));
        observer.reset();
        assert!(matches!(observer.compare(vec![probe(2)], after(32)), Change::Tell { .. }));
    }
}
