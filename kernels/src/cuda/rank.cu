// What softmax over logits comes to, and the most likely tokens: a block a row, read twice. The first time each of 128 groups of threads
// finds its largest; the K-th largest of those is a threshold that at least K logits reach, and few more do. They are gathered while the
// exponentials are summed, and ordered by counting, for each, how many come before it.
#include "common.cuh"

struct RankParams {
    const float *logits;  // [T, V]
    const u32 *next;      // [T]: the token after each; beyond V none
    float *out;           // [T, 3 + 2 K]: ln Σ eˣ, entropy in bits, the logit of `next`, then (id as bits, logit) by rank
    u32 vocab, count;
};

constexpr u32 THREADS = 1024, GROUPS = 128, ROOM = 512;

// Orders as logits do, equals by id, the earlier one larger; a NaN is 0 and never counts. −0 and 0 are equals.
DEVICE u64 key(float x, u32 id) {
    const u32 bits = __float_as_uint(x + 0.0f);
    return x != x ? 0 : u64(bits & 0x80000000u ? ~bits : bits | 0x80000000u) << 32 | u32(~id);
}
DEVICE float value(u64 key) {
    const u32 bits = key >> 32;
    return key ? __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits) : -INFINITY;
}
DEVICE u64 larger(u64 a, u64 b) { return a > b ? a : b; }

extern "C" __global__ void __launch_bounds__(THREADS) rank_rows(const __grid_constant__ RankParams p) {
    __shared__ float scratch[32];
    __shared__ u64 groups[GROUPS], list[ROOM], threshold, most;
    __shared__ u32 found;
    const float *row = p.logits + size_t(blockIdx.x) * p.vocab;
    float *out = p.out + size_t(blockIdx.x) * (3 + 2 * p.count);
    const u32 i = threadIdx.x;
    u64 best = 0;
#pragma unroll 8
    for (u32 id = i; id < p.vocab; id += THREADS) best = larger(best, key(row[id], id));
#pragma unroll
    for (int step = 4; step; step >>= 1) best = larger(best, __shfl_xor_sync(FULL, best, step));
    if (i % 8 == 0) groups[i / 8] = best;
    if (i == 0) found = 0;
    __syncthreads();
    if (i < GROUPS) {
        u32 before = 0;
        const u64 own = groups[i];
#pragma unroll 8
        for (u32 j = 0; j < GROUPS; j++) before += groups[j] > own || (groups[j] == own && j < i);
        if (before == 0) most = own;
        if (before + 1 == max(p.count, 1)) threshold = larger(own, 1);
    }
    __syncthreads();
    const float top = value(most);
    const u64 least = threshold;
    float sum = 0.0f, inner = 0.0f;
#pragma unroll 8
    for (u32 id = i; id < p.vocab; id += THREADS) {
        const float x = row[id], above = x - top, e = expf(above);
        if (e > 0.0f) sum += e, inner = fmaf(e, above, inner);
        const u64 own = key(x, id);
        if (own >= least) {
            const u32 at = atomicAdd(&found, 1);
            if (at < ROOM) list[at] = own;
        }
    }
    sum = block_sum(sum, scratch);
    __syncthreads();
    inner = block_sum(inner, scratch);
    const u32 all = found;
    if (i == 0) {
        const u32 next = p.next[blockIdx.x];
        out[0] = isinf(top) ? top : top + logf(sum);
        out[1] = isinf(top) ? 0.0f : fmaxf(logf(sum) - inner / sum, 0.0f) * LOG2_E;
        out[2] = next < p.vocab ? row[next] : 0.0f;
    }
    auto put = [&](u32 rank, u64 key) {
        out[3 + 2 * rank] = __uint_as_float(key ? ~u32(key) : 0xffffffffu), out[4 + 2 * rank] = value(key);
    };
    if (all <= ROOM) {
        for (u32 at = i; at < all; at += THREADS) {
            u32 before = 0;
            for (u32 j = 0; j < all; j++) before += list[j] > list[at];
            if (before < p.count) put(before, list[at]);
        }
        for (u32 rank = all + i; rank < p.count; rank += THREADS) put(rank, 0);
        return;
    }
    // Many equals: one after the other.
    u64 bound = ~u64(0);
    for (u32 rank = 0; rank < p.count; rank++) {
        best = 0;
        for (u32 id = i; id < p.vocab; id += THREADS) {
            const u64 own = key(row[id], id);
            if (own < bound) best = larger(best, own);
        }
#pragma unroll
        for (int step = 16; step; step >>= 1) best = larger(best, __shfl_xor_sync(FULL, best, step));
        __syncthreads();
        if (i % 32 == 0) list[i / 32] = best;
        __syncthreads();
        bound = 0;
        for (u32 j = 0; j < THREADS / 32; j++) bound = larger(bound, list[j]);
        if (i == 0) put(rank, bound);
    }
}
