// Softmax attention of one token over a contiguous cache: q and k normed and rotated, k and v appended, all positions read once
// (online softmax, Milakov & Gimelshein 2018; split over blocks, Dao et al. 2023), the parts joined by the last block of a head.
#include "common.cuh"

struct AttentionStepParams {
    const float *q, *k, *v;           // [H, hd], [H_kv, hd] each, as projected
    const float *q_norm, *k_norm;     // [hd] or null
    const float *inv_freq;            // [half]
    float *keys, *values;             // [capacity, H_kv, hd]
    const u32 *place;                 // {token, position}
    float *q_out, *k_out;             // normed and rotated
    float *y, *entropy;               // [H, hd], [H] in bits
    float *partial;                   // [H, splits, hd + 3]
    u32 *counters;                    // [blocks of heads], zero between launches
    u32 heads, kv_heads, head_dim, half;
    u32 window, splits;               // window 0: none
    float scale, eps, key_scale;
    u32 pad;
};

constexpr int THREADS = 128, TEAMS = THREADS / 8;  // eight lanes a position

// Sum of exponentials l, their maximum m, and e = Σ exp(x − m)(x − m), joined with another's.
struct Softmax {
    float m, l, e;
    // Factors on what either has gathered.
    DEVICE float2 join(const Softmax &o) {
        const float top = fmaxf(m, o.m);
        if (top == -INFINITY) return make_float2(1.0f, 1.0f);
        const float f = exp2_fast((m - top) * LOG2_E), g = exp2_fast((o.m - top) * LOG2_E);
        const float left = f > 0.0f ? f * (e + (m - top) * l) : 0.0f, right = g > 0.0f ? g * (o.e + (o.m - top) * o.l) : 0.0f;
        e = left + right, l = l * f + o.l * g, m = top;
        return make_float2(f, g);
    }
};

