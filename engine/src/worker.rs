//! The engine thread: drain commands → advance the session → collect what is looked at → publish.
//!
//! It never blocks on a slow listener (an unsent frame waits while commands are still heard) and never lets a picture delay a
//! command by more than a slice.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, TrySendError, select};

use crate::allowance::Allowance;
use crate::collector::Collector;
use crate::loader::tokenizer::Tokenizer;
use crate::protocol::{
    Backfill, Command, Event, Failure, FinishReason, ModelInfo, Observation, Performance, PromptInput, RunState,
};
use crate::runner::DeviceError;
use crate::sampler::Sampling;
use crate::session::{Replay, Session};

mod frame;
mod loading;
mod meter;

use meter::Meter;

/// Frames at most this often while running: a screen shows no more.
const FRAME_INTERVAL: Duration = Duration::from_millis(16);
/// Time for pictures between two chunks of a prompt, for replay between two tokens, and for both while nothing else is to be done.
const SLICE_READING: Duration = Duration::from_millis(1);
const SLICE_RUNNING: Duration = Duration::from_millis(4);
const SLICE_IDLE: Duration = Duration::from_millis(20);

/// A loaded model with its text.
struct Loaded {
    session: Session,
    tokenizer: Option<Tokenizer>,
    info: Arc<ModelInfo>,
}

/// What has been told of the current text.
#[derive(Default)]
struct Told {
    tokens: usize,
    predictions: usize,
    keep: Option<usize>,
    state: RunState,
    position: usize,
    backfill: Option<Backfill>,
    /// That the device failed, which is said once a text.
    failure: bool,
}

/// The engine.
pub struct Worker {
    commands: Receiver<Command>,
    events: Sender<Event>,
    wake: Box<dyn Fn() + Send>,
    cancel: Arc<AtomicBool>,
    loaded: Option<Loaded>,
    sampling: Sampling,
    observation: Observation,
    collector: Collector,
    replay: Option<Replay>,
    /// Tokens still to be made.
    remaining: usize,
    /// Shortest time between two tokens.
    pace: Option<Duration>,
    next_token_at: Instant,
    epoch: u64,
    told: Told,
    unsent: Option<Event>,
    last_publish: Instant,
    allowance: Allowance,
    performance: Performance,
    meter: Meter,
    more_to_collect: bool,
}

impl Worker {
    pub fn new(
        commands: Receiver<Command>,
        events: Sender<Event>,
        wake: Box<dyn Fn() + Send>,
        cancel: Arc<AtomicBool>,
    ) -> Self {
        Self {
            commands,
            events,
            wake,
            cancel,
            loaded: None,
            sampling: Sampling::default(),
            observation: Observation::default(),
            collector: Collector::default(),
            replay: None,
            remaining: 0,
            pace: None,
            next_token_at: Instant::now(),
            epoch: 0,
            told: Told::default(),
            unsent: None,
            last_publish: Instant::now(),
            allowance: Allowance::default(),
            performance: Performance::default(),
            meter: Meter::default(),
            more_to_collect: false,
        }
    }

    /// Runs until told to shut down or until nobody listens.
    pub fn run(mut self) {
        while self.hear() {
            self.work();
            self.publish();
        }
    }

    fn is_reading(&self) -> bool {
        self.loaded.as_ref().is_some_and(|l| l.session.is_reading())
    }

    /// Whether the model has something to compute.
    fn has_work(&self) -> bool {
        self.is_reading() || self.remaining > 0 || self.replay.is_some()
    }

    /// Takes commands; waits for one if there is nothing to do. False ends the engine.
    fn hear(&mut self) -> bool {
        if !self.has_work() {
            let heard = match self.unsent.take() {
                // The listener is slow: wait for it and for commands alike.
                Some(event) => {
                    let (commands, events) = (self.commands.clone(), self.events.clone());
                    select! {
                        recv(commands) -> command => { self.unsent = Some(event); command.map(Some) }
                        send(events, event.clone()) -> sent => {
                            (self.wake)();
                            return sent.is_ok();
                        }
                    }
                }
                None if self.has_news() || self.more_to_collect || self.warm() => Ok(None),
                None => self.commands.recv().map(Some),
            };
            match heard {
                Ok(Some(command)) if !self.obey(&command) => return false,
                Ok(_) => {}
                Err(_) => return false,
            }
        } else if self.waits_for_pace() {
            let wait = self.next_token_at.saturating_duration_since(Instant::now()).min(FRAME_INTERVAL);
            let go_on = match self.commands.recv_timeout(wait) {
                Ok(command) => self.obey(&command),
                Err(error) => error == RecvTimeoutError::Timeout,
            };
            if !go_on {
                return false;
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => {
                    if !self.obey(&command) {
                        return false;
                    }
                }
                Err(error) => return error == TryRecvError::Empty,
            }
        }
    }

