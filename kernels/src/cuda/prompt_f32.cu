// Softmax attention of many tokens in f32 on tensor cores: queries, keys, values and weights are sums of two numbers of eleven bits
// (halves.cuh), the online softmax is that of prompt_flash.cu. A block takes 64 queries of a head for each M, 16 M a warp; keys and values
// come in tiles of 32, two in flight. The latest queries, which see most, begin first.
//
// Along K the order is free, and so is that of the outputs: of 16 dimensions a lane holds 4 q to 4 q + 3, which it reads, and of y writes,
// at once. Rows of queries and keys lie 16 banks apart, of values 4 or 20, so that nobody waits for a bank.
//
// The tensor core cuts its sums off, always towards zero: a tile's products with the values are summed on their own and then added.
#include "halves.cuh"
#include "prompt_attention.cuh"

constexpr u32 KEYS = 32, THREADS = 128;

template <int HD, int M> DEVICE void flash(const PromptAttentionParams &p) {
    extern __shared__ __align__(16) float tiles[];
    constexpr u32 QUERIES = 64 * M, QUARTERS = HD / 4, ROW = HD % 32 ? HD : HD + 16, VALUE_ROW = HD + 4, STAGE = KEYS * (ROW + VALUE_ROW);
    float *const qs = tiles, *const kvs = qs + QUERIES * ROW;  // then K, V of either stage
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane / 4, q = lane % 4;
    const u32 head = blockIdx.y, kv = head * p.kv_heads / p.heads;
    const u32 t0 = (gridDim.x - 1 - blockIdx.x) * QUERIES, end = p.first + min(t0 + QUERIES, p.tokens);
    auto seen_from = [&](u32 position) { return p.window && position + 1 > p.window ? position + 1 - p.window : 0; };
    const u32 begin = seen_from(p.first + t0) / KEYS * KEYS;
    auto address = [](const float *at) { return static_cast<u32>(__cvta_generic_to_shared(at)); };
    for (u32 i = threadIdx.x; i < QUERIES * QUARTERS; i += THREADS) {
        const u32 row = i / QUARTERS, quarter = i % QUARTERS;
        const bool there = t0 + row < p.tokens;
        copy16(address(qs + row * ROW + quarter * 4), there ? p.q_out + (size_t(t0 + row) * p.heads + head) * HD + quarter * 4 : p.q_out, there);
    }
    auto load = [&](u32 s0, u32 stage) {
        float *const ks = kvs + stage * STAGE, *const vs = ks + KEYS * ROW;
#pragma unroll
        for (u32 i = threadIdx.x; i < KEYS * QUARTERS; i += THREADS) {
            const u32 row = i / QUARTERS, quarter = i % QUARTERS;
            const bool there = s0 + row < end;
            const size_t from = there ? (size_t(s0 + row) * p.kv_heads + kv) * HD + quarter * 4 : 0;
            copy16(address(ks + row * ROW + quarter * 4), p.keys + from, there);
            copy16(address(vs + row * VALUE_ROW + quarter * 4), p.values + from, there);
        }
    };
    load(begin, 0);
    asm volatile("cp.async.commit_group;");
    // Of 16 queries: rows r and r + 8; of 16 dimensions eight columns, then the other eight.
    float out[M][HD / 8][4] = {}, top[M][2], sum[M][2] = {}, spread[M][2] = {};
#pragma unroll
    for (int i = 0; i < M; i++) top[i][0] = top[i][1] = HIDDEN;
    const float unit = p.scale * LOG2_E;
    const u32 first_row = p.first + t0 + warp * 16 * M;  // the position of the warp's first query
    u32 stage = 0;
    for (u32 s0 = begin; s0 < end; s0 += KEYS, stage ^= 1) {
        asm volatile("cp.async.wait_group 0;");
        __syncthreads();
        if (s0 + KEYS < end) load(s0 + KEYS, stage ^ 1);
        asm volatile("cp.async.commit_group;");
        if (s0 > first_row + 16 * M - 1) continue;  // all of it comes after these queries
        const float *const ks = kvs + stage * STAGE, *const vs = ks + KEYS * ROW;
        float score[M][KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < HD / 16; k++) {
            Halves a[M][2][4];  // of eight dimensions, of the other eight
#pragma unroll
            for (int i = 0; i < M; i++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const float4 x = *reinterpret_cast<const float4 *>(qs + (warp * 16 * M + 16 * i + 8 * h + r) * ROW + 16 * k + 4 * q);
                    a[i][0][h] = halve(x.x), a[i][0][2 + h] = halve(x.y), a[i][1][h] = halve(x.z), a[i][1][2 + h] = halve(x.w);
                }
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                const float4 x = *reinterpret_cast<const float4 *>(ks + (8 * j + r) * ROW + 16 * k + 4 * q);
                const Halves b[2][2] = {{halve(x.x), halve(x.y)}, {halve(x.z), halve(x.w)}};
#pragma unroll
                for (int e = 0; e < 2; e++)
#pragma unroll
                    for (int part = 0; part < 3; part++)
#pragma unroll
                        for (int i = 0; i < M; i++) multiply_part(part, score[i][j], a[i][e], b[e]);
            }
        }
        const bool edge = s0 + KEYS - 1 > first_row || s0 < seen_from(first_row + 16 * M - 1);
        float shrink[M][2];
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 position = first_row + 16 * i + 8 * h + r;
                float most = HIDDEN;
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float &x = score[i][j][2 * h + c];
                        x *= unit;
                        const u32 s = s0 + 8 * j + 2 * q + c;
                        if (edge && (s > position || s < seen_from(position))) x = HIDDEN;
                        most = fmaxf(most, x);
                    }
                const float m = fmaxf(top[i][h], quad_max(most)), by = exp2_fast(top[i][h] - m);
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
                spread[i][h] = by * (spread[i][h] + (top[i][h] - m) * sum[i][h]) + inner;
                sum[i][h] = sum[i][h] * by + part, top[i][h] = m, shrink[i][h] = by;
            }
        // Keys 2 q and 2 q + 1 of eight take the places of q and q + 4.
        Halves a[M][KEYS / 8][4];
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int k = 0; k < KEYS / 8; k++) {
                const float (&x)[4] = score[i][k];
                a[i][k][0] = halve(x[0]), a[i][k][1] = halve(x[2]), a[i][k][2] = halve(x[1]), a[i][k][3] = halve(x[3]);
            }
