// Rows of many tokens: embedding, gates, and what leaves for the record of a run.
#include "common.cuh"

struct EmbedRowsParams {
    const void *table;      // [V, d]
    const void *positions;  // [P, d] or null, of the same type
    const u32 *tokens;      // [T]
    float *x;               // [T, d]
    u32 width, first;
    float scale;
    u32 pad;
};
template <typename W> DEVICE void embed_rows(const EmbedRowsParams &p) {
    const u32 t = blockIdx.x;
    const W *row = static_cast<const W *>(p.table) + size_t(p.tokens[t]) * p.width;
    const W *position = static_cast<const W *>(p.positions) + size_t(p.first + t) * p.width;
    for (u32 i = threadIdx.x; i < p.width; i += blockDim.x) {
        float x = to_float(row[i]) * p.scale;
        if (p.positions) x += to_float(position[i]);
        p.x[size_t(t) * p.width + i] = x;
    }
}
extern "C" __global__ void embed_rows_f32(const __grid_constant__ EmbedRowsParams p) { embed_rows<float>(p); }
extern "C" __global__ void embed_rows_bf16(const __grid_constant__ EmbedRowsParams p) { embed_rows<__nv_bfloat16>(p); }
extern "C" __global__ void embed_rows_f16(const __grid_constant__ EmbedRowsParams p) { embed_rows<__half>(p); }

struct GateParams {
    const void *x;     // [T, x_stride]
    const void *gate;  // [T, gate_stride] or null
    void *y;           // [T, width]
    u32 tokens, width, x_stride, gate_stride;
    u32 activation, pad;  // 5: σ
    float gate_scale, pad2;
};
template <typename X, typename Y> DEVICE void gate(const GateParams &p) {
    const size_t all = size_t(p.tokens) * p.width;
    for (size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x; at < all; at += size_t(gridDim.x) * blockDim.x) {
        const size_t t = at / p.width, i = at % p.width;
        float x = to_float(static_cast<const X *>(p.x)[t * p.x_stride + i]);
        if (p.gate) {
            const float g = to_float(static_cast<const Y *>(p.gate)[t * p.gate_stride + i]) * p.gate_scale;
            x *= p.activation == 5 ? sigmoid(g) : activate(p.activation, g);
        }
        static_cast<Y *>(p.y)[at] = from_float<Y>(x);
    }
}
extern "C" __global__ void gate_f32_f32(const __grid_constant__ GateParams p) { gate<float, float>(p); }
extern "C" __global__ void gate_f32_bf16(const __grid_constant__ GateParams p) { gate<float, __nv_bfloat16>(p); }
extern "C" __global__ void gate_bf16_bf16(const __grid_constant__ GateParams p) { gate<__nv_bfloat16, __nv_bfloat16>(p); }

// The same, eight at a time: widths, strides and starts are multiples of eight.
template <typename X, typename Y> DEVICE void gate_wide(const GateParams &p) {
    const u32 wide = p.width / 8, all = p.tokens * wide;
    for (u32 at = blockIdx.x * blockDim.x + threadIdx.x; at < all; at += gridDim.x * blockDim.x) {
        const u32 t = at / wide, i = at % wide * 8;
        float x[8];
        Eight<X> xs;
        xs.load_once(static_cast<const X *>(p.x) + size_t(t) * p.x_stride + i);
        xs.widen(x);
        if (p.gate) {
            float g[8];
            Eight<Y> gs;
            gs.load_once(static_cast<const Y *>(p.gate) + size_t(t) * p.gate_stride + i);
            gs.widen(g);
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] *= p.activation == 5 ? sigmoid(g[j] * p.gate_scale) : activate(p.activation, g[j] * p.gate_scale);
        }
        store_eight(static_cast<Y *>(p.y) + size_t(at) * 8, x);
    }
}
extern "C" __global__ void gate_f32_f32_wide(const __grid_constant__ GateParams p) { gate_wide<float, float>(p); }
extern "C" __global__ void gate_f32_bf16_wide(const __grid_constant__ GateParams p) { gate_wide<float, __nv_bfloat16>(p); }
extern "C" __global__ void gate_bf16_bf16_wide(const __grid_constant__ GateParams p) { gate_wide<__nv_bfloat16, __nv_bfloat16>(p); }

