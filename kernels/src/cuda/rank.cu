// What softmax over logits comes to, and the most likely tokens: a block a row, read twice. The first time each of 128 groups of threads
// finds its largest; the K-th largest of those is a threshold that at least K logits reach, and few more do. They are gathered while the
// exponentials are summed, and ordered by counting, for each, how many come before it.
//
// A single row is cut into parts, a block each; the block that ends last ranks what the parts have found.
#include "common.cuh"

struct RankParams {
    const float *logits;  // [T, V]
    const u32 *next;      // [T]: the token after each; beyond V none
    float *out;           // [T, 3 + 2 K]: ln Σ eˣ, entropy in bits, the logit of `next`, then (id as bits, logit) by rank
    u64 *part_keys;       // [parts, K]
    float *part_sums;     // [parts, 3]: the largest, Σ e^{x − largest}, Σ e^{x − largest} (x − largest)
    u32 *ended;           // 0 before and after
    u32 vocab, count, parts, pad;
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

struct Room {
    u64 groups[GROUPS], list[ROOM], threshold, most;
    u32 found;
};

// The `count` largest of n keys to put(rank, key), 0 where there are fewer; each key is seen(i, largest) once. Ends in step.
template <typename Keys, typename Seen, typename Put> DEVICE void select(Room &room, u32 n, u32 count, Keys keys, Seen seen, Put put) {
    const u32 i = threadIdx.x, together = blockDim.x / GROUPS;
    u64 best = 0;
#pragma unroll 8
    for (u32 at = i; at < n; at += blockDim.x) best = larger(best, keys(at));
    for (u32 step = together / 2; step; step >>= 1) best = larger(best, __shfl_xor_sync(FULL, best, step));
    if (i % together == 0) room.groups[i / together] = best;
    if (i == 0) room.found = 0;
    __syncthreads();
    if (i < GROUPS) {
        u32 before = 0;
        const u64 own = room.groups[i];
#pragma unroll 8
        for (u32 j = 0; j < GROUPS; j++) before += room.groups[j] > own || (room.groups[j] == own && j < i);
        if (before == 0) room.most = own;
        if (before + 1 == max(count, 1)) room.threshold = larger(own, 1);
    }
    __syncthreads();
    const float top = value(room.most);
    const u64 least = room.threshold;
#pragma unroll 8
    for (u32 at = i; at < n; at += blockDim.x) {
        const u64 own = keys(at);
        seen(at, top);
        if (own >= least) {
            const u32 place = atomicAdd(&room.found, 1);
            if (place < ROOM) room.list[place] = own;
        }
    }
    __syncthreads();
    const u32 all = room.found;
    if (all <= ROOM) {
        for (u32 at = i; at < all; at += blockDim.x) {
            u32 before = 0;
            for (u32 j = 0; j < all; j++) before += room.list[j] > room.list[at];
            if (before < count) put(before, room.list[at]);
        }
        for (u32 rank = all + i; rank < count; rank += blockDim.x) put(rank, 0);
    } else {
        // Many equals: one after the other.
        u64 bound = ~u64(0);
        for (u32 rank = 0; rank < count; rank++) {
            best = 0;
            for (u32 at = i; at < n; at += blockDim.x) {
                const u64 own = keys(at);
                if (own < bound) best = larger(best, own);
            }
#pragma unroll
            for (int step = 16; step; step >>= 1) best = larger(best, __shfl_xor_sync(FULL, best, step));
            __syncthreads();
            if (i % 32 == 0) room.list[i / 32] = best;
            __syncthreads();
            bound = 0;
            for (u32 j = 0; j < blockDim.x / 32; j++) bound = larger(bound, room.list[j]);
            if (i == 0) put(rank, bound);
        }
    }
    __syncthreads();
}

struct Sums {
    float top, sum, inner;
};
DEVICE void report(const RankParams &p, float *out, const float *row, u32 next, Sums s) {
    out[0] = isinf(s.top) ? s.top : s.top + logf(s.sum);
    out[1] = isinf(s.top) ? 0.0f : fmaxf(logf(s.sum) - s.inner / s.sum, 0.0f) * LOG2_E;
    out[2] = next < p.vocab ? row[next] : 0.0f;
}
DEVICE void put_ranked(float *out, u32 rank, u64 key) {
    out[3 + 2 * rank] = __uint_as_float(key ? ~u32(key) : 0xffffffffu), out[4 + 2 * rank] = value(key);
}
// The sums of `n` logits from `from` on, and their largest to put. In every thread.
template <typename Put> DEVICE Sums read(Room &room, float *scratch, const float *row, u32 from, u32 n, u32 count, Put put) {
    float sum = 0.0f, inner = 0.0f;
    auto seen = [&](u32 at, float top) {
        const float above = row[from + at] - top, e = expf(above);
        if (e > 0.0f) sum += e, inner = fmaf(e, above, inner);
    };
    select(room, n, count, [&](u32 at) { return key(row[from + at], from + at); }, seen, put);
    sum = block_sum(sum, scratch);
    __syncthreads();
    return {value(room.most), sum, block_sum(inner, scratch)};
}

extern "C" __global__ void __launch_bounds__(THREADS) rank_rows(const __grid_constant__ RankParams p) {
    __shared__ float scratch[32];
    __shared__ Room room;
    wait_for_previous();
    const float *row = p.logits + size_t(blockIdx.x) * p.vocab;
    float *out = p.out + size_t(blockIdx.x) * (3 + 2 * p.count);
    const Sums sums = read(room, scratch, row, 0, p.vocab, p.count, [&](u32 rank, u64 key) { put_ranked(out, rank, key); });
    if (threadIdx.x == 0) report(p, out, row, p.next[blockIdx.x], sums);
}

extern "C" __global__ void __launch_bounds__(256) rank_row(const __grid_constant__ RankParams p) {
    __shared__ float scratch[32];
    __shared__ Room room;
    __shared__ bool last;
    let_next_start();
    wait_for_previous();
    const u32 next = p.next[0];
    const u32 part = blockIdx.x, wide = (p.vocab + p.parts - 1) / p.parts, from = min(part * wide, p.vocab), n = min(wide, p.vocab - from);
    u64 *keys = p.part_keys + part * p.count;
    const Sums own = read(room, scratch, p.logits, from, n, p.count, [&](u32 rank, u64 key) { keys[rank] = key; });
    if (threadIdx.x == 0) p.part_sums[3 * part] = own.top, p.part_sums[3 * part + 1] = own.sum, p.part_sums[3 * part + 2] = own.inner;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(p.ended, 1) + 1 == p.parts;
    __syncthreads();
    if (!last) return;
    __threadfence();
    // A part a lane of each warp; asked for before it is needed.
    const u32 lane = threadIdx.x % 32;
    const bool there = lane < p.parts;
    const float *of = p.part_sums + 3 * lane;
    const float top = there ? __ldcg(of) : -INFINITY, part_sum = there ? __ldcg(of + 1) : 0.0f, part_inner = there ? __ldcg(of + 2) : 0.0f;
    select(room, p.parts * p.count, p.count, [&](u32 at) { return __ldcg(p.part_keys + at); }, [](u32, float) {},
           [&](u32 rank, u64 key) { put_ranked(p.out, rank, key); });
    if (threadIdx.x >= 32) return;
    const float most = warp_max(top), down = top - most, shrink = there && top > -INFINITY ? expf(down) : 0.0f;
    const float sum = shrink > 0.0f ? shrink * part_sum : 0.0f;
    const float inner = shrink > 0.0f ? shrink * (part_inner + down * part_sum) : 0.0f;
    const Sums all = {most, warp_sum(sum), warp_sum(inner)};
    if (threadIdx.x == 0) report(p, p.out, p.logits, next, all), *p.ended = 0;
}

struct DrawParams {
    const float *logits;  // [V]
    u32 *token;           // [1]; or the sum of all weights, [2]
    double uniform;       // in [0, 1)
    u32 vocab;
    float temperature;
    u32 total_only, pad;
};

// eˣ with the very bits of cpu/vector.rs on a processor with fused multiply-adds. x is no NaN.
DEVICE float exp_as_there(float x) {
    x = fmaxf(-110.0f, fminf(90.0f, x));
    const float n = rintf(__fmul_rn(x, 1.44269504088896340736f));
    float r = __fmaf_rn(n, -0.693359375f, x);
    r = __fmaf_rn(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = __fmaf_rn(p, r, 1.3982e-3f), p = __fmaf_rn(p, r, 8.333452e-3f), p = __fmaf_rn(p, r, 4.1665796e-2f);
    p = __fmaf_rn(p, r, 1.6666665e-1f), p = __fmaf_rn(p, r, 0.5f);
    p = __fadd_rn(__fmaf_rn(__fmul_rn(r, r), p, r), 1.0f);
    const float half = rintf(__fmul_rn(n, 0.5f));
    auto power = [](float whole) { return __uint_as_float(u32(int(whole) + 127) << 23); };
    return __fmul_rn(__fmul_rn(p, power(half)), power(__fsub_rn(n, half)));
}

constexpr u32 STRETCH = 64, AT_ONCE = 256;  // logits, and stretches whose weights lie in shared memory together

// One token of softmax(logits / temperature), as the engine's sampler draws it: weights are added up in stretches of 64, in order, the
// stretches in f64, in order; the stretch is found first, then the token in it.
extern "C" __global__ void __launch_bounds__(1024) draw(const __grid_constant__ DrawParams p) {
    extern __shared__ __align__(8) float weights[];  // [AT_ONCE, STRETCH + 1], so that the stretches of a warp meet no bank twice
    __shared__ float scratch[32];
    __shared__ u32 found;
    __shared__ double left;
    double *sums = reinterpret_cast<double *>(weights + AT_ONCE * (STRETCH + 1));  // [stretches, up to eight more]
    const u32 stretches = (p.vocab + STRETCH - 1) / STRETCH;
    wait_for_previous();
    auto finite = [&](u32 i) {
        const float x = p.logits[i];
        return isfinite(x) ? x : -INFINITY;
    };
    float most = -INFINITY;
#pragma unroll 8
    for (u32 i = threadIdx.x; i < p.vocab; i += blockDim.x) most = fmaxf(most, finite(i));
    most = warp_max(most);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = most;
    __syncthreads();
    const float peak = warp_max(scratch[threadIdx.x % 32]);
    if (peak == -INFINITY) {
        if (threadIdx.x < (p.total_only ? 2 : 1)) p.token[threadIdx.x] = 0;
        return;
    }
    auto weight = [&](u32 i) { return exp_as_there(__fdiv_rn(__fsub_rn(finite(i), peak), p.temperature)); };
    for (u32 s0 = 0; s0 < stretches; s0 += AT_ONCE) {
        const u32 from = s0 * STRETCH, count = min(p.vocab - from, AT_ONCE * STRETCH);
#pragma unroll 4
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) weights[i + i / STRETCH] = weight(from + i);
        __syncthreads();
        if (threadIdx.x < AT_ONCE && s0 + threadIdx.x < stretches) {
            float sum = 0.0f;
            const u32 own = min(count - threadIdx.x * STRETCH, STRETCH);
#pragma unroll 8
            for (u32 i = 0; i < own; i++) sum = __fadd_rn(sum, weights[threadIdx.x * (STRETCH + 1) + i]);
            sums[s0 + threadIdx.x] = sum;
        }
        __syncthreads();
    }
    constexpr u32 AHEAD = 8;  // what is read of the sums before it is needed
    if (threadIdx.x < AHEAD) sums[stretches + threadIdx.x] = 0.0;
    __syncthreads();
    if (threadIdx.x == 0) {
        double all = 0.0;
        for (u32 s = 0; s < stretches; s += AHEAD) {
            double next[AHEAD];
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) next[i] = sums[s + i];
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) all = __dadd_rn(all, next[i]);
        }
        if (p.total_only) p.token[0] = __double2loint(all), p.token[1] = __double2hiint(all);
        // The first stretch that is not used up, or the last.
        double remaining = __dmul_rn(p.uniform, all);
        bool over = false;
        found = stretches - 1;
        for (u32 s = 0; s + 1 < stretches && !over; s += AHEAD) {
            double next[AHEAD], before[AHEAD + 1];
            before[0] = remaining;
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) next[i] = sums[s + i];
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) before[i + 1] = __dsub_rn(before[i], next[i]);
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++)
                if (!over && (before[i] < next[i] || s + i + 1 >= stretches)) over = true, found = s + i, remaining = before[i];
            if (!over) remaining = before[AHEAD];
        }
        left = remaining;
    }
    if (p.total_only) return;
    __syncthreads();
    // The weights of the stretch, and of those after it, should rounding lead beyond its end.
    u32 last = 0;
    double remaining = left;
    for (u32 from = found * STRETCH; from < p.vocab; from += STRETCH) {
        __syncthreads();
        if (threadIdx.x < STRETCH && from + threadIdx.x < p.vocab) weights[threadIdx.x] = weight(from + threadIdx.x);
        __syncthreads();
        bool done = false;
        for (u32 i = 0; i < STRETCH && from + i < p.vocab; i++) {
            const float w = weights[i];
            if (!(w > 0.0f)) continue;
            last = from + i;
            if (remaining < double(w)) {
                done = true;
                break;
            }
            remaining = __dsub_rn(remaining, double(w));
        }
        if (done) break;
    }
    if (threadIdx.x == 0) *p.token = last;
}