    /// Uses the time until something is asked for. Says whether more is to be done.
    fn warm(&mut self) -> bool {
        self.loaded.as_mut().is_some_and(|loaded| loaded.session.warm())
    }

    /// Whether the only thing to do is to wait for the next token's time.
    fn waits_for_pace(&self) -> bool {
        let only_pace = self.remaining > 0 && !self.is_reading() && !self.more_to_collect && self.replay.is_none();
        only_pace && Instant::now() < self.next_token_at
    }

    /// Carries out a command. False ends the engine.
    fn obey(&mut self, command: &Command) -> bool {
        match command {
            Command::Shutdown => return false,
            Command::Load { source, dtype, device, memory } => self.load(source, *dtype, *device, *memory),
            Command::Sample(sampling) => match sampling.check() {
                Ok(()) => self.sampling = *sampling,
                Err(message) => self.fail(message, String::new()),
            },
            Command::Speed(limit) => {
                self.pace = limit.filter(|l| *l > 0.0).map(|l| Duration::from_secs_f32((1.0 / l).min(3600.0)));
                self.next_token_at = Instant::now();
            }
            Command::Observe(observation) => self.observe(observation.clone()),
            Command::Pause => self.remaining = 0,
            Command::Stop => {
                if self.remaining > 0 {
                    self.remaining = 0;
                    self.flush_then(Event::Done(FinishReason::Stopped));
                }
            }
            Command::Prompt(input) => self.prompt(input),
            Command::Run { tokens } => {
                if self.require_text() {
                    self.begin(*tokens);
                }
            }
            Command::Step => {
                if self.require_text() {
                    self.begin(1);
                    self.next_token_at = Instant::now();
                }
            }
            Command::Seek { position } => {
                self.remaining = 0;
                self.change(|session| session.seek(*position));
            }
            Command::Force { position, token } => {
                self.remaining = 0;
                if self.change(|session| session.force(*position, *token)) {
                    self.replay = None;
                    self.forget_from(*position);
                }
            }
        }
        true
    }

    /// So many tokens are to be made.
    fn begin(&mut self, tokens: usize) {
        if self.remaining == 0 {
            self.meter.begin();
        }
        self.remaining = tokens;
    }

    /// Applies a change to the session, or reports why it cannot be.
    fn change(&mut self, change: impl FnOnce(&mut Session) -> Result<(), crate::session::SessionError>) -> bool {
        let Some(loaded) = &mut self.loaded else {
            self.fail("no model is loaded; choose one first".into(), String::new());
            return false;
        };
        match change(&mut loaded.session) {
            Ok(()) => {
                // One that is still there is said again.
                self.told.failure &= loaded.session.failure().is_some();
                true
            }
            Err(error) => {
                self.fail(error.to_string(), format!("{error:?}"));
                false
            }
        }
    }

    fn require_text(&mut self) -> bool {
        self.change(
            |session| {
                if session.history().is_empty() { Err(crate::session::SessionError::EmptyPrompt) } else { Ok(()) }
            },
        )
    }

    fn fail(&mut self, message: String, details: String) {
        self.remaining = 0;
        self.flush_then(Event::Failed(Failure { message, details }));
    }

    fn start_over(&mut self) {
        self.epoch += 1;
        self.replay = None;
        self.collector = Collector::default();
        self.collector.observe(&self.observation.probes);
        self.told = Told { state: RunState::Empty, ..Told::default() };
    }

    /// What was told of positions from `keep` on is void.
    fn forget_from(&mut self, keep: usize) {
        self.collector.truncate(keep);
        self.told.keep = Some(self.told.keep.map_or(keep, |k| k.min(keep)));
        self.told.tokens = self.told.tokens.min(keep);
        self.told.predictions = self.told.predictions.min(keep);
    }

    fn prompt(&mut self, input: &PromptInput) {
        let Some(loaded) = &mut self.loaded else {
            return self.fail("no model is loaded; choose one first".into(), String::new());
        };
        let tokens = match (input, &loaded.tokenizer) {
            (PromptInput::Tokens(tokens), _) => Ok(tokens.clone()),
            (PromptInput::Text(text), Some(tokenizer)) => tokenizer.encode(text).map_err(|e| e.to_string()),
            (PromptInput::Text(_), None) => {
                Err("this folder has no tokenizer.json; give token ids instead of text, separated by commas".into())
            }
        };
        let started = tokens.and_then(|tokens| loaded.session.start(&tokens).map_err(|e| e.to_string()));
        match started {
            Ok(()) => {
                self.remaining = 0;
                self.start_over();
            }
            Err(message) => self.fail(message, String::new()),
        }
    }

