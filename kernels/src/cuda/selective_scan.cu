// Selective scan over any length: one walk along time, a block for 16 channels, 8 lanes a channel with N/8 states each in registers.
// What bounds it is the exponential of every state element (16 a clock and multiprocessor), so each is computed once: no chunk is
// walked twice. A tile of tokens is loaded to registers while the one before is computed; y is summed over the 8 lanes for 8 tokens
// at a time by a transposing butterfly (7 shuffles instead of 24).
#include "common.cuh"

struct ScanParams {
    const void *delta, *x, *b, *c, *gate;  // [T, stride] each; gate may be null
    const float *delta_bias;               // [E] or null
    const float *a, *d;                    // [E, N], [E] or null
    float *state;                          // [E, N], moved on
    void *y;                               // [T, E]: (C·h + D x) silu(gate)
    float *delta_out, *state_norm;         // [T, E] each, or null
    u32 tokens, channels, n, groups;       // channel e reads B and C [G, N] of group e·G/E
    u32 delta_stride, x_stride, bc_stride, gate_stride, y_stride;
    u32 softplus;
};

constexpr int CHANNELS = 16, TILE = 32, LANES = 8, THREADS = CHANNELS * LANES;

template <typename T, bool VEC> DEVICE void load4(const T *from, u32 count, float (&out)[4]) {
    if (VEC) {
        if (sizeof(T) == 4) {
            const float4 v = *reinterpret_cast<const float4 *>(from);
            out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
        } else {
            const uint2 v = *reinterpret_cast<const uint2 *>(from);
            const T *parts = reinterpret_cast<const T *>(&v);
#pragma unroll
            for (int i = 0; i < 4; i++) out[i] = to_float(parts[i]);
        }
    } else
#pragma unroll
        for (int i = 0; i < 4; i++) out[i] = i < count ? to_float(from[i]) : 0.0f;
}
template <typename T, bool VEC> DEVICE void store4(T *to, u32 count, const float (&in)[4]) {
    if (VEC) {
        if (sizeof(T) == 4) *reinterpret_cast<float4 *>(to) = make_float4(in[0], in[1], in[2], in[3]);
        else {
            uint2 v;
            T *parts = reinterpret_cast<T *>(&v);
#pragma unroll
            for (int i = 0; i < 4; i++) parts[i] = from_float<T>(in[i]);
            *reinterpret_cast<uint2 *>(to) = v;
        }
    } else
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (i < count) to[i] = from_float<T>(in[i]);
}

// PER: states a lane, N ≤ 8·PER. VEC: strides, E/G and pointers are multiples of four elements.
template <typename T, int PER, bool VEC, bool NORM> DEVICE void scan(const ScanParams &p) {
    constexpr int N = LANES * PER, ROUNDS = TILE * N / 4 / THREADS > 0 ? TILE * N / 4 / THREADS : 1;
    __shared__ float2 steps[TILE][CHANNELS];                 // Δ, Δ x
    __shared__ float2 keys[TILE][N];                         // B, C
    __shared__ float ys[TILE][CHANNELS + 4], norms[NORM ? TILE : 1][CHANNELS + 4];
    const u32 per_group = p.channels / p.groups, blocks = (per_group + CHANNELS - 1) / CHANNELS;
    const u32 group = blockIdx.x / blocks, in_group = blockIdx.x % blocks * CHANNELS;
    const u32 first = group * per_group + in_group, count = min(u32(CHANNELS), per_group - in_group);
    const u32 own = threadIdx.x / LANES, sub = threadIdx.x % LANES;
    const u32 channel = first + min(own, count - 1);

    float a[PER], h[PER];
#pragma unroll
    for (int i = 0; i < PER; i++) {
        const u32 n = sub * PER + i;
        a[i] = n < p.n ? p.a[size_t(channel) * p.n + n] * LOG2_E : 0.0f;
        h[i] = n < p.n ? p.state[size_t(channel) * p.n + n] : 0.0f;
    }
    // What this thread loads and stores of a tile: four channels of a token.
    const u32 row = threadIdx.x / 4, quad = threadIdx.x % 4 * 4;
    const u32 in_quad = quad < count ? min(4u, count - quad) : 0;
    float bias[4] = {}, skip[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < in_quad) {
            if (p.delta_bias) bias[i] = p.delta_bias[first + quad + i];
            if (p.d) skip[i] = p.d[first + quad + i];
        }
    const T *delta_in = static_cast<const T *>(p.delta) + first + quad, *x_in = static_cast<const T *>(p.x) + first + quad;
    const T *gate_in = static_cast<const T *>(p.gate) + first + quad;
    const T *b_in = static_cast<const T *>(p.b) + group * p.n, *c_in = static_cast<const T *>(p.c) + group * p.n;
    float dt[4], x[4], z[4], bs[ROUNDS][4], cs[ROUNDS][4];
    auto load = [&](u32 tile) {
        const u32 t = tile + row;
#pragma unroll
        for (int i = 0; i < 4; i++) dt[i] = x[i] = z[i] = 0.0f;
        if (t < p.tokens && in_quad) {
            load4<T, VEC>(delta_in + size_t(t) * p.delta_stride, in_quad, dt);
            load4<T, VEC>(x_in + size_t(t) * p.x_stride, in_quad, x);
            if (p.gate) load4<T, VEC>(gate_in + size_t(t) * p.gate_stride, in_quad, z);
        }
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            const u32 at = (round * THREADS + threadIdx.x) * 4, t = tile + at / N, n = at % N;
#pragma unroll
            for (int i = 0; i < 4; i++) bs[round][i] = cs[round][i] = 0.0f;
            if (at < TILE * N && t < p.tokens && n < p.n) {
                load4<T, VEC>(b_in + size_t(t) * p.bc_stride + n, p.n - n, bs[round]);
                load4<T, VEC>(c_in + size_t(t) * p.bc_stride + n, p.n - n, cs[round]);
            }
        }
    };
    load(0);
    for (u32 tile = 0; tile < p.tokens; tile += TILE) {
        const bool here = tile + row < p.tokens && in_quad;
        float keep_x[4], keep_z[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float step = dt[i] + bias[i];
            if (p.softplus) step = softplus(step);
            if (!here) step = 0.0f;  // beyond the end the state stays
            dt[i] = step;
            keep_x[i] = x[i], keep_z[i] = z[i];
            steps[row][quad + i] = make_float2(step, step * x[i]);
        }
        if (p.delta_out && here) store4<float, VEC>(p.delta_out + size_t(tile + row) * p.channels + first + quad, in_quad, dt);
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            const u32 at = (round * THREADS + threadIdx.x) * 4;
            if (at < TILE * N)
#pragma unroll
                for (int i = 0; i < 4; i++) keys[at / N][at % N + i] = make_float2(bs[round][i], cs[round][i]);
        }
        __syncthreads();
        if (tile + TILE < p.tokens) load(tile + TILE);
