// Norms of rows of many tokens: one block a row and group.
#include "common.cuh"

struct NormParams {
    const void *x, *gate;  // [T, stride] each
    const float *weight, *bias;
    void *y;               // [T, y_stride]
    float *rho;            // [T, groups], may be null
    u32 width;             // of a group
    u32 groups, layer, gate_first;  // gate_first: 0 no gate, 1 before, 2 after
    u32 x_stride, gate_stride, y_stride;
    float eps;
};

template <typename X, typename Y> DEVICE void norm(const NormParams &p) {
    extern __shared__ float xs[];
    __shared__ float scratch[32];
    let_next_start();
    wait_for_previous();
    const u32 group = blockIdx.x % p.groups, c0 = group * p.width;
    const size_t t = blockIdx.x / p.groups;
    const X *from = static_cast<const X *>(p.x) + t * p.x_stride + c0;
    const Y *gate = static_cast<const Y *>(p.gate) + t * p.gate_stride + c0;
    Y *to = static_cast<Y *>(p.y) + t * p.y_stride + c0;
    float sum = 0.0f, square = 0.0f;
    for (u32 i = threadIdx.x; i < p.width; i += blockDim.x) {
        float x = to_float(from[i]);
        if (p.gate_first == 1) x *= silu(to_float(gate[i]));
        xs[i] = x;
        sum += x, square += x * x;
    }
    float mean = 0.0f;
    if (p.layer) {
        mean = block_sum(sum, scratch) / p.width;
        __syncthreads();
        square = 0.0f;
        for (u32 i = threadIdx.x; i < p.width; i += blockDim.x) square += (xs[i] - mean) * (xs[i] - mean);
    }
    const float rho = rsqrtf(block_sum(square, scratch) / p.width + p.eps);
    for (u32 i = threadIdx.x; i < p.width; i += blockDim.x) {
        float y = (xs[i] - mean) * rho * p.weight[c0 + i];
        if (p.bias) y += p.bias[c0 + i];
        if (p.gate_first == 2) y *= silu(to_float(gate[i]));
        to[i] = from_float<Y>(y);
    }
    if (p.rho && threadIdx.x == 0) p.rho[blockIdx.x] = rho;
}
// The same of wide rows, eight channels a thread: widths, strides and starts are multiples of eight, and a group has at most 8,192
// channels.
template <typename X, typename Y> DEVICE void norm_wide(const NormParams &p) {
    __shared__ float scratch[32];
    let_next_start();
    wait_for_previous();
    const u32 group = blockIdx.x % p.groups, c0 = group * p.width, i = threadIdx.x * 8;
    const size_t t = blockIdx.x / p.groups;
    const Y *gate = static_cast<const Y *>(p.gate) + t * p.gate_stride + c0;
    const bool there = i < p.width;
    float x[8] = {}, z[8] = {}, sum = 0.0f, square = 0.0f;
    if (there) {
        Eight<X> xs;
        xs.load_once(static_cast<const X *>(p.x) + t * p.x_stride + c0 + i);
        xs.widen(x);
        if (p.gate_first) {
            Eight<Y> zs;
            zs.load_once(gate + i);
            zs.widen(z);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (p.gate_first == 1) x[j] *= silu(z[j]);
            sum += x[j], square += x[j] * x[j];
        }
    }
    float mean = 0.0f;
    if (p.layer) {
        mean = block_sum(sum, scratch) / p.width;
        __syncthreads();
        square = 0.0f;
        if (there)
#pragma unroll
            for (int j = 0; j < 8; j++) square += (x[j] - mean) * (x[j] - mean);
    }
    const float rho = rsqrtf(block_sum(square, scratch) / p.width + p.eps);
    if (p.rho && threadIdx.x == 0) p.rho[blockIdx.x] = rho;
    if (!there) return;
    const float4 *weights = reinterpret_cast<const float4 *>(p.weight + c0 + i), *biases = reinterpret_cast<const float4 *>(p.bias + c0 + i);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float4 w = weights[half], b = p.bias ? biases[half] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const float ws[4] = {w.x, w.y, w.z, w.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float &y = x[4 * half + k];
            y = (y - mean) * rho * ws[k] + bs[k];
            if (p.gate_first == 2) y *= silu(z[4 * half + k]);
        }
    }
    store_eight(static_cast<Y *>(p.y) + t * p.y_stride + c0 + i, x);
}

#define NORM(name, X, Y)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) norm_rows_##name(const __grid_constant__ NormParams p) { norm<X, Y>(p); }        \
    extern "C" __global__ void __launch_bounds__(1024) norm_wide_##name(const __grid_constant__ NormParams p) { norm_wide<X, Y>(p); }
NORM(f32_f32, float, float)
NORM(f32_bf16, float, __nv_bfloat16)
NORM(bf16_bf16, __nv_bfloat16, __nv_bfloat16)
