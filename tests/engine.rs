//! The engine loop through its channels, as the window uses it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use statescope_engine::collector::Collector;
use statescope_engine::handle::Handle;
use statescope_engine::hooks::Depth;
use statescope_engine::open::spell;
use statescope_engine::probes::mixing_rows;
use statescope_engine::protocol::{
    Command, Device, Event, FinishReason, Fold, Frame, MixingView, ModelSource, Observation, Point, Positions,
    Prediction, Probe, PromptInput, Reduction, RunState, Scale, Span, Stage, TokenId, TokenSource,
};
use statescope_engine::sampler::Sampling;
use statescope_engine::session::{Budgets, Session, SessionError};

use crate::support::{goldens, ids, open_case};

const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: None, top_p: None, seed: 0 };
const CORE: MixingView = MixingView { stage: Stage::Core, scale: Scale::Raw };

/// A listener that keeps what it is told, as the window's store does.
struct Listener {
    handle: Handle,
    epoch: u64,
    tokens: Vec<(TokenId, TokenSource)>,
    predictions: Vec<Prediction>,
    rows: HashMap<Probe, Vec<Option<Vec<f32>>>>,
    latest: HashMap<Probe, (usize, Vec<f32>)>,
    state: RunState,
    position: usize,
    tokens_per_s: f32,
    failures: Vec<String>,
    done: Vec<FinishReason>,
}

impl Listener {
    fn new(case: &str) -> Self {
        let mut listener = Self {
            handle: Handle::spawn(|| {}).unwrap(),
            epoch: 0,
            tokens: Vec::new(),
            predictions: Vec::new(),
            rows: HashMap::new(),
            latest: HashMap::new(),
            state: RunState::Empty,
            position: 0,
            tokens_per_s: 0.0,
            failures: Vec::new(),
            done: Vec::new(),
        };
        listener.handle.load_and_wait(ModelSource::Path(goldens().join(case))).unwrap();
        listener.send(Command::Sample(GREEDY));
        listener
    }

    fn send(&mut self, command: Command) {
        self.handle.send(command);
    }

    fn observe(&mut self, probes: &[Probe]) {
        self.send(Command::Observe(Observation { probes: probes.to_vec(), candidates: 4 }));
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Frame(frame) => self.apply_frame(&frame),
            Event::Failed(failure) => self.failures.push(failure.message),
            Event::Done(reason) => self.done.push(reason),
            Event::Loading { .. } | Event::Loaded(_) => {}
        }
    }

    fn apply_frame(&mut self, frame: &Frame) {
        if frame.epoch != self.epoch {
            self.epoch = frame.epoch;
            self.tokens.clear();
            self.predictions.clear();
            self.rows.clear();
            self.latest.clear();
        } else if let Some(keep) = frame.keep {
            self.tokens.truncate(keep);
            self.predictions.truncate(keep);
            self.rows.values_mut().for_each(|r| r.truncate(keep));
        }
        for token in &frame.tokens {
            assert_eq!(token.position, self.tokens.len(), "tokens come in order, none twice");
            self.tokens.push((token.id, token.source));
        }
        for prediction in &frame.predictions {
            self.predictions.truncate(prediction.position);
            self.predictions.push(prediction.clone());
        }
        for reading in &frame.readings {
            assert_eq!(reading.shape.iter().product::<usize>(), reading.values.len());
            if reading.probe.cadence == statescope_engine::protocol::Cadence::Latest {
                self.latest.insert(reading.probe, (reading.positions.end - 1, reading.values.to_vec()));
                continue;
            }
            let rows = self.rows.entry(reading.probe).or_default();
            rows.resize(rows.len().max(reading.positions.end), None);
            let width = reading.shape[1];
            for (position, row) in reading.positions.clone().zip(reading.values.chunks_exact(width)) {
                rows[position] = Some(row.to_vec());
            }
        }
        (self.state, self.position) = (frame.state, frame.position);
        self.tokens_per_s = frame.performance.tokens_per_s;
    }

    /// Listens until `enough`, which must come.
    fn until(&mut self, what: &str, enough: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !enough(self) {
            assert!(Instant::now() < deadline, "waiting for: {what}; failures so far: {:?}", self.failures);
            if let Some(event) = self.handle.wait(Duration::from_millis(50)) {
                self.apply(event);
            }
        }
    }

    fn known(&self, probe: &Probe) -> usize {
        self.rows.get(probe).map_or(0, |rows| rows.iter().filter(|r| r.is_some()).count())
    }

    fn read(&mut self, tokens: Vec<TokenId>) {
        let (length, epoch) = (tokens.len(), self.epoch);
        self.send(Command::Prompt(PromptInput::Tokens(tokens)));
        self.until("the prompt", |l| l.epoch > epoch && l.position == length);
    }
}