#pragma unroll
        for (int j = 0; j < HD / 16; j++) {
            float made[M][2][4] = {};
#pragma unroll
            for (int k = 0; k < KEYS / 8; k++) {
                const float *const at = vs + (8 * k + 2 * q) * VALUE_ROW + 16 * j + 2 * r;
                const float2 x = *reinterpret_cast<const float2 *>(at), y = *reinterpret_cast<const float2 *>(at + VALUE_ROW);
                const Halves b[2][2] = {{halve(x.x), halve(y.x)}, {halve(x.y), halve(y.y)}};
#pragma unroll
                for (int part = 0; part < 3; part++)
#pragma unroll
                    for (int e = 0; e < 2; e++)
#pragma unroll
                        for (int i = 0; i < M; i++) multiply_part(part, made[i][e], a[i][k], b[e]);
            }
#pragma unroll
            for (int i = 0; i < M; i++)
#pragma unroll
                for (int e = 0; e < 2; e++)
#pragma unroll
                    for (int c = 0; c < 4; c++) out[i][2 * j + e][c] = fmaf(out[i][2 * j + e][c], shrink[i][c / 2], made[i][e][c]);
        }
    }
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float all = quad_sum(sum[i][h]), inner = quad_sum(spread[i][h]), over = 1.0f / all;
            const u32 t = t0 + warp * 16 * M + 16 * i + 8 * h + r;
            if (t >= p.tokens) continue;
            const size_t row = size_t(t) * p.heads + head;
            // Column c of the first eight is dimension 2 c of 16, of the other eight 2 c + 1.
#pragma unroll
            for (int j = 0; j < HD / 16; j++) {
                const float (&even)[4] = out[i][2 * j], (&odd)[4] = out[i][2 * j + 1];
                *reinterpret_cast<float4 *>(p.y + row * HD + 16 * j + 4 * q) =
                    make_float4(even[2 * h] * over, odd[2 * h] * over, even[2 * h + 1] * over, odd[2 * h + 1] * over);
            }
            if (q == 0) p.entropy[row] = fmaxf(log2f(all) - inner * over, 0.0f);
        }
}
#define FLASH(HD, M)                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) prompt_f32_##HD(const __grid_constant__ PromptAttentionParams p) { flash<HD, M>(p); }
FLASH(32, 2)
FLASH(64, 2)
FLASH(80, 2)
FLASH(96, 1)
FLASH(128, 1)
