//! One text with one model: tokens, memories, logits, the record of the run. Single-threaded and synchronous; the worker and the
//! headless verbs drive it.

use std::sync::Arc;

use crate::history::{History, Snapshot};
use crate::hooks::{Depth, Hooks};
use crate::mixer::StateSlot;
use crate::model::Model;
use crate::pass::{Expectation, Latest, Pass};
use crate::probes::MATRIX_TOKENS;
use crate::protocol::{TokenId, TokenSource};
use crate::runner::{DeviceError, Draw, Drawn, Memory, Runner};
use crate::sampler::{LIKELY, Sampling};
use crate::tape::Tape;

mod error;
mod replay;

pub use error::SessionError;
pub use replay::Replay;

/// What a session may keep in memory besides weights and live state.
#[derive(Clone, Copy, Debug)]
pub struct Budgets {
    pub tape_bytes: usize,
    pub snapshot_bytes: usize,
}

impl Default for Budgets {
    fn default() -> Self {
        Self { tape_bytes: 1 << 30, snapshot_bytes: 256 << 20 }
    }
}

/// A text being read and continued.
pub struct Session {
    runner: Runner,
    history: History,
    tape: Tape,
    memory: Memory,
    /// Why the device stopped, until another place of the text is asked for, or another text.
    failure: Option<DeviceError>,
    /// Whether snapshots were given up for want of memory.
    short_of_memory: bool,
    /// Tokens processed.
    position: usize,
    /// Tokens that should be processed before anything is sampled.
    goal: usize,
    latest: Latest,
    /// How the last token was chosen: the next one probably will, too.
    foreseen: Option<Sampling>,
    /// By position; none where not computed.
    expectations: Vec<Option<Expectation>>,
    /// Candidates per expectation; 0 computes none.
    candidates: usize,
    /// Ids from here on are padding rows that no tokenizer entry stands for.
    sampling_limit: usize,
}

impl Session {
    /// `tokenizer_size`: entries of the tokenizer; rows of the embedding beyond them are never sampled.
    pub fn new(model: Arc<Model>, tokenizer_size: Option<usize>, budgets: Budgets) -> Self {
        let memory = Memory::Host(model.slots());
        Self::with(Runner::cpu(model), memory, tokenizer_size, budgets)
    }

    /// As [`Session::new`], wherever `runner` computes.
    ///
    /// # Errors
    /// The memory for a text does not fit there.
    pub fn on(runner: Runner, tokenizer_size: Option<usize>, budgets: Budgets) -> Result<Self, DeviceError> {
        let memory = runner.memory()?;
        Ok(Self::with(runner, memory, tokenizer_size, budgets))
    }

    fn with(runner: Runner, memory: Memory, tokenizer_size: Option<usize>, budgets: Budgets) -> Self {
        let model = runner.model();
        let sampling_limit = tokenizer_size.unwrap_or(usize::MAX).clamp(1, model.spec().vocab_size);
        let tape = if runner.copies_much() { Tape::lean } else { Tape::new };
        Self {
            history: History::new(budgets.snapshot_bytes),
            tape: tape(&model.part_counts(), budgets.tape_bytes),
            memory,
            failure: None,
            short_of_memory: false,
            position: 0,
            goal: 0,
            latest: Latest::default(),
            foreseen: None,
            expectations: Vec::new(),
            candidates: 0,
            sampling_limit,
            runner,
        }
    }

    pub fn model(&self) -> &Arc<Model> {
        self.runner.model()
    }

    pub fn runner(&self) -> &Runner {
        &self.runner
    }

    /// Why nothing more is computed, if the device has failed.
    pub fn failure(&self) -> Option<&DeviceError> {
        self.failure.as_ref()
    }

    pub fn history(&self) -> &History {
        &self.history
    }

    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// Prepares a little for the next tokens while nothing else is to be done. Says whether more is to be done.
    pub fn warm(&mut self) -> bool {
        self.tape.warm()
    }