fn write_of(layer: usize) -> Probe {
    Probe::series(layer, Point::Write, Reduction::Full)
}

/// The same text through the synchronous session.
fn session(case: &str, prompt: &[TokenId], made: usize) -> Session {
    let mut session = Session::new(open_case(case).model, None, Budgets::default());
    session.start(prompt).unwrap();
    session.read_all();
    for _ in 0..made {
        session.extend(&GREEDY).unwrap();
        session.read_all();
    }
    session
}

#[test]
fn a_run_streams_every_token_and_every_row_once() {
    for case in ["mamba_a", "mamba2_a", "llama_a", "bamba_a"] {
        let mut listener = Listener::new(case);
        let (write, row) = (write_of(0), Probe::series(1, Point::Mixing(CORE), Reduction::Full).head(1));
        listener.observe(&[write, row]);
        let prompt = ids(70, 96);
        listener.read(prompt.clone());
        listener.send(Command::Run { tokens: 60 });
        listener.until("the end", |l| !l.done.is_empty() && l.known(&write) == 130 && l.known(&row) == 130);
        assert_eq!(listener.done, [FinishReason::Length]);
        assert!(listener.tokens_per_s > 0.0, "{case}: a run within a frame has a speed, too");
        let expected = session(case, &prompt, 60);
        let ids: Vec<TokenId> = listener.tokens.iter().map(|t| t.0).collect();
        assert_eq!(ids, expected.history().ids(0..130), "{case}");
        assert!(listener.tokens[70..].iter().all(|t| t.1 == TokenSource::Sampled));
        assert_eq!(listener.predictions.len(), 130);
        // What was sent live is what the record of a silent run gives.
        let mixer = expected.model().mixer(1, 0);
        let drawn = mixing_rows(mixer, expected.tape().part(1, 0), 1, Span::All, CORE, 129..130);
        assert_eq!(listener.rows[&row][129].as_ref().unwrap()[..], drawn[..], "{case}");
        let shape = expected.model().mixer(0, 0).geometry().heads;
        assert!(listener.rows[&write].iter().all(|r| r.as_ref().unwrap().len() == shape));
    }
}

#[test]
fn a_quantity_asked_for_later_is_backfilled() {
    let mut listener = Listener::new("mamba2_a");
    listener.read(ids(100, 96));
    let probes = [
        write_of(1),
        Probe::series(0, Point::State, Reduction::Head(Fold::Norm)),
        Probe::series(1, Point::MixingError, Reduction::Full).head(2),
        Probe::series(1, Point::Resid, Reduction::Layer(Fold::Norm)),
    ];
    listener.observe(&probes);
    listener.until("the backfill", |l| probes.iter().all(|p| l.known(p) == 100) && l.predictions.len() == 100);
    let worst = listener.rows[&probes[2]].iter().map(|r| r.as_ref().unwrap()[0]).fold(0.0, f32::max);
    assert!(worst > 0.0 && worst <= 1e-5, "error badge {worst:e}");
    assert!(listener.predictions[0].surprisal_bits.is_none());
    assert!(listener.predictions[1].surprisal_bits.unwrap() > 0.0);
    let total: f32 = listener.predictions[50].candidates.iter().map(|c| c.probability).sum();
    assert!(listener.predictions[50].candidates.len() == 4 && total <= 1.0);
}

