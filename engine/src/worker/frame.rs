//! What is told of a run: all that is new since the last frame.

use std::time::{Duration, Instant};

use super::{SLICE_IDLE, SLICE_READING, SLICE_RUNNING, Worker};
use crate::allowance::thread_time;
use crate::open::spell;
use crate::protocol::{Frame, Performance, TokenId, TokenRecord};

impl Worker {
    /// All that is new; `busy`: something else waits, so pictures get a short slice of time only.
    pub(super) fn frame(&mut self, busy: bool) -> Frame {
        if let Some(loaded) = &mut self.loaded {
            loaded.session.settle();
        }
        let (running, state) = (self.remaining > 0, self.state());
        let Some(loaded) = &self.loaded else { return Frame { epoch: self.epoch, ..Frame::default() } };
        let session = &loaded.session;
        let (began, taken) = (Instant::now(), thread_time());
        let made = session.position().saturating_sub(self.told.position);
        let allowed = self.allowance.after(self.last_publish.elapsed(), self.collector.is_far_behind(made));
        // That something has begun or ended is told before anything is drawn; what is idle then draws at once.
        let changed = state != self.told.state;
        let slice = match (session.is_reading(), busy) {
            (true, _) => SLICE_READING,
            (false, true) if running && began >= self.next_token_at => allowed,
            (false, _) if changed => Duration::ZERO,
            (false, true) => SLICE_RUNNING,
            (false, false) => SLICE_IDLE,
        };
        let deadline = began + slice;
        let (readings, more) = self.collector.collect(session, deadline, busy);
        let (collected, drawn) = (Instant::now(), thread_time().saturating_sub(taken));
        self.more_to_collect = more;

        let spell = |id: TokenId| spell(&loaded.info, loaded.tokenizer.as_ref(), id);
        let length = session.history().len();
        let tokens = (self.told.tokens..length)
            .map(|position| {
                let (id, source) = session.history().token(position);
                let (bytes, special) = spell(id);
                TokenRecord { position, id, source, bytes, special }
            })
            .collect();
        let mut predictions = Vec::new();
        while let Some(expectation) = session.expectation(self.told.predictions) {
            predictions.push(expectation.clone().into_prediction(self.told.predictions, spell));
            self.told.predictions += 1;
        }
        let told_at = Instant::now();
        self.meter.frame(told_at, drawn, told_at - collected);
        let [model_ms, probes_ms, transfer_ms] = self.meter.costs();
        let performance = Performance {
            tokens_per_s: self.meter.tokens_per_s(),
            model_ms,
            probes_ms,
            transfer_ms,
            state_bytes: loaded.info.state_bytes,
            kv_bytes: session.kv_bytes(),
            device_bytes: session.runner().device_bytes(),
            tape_bytes: session.tape().bytes(),
            snapshot_bytes: session.history().snapshot_bytes(),
            bounded: session.given_up(),
            ..self.performance.clone()
        };
        self.performance = performance.clone();
        self.allowance.spend(thread_time().saturating_sub(taken));
        self.told.tokens = length;
        self.told.position = session.position();
        self.told.state = state;
        self.last_publish = Instant::now();
        Frame {
            epoch: self.epoch,
            keep: self.told.keep.take(),
            state,
            length,
            position: session.position(),
            tokens,
            predictions,
            readings,
            performance,
            backfill: self.told.backfill.take().filter(|b| b.done < b.total),
        }
    }
}
