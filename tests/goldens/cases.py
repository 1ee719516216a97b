"""The checkpoints: class, sizes, and the spelling in which each is stored."""

from dataclasses import dataclass, field

import configs


@dataclass
class Case:
    name: str
    family: str  # model_type of the official config class
    sizes: dict  # keyword arguments of the official config class
    seed: int
    store: str = "one"  # file of weights; sharded (two and an index); pickle; consolidated
    config: dict = field(default_factory=dict)  # hand-made config.json
    rename: tuple = ()  # pairs (official, stored) of a part of tensor names
    extra: dict = field(default_factory=dict)  # name and shape of tensors that no reader needs
    vocab: int = 0  # real vocabulary where the table is padded
    tokens: int = 70
    bf16: bool = False
    internals: bool = True  # store the mixers' internals; not where only the spelling differs
    logits_only: bool = False
    mixing: bool = False  # also store the mixing matrices of the state-space layer
    tokenizer: bool = False  # copy tokenizer/tokenizer.json into the folder, no golden
    decode_exact: bool = True  # whether transformers' cached decode must match its prefill


MAMBA = dict(hidden_size=32, state_size=8, num_hidden_layers=2, expand=2, conv_kernel=4, time_step_rank=4, vocab_size=96)
MAMBA2 = dict(hidden_size=32, expand=2, num_heads=4, head_dim=16, state_size=8, n_groups=2, num_hidden_layers=2,
              chunk_size=16, vocab_size=96, tie_word_embeddings=False, pad_token_id=0, bos_token_id=0, eos_token_id=0)  # fmt: skip
LLAMA = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
             vocab_size=96, max_position_embeddings=256, rms_norm_eps=1e-5, pad_token_id=0)  # fmt: skip
BAMBA = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
             attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=2, mamba_d_state=8,
             mamba_chunk_size=16, vocab_size=96, max_position_embeddings=256)  # fmt: skip

SINGULAR = (("backbone.embeddings.", "backbone.embedding."),)
CONSOLIDATED = (*SINGULAR, ("backbone.", "model.backbone."), ("lm_head.", "model.lm_head."))

# The other families: small files, bfloat16 weights, no internals; every kind of layer, groups and kv heads that show.
SMALL = dict(tokens=40, bf16=True, internals=False)
NAMES = dict(vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=128)

FALCON_MAMBA = NAMES | dict(hidden_size=20, state_size=6, num_hidden_layers=2, time_step_rank=3, tie_word_embeddings=False)
JAMBA = NAMES | dict(
    hidden_size=16, intermediate_size=12, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, num_experts=4,
    num_experts_per_tok=2, expert_layer_period=2, expert_layer_offset=1, attn_layer_period=4, attn_layer_offset=2,
    mamba_d_state=5, mamba_dt_rank=3)  # fmt: skip
ZAMBA = NAMES | dict(
    hidden_size=12, intermediate_size=20, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, n_mamba_heads=2,
    mamba_d_state=5, mamba_dt_rank=3, layers_block_type=["mamba", "mamba", "hybrid", "mamba", "hybrid"])  # fmt: skip
ZAMBA2 = NAMES | dict(
    hidden_size=12, intermediate_size=20, num_hidden_layers=5, num_attention_heads=2, num_key_value_heads=2, n_mamba_heads=6,
    mamba_d_state=5, mamba_ngroups=2, chunk_size=8, num_mem_blocks=2, use_shared_attention_adapter=True, adapter_rank=3,
    use_mem_rope=True, time_step_min=1e-30,
    layers_block_type=["mamba", "hybrid", "hybrid", "mamba", "hybrid"])  # fmt: skip
GRANITE = NAMES | dict(
    hidden_size=16, intermediate_size=8, shared_intermediate_size=20, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, layer_types=["mamba", "attention", "mamba"], num_local_experts=4, num_experts_per_tok=2,
    mamba_n_heads=4, mamba_n_groups=2, mamba_d_state=6, mamba_chunk_size=8, position_embedding_type="nope",
    embedding_multiplier=0.8, residual_multiplier=0.6, attention_multiplier=0.7, logits_scaling=1.5)  # fmt: skip