    fn observe(&mut self, observation: Observation) {
        self.collector.observe(&observation.probes);
        if let Some(loaded) = &mut self.loaded {
            loaded.session.rank(observation.candidates);
            let collector = &self.collector;
            loaded.session.look_at(|layer| collector.looks_at(layer));
            let replay = loaded.session.replay_needed();
            self.replay = self.try_to_look(replay).flatten();
        }
        self.observation = observation;
        self.more_to_collect = true;
    }

    /// Why something cannot be looked at is said; the text is as it was.
    fn try_to_look<T>(&mut self, done: Result<T, DeviceError>) -> Option<T> {
        done.map_err(|error| self.fail(format!("looking back failed: {error}"), String::new())).ok()
    }

    /// One token or chunk, then a slice of replay.
    fn work(&mut self) {
        let Some(loaded) = &mut self.loaded else { return };
        let session = &mut loaded.session;
        let began = Instant::now();
        if !session.is_reading() && self.remaining > 0 && began >= self.next_token_at {
            match session.extend(&self.sampling) {
                Ok(token) => {
                    self.remaining -= 1;
                    // The clock of a limited run is the limit itself, so that a slow token does not shift all later ones.
                    self.next_token_at = self.pace.map_or(began, |pace| began.max(self.next_token_at) + pace);
                    let ended =
                        loaded.info.end_tokens.contains(&token) && session.position() + 1 == session.history().len();
                    session.advance_ahead();
                    let copied = session.runner().copy_seconds();
                    let ended_at = Instant::now();
                    self.meter.token(ended_at, (ended_at - began).as_secs_f32() - copied, copied);
                    if (ended || self.remaining == 0) && session.failure().is_none() {
                        self.remaining = 0;
                        let reason = if ended { FinishReason::EndOfText } else { FinishReason::Length };
                        return self.flush_then(Event::Done(reason));
                    }
                }
                Err(error) => return self.fail(error.to_string(), format!("{error:?}")),
            }
        } else if session.is_reading() {
            let rows = session.advance();
            if rows > 1 {
                self.performance.prefill_tokens_per_s = rows as f32 / began.elapsed().as_secs_f32();
            }
        }
        if let Some(failure) = session.failure().filter(|_| !self.told.failure) {
            let message = failure.to_string();
            self.told.failure = true;
            return self.fail(message, String::new());
        }
        let deadline = Instant::now() + if self.remaining > 0 { SLICE_RUNNING } else { SLICE_IDLE };
        while let (Some(loaded), Some(replay)) = (&mut self.loaded, &mut self.replay) {
            let advanced = loaded.session.advance_replay(replay);
            let Some((done, total)) = self.try_to_look(advanced) else {
                self.replay = None;
                return;
            };
            self.told.backfill = Some(Backfill { done, total });
            if done >= total {
                self.replay = None;
                self.told.predictions = 0;
                self.more_to_collect = true;
            }
            if Instant::now() >= deadline {
                break;
            }
        }
    }

    /// Whether the listener's picture of tokens and run state is behind.
    fn has_news(&self) -> bool {
        let Some(loaded) = &self.loaded else { return false };
        let session = &loaded.session;
        self.told.tokens != session.history().len()
            || self.told.position != session.position()
            || self.told.state != self.state()
            || self.told.keep.is_some()
    }

    fn state(&self) -> RunState {
        match &self.loaded {
            None => RunState::Empty,
            Some(loaded) if loaded.session.is_reading() => RunState::Reading,
            Some(_) if self.remaining > 0 => RunState::Running,
            Some(_) => RunState::Paused,
        }
    }

    /// Sends a frame if one is due and the last one has left.
    fn publish(&mut self) {
        if let Some(event) = self.unsent.take() {
            self.send(event);
        }
        let due = self.last_publish.elapsed() >= FRAME_INTERVAL || !self.has_work() || self.told.keep.is_some();
        if self.unsent.is_none() && due && (self.has_news() || self.more_to_collect || self.told.backfill.is_some()) {
            let frame = self.frame(self.has_work());
            self.send(Event::Frame(Arc::new(frame)));
        }
    }

    /// Sends without waiting; what does not fit is kept.
    fn send(&mut self, event: Event) {
        match self.events.try_send(event) {
            Ok(()) => (self.wake)(),
            Err(TrySendError::Full(event)) => {
                self.unsent = Some(event);
                (self.wake)();
            }
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// Tells all news first, then `event`; these few may wait for the listener, but not for ever.
    fn flush_then(&mut self, event: Event) {
        let mut queue: Vec<Event> = self.unsent.take().into_iter().collect();
        if self.has_news() {
            queue.push(Event::Frame(Arc::new(self.frame(true))));
        }
        queue.push(event);
        for event in queue {
            (self.wake)();
            if self.events.send_timeout(event, Duration::from_secs(5)).is_err() {
                return;
            }
        }
        (self.wake)();
    }
}
