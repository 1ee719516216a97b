//! The official implementation agrees: logits, the residual stream after every layer, internals, greedy continuations, on tiny
//! random checkpoints of every architecture and on the built-in models. Goldens are made by `tests/goldens/make.py` and
//! `assets/training/golden.py`.

use statescope_engine::hooks::Hooks;
use statescope_engine::mixer::StateSlot;
use statescope_engine::model::{Logits, Model};
use statescope_engine::protocol::{ModelSource, Point, TokenId};
use statescope_engine::sampler::Sampling;
use statescope_engine::session::{Budgets, Session};

use crate::support::{Capture, Golden, deviation, goldens, open, open_case, root};

/// Parity bound of the design.
const TOLERANCE: f32 = 1e-4;

const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: None, top_p: None, seed: 0 };

/// All logits of `tokens` read in pieces that end at `cuts`.
pub fn read(model: &Model, tokens: &[TokenId], cuts: &[usize], capture: &mut Capture) -> (Vec<f32>, Vec<StateSlot>) {
    let mut slots = model.slots();
    let (mut logits, mut start) = (Vec::new(), 0);
    for &end in cuts.iter().chain([&tokens.len()]) {
        let mut piece = Vec::new();
        let mut hooks = Hooks::observing(capture);
        model.forward(&tokens[start..end], start, &mut slots, &mut hooks, Logits::All(&mut piece));
        logits.extend(piece);
        start = end;
    }
    (logits, slots)
}

fn greedy(session: &mut Session, prompt: &[TokenId], count: usize) -> Vec<TokenId> {
    session.start(prompt).unwrap();
    session.read_all();
    (0..count)
        .map(|_| {
            let token = session.extend(&GREEDY).unwrap();
            session.read_all();
            token
        })
        .collect()
}

/// Compares one case; returns the largest deviations of (logits, residuals).
fn check_case(case: &str) -> (f32, f32) {
    let opened = open_case(case);
    let golden = Golden::read(&goldens().join(case).join("golden.safetensors"));
    let tokens = golden.tokens("input_ids");
    let expected = golden.floats("logits");
    let mut worst = (0.0f32, 0.0f32);
    let single: Vec<usize> = (1..tokens.len()).collect();
    let cuts = [&[][..], &[1], &[7, 8, 65], &[7, 8, 33], &[64], &single];
    for cuts in cuts.into_iter().filter(|cuts| cuts.last().is_none_or(|&last| last < tokens.len())) {
        let mut capture = Capture::default();
        let (logits, _) = read(&opened.model, &tokens, cuts, &mut capture);
        let error = deviation(&logits, &expected);
        assert!(error <= TOLERANCE, "{case}, cut at {cuts:?}: logits deviate by {error:e}");
        worst.0 = worst.0.max(error);
        for layer in (0..opened.model.layer_count()).filter(|layer| golden.has(&format!("resid.{layer}"))) {
            let error = deviation(&capture.rows[&(layer, 0, Point::Resid)], &golden.floats(&format!("resid.{layer}")));
            assert!(error <= TOLERANCE, "{case}, cut at {cuts:?}: residual of layer {layer} deviates by {error:e}");
            worst.1 = worst.1.max(error);
        }
        check_internals(case, &golden, &capture);
    }
    if !golden.has("greedy") {
        return worst;
    }
    let mut session = Session::new(opened.model.clone(), None, Budgets::default());
    let continuation = golden.tokens("greedy");
    assert_eq!(
        greedy(&mut session, &golden.tokens("greedy_prompt"), continuation.len()),
        continuation,
        "{case}: greedy"
    );
    worst
}

/// What the names of a mixer's tensors begin with.
fn described(layer: usize, part: usize) -> String {
    if part == 0 { format!("mixer.{layer}") } else { format!("mixer.{layer}.{part}") }
}

fn check_internals(case: &str, golden: &Golden, capture: &Capture) {
    let pairs = [
        ("delta", Point::Delta),
        ("B", Point::Key),
        ("C", Point::Query),
        ("x", Point::Value),
        ("y", Point::Core),
        ("out", Point::Out),
    ];
    for (layer, part) in (0..4).flat_map(|layer| [(layer, 0), (layer, 1)]) {
        for (name, point) in pairs {
            let name = format!("{}.{name}", described(layer, part));
            if golden.has(&name) {
                let error = deviation(&capture.rows[&(layer, part, point)], &golden.floats(&name));
                assert!(error <= TOLERANCE, "{case}: {name} deviates by {error:e}");
            }
        }
    }
}

