// Many tokens through a linear map on Hopper (sm_90a): y = (X Wᵀ + b) ⊙ scales or a residual added, bf16 weights, f32 sums.
//
// `gemm_hopper_*` take X in bf16. `gemm_split_*` take it in f32 and cut each number into three of eight bits, x = high + middle + low, on
// its way from shared memory to registers: three products of bf16, each exact, whose sum is that of f32.
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
#include "gemm_hopper.cuh"

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
template <int BN, bool SPLIT> DEVICE void finish_tile(const HopperParams &params, float (&d)[BN / 2], Leaving &leaving, u32 n0) {
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
    if (p.y && SPLIT) leave_wide<false, BN>(d, 1.0f, leaving, params.y, n0, p.rows);
    if (p.y && !SPLIT) leave_halves<BN>(d, leaving, params.y, n0, p.rows);
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

// Sixteen numbers of two rows of a tile in f32, cut in three, as `multiply` takes them.
DEVICE void cut(u32 xs, u32 k, u32 (&high)[4], u32 (&middle)[4], u32 (&low)[4]) {
    const u32 lane = threadIdx.x % 32, q = lane % 4, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 r = row + i % 2 * 8, chunk = k % 2 * 4 + q / 2 + i / 2 * 2;
        float2 x;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                     : "=f"(x.x), "=f"(x.y)
                     : "r"(xs + k / 2 * (BM * 128) + r * 128 + ((chunk ^ (r & 7)) << 4) + q % 2 * 8)
                     : "memory");
        auto rest_of = [](float2 of, u32 bits) { return make_float2(of.x - __uint_as_float(bits << 16), of.y - __uint_as_float(bits & 0xffff0000u)); };
        high[i] = pack(x.x, x.y);
        const float2 rest = rest_of(x, high[i]);
        middle[i] = pack(rest.x, rest.y);
        const float2 end = rest_of(rest, middle[i]);
        low[i] = pack(end.x, end.y);
    }
}

template <int BN, int STAGES, bool SPLIT> DEVICE void hopper(const HopperParams &p) {
    extern __shared__ unsigned char memory[];
    __shared__ u64 barriers[2 * STAGES];
    constexpr u32 X_BYTES = BM * BK * (SPLIT ? 4 : 2), STAGE = X_BYTES + BN * BK * 2;
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
                    if (SPLIT) fetch(to + X_BYTES / 2, p.x, step * BK + BK / 2, t, full(stage));
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
                const u32 from = base + stage * STAGE, xs = from + (group - 1) * 64 * 128;
                const u64 x = descriptor(xs), w = descriptor(from + X_BYTES);
                wait_for(full(stage), parity);
                if constexpr (SPLIT) {
                    u32 high[BK / 16][4], middle[BK / 16][4], low[BK / 16][4];
#pragma unroll
                    for (u32 k = 0; k < BK / 16; k++) cut(xs, k, high[k], middle[k], low[k]);
                    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                    for (u32 k = 0; k < BK / 16; k++) {
                        multiply<BN>(d, low[k], w + 2 * k, step + k);
                        multiply<BN>(d, middle[k], w + 2 * k, 1);
                        multiply<BN>(d, high[k], w + 2 * k, 1);
                    }
                    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                    // The registers are needed again.
                    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
                    if (step + 1 < steps) release(stage);
                } else {
                    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                    for (u32 k = 0; k < BK / 16; k++) multiply<BN>(d, x + 2 * k, w + 2 * k, step + k);
                    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                    if (step) release(before);
                }
                before = stage;
                advance();
            }
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            // Sums are read only from here on.
#pragma unroll
            for (int i = 0; i < BN / 2; i++) asm volatile("" : "+f"(d[i])::"memory");
            release(before);
            leaving.t = (2 * pair + rank) * BM + (group - 1) * 64;
            finish_tile<BN, SPLIT>(p, d, leaving, column * BN);
        }
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
    // The other block may still signal here.
    cluster_sync();
}
#define HOPPER(name, BN, STAGES, SPLIT)                                                                                              \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 1)                                               \
        name##_##BN(const __grid_constant__ HopperParams p) { hopper<BN, STAGES, SPLIT>(p); }
HOPPER(gemm_hopper, 64, 6, false)
HOPPER(gemm_hopper, 128, 5, false)
HOPPER(gemm_hopper, 192, 4, false)
HOPPER(gemm_hopper, 256, 4, false)
HOPPER(gemm_split, 64, 4, true)
HOPPER(gemm_split, 128, 4, true)
HOPPER(gemm_split, 192, 3, true)
HOPPER(gemm_split, 256, 3, true)
