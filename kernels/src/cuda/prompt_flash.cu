// Softmax attention of many tokens on tensor cores (mma.sync): bf16 queries, keys, values and weights, f32 sums, the online softmax
// (Dao 2023, FlashAttention-2). A block takes 128 queries of a head, 32 a warp; keys and values come in tiles of 64, two in flight. Rows
// are padded by 16 bytes, so that eight of them meet no bank twice. The latest queries, which see most, begin first.
//
// Scores are kept in units of log 2. Beside Σ 2^{x − m} each row sums 2^{x − m} (x − m), from which its entropy follows.
#include "prompt_attention.cuh"

constexpr u32 QUERIES = 128, KEYS = 64, THREADS = 128;

DEVICE void load_matrices(u32 (&r)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}
DEVICE void load_transposed(u32 (&r)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}
DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE u32 pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const u32 *>(&pair);
}

template <int HD> DEVICE void flash(const PromptAttentionParams &p) {
    extern __shared__ __align__(16) unsigned char tiles[];
    constexpr u32 ROW = HD * 2 + 16, EIGHTS = HD / 8, TILE = KEYS * ROW;
    const u32 qs = static_cast<u32>(__cvta_generic_to_shared(tiles)), kvs = qs + QUERIES * ROW;  // then K, V of either stage
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.y, kv = head * p.kv_heads / p.heads;
    const u32 t0 = (gridDim.x - 1 - blockIdx.x) * QUERIES, end = p.first + min(t0 + QUERIES, p.tokens);
    auto seen_from = [&](u32 position) { return p.window && position + 1 > p.window ? position + 1 - p.window : 0; };
    const u32 begin = seen_from(p.first + t0) / KEYS * KEYS;
    for (u32 i = threadIdx.x; i < QUERIES * EIGHTS; i += THREADS) {
        const u32 row = i / EIGHTS, eight = i % EIGHTS;
        const bool there = t0 + row < p.tokens;
        copy16(qs + row * ROW + eight * 16, there ? p.q16 + (size_t(t0 + row) * p.heads + head) * HD + eight * 8 : p.q16, there);
    }
    auto load = [&](u32 s0, u32 stage, const __nv_bfloat16 *from, u32 which) {
        const u32 to = kvs + (2 * stage + which) * TILE;
#pragma unroll
        for (u32 i = threadIdx.x; i < KEYS * EIGHTS; i += THREADS) {
            const u32 row = i / EIGHTS, eight = i % EIGHTS, s = s0 + row;
            const bool there = s < end;
            copy16(to + row * ROW + eight * 16, there ? from + (size_t(s) * p.kv_heads + kv) * HD + eight * 8 : from, there);
        }
    };
    load(begin, 0, p.k16, 0), load(begin, 0, p.v16, 1);
    asm volatile("cp.async.commit_group;");
    float out[2][HD / 8][4] = {}, top[2][2], sum[2][2] = {}, spread[2][2] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) top[i / 2][i % 2] = HIDDEN;
    const float unit = p.scale * LOG2_E;
    const u32 first_row = p.first + t0 + warp * 32;  // the position of the warp's first query
    u32 stage = 0;
    for (u32 s0 = begin; s0 < end; s0 += KEYS, stage ^= 1) {
        asm volatile("cp.async.wait_group 0;");
        __syncthreads();
        if (s0 + KEYS < end) load(s0 + KEYS, stage ^ 1, p.k16, 0), load(s0 + KEYS, stage ^ 1, p.v16, 1);
        asm volatile("cp.async.commit_group;");
        if (s0 > first_row + 31) continue;  // all of it comes after these queries
        const u32 ks = kvs + 2 * stage * TILE, vs = ks + TILE;
        float score[2][KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < HD / 16; k++) {
            u32 a[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) load_matrices(a[i], qs + (warp * 32 + 16 * i + lane % 16) * ROW + (2 * k + lane / 16) * 16);
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                u32 b[4];
                load_matrices(b, ks + (16 * j + lane / 16 * 8 + lane % 8) * ROW + (2 * k + lane / 8 % 2) * 16);
#pragma unroll
                for (int i = 0; i < 2; i++) mma(score[i][2 * j], a[i], b[0], b[1]), mma(score[i][2 * j + 1], a[i], b[2], b[3]);
            }
        }
        const bool edge = s0 + KEYS - 1 > first_row || s0 < seen_from(first_row + 31);
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 position = first_row + 16 * i + 8 * h + lane / 4;
                float most = HIDDEN;
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float &x = score[i][j][2 * h + c];
                        x *= unit;
                        const u32 s = s0 + 8 * j + lane % 4 * 2 + c;
                        if (edge && (s > position || s < seen_from(position))) x = HIDDEN;
                        most = fmaxf(most, x);
                    }
                const float m = fmaxf(top[i][h], quad_max(most)), shrink = exp2_fast(top[i][h] - m);
                const float from = m == HIDDEN ? 0.0f : m;
                float part = 0.0f, inner = 0.0f;
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float &x = score[i][j][2 * h + c];
                        const float above = x - from;
                        x = exp2_fast(above);
                        part += x, inner = fmaf(x, above, inner);
                    }
                spread[i][h] = shrink * (spread[i][h] + (top[i][h] - m) * sum[i][h]) + inner;
                sum[i][h] = sum[i][h] * shrink + part, top[i][h] = m;