    /// Tokens processed so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether known tokens wait to be processed, and can be.
    pub fn is_reading(&self) -> bool {
        self.position < self.goal && self.failure.is_none()
    }

    /// `[V]` after the last processed token; empty before the first.
    pub fn logits(&self) -> &[f32] {
        self.latest.logits(&self.runner)
    }

    pub fn expectation(&self, position: usize) -> Option<&Expectation> {
        self.expectations.get(position)?.as_ref()
    }

    /// The memories of a model that runs on the CPU; none elsewhere.
    pub fn slots(&self) -> &[StateSlot] {
        self.memory.slots()
    }

    /// Bytes of all KV caches now.
    pub fn kv_bytes(&self) -> usize {
        self.memory.kv_bytes()
    }

    /// What had to be given up to stay in the budgets, in words.
    pub fn given_up(&self) -> Vec<String> {
        let (layers, first) = self.tape.bounds();
        let mut notes = Vec::new();
        if layers > 0 {
            notes.push(format!("{layers} layers out of sight are not recorded; looking at one replays the text."));
        }
        if first > 0 {
            notes.push(format!("Gates and matrices before token {first} were dropped."));
        }
        if self.short_of_memory {
            notes.push("For want of GPU memory snapshots were dropped; seeking takes longer.".into());
        }
        if self.history.len() > MATRIX_TOKENS {
            notes.push(format!("Matrices show the newest {MATRIX_TOKENS} tokens."));
        }
        notes
    }

    /// How many candidates to rank per position.
    pub fn rank(&mut self, candidates: usize) {
        self.candidates = candidates;
    }

    /// How much of each layer is looked at: those in sight are recorded longest.
    pub fn look_at(&mut self, layers: impl Fn(usize) -> Depth) {
        self.settle();
        self.tape.look_at(layers);
        if self.position == 0 {
            self.tape.truncate(0);
        }
    }

    /// Starts over with a prompt; nothing is processed yet. The model's meta tokens come before it, unless it begins with them. On an error
    /// the text before stays.
    pub fn start(&mut self, prompt: &[TokenId]) -> Result<(), SessionError> {
        let meta: Vec<TokenId> = self.model().spec().meta_ids().collect();
        let prompt = prompt.strip_prefix(meta.as_slice()).unwrap_or(prompt);
        if prompt.is_empty() {
            return Err(SessionError::EmptyPrompt);
        }
        prompt.iter().enumerate().try_for_each(|(position, token)| self.check(*token, position))?;
        let prompt = [&meta, prompt].concat();
        self.check_length(prompt.len())?;
        self.settle();
        self.history.start(&prompt, self.runner.chunk(self.tape.in_sight()));
        self.tape.truncate(0);
        self.expectations.clear();
        (self.failure, self.short_of_memory) = (None, false);
        self.goal = prompt.len();
        self.rewind(0);
        Ok(())
    }

    fn check(&self, token: TokenId, position: usize) -> Result<(), SessionError> {
        let vocab_size = self.model().spec().vocab_size;
        if (token as usize) < vocab_size {
            Ok(())
        } else {
            Err(SessionError::OutOfVocabulary { token, position, vocab_size })
        }
    }

    /// That a text of `length` tokens has positions.
    fn check_length(&self, length: usize) -> Result<(), SessionError> {
        match self.model().spec().learned_positions {
            Some(limit) if length > limit => Err(SessionError::TooLong { limit }),
            _ => Ok(()),
        }
    }

    /// Goes to the nearest remembered place at or before `position`.
    fn rewind(&mut self, position: usize) {
        let restored = match self.history.snapshot_before(position) {
            Some(snapshot) => {
                self.latest = Latest::known(snapshot.logits.clone());
                self.position = snapshot.position;
                self.memory.restore(&snapshot.memory)
            }
            None => {
                self.latest = Latest::default();
                self.position = 0;
                self.memory.clear(self.runner.model())
            }
        };
        if let Err(error) = restored {
            self.failure = Some(error);
        }
    }

