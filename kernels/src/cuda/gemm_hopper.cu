// Many tokens through a linear map on Hopper (sm_90a): y = (X Wᵀ + b) ⊙ scales or a residual added, bf16 inputs with f32 sums.
//
// Two blocks of a cluster make 256 tokens × BN outputs, 128 tokens each. One thread of a block asks the copy engine for tiles of 64
// along K, which land swizzled by 16 bytes in rows of 128; each block fetches its own tokens and half of the weights, and sends those
// to both. Two warpgroups of 64 tokens multiply (wgmma) what has arrived. `full` barriers count bytes; `empty` ones count the four
// warpgroups that read a stage, since the other block writes here, too. As many clusters as fit walk over the tiles, eight pairs of
// blocks along the tokens before the next outputs, so that what runs together shares rows of both operands in L2.
//
// What becomes of the sums leaves by the copy engine, too, through two small stretches of shared memory a warpgroup, while the next tile is
// multiplied: a residual that stays where it is is added to in L2, so that nobody waits for what was there.
//
// Tiles that reach beyond the matrices read zeros, and what lies beyond is not written. N is a multiple of eight.
#include "gemm.cuh"

struct alignas(64) TensorMap {
    u64 words[16];
};
struct HopperParams {
    TensorMap x, w;               // boxes of 64 × 128 and of 64 × BN / 2
    TensorMap y, wide, residual;  // where there are such: boxes of 64 × 64 in bf16, of 32 × 64 in f32
    GemmParams of;
    u32 pad[8];
};

constexpr u32 BM = 128, BK = 64, X_BYTES = BM * BK * 2, THREADS = 384, TOGETHER = 8;
// Registers of a thread of the warpgroup that copies and of those that multiply: 128 · 40 + 256 · 232 ≤ 65,536.
constexpr u32 FEW = 40, MANY = 232;
constexpr u32 OUT_BYTES = 64 * 128;  // 64 rows of 128 bytes

DEVICE u32 shared_address(const void *at) { return static_cast<u32>(__cvta_generic_to_shared(at)); }
DEVICE void expect_bytes(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Arrives at the barrier of that name in block `rank` of the cluster.
DEVICE void arrive_at(u32 barrier, u32 rank) {
    asm volatile("{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [remote];\n}"
                 ::"r"(barrier), "r"(rank)
                 : "memory");
}
DEVICE void wait_for(u32 barrier, u32 parity) {
    asm volatile("{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra DONE;\nbra AGAIN;\nDONE:\n}"
                 ::"r"(barrier), "r"(parity)
                 : "memory");
}
DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// A tile from (column, row) of a matrix to here, or to the same place in both blocks.
DEVICE void fetch(u32 to, const TensorMap &map, u32 column, u32 row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(&map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}
DEVICE void fetch_for_both(u32 to, const TensorMap &map, u32 column, u32 row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;"
                 ::"r"(to), "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<unsigned short>(3))
                 : "memory");
}

// Rows of 128 bytes, swizzled by 16; eight of them are 1,024 bytes.
DEVICE u64 descriptor(u32 at) { return u64(at >> 4 & 0x3fff) | u64(1) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62; }

#define TEN(t) "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define OUT8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define OUT32(i) OUT8(i), OUT8(i + 8), OUT8(i + 16), OUT8(i + 24)
#define WGMMA(n, sums, a, b, add, ...)                                                                                               \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" sums "}, " a ", " b \
                 ", p, 1, 1, 0, 0;\n}"                                                                                               \
                 : __VA_ARGS__                                                                                                       \
                 : "l"(x), "l"(w), "r"(more))
// d [64, BN] of a warpgroup (+)= 64 rows × 16 at x times BN rows × 16 at w.
template <int BN> DEVICE void multiply(float (&d)[BN / 2], u64 x, u64 w, u32 more) {
    if constexpr (BN == 64) WGMMA(64, TEN() TEN(1) TEN(2) "%30,%31", "%32", "%33", "%34", OUT32(0));
    if constexpr (BN == 128) WGMMA(128, TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) "%60,%61,%62,%63", "%64", "%65", "%66", OUT32(0), OUT32(32));
    if constexpr (BN == 192)
        WGMMA(192, TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) "%90,%91,%92,%93,%94,%95", "%96", "%97", "%98", OUT32(0),
              OUT32(32), OUT32(64));
    if constexpr (BN == 256)
        WGMMA(256, TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) TEN(9) TEN(10) TEN(11) "%120,%121,%122,%123,%124,%125,%126,%127",
              "%128", "%129", "%130", OUT32(0), OUT32(32), OUT32(64), OUT32(96));
}

