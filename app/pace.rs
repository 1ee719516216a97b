//! How often news of a run are drawn. Where a frame costs little every one is drawn; where it is drawn in software, on the cores that the model
//! wants too, there are fewer of them, so that a run that is watched is not much slower. What the user does is drawn at once in any case.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use eframe::egui;

/// A frame that costs no more is drawn as often as there is news, of one that costs more every part of a millisecond is waited for so many times.
const CHEAP: Duration = Duration::from_millis(5);
const WAIT: u32 = 12;
/// From one frame to the next at most: eight a second still look alive.
const LONGEST: Duration = Duration::from_millis(125);
/// Frames averaged over; one that made shaders or fonts counts as no more than this.
const FRAMES: u32 = 8;
const DEAREST: Duration = Duration::from_millis(40);

#[derive(Debug, Default)]
struct Last {
    /// When the last frame began, if a run is being drawn.
    began: Option<Instant>,
    /// Processor time of a frame.
    cost: Duration,
}

impl Last {
    fn drawn(&mut self, now: Instant, cost: Option<Duration>, running: bool) {
        if let Some(cost) = cost {
            self.cost = (self.cost * (FRAMES - 1) + cost.min(DEAREST)) / FRAMES;
        }
        self.began = running.then_some(now);
    }

    /// How long the next frame can wait.
    fn wait(&self, now: Instant) -> Duration {
        let between = (self.cost.saturating_sub(CHEAP) * WAIT).min(LONGEST);
        self.began.map_or(Duration::ZERO, |began| (began + between).saturating_duration_since(now))
    }
}

/// Shared by the window, which draws, and the engine, which has news.
#[derive(Clone, Debug, Default)]
pub struct Pace(Arc<Mutex<Last>>);

impl Pace {
    /// The engine has news.
    pub fn wake(&self, ctx: &egui::Context) {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).wait(Instant::now()) {
            Duration::ZERO => ctx.request_repaint(),
            wait => ctx.request_repaint_after(wait),
        }
    }

    /// A frame is being drawn; the last one took `cost`. `running`: of a run at full speed.
    pub fn drawn(&self, cost: Option<Duration>, running: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).drawn(Instant::now(), cost, running);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(frames: usize, cost: Duration, running: bool) -> Duration {
        let (mut last, now) = (Last::default(), Instant::now());
        (0..frames).for_each(|_| last.drawn(now, Some(cost), running));
        last.wait(now + Duration::from_millis(1))
    }

    #[test]
    fn dear_frames_of_a_run_are_fewer() {
        let ms = Duration::from_millis;
        assert_eq!(after(100, ms(4), true), Duration::ZERO);
        let software = after(100, ms(11), true);
        assert!(software > ms(60) && software < ms(75), "{software:?}");
        assert!(after(100, ms(300), true) <= LONGEST);
        // Steps, pauses and what the user does are drawn at once, and one dear frame does not make the next ones wait.
        assert_eq!(after(100, ms(11), false), Duration::ZERO);
        assert_eq!(after(1, ms(300), true), Duration::ZERO);
    }
}
