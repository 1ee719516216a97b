//! Every key, its defaults, and every refusal.

use serde_json::json;

use super::*;
use crate::model::spec::{
    AttentionSpec, FeedForwardSpec, LayerSpec, LinearDecay, Mamba1Spec, Mamba2Spec, MixerSpec, MlpSpec,
};

fn parsed(config: Value) -> ModelSpec {
    parse(&config.to_string(), "config.json").unwrap()
}

/// The error that `config` with `changes` on top gives.
fn refusal(config: &Value, changes: &Value) -> String {
    let mut config = config.clone();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    match parse(&config.to_string(), "config.json") {
        Err(error) => error.to_string(),
        Ok(spec) => panic!("{changes} was accepted: {spec:?}"),
    }
}

fn attention(layer: &LayerSpec) -> &AttentionSpec {
    match &layer.parts[0].mixer {
        MixerSpec::Attention(spec) => spec,
        other => panic!("{other:?}"),
    }
}

fn mamba2(layer: &LayerSpec) -> &Mamba2Spec {
    match &layer.parts[0].mixer {
        MixerSpec::Mamba2(spec) => spec,
        other => panic!("{other:?}"),
    }
}

#[test]
fn mamba_defaults_are_those_of_the_class() {
    let spec = parsed(json!({"model_type": "mamba"}));
    assert_eq!((spec.vocab_size, spec.hidden_size, spec.layers.len()), (50_280, 768, 32));
    assert_eq!((spec.norm.eps, spec.tied_embeddings, spec.trained_context), (1e-5, true, None));
    assert_eq!(spec.end_tokens, [0]);
    let expected = Mamba1Spec {
        channels: 1536,
        state_dim: 16,
        dt_rank: 48,
        conv_taps: 4,
        proj_bias: false,
        conv_bias: true,
        dbc_norm: None,
        heads: None,
        in_offset: 0,
        out_norm: None,
    };
    assert_eq!(spec.layers[31], LayerSpec::new(MixerSpec::Mamba1(expected), None));
}

#[test]
fn mamba2_defaults_are_those_of_codestral() {
    let spec = parsed(json!({"model_type": "mamba2"}));
    assert_eq!((spec.vocab_size, spec.hidden_size, spec.layers.len()), (32_768, 4096, 64));
    assert!(!spec.tied_embeddings);
    assert_eq!(spec.end_tokens, [2]);
    let mixer = mamba2(&spec.layers[0]);
    assert_eq!((mixer.heads, mixer.head_dim, mixer.state_dim, mixer.groups, mixer.conv_taps), (128, 64, 128, 8, 4));
    assert_eq!((mixer.delta_limit, mixer.norm_eps), ((0.0, f32::INFINITY), 1e-5));
}

#[test]
fn llama_defaults_are_those_of_the_class() {
    let spec = parsed(json!({"model_type": "llama"}));
    assert_eq!((spec.vocab_size, spec.hidden_size, spec.layers.len()), (32_000, 4096, 32));
    assert_eq!((spec.norm.eps, spec.tied_embeddings), (1e-6, false));
    let mixer = attention(&spec.layers[0]);
    assert_eq!((mixer.heads, mixer.kv_heads, mixer.head_dim), (32, 32, 128));
    assert_eq!((mixer.qkv_bias, mixer.out_bias), (false, false));
    assert_eq!(mixer.rope.as_ref().unwrap().len(), 64);
    assert_eq!(spec.layers[0].feed_forward, Some(FeedForwardSpec::Mlp(MlpSpec::swiglu(11_008, false))));
}

