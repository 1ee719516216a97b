// What the kernels of many tokens' attention share: their parameters, and what those on tensor cores do by rows.
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

constexpr float HIDDEN = -1e30f;  // a score out of sight; finite, so that 0 times it is 0

// Sixteen bytes to shared memory, zeros if they are not there.
DEVICE void copy16(u32 to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}
// Over the four lanes of a row.
DEVICE float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL, x, 2));
}
DEVICE float quad_sum(float x) {
    x += __shfl_xor_sync(FULL, x, 1);
    return x + __shfl_xor_sync(FULL, x, 2);
}