    /// After a failure: where there was too little memory snapshots go, so that the next [`Session::advance`] can try again; else nothing is
    /// read any more. The text stays, and seeking to where there was room goes on from there.
    fn run_short(&mut self, error: DeviceError) {
        if error.is_memory() && self.failure.is_none() && self.history.drop_snapshots(self.position) {
            self.short_of_memory = true;
        } else {
            self.failure = Some(error);
        }
    }

    /// Processes the next waiting segment (a chunk of prompt, or one token) and returns how many tokens that were.
    pub fn advance(&mut self) -> usize {
        let count = self.advance_ahead();
        self.settle();
        count
    }

    /// As [`Session::advance`]; but the tape may know of the newest token only after the next call, or after [`Session::settle`]: a GPU goes
    /// on meanwhile.
    pub fn advance_ahead(&mut self) -> usize {
        if !self.is_reading() {
            return 0;
        }
        let segment = self.history.segment(self.position);
        if segment.start < self.position {
            // Stopped inside a chunk: read the chunk again from its start, so that the bits are those of the first run.
            self.rewind(segment.start);
            let goal = self.goal;
            while self.position < segment.start && self.failure.is_none() {
                self.goal = segment.start;
                self.advance();
            }
            self.goal = goal;
            if self.failure.is_some() {
                return 0;
            }
        }
        let range = segment.start..segment.end.min(self.goal);
        if let Err(error) = self.runner.reserve(&mut self.memory, range.end) {
            self.run_short(error);
            return 0;
        }
        let tokens = self.history.ids(range.clone());
        let (candidates, (choice, draw)) = (self.candidates, self.foresee(range.end));
        let pass = Pass { tokens: &tokens, first: range.start, candidates, choice, draw };
        let hooks = Hooks::observing(&mut self.tape);
        match pass.run(&mut self.runner, &mut self.memory, hooks, &mut self.latest) {
            Ok(expectations) => self.store(range.start, expectations),
            Err(error) => {
                // The memories may be between two tokens.
                self.rewind(range.start);
                self.run_short(error);
                return 0;
            }
        }
        self.tape.enforce_budget();
        self.position = range.end;
        if self.history.wants_snapshot(self.position) {
            // Without room for a snapshot seeking starts further back.
            if let Ok(memory) = self.memory.save() {
                let logits = self.logits().to_vec();
                self.history.keep(Snapshot { position: self.position, memory, logits });
            }
        }
        range.len()
    }

    /// Brings the tape up to the newest token.
    pub fn settle(&mut self) {
        if let Err(error) = self.runner.settle(&mut Hooks::observing(&mut self.tape)) {
            self.failure.get_or_insert(error);
        }
    }

    /// Reads all that waits.
    pub fn read_all(&mut self) {
        while self.is_reading() {
            self.advance();
        }
    }

    fn store(&mut self, first: usize, expectations: Vec<Expectation>) {
        let end = first + expectations.len();
        if first == end {
            return;
        }
        if self.expectations.len() < end {
            self.expectations.resize(end, None);
        }
        for (place, expectation) in self.expectations[first..].iter_mut().zip(expectations) {
            *place = Some(expectation);
        }
    }

