// What both kernels of token_hopper.cu are made of: the ring of weights, and the exchange of small vectors between all blocks.
#pragma once
#include "ring.cuh"

// Warps of a block that multiply, that do what is between the products, and that fetches weights.
constexpr u32 STREAMING = 8, RECURRING = 7, FETCHING = 1;
constexpr u32 BOTH = 32 * (STREAMING + RECURRING), TOKEN_THREADS = BOTH + 32 * FETCHING;
constexpr u32 MOST_CHANNELS = 40, MOST_BLOCKS = 160;

// What a layer has, and where it leaves what it makes (see step.cu and linear.cuh for shapes).
struct TokenLayer {
    const void *in, *out, *x, *dt;  // x of Mamba, to δ, B and C, turned: [e, rank + 2n]
    const float *norm, *gated_norm, *conv_weight, *conv_bias, *dt_bias, *a, *d;
    float *state, *history;
    float *projected, *convolved, *activated, *dbc, *delta, *key, *query, *core, *gated, *output, *resid;
};
constexpr u32 LAYER_WORDS = sizeof(TokenLayer) / 8;

struct TokenParams {
    const TokenLayer *layers;
    u64 *exchange;  // see `Exchange`; zeros at first
    u32 *epoch;     // [1]: no two launches begin with the same; 1 at first
    u32 token, pad;  // the row of the embeddings
    const void *embeddings;  // [.., d]
    const float *final_norm;
    const void *head;  // [vocab, d], or null
    float *logits;
    u32 count, d, e, n;
    u32 rank, heads, taps, vocab;  // rank of Mamba-1, heads of Mamba-2
    u32 split, split_out;          // log2 of the warps that share a row of d, and of e
    u32 slots, under_way;          // pieces in the ring of a warp, and on their way at most
    // Where in shared memory, in bytes, these lie, after the barriers of the rings: pointers to the layers' matrices and norms
    // [count, 4]; two layers; a vector; sums of rows; what small vector a layer passes on; the rings. Multiples of 16, the last of 128.
    u32 pointers_at, layer_at, x_at, sums_at, small_at, ring_at;
    float eps, gated_eps, final_eps, output_scale;
    float residual_scale, logits_scale, dt_low, dt_high;
    float embedding_scale, pad2;
};

// The number of a thread, which the compiler takes for a new one at each call: what follows from it is computed again, not kept in registers
// that are needed, or in local memory, which is far away here.
DEVICE u32 thread() {
    u32 t;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
    return t;
}

