//! A device that runs out of memory, played by a CPU on which so many tokens have room.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::open::open_model;
use crate::protocol::ModelSource;

const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: None, top_p: None, seed: 0 };

fn session(room: usize) -> Session {
    // A state as well as a cache.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/bamba_a");
    let (model, _, _) = open_model(&ModelSource::Path(folder), None, |_| true).unwrap();
    let mut session = Session::new(Arc::new(model), None, Budgets::default());
    session.runner.room = room;
    session
}

fn ids(count: usize) -> Vec<TokenId> {
    (0..count).map(|i| ((i * 7919 + i * i * 31 + 13) % 96) as TokenId).collect()
}

/// Makes `count` tokens, or fewer if something goes wrong.
fn make(session: &mut Session, count: usize) -> Result<(), SessionError> {
    for _ in 0..count {
        session.extend(&GREEDY)?;
        session.read_all();
    }
    Ok(())
}

#[test]
fn a_text_without_room_for_more_stays_and_can_be_gone_back_in() {
    let (mut free, mut tight) = (session(usize::MAX), session(200));
    for session in [&mut free, &mut tight] {
        session.start(&ids(130)).unwrap();
        session.read_all();
    }
    make(&mut free, 100).unwrap();
    let refused = make(&mut tight, 100).unwrap_err();
    assert!(matches!(&refused, SessionError::Device(error) if error.is_memory()), "{refused}");
    // The token that could not be read any more is part of the text.
    assert_eq!((tight.position(), tight.history().len()), (200, 201));
    assert_eq!(tight.history().ids(0..201), free.history().ids(0..201));
    assert!(tight.given_up().iter().any(|note| note.contains("snapshots")), "they went first");
    assert_eq!(make(&mut tight, 1).unwrap_err(), refused, "it is said again");
    assert!(!tight.is_reading());

    for session in [&mut free, &mut tight] {
        session.seek(170).unwrap();
        session.read_all();
    }
    assert_eq!(tight.position(), 170);
    assert_eq!(tight.logits(), free.logits(), "going back has the bits of the first run");
    assert_eq!(tight.state_at(0, 0, 169), free.state_at(0, 0, 169));
    make(&mut tight, 30).unwrap();
    assert!(make(&mut tight, 2).is_err() && tight.position() == 200);
    tight.force(150, 7).unwrap();
    tight.read_all();
    make(&mut tight, 49).unwrap();
    assert_eq!(tight.position(), 200);
    tight.start(&ids(20)).unwrap();
    tight.read_all();
    assert!(tight.failure().is_none() && tight.position() == 20);
}

#[test]
fn a_prompt_without_room_is_refused_as_far_as_it_does_not_fit() {
    let mut session = session(512);
    session.start(&ids(600)).unwrap();
    session.read_all();
    assert_eq!((session.position(), session.history().len()), (512, 600));
    assert!(session.failure().is_some() && make(&mut session, 1).is_err());
    session.runner.room = usize::MAX;
    session.seek(600).unwrap();
    session.read_all();
    assert_eq!(session.position(), 600);
}