FALCON_H1 = NAMES | dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, mamba_d_ssm=24,
    mamba_n_heads=6, mamba_d_head=4, mamba_n_groups=2, mamba_d_state=6, mamba_chunk_size=8, mamba_rms_norm=True,
    mamba_norm_before_gate=False, embedding_multiplier=2.0, lm_head_multiplier=0.5, key_multiplier=0.8,
    attention_in_multiplier=1.2, attention_out_multiplier=0.7, ssm_in_multiplier=1.1, ssm_out_multiplier=0.6,
    ssm_multipliers=[0.9, 1.1, 0.8, 1.2, 1.3], mlp_multipliers=[1.5, 0.5])  # fmt: skip
NEMOTRON_H = NAMES | dict(
    hidden_size=16, intermediate_size=20, layers_block_type=["linear_attention", "mlp", "full_attention", "moe"],
    num_attention_heads=4, num_key_value_heads=2, head_dim=6, mamba_num_heads=6, mamba_head_dim=4, ssm_state_size=6,
    n_groups=2, chunk_size=8, time_step_min=1e-30, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=12,
    moe_shared_expert_intermediate_size=10, routed_scaling_factor=2.5)  # fmt: skip
PLAIN = NAMES | dict(
    hidden_size=16, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
WINDOWS = dict(use_sliding_window=True, sliding_window=8, max_window_layers=1)
GPT_NEOX = NAMES | dict(hidden_size=16, intermediate_size=28, num_hidden_layers=2, num_attention_heads=2)
GPT2 = dict(vocab_size=64, n_embd=18, n_layer=2, n_head=3, n_positions=48, n_inner=30)
LFM2 = NAMES | dict(
    hidden_size=16, intermediate_size=30, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    layer_types=["conv", "full_attention", "conv"], conv_L_cache=3, block_multiple_of=8)  # fmt: skip
QWEN3_NEXT = NAMES | dict(
    hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    layer_types=["linear_attention", "full_attention", "linear_attention"], linear_num_key_heads=2,
    linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=6, num_experts=4, num_experts_per_tok=2,
    moe_intermediate_size=8, shared_expert_intermediate_size=12, mlp_only_layers=[2])  # fmt: skip
SAMBA = NAMES | dict(
    hidden_size=8, state_size=6, num_hidden_layers=2, time_step_rank=3, norm_eps=1e-5, hidden_ratio=4, hidden_act="swish",
    tie_word_embeddings=False,
    attn=dict(layers=[1], num_heads=2, num_kv_heads=1, qkv_bias=False, window_size=8, rope_theta=10000.0))  # fmt: skip

FLA = dict(vocab_size=64, bos_token_id=1, eos_token_id=2, hidden_size=16, intermediate_size=20, num_hidden_layers=2, norm_eps=1e-5,
           num_heads=2, hidden_act="swish", tie_word_embeddings=False)  # fmt: skip
RWKV = dict(vocab_size=64, context_length=64, hidden_size=16, attention_hidden_size=16, intermediate_size=40, num_hidden_layers=2,
            rescale_every=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
RECURRENT_GEMMA = dict(
    vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
    num_attention_heads=3, num_key_value_heads=1, lru_width=24, attention_window_size=8, tie_word_embeddings=False)  # fmt: skip
XLSTM = dict(
    vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, hidden_size=16, num_hidden_layers=2, num_heads=2, chunk_size=8,
    ffn_proj_factor=1.3, ffn_round_up_to_multiple_of=4, autocast_kernel_dtype="float32")  # fmt: skip

# Config files as the hub has them from transformers 4: smaller still, and logits are enough.
LEGACY = dict(tokens=16, bf16=True, internals=False, logits_only=True)
TINY = dict(hidden_size=8, intermediate_size=10, num_attention_heads=2, num_key_value_heads=1, vocab_size=32)
LOW_THETA = dict(rope_parameters=dict(rope_type="default", rope_theta=500.0))

CASES = [
    Case("mamba_a", "mamba", MAMBA | dict(hidden_size=40, num_hidden_layers=3, tie_word_embeddings=True),
         seed=1, mixing=True),
    Case("mamba_b", "mamba", MAMBA | dict(hidden_size=48, state_size=5, time_step_rank=7, conv_kernel=3, use_bias=True,
                                          tie_word_embeddings=False), seed=2),
    Case("mamba_original", "mamba", MAMBA | dict(state_size=16, time_step_rank=2, vocab_size=104, tie_word_embeddings=True),
         seed=3, config=configs.MAMBA_ORIGINAL, rename=SINGULAR, vocab=101, internals=False),
    Case("mamba_bf16", "mamba", MAMBA | dict(tie_word_embeddings=True), seed=4, bf16=True),
    Case("mamba_text", "mamba", MAMBA | dict(hidden_size=24, tie_word_embeddings=True), seed=5, tokenizer=True),
    Case("mamba2_a", "mamba2", MAMBA2 | dict(hidden_size=48, num_heads=6, state_size=16, chunk_size=8),
         seed=6),
    Case("mamba2_b", "mamba2", MAMBA2 | dict(hidden_size=36, num_heads=6, head_dim=12, n_groups=1, use_bias=True,
                                             tie_word_embeddings=True), seed=7),
    Case("mamba2_clamp", "mamba2", MAMBA2 | dict(time_step_limit=(0.01, 0.3)), seed=8, mixing=True, decode_exact=False),
    Case("mamba2_original", "mamba2", MAMBA2 | dict(vocab_size=112, tie_word_embeddings=True),
         seed=9, config=configs.MAMBA2_ORIGINAL, rename=SINGULAR, vocab=101, internals=False),
    Case("llama_a", "llama", LLAMA | dict(hidden_size=48, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2),
         seed=10),
    Case("llama_b", "llama", LLAMA | dict(hidden_size=36, num_attention_heads=3, num_key_value_heads=3, head_dim=16, attention_bias=True,
                                          mlp_bias=True, tie_word_embeddings=True), seed=11),
    Case("llama_rope3", "llama", LLAMA | dict(rope_parameters=dict(
        rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32)), seed=12),
    Case("llama_legacy", "llama", LLAMA | dict(rope_parameters=dict(rope_type="default", rope_theta=500.0)),
         seed=13, config=configs.LLAMA_LEGACY, internals=False),
    Case("llama_sharded", "llama", LLAMA | dict(num_key_value_heads=2), seed=14, store="sharded", internals=False),
    Case("bamba_a", "bamba", BAMBA | dict(num_attention_heads=4, num_key_value_heads=2, mamba_n_heads=8,
                                          mamba_d_head="auto", mamba_d_state=16, mamba_chunk_size=8), seed=15),
    Case("bamba_b", "bamba", BAMBA | dict(num_hidden_layers=4, attn_layer_indices=[0, 2], mamba_n_groups=1,
                                          intermediate_size=32,
                                          mamba_conv_bias=False, mamba_proj_bias=True, tie_word_embeddings=True), seed=16),
    Case("bamba_legacy", "bamba", BAMBA, seed=17, config=configs.BAMBA_LEGACY, internals=False),
    Case("jamba_a", "jamba", JAMBA, seed=18, **SMALL),
    Case("granite_moe", "granitemoehybrid", GRANITE, seed=19, **SMALL),
    Case("granite_dense", "granitemoehybrid", GRANITE | dict(
        num_local_experts=0, num_hidden_layers=2, layer_types=["mamba", "attention"], mamba_n_groups=1),
        seed=20, **SMALL),
    Case("granite_rope", "granitemoehybrid", GRANITE | dict(
        num_local_experts=0, num_hidden_layers=2, layer_types=["attention", "attention"], position_embedding_type="rope",
        embedding_multiplier=3.0, logits_scaling=0.3, tie_word_embeddings=True), seed=21, **SMALL),
    Case("falcon_h1_a", "falcon_h1", FALCON_H1, seed=22, **SMALL),
    Case("falcon_h1_no_norm", "falcon_h1", FALCON_H1 | dict(mamba_rms_norm=False, head_dim=6), seed=23, **SMALL),
    Case("falcon_h1_norm_first", "falcon_h1", FALCON_H1 | dict(mamba_norm_before_gate=True, tie_word_embeddings=True),
         seed=24, **SMALL),
    Case("nemotron_h_a", "nemotron_h", NEMOTRON_H, seed=25, **SMALL),
    Case("nemotron_h_groups", "nemotron_h", NEMOTRON_H | dict(
        n_routed_experts=6, n_group=2, topk_group=1, n_groups=3, layers_block_type=["linear_attention", "moe", "full_attention"]),
        seed=26, **SMALL),
    Case("zamba2_a", "zamba2", ZAMBA2, seed=27, **SMALL),
    Case("zamba_a", "zamba", ZAMBA, seed=28, **SMALL),
    Case("falcon_mamba_a", "falcon_mamba", FALCON_MAMBA, seed=29, **SMALL),
    Case("mistral_window", "mistral", PLAIN | dict(head_dim=6, sliding_window=8), seed=30, **SMALL),
    Case("mistral_full", "mistral", PLAIN | dict(sliding_window=None), seed=31, **SMALL),
    Case("qwen2_a", "qwen2", PLAIN, seed=32, **SMALL),
    Case("qwen2_window", "qwen2", PLAIN | WINDOWS | dict(tie_word_embeddings=True), seed=33, **SMALL),
    Case("qwen3_a", "qwen3", PLAIN | dict(head_dim=8), seed=34, **SMALL),
    Case("qwen3_window", "qwen3", PLAIN | WINDOWS | dict(head_dim=10, attention_bias=True, tie_word_embeddings=True),
         seed=35, **SMALL),
    Case("gpt_neox_a", "gpt_neox", GPT_NEOX, seed=36, **SMALL),
    Case("gpt_neox_sequential", "gpt_neox", GPT_NEOX | dict(
        use_parallel_residual=False, rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5)),
        seed=37, **SMALL),
    Case("gpt2_a", "gpt2", GPT2, seed=38, **SMALL),
    Case("lfm2_a", "lfm2", LFM2, seed=39, **SMALL),
    Case("lfm2_bias", "lfm2", LFM2 | dict(
        conv_bias=True, num_hidden_layers=2, layer_types=None, full_attn_idxs=[1], block_auto_adjust_ff_dim=False,
        tie_word_embeddings=False), seed=40, **SMALL),
    Case("qwen3_next_a", "qwen3_next", QWEN3_NEXT, seed=41, **SMALL | dict(tokens=70)),
    Case("samba_a", "samba", SAMBA, seed=42, **SMALL),
    Case("retnet_a", "retnet", FLA, seed=60, **SMALL),
    Case("retnet_groups", "retnet", FLA | dict(num_heads=4, num_kv_heads=2, expand_v=1.5, use_output_gate=False, tie_word_embeddings=True), seed=61, **SMALL),
    Case("gla_a", "gla", FLA, seed=62, **SMALL),
    Case("gla_conv", "gla", FLA | dict(num_heads=4, num_kv_heads=2, expand_k=1.0, use_short_conv=True, conv_size=4, clamp_min=-0.05),
         seed=63, **SMALL),
    Case("linear_attn_a", "linear_attn", FLA | dict(num_heads=4, num_kv_heads=2), seed=64, **SMALL),
    Case("linear_attn_sums", "linear_attn", FLA | dict(
        feature_map="elu", norm_q=True, norm_k=True, norm_feature_map=True, expand_k=0.5), seed=65, **SMALL),
    Case("hgrn2_a", "hgrn2", FLA | dict(num_heads=4, expand_ratio=4, num_hidden_layers=3), seed=66, **SMALL),
    Case("delta_net_a", "delta_net", FLA | dict(conv_size=4), seed=67, **SMALL),
    Case("delta_net_gated", "delta_net", FLA | dict(conv_size=3, use_gate=True, use_beta=False), seed=68, **SMALL),
    Case("gated_deltanet_a", "gated_deltanet", FLA | dict(
        num_v_heads=4, head_dim=6, expand_v=0.5, conv_size=4, allow_neg_eigval=True, num_hidden_layers=3,
        attn=dict(layers=[1], num_heads=4, num_kv_heads=2)), seed=69, **SMALL),
    Case("rwkv_a", "rwkv", RWKV, seed=70, **SMALL | dict(tokens=70)),
    Case("rwkv6_a", "rwkv6", dict(
        vocab_size=64, bos_token_id=1, eos_token_id=2, hidden_size=16, intermediate_size=20, num_hidden_layers=2, norm_eps=1e-5,
        num_heads=2, expand_k=0.5, expand_v=1.0, proj_low_rank_dim=3, gate_low_rank_dim=4, hidden_act="sqrelu", norm_first=True,
        norm_bias=True, tie_word_embeddings=False), seed=76, **SMALL | dict(tokens=70)),
    Case("rwkv7_a", "rwkv7", dict(
        vocab_size=64, bos_token_id=1, eos_token_id=2, hidden_size=16, intermediate_size=20, num_hidden_layers=2, norm_eps=1e-5,
        head_dim=8, decay_low_rank_dim=4, gate_low_rank_dim=6, a_low_rank_dim=3, v_low_rank_dim=5, hidden_act="sqrelu", norm_first=True,
        norm_bias=True, fuse_norm=True, tie_word_embeddings=False), seed=75, **SMALL | dict(tokens=70)),
    Case("recurrent_gemma_a", "recurrent_gemma", RECURRENT_GEMMA, seed=71, **SMALL),
    Case("recurrent_gemma_legacy", "recurrent_gemma", RECURRENT_GEMMA | dict(
        vocab_size=32, hidden_size=16, intermediate_size=10, num_attention_heads=2, lru_width=12, attention_bias=True,
        block_types=["attention", "recurrent"], num_hidden_layers=2, tie_word_embeddings=True), seed=72, config=configs.RECURRENT_GEMMA_LEGACY, **LEGACY),
    Case("xlstm_a", "xlstm", XLSTM, seed=73, **SMALL | dict(tokens=70)),
    Case("xlstm_fused", "xlstm", XLSTM | dict(weight_mode="fused", qk_dim_factor=1.0, v_dim_factor=1.5), seed=74, **SMALL),
    Case("mamba_pickle", "mamba", MAMBA | dict(hidden_size=20, state_size=16, time_step_rank=2, vocab_size=64,
                                               tie_word_embeddings=True),
         seed=43, config=configs.MAMBA_PICKLE, store="pickle", rename=SINGULAR, vocab=61, **SMALL),
    Case("mamba2_consolidated", "mamba2", MAMBA2 | dict(
        hidden_size=16, num_heads=8, head_dim=4, state_size=6, n_groups=4, vocab_size=32),
        seed=57, config=configs.MAMBA2_CONSOLIDATED, store="consolidated", rename=CONSOLIDATED, **LEGACY),
    Case("falcon_mamba_legacy", "falcon_mamba", FALCON_MAMBA | dict(
        hidden_size=8, state_size=4, num_hidden_layers=1, time_step_rank=2, vocab_size=32),
        seed=44, config=configs.FALCON_MAMBA_LEGACY, **LEGACY),
    Case("zamba_legacy", "zamba", ZAMBA | TINY | dict(num_key_value_heads=2, mamba_d_state=3, mamba_dt_rank=1),
         seed=45, config=configs.ZAMBA_LEGACY, **LEGACY),
    Case("zamba2_legacy", "zamba2", ZAMBA2 | TINY | dict(
        num_hidden_layers=4, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], n_mamba_heads=4, mamba_d_state=3,
        mamba_ngroups=1, num_mem_blocks=1, use_shared_attention_adapter=False, use_mem_rope=False, adapter_rank=2),
        seed=46, config=configs.ZAMBA2_LEGACY, **LEGACY),
    Case("granite_legacy", "granitemoehybrid", GRANITE | TINY | dict(
        intermediate_size=4, shared_intermediate_size=10, num_hidden_layers=2, layer_types=["mamba", "attention"],
        num_local_experts=3, mamba_n_groups=1, mamba_d_state=4, embedding_multiplier=3.0, logits_scaling=0.5,
        rms_norm_eps=1e-5, tie_word_embeddings=True), seed=47, config=configs.GRANITE_LEGACY, **LEGACY),
    Case("falcon_h1_legacy", "falcon_h1", FALCON_H1 | TINY | dict(
        num_hidden_layers=1, head_dim=6, mamba_d_ssm=12, mamba_n_heads=3, mamba_n_groups=1, mamba_d_state=4,
        mamba_rms_norm=False, rope_parameters=dict(rope_type="default", rope_theta=1e11)),
        seed=48, config=configs.FALCON_H1_LEGACY, **LEGACY),
    Case("nemotron_h_legacy", "nemotron_h", NEMOTRON_H | TINY | dict(
        layers_block_type=["linear_attention", "mlp", "moe", "full_attention"], mamba_num_heads=4, ssm_state_size=4,
        n_routed_experts=3, moe_intermediate_size=4, moe_shared_expert_intermediate_size=7),
        seed=49, config=configs.NEMOTRON_H_LEGACY, **LEGACY),
    Case("qwen3_next_legacy", "qwen3_next", QWEN3_NEXT | TINY | dict(
        num_hidden_layers=2, layer_types=None, full_attention_interval=2, linear_num_key_heads=1, linear_num_value_heads=2,
        linear_key_head_dim=4, linear_value_head_dim=4, num_experts=3, moe_intermediate_size=4,
        shared_expert_intermediate_size=6, mlp_only_layers=[],
        rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.25)),
        seed=50, config=configs.QWEN3_NEXT_LEGACY, **LEGACY),
    Case("lfm2_legacy", "lfm2", LFM2 | TINY | LOW_THETA | dict(
        intermediate_size=14, num_hidden_layers=2, layer_types=["conv", "full_attention"], block_multiple_of=4,
        tie_word_embeddings=False), seed=51, config=configs.LFM2_LEGACY, **LEGACY),
    Case("mistral_legacy", "mistral", PLAIN | TINY | LOW_THETA | dict(num_hidden_layers=1, sliding_window=8, rms_norm_eps=1e-5),
         seed=52, config=configs.MISTRAL_LEGACY, **LEGACY),
    Case("qwen2_legacy", "qwen2", PLAIN | TINY | LOW_THETA | WINDOWS | dict(tie_word_embeddings=True),
         seed=53, config=configs.QWEN2_LEGACY, **LEGACY),
    Case("qwen3_legacy", "qwen3", PLAIN | TINY | LOW_THETA | dict(num_hidden_layers=1, head_dim=6),
         seed=54, config=configs.QWEN3_LEGACY, **LEGACY),
    Case("gpt_neox_legacy", "gpt_neox", GPT_NEOX | dict(
        vocab_size=32, intermediate_size=20, num_hidden_layers=1,
        rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5)),
        seed=55, config=configs.GPT_NEOX_LEGACY, extra={
            "gpt_neox.layers.0.attention.bias": (1, 1, 32, 32), "gpt_neox.layers.0.attention.masked_bias": (),
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq": (2,)}, **LEGACY),
    Case("gpt2_legacy", "gpt2", dict(vocab_size=32, n_embd=8, n_layer=1, n_head=2, n_positions=24, bos_token_id=31, eos_token_id=31),
         seed=56, config=configs.GPT2_LEGACY, rename=(("transformer.", ""),), extra={"h.0.attn.bias": (1, 1, 24, 24)},
         **LEGACY),
]  # fmt: skip
