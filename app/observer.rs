//! Between window and engine, once a frame: news in, and out what the views in sight read, only when that changed and not more
//! often than it can matter.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use eframe::egui;
use statescope_engine::protocol::{Command, Event, Observation, Probe};

use crate::app::App;
use crate::view::ViewContext;

/// Between two changes of what is observed: a held arrow key does not flood the engine.
const INTERVAL: Duration = Duration::from_millis(30);
/// Events taken per frame at most, so that a fast engine cannot hold up a frame.
const EVENTS_PER_FRAME: usize = 64;
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
    Tell {
        observation: Observation,
        wanted: HashSet<Probe>,
    },
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

impl App {
    /// Takes what the engine and the system's dialogs have sent.
    pub(crate) fn drain(&mut self, ctx: &egui::Context) {
        for taken in 0..=EVENTS_PER_FRAME {
            if taken == EVENTS_PER_FRAME {
                ctx.request_repaint();
                break;
            }
            let Some(event) = self.engine.poll() else { break };
            let loaded = matches!(event, Event::Loaded(_));
            self.store.apply(event);
            if loaded {
                self.observer.reset();
                self.model_loaded(ctx);
            }
        }
        while let Ok(action) = self.answers.1.try_recv() {
            self.act(ctx, action);
        }
    }

    /// Tells the engine what the views in sight read, when that changed.
    pub(crate) fn observe(&mut self, ctx: &egui::Context) {
        if self.store.model.is_none() {
            return;
        }
        let Self { store, selection, hover, time, theme, settings, frame_ms, .. } = self;
        let cx = ViewContext { store, selection, hover, time, theme, settings, frame_ms: *frame_ms };
        let mut probes = Vec::new();
        for view in self.layout.in_sight().iter().filter_map(|kind| self.views.get(kind)) {
            view.probes(&cx, &mut probes);
        }
        match self.observer.compare(probes, Instant::now()) {
            Change::None => {}
            Change::Later(wait) => ctx.request_repaint_after(wait),
            Change::Tell { observation, wanted } => {
                self.store.retain_probes(&wanted);
                self.engine.send(Command::Observe(observation));
            }
        }
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
        let Change::Tell { observation, .. } = observer.compare(vec![probe(0), probe(0)], after(0)) else {
            panic!("told")
        };
        assert_eq!((observation.probes.len(), observation.candidates), (1, CANDIDATES));
        assert!(matches!(observer.compare(vec![probe(0)], after(1)), Change::None));
        assert!(matches!(observer.compare(vec![probe(1)], after(10)), Change::Later(_)));
        assert!(matches!(observer.compare(vec![probe(2)], after(31)), Change::Tell { .. }));
        observer.reset();
        assert!(matches!(observer.compare(vec![probe(2)], after(32)), Change::Tell { .. }));
    }
}