#pragma unroll 1
        for (u32 t0 = 0; t0 < TILE; t0 += LANES) {
            float y[LANES], square[NORM ? LANES : 1];
#pragma unroll
            for (int t = 0; t < LANES; t++) {
                const float2 step = steps[t0 + t][own];
                const float2 *key = &keys[t0 + t][sub * PER];
                y[t] = 0.0f;
                if (NORM) square[NORM ? t : 0] = 0.0f;
#pragma unroll
                for (int i = 0; i < PER; i++) {
                    const float2 bc = key[i];
                    h[i] = exp2_fast(step.x * a[i]) * h[i] + step.y * bc.x;
                    y[t] += bc.y * h[i];
                    if (NORM) square[NORM ? t : 0] += h[i] * h[i];
                }
            }
            // After step s, lane bits above s choose which tokens a lane still sums; at the end lane l holds token l.
            auto butterfly = [&](float (&v)[LANES]) {
#pragma unroll
                for (int s = LANES / 2; s; s >>= 1) {
                    const bool upper = sub & s;
#pragma unroll
                    for (int i = 0; i < s; i++) {
                        const float send = upper ? v[i] : v[i + s], mine = upper ? v[i + s] : v[i];
                        v[i] = mine + __shfl_xor_sync(FULL, send, s);
                    }
                }
                return v[0];
            };
            ys[t0 + sub][own] = butterfly(y);
            if constexpr (NORM) norms[t0 + sub][own] = sqrtf(butterfly(square));
        }
        __syncthreads();
        if (here) {
            float out[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                out[i] = ys[row][quad + i] + skip[i] * keep_x[i];
                if (p.gate) out[i] *= silu(keep_z[i]);
            }
            store4<T, VEC>(static_cast<T *>(p.y) + size_t(tile + row) * p.y_stride + first + quad, in_quad, out);
            if (NORM && p.state_norm) {
#pragma unroll
                for (int i = 0; i < 4; i++) out[i] = norms[row][quad + i];
                store4<float, VEC>(p.state_norm + size_t(tile + row) * p.channels + first + quad, in_quad, out);
            }
        }
    }
    if (own < count)
#pragma unroll
        for (int i = 0; i < PER; i++) {
            const u32 n = sub * PER + i;
            if (n < p.n) p.state[size_t(channel) * p.n + n] = h[i];
        }
}

#define SCAN(name, T, PER, VEC, NORM)                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ ScanParams p) { scan<T, PER, VEC, NORM>(p); }
#define SCANS(suffix, T)                                                                                                             \
    SCAN(scan_n16_##suffix, T, 2, true, false)                                                                                       \
    SCAN(scan_n16_norm_##suffix, T, 2, true, true)                                                                                   \
    SCAN(scan_any_n16_##suffix, T, 2, false, true)                                                                                   \
    SCAN(scan_any_n64_##suffix, T, 8, false, true)                                                                                   \
    SCAN(scan_any_n8_##suffix, T, 1, false, true)
SCANS(f32, float)
SCANS(bf16, __nv_bfloat16)
SCANS(f16, __half)
