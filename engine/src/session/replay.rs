//! A text read a second time: for layers that were not recorded when it was read first, or for all its logits.

use super::Session;
use crate::hooks::Hooks;
use crate::model::Logits;
use crate::pass::{Latest, Pass};
use crate::runner::{DeviceError, Memory};
use crate::tape::Refill;

/// A second reading of the text that refills what is not recorded, beside the live one.
pub struct Replay {
    layers: Vec<usize>,
    memory: Memory,
    position: usize,
    latest: Latest,
}

impl Session {
    /// What a replay would have to refill: layers not recorded, or expectations asked for after the tokens were read.
    ///
    /// # Errors
    /// There is no room for a second memory.
    pub fn replay_needed(&self) -> Result<Option<Replay>, DeviceError> {
        let layers = self.tape.missing();
        let expected = self.candidates == 0
            || (self.expectations.len() >= self.position
                && self.expectations[..self.position].iter().all(Option::is_some));
        if self.position == 0 || (layers.is_empty() && expected) {
            return Ok(None);
        }
        Ok(Some(Replay { layers, memory: self.runner.memory()?, position: 0, latest: Latest::default() }))
    }

    /// Reads the next segment of a replay. Returns (done, total); at the end the refilled layers are recorded on.
    ///
    /// # Errors
    /// The device fails, or has no memory for a second reading; this one is then of no use, and the text as it was.
    pub fn advance_replay(&mut self, replay: &mut Replay) -> Result<(usize, usize), DeviceError> {
        self.settle();
        if replay.position < self.position {
            // The pass overwrites what of the text's own logits is still on the device, and the next one what it leaves there.
            self.latest.logits(&self.runner);
            let segment = self.history.segment(replay.position);
            let range = replay.position..segment.end.min(self.position);
            let tokens = self.history.ids(range.clone());
            let pass = Pass { tokens: &tokens, first: range.start, candidates: self.candidates, choice: 1, draw: None };
            let mut refill = Refill { tape: &mut self.tape, layers: &replay.layers };
            let hooks = Hooks::observing(&mut refill);
            let read = pass.run(&mut self.runner, &mut replay.memory, hooks, &mut replay.latest);
            let shown = self.runner.settle(&mut Hooks::observing(&mut refill));
            let expectations = shown.and(read)?;
            replay.latest.logits(&self.runner);
            self.store(range.start, expectations);
            replay.position = range.end;
        }
        if replay.position >= self.position {
            self.tape.resume(&replay.layers);
            self.tape.enforce_budget();
        }
        Ok((replay.position, self.position))
    }

    /// Logits `[T, V]` of the first `tokens` tokens, which are read once more in the same segments, so that the bits are those of the run.
    pub fn logits_again(&mut self, tokens: usize) -> Result<Vec<f32>, DeviceError> {
        self.settle();
        self.latest.logits(&self.runner);
        let (mut memory, mut logits, mut start) = (self.runner.memory()?, Vec::new(), 0);
        while start < tokens {
            let segment = self.history.segment(start);
            let mut chunk = Vec::new();
            let ids = self.history.ids(segment.clone());
            self.runner.forward(&ids, start, &mut memory, &mut Hooks::none(), Logits::All(&mut chunk))?;
            logits.append(&mut chunk);
            start = segment.end;
        }
        Ok(logits)
    }
}