// Where a cluster's tile lies: pairs of blocks along the tokens first, TOGETHER of them, then the outputs.
DEVICE void place(u32 tile, u32 pairs, u32 columns, u32 &pair, u32 &column) {
    const u32 group = tile / (TOGETHER * columns), first = group * TOGETHER, wide = min(TOGETHER, pairs - first);
    const u32 at = tile - first * columns;
    pair = first + at % wide, column = at / wide;
}

// Outputs of a warpgroup on their way: 64 tokens from `t`, piece after piece of 128 bytes a row, two under way.
struct Leaving {
    u32 room, piece, t;

    DEVICE u32 begin() {
        if (threadIdx.x % 128 == 0) asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
        sync();
        return room + piece++ % 2 * OUT_BYTES;
    }
    DEVICE void sync() const { asm volatile("bar.sync %0, 128;" ::"r"(threadIdx.x / 128) : "memory"); }
    // Writes, or adds, the piece that begins at column n.
    template <bool ADD> DEVICE void end(u32 from, const TensorMap &map, u32 n) const {
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        sync();
        if (threadIdx.x % 128) return;
        if (ADD)
            asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(n), "r"(t),
                         "r"(from)
                         : "memory");
        else
            asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(n), "r"(t), "r"(from)
                         : "memory");
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    }
};

// The sums of columns 32 g … 32 g + 31 as f32, times `scale`.
template <bool ADD, int BN> DEVICE void leave_wide(const float (&d)[BN / 2], float scale, Leaving &leaving, const TensorMap &map, u32 n0, u32 rows) {
    const u32 lane = threadIdx.x % 32, q = lane % 4, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
    for (int g = 0; g < BN / 32; g++) {
        if (n0 + 32 * g >= rows) return;
        const u32 to = leaving.begin();
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 r = row + 8 * half, at = to + r * 128 + (((2 * j + q / 2) ^ (r & 7)) << 4) + q % 2 * 8;
                asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(d[16 * g + 4 * j + 2 * half] * scale),
                             "f"(d[16 * g + 4 * j + 2 * half + 1] * scale)
                             : "memory");
            }
        leaving.end<ADD>(to, map, n0 + 32 * g);
    }
}

DEVICE u32 pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const u32 *>(&pair);
}

// The sums in bf16, 64 columns at a time.
template <int BN> DEVICE void leave_halves(const float (&d)[BN / 2], Leaving &leaving, const TensorMap &map, u32 n0, u32 rows) {
    const u32 lane = threadIdx.x % 32, r = threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
    for (int g = 0; g < BN / 64; g++) {
        if (n0 + 64 * g >= rows) return;
        const u32 to = leaving.begin();
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            const float *of = d + 32 * g + 4 * j;
            const u32 at = to + r * 128 + (((j + lane / 16) ^ (r & 7)) << 4);
            asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(pack(of[0], of[1])),
                         "r"(pack(of[2], of[3])), "r"(pack(of[4], of[5])), "r"(pack(of[6], of[7]))
                         : "memory");
        }
        leaving.end<false>(to, map, n0 + 64 * g);
    }
}

// Sums to outputs, where the warpgroup's rows begin at leaving.t and its columns at n0.
template <int BN> DEVICE void finish_tile(const HopperParams &params, float (&d)[BN / 2], Leaving &leaving, u32 n0) {
    const GemmParams &p = params.of;
    const u32 q = threadIdx.x % 4;
    if (p.bias || p.row_scale || p.output_scale != 1.0f)
#pragma unroll
        for (int j = 0; j < BN / 8; j++) {
            const u32 n = n0 + 8 * j + 2 * q;
            float2 bias = make_float2(0.0f, 0.0f), scale = make_float2(p.output_scale, p.output_scale);
            if (p.bias && n < p.rows) bias = *reinterpret_cast<const float2 *>(p.bias + n);
            if (p.row_scale && n < p.rows) scale.x *= p.row_scale[n], scale.y *= p.row_scale[n + 1];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float &x = d[4 * j + 2 * half], &y = d[4 * j + 2 * half + 1];
                x = (x + bias.x) * scale.x, y = (y + bias.y) * scale.y;
            }
        }
    if (p.y) leave_halves<BN>(d, leaving, params.y, n0, p.rows);
    if (p.wide) leave_wide<false, BN>(d, 1.0f, leaving, params.wide, n0, p.rows);
    if (!p.residual_out) return;
    if (p.residual_in == p.residual_out) return leave_wide<true, BN>(d, p.residual_scale, leaving, params.residual, n0, p.rows);
    const u32 t0 = leaving.t + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int j = 0; j < BN / 8; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 t = t0 + 8 * half, n = n0 + 8 * j + 2 * q;
            if (t >= p.tokens || n >= p.rows) continue;
            float2 x = *reinterpret_cast<const float2 *>(p.residual_in + size_t(t) * p.rows + n);
            x.x += d[4 * j + 2 * half] * p.residual_scale, x.y += d[4 * j + 2 * half + 1] * p.residual_scale;
            *reinterpret_cast<float2 *>(p.residual_out + size_t(t) * p.rows + n) = x;
        }
}

