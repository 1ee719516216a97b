//! A bound on GPU memory: what does not fit is refused before anything is uploaded, what grows beyond it loses nothing.

use std::sync::Arc;

use statescope_kernels::cuda::Gpu;

use super::tests::{builtins, generated, ids};
use crate::hooks::Depth;
use crate::model::Model;
use crate::place::Place;
use crate::protocol::{Device, ModelInfo};
use crate::room::Needed;
use crate::runner::Runner;
use crate::sampler::Sampling;
use crate::session::{Budgets, Session, SessionError};

const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: None, top_p: None, seed: 0 };

/// A session that may take so many bytes, and the GPU that it is on.
fn session(model: &Arc<Model>, info: &ModelInfo, allowed: Option<usize>) -> (Session, Arc<Gpu>) {
    let place = Place::open(Device::Cuda, allowed).unwrap();
    let Place::Gpu(gpu, _) = &place else { panic!("a GPU was asked for") };
    let runner = Runner::open(model.clone(), &place, &mut info.clone()).unwrap();
    (Session::on(runner, None, Budgets::default()).unwrap(), gpu.clone())
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_what_does_not_fit_is_refused_and_what_fits_runs() {
    for (model, info) in builtins() {
        let Needed { weights, memory, workspace } = Needed::of(&info);
        let needed = weights + memory + workspace;
        let place = Place::open(Device::Cuda, Some(needed - 1)).unwrap();
        let refused = Runner::open(model.clone(), &place, &mut info.clone()).err().expect("it does not fit");
        let Place::Gpu(gpu, _) = &place else { panic!("a GPU was asked for") };
        assert!(refused.is_memory() && gpu.used() == 0, "{}: {refused}", info.name);

        let prompt = ids(600, info.vocab_size);
        let (mut free, _) = session(&model, &info, None);
        let (mut tight, gpu) = session(&model, &info, Some(needed));
        for session in [&mut free, &mut tight] {
            session.rank(12);
            session.look_at(|_| Depth::Strength);
        }
        let made = [&mut free, &mut tight].map(|session| generated(session, &prompt, 100));
        println!("{}: {} of {needed} bytes, weights {weights}", info.name, gpu.used());
        assert!(tight.failure().is_none() && gpu.used() <= needed, "{}: {:?}", info.name, tight.failure());
        // The prompt is read in shorter pieces there, which round differently.
        assert_eq!(made[0][..20], made[1][..20], "{}", info.name);
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_growing_beyond_the_bound_loses_nothing() {
    for (model, info) in builtins().into_iter().filter(|(_, info)| info.kv_bytes_per_token > 0) {
        let (mut free, _) = session(&model, &info, None);
        let (mut tight, gpu) = session(&model, &info, None);
        let prompt = ids(2000, info.vocab_size);
        let expected = generated(&mut free, &prompt, 200);
        assert_eq!(generated(&mut tight, &prompt, 48), expected[..48]);
        gpu.limit_memory(Some(gpu.used()));
        let refused = loop {
            match tight.extend(&GREEDY) {
                Ok(_) => tight.read_all(),
                Err(SessionError::Device(error)) => break error,
                Err(error) => panic!("{error}"),
            }
        };
        let text = refused.to_string();
        println!("{}: {text}", info.name);
        assert!(refused.is_memory() && text.contains("KV cache") && text.contains("allowed"), "{text}");
        assert_eq!((tight.position(), tight.history().len()), (2048, 2049));
        assert!(gpu.used() <= gpu.memory_limit().unwrap());
        // Back where there was room, and on from there once there is more.
        tight.seek(2030).unwrap();
        tight.read_all();
        assert!(tight.failure().is_none() && tight.position() == 2030);
        gpu.limit_memory(None);
        while tight.position() < 2200 {
            tight.extend(&GREEDY).unwrap();
            tight.read_all();
        }
        assert_eq!(tight.history().ids(2000..2200), expected, "{}", info.name);
        assert_eq!(tight.logits(), free.logits(), "{}", info.name);
    }
}

/// There is no room to read a prompt with: nothing of it is half read.
#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_prompt_without_workspace_is_refused_whole() {
    for (model, info) in builtins() {
        let (mut session, gpu) = session(&model, &info, None);
        gpu.limit_memory(Some(gpu.used()));
        let prompt = ids(300, info.vocab_size);
        session.start(&prompt).unwrap();
        session.read_all();
        let refused = session.failure().cloned().expect("there is no room");
        assert!(refused.is_memory() && session.position() == 0 && session.history().len() == 300, "{refused}");
        gpu.limit_memory(None);
        let (mut other, _) = self::session(&model, &info, None);
        assert_eq!(generated(&mut session, &prompt, 20), generated(&mut other, &prompt, 20), "{}", info.name);
    }
}
