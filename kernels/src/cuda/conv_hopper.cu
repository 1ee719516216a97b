// Depthwise causal convolution of many tokens on Hopper (sm_90a): four taps, bf16, with silu; and what it makes through a linear map of up
// to 192 rows while it is here, so that x is not read again.
//
//   u [T, stride] ─▶ convolution, silu ─▶ x [T, C] ─▶ X Wᵀ, W [N, C] ─▶ product [T, N]
//
// A thread asks the copy engine for u, 64 channels of a block's tokens and of the three before, and for taps and bias. A warp convolves 16
// tokens, two channels a lane, and leaves bf16 in shared memory as wgmma and the copy engine take it, from where it goes to memory and, with
// a product, meets the same 64 columns of W. There a block keeps its tokens, walks along the channels and holds the sums, in the order that
// the product alone has (gemm_hopper.cu), while the next channels are convolved; two blocks of a cluster share W. Without a product blocks
// take tiles of 128 tokens × 64 channels one after another.
//
// Tokens beyond the end read zeros and are not written. C is a multiple of 64, N of eight.
#include "gemm_hopper.cuh"

struct HopperConvParams {
    TensorMap u;           // boxes of 64 channels × tokens of a block + 3, as they lie
    TensorMap w;           // boxes of 64 × BN / 2
    TensorMap x, product;  // boxes of 64 × 64
    const __nv_bfloat16 *input;          // u [T, stride]
    const float *taps, *bias, *history;  // [C, 4], [C] or null, [3, C]
    float *next_history;                 // [3, C], not `history`
    u32 tokens, channels, stride, rows, silu;
    u32 pad;
};

constexpr u32 CHANNELS = 64, RUN = 16, TAPS = 4, ROOM = 64 * 128;  // tokens of a warp; bytes of 64 tokens of 64 channels

DEVICE float2 two_of(u32 pair) { return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)); }
DEVICE u32 pair_of(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const u32 *>(&pair);
}
// As `silu`, to the bit: zero where the exponential is infinite.
DEVICE float silu_of(float x) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + exp2_fast(-x * LOG2_E)));
    return x * inverse;
}
DEVICE void fetch_line(u32 to, const void *from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
                 "r"(barrier)
                 : "memory");
}
DEVICE void leave(const TensorMap &map, u32 column, u32 row, u32 from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];\ncp.async.bulk.commit_group;" ::"l"(&map),
                 "r"(column), "r"(row), "r"(from)
                 : "memory");
}