// One quantity of T tokens on its way out; see `Entry` in record.rs.
struct Entry {
    const void *a, *b, *c;  // COPY: a. STEP: a, bias b. WRITE: Δ a (f32) or null, keys b, values c
    float *to;              // [T, width], or [T]
    u32 kind, type, width, stride, stride_b, stride_c;
    u32 heads, groups, value_groups, head_dim, n;
    float low, high;
    u32 pad;
};
enum Kind : u32 { COPY = 0, STEP = 1, WRITE = 2 };

// What a thread reads before it goes on: of one token the time is that of answers from memory.
constexpr u32 AHEAD = 8;
template <typename T> DEVICE void read_ahead(float (&x)[AHEAD], const T *from, u32 first, u32 count) {
#pragma unroll
    for (u32 k = 0; k < AHEAD; k++) {
        const u32 i = first + k * blockDim.x;
        x[k] = i < count ? to_float(from[i]) : 0.0f;
    }
}

// ‖(Δ_h ‖k_h‖ ‖v_h‖)_h‖ of a token.
template <typename T> DEVICE void write_norm(const Entry &e, u32 t) {
    __shared__ float keys[256], scratch[32];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const T *key_rows = static_cast<const T *>(e.b) + size_t(t) * e.stride_b;
    for (u32 g = warp; g < e.groups; g += blockDim.x / 32) {
        float square = 0.0f;
#pragma unroll 4
        for (u32 i = lane; i < e.n; i += 32) {
            const float k = to_float(key_rows[g * e.n + i]);
            square += k * k;
        }
        square = warp_sum(square);
        if (lane == 0) keys[g] = square;
    }
    __syncthreads();
    float sum = 0.0f;
    const u32 values = e.value_groups * e.head_dim, repeats = e.heads / e.value_groups;
    const float *steps = e.a ? static_cast<const float *>(e.a) + size_t(t) * e.stride : nullptr;
    for (u32 first = threadIdx.x; first < values; first += AHEAD * blockDim.x) {
        float v[AHEAD];
        read_ahead(v, static_cast<const T *>(e.c) + size_t(t) * e.stride_c, first, values);
        for (u32 r = 0; r < repeats; r++) {
#pragma unroll
            for (u32 k = 0; k < AHEAD; k++) {
                const u32 head = min(first + k * blockDim.x, values - 1) / e.head_dim * repeats + r;
                const float step = steps ? steps[head] : 1.0f;
                sum += step * step * keys[size_t(head) * e.groups / e.heads] * v[k] * v[k];
            }
        }
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) e.to[t] = sqrtf(sum);
}

template <typename T> DEVICE void take(const Entry &e, u32 t) {
    if (e.kind == WRITE) return write_norm<T>(e, t);
    for (u32 first = threadIdx.x; first < e.width; first += AHEAD * blockDim.x) {
        float x[AHEAD];
        read_ahead(x, static_cast<const T *>(e.a) + size_t(t) * e.stride, first, e.width);
#pragma unroll
        for (u32 k = 0; k < AHEAD; k++) {
            const u32 i = first + k * blockDim.x;
            if (i >= e.width) break;
            if (e.kind == STEP) x[k] = fminf(fmaxf(softplus(x[k] + static_cast<const float *>(e.b)[i]), e.low), e.high);
            e.to[size_t(t) * e.width + i] = x[k];
        }
    }
}
DEVICE void take_any(const Entry &e, u32 t) {
    switch (e.type) {
    case 0: return take<float>(e, t);
    case 1: return take<__nv_bfloat16>(e, t);
    default: return take<__half>(e, t);
    }
}
struct RecordParams {
    const Entry *entries;
};
extern "C" __global__ void __launch_bounds__(1024) record(const __grid_constant__ RecordParams p) {
    const Entry e = p.entries[blockIdx.x];
    take_any(e, blockIdx.y);
}
extern "C" __global__ void __launch_bounds__(256) record_one(const __grid_constant__ Entry e) { take_any(e, blockIdx.y); }
