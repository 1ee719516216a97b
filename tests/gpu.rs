//! The window on a GPU. All else that needs one is tested in the rooms it belongs to, in builds with feature `cuda`; elsewhere these tests are
//! named here and skipped.

#[test]
#[cfg(not(feature = "cuda"))]
#[ignore = "needs an NVIDIA GPU and CUDA 13: cargo test --workspace --features cuda -- --ignored cuda"]
fn cuda_kernels_and_models() {
    panic!("this build has no GPU tests; run cargo test --workspace --features cuda -- --ignored cuda");
}

#[cfg(feature = "cuda")]
mod window {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use crossbeam_channel::{Sender, bounded};
    use egui_kittest::kittest::{NodeT, Queryable};
    use statescope::Options;
    use statescope_engine::handle::Handle;
    use statescope_engine::protocol::{Command, Device, ModelSource, RunState};
    use statescope_engine::runner::find_gpu;
    use statescope_engine::sampler::Sampling;
    use statescope_engine::worker::Worker;

    use crate::ui::{Window, said, text_of, until, window_with};

    /// Tokens made after the prompt.
    const MADE: usize = 60;

    fn open(name: &str, gpu_memory: Option<usize>) -> (Window, Sender<Command>) {
        let root =
            std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let model = ModelSource::Path(root.join("assets/models").join(name));
        let ((commands, heard), (told, events)) = (bounded(64), bounded(8));
        let cancel = Arc::new(AtomicBool::new(false));
        let worker = Worker::new(heard, told, Box::new(|| {}), cancel.clone());
        std::thread::spawn(move || worker.run());
        let options = Options { model: Some(model), gpu_memory, ..Options::default() };
        let mut window = window_with(Handle::from_channels(commands.clone(), events, cancel), options);
        until_read(&mut window, Device::Cpu);
        (window, commands)
    }

    fn until_read(window: &mut Window, device: Device) {
        until(window, "the prompt", |w| {
            let store = &w.state().store;
            let there = store.model.as_ref().is_some_and(|model| model.device.device == device);
            there && store.run == RunState::Paused && store.position > 4 && store.position == store.length()
        });
    }

    fn choose_gpu(window: &mut Window) {
        let name = find_gpu().unwrap_or_else(|error| panic!("{error}"));
        window.get_by_label_contains("Device CPU").click();
        until(window, "the GPU in the menu", |w| w.query_by_label(&name).is_some());
        window.get_by_label(&name).click();
        window.run_steps(2);
    }

    fn make(window: &mut Window, commands: &Sender<Command>) {
        let greedy = Sampling { temperature: 0.0, top_k: None, top_p: None, seed: 0 };
        let end = window.state().store.length() + MADE;
        commands.send(Command::Sample(greedy)).unwrap();
        commands.send(Command::Run { tokens: MADE }).unwrap();
        until(window, "the text", |w| w.state().store.position == end && w.state().store.run == RunState::Paused);
    }

    fn says(window: &Window, wanted: &str) -> Option<String> {
        let mut texts = window.query_all_by(|_| true).filter_map(|n| text_of(&n.accesskit_node()));
        texts.find(|text| text.contains(wanted))
    }

    /// A picture for whoever looks, where `STATESCOPE_SHOTS` names a folder.
    fn shoot(window: &mut Window, name: &str) {
        if let Some(folder) = std::env::var_os("STATESCOPE_SHOTS") {
            window.run_steps(4);
            window.render().unwrap().save(PathBuf::from(folder).join(format!("{name}.png"))).unwrap();
        }
    }

    /// What the inspector says of one head of a layer at one token: write strength, read strength, a cell of the matrix.
    fn inspect(window: &mut Window, layer: usize) -> Vec<f32> {
        let token = window.state().store.length() - 3;
        let selection = &mut window.state_mut().selection;
        (selection.layer, selection.head, selection.query, selection.key) = (layer, 1, Some(token), Some(token - 2));
        let names = ["write".to_owned(), "read".to_owned(), format!("M[{token}, {}]", token - 2)];
        until(window, "the inspector", |w| names.iter().all(|name| said(w, name).is_some()));
        names.iter().map(|name| said(window, name).unwrap()).collect()
    }

    /// The GPU is chosen in the menu; text and numbers are those of the CPU, memory and times are told.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_the_window_shows_what_it_shows_of_the_cpu() {
        for name in ["mamba", "mamba2", "hybrid", "transformer"] {
            let (mut here, commands) = open(name, None);
            make(&mut here, &commands);
            let (mut there, commands) = open(name, Some(1 << 30));
            choose_gpu(&mut there);
            until_read(&mut there, Device::Cuda);
            make(&mut there, &commands);
            assert_eq!(there.state().store.text(), here.state().store.text(), "{name}");
            let layers = here.state().store.model.as_ref().unwrap().layers.len();
            for layer in [0, layers / 2, layers - 1] {
                let [there, here] = [&mut there, &mut here].map(|window| inspect(window, layer));
                for (there, here) in there.iter().zip(&here) {
                    assert!(
                        (there - here).abs() <= 1e-4 * here.abs().max(1e-2),
                        "{name}, layer {layer}: {there}, {here}"
                    );
                }
            }
            let performance = &there.state().store.performance;
            assert!(performance.device_bytes > 1 << 20 && performance.model_ms > 0.0 && performance.transfer_ms > 0.0);
            for wanted in ["Device CUDA", "GPU memory", "allowed", "time per token: model"] {
                let text = says(&there, wanted).unwrap_or_else(|| panic!("{name}: nothing says {wanted}"));
                println!("{name}: {text}");
            }
            shoot(&mut here, &format!("{name}-cpu"));
            shoot(&mut there, &format!("{name}-cuda"));
            there.get_by_label_contains("Device CUDA").click();
            shoot(&mut there, &format!("{name}-menu"));
        }
    }

    /// A model that may not take what it needs is refused in one sentence, and the one before stays with its text.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_a_model_that_does_not_fit_leaves_the_window_as_it_was() {
        let (mut window, commands) = open("hybrid", Some(10 << 20));
        let text = window.state().store.text();
        choose_gpu(&mut window);
        until(&mut window, "the refusal", |w| w.state().store.error.is_some());
        let said = window.state().store.error.clone().unwrap().message;
        println!("{said}");
        assert!(said.contains("10 MiB are allowed") && says(&window, "10 MiB are allowed").is_some(), "{said}");
        shoot(&mut window, "refused");
        make(&mut window, &commands);
        assert!(window.state().store.text().starts_with(&text));
        assert_eq!(window.state().store.model.as_ref().unwrap().device.device, Device::Cpu);
    }
}