// BN: rows of W that are multiplied with, or 0. GROUPS warpgroups of 64 tokens each, and a warp that asks for what they read.
template <int BN, int GROUPS, int STAGES> DEVICE void convolve(const HopperConvParams &p) {
    constexpr bool PRODUCT = BN > 0;
    constexpr u32 BLOCK = 64 * GROUPS, W_BYTES = BN * 128, U_BYTES = (BLOCK + 3) * 128, TAP_BYTES = CHANNELS * TAPS * 4, BIAS_BYTES = CHANNELS * 4;
    constexpr u32 TAPS_AT = W_BYTES + U_BYTES, BIAS_AT = TAPS_AT + TAP_BYTES, STAGE = (BIAS_AT + BIAS_BYTES + 1023) / 1024 * 1024;
    extern __shared__ unsigned char memory[];
    __shared__ u64 barriers[2 * STAGES];
    const u32 base = (shared_address(memory) + 1023) / 1024 * 1024;
    const u32 rank = PRODUCT ? blockIdx.x % 2 : 0, group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    auto full = [&](u32 stage) { return shared_address(barriers + stage); };
    auto empty = [&](u32 stage) { return shared_address(barriers + STAGES + stage); };
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(full(s)));
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(empty(s)), "n"(GROUPS * (PRODUCT ? 2 : 1)));
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (PRODUCT) cluster_sync();
    else __syncthreads();
    let_next_start();
    wait_for_previous();
    // With a product a block has one row of tiles, else every so many of all.
    const u32 across = p.channels / CHANNELS, blocks = (p.tokens + BLOCK - 1) / BLOCK;
    const u32 first = PRODUCT ? blockIdx.x * across : blockIdx.x, beyond = PRODUCT ? first + across : blocks * across;
    const u32 by = PRODUCT ? 1 : gridDim.x;
    u32 stage = 0, parity = 0;
    auto advance = [&] {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    };
    if (group == GROUPS) {
        if (lane == 0)
            for (u32 tile = first; tile < beyond; tile += by, advance()) {
                const u32 to = base + stage * STAGE, column = tile % across * CHANNELS, barrier = full(stage);
                wait_for(empty(stage), parity ^ 1);
                expect_bytes(barrier, W_BYTES + U_BYTES + TAP_BYTES + (p.bias ? BIAS_BYTES : 0));
                // Three tokens before the text begins there are zeros.
                fetch(to + W_BYTES, p.u, column, tile / across * BLOCK - 3, barrier);
                if constexpr (PRODUCT) fetch_for_both(to + rank * (W_BYTES / 2), p.w, column, rank * (BN / 2), barrier);
                fetch_line(to + TAPS_AT, p.taps + column * TAPS, TAP_BYTES, barrier);
                if (p.bias) fetch_line(to + BIAS_AT, p.bias + column, BIAS_BYTES, barrier);
            }
        __syncwarp();
    } else {
        const u32 rooms = base + STAGES * STAGE + group * 2 * ROOM, row0 = warp * RUN;  // in the warpgroup's 64
        auto sync = [&] { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); };
        // Says to who writes there that a stage has been read.
        auto release = [&](u32 s) {
            if (PRODUCT && threadIdx.x % 128 < 2) arrive_at(empty(s), threadIdx.x % 128);
            if (!PRODUCT && threadIdx.x % 128 == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(empty(s)) : "memory");
        };
        float d[PRODUCT ? BN / 2 : 2];
        u32 room = rooms, before = 0;
        for (u32 tile = first; tile < beyond; tile += by, advance()) {
            const u32 from = base + stage * STAGE, column = tile % across * CHANNELS, t0 = tile / across * BLOCK + group * 64;
            wait_for(full(stage), parity);
            u32 raw[RUN + 3];
            const u32 u = from + W_BYTES + (group * 64 + row0) * 128 + lane * 4;
#pragma unroll
            for (int i = 0; i < RUN + 3; i++) asm volatile("ld.shared.u32 %0, [%1];" : "=r"(raw[i]) : "r"(u + i * 128));
            float w[2][TAPS];
#pragma unroll
            for (int c = 0; c < 2; c++)
                asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                             : "=f"(w[c][0]), "=f"(w[c][1]), "=f"(w[c][2]), "=f"(w[c][3])
                             : "r"(from + TAPS_AT + (2 * lane + c) * TAPS * 4));
            float2 bias = make_float2(0.0f, 0.0f), past[3];
            if (p.bias) asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(bias.x), "=f"(bias.y) : "r"(from + BIAS_AT + lane * 8));
#pragma unroll
            for (int j = 0; j < 3; j++) past[j] = two_of(raw[j]);
            if (t0 + row0 == 0)
#pragma unroll
                for (int j = 0; j < 3; j++) past[j] = *reinterpret_cast<const float2 *>(p.history + j * p.channels + column + 2 * lane);
            // All sums before all of silu, so that its long chains run side by side.
            float2 of[RUN];
#pragma unroll
            for (int i = 0; i < RUN; i++) {
                const float2 now = two_of(raw[i + 3]);
                of[i].x = fmaf(w[0][3], now.x, fmaf(w[0][2], past[2].x, fmaf(w[0][1], past[1].x, fmaf(w[0][0], past[0].x, bias.x))));
                of[i].y = fmaf(w[1][3], now.y, fmaf(w[1][2], past[2].y, fmaf(w[1][1], past[1].y, fmaf(w[1][0], past[0].y, bias.y))));
                past[0] = past[1], past[1] = past[2], past[2] = now;
            }
            if (p.silu)