#[test]
fn bamba_defaults_are_those_of_the_class() {
    let spec = parsed(json!({"model_type": "bamba", "attn_layer_indices": [9, 18, 27]}));
    assert_eq!((spec.vocab_size, spec.hidden_size, spec.layers.len()), (128_000, 4096, 32));
    let mixer = mamba2(&spec.layers[0]);
    assert_eq!((mixer.heads, mixer.head_dim, mixer.state_dim, mixer.groups), (128, 64, 256, 1));
    let mixer = attention(&spec.layers[27]);
    assert_eq!((mixer.heads, mixer.kv_heads, mixer.head_dim), (32, 8, 128));
    assert_eq!(mixer.rope.as_ref().unwrap().len(), 32, "half of the head rotates");
    assert_eq!(mixer.scale, 128f32.powf(-0.5));
    assert_eq!(spec.layers.iter().filter(|layer| matches!(layer.parts[0].mixer, MixerSpec::Attention(_))).count(), 3);
    let spec = parsed(json!({"model_type": "bamba", "num_key_value_heads": null, "attn_layer_indices": [0]}));
    assert_eq!(attention(&spec.layers[0]).kv_heads, 32);
}

#[test]
fn both_spellings_of_layer_kinds_and_infinity() {
    let by_index = parsed(json!({"model_type": "bamba", "num_hidden_layers": 3, "attn_layer_indices": [1]}));
    for (key, mamba, attention) in
        [("layers_block_type", "mamba", "attention"), ("layer_types", "linear_attention", "full_attention")]
    {
        let config = json!({"model_type": "bamba", "num_hidden_layers": 3, key: [mamba, attention, mamba]});
        assert_eq!(parsed(config), by_index);
    }
    let text = r#"{"model_type": "mamba2", "time_step_limit": [0.01, Infinity], "dtype": "bfloat16"}"#;
    assert_eq!(mamba2(&parse(text, "").unwrap().layers[0]).delta_limit, (0.01, f32::INFINITY));
    let text = text.replace("Infinity", r#"{"__float__": "Infinity"}"#);
    assert_eq!(mamba2(&parse(&text, "").unwrap().layers[0]).delta_limit, (0.01, f32::INFINITY));
    let none = parsed(json!({"model_type": "mamba2", "time_step_limit": null}));
    assert_eq!(mamba2(&none.layers[0]).delta_limit, (0.0, f32::INFINITY));
}

#[test]
fn end_tokens_and_context() {
    let ends = |eos: Value| parsed(json!({"model_type": "llama", "eos_token_id": eos})).end_tokens;
    assert_eq!(ends(json!(7)), [7]);
    assert_eq!(ends(json!([7, 9])), [7, 9]);
    assert!(ends(Value::Null).is_empty());
    assert!(ends(json!(-1)).is_empty());
    let context = |key: &str| parsed(json!({"model_type": "mamba", key: 1024})).trained_context;
    assert_eq!(context("trained_context"), Some(1024));
    assert_eq!(context("max_position_embeddings"), Some(1024));
}

#[test]
fn old_mamba_files_may_name_the_inner_width() {
    let spec = parsed(json!({"model_type": "mamba", "hidden_size": 20, "intermediate_size": 36, "time_step_rank": 3}));
    let MixerSpec::Mamba1(mixer) = &spec.layers[0].parts[0].mixer else { panic!() };
    assert_eq!((mixer.channels, mixer.dt_rank), (36, 3));
    let spec = parsed(json!({"model_type": "mamba", "hidden_size": 20, "time_step_rank": "auto"}));
    let MixerSpec::Mamba1(mixer) = &spec.layers[0].parts[0].mixer else { panic!() };
    assert_eq!((mixer.channels, mixer.dt_rank), (40, 2));
    // The -hf repositories carry the original keys along.
    let both = json!({"model_type": "mamba", "hidden_size": 20, "d_model": 20, "n_layer": 9, "num_hidden_layers": 2,
        "ssm_cfg": {}, "rms_norm": true, "pad_vocab_size_multiple": 8, "vocab_size": 50_277});
    let spec = parsed(both);
    assert_eq!((spec.layers.len(), spec.vocab_size), (2, 50_277));
}

#[test]
fn original_state_spaces_configs() {
    let spec = parsed(json!({"d_model": 768, "n_layer": 24, "vocab_size": 50_277, "ssm_cfg": {}, "rms_norm": true,
        "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 8}));
    assert_eq!((spec.model_type.as_str(), spec.vocab_size, spec.tied_embeddings), ("mamba", 50_280, true));
    let MixerSpec::Mamba1(mixer) = &spec.layers[23].parts[0].mixer else { panic!() };
    assert_eq!((mixer.channels, mixer.state_dim, mixer.dt_rank), (1536, 16, 48));

    let mamba2_config = json!({"d_model": 768, "d_intermediate": 0, "n_layer": 24, "vocab_size": 50_277,
        "ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": true,
        "pad_vocab_size_multiple": 16, "tie_embeddings": false});
    let spec = parsed(mamba2_config.clone());
    assert_eq!((spec.model_type.as_str(), spec.vocab_size, spec.tied_embeddings), ("mamba2", 50_288, false));
    let mixer = mamba2(&spec.layers[0]);
    assert_eq!((mixer.heads, mixer.head_dim, mixer.state_dim, mixer.groups), (24, 64, 128, 1));

    for (changes, word) in [
        (json!({"d_intermediate": 512}), "d_intermediate"),
        (json!({"attn_layer_idx": [9]}), "attn_layer_idx"),
        (json!({"rms_norm": false}), "rms_norm"),
        (json!({"ssm_cfg": {"layer": "Mamba3"}}), "ssm_cfg.layer"),
        (json!({"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": true}}), "ssm_cfg.D_has_hdim"),
        (json!({"ssm_cfg": {"layer": "Mamba2", "rmsnorm": false}}), "ssm_cfg.rmsnorm"),
        (json!({"ssm_cfg": {"layer": "Mamba2", "d_ssm": 512}}), "ssm_cfg.d_ssm"),
        (json!({"ssm_cfg": {"layer": "Mamba2", "surprise": 1}}), "ssm_cfg.surprise"),
        (json!({"ssm_cfg": {"layer": "Mamba2", "headdim": 100}}), "ssm_cfg.headdim"),
        (json!({"ssm_cfg": {"layer": "Mamba2", "ngroups": 5}}), "ssm_cfg.ngroups"),
        (json!({"ssm_cfg": []}), "ssm_cfg"),
    ] {
        let error = refusal(&mamba2_config, &changes);
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let llama = json!({"model_type": "llama"});
    for (changes, word) in [
        (json!({"hidden_act": "quick_gelu"}), "hidden_act"),
        (json!({"sliding_window": 4096}), "sliding_window"),
        (json!({"quantization_config": {"bits": 4}}), "quantization_config"),
        (json!({"pretraining_tp": 2}), "pretraining_tp"),
        (json!({"residual_multiplier": 0.22}), "residual_multiplier"),
        (json!({"logits_scaling": 8}), "logits_scaling"),
        (json!({"attention_multiplier": 0.01}), "attention_multiplier"),
        (json!({"final_logit_softcapping": 30.0}), "final_logit_softcapping"),
        (json!({"num_local_experts": 8}), "num_local_experts"),
        (json!({"qk_norm": true}), "qk_norm"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "yarn"),
        (json!({"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}), "sliding_attention"),
    ] {
        let error = refusal(&llama, &changes);
        assert!(error.contains(word) && error.starts_with("config.json: "), "{error}");
    }
    parsed(json!({"model_type": "llama", "sliding_window": 4096, "use_sliding_window": false, "pretraining_tp": 1,
        "residual_multiplier": 1.0, "quantization_config": null, "num_experts": 1, "qk_norm": false}));
}

#[test]
fn the_other_recurrences_have_the_sizes_of_their_classes() {
    let linear = |config: Value| {
        let spec = parsed(config);
        match &spec.layers[1].parts[0].mixer {
            MixerSpec::LinearAttention(mixer) => mixer.clone(),
            other => panic!("{other:?}"),
        }
    };
    let retnet = linear(json!({"model_type": "retnet"}));
    assert_eq!((retnet.heads, retnet.key_dim, retnet.head_dim, retnet.gated), (8, 256, 512, true));
    assert_eq!(retnet.rope.as_ref().map(Vec::len), Some(128));
    let gla = linear(json!({"model_type": "gla", "clamp_min": -1.0}));
    assert_eq!((gla.heads, gla.key_dim, gla.head_dim), (4, 256, 512));
    assert_eq!(gla.decay, LinearDecay::LowRank { rank: 16, normaliser: 16.0, floor: Some(-1.0) });
    let hgrn2 = linear(json!({"model_type": "hgrn2"}));
    assert_eq!((hgrn2.heads, hgrn2.key_dim, hgrn2.head_dim), (16, 128, 128));
    assert_eq!(hgrn2.decay, LinearDecay::Bounded { layer: 1, layers: Some(24) });
    let MixerSpec::DeltaRule(delta) = parsed(json!({"model_type": "gated_deltanet"})).layers[0].parts[0].mixer.clone()
    else {
        panic!()
    };
    assert_eq!((delta.key_heads, delta.heads, delta.key_dim, delta.head_dim), (6, 6, 256, 512));
    let MixerSpec::Mlstm(mlstm) = parsed(json!({"model_type": "xlstm"})).layers[0].parts[0].mixer.clone() else {
        panic!()
    };
    assert_eq!((mlstm.heads, mlstm.key_dim, mlstm.head_dim, mlstm.fused), (8, 256, 512, false));
    // 50.596, as bfloat16 knows it.
    assert_eq!(parsed(json!({"model_type": "recurrent_gemma"})).embedding_scale, 50.5);
    assert!(parsed(json!({"model_type": "rwkv"})).embedding_norm);

    for (config, word) in [
        (json!({"model_type": "retnet", "feature_map": "relu"}), "feature_map"),
        (json!({"model_type": "retnet", "use_short_conv": true}), "use_short_conv"),
        (json!({"model_type": "retnet", "num_heads": 3}), "num_heads"),
        (json!({"model_type": "retnet", "expand_k": 0.3}), "expand_k"),
        (json!({"model_type": "gla", "use_gv": true}), "use_gv"),
        (json!({"model_type": "gla", "use_gk": false}), "use_gk"),
        (json!({"model_type": "gla", "hidden_act": "powlu"}), "hidden_act"),
        (json!({"model_type": "gla", "elementwise_affine": false}), "elementwise_affine"),
        (json!({"model_type": "gla", "attnres_block_size": 2}), "attnres_block_size"),
        (json!({"model_type": "gla", "num_kv_heads": 3}), "num_kv_heads"),
        (json!({"model_type": "linear_attn", "feature_map": "dpfp"}), "feature_map"),
        (json!({"model_type": "linear_attn", "tie_feature_map_qk": true}), "tie_feature_map_qk"),
        (json!({"model_type": "hgrn2", "use_short_conv": true}), "use_short_conv"),
        (json!({"model_type": "hgrn2", "expand_ratio": 100}), "expand_ratio"),
        (json!({"model_type": "hgrn2", "expand_ratio": 1 << 20}), "expand_ratio"),
        (json!({"model_type": "delta_net", "qk_norm": "sum"}), "qk_norm"),
        (json!({"model_type": "delta_net", "qk_activation": "elu"}), "qk_activation"),
        (json!({"model_type": "delta_net", "use_short_conv": false}), "use_short_conv"),
        (json!({"model_type": "gated_deltanet", "output_gate_activation": "sigmoid"}), "output_gate_activation"),
        (json!({"model_type": "gated_deltanet", "num_v_heads": 7}), "num_v_heads"),
        (json!({"model_type": "gated_deltanet", "attn": {"layers": [99], "num_heads": 8}}), "layers"),
        (json!({"model_type": "recurrent_gemma", "hidden_activation": "silu"}), "hidden_activation"),
        (json!({"model_type": "recurrent_gemma", "block_types": ["mamba"]}), "block_types"),
        (json!({"model_type": "recurrent_gemma", "lru_width": 2561}), "lru_width"),
        (json!({"model_type": "recurrent_gemma", "logits_soft_cap": 0}), "logits_soft_cap"),
        (json!({"model_type": "xlstm", "use_bias": true}), "use_bias"),
        (json!({"model_type": "xlstm", "weight_mode": "packed"}), "weight_mode"),
        (json!({"model_type": "xlstm", "qk_dim_factor": 1e9}), "qk_dim_factor"),
        (json!({"model_type": "xlstm", "gate_soft_cap": -1}), "gate_soft_cap"),
        (json!({"model_type": "rwkv", "intermediate_size": 0}), "intermediate_size"),
        (json!({"model_type": "mamba3", "is_mimo": true, "state_size": 63}), "state_size"),
        (json!({"model_type": "mamba3", "is_mimo": true, "mimo_rank": 0}), "mimo_rank"),
        (json!({"model_type": "mamba3", "is_mimo": true, "mimo_rank": 1 << 24}), "in_proj"),
        (json!({"model_type": "mamba3", "use_bias": true}), "use_bias"),
        (json!({"model_type": "h3", "head_dim": 7}), "head_dim"),
        (json!({"model_type": "hyena", "order": 1}), "order"),
        (json!({"model_type": "hyena", "filter_length": 1 << 21}), "filter_length"),
        (json!({"model_type": "hyena", "order": 1 << 24, "hidden_size": 1 << 12}), "projections"),
        (json!({"model_type": "rwkv5", "model_version": "5_1"}), "model_version"),
        (json!({"model_type": "rwkv5", "head_size": 60}), "head_size"),
        (json!({"model_type": "rwkv6", "num_heads": 3}), "num_heads"),
        (json!({"model_type": "rwkv6", "hidden_ratio": -1}), "hidden_ratio"),
        (json!({"model_type": "rwkv7", "head_dim": 60}), "head_dim"),
        (json!({"model_type": "rwkv7", "value_dim": 4096}), "value_dim"),
        (json!({"model_type": "rwkv7", "norm_bias": false}), "norm_bias"),
        (json!({"model_type": "rwkv7", "hidden_act": "relu"}), "hidden_act"),
        (json!({"model_type": "rwkv7", "attn": {"layers": [1]}}), "attn"),
    ] {
        let error = parse(&config.to_string(), "config.json").unwrap_err().to_string();
        assert!(error.contains(word), "{config}: {error}");
    }
}

#[test]
fn nonsense_is_refused_by_name() {
    for (config, word) in [
        (json!([1]), "object"),
        (json!({}), "model_type"),
        (json!({"model_type": "rwkv9"}), "mamba, mamba2, falcon_mamba, jamba"),
        (json!({"model_type": 3}), "model_type"),
        (json!({"model_type": "mamba", "hidden_size": 0}), "hidden_size"),
        (json!({"model_type": "mamba", "hidden_size": -4}), "hidden_size"),
        (json!({"model_type": "mamba", "hidden_size": 1.5}), "hidden_size"),
        (json!({"model_type": "mamba", "hidden_size": "768"}), "hidden_size"),
        (json!({"model_type": "mamba", "hidden_size": 1u64 << 62}), "hidden_size"),
        (json!({"model_type": "mamba", "hidden_size": 1 << 24, "expand": 1}), "in_proj"),
        (json!({"model_type": "mamba", "expand": 1e9}), "expand"),
        (json!({"model_type": "mamba", "num_hidden_layers": 1 << 20}), "num_hidden_layers"),
        (json!({"model_type": "mamba", "layer_norm_epsilon": -1.0}), "layer_norm_epsilon"),
        (json!({"model_type": "mamba", "use_bias": "no"}), "use_bias"),
        (json!({"model_type": "mamba", "time_step_rank": "many"}), "time_step_rank"),
        (json!({"model_type": "mamba", "eos_token_id": "x"}), "eos_token_id"),
        (json!({"model_type": "mamba", "num_hidden_layers": 1, "layer_types": ["attention"]}), "layer_types"),
        (json!({"model_type": "mamba2", "num_heads": 100}), "num_heads"),
        (json!({"model_type": "mamba2", "n_groups": 3}), "n_groups"),
        (json!({"model_type": "mamba2", "time_step_limit": [1.0]}), "time_step_limit"),
        (json!({"model_type": "mamba2", "time_step_limit": [1.0, 0.5]}), "time_step_limit"),
        (json!({"model_type": "mamba2", "time_step_limit": [0.0, {"__float__": "NaN"}]}), "time_step_limit"),
        (json!({"model_type": "llama", "num_attention_heads": 33}), "num_attention_heads"),
        (json!({"model_type": "llama", "num_key_value_heads": 5}), "num_key_value_heads"),
        (json!({"model_type": "llama", "head_dim": 7}), "head_dim"),
        (json!({"model_type": "llama", "head_dim": 1 << 20}), "head_dim"),
        (json!({"model_type": "mamba", "vocab_size": 1 << 24, "hidden_size": 1 << 18}), "the embedding"),
        (json!({"model_type": "bamba", "attn_layer_indices": [32]}), "attn_layer_indices"),
        (json!({"model_type": "bamba", "mamba_n_heads": 100}), "mamba_n_heads"),
        (json!({"model_type": "bamba", "mamba_d_head": 32}), "mamba_d_head"),
        (json!({"model_type": "bamba", "layers_block_type": ["mamba"]}), "layers_block_type"),
        (
            json!({"model_type": "bamba", "num_hidden_layers": 1, "attn_layer_indices": [0], "layer_types": ["mamba"]}),
            "attn_layer_indices",
        ),
    ] {
        let error = parse(&config.to_string(), "config.json").unwrap_err().to_string();
        assert!(error.contains(word), "{config}: {error}");
    }
    let error = parse("{\"model_type\": ", "a/config.json").unwrap_err().to_string();
    assert!(error.starts_with("a/config.json is not valid JSON"), "{error}");
}

#[test]
fn layers_of_the_hybrids_come_in_the_published_order() {
    let pattern = |config: Value| {
        let letter = |layer: &LayerSpec| match (layer.shared.is_some(), layer.parts.as_slice()) {
            (true, _) => 'H',
            (_, []) => 'f',
            (_, [one]) => match one.mixer {
                MixerSpec::Attention(_) => 'A',
                MixerSpec::ShortConv(_) => 'C',
                MixerSpec::DeltaRule(_) => 'D',
                MixerSpec::Mamba1(_) | MixerSpec::Mamba2(_) => 'M',
                _ => 'R',
            },
            _ => 'P',
        };
        parsed(config).layers.iter().map(letter).collect::<String>()
    };
    assert_eq!(pattern(json!({"model_type": "jamba", "num_hidden_layers": 16})), "MMMMAMMMMMMMAMMM");
    assert_eq!(pattern(json!({"model_type": "zamba", "num_hidden_layers": 12})), "MMHMMMMHMMMM");
    let zamba2 = pattern(json!({"model_type": "zamba2"}));
    assert_eq!((zamba2.len(), zamba2.matches('H').count(), &zamba2[..8]), (54, 9, "MMMMMMHM"));
    assert_eq!(pattern(json!({"model_type": "qwen3_next", "num_hidden_layers": 8})), "DDDADDDA");
    assert_eq!(pattern(json!({"model_type": "nemotron_h", "hybrid_override_pattern": "MEM*-"})), "MfMAf");
    assert_eq!(pattern(json!({"model_type": "falcon_h1", "num_hidden_layers": 2, "mamba_n_heads": 128})), "PP");
    let lfm2 = json!({"model_type": "lfm2", "num_hidden_layers": 4, "full_attn_idxs": [2]});
    assert_eq!(pattern(lfm2), "CCAC");
    assert_eq!(pattern(json!({"model_type": "samba", "num_hidden_layers": 4})), "MAMA");
}

#[test]
fn shared_blocks_take_turns() {
    let kinds = json!(["mamba", "hybrid", "hybrid", "mamba", "hybrid"]);
    let spec = parsed(
        json!({"model_type": "zamba2", "num_hidden_layers": 5, "layers_block_type": kinds, "num_mem_blocks": 2}),
    );
    let uses: Vec<_> = spec.layers.iter().filter_map(|l| l.shared.as_ref()).map(|s| (s.usage, s.stored_at)).collect();
    assert_eq!(uses, [(0, 1), (1, 2), (2, 1)]);
}

#[test]
fn windows_stand_where_the_class_puts_them() {
    let windows = |config: Value| parsed(config).layers.iter().map(|l| attention(l).window).collect::<Vec<_>>();
    assert_eq!(windows(json!({"model_type": "mistral", "num_hidden_layers": 1})), [Some(4096)]);
    assert_eq!(windows(json!({"model_type": "mistral", "num_hidden_layers": 1, "sliding_window": null})), [None]);
    let qwen = json!({"model_type": "qwen2", "num_hidden_layers": 3, "use_sliding_window": true, "sliding_window": 8,
        "max_window_layers": 1});
    assert_eq!(windows(qwen), [None, Some(8), Some(8)]);
    let off = json!({"model_type": "qwen3", "num_hidden_layers": 1, "sliding_window": 8, "max_window_layers": 0});
    assert_eq!(windows(off), [None]);
}

#[test]
fn what_a_family_does_not_have_is_refused_there_too() {
    for (config, word) in [
        (json!({"model_type": "jamba", "mamba_inner_layernorms": false}), "mamba_inner_layernorms"),
        (json!({"model_type": "jamba", "attn_layer_offset": 8}), "attn_layer_offset"),
        (json!({"model_type": "zamba", "n_mamba_heads": 3, "hidden_size": 64}), "n_mamba_heads"),
        (json!({"model_type": "zamba2", "use_long_context": true}), "use_long_context"),
        (json!({"model_type": "zamba2", "num_hidden_layers": 12}), "layers_block_type"),
        (
            json!({"model_type": "granitemoehybrid", "num_hidden_layers": 1, "layer_types": ["attention"],
                "position_embedding_type": "alibi"}),
            "position_embedding_type",
        ),
        (json!({"model_type": "granitemoehybrid", "logits_scaling": 0}), "logits_scaling"),
        (json!({"model_type": "falcon_h1", "ssm_multipliers": [1, 2]}), "ssm_multipliers"),
        (json!({"model_type": "falcon_h1", "mamba_use_mlp": false}), "mamba_use_mlp"),
        (json!({"model_type": "nemotron_h", "hybrid_override_pattern": "MXM"}), "hybrid_override_pattern"),
        (json!({"model_type": "nemotron_h", "n_group": 3}), "n_group"),
        (json!({"model_type": "nemotron_h", "mlp_hidden_act": "mish"}), "mlp_hidden_act"),
        (json!({"model_type": "qwen3_next", "linear_num_value_heads": 30}), "linear_num_value_heads"),
        (json!({"model_type": "lfm2", "full_attn_idxs": [99]}), "full_attn_idxs"),
        (json!({"model_type": "samba", "attn": {"num_heads": 7}}), "attn.num_heads"),
        (json!({"model_type": "gpt2", "n_head": 7}), "n_head"),
        (json!({"model_type": "gpt2", "add_cross_attention": true}), "add_cross_attention"),
        (json!({"model_type": "mistral", "embedding_multiplier": 12}), "embedding_multiplier"),
        (json!({"model_type": "qwen3", "num_hidden_layers": 1, "layer_types": ["sliding_attention"]}), "layer_types"),
        (json!({"model_type": "mamba", "mixer_rms_eps": 1e-6}), "mixer_rms_eps"),
    ] {
        let error = parse(&config.to_string(), "config.json").unwrap_err().to_string();
        assert!(error.contains(word), "{config}: {error}");
    }
}
