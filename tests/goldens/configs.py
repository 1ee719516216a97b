"""The hand-made config.json files: keys as mamba_ssm writes them, or as transformers 4 did."""

# The key sets of the configs that mamba_ssm writes; the older file has no tie_embeddings.
MAMBA_ORIGINAL = {
    "d_model": 32, "n_layer": 2, "vocab_size": 101, "ssm_cfg": {}, "rms_norm": True, "residual_in_fp32": True,
    "fused_add_norm": True, "pad_vocab_size_multiple": 8,
}  # fmt: skip
MAMBA2_ORIGINAL = {
    "d_model": 32, "d_intermediate": 0, "n_layer": 2, "vocab_size": 101,
    "ssm_cfg": {"layer": "Mamba2", "d_state": 8, "d_conv": 4, "expand": 2, "headdim": 16, "ngroups": 2, "chunk_size": 16},
    "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
    "pad_vocab_size_multiple": 16, "tie_embeddings": True,
}  # fmt: skip
LLAMA_LEGACY = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 48,
    "max_position_embeddings": 256, "model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 2,
    "num_key_value_heads": 1, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 500.0,
    "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": "4.38.0", "use_cache": True,
    "vocab_size": 96,
}  # fmt: skip
BAMBA_LEGACY = {
    "architectures": ["BambaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "attn_layer_indices": [1],
    "attn_rotary_emb": 8, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 32,
    "initializer_range": 0.02, "intermediate_size": 48, "mamba_chunk_size": 16, "mamba_conv_bias": True,
    "mamba_d_conv": 4, "mamba_d_head": "auto", "mamba_d_state": 8, "mamba_expand": 2, "mamba_n_groups": 2,
    "mamba_n_heads": 4, "mamba_proj_bias": False, "max_position_embeddings": 256, "model_type": "bamba",
    "num_attention_heads": 2, "num_hidden_layers": 3, "num_key_value_heads": 1, "num_logits_to_keep": 1,
    "pad_token_id": 0, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "time_step_limit": [0.0, float("inf")], "torch_dtype": "float32",
    "transformers_version": "4.48.0", "use_cache": True, "use_mamba_kernels": True, "vocab_size": 96,
}  # fmt: skip

# What transformers 4 wrote into every file, and the sizes that the small cases share.
COMMON = {
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02, "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0", "use_cache": True, "vocab_size": 32,
}  # fmt: skip
FALCON_MAMBA_LEGACY = COMMON | {  # the 7B file says expand 16, which is not intermediate_size / hidden_size
    "architectures": ["FalconMambaForCausalLM"], "model_type": "falcon_mamba", "conv_kernel": 4, "expand": 16,
    "hidden_act": "silu", "hidden_size": 8, "intermediate_size": 16, "layer_norm_epsilon": 1e-05, "num_hidden_layers": 1,
    "pad_token_id": 0, "rescale_prenorm_residual": False, "residual_in_fp32": True, "state_size": 4,
    "tie_word_embeddings": False, "time_step_floor": 0.0001, "time_step_init_scheme": "random", "time_step_max": 0.1,
    "time_step_min": 0.001, "time_step_rank": 2, "time_step_scale": 1.0, "use_bias": False, "use_conv_bias": True,
    "use_mambapy": False,
}  # fmt: skip
ZAMBA_LEGACY = COMMON | {  # no layers_block_type: two Mamba layers and a hybrid one, then by period and offset
    "architectures": ["ZambaForCausalLM"], "model_type": "zamba", "attention_dropout": 0.0, "attention_head_dim": 8,
    "attention_hidden_size": 16, "attn_layer_offset": 1, "attn_layer_period": 2, "hidden_act": "gelu",
    "hidden_mamba_act": "silu", "hidden_size": 8, "intermediate_size": 10, "mamba_conv_bias": True, "mamba_d_conv": 4,
    "mamba_d_state": 3, "mamba_dt_rank": "auto", "mamba_expand": 2, "mamba_proj_bias": False,
    "max_position_embeddings": 128, "n_mamba_heads": 2, "num_attention_heads": 2, "num_hidden_layers": 5,
    "num_key_value_heads": 2, "num_logits_to_keep": 1, "pad_token_id": 0, "rms_norm_eps": 1e-05, "time_step_floor": 0.0001,
    "time_step_max": 0.1, "time_step_min": 0.001, "use_mamba_kernels": True,
}  # fmt: skip
ZAMBA2_LEGACY = COMMON | {
    "architectures": ["Zamba2ForCausalLM"], "model_type": "zamba2", "adapter_rank": 2, "add_bias_linear": False,
    "attention_dropout": 0.0, "attention_head_dim": 8, "attention_hidden_size": 16, "chunk_size": 8, "hidden_act": "gelu",
    "hidden_size": 8, "hybrid_layer_ids": [1, 3], "intermediate_size": 10, "kv_channels": 4,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "mamba_d_conv": 4, "mamba_d_state": 3, "mamba_expand": 2,
    "mamba_headdim": 4, "mamba_ngroups": 1, "max_position_embeddings": 128, "n_mamba_heads": 4, "num_attention_heads": 2,
    "num_hidden_layers": 4, "num_key_value_heads": 1, "num_logits_to_keep": 1, "num_mem_blocks": 1, "num_query_groups": 2,
    "pad_token_id": 0, "rms_norm_eps": 1e-05, "rope_theta": 10000, "time_step_floor": 0.0001, "time_step_limit": None,
    "time_step_max": 0.1, "time_step_min": 1e-30, "use_conv_bias": True, "use_long_context": False,
    "use_mamba_kernels": True, "use_mem_eff_path": False, "use_mem_rope": False, "use_shared_attention_adapter": False,
}  # fmt: skip
GRANITE_LEGACY = COMMON | {
    "architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid", "attention_bias": False,
    "attention_dropout": 0.0, "attention_multiplier": 0.7, "embedding_multiplier": 3, "hidden_act": "silu",
    "hidden_size": 8, "init_method": "mup", "intermediate_size": 4, "layer_types": ["mamba", "attention"],
    "logits_scaling": 0.5, "mamba_chunk_size": 8, "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_d_head": 4,
    "mamba_d_state": 4, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_n_heads": 4, "mamba_proj_bias": False,
    "max_position_embeddings": 128, "normalization_function": "rmsnorm", "num_attention_heads": 2,
    "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 1, "num_local_experts": 3,
    "output_router_logits": False, "pad_token_id": 0, "position_embedding_type": "nope", "residual_multiplier": 0.6,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000, "router_aux_loss_coef": 0.01,
    "shared_intermediate_size": 10, "tie_word_embeddings": True,
}  # fmt: skip
FALCON_H1_LEGACY = COMMON | {
    "architectures": ["FalconH1ForCausalLM"], "model_type": "falcon_h1", "attention_bias": False, "attention_dropout": 0.0,
    "attention_in_multiplier": 1.2, "attention_out_multiplier": 0.7, "attn_layer_indices": None,
    "embedding_multiplier": 2.0, "head_dim": 6, "hidden_act": "silu", "hidden_size": 8, "intermediate_size": 10,
    "key_multiplier": 0.8, "lm_head_multiplier": 0.5, "mamba_chunk_size": 8, "mamba_conv_bias": True, "mamba_d_conv": 4,
    "mamba_d_head": 4, "mamba_d_ssm": 12, "mamba_d_state": 4, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_n_heads": 3,
    "mamba_norm_before_gate": False, "mamba_proj_bias": False, "mamba_rms_norm": False, "mamba_use_mlp": True,
    "max_position_embeddings": 128, "mlp_bias": False, "mlp_expansion_factor": 8, "mlp_multipliers": [1.5, 0.5],
    "num_attention_heads": 2, "num_hidden_layers": 1, "num_key_value_heads": 1, "num_logits_to_keep": 1, "pad_token_id": 0,
    "projectors_bias": False, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 100000000000.0,
    "ssm_in_multiplier": 1.1, "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 1.3], "ssm_out_multiplier": 0.6,
    "tie_word_embeddings": False, "time_step_floor": 0.0001, "time_step_max": 0.1, "time_step_min": 0.001,
}  # fmt: skip
NEMOTRON_H_LEGACY = COMMON | {
    "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "attention_bias": False,
    "attention_dropout": 0.0, "chunk_size": 8, "conv_kernel": 4, "expand": 2, "head_dim": 6, "hidden_dropout": 0.0,
    "hidden_size": 8, "hybrid_override_pattern": "M-E*", "intermediate_size": 10, "layer_norm_epsilon": 1e-05,
    "mamba_head_dim": 4, "mamba_hidden_act": "silu", "mamba_num_heads": 4, "mamba_proj_bias": False,
    "mamba_ssm_cache_dtype": "float32", "max_position_embeddings": 128, "mlp_bias": False, "mlp_hidden_act": "relu2",
    "moe_intermediate_size": 4, "moe_shared_expert_intermediate_size": 7, "n_group": 1, "n_groups": 2,
    "n_routed_experts": 3, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 2,
    "num_experts_per_tok": 2, "num_hidden_layers": 4, "num_key_value_heads": 1, "num_logits_to_keep": 1, "pad_token_id": 0,
    "rescale_prenorm_residual": True, "residual_in_fp32": False, "routed_scaling_factor": 2.5, "sliding_window": None,
    "ssm_state_size": 4, "tie_word_embeddings": False, "time_step_floor": 0.0001, "time_step_limit": [0.0, float("inf")],
    "time_step_max": 0.1, "time_step_min": 1e-30, "topk_group": 1, "use_bias": False, "use_conv_bias": True,
    "use_mamba_kernels": True,
}  # fmt: skip
QWEN3_NEXT_LEGACY = COMMON | {
    "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "attention_dropout": 0.0,
    "decoder_sparse_step": 1, "full_attention_interval": 2, "head_dim": 16, "hidden_act": "silu", "hidden_size": 8,
    "intermediate_size": 10, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 4, "linear_num_key_heads": 1,
    "linear_num_value_heads": 2, "linear_value_head_dim": 4, "max_position_embeddings": 128, "mlp_only_layers": [],
    "moe_intermediate_size": 4, "norm_topk_prob": True, "num_attention_heads": 2, "num_experts": 3,
    "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 1, "output_router_logits": False,
    "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500,
    "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 6, "tie_word_embeddings": False,
    "use_sliding_window": False,
}  # fmt: skip
LFM2_LEGACY = COMMON | {
    "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "block_auto_adjust_ff_dim": True, "block_dim": 8,
    "block_ff_dim": 14, "block_ffn_dim_multiplier": 1.0, "block_mlp_init_scale": 1.0, "block_multiple_of": 4,
    "block_norm_eps": 1e-05, "block_out_init_scale": 1.0, "block_use_swiglu": True, "block_use_xavier_init": True,
    "conv_L_cache": 3, "conv_bias": False, "conv_dim": 8, "conv_dim_out": 8, "conv_use_xavier_init": True,
    "full_attn_idxs": [1], "hidden_size": 8, "max_position_embeddings": 128, "norm_eps": 1e-05, "num_attention_heads": 2,
    "num_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1, "pad_token_id": 0, "rope_theta": 500.0,
    "tie_embedding": False, "use_pos_enc": True,
}  # fmt: skip
MISTRAL_LEGACY = COMMON | {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu", "hidden_size": 8,
    "intermediate_size": 10, "max_position_embeddings": 128, "num_attention_heads": 2, "num_hidden_layers": 1,
    "num_key_value_heads": 1, "rms_norm_eps": 1e-05, "rope_theta": 500.0, "sliding_window": 8,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN2_LEGACY = COMMON | {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0, "hidden_act": "silu",
    "hidden_size": 8, "intermediate_size": 10, "max_position_embeddings": 128, "max_window_layers": 1,
    "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-06, "rope_theta": 500.0,
    "sliding_window": 8, "tie_word_embeddings": True, "use_sliding_window": True,
}  # fmt: skip
QWEN3_LEGACY = COMMON | {  # a window that is not used
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "attention_dropout": 0.0,
    "head_dim": 6, "hidden_act": "silu", "hidden_size": 8, "intermediate_size": 10, "max_position_embeddings": 128,
    "max_window_layers": 0, "num_attention_heads": 2, "num_hidden_layers": 1, "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500, "sliding_window": 8, "tie_word_embeddings": False,
    "use_sliding_window": False,
}  # fmt: skip
GPT_NEOX_LEGACY = COMMON | {
    "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 16,
    "intermediate_size": 20, "layer_norm_eps": 1e-05, "max_position_embeddings": 32, "num_attention_heads": 2,
    "num_hidden_layers": 1, "rotary_emb_base": 500, "rotary_pct": 0.5, "tie_word_embeddings": False,
    "use_parallel_residual": True,
}  # fmt: skip
GPT2_LEGACY = {  # of 2019: no dtype, no key for tying, and n_inner is four times n_embd
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 31,
    "embd_pdrop": 0.1, "eos_token_id": 31, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
    "n_ctx": 24, "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 24, "resid_pdrop": 0.1,
    "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 32,
}  # fmt: skip
MAMBA_PICKLE = {
    "d_model": 20, "n_layer": 2, "vocab_size": 61, "ssm_cfg": {}, "rms_norm": True, "residual_in_fp32": True,
    "fused_add_norm": True, "pad_vocab_size_multiple": 8,
}  # fmt: skip
MAMBA2_CONSOLIDATED = {
    "dim": 16, "n_layers": 2, "vocab_size": 32, "n_groups": 4, "rms_norm": True, "residual_in_fp32": True,
    "fused_add_norm": True, "pad_vocab_size_multiple": 1, "tie_embeddings": False, "model_type": "mamba",
}  # fmt: skip

# RecurrentGemma as transformers 4 wrote it: the kinds as a pattern, rotary keys at the top.
RECURRENT_GEMMA_LEGACY = {
    "architectures": ["RecurrentGemmaForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "attention_window_size": 8,
    "block_types": ["attention", "recurrent"],
    "bos_token_id": 1,
    "conv1d_width": 4,
    "eos_token_id": 2,
    "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 16,
    "intermediate_size": 10,
    "logits_soft_cap": 30.0,
    "lru_width": 12,
    "model_type": "recurrent_gemma",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0",
    "use_cache": True,
    "vocab_size": 32,
    "w_init_variance_scale": 0.01,
}