/// The drawn matrices and the final states are those of the reference.
fn check_pictures(case: &str) {
    let opened = open_case(case);
    let golden = Golden::read(&goldens().join(case).join("golden.safetensors"));
    let mut session = Session::new(opened.model.clone(), None, Budgets::default());
    session.start(&golden.tokens("input_ids")).unwrap();
    session.read_all();
    let length = session.position();
    let layers = 0..opened.model.layer_count();
    for (layer, part) in layers.flat_map(|layer| (0..opened.model.parts(layer)).map(move |part| (layer, part))) {
        let (mixer, tape) = (opened.model.mixer(layer, part), session.tape().part(layer, part));
        let name = format!("{}.mixing", described(layer, part));
        if golden.has(&name) {
            let expected = golden.floats(&name);
            let channels = format!("{}.mixing_channels", described(layer, part));
            let heads = match golden.has(&channels) {
                true => golden.tokens(&channels),
                false => (0..golden.shape(&name)[0] as u32).collect(),
            };
            for (head, expected) in heads.iter().zip(expected.chunks_exact(length * length)) {
                let mut drawn = vec![f32::NAN; length * length];
                mixer.lower(tape, *head as usize, &mut |lowered| lowered.rows(0..length, &mut drawn));
                let error = deviation(&drawn, expected);
                assert!(error <= TOLERANCE, "{case}: matrix of layer {layer}, head {head} deviates by {error:e}");
            }
        }
        let name = format!("{}.state", described(layer, part));
        if golden.has(&name) {
            let state = session.state_at(layer, part, length - 1).unwrap();
            let error = deviation(&state, &golden.floats(&name));
            assert!(error <= TOLERANCE, "{case}: state of layer {layer} deviates by {error:e}");
        }
    }
}

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        const CASE_NAMES: &[&str] = &[$(stringify!($case)),*];
        $(#[test]
        fn $case() {
            let (logits, residuals) = check_case(stringify!($case));
            println!("{}: logits {logits:.1e}, residuals {residuals:.1e}", stringify!($case));
            check_pictures(stringify!($case));
        })*
    };
}

cases!(
    mamba_a,
    mamba_b,
    mamba_original,
    mamba_bf16,
    mamba2_a,
    mamba2_b,
    mamba2_clamp,
    mamba2_original,
    llama_a,
    llama_b,
    llama_rope3,
    llama_legacy,
    llama_sharded,
    bamba_a,
    bamba_b,
    bamba_legacy,
    mamba_pickle,
    falcon_mamba_a,
    falcon_mamba_legacy,
    jamba_a,
    zamba_a,
    zamba_legacy,
    zamba2_a,
    zamba2_legacy,
    granite_moe,
    granite_dense,
    granite_rope,
    granite_legacy,
    falcon_h1_a,
    falcon_h1_no_norm,
    falcon_h1_norm_first,
    falcon_h1_legacy,
    nemotron_h_a,
    nemotron_h_groups,
    nemotron_h_legacy,
    qwen3_next_a,
    qwen3_next_legacy,
    lfm2_a,
    lfm2_bias,
    lfm2_legacy,
    samba_a,
    mistral_window,
    mistral_full,
    mistral_legacy,
    qwen2_a,
    qwen2_window,
    qwen2_legacy,
    qwen3_a,
    qwen3_window,
    qwen3_legacy,
    gpt_neox_a,
    gpt_neox_sequential,
    gpt_neox_legacy,
    gpt2_a,
    gpt2_legacy,
    mamba2_consolidated,
    retnet_a,
    retnet_groups,
    gla_a,
    gla_conv,
    linear_attn_a,
    linear_attn_sums,
    hgrn2_a,
    delta_net_a,
    delta_net_gated,
    gated_deltanet_a,
    rwkv_a,
    rwkv5_a,
    rwkv5_authors,
    rwkv6_a,
    rwkv7_a,
    recurrent_gemma_a,
    recurrent_gemma_legacy,
    xlstm_a,
    xlstm_fused,
    s4_a,
    s4d_a,
    h3_a,
    h3_heads,
    hyena_a,
    hyena_order,
    slstm_a,
    mamba3_a,
    mamba3_norm,
    mamba3_mimo,
    mamba3_mimo_norm,
    rwkv6_official,
    hymba_a,
    hymba_b,
);

/// No golden is forgotten.
#[test]
fn every_golden_is_a_case() {
    let folders = std::fs::read_dir(goldens()).unwrap().map(|entry| entry.unwrap().path());
    for folder in folders.filter(|folder| folder.join("golden.safetensors").is_file()) {
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert!(CASE_NAMES.contains(&name), "{name} is not tested");
    }
}

/// The four trained models, as they are embedded, against `transformers` on real text.
#[test]
fn builtin_models() {
    let models = statescope_engine::builtin::list();
    assert_eq!(models.len(), 4, "all four built-in models are in this build");
    for model in models {
        let mut worst = (0.0f32, 0.0f32);
        let opened = open(&ModelSource::Builtin(model.name.to_owned()));
        let golden = Golden::read(&root().join(format!("assets/training/goldens/{}.safetensors", model.name)));
        let (tokens, positions) = (golden.tokens("input_ids"), golden.tokens("resid_positions"));
        let mut capture = Capture::default();
        let (logits, _) = read(&opened.model, &tokens, &[], &mut capture);
        let expected = golden.floats("logits");
        let error = deviation(&logits[logits.len() - expected.len()..], &expected);
        assert!(error <= TOLERANCE, "{}: logits deviate by {error:e}", model.name);
        worst.0 = error;
        let width = opened.info.hidden_size;
        for layer in 0..opened.model.layer_count() {
            let all = &capture.rows[&(layer, 0, Point::Resid)];
            let some: Vec<f32> = positions.iter().flat_map(|t| &all[*t as usize * width..][..width]).copied().collect();
            let error = deviation(&some, &golden.floats(&format!("resid.{layer}")));
            assert!(error <= TOLERANCE, "{}: residual of layer {layer} deviates by {error:e}", model.name);
            worst.1 = worst.1.max(error);
        }
        println!("builtin:{}: logits {:.1e}, residuals {:.1e}", model.name, worst.0, worst.1);
        let mut session = Session::new(opened.model.clone(), None, Budgets::default());
        let continuation = golden.tokens("greedy");
        assert_eq!(greedy(&mut session, &tokens[..32], continuation.len()), continuation, "{}: greedy", model.name);
    }
}