// Blocks pass each other vectors whose numbers carry their own flag, so that who reads a number knows that it is this layer's and of
// this token: {number, flag} in 64 bits, which are read and written as one.
DEVICE void publish(u64 *to, float value, u32 flag) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(u64(flag) << 32 | __float_as_uint(value)) : "memory");
}
// Where `on` is false nothing is read.
DEVICE void peek(u64 (&x)[1], const u64 *from, bool on) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n@p ld.relaxed.gpu.global.u64 %0, [%1];\n}" : "+l"(x[0]) : "l"(from), "r"(u32(on)) : "memory");
}
DEVICE void peek(u64 (&x)[2], const u64 *from, bool on) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n@p ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];\n}"
                 : "+l"(x[0]), "+l"(x[1])
                 : "l"(from), "r"(u32(on))
                 : "memory");
}
// Waits for those of N numbers, or pairs of them, that `late` has a bit for: all are asked for at once, and those that were not there again.
template <u32 N, u32 WIDTH, typename At> DEVICE void await(u64 (&x)[N][WIDTH], u32 flag, u32 late, At &&at) {
#pragma unroll 1
    while (late) {
#pragma unroll
        for (u32 k = 0; k < N; k++) peek(x[k], at(k), late >> k & 1);
#pragma unroll
        for (u32 k = 0; k < N; k++) {
            bool there = true;
#pragma unroll
            for (u32 i = 0; i < WIDTH; i++) there = there && u32(x[k][i] >> 32) == flag;
            if (there) late &= ~(1u << k);
        }
    }
}
DEVICE float number(u64 x) { return __uint_as_float(u32(x)); }
DEVICE void to_l2(const void *from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

template <u32 COUNT> DEVICE void meet(u32 id) { asm volatile("barrier.sync %0, %1;" ::"r"(id), "n"(COUNT) : "memory"); }
template <u32 COUNT> DEVICE void arrive(u32 id) { asm volatile("barrier.arrive %0, %1;" ::"r"(id), "n"(COUNT) : "memory"); }
// Barriers: among some warps; sums of those rows are there; this block has given away its part of that; z ⊙ y of all has arrived; the
// streaming warps have begun.
constexpr u32 AMONG_STREAMING = 1, AMONG_RECURRING = 2, EXTRA = 3, X = 4, Z = 5, OUT = 6, GATED = 7, RESIDUAL = 8, GATHERED = 9, BEGUN = 10;

// Four elements as they lie in memory.
template <typename W> struct Four {
    u32 raw[sizeof(W)];
    DEVICE void zero() {
#pragma unroll
        for (int i = 0; i < int(sizeof(W)); i++) raw[i] = 0;
    }
    DEVICE void load_once(const W *from) {
#pragma unroll
        for (int i = 0; i < int(sizeof(W)); i += 2)
            asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(raw[i]), "=r"(raw[i + 1]) : "l"(reinterpret_cast<const u32 *>(from) + i));
    }
    DEVICE void widen(float (&out)[4]) const {
        const W *elements = reinterpret_cast<const W *>(raw);
#pragma unroll
        for (int i = 0; i < 4; i++) out[i] = to_float(elements[i]);
    }
};

// What of `all` things, in units, a block has.
struct Share {
    u32 from, count;
    DEVICE Share() : from(0), count(0) {}
    DEVICE Share(u32 all, u32 unit) {
        const u32 units = all / unit;
        from = u32(u64(units) * blockIdx.x / gridDim.x) * unit;
        count = u32(u64(units) * (blockIdx.x + 1) / gridDim.x) * unit - from;
    }
};

// Rows of a matrix, whose sums a block makes; 2^split warps share a row.
struct Rows {
    const void *weight;  // [.., cols]
    Share share;
    u32 cols, split;
};

// Weights come through a ring of `slots` pieces of 256 J elements for each streaming warp.
template <typename W, int J> struct Ring {
    static constexpr u32 PIECE = 256 * J, BYTES = PIECE * sizeof(W);
    unsigned char *shared;
    u32 data, slots;  // offsets in shared memory; barriers are at its start: full, then empty ones, by warp and slot

    DEVICE u32 full(u32 warp) const { return shared_address(shared) + 8 * warp * slots; }
    DEVICE u32 empty(u32 warp) const { return full(warp) + 8 * STREAMING * slots; }
    DEVICE u32 start(u32 warp) const { return data + warp * slots * BYTES; }

    // Keeps the rings full: lane w that of warp w. No more than `under_way` pieces of each are on their way at a time, since whatever
    // else is read from memory waits behind them. `segments` gives the runs of rows in order.
    template <typename F> DEVICE void fetch(u32 lane, u32 under_way, F &&segments) const {
        u32 segment = 0, v = 0, issued = 0, slot = 0, parity = 1, first = 0, first_parity = 0;
        Rows rows = {nullptr, Share(), 0, 0};
        const u32 full = this->full(lane), empty = this->empty(lane), to = shared_address(shared) + start(lane);
        bool more = lane < STREAMING;
#pragma unroll 1
        while (__any_sync(FULL, more)) {
#pragma unroll 1
            while (more && v >= rows.share.count) {
                more = segments(segment++, rows);
                v = lane >> rows.split;
            }
            if (more && passed(empty + 8 * slot, parity) && (issued < under_way || passed(full + 8 * first, first_parity))) {
                const u32 part = lane & ((1u << rows.split) - 1);
                const W *from = static_cast<const W *>(rows.weight) + size_t(rows.share.from + v) * rows.cols + part * PIECE;
                expect_bytes(full + 8 * slot, BYTES);
                fetch_bytes(to + slot * BYTES, from, BYTES, full + 8 * slot);
                v += STREAMING >> rows.split;
                if (++slot == slots) slot = 0, parity ^= 1;
                if (issued++ >= under_way && ++first == slots) first = 0, first_parity ^= 1;
            }
            __syncwarp();
        }
    }
};

