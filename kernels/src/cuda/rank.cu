// What softmax over logits comes to, and the most likely tokens: a block a row. Each thread keeps the best of its own stretch, and only
// the winner's thread looks for its next one.
#include "common.cuh"

struct RankParams {
    const float *logits;  // [T, V]
    const u32 *next;      // [T]: the token after each; beyond V none
    float *out;           // [T, 3 + 2 K]: ln Σ eˣ, entropy in bits, the logit of `next`, then (id as bits, logit) by rank
    u32 vocab, count;
};

constexpr int THREADS = 1024;

struct Best {
    float value;
    u32 id;
};
// Larger, or equal and earlier.
DEVICE bool before(Best a, Best b) { return a.value > b.value || (a.value == b.value && a.id < b.id); }
DEVICE Best warp_best(Best best) {
#pragma unroll
    for (int step = 16; step; step >>= 1) {
        const Best other = {__shfl_xor_sync(FULL, best.value, step), __shfl_xor_sync(FULL, best.id, step)};
        if (before(other, best)) best = other;
    }
    return best;
}

extern "C" __global__ void __launch_bounds__(THREADS) rank_rows(const __grid_constant__ RankParams p) {
    __shared__ float scratch[32];
    __shared__ Best bests[32];
    __shared__ Best winner;
    const float *row = p.logits + size_t(blockIdx.x) * p.vocab;
    float *out = p.out + size_t(blockIdx.x) * (3 + 2 * p.count);
    const Best none = {-INFINITY, 0xffffffffu};
    auto own = [&](Best bound, bool bounded) {
        Best best = none;
        for (u32 i = threadIdx.x; i < p.vocab; i += THREADS) {
            const Best here = {row[i], i};
            // A NaN is before nothing.
            if (here.value == here.value && (!bounded || before(bound, here)) && (before(here, best) || best.id == none.id)) best = here;
        }
        return best;
    };
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Best mine = own(none, false);
    float top = -INFINITY;
    for (u32 rank = 0; rank < p.count || rank == 0; rank++) {
        const Best best = warp_best(mine);
        if (lane == 0) bests[warp] = best;
        __syncthreads();
        if (warp == 0) {
            const Best all = warp_best(bests[lane]);
            if (lane == 0) {
                winner = all;
                if (rank < p.count) out[3 + 2 * rank] = __uint_as_float(all.id), out[4 + 2 * rank] = all.value + 0.0f;
            }
        }
        __syncthreads();
        const Best won = winner;
        if (rank == 0) top = won.value;
        if (won.id % THREADS == threadIdx.x && won.id != none.id) mine = own(won, true);
        __syncthreads();
    }
    float sum = 0.0f, inner = 0.0f;
    for (u32 i = threadIdx.x; i < p.vocab; i += THREADS) {
        const float x = row[i] - top, e = expf(x);
        if (e > 0.0f) sum += e, inner += e * x;
    }
    sum = block_sum(sum, scratch);
    __syncthreads();
    inner = block_sum(inner, scratch);
    if (threadIdx.x == 0) {
        const u32 next = p.next[blockIdx.x];
        out[0] = top + logf(sum), out[1] = fmaxf(logf(sum) - inner / sum, 0.0f) * LOG2_E;
        out[2] = next < p.vocab ? row[next] : 0.0f;
    }
}
