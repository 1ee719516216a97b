// What the kernels of many tokens' attention share: their parameters.
#pragma once
#include "common.cuh"

struct PromptAttentionParams {
    const float *q, *k, *v;          // [T, H, hd], [T, H_kv, hd] twice, as projected
    const float *q_norm, *k_norm;    // [hd] or null
    const float *inv_freq;           // [half]
    float *keys, *values;            // [capacity, H_kv, hd]
    float *q_out, *y, *entropy;      // [T, H, hd] twice; [T, H] in bits
    __nv_bfloat16 *q16, *k16, *v16;  // [T, H, hd], [first + T, H_kv, hd] twice: what tensor cores multiply, or null
    u32 tokens, first, heads, kv_heads, head_dim, half, window;
    float scale, eps, key_scale;
};