// I: quarters of 32 dimensions; HEADS: query heads a block.
template <int I, int HEADS> DEVICE void step(const AttentionStepParams &p) {
    constexpr int HD = 32 * I;
    __shared__ float qs[HEADS][HD], ks[HD];
    __shared__ float gathered[4][HEADS][HD];
    __shared__ Softmax sums[4][HEADS];
    __shared__ bool joins;
    const u32 hd = p.head_dim, per_kv = p.heads / p.kv_heads, blocks = (per_kv + HEADS - 1) / HEADS;
    const u32 kv = blockIdx.x / blocks, head0 = kv * per_kv + blockIdx.x % blocks * HEADS;
    const u32 count = min(u32(HEADS), (kv + 1) * per_kv - head0), split = blockIdx.y;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, team = threadIdx.x / 8, sub = threadIdx.x % 8;
    let_next_start();
    wait_for_previous();
    const u32 position = p.place[1];

    for (u32 row = warp; row <= HEADS; row += 4) {  // the last is k
        const bool key = row == HEADS;
        if (!key && row >= count) continue;
        const float *from = key ? p.k + kv * hd : p.q + (head0 + row) * hd, *norm = key ? p.k_norm : p.q_norm;
        float *to = key ? ks : qs[row];
        float x[I], square = 0.0f;
#pragma unroll
        for (int i = 0; i < I; i++) {
            const u32 d = i * 32 + lane;
            x[i] = d < hd ? from[d] * (key ? p.key_scale : 1.0f) : 0.0f;
            square += x[i] * x[i];
        }
        if (norm) {
            const float rho = rsqrtf(warp_sum(square) / hd + p.eps);
#pragma unroll
            for (int i = 0; i < I; i++)
                if (i * 32 + lane < hd) x[i] *= rho * norm[i * 32 + lane];
        }
#pragma unroll
        for (int i = 0; i < I; i++) to[i * 32 + lane] = x[i];
        __syncwarp();
        for (u32 j = lane; j < p.half; j += 32) {
            // The angle is reduced in f64: exact enough anywhere.
            const double turns = double(position) * double(p.inv_freq[j]) * 0.15915494309189533577;
            float sin, cos;
            sincospif(2.0f * float(turns - rint(turns)), &sin, &cos);
            const float u = to[j], w = to[j + p.half];
            to[j] = u * cos - w * sin, to[j + p.half] = w * cos + u * sin;
        }
        __syncwarp();
        float *out = key ? p.k_out + kv * hd : p.q_out + (head0 + row) * hd;
        if (split == 0 && (!key || blockIdx.x % blocks == 0))
            for (u32 d = lane; d < hd; d += 32) out[d] = to[d];
    }
    __syncthreads();

    const u32 first = p.window && position + 1 > p.window ? position + 1 - p.window : 0;
    const u32 share = ((position + 1 - first + p.splits - 1) / p.splits + TEAMS - 1) / TEAMS * TEAMS;
    const u32 lo = min(first + split * share, position + 1), hi = min(lo + share, position + 1);
    if (blockIdx.x % blocks == 0 && lo <= position && position < hi)
        for (u32 d = threadIdx.x; d < hd; d += THREADS) {
            const size_t at = (size_t(position) * p.kv_heads + kv) * hd + d;
            p.keys[at] = ks[d], p.values[at] = p.v[kv * hd + d];
        }

    // This lane's dimensions: (i·8 + sub)·4 …+4.
    float4 gather[HEADS][I];
    Softmax sum[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        sum[h] = {-INFINITY, 0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < I; i++) gather[h][i] = make_float4(0, 0, 0, 0);
    }
    for (u32 s0 = lo; s0 < hi; s0 += TEAMS) {
        const u32 s = s0 + team;
        const bool on = s < hi;
        float4 key[I], value[I];
#pragma unroll
        for (int i = 0; i < I; i++) {
            const u32 d = (i * 8 + sub) * 4;
            key[i] = value[i] = make_float4(0, 0, 0, 0);
            if (on && d < hd) {
                const size_t at = (size_t(s) * p.kv_heads + kv) * hd + d;
                key[i] = s == position ? *reinterpret_cast<float4 *>(&ks[d]) : *reinterpret_cast<const float4 *>(p.keys + at);
                value[i] = *reinterpret_cast<const float4 *>(s == position ? p.v + kv * hd + d : p.values + at);
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float dot = 0.0f;
#pragma unroll
            for (int i = 0; i < I; i++) {
                const float4 q = *reinterpret_cast<float4 *>(&qs[h][(i * 8 + sub) * 4]);
                if (h < count) dot += q.x * key[i].x + q.y * key[i].y + q.z * key[i].z + q.w * key[i].w;
            }
            dot += __shfl_xor_sync(FULL, dot, 1), dot += __shfl_xor_sync(FULL, dot, 2), dot += __shfl_xor_sync(FULL, dot, 4);
            const float2 f = sum[h].join({on ? dot * p.scale : -INFINITY, on ? 1.0f : 0.0f, 0.0f});
#pragma unroll
            for (int i = 0; i < I; i++) {
                float4 &g = gather[h][i];
                const float w = on ? f.y : 0.0f;
                g.x = g.x * f.x + w * value[i].x, g.y = g.y * f.x + w * value[i].y;
                g.z = g.z * f.x + w * value[i].z, g.w = g.w * f.x + w * value[i].w;
            }
        }
    }
    // Teams of a warp, then warps.
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int step = 8; step < 32; step <<= 1) {
            const Softmax other = {__shfl_xor_sync(FULL, sum[h].m, step), __shfl_xor_sync(FULL, sum[h].l, step),
                                   __shfl_xor_sync(FULL, sum[h].e, step)};
            const float2 f = sum[h].join(other);
#pragma unroll
            for (int i = 0; i < I; i++) {
                float4 &g = gather[h][i];
                g.x = g.x * f.x + f.y * __shfl_xor_sync(FULL, g.x, step), g.y = g.y * f.x + f.y * __shfl_xor_sync(FULL, g.y, step);
                g.z = g.z * f.x + f.y * __shfl_xor_sync(FULL, g.z, step), g.w = g.w * f.x + f.y * __shfl_xor_sync(FULL, g.w, step);
            }
        }
        if (lane < 8)
#pragma unroll
            for (int i = 0; i < I; i++) *reinterpret_cast<float4 *>(&gathered[warp][h][(i * 8 + sub) * 4]) = gather[h][i];
        if (lane == 0) sums[warp][h] = sum[h];
    }
    __syncthreads();
    for (u32 h = warp; h < count; h += 4) {
        Softmax all = sums[0][h];
        float x[I];
#pragma unroll
        for (int i = 0; i < I; i++) x[i] = gathered[0][h][i * 32 + lane];
#pragma unroll
        for (int w = 1; w < 4; w++) {
            const float2 f = all.join(sums[w][h]);
#pragma unroll
            for (int i = 0; i < I; i++) x[i] = x[i] * f.x + f.y * gathered[w][h][i * 32 + lane];
        }
        if (p.splits == 1) {
#pragma unroll
            for (int i = 0; i < I; i++)
                if (i * 32 + lane < hd) p.y[(head0 + h) * hd + i * 32 + lane] = x[i] / all.l;
            if (lane == 0) p.entropy[head0 + h] = (logf(all.l) - all.e / all.l) * LOG2_E;
        } else {
            float *to = p.partial + (size_t(head0 + h) * p.splits + split) * (hd + 3);
#pragma unroll
            for (int i = 0; i < I; i++)
                if (i * 32 + lane < hd) to[i * 32 + lane] = x[i];
            if (lane == 0) to[hd] = all.m, to[hd + 1] = all.l, to[hd + 2] = all.e;
        }
    }
    if (p.splits == 1) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) joins = atomicAdd(&p.counters[blockIdx.x], 1) + 1 == p.splits;
    __syncthreads();
    if (!joins) return;
    __threadfence();
    for (u32 h = warp; h < count; h += 4) {
        Softmax all = {-INFINITY, 0.0f, 0.0f};
        float x[I] = {};
        for (u32 part = 0; part < p.splits; part++) {
            const volatile float *from = p.partial + (size_t(head0 + h) * p.splits + part) * (hd + 3);
            const float2 f = all.join({from[hd], from[hd + 1], from[hd + 2]});
#pragma unroll
            for (int i = 0; i < I; i++)
                if (i * 32 + lane < hd) x[i] = x[i] * f.x + f.y * from[i * 32 + lane];
        }
#pragma unroll
        for (int i = 0; i < I; i++)
            if (i * 32 + lane < hd) p.y[(head0 + h) * hd + i * 32 + lane] = x[i] / all.l;
        if (lane == 0) p.entropy[head0 + h] = (logf(all.l) - all.e / all.l) * LOG2_E;
    }
    if (threadIdx.x == 0) p.counters[blockIdx.x] = 0;
}
#define ATTENTION_STEP(I, HEADS)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                            \
        attention_step_##I##_##HEADS(const __grid_constant__ AttentionStepParams p) {                                                \
        step<I, HEADS>(p);                                                                                                           \
    }
ATTENTION_STEP(1, 1)
ATTENTION_STEP(1, 4)
ATTENTION_STEP(2, 1)
ATTENTION_STEP(2, 4)
ATTENTION_STEP(4, 1)
ATTENTION_STEP(4, 4)
ATTENTION_STEP(8, 1)