#pragma unroll
                for (int i = 0; i < RUN; i++) of[i] = make_float2(silu_of(of[i].x), silu_of(of[i].y));
            u32 made[RUN];
#pragma unroll
            for (int i = 0; i < RUN; i++) made[i] = pair_of(of[i].x, of[i].y);
            // The room was last used two tiles ago: by a product that all warps had waited for at the barrier of the last tile, and by the copy
            // engine, which had read it then.
            if constexpr (PRODUCT) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
            for (int i = 0; i < RUN; i++)
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(room + (row0 + i) * 128 + ((lane / 4 ^ (i & 7)) << 4) + lane % 4 * 4), "r"(made[i]) : "memory");
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            if (threadIdx.x % 128 == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
            sync();
            if (!PRODUCT) release(stage);
            if (PRODUCT && tile > first) release(before);
            if (threadIdx.x % 128 == 0) leave(p.x, column, t0, room);
            if constexpr (PRODUCT) {
                const u64 a = descriptor(room), b = descriptor(from);
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (u32 k = 0; k < CHANNELS / 16; k++) multiply<BN>(d, a + 2 * k, b + 2 * k, tile - first + k);
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            }
            before = stage, room = rooms + (room == rooms ? ROOM : 0);
        }
        if constexpr (PRODUCT) {
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            // Sums are read only from here on.
#pragma unroll
            for (int i = 0; i < BN / 2; i++) asm volatile("" : "+f"(d[i])::"memory");
            const u32 t0 = first / across * BLOCK + group * 64, r = row0 + lane % 16;
#pragma unroll
            for (int g = 0; g < BN / 64; g++) {
                if (threadIdx.x % 128 == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
                sync();
                const u32 to = rooms + g % 2 * ROOM;
#pragma unroll
                for (int j = 0; j < 8; j += 2) {
                    const float *of = d + 32 * g + 4 * j;
                    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to + r * 128 + (((j + lane / 16) ^ (r & 7)) << 4)),
                                 "r"(pair_of(of[0], of[1])), "r"(pair_of(of[2], of[3])), "r"(pair_of(of[4], of[5])), "r"(pair_of(of[6], of[7]))
                                 : "memory");
                }
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                sync();
                if (threadIdx.x % 128 == 0 && g * 64 < p.rows) leave(p.product, g * 64, t0, to);
            }
        }
        // What the next call needs.
        for (u32 c = blockIdx.x * (128 * GROUPS) + threadIdx.x; c < p.channels; c += gridDim.x * (128 * GROUPS))
#pragma unroll
            for (int j = 0; j < 3; j++) {
                const int t = int(p.tokens) + j - 3;
                p.next_history[j * p.channels + c] = t < 0 ? p.history[(t + 3) * p.channels + c] : to_float(p.input[size_t(t) * p.stride + c]);
            }
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
    // The other block may still signal here.
    if (PRODUCT) cluster_sync();
}

extern "C" __global__ void __launch_bounds__(288, 2) conv_hopper(const __grid_constant__ HopperConvParams p) { convolve<0, 2, 4>(p); }
#define CONV_PRODUCT(BN)                                                                                                             \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(160, 1) conv_product_##BN##_64(const __grid_constant__ HopperConvParams p) { \
        convolve<BN, 1, 4>(p);                                                                                                       \
    }                                                                                                                                \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(288, 1) conv_product_##BN##_128(const __grid_constant__ HopperConvParams p) { \
        convolve<BN, 2, 4>(p);                                                                                                       \
    }
CONV_PRODUCT(128)
CONV_PRODUCT(192)