#[test]
fn a_picture_whose_tokens_were_dropped_meanwhile_is_begun_again() {
    let budgets = Budgets { tape_bytes: 300_000, snapshot_bytes: 1 << 20 };
    let mut session = Session::new(open_case("mamba2_a").model, None, budgets);
    let mut collector = Collector::default();
    collector.observe(&[Probe::latest(1, Point::Mixing(CORE), Reduction::Pool { rows: 8, cols: 8 }, Positions::All)]);
    session.look_at(|layer| collector.looks_at(layer));
    session.start(&ids(40, 96)).unwrap();
    session.read_all();
    let at_once = Instant::now();
    let (readings, more) = collector.collect(&session, at_once, false);
    assert!(readings.is_empty() && more, "the first of several heads");
    while session.tape().part(1, 0).positions().start < 40 {
        session.extend(&GREEDY).unwrap();
        session.read_all();
    }
    let mut readings = Vec::new();
    while readings.is_empty() {
        readings = collector.collect(&session, at_once, false).0;
    }
    assert_eq!(readings[0].positions, session.tape().part(1, 0).positions());
}

#[test]
fn a_layer_whose_record_was_given_up_is_replayed() {
    let model = open_case("mamba2_a").model;
    let budgets = Budgets { tape_bytes: 300_000, snapshot_bytes: 1 << 20 };
    let mut small = Session::new(model.clone(), None, budgets);
    small.look_at(|layer| if layer == 1 { Depth::Everything } else { Depth::Nothing });
    small.start(&ids(100, 96)).unwrap();
    small.read_all();
    assert!(small.tape().part(0, 0).positions().is_empty(), "layer 0 had to go");
    small.look_at(|layer| if layer == 0 { Depth::Everything } else { Depth::Nothing });
    let mut replay = small.replay_needed().unwrap().expect("layer 0 is wanted again");
    while {
        let (done, total) = small.advance_replay(&mut replay).unwrap();
        done < total
    } {}
    let full = session("mamba2_a", &ids(100, 96), 0);
    for position in 0..100 {
        assert_eq!(
            small.tape().part(0, 0).row(Point::Core, position),
            full.tape().part(0, 0).row(Point::Core, position)
        );
    }
}

#[test]
fn states_of_the_past_are_those_of_the_run() {
    for case in ["mamba_a", "mamba2_a", "bamba_b"] {
        let mut listener = Listener::new(case);
        let layer = usize::from(case == "bamba_b");
        let at = |t| Probe::latest(layer, Point::State, Reduction::Full, Positions::At(t));
        listener.read(ids(40, 96));
        listener.send(Command::Run { tokens: 50 });
        listener.until("the end", |l| !l.done.is_empty());
        // The model may end the text before its 50 tokens.
        let last = listener.position - 1;
        let positions = [39, (39 + last) / 2, last];
        listener.observe(&positions.map(|t| at(t as u32)));
        listener.until("states", |l| positions.iter().all(|t| l.latest.contains_key(&at(*t as u32))));
        for t in positions {
            let there = session(case, &ids(40, 96), t - 39);
            assert_eq!(listener.latest[&at(t as u32)], (t, there.slots()[layer].state.clone()), "{case} at {t}");
        }
    }
}

#[test]
fn seeking_and_forcing_branch_the_text() {
    let mut listener = Listener::new("bamba_a");
    let write = write_of(0);
    listener.observe(&[write]);
    listener.read(ids(20, 96));
    listener.send(Command::Run { tokens: 20 });
    listener.until("the end", |l| !l.done.is_empty() && l.known(&write) == 40);
    let before = listener.tokens.clone();
    listener.send(Command::Seek { position: 25 });
    listener.until("the seek", |l| l.position == 25 && l.state == RunState::Paused);
    assert_eq!(listener.tokens, before, "later tokens stay known");
    listener.send(Command::Step);
    listener.until("the known token", |l| l.position == 26);
    assert_eq!(listener.tokens, before);
    let other = (before[30].0 + 1) % 96;
    listener.send(Command::Force { position: 30, token: other });
    listener.until("the branch", |l| l.position == 31 && l.known(&write) == 31);
    assert_eq!(listener.tokens[..30], before[..30]);
    assert_eq!(listener.tokens[30], (other, TokenSource::Forced));
    listener.send(Command::Run { tokens: 5 });
    listener.until("the continuation", |l| l.position == 36);
}

