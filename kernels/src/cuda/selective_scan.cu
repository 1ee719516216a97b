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
    void *core;                            // [T, E] or null: y before the gate
    u32 tokens, channels, n, groups;       // channel e reads B and C [G, N] of group e·G/E
    u32 delta_stride, x_stride, bc_stride, gate_stride, y_stride;
    u32 softplus;
};

constexpr int CHANNELS = 16, TILE = 32, LANES = 8, THREADS = CHANNELS * LANES, QUADS = CHANNELS / 4;

// As softplus, in two special-function calls and no branch: right to 3e-6 of its value.
DEVICE float quick_softplus(float x) {
    const float u = exp2_fast(-fabsf(x) * LOG2_E);
    const float series = u * (1.0f - u * (0.5f - u * (0.33333333f - u * (0.25f - u * 0.2f))));
    return fmaxf(x, 0.0f) + (u < 0.1f ? series : __log2f(1.0f + u) * 0.69314718f);
}

// Four elements as they lie in memory: what is loaded ahead is widened only when it is needed, or every load would be waited for.
template <typename T> struct __align__(4 * sizeof(T)) Four {
    T parts[4];
    template <bool VEC> DEVICE void load(const T *from, u32 count) {
        if constexpr (VEC && sizeof(T) == 4) {
            const float4 v = *reinterpret_cast<const float4 *>(from);
            *reinterpret_cast<float4 *>(parts) = v;
        } else if constexpr (VEC) {
            const uint2 v = *reinterpret_cast<const uint2 *>(from);
            *reinterpret_cast<uint2 *>(parts) = v;
        } else
#pragma unroll
            for (int i = 0; i < 4; i++) parts[i] = i < count ? from[i] : from_float<T>(0.0f);
    }
    DEVICE void zero() {
#pragma unroll
        for (int i = 0; i < 4; i++) parts[i] = from_float<T>(0.0f);
    }
};
template <typename T, bool VEC> DEVICE void store4(T *to, u32 count, const float (&in)[4]) {
    if (VEC) {
        if constexpr (sizeof(T) == 4)
            asm volatile("st.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(to), "f"(in[0]), "f"(in[1]), "f"(in[2]), "f"(in[3]) : "memory");
        else {
            Four<T> four;
#pragma unroll
            for (int i = 0; i < 4; i++) four.parts[i] = from_float<T>(in[i]);
            const uint2 v = *reinterpret_cast<const uint2 *>(four.parts);
            asm volatile("st.global.v2.u32 [%0], {%1,%2};" ::"l"(to), "r"(v.x), "r"(v.y) : "memory");
        }
    } else
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (i < count) to[i] = from_float<T>(in[i]);
}

// PER: states a lane, N ≤ 8·PER. VEC: strides, E/G and pointers are multiples of four elements.
template <typename T, int PER, bool VEC, bool NORM> DEVICE void scan(const ScanParams &p) {
    constexpr int N = LANES * PER, ROUNDS = TILE * N / 4 / THREADS > 0 ? TILE * N / 4 / THREADS : 1;
    // Rows are padded by 16 bytes, so that a warp that stores eight of them meets no bank eight times.
    __shared__ __align__(16) float2 steps[TILE][CHANNELS + 2];  // Δ, Δ x
    __shared__ __align__(16) float2 keys[TILE][N + 2];          // B, C
    __shared__ __align__(16) float ys[TILE][CHANNELS + 4], norms[NORM ? TILE : 1][CHANNELS + 4];
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
    const u32 row = threadIdx.x / QUADS, quad = threadIdx.x % QUADS * 4;
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
    Four<T> dt, x, z, bs[ROUNDS], cs[ROUNDS];
    auto load = [&](u32 tile) {
        const u32 t = tile + row;
        dt.zero(), x.zero(), z.zero();
        if (t < p.tokens && in_quad) {
            dt.template load<VEC>(delta_in + size_t(t) * p.delta_stride, in_quad);
            x.template load<VEC>(x_in + size_t(t) * p.x_stride, in_quad);
            if (p.gate) z.template load<VEC>(gate_in + size_t(t) * p.gate_stride, in_quad);
        }
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            const u32 at = (round * THREADS + threadIdx.x) * 4, t = tile + at / N, n = at % N;
            bs[round].zero(), cs[round].zero();
            if (at < TILE * N && t < p.tokens && n < p.n) {
                bs[round].template load<VEC>(b_in + size_t(t) * p.bc_stride + n, p.n - n);
                cs[round].template load<VEC>(c_in + size_t(t) * p.bc_stride + n, p.n - n);
            }
        }
    };
    load(0);
    for (u32 tile = 0; tile < p.tokens; tile += TILE) {
        const bool here = tile + row < p.tokens && in_quad;
        const Four<T> keep_x = x, keep_z = z;
        float deltas[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float step = to_float(dt.parts[i]) + bias[i];
            if (p.softplus) step = quick_softplus(step);
            if (!here) step = 0.0f;  // beyond the end the state stays
            deltas[i] = step;
        }
#pragma unroll
        for (int i = 0; i < 4; i += 2)
            *reinterpret_cast<float4 *>(&steps[row][quad + i]) =
                make_float4(deltas[i], deltas[i] * to_float(x.parts[i]), deltas[i + 1], deltas[i + 1] * to_float(x.parts[i + 1]));
        if (p.delta_out && here) store4<float, VEC>(p.delta_out + size_t(tile + row) * p.channels + first + quad, in_quad, deltas);
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            const u32 at = (round * THREADS + threadIdx.x) * 4;
            if (at < TILE * N)
#pragma unroll
                for (int i = 0; i < 4; i += 2)
                    *reinterpret_cast<float4 *>(&keys[at / N][at % N + i]) =
                        make_float4(to_float(bs[round].parts[i]), to_float(cs[round].parts[i]), to_float(bs[round].parts[i + 1]),
                                    to_float(cs[round].parts[i + 1]));
        }
        __syncthreads();
        if (tile + TILE < p.tokens) load(tile + TILE);
        // Eight tokens at a time: all exponentials and products first, then the chains through h, while what the next eight need is
        // on its way from shared memory.
        float2 step[LANES], key[LANES][PER];
        auto fetch = [&](u32 t0) {
#pragma unroll
            for (int t = 0; t < LANES; t++) {
                step[t] = steps[t0 + t][own];
#pragma unroll
                for (int i = 0; i < PER; i++) key[t][i] = keys[t0 + t][sub * PER + i];
            }
        };
        fetch(0);
#pragma unroll 1
        for (u32 t0 = 0; t0 < TILE; t0 += LANES) {
            float y[LANES], square[NORM ? LANES : 1], decay[LANES][PER], write[LANES][PER], read[LANES][PER];
#pragma unroll
            for (int t = 0; t < LANES; t++)
#pragma unroll
                for (int i = 0; i < PER; i++) {
                    decay[t][i] = exp2_fast(step[t].x * a[i]);
                    write[t][i] = step[t].y * key[t][i].x, read[t][i] = key[t][i].y;
                }
            if (t0 + LANES < TILE) fetch(t0 + LANES);
#pragma unroll
            for (int t = 0; t < LANES; t++) {
                y[t] = 0.0f;
                if (NORM) square[NORM ? t : 0] = 0.0f;
#pragma unroll
                for (int i = 0; i < PER; i++) {
                    h[i] = fmaf(decay[t][i], h[i], write[t][i]);
                    y[t] = fmaf(read[t][i], h[i], y[t]);
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
            const float4 sums = *reinterpret_cast<const float4 *>(&ys[row][quad]);
            float out[4] = {sums.x, sums.y, sums.z, sums.w};
#pragma unroll
            for (int i = 0; i < 4; i++) out[i] += skip[i] * to_float(keep_x.parts[i]);
            const size_t at = size_t(tile + row) * p.y_stride + first + quad;
            if (p.core) store4<T, VEC>(static_cast<T *>(p.core) + at, in_quad, out);
            if (p.gate)
#pragma unroll
                for (int i = 0; i < 4; i++) out[i] *= silu(to_float(keep_z.parts[i]));
            store4<T, VEC>(static_cast<T *>(p.y) + at, in_quad, out);
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
