"""The four sibling models: Hugging Face config classes and their arguments.

Every model has width 256, the same 4,096-token vocabulary, tied embeddings and about 4.5 million
parameters; what differs is the sequence mixer.
"""

CONTEXT = 1024
SHARED = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}

CONFIGS = {
    "mamba": (
        "Mamba",
        {
            "num_hidden_layers": 8,
            "expand": 2,
            "state_size": 16,
            "time_step_rank": 16,
            "conv_kernel": 4,
            "layer_norm_epsilon": 1e-5,
        },
    ),
    "mamba2": (
        "Mamba2",
        {
            "num_hidden_layers": 8,
            "expand": 2,
            "num_heads": 8,
            "head_dim": 64,
            "state_size": 64,
            "n_groups": 1,
            "conv_kernel": 4,
            "layer_norm_epsilon": 1e-5,
        },
    ),
    "transformer": (
        "Llama",
        {
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "intermediate_size": 416,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
        },
    ),
    "hybrid": (
        "Bamba",
        {
            "num_hidden_layers": 8,
            "attn_layer_indices": [2, 6],
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "intermediate_size": 256,
            "mamba_expand": 1,
            "mamba_n_heads": 8,
            "mamba_d_head": 32,
            "mamba_d_state": 64,
            "mamba_n_groups": 1,
            "mamba_d_conv": 4,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
        },
    ),
}


def hf_config(name):
    """The `transformers` config object of one model."""
    import transformers

    family, arguments = CONFIGS[name]
    config = getattr(transformers, f"{family}Config")(**SHARED, **arguments)
    config.architectures = [f"{family}ForCausalLM"]
    return config


def hf_model(name):
    """The randomly initialised `transformers` model of one config (attention eager)."""
    import transformers

    config = hf_config(name)
    config._attn_implementation = "eager"
    return getattr(transformers, f"{CONFIGS[name][0]}ForCausalLM")(config)