    /// Draws the next token and appends it, to be processed by the next `advance`. After a seek into known text the next known token is
    /// taken instead.
    pub fn extend(&mut self, sampling: &Sampling) -> Result<TokenId, SessionError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone().into());
        }
        if self.position < self.history.len() {
            self.goal = self.position + 1;
            return Ok(self.history.token(self.position).0);
        }
        let Some(last) = self.position.checked_sub(1) else { return Err(SessionError::EmptyPrompt) };
        self.check_length(self.position + 1)?;
        let limit = self.sampling_limit;
        // Token 0 is also what comes of logits that cannot be drawn from.
        let (ranked, position) = (&self.latest.ranked, self.position);
        let chosen = match self.latest.drawn {
            Drawn::Token(token) if self.foreseen == Some(*sampling) && token > 0 => Some(token),
            Drawn::Total(total) if self.foreseen == Some(*sampling) => {
                sampling.choose_within(ranked, total, limit, position)
            }
            _ => sampling.choose(ranked, limit, position),
        };
        let token = match chosen {
            Some(token) => token,
            None => {
                let logits = self.logits().get(..limit).unwrap_or_default();
                if !logits.iter().any(|l| l.is_finite()) {
                    return Err(SessionError::NotFinite { position: last });
                }
                sampling.sample(logits, self.position)
            }
        };
        self.foreseen = Some(*sampling);
        self.history.push(token, TokenSource::Sampled);
        self.goal = self.history.len();
        Ok(token)
    }

    /// What choosing the token at `position` will take, if it is chosen as the last one was: so many likely tokens, or a draw.
    fn foresee(&self, position: usize) -> (usize, Option<Draw>) {
        let Some(sampling) = self.foreseen else { return (1, None) };
        let limit = self.sampling_limit;
        if let Some(temperature) = sampling.nucleus() {
            return (LIKELY, Some(Draw { temperature, uniform: None, limit }));
        }
        let draw = sampling.plain(position);
        let draw = draw.map(|(temperature, uniform)| Draw { temperature, uniform: Some(uniform), limit });
        (sampling.decisive().unwrap_or(1), draw)
    }

    /// Makes `position` tokens the processed ones. `advance` does the work; later tokens stay known.
    pub fn seek(&mut self, position: usize) -> Result<(), SessionError> {
        if position > self.history.len() || (position == 0 && self.history.is_empty()) {
            return Err(SessionError::NoSuchPosition { position, length: self.history.len() });
        }
        self.settle();
        self.failure = None;
        self.goal = position;
        if position != self.position {
            self.rewind(position);
        }
        Ok(())
    }

    /// Cuts the text before `position` and puts `token` there.
    pub fn force(&mut self, position: usize, token: TokenId) -> Result<(), SessionError> {
        if position == 0 || position > self.history.len() {
            return Err(SessionError::NoSuchPosition { position, length: self.history.len() });
        }
        let count = self.model().spec().meta_tokens;
        if position < count {
            return Err(SessionError::MetaToken { count });
        }
        self.check(token, position)?;
        self.check_length(position + 1)?;
        self.settle();
        self.failure = None;
        self.history.truncate(position);
        self.tape.truncate(position);
        self.expectations.truncate(position);
        if self.position > position {
            self.rewind(position);
        }
        self.history.push(token, TokenSource::Forced);
        self.goal = self.history.len();
        Ok(())
    }

    /// The recurrent state `[H, P, N]` of a mixer after the token at `position`; none if it is not known (any more) or the mixer has none.
    pub fn state_at(&self, layer: usize, part: usize, position: usize) -> Option<Vec<f32>> {
        let slot = self.model().slot_index(layer, part);
        if position + 1 == self.position {
            let state = self.memory.state(slot);
            return (!state.is_empty()).then_some(state);
        }
        let (mixer, tape) = (self.model().mixer(layer, part), self.tape.part(layer, part));
        let (mut state, from) = match self.history.snapshot_before(position + 1) {
            Some(snapshot) => (snapshot.memory.state(slot), snapshot.position),
            None => (mixer.slot().state, 0),
        };
        let recorded = tape.positions();
        if state.is_empty() || position >= self.history.len() {
            return None;
        }
        if from <= position {
            if recorded.start > from || recorded.end <= position {
                return None;
            }
            mixer.fold(tape, from..position + 1, &mut state);
        }
        Some(state)
    }
}

#[cfg(test)]
mod tests;
