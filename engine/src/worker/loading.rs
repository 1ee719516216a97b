//! From a model's name to a session that waits for a prompt.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::meter::Meter;
use super::{Loaded, Worker};
use crate::loader::tokenizer::Tokenizer;
use crate::open::open_for;
use crate::place::Place;
use crate::protocol::{Device, Dtype, Event, Frame, ModelSource, Performance};
use crate::runner::{DeviceError, Runner};
use crate::session::{Budgets, Session};

impl Worker {
    /// Replaces the model and its text. On an error both stay, but for a GPU's, which have to go before another model can be uploaded.
    pub(super) fn load(&mut self, source: &ModelSource, dtype: Option<Dtype>, device: Device, memory: Option<usize>) {
        self.cancel.store(false, Ordering::Relaxed);
        let place = match self.place(device, memory) {
            Ok(place) => place,
            Err(error) => return self.fail(error.to_string(), format!("{error:?}")),
        };
        let (events, wake, cancel) = (&self.events, &self.wake, &self.cancel);
        let progress = |fraction: f32| {
            // Progress that finds the channel full is not worth waiting for.
            let _ = events.try_send(Event::Loading { fraction, what: source.to_string() });
            wake();
            !cancel.load(Ordering::Relaxed)
        };
        let (model, tokenizer, mut info) = match open_for(&place, source, dtype, progress) {
            Ok(opened) => opened,
            Err(error) => return self.fail(error.to_string(), format!("{error:?}")),
        };
        // A model that cannot fit is refused while the one before is still there.
        if let Err(error) = Runner::check(&model, &place, &info) {
            return self.fail(error.to_string(), format!("{error:?}"));
        }
        // Of the model before, so that there is room for this one.
        if self.loaded.as_ref().is_some_and(|loaded| loaded.info.device.device == Device::Cuda) {
            self.replay = None;
            self.loaded = None;
        }
        let size = tokenizer.as_ref().map(Tokenizer::vocab_size);
        let session = Runner::open(Arc::new(model), &place, &mut info)
            .and_then(|runner| Session::on(runner, size, Budgets::default()));
        match session {
            Ok(session) => {
                let info = Arc::new(info);
                self.loaded = Some(Loaded { session, tokenizer, info: info.clone() });
                self.remaining = 0;
                self.performance = Performance::default();
                self.meter = Meter::default();
                self.start_over();
                self.flush_then(Event::Loaded(info));
                self.observe(self.observation.clone());
            }
            Err(error) => {
                if self.loaded.is_none() {
                    // The model before is gone, with all that was known of it.
                    self.start_over();
                    self.flush_then(Event::Frame(Arc::new(Frame { epoch: self.epoch, ..Frame::default() })));
                }
                self.fail(error.to_string(), format!("{error:?}"))
            }
        }
    }

    /// A GPU that is in use is not opened a second time.
    fn place(&self, device: Device, memory: Option<usize>) -> Result<Place, DeviceError> {
        match self.loaded.as_ref().map(|loaded| loaded.session.runner().place()) {
            Some(place) if place.device() == device => Ok(place.with_memory(memory)),
            _ => Place::open(device, memory),
        }
    }
}
