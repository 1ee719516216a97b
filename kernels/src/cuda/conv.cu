// Depthwise causal convolution of many tokens, with silu: one thread a channel and run of tokens.
#include "common.cuh"

struct ConvParams {
    const void *x;      // [T, stride]
    const float *weight, *bias, *history;  // [C, K], [C], [K−1, C]
    float *next_history;                   // [K−1, C], not `history`
    void *y;                               // [T, C]
    u32 tokens, channels, taps, stride, run, silu;
};

template <typename T> DEVICE void conv(const ConvParams &p) {
    let_next_start();
    wait_for_previous();
    const u32 c = blockIdx.x * blockDim.x + threadIdx.x, from = blockIdx.y * p.run, to = min(from + p.run, p.tokens);
    if (c >= p.channels) return;
    const T *x = static_cast<const T *>(p.x) + c;
    T *y = static_cast<T *>(p.y) + c;
    const int k = p.taps;
    // Input at a position before the first token is history.
    auto at = [&](int t) {
        return t >= 0 ? to_float(x[size_t(t) * p.stride]) : t + k - 1 >= 0 ? p.history[(t + k - 1) * p.channels + c] : 0.0f;
    };
    float w[4], past[3];
#pragma unroll
    for (int j = 0; j < 4; j++) w[j] = j + 4 - k >= 0 && j - (4 - k) >= 0 ? p.weight[c * k + j - (4 - k)] : 0.0f;
#pragma unroll
    for (int j = 0; j < 3; j++) past[j] = at(int(from) + j - 3);
    const float bias = p.bias ? p.bias[c] : 0.0f;
#pragma unroll 4
    for (u32 t = from; t < to; t++) {
        const float now = to_float(x[size_t(t) * p.stride]);
        float out = bias + w[0] * past[0] + w[1] * past[1] + w[2] * past[2] + w[3] * now;
        y[size_t(t) * p.channels] = from_float<T>(p.silu ? silu(out) : out);
        past[0] = past[1], past[1] = past[2], past[2] = now;
    }
    if (to == p.tokens)
        for (int j = 0; j + 1 < k; j++) p.next_history[j * p.channels + c] = at(int(p.tokens) + j - (k - 1));
}
// The same, eight channels a thread: channels, stride and starts are multiples of eight.
template <typename T> DEVICE void conv_wide(const ConvParams &p) {
    let_next_start();
    wait_for_previous();
    const u32 c = (blockIdx.x * blockDim.x + threadIdx.x) * 8, from = blockIdx.y * p.run, to = min(from + p.run, p.tokens);
    if (c >= p.channels) return;
    const T *x = static_cast<const T *>(p.x) + c;
    T *y = static_cast<T *>(p.y) + c;
    const int k = p.taps;
    auto at = [&](int t, float (&out)[8]) {
        if (t >= 0) {
            Eight<T> xs;
            xs.load_once(x + size_t(t) * p.stride);
            xs.widen(out);
            return;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = t + k - 1 >= 0 ? p.history[(t + k - 1) * p.channels + c + i] : 0.0f;
    };
    float w[4][8], past[3][8], bias[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) w[j][i] = j + k >= 4 ? p.weight[(c + i) * k + j + k - 4] : 0.0f;
        bias[i] = p.bias ? p.bias[c + i] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < 3; j++) at(int(from) + j - 3, past[j]);
    // Four tokens are asked for before the first is needed.
    for (u32 t0 = from; t0 < to; t0 += 4) {
        Eight<T> raw[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            if (t0 + i < to) raw[i].load_once(x + size_t(t0 + i) * p.stride);
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if (t0 + j >= to) break;
            float now[8], out[8];
            raw[j].widen(now);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                out[i] = bias[i] + w[0][i] * past[0][i] + w[1][i] * past[1][i] + w[2][i] * past[2][i] + w[3][i] * now[i];
                if (p.silu) out[i] = silu(out[i]);
                past[0][i] = past[1][i], past[1][i] = past[2][i], past[2][i] = now[i];
            }
            store_eight(y + size_t(t0 + j) * p.channels, out);
        }
    }
    if (to == p.tokens)
        for (int j = 0; j + 1 < k; j++) {
            float last[8];
            at(int(p.tokens) + j - (k - 1), last);
#pragma unroll
            for (int i = 0; i < 8; i++) p.next_history[j * p.channels + c + i] = last[i];
        }
}
extern "C" __global__ void conv_wide_f32(const __grid_constant__ ConvParams p) { conv_wide<float>(p); }
extern "C" __global__ void conv_wide_bf16(const __grid_constant__ ConvParams p) { conv_wide<__nv_bfloat16>(p); }
extern "C" __global__ void conv_wide_f16(const __grid_constant__ ConvParams p) { conv_wide<__half>(p); }
extern "C" __global__ void conv_f32(const __grid_constant__ ConvParams p) { conv<float>(p); }
extern "C" __global__ void conv_bf16(const __grid_constant__ ConvParams p) { conv<__nv_bfloat16>(p); }
extern "C" __global__ void conv_f16(const __grid_constant__ ConvParams p) { conv<__half>(p); }