// The part of one warp in multiplying.
template <typename W, int J> struct Stream {
    static constexpr u32 BYTES = Ring<W, J>::BYTES;
    const uint4 *ring;
    u32 full, empty, slots, slot, parity;

    DEVICE Stream(const Ring<W, J> &of, u32 warp) : slots(of.slots), slot(0), parity(0) {
        full = of.full(warp), empty = of.empty(warp);
        ring = reinterpret_cast<const uint4 *>(of.shared + of.start(warp));
    }

    // Where the next piece lies, once it has come, and the barrier by which its place is given back.
    DEVICE const uint4 *next(u32 &done) {
        wait_for(full + 8 * slot, parity);
        const uint4 *piece = ring + slot * (BYTES / 16);
        done = empty + 8 * slot;
        if (++slot == slots) slot = 0, parity ^= 1;
        return piece;
    }
    DEVICE static void read(Eight<W> (&w)[J], const uint4 *piece, u32 lane) {
#pragma unroll
        for (int j = 0; j < J; j++)
#pragma unroll
            for (int k = 0; k < int(sizeof(W) / 2); k++) w[j].raw[k] = piece[(j * 32 + lane) * (sizeof(W) / 2) + k];
    }

    // Sums of `count` rows with x: [count, 2^split] to `sums`. Two rows at a time, whose chains of sums go side by side.
    DEVICE void rows(u32 count, u32 split, const float (&x)[J][8], float *sums) {
        const u32 me = thread(), warp = me / 32, lane = me % 32, part = warp & ((1u << split) - 1), step = STREAMING >> split;
#pragma unroll 1
        for (u32 v = warp >> split; v < count; v += 2 * step) {
            const bool two = v + step < count;
            Eight<W> a[J], b[J];
            u32 done[2] = {};
            read(a, next(done[0]), lane);
            if (two) read(b, next(done[1]), lane);
            else
#pragma unroll
                for (int j = 0; j < J; j++) b[j].zero();
            // Only when all lanes have their numbers may the copy engine write there again.
            end_reads();
            __syncwarp();
            if (lane == 0) {
                arrive_at(done[0]);
                if (two) arrive_at(done[1]);
            }
            float sum[2][2] = {};
#pragma unroll
            for (int j = 0; j < J; j++) {
                float wide[2][8];
                a[j].widen(wide[0]), b[j].widen(wide[1]);
#pragma unroll
                for (int i = 0; i < 8; i++) sum[0][i % 2] += wide[0][i] * x[j][i], sum[1][i % 2] += wide[1][i] * x[j][i];
            }
            // The halves of the warp add up a row each.
            const bool low = lane < 16;
            const float first = sum[0][0] + sum[0][1], second = sum[1][0] + sum[1][1];
            float all = (low ? first : second) + __shfl_xor_sync(FULL, low ? second : first, 16);
#pragma unroll
            for (int far = 8; far; far >>= 1) all += __shfl_xor_sync(FULL, all, far);
            if (lane == 0) sums[(v << split) + part] = all;
            if (lane == 16 && two) sums[((v + step) << split) + part] = all;
        }
    }
};

