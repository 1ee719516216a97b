use super::*;
use statescope_engine::protocol::{MixingView, ModelSource, Positions, Reduction, Scale, Stage, TokenSource};

fn frame(epoch: u64) -> Frame {
    Frame { epoch, state: RunState::Running, ..Frame::default() }
}

fn reading(probe: Probe, start: usize, rows: usize, width: usize, value: impl Fn(usize, usize) -> f32) -> Reading {
    let values: Arc<[f32]> = (0..rows * width).map(|k| value(start + k / width, k % width)).collect();
    Reading { probe, positions: start..start + rows, shape: vec![rows, width], values, range: (0.0, 0.0) }
}

fn token(position: usize, text: &str) -> TokenRecord {
    TokenRecord { position, id: 1, source: TokenSource::Sampled, bytes: text.as_bytes().to_vec(), special: None }
}

fn mixing() -> Probe {
    let view = MixingView { stage: Stage::Core, scale: Scale::Raw };
    Probe::series(0, Point::Mixing(view), Reduction::Full).head(0)
}

fn send(store: &mut Store, frame: Frame) {
    store.apply(Event::Frame(Arc::new(frame)));
}

#[test]
fn rows_arrive_in_any_order_and_the_gap_is_unknown() {
    let mut store = Store::default();
    let probe = Probe::series(1, Point::Delta, Reduction::Full);
    send(&mut store, Frame { readings: vec![reading(probe, 6, 2, 3, |t, h| (t * 10 + h) as f32)], ..frame(1) });
    let series = store.series(&probe).expect("series");
    assert_eq!(series.row(7), Some(&[70.0, 71.0, 72.0][..]));
    assert_eq!(series.row(2), None);
    assert_eq!((series.len(), series.known(5), series.value(6, 2)), (8, false, Some(62.0)));
    let generation = series.generation();
    send(&mut store, Frame { readings: vec![reading(probe, 0, 6, 3, |t, _| t as f32)], ..frame(1) });
    let series = store.series(&probe).expect("series");
    assert_eq!(series.row(2), Some(&[2.0; 3][..]));
    assert_eq!(series.row(7), Some(&[70.0, 71.0, 72.0][..]));
    assert_eq!(series.range(), (0.0, 72.0));
    assert_ne!(series.generation(), generation);
}

#[test]
fn a_branch_cuts_everything_behind_it() {
    let mut store = Store::default();
    let probe = Probe::series(0, Point::Write, Reduction::Full);
    let early = Probe::latest(0, Point::State, Reduction::Full, Positions::At(2));
    let late = Probe::latest(0, Point::State, Reduction::Full, Positions::At(8));
    send(
        &mut store,
        Frame {
            tokens: (0..10).map(|t| token(t, "a")).collect(),
            readings: vec![
                reading(probe, 0, 10, 1, |t, _| t as f32),
                reading(mixing(), 0, 10, 10, |i, j| if j <= i { 1.0 + i as f32 } else { 0.0 }),
                reading(early, 2, 1, 4, |_, _| 1.0),
                reading(late, 8, 1, 4, |_, _| 1.0),
            ],
            position: 10,
            ..frame(1)
        },
    );
    send(&mut store, Frame { keep: Some(4), tokens: vec![token(4, "b")], position: 5, ..frame(1) });
    assert_eq!((store.length(), store.text().as_str()), (5, "aaaab"));
    let series = store.series(&probe).expect("series");
    assert_eq!((series.len(), series.range()), (4, (0.0, 3.0)));
    let matrix = store.matrix(&mixing()).expect("matrix");
    assert_eq!((matrix.len(), matrix.get(3, 3), matrix.get(4, 0), matrix.get(2, 3)), (4, Some(4.0), None, None));
    assert!(store.latest(&early).is_some() && store.latest(&late).is_none());
}

#[test]
fn a_new_epoch_voids_all() {
    let mut store = Store::default();
    let probe = Probe::series(0, Point::Write, Reduction::Full);
    send(
        &mut store,
        Frame { tokens: vec![token(0, "a")], readings: vec![reading(probe, 0, 1, 1, |_, _| 1.0)], ..frame(1) },
    );
    send(&mut store, Frame { tokens: vec![token(0, "b")], ..frame(2) });
    assert_eq!((store.text().as_str(), store.epoch), ("b", 2));
    assert!(store.series(&probe).is_none());
}

