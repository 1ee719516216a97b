"""The checkpoints: class, sizes, and the spelling in which each is stored."""

from dataclasses import dataclass, field


@dataclass
class Case:
    name: str
    family: str  # mamba, mamba2, llama, bamba
    sizes: dict  # keyword arguments of the official config class
    seed: int
    store: str = "hf"  # hf: as save_pretrained writes it; sharded; or config: the one below
    config: dict = field(default_factory=dict)  # hand-made config.json for store="config"
    rename: tuple = ("", "")  # (official, stored) part of tensor names
    vocab: int = 0  # real vocabulary where the table is padded
    bf16: bool = False
    internals: bool = True  # store the mixers' internals; not where only the spelling differs
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

SINGULAR = ("backbone.embeddings.", "backbone.embedding.")

CASES = [
    Case("mamba_a", "mamba", MAMBA | dict(hidden_size=40, num_hidden_layers=3, tie_word_embeddings=True),
         seed=1, mixing=True),
    Case("mamba_b", "mamba", MAMBA | dict(hidden_size=48, state_size=5, time_step_rank=7, conv_kernel=3, use_bias=True,
                                          tie_word_embeddings=False), seed=2),
    Case("mamba_original", "mamba", MAMBA | dict(state_size=16, time_step_rank=2, vocab_size=104, tie_word_embeddings=True),
         seed=3, store="config", config=MAMBA_ORIGINAL, rename=SINGULAR, vocab=101, internals=False),
    Case("mamba_bf16", "mamba", MAMBA | dict(tie_word_embeddings=True), seed=4, bf16=True),
    Case("mamba_text", "mamba", MAMBA | dict(hidden_size=24, tie_word_embeddings=True), seed=5, tokenizer=True),
    Case("mamba2_a", "mamba2", MAMBA2 | dict(hidden_size=48, num_heads=6, state_size=16, chunk_size=8),
         seed=6),
    Case("mamba2_b", "mamba2", MAMBA2 | dict(hidden_size=36, num_heads=6, head_dim=12, n_groups=1, use_bias=True,
                                             tie_word_embeddings=True), seed=7),
    Case("mamba2_clamp", "mamba2", MAMBA2 | dict(time_step_limit=(0.01, 0.3)), seed=8, mixing=True, decode_exact=False),
    Case("mamba2_original", "mamba2", MAMBA2 | dict(vocab_size=112, tie_word_embeddings=True),
         seed=9, store="config", config=MAMBA2_ORIGINAL, rename=SINGULAR, vocab=101, internals=False),
    Case("llama_a", "llama", LLAMA | dict(hidden_size=48, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2),
         seed=10),
    Case("llama_b", "llama", LLAMA | dict(hidden_size=36, num_attention_heads=3, num_key_value_heads=3, head_dim=16, attention_bias=True,
                                          mlp_bias=True, tie_word_embeddings=True), seed=11),
    Case("llama_rope3", "llama", LLAMA | dict(rope_parameters=dict(
        rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32)), seed=12),
    Case("llama_legacy", "llama", LLAMA | dict(rope_parameters=dict(rope_type="default", rope_theta=500.0)),
         seed=13, store="config", config=LLAMA_LEGACY, internals=False),
    Case("llama_sharded", "llama", LLAMA | dict(num_key_value_heads=2), seed=14, store="sharded", internals=False),
    Case("bamba_a", "bamba", BAMBA | dict(num_attention_heads=4, num_key_value_heads=2, mamba_n_heads=8,
                                          mamba_d_head="auto", mamba_d_state=16, mamba_chunk_size=8), seed=15),
    Case("bamba_b", "bamba", BAMBA | dict(num_hidden_layers=4, attn_layer_indices=[0, 2], mamba_n_groups=1,
                                          intermediate_size=32,
                                          mamba_conv_bias=False, mamba_proj_bias=True, tie_word_embeddings=True), seed=16),
    Case("bamba_legacy", "bamba", BAMBA, seed=17, store="config", config=BAMBA_LEGACY, internals=False),
]  # fmt: skip