#pragma unroll
                for (int j = 0; j < HD / 8; j++) out[i][j][2 * h] *= shrink, out[i][j][2 * h + 1] *= shrink;
            }
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            u32 a[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float (&x)[4] = score[i][2 * k], (&y)[4] = score[i][2 * k + 1];
                a[i][0] = pack(x[0], x[1]), a[i][1] = pack(x[2], x[3]), a[i][2] = pack(y[0], y[1]), a[i][3] = pack(y[2], y[3]);
            }
#pragma unroll
            for (int j = 0; j < HD / 16; j++) {
                u32 b[4];
                load_transposed(b, vs + (16 * k + lane % 16) * ROW + (2 * j + lane / 16) * 16);
#pragma unroll
                for (int i = 0; i < 2; i++) mma(out[i][2 * j], a[i], b[0], b[1]), mma(out[i][2 * j + 1], a[i], b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float all = quad_sum(sum[i][h]), inner = quad_sum(spread[i][h]), over = 1.0f / all;
            const u32 t = t0 + warp * 32 + 16 * i + 8 * h + lane / 4;
            if (t >= p.tokens) continue;
            const size_t row = size_t(t) * p.heads + head;
#pragma unroll
            for (int j = 0; j < HD / 8; j++)
                *reinterpret_cast<float2 *>(p.y + row * HD + 8 * j + lane % 4 * 2) = make_float2(out[i][j][2 * h] * over, out[i][j][2 * h + 1] * over);
            if (lane % 4 == 0) p.entropy[row] = fmaxf(log2f(all) - inner * over, 0.0f);
        }
}
#define FLASH(HD)                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) prompt_flash_##HD(const __grid_constant__ PromptAttentionParams p) { flash<HD>(p); }
FLASH(32)
FLASH(64)
FLASH(80)
FLASH(96)
FLASH(128)

// Keys and values of tokens before the first, for the tensor cores.
extern "C" __global__ void __launch_bounds__(256) prompt_earlier(const __grid_constant__ PromptAttentionParams p) {
    const size_t all = size_t(p.first) * p.kv_heads * p.head_dim / 4;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += size_t(gridDim.x) * blockDim.x) {
        const float4 k = reinterpret_cast<const float4 *>(p.keys)[i], v = reinterpret_cast<const float4 *>(p.values)[i];
        reinterpret_cast<uint2 *>(p.k16)[i] = make_uint2(pack(k.x, k.y), pack(k.z, k.w));
        reinterpret_cast<uint2 *>(p.v16)[i] = make_uint2(pack(v.x, v.y), pack(v.z, v.w));
    }
}