template <int BN, int STAGES> DEVICE void hopper(const HopperParams &p) {
    extern __shared__ unsigned char memory[];
    __shared__ u64 barriers[2 * STAGES];
    constexpr u32 STAGE = X_BYTES + BN * BK * 2;
    const u32 base = (shared_address(memory) + 1023) / 1024 * 1024;
    const u32 rank = blockIdx.x % 2, group = threadIdx.x / 128;
    auto full = [&](u32 stage) { return shared_address(barriers + stage); };
    auto empty = [&](u32 stage) { return shared_address(barriers + STAGES + stage); };
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(full(s)));
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 4;" ::"r"(empty(s)));
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    let_next_start();
    wait_for_previous();
    const u32 pairs = (p.of.tokens + 2 * BM - 1) / (2 * BM), columns = (p.of.rows + BN - 1) / BN;
    const u32 steps = (p.of.cols + BK - 1) / BK, tiles = pairs * columns;
    u32 stage = 0, parity = 0;
    auto advance = [&] {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    };
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEW));
        if (threadIdx.x == 0)
            for (u32 tile = blockIdx.x / 2; tile < tiles; tile += gridDim.x / 2) {
                u32 pair, column;
                place(tile, pairs, columns, pair, column);
                const u32 t = (2 * pair + rank) * BM, n = column * BN + rank * (BN / 2);
                for (u32 step = 0; step < steps; step++, advance()) {
                    const u32 to = base + stage * STAGE;
                    wait_for(empty(stage), parity ^ 1);
                    expect_bytes(full(stage), STAGE);
                    fetch(to, p.x, step * BK, t, full(stage));
                    fetch_for_both(to + X_BYTES + rank * (BN / 2) * BK * 2, p.w, step * BK, n, full(stage));
                }
            }
        __syncwarp();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MANY));
        float d[BN / 2];
        Leaving leaving = {base + STAGES * STAGE + (group - 1) * 2 * OUT_BYTES, 0, 0};
        // Says to both blocks that a stage has been read.
        auto release = [&](u32 s) {
            if (threadIdx.x % 128 < 2) arrive_at(empty(s), threadIdx.x % 128);
        };
        for (u32 tile = blockIdx.x / 2; tile < tiles; tile += gridDim.x / 2) {
            u32 pair, column, before = 0;
            place(tile, pairs, columns, pair, column);
            for (u32 step = 0; step < steps; step++) {
                const u32 from = base + stage * STAGE;
                const u64 x = descriptor(from + (group - 1) * 64 * BK * 2), w = descriptor(from + X_BYTES);
                wait_for(full(stage), parity);
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (u32 k = 0; k < BK / 16; k++) multiply<BN>(d, x + 2 * k, w + 2 * k, step + k);
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                if (step) release(before);
                before = stage;
                advance();
            }
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            // Sums are read only from here on.
#pragma unroll
            for (int i = 0; i < BN / 2; i++) asm volatile("" : "+f"(d[i])::"memory");
            release(before);
            leaving.t = (2 * pair + rank) * BM + (group - 1) * 64;
            finish_tile<BN>(p, d, leaving, column * BN);
        }
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
    // The other block may still signal here.
    cluster_sync();
}
#define HOPPER(BN, STAGES)                                                                                                           \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 1)                                               \
        gemm_hopper_##BN(const __grid_constant__ HopperParams p) { hopper<BN, STAGES>(p); }
HOPPER(64, 6)
HOPPER(128, 5)
HOPPER(192, 4)
HOPPER(256, 4)
