// Many tokens through a linear map on Hopper (sm_90a): y = (X Wᵀ + b) ⊙ scales or a residual added, bf16 inputs with f32 sums.
//
// Two blocks of a cluster make 256 tokens × BN outputs, 128 tokens each. One thread of a block asks the copy engine for tiles of 64
// along K, which land swizzled by 16 bytes in rows of 128; each block fetches its own tokens and half of the weights, and sends those
// to both. Two warpgroups of 64 tokens multiply (wgmma) what has arrived. `full` barriers count bytes; `empty` ones count the four
// warpgroups that read a stage, since the other block writes here, too. As many clusters as fit walk over the tiles, eight pairs of
// blocks along the tokens before the next outputs, so that what runs together shares rows of both operands in L2.
//
// Tiles that reach beyond the matrices read zeros. N is a multiple of eight.
#include "gemm.cuh"

struct alignas(64) TensorMap {
    u64 words[16];
};
struct HopperParams {
    TensorMap x, w;  // boxes of 64 × 128 and of 64 × BN / 2
    GemmParams of;
    u32 pad[8];
};

constexpr u32 BM = 128, BK = 64, X_BYTES = BM * BK * 2, THREADS = 384, TOGETHER = 8;
// Registers of a thread of the warpgroup that copies and of those that multiply: 128 · 40 + 256 · 232 ≤ 65,536.
constexpr u32 FEW = 40, MANY = 232;

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

// Four lanes hold word `lane` of each of four stretches of eight outputs; afterwards lane q holds all four words of stretch q.
DEVICE uint4 transpose(u32 (&u)[4], u32 q) {
    const bool odd = q & 1, high = q & 2;
    const u32 r0 = __shfl_xor_sync(FULL, odd ? u[0] : u[1], 1), r1 = __shfl_xor_sync(FULL, odd ? u[2] : u[3], 1);
    const u32 a0 = odd ? r0 : u[0], a1 = odd ? u[1] : r0, a2 = odd ? r1 : u[2], a3 = odd ? u[3] : r1;
    const u32 s0 = __shfl_xor_sync(FULL, high ? a0 : a2, 2), s1 = __shfl_xor_sync(FULL, high ? a1 : a3, 2);
    return high ? make_uint4(s0, s1, a2, a3) : make_uint4(a0, a1, s0, s1);
}

template <int BN> DEVICE void finish_tile(const GemmParams &p, float (&d)[BN / 2], u32 t0, u32 n0) {
    const u32 lane = threadIdx.x % 32, q = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32 t = t0 + lane / 4 + 8 * half;
        const bool row = t < p.tokens;
        const size_t line = size_t(t) * p.rows;
#pragma unroll
        for (int g = 0; g < BN / 32; g++) {
            float2 v[4], x[4];
            bool there[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const u32 n = n0 + 32 * g + 8 * j;
                there[j] = row && n < p.rows;
                if (p.residual_out && there[j]) x[j] = *reinterpret_cast<const float2 *>(p.residual_in + line + n + 2 * q);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const u32 n = n0 + 32 * g + 8 * j + 2 * q;
                v[j] = make_float2(d[16 * g + 4 * j + 2 * half], d[16 * g + 4 * j + 2 * half + 1]);
                if (p.bias && there[j]) v[j].x += p.bias[n], v[j].y += p.bias[n + 1];
                if (p.row_scale && there[j]) v[j].x *= p.row_scale[n], v[j].y *= p.row_scale[n + 1];
                v[j].x *= p.output_scale, v[j].y *= p.output_scale;
            }
            if (p.wide)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (there[j]) *reinterpret_cast<float2 *>(p.wide + line + n0 + 32 * g + 8 * j + 2 * q) = v[j];
            if (p.residual_out)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (there[j])
                        *reinterpret_cast<float2 *>(p.residual_out + line + n0 + 32 * g + 8 * j + 2 * q) =
                            make_float2(x[j].x + v[j].x * p.residual_scale, x[j].y + v[j].y * p.residual_scale);
            if (p.y) {
                u32 words[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const __nv_bfloat162 pair = __floats2bfloat162_rn(v[j].x, v[j].y);
                    words[j] = *reinterpret_cast<const u32 *>(&pair);
                }
                const uint4 eight = transpose(words, q);
                const u32 n = n0 + 32 * g + 8 * q;
                if (row && n < p.rows) *reinterpret_cast<uint4 *>(static_cast<__nv_bfloat16 *>(p.y) + line + n) = eight;
            }
        }
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
            finish_tile<BN>(p.of, d, (2 * pair + rank) * BM + (group - 1) * 64 + threadIdx.x % 128 / 32 * 16, column * BN);
        }
    }
    // The other block may still signal here.
    cluster_sync();
}
#define HOPPER(BN, STAGES)                                                                                                           \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 1)                                               \
        gemm_hopper_##BN(const __grid_constant__ HopperParams p) { hopper<BN, STAGES>(p); }
HOPPER(64, 6)
HOPPER(128, 6)
HOPPER(192, 5)
HOPPER(256, 4)