// A vector that all blocks need, to shared memory, times `scale`; returns 1 / RMS if there is a scale. By all streaming warps; AT_ONCE
// pairs of numbers a thread in one go.
template <u32 AT_ONCE> DEVICE float gather(float *to, u32 count, const u64 *from, u32 flag, const float *scale, float eps, float *scratch) {
    constexpr u32 STEP = 32 * STREAMING;
    const u32 pairs = count / 2, me = thread();
    float square = 0.0f;
    meet<STEP>(AMONG_STREAMING);  // all have read what was there
#pragma unroll 1
    for (u32 first = me; first < pairs; first += STEP * AT_ONCE) {
        u64 x[AT_ONCE][2] = {};
        float2 scales[AT_ONCE];
        u32 there = 0;
        auto at = [&](u32 k) { return first + k * STEP; };
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; k++) {
            const bool on = at(k) < pairs;
            if (on) there |= 1u << k;
            scales[k] = scale && on ? reinterpret_cast<const float2 *>(scale)[at(k)] : make_float2(1, 1);
        }
        // Who waits asks for little: what all read at once is as much as weights come in that time.
#pragma unroll 1
        for (u32 now = 1; now; now = now == 1 ? ~1u : 0) await(x, flag, there & now, [&](u32 k) { return from + 2 * at(k); });
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; k++) {
            const float a = number(x[k][0]), b = number(x[k][1]);
            square += a * a + b * b;
            if (there >> k & 1)
                reinterpret_cast<float2 *>(to)[at(k)] = make_float2(a * scales[k].x, b * scales[k].y);
        }
    }
    if (scale) {
        square = warp_sum(square);
        if (me % 32 == 0) scratch[me / 32] = square;
    }
    meet<STEP>(AMONG_STREAMING);
    if (!scale) return 1.0f;
    square = 0.0f;
#pragma unroll
    for (u32 i = 0; i < STREAMING; i++) square += scratch[i];
    return rsqrtf(square / count + eps);
}

// The piece of a vector in shared memory that a warp's rows meet.
template <int J> DEVICE void take_piece(float (&x)[J][8], const float *from, u32 split, float factor) {
    const u32 me = thread(), warp = me / 32, lane = me % 32;
    const float4 *piece = reinterpret_cast<const float4 *>(from + (warp & ((1u << split) - 1)) * 256 * J);
#pragma unroll
    for (int j = 0; j < J; j++) {
        const float4 a = piece[(j * 32 + lane) * 2], b = piece[(j * 32 + lane) * 2 + 1];
        x[j][0] = a.x * factor, x[j][1] = a.y * factor, x[j][2] = a.z * factor, x[j][3] = a.w * factor;
        x[j][4] = b.x * factor, x[j][5] = b.y * factor, x[j][6] = b.z * factor, x[j][7] = b.w * factor;
    }
}

// The sum over the warps that shared a row.
DEVICE float together(const float *sums, u32 row, u32 split) {
    float sum = 0.0f;
#pragma unroll 1
    for (u32 i = 0; i < 1u << split; i++) sum += sums[(row << split) + i];
    return sum;
}

// Σ taps · (history, now), and the history moved on by one.
struct Convolution {
    float taps[4], past[3], bias;
    DEVICE void load(const TokenLayer &l, u32 c, u32 channels, u32 count) {
        bias = l.conv_bias ? l.conv_bias[c] : 0.0f;
#pragma unroll
        for (u32 j = 0; j < 4; j++) taps[j] = j < count ? l.conv_weight[c * count + j] : 0.0f;
#pragma unroll
        for (u32 j = 0; j < 3; j++) past[j] = j + 1 < count ? l.history[j * channels + c] : 0.0f;
    }
    DEVICE float run(const TokenLayer &l, u32 c, u32 channels, u32 count, float now) const {
        float out = bias;
#pragma unroll
        for (u32 j = 0; j < 4; j++)
            if (j + 1 < count) out += taps[j] * past[j < 3 ? j : 0];
            else if (j + 1 == count) out += taps[j] * now;
#pragma unroll
        for (u32 j = 0; j < 3; j++)
            if (j + 1 < count) l.history[j * channels + c] = j + 2 < count ? past[j < 2 ? j + 1 : 0] : now;
        return out;
    }
};
