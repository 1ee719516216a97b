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
// The same of wide rows, EIGHTS times eight channels a thread, all asked for at once: a row in few warps, which wait little for each other,
// and as many rows as hide what they wait for. Widths, strides and starts are multiples of eight, and a group has at most 8,192 channels.
// GATE: as `gate_first`.
template <typename X, typename Y, int EIGHTS, int GATE> DEVICE void norm_wide(const NormParams &p) {
    __shared__ float scratch[32];
    let_next_start();
    wait_for_previous();
    const u32 group = blockIdx.x % p.groups, c0 = group * p.width;
    const size_t t = blockIdx.x / p.groups;
    const X *from = static_cast<const X *>(p.x) + t * p.x_stride + c0;
    const Y *gate = static_cast<const Y *>(p.gate) + t * p.gate_stride + c0;
    auto channel = [&](int k) { return (threadIdx.x + k * blockDim.x) * 8; };
    Eight<X> xs[EIGHTS];
    Eight<Y> zs[EIGHTS];
#pragma unroll
    for (int k = 0; k < EIGHTS; k++) {
        xs[k].zero(), zs[k].zero();
        if (channel(k) < p.width) {
            xs[k].load_once(from + channel(k));
            if (GATE) zs[k].load_once(gate + channel(k));
        }
    }
    float x[EIGHTS][8], z[EIGHTS][8], sum = 0.0f, square = 0.0f;
#pragma unroll
    for (int k = 0; k < EIGHTS; k++) {
        xs[k].widen(x[k]);
        if (GATE) zs[k].widen(z[k]);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (GATE == 1) x[k][j] *= silu(z[k][j]);
            sum += x[k][j], square += x[k][j] * x[k][j];
        }
    }
    float mean = 0.0f;
    if (p.layer) {
        mean = block_sum(sum, scratch) / p.width;
        __syncthreads();
        square = 0.0f;
#pragma unroll
        for (int k = 0; k < EIGHTS; k++)
            if (channel(k) < p.width)
#pragma unroll
                for (int j = 0; j < 8; j++) square += (x[k][j] - mean) * (x[k][j] - mean);
    }
    const float rho = rsqrtf(block_sum(square, scratch) / p.width + p.eps);
    if (p.rho && threadIdx.x == 0) p.rho[blockIdx.x] = rho;
#pragma unroll
    for (int k = 0; k < EIGHTS; k++) {
        const u32 i = channel(k);
        if (i >= p.width) return;
        const float4 *weights = reinterpret_cast<const float4 *>(p.weight + c0 + i), *biases = reinterpret_cast<const float4 *>(p.bias + c0 + i);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float4 w = weights[half], b = p.bias ? biases[half] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            const float ws[4] = {w.x, w.y, w.z, w.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float &y = x[k][4 * half + j];
                y = (y - mean) * rho * ws[j] + bs[j];
                if (GATE == 2) y *= silu(z[k][4 * half + j]);
            }
        }
        store_eight(static_cast<Y *>(p.y) + t * p.y_stride + c0 + i, x[k]);
    }
}

#define WIDE(name, X, Y, threads, EIGHTS, GATE)                                                                                      \
    extern "C" __global__ void __launch_bounds__(threads) norm_##name(const __grid_constant__ NormParams p) {                        \
        norm_wide<X, Y, EIGHTS, GATE>(p);                                                                                            \
    }
#define NORM(name, X, Y)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) norm_rows_##name(const __grid_constant__ NormParams p) { norm<X, Y>(p); }        \
    WIDE(wide_##name, X, Y, 128, 1, 0) WIDE(wider_##name, X, Y, 256, 4, 0)                                                           \
    WIDE(wide_before_##name, X, Y, 128, 1, 1) WIDE(wider_before_##name, X, Y, 256, 4, 1)                                             \
    WIDE(wide_after_##name, X, Y, 128, 1, 2) WIDE(wider_after_##name, X, Y, 256, 4, 2)
NORM(f32_f32, float, float)
NORM(f32_bf16, float, __nv_bfloat16)
NORM(bf16_bf16, __nv_bfloat16, __nv_bfloat16)
