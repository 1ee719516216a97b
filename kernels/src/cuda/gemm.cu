// Many tokens through a linear map: y = (X Wᵀ + b) ⊙ scales, f(y), or a residual added, in the same launch.
//
// `gemm_exact_*`: f32 arithmetic whatever the weights are stored in, any shape; each output is one chain of multiply-adds along K.
//
// `gemm_tensor_*`: 16-bit inputs on tensor cores with f32 sums (mma.sync), tiles of 128 tokens × 256 outputs, 64 of K at a time, three
// stages in flight. Both operands lie along K, so `ldmatrix` reads fragments as they are; rows of 128 bytes are swizzled by 16 so that
// eight rows of one column meet no bank twice.
#include "gemm.cuh"

// 64 tokens × 64 outputs a block, 4 × 4 a thread.
template <typename W, typename T> DEVICE void exact(const GemmParams &p) {
    constexpr int TILE = 64, STEP = 16;
    __shared__ float xs[STEP][TILE + 4], ws[STEP][TILE + 4];
    const u32 t0 = blockIdx.x * TILE, n0 = blockIdx.y * TILE, row = threadIdx.x / 16, col = threadIdx.x % 16;
    const T *x = static_cast<const T *>(p.x);
    const W *w = static_cast<const W *>(p.weight);
    float sums[4][4] = {};
    for (u32 k0 = 0; k0 < p.cols; k0 += STEP) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 at = row + 16 * i, k = k0 + col;
            xs[col][at] = k < p.cols && t0 + at < p.tokens ? to_float(x[size_t(t0 + at) * p.x_stride + k]) : 0.0f;
            ws[col][at] = k < p.cols && n0 + at < p.rows ? to_float(w[size_t(n0 + at) * p.cols + k]) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            const float4 a = *reinterpret_cast<float4 *>(&xs[k][row * 4]), b = *reinterpret_cast<float4 *>(&ws[k][col * 4]);
            const float as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] = fmaf(as[i], bs[j], sums[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) finish<T>(p, t0 + row * 4 + i, n0 + col * 4 + j, sums[i][j]);
}
#define EXACT(name, W, T)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(256) gemm_exact_##name(const __grid_constant__ GemmParams p) { exact<W, T>(p); }
EXACT(f32_f32, float, float)
EXACT(bf16_f32, __nv_bfloat16, float)
EXACT(f16_f32, __half, float)
EXACT(bf16_bf16, __nv_bfloat16, __nv_bfloat16)
EXACT(f32_bf16, float, __nv_bfloat16)
EXACT(f16_bf16, __half, __nv_bfloat16)

// ---- tensor cores ----

constexpr int BM = 128, BN = 256, BK = 64, STAGES = 3, THREADS = 256;  // eight warps, 2 × 4, of 64 × 64 each

DEVICE void copy16(u32 to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}
DEVICE void load_matrices(u32 (&r)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}
DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Byte of element (row, eight) in a tile of 64 columns.
DEVICE u32 swizzled(u32 row, u32 eight) { return row * 128 + ((eight ^ (row & 7)) << 4); }

extern "C" __global__ void __launch_bounds__(THREADS) gemm_tensor_bf16(const __grid_constant__ GemmParams p) {
    extern __shared__ __align__(128) unsigned char tiles[];
    constexpr u32 X_BYTES = BM * BK * 2, STAGE = X_BYTES + BN * BK * 2;
    const u32 base = static_cast<u32>(__cvta_generic_to_shared(tiles));
    const u32 t0 = blockIdx.x * BM, n0 = blockIdx.y * BN, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 m0 = warp / 4 * 64, c0 = warp % 4 * 64;
    const __nv_bfloat16 *x = static_cast<const __nv_bfloat16 *>(p.x), *w = static_cast<const __nv_bfloat16 *>(p.weight);
    const u32 steps = (p.cols + BK - 1) / BK;
    auto load = [&](u32 step) {
        const u32 to = base + step % STAGES * STAGE, eight = threadIdx.x % 8, k = step * BK + eight * 8;
#pragma unroll
        for (int i = 0; i < BM / 32; i++) {
            const u32 row = threadIdx.x / 8 + 32 * i;
            const bool there = k < p.cols && t0 + row < p.tokens;
            copy16(to + swizzled(row, eight), there ? x + size_t(t0 + row) * p.x_stride + k : x, there);
        }
#pragma unroll
        for (int i = 0; i < BN / 32; i++) {
            const u32 row = threadIdx.x / 8 + 32 * i;
            const bool there = k < p.cols && n0 + row < p.rows;
            copy16(to + X_BYTES + swizzled(row, eight), there ? w + size_t(n0 + row) * p.cols + k : w, there);
        }
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) load(s);
        asm volatile("cp.async.commit_group;");
    }
    float sums[4][8][4] = {};
    for (u32 step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
        __syncthreads();
        if (step + STAGES - 1 < steps) load(step + STAGES - 1);
        asm volatile("cp.async.commit_group;");
        const u32 xs = base + step % STAGES * STAGE, ws = xs + X_BYTES;
#pragma unroll
        for (int k = 0; k < BK / 16; k++) {
            u32 a[4][4], b[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++) load_matrices(a[i], xs + swizzled(m0 + 16 * i + lane % 16, 2 * k + lane / 16));
#pragma unroll
            for (int j = 0; j < 4; j++)
                load_matrices(b[j], ws + swizzled(c0 + 16 * j + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) mma(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 t = t0 + m0 + 16 * i + lane / 4 + half * 8, n = n0 + c0 + 8 * j + lane % 4 * 2;
                const float first = sums[i][j][2 * half], second = sums[i][j][2 * half + 1];
                if (p.rows % 2 == 0) finish_pair(p, t, n, make_float2(first, second));
                else finish<__nv_bfloat16>(p, t, n, first), finish<__nv_bfloat16>(p, t, n + 1, second);
            }
}
