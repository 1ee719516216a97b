// Softmax attention of many tokens over a contiguous cache, in f32: queries and keys normed and rotated and the cache filled first, then
// one block for 16 queries of a head, keys in tiles of 32 with the online softmax (Milakov & Gimelshein 2018).
#include "prompt_attention.cuh"

// A warp a row of a token: first the queries, then the keys with their values.
extern "C" __global__ void __launch_bounds__(128) prompt_heads(const __grid_constant__ PromptAttentionParams p) {
    __shared__ float rows[4][256];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, all = p.heads + p.kv_heads, hd = p.head_dim;
    const u32 at = blockIdx.x * 4 + warp, t = at / all, row = at % all;
    if (t >= p.tokens) return;
    const bool key = row >= p.heads;
    const u32 head = key ? row - p.heads : row, position = p.first + t;
    const float *from = key ? p.k + (size_t(t) * p.kv_heads + head) * hd : p.q + (size_t(t) * p.heads + head) * hd;
    const float *norm = key ? p.k_norm : p.q_norm;
    float *xs = rows[warp], square = 0.0f;
    for (u32 d = lane; d < hd; d += 32) {
        const float x = from[d] * (key ? p.key_scale : 1.0f);
        xs[d] = x, square += x * x;
    }
    if (norm) {
        const float rho = rsqrtf(warp_sum(square) / hd + p.eps);
        for (u32 d = lane; d < hd; d += 32) xs[d] *= rho * norm[d];
    }
    __syncwarp();
    for (u32 j = lane; j < p.half; j += 32) {
        // The angle is reduced in f64: exact enough anywhere.
        const double turns = double(position) * double(p.inv_freq[j]) * 0.15915494309189533577;
        float sin, cos;
        sincospif(2.0f * float(turns - rint(turns)), &sin, &cos);
        const float u = xs[j], w = xs[j + p.half];
        xs[j] = u * cos - w * sin, xs[j + p.half] = w * cos + u * sin;
    }
    __syncwarp();
    const size_t cached = (size_t(position) * p.kv_heads + head) * hd;
    const size_t asked = (size_t(t) * p.heads + head) * hd;
    float *to = key ? p.keys + cached : p.q_out + asked;
    __nv_bfloat16 *halves = !p.q16 ? nullptr : key ? p.k16 + cached : p.q16 + asked;
    for (u32 d = lane; d < hd; d += 32) {
        to[d] = xs[d];
        if (halves) halves[d] = __float2bfloat16(xs[d]);
        if (!key) continue;
        const float v = p.v[(size_t(t) * p.kv_heads + head) * hd + d];
        p.values[cached + d] = v;
        if (halves) p.v16[cached + d] = __float2bfloat16(v);
    }
}

constexpr int QUERIES = 16, KEYS = 32, MINE = QUERIES / 4;  // queries of a warp

// I: quarters of 32 dimensions.
template <int I> DEVICE void attend(const PromptAttentionParams &p) {
    extern __shared__ float shared[];
    const u32 hd = p.head_dim, wide = hd + 1;
    float *qs = shared, *ks = qs + QUERIES * hd, *vs = ks + KEYS * wide;  // [QUERIES, hd], [KEYS, hd + 1], [KEYS, hd]
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, kv = head * p.kv_heads / p.heads;
    const u32 t0 = blockIdx.x * QUERIES, last = min(t0 + QUERIES, p.tokens) - 1;
    for (u32 i = threadIdx.x; i < QUERIES * hd; i += 128) {
        const u32 t = min(t0 + i / hd, p.tokens - 1);
        qs[i] = p.q_out[(size_t(t) * p.heads + head) * hd + i % hd];
    }
    float gathered[MINE][I] = {}, top[MINE], sum[MINE] = {}, spread[MINE] = {};  // spread: Σ e^{x − m} (x − m)
#pragma unroll
    for (int q = 0; q < MINE; q++) top[q] = -INFINITY;
    auto seen_from = [&](u32 position) { return p.window && position + 1 > p.window ? position + 1 - p.window : 0; };
    const u32 end = p.first + last + 1;
    for (u32 s0 = seen_from(p.first + t0) / KEYS * KEYS; s0 < end; s0 += KEYS) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < KEYS * hd; i += 128) {
            const u32 s = s0 + i / hd, d = i % hd;
            const size_t at = (size_t(s) * p.kv_heads + kv) * hd + d;
            ks[i / hd * wide + d] = s < end ? p.keys[at] : 0.0f;
            vs[i] = s < end ? p.values[at] : 0.0f;
        }
        __syncthreads();
        float score[MINE] = {};
        for (u32 d = 0; d < hd; d++) {
            const float k = ks[lane * wide + d];
#pragma unroll
            for (int q = 0; q < MINE; q++) score[q] = fmaf(qs[(warp * MINE + q) * hd + d], k, score[q]);
        }
#pragma unroll
        for (int q = 0; q < MINE; q++) {
            const u32 position = p.first + t0 + warp * MINE + q, s = s0 + lane;
            const bool on = s <= position && s >= seen_from(position);
            const float x = on ? score[q] * p.scale : -INFINITY, m = fmaxf(top[q], warp_max(x));
            if (m == -INFINITY) { score[q] = 0.0f; continue; }
            const float shrink = exp2_fast((top[q] - m) * LOG2_E), e = on ? exp2_fast((x - m) * LOG2_E) : 0.0f;
            spread[q] = (shrink > 0.0f ? shrink * (spread[q] + (top[q] - m) * sum[q]) : 0.0f) + warp_sum(on ? e * (x - m) : 0.0f);
            sum[q] = sum[q] * shrink + warp_sum(e), top[q] = m, score[q] = e;
#pragma unroll
            for (int i = 0; i < I; i++) gathered[q][i] *= shrink;
        }
        for (u32 s = 0; s < KEYS; s++) {
            float e[MINE];
#pragma unroll
            for (int q = 0; q < MINE; q++) e[q] = __shfl_sync(FULL, score[q], s);
#pragma unroll
            for (int i = 0; i < I; i++) {
                const float v = i * 32 + lane < hd ? vs[s * hd + i * 32 + lane] : 0.0f;
#pragma unroll
                for (int q = 0; q < MINE; q++) gathered[q][i] = fmaf(e[q], v, gathered[q][i]);
            }
        }
    }
#pragma unroll
    for (int q = 0; q < MINE; q++) {
        const u32 t = t0 + warp * MINE + q;
        if (t >= p.tokens) continue;
#pragma unroll
        for (int i = 0; i < I; i++)
            if (i * 32 + lane < hd) p.y[(size_t(t) * p.heads + head) * hd + i * 32 + lane] = gathered[q][i] / sum[q];
        if (lane == 0) p.entropy[size_t(t) * p.heads + head] = (logf(sum[q]) - spread[q] / sum[q]) * LOG2_E;
    }
}
#define ATTEND(I)                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(128) prompt_attend_##I(const __grid_constant__ PromptAttentionParams p) { attend<I>(p); }
ATTEND(1)
ATTEND(2)
ATTEND(4)
ATTEND(8)
