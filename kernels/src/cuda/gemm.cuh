// What the linear maps of many tokens share: their parameters, and what becomes of a sum.
#pragma once
#include "common.cuh"

struct GemmParams {
    const void *weight;  // [N, K]
    const void *x;       // [T, x_stride]
    const float *bias, *row_scale;  // [N] each, or null
    const float *residual_in;       // [T, N]
    float *residual_out;            // [T, N] or null
    float *wide;                    // [T, N] or null: y in f32
    void *y;                        // [T, N] or null: y in the type of x
    u32 tokens, rows, cols, x_stride;
    u32 activation, pad;
    float output_scale, residual_scale;
};

template <typename T> DEVICE void finish(const GemmParams &p, u32 t, u32 n, float sum) {
    if (t >= p.tokens || n >= p.rows) return;
    if (p.bias) sum += p.bias[n];
    if (p.row_scale) sum *= p.row_scale[n];
    sum *= p.output_scale;
    if (p.activation != IDENTITY) sum = activate(p.activation, sum);
    const size_t at = size_t(t) * p.rows + n;
    if (p.wide) p.wide[at] = sum;
    if (p.y) static_cast<T *>(p.y)[at] = from_float<T>(sum);
    if (p.residual_out) p.residual_out[at] = p.residual_in[at] + sum * p.residual_scale;
}

// Outputs n and n + 1 of a token, of an even number of rows: stored together.
DEVICE void finish_pair(const GemmParams &p, u32 t, u32 n, float2 sum) {
    if (t >= p.tokens || n >= p.rows) return;
    if (p.bias) sum.x += p.bias[n], sum.y += p.bias[n + 1];
    if (p.row_scale) sum.x *= p.row_scale[n], sum.y *= p.row_scale[n + 1];
    sum.x *= p.output_scale, sum.y *= p.output_scale;
    if (p.activation != IDENTITY) sum.x = activate(p.activation, sum.x), sum.y = activate(p.activation, sum.y);
    const size_t at = size_t(t) * p.rows + n;
    if (p.wide) *reinterpret_cast<float2 *>(p.wide + at) = sum;
    if (p.y) *reinterpret_cast<__nv_bfloat162 *>(static_cast<__nv_bfloat16 *>(p.y) + at) = __floats2bfloat162_rn(sum.x, sum.y);
    if (p.residual_out) {
        float2 x = *reinterpret_cast<const float2 *>(p.residual_in + at);
        x.x += sum.x * p.residual_scale, x.y += sum.y * p.residual_scale;
        *reinterpret_cast<float2 *>(p.residual_out + at) = x;
    }
}