#[test]
fn pausing_stopping_and_stepping() {
    let mut listener = Listener::new("llama_a");
    listener.read(ids(5, 96));
    listener.send(Command::Speed(Some(20.0)));
    listener.send(Command::Run { tokens: 1000 });
    listener.until("some tokens", |l| l.position >= 8);
    listener.send(Command::Pause);
    listener.until("the pause", |l| l.state == RunState::Paused);
    let at = listener.position;
    assert!(at < 100, "the limit holds");
    listener.send(Command::Step);
    listener.until("one token", |l| l.position == at + 1 && l.state == RunState::Paused);
    listener.send(Command::Speed(None));
    listener.send(Command::Run { tokens: 1_000_000 });
    listener.send(Command::Stop);
    listener.until("the stop", |l| l.done.contains(&FinishReason::Stopped));
}

#[test]
fn mistakes_are_one_sentence_and_lose_nothing() {
    let mut listener = Listener::new("mamba_a");
    listener.read(ids(10, 96));
    let before = listener.tokens.clone();
    let wrong = [
        Command::Prompt(PromptInput::Tokens(vec![])),
        Command::Prompt(PromptInput::Tokens(vec![1, 96])),
        Command::Prompt(PromptInput::Text("no tokenizer here".into())),
        Command::Seek { position: 11 },
        Command::Force { position: 0, token: 1 },
        Command::Force { position: 3, token: 5000 },
        Command::Sample(Sampling { top_p: Some(2.0), ..GREEDY }),
        Command::Load { source: ModelSource::Path("/nowhere".into()), dtype: None, device: Device::Cpu, memory: None },
    ];
    for (count, command) in wrong.into_iter().enumerate() {
        listener.send(command);
        listener.until("the failure", |l| l.failures.len() == count + 1);
        assert!(!listener.failures[count].contains('\n') && listener.failures[count].len() > 20);
    }
    listener.send(Command::Step);
    listener.until("a step as if nothing had happened", |l| l.position == 11);
    assert_eq!(listener.tokens[..10], before[..]);
}

/// A window that does not listen for a while neither stops the engine nor loses a row, and commands are heard meanwhile.
#[test]
fn a_deaf_listener_loses_nothing() {
    let mut listener = Listener::new("mamba2_b");
    let write = write_of(0);
    listener.observe(&[write]);
    listener.read(ids(3, 96));
    listener.send(Command::Run { tokens: usize::MAX });
    std::thread::sleep(Duration::from_millis(500));
    listener.send(Command::Pause);
    std::thread::sleep(Duration::from_millis(200));
    listener.until("all rows", |l| l.state == RunState::Paused && l.position > 3 && l.known(&write) == l.position);
    assert_eq!(listener.tokens.len(), listener.position);
}

#[test]
fn closing_mid_run_returns_at_once() {
    let mut listener = Listener::new("bamba_b");
    listener.read(ids(3, 96));
    listener.send(Command::Run { tokens: usize::MAX });
    listener.until("it runs", |l| l.position > 10);
    let began = Instant::now();
    drop(listener);
    assert!(began.elapsed() < Duration::from_secs(1), "dropping the handle does not join the worker");
}

/// A model's own meta tokens stand before every text: read once, foretold by nothing, replaced by nobody.
#[test]
fn meta_tokens_are_no_text() {
    let opened = open_case("hymba_a");
    let mut session = Session::new(opened.model, None, Budgets::default());
    session.rank(3);
    session.start(&[5, 6]).unwrap();
    session.read_all();
    assert_eq!(session.history().ids(0..5), [32, 33, 34, 5, 6]);
    let surprisals: Vec<bool> = (0..5).map(|t| session.expectation(t).unwrap().surprisal_bits.is_some()).collect();
    assert_eq!(surprisals, [false, false, false, false, true]);
    assert_eq!(session.force(2, 1), Err(SessionError::MetaToken { count: 3 }));
    session.force(3, 7).unwrap();
    session.read_all();
    assert_eq!(session.history().ids(0..4), [32, 33, 34, 7]);
    // Text that begins with them is taken as it is; anywhere else they are no tokens.
    session.start(&[32, 33, 34, 5]).unwrap();
    assert_eq!(session.history().len(), 4);
    assert!(matches!(session.start(&[5, 32]), Err(SessionError::OutOfVocabulary { position: 1, .. })));
    assert_eq!(session.start(&[32, 33, 34]), Err(SessionError::EmptyPrompt));
    assert_eq!(spell(&opened.info, None, 33).1.unwrap(), "[meta 1]");
}