#[test]
fn the_history_is_bounded_and_says_so() {
    let mut store = Store::default();
    let width = MAX_SERIES_VALUES / 64;
    let probe = Probe::series(0, Point::Decay, Reduction::Full);
    for t in 0..70 {
        send(&mut store, Frame { readings: vec![reading(probe, t, 1, width, |t, _| t as f32)], ..frame(1) });
    }
    let series = store.series(&probe).expect("series");
    assert!(series.bytes() <= MAX_SERIES_VALUES * 4 + 4096 && !series.known(0) && series.known(69));
    assert_eq!(series.value(69, 5), Some(69.0));
    assert!(store.bounded_notes().iter().any(|note| note.contains("oldest rows")));
    for i in 0..MAX_ROWS + 3 {
        send(&mut store, Frame { readings: vec![reading(mixing(), i, 1, 1, |_, _| 1.0)], ..frame(1) });
    }
    let matrix = store.matrix(&mixing()).expect("matrix");
    assert_eq!((matrix.len(), matrix.first()), (MAX_ROWS + 3, 3));
}

#[test]
fn idle_probes_stay_until_the_budget_is_spent() {
    let mut store = Store::default();
    let big = |layer| Probe::series(layer, Point::Decay, Reduction::Full);
    for layer in 0..4 {
        send(&mut store, Frame { readings: vec![reading(big(layer), 0, 16, 1 << 20, |_, _| 1.0)], ..frame(1) });
        store.retain_probes(&HashSet::from([big(layer)]));
    }
    assert!(store.series(&big(3)).is_some() && store.series(&big(2)).is_some() && store.series(&big(0)).is_none());
    assert!(store.reading_bytes() <= CACHE_BYTES);
}

#[test]
fn loading_and_errors_come_and_go() {
    let mut store = Store::default();
    store.apply(Event::Loading { fraction: 0.5, what: "weights".into() });
    assert!(store.loading.is_some());
    store.apply(Event::Failed(Failure { message: "No.".into(), details: String::new() }));
    assert!(store.loading.is_none() && store.error.is_some());
}

#[test]
fn a_model_that_made_room_in_vain_is_gone() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/mamba2_a");
    let (_, _, info) = statescope_engine::open::open_model(&ModelSource::Path(folder), None, |_| true).unwrap();
    let mut store = Store::default();
    store.apply(Event::Loaded(Arc::new(info)));
    send(&mut store, Frame { tokens: vec![token(0, "a")], ..frame(1) });
    assert!(store.model.is_some() && store.length() == 1);
    send(&mut store, Frame { epoch: 2, ..Frame::default() });
    assert!(store.model.is_none() && store.length() == 0);
    assert_eq!(store.run, RunState::Empty);
}

#[test]
fn positions_speak_of_the_newest_text() {
    let mut store = Store::default();
    send(&mut store, frame(4));
    assert!(store.is_current());
    store.await_text();
    store.await_text();
    send(&mut store, frame(4));
    send(&mut store, frame(5));
    assert!(!store.is_current(), "the second prompt is still on its way");
    assert_eq!(store.run, RunState::Reading);
    send(&mut store, frame(6));
    assert!(store.is_current());
    store.await_text();
    store.apply(Event::Failed(Failure { message: "no".into(), details: String::new() }));
    assert!(store.is_current(), "the text before stays");
    assert_eq!(store.run, RunState::Paused);
}

#[test]
fn what_is_known_of_a_token_is_all_that_is_asked_for() {
    let mut store = Store::default();
    let delta = |layer| Probe::series(layer, Point::Delta, Reduction::Full);
    assert_eq!(store.known(), usize::MAX, "nothing is asked for");
    store.retain_probes(&HashSet::from([delta(0), delta(1)]));
    let readings = vec![reading(delta(0), 0, 9, 1, |_, _| 1.0), reading(delta(1), 0, 5, 1, |_, _| 1.0)];
    send(&mut store, Frame { position: 9, readings, ..frame(1) });
    assert_eq!(store.known(), 5);
    send(&mut store, Frame { position: 9, readings: vec![reading(delta(1), 5, 4, 1, |_, _| 1.0)], ..frame(1) });
    assert_eq!(store.known(), 9);
    // A layer that no view shows any longer says nothing.
    store.retain_probes(&HashSet::from([delta(1)]));
    send(&mut store, Frame { position: 12, readings: vec![reading(delta(1), 9, 3, 1, |_, _| 1.0)], ..frame(1) });
    assert_eq!(store.known(), 12);
}
