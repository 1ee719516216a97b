// State-space duality in f32 on tensor cores: P = 64, N = 64 or 128. What it makes, and the passes over a long text, are those of ssd.cu.
//
// Products are made of halves (halves.cuh). Sums of logarithms are kept in two floats, since what is raised to a power is small differences of large ones.
//
// A block takes two heads of a group and one segment, chunk by chunk of 64 tokens. All eight warps make C Bᵀ once and from it, masked and
// decayed, the scores M of both heads. Then a warp owns 16 channels of one head: their states are in its registers, where they are the left
// operand of yᵀ = S Cᵀ + xᵀ Mᵀ as they are, so that no state passes through shared memory; and S += (w x)ᵀ B.
#include "halves.cuh"
#include "ssd.cuh"

constexpr u32 F32_THREADS = 256, F32_HEADS = 2;

// Of a chunk and head. The logarithm (base 2) of the decay from its start through each token is log + rest; decay is its power of two;
// weight is what a token adds to the state after the chunk.
struct FineSteps {
    float dt[Q], log[Q], rest[Q], decay[Q], weight[Q];
};

// WIDTH numbers of 64 rows, from global memory to rows WIDTH + 8 apart; those from `rows` on become zero.
template <int WIDTH> DEVICE void fetch_rows(float *to, const float *from, u32 stride, u32 rows) {
    constexpr u32 UNITS = WIDTH / 4;
    const u32 unit = threadIdx.x % UNITS;
#pragma unroll
    for (u32 row = threadIdx.x / UNITS; row < Q; row += F32_THREADS / UNITS) {
        const bool on = row < rows;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(u32(__cvta_generic_to_shared(to + row * (WIDTH + 8) + 4 * unit))),
                     "l"(on ? from + size_t(row) * stride + 4 * unit : from), "r"(on ? 16 : 0)
                     : "memory");
    }
}
DEVICE void fetched() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N, bool OUT> DEVICE void fine(const SsdParams &p, u32 buffers) {
    constexpr u32 WIDE = N + 8, NARROW = P + 8;
    extern __shared__ __align__(128) float numbers[];
    __shared__ FineSteps steps[F32_HEADS];
    // [buffers][64][N], [buffers][2 heads][64][P], [64][N], [2 heads][64][64], rows 8 further apart.
    float *const bs = numbers, *const xs = bs + buffers * Q * WIDE, *const c = xs + buffers * F32_HEADS * Q * NARROW, *const scores = c + Q * WIDE;
    let_next_start();
    wait_for_previous();
    const Item<F32_HEADS> item(p, blockIdx.x, OUT ? p.chunks : p.chunks / p.parts);
    const u32 warp = threadIdx.x / 32, own = warp / 4, row0 = warp % 4 * 16, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
    const u32 head = item.head(own);
    const float a = p.a[head] * LOG2_E;
    const float *x_from = static_cast<const float *>(p.x), *b_from = static_cast<const float *>(p.b) + item.group * N;
    const float *c_from = static_cast<const float *>(p.c) + item.group * N;
    auto rows = [&](u32 from) { return min(u32(Q), item.end - from); };
    auto fetch_b_x = [&](u32 from, u32 buffer) {
        if (from < item.end) {
            fetch_rows<N>(bs + buffer * Q * WIDE, b_from + size_t(from) * p.bc_stride, p.bc_stride, rows(from));
#pragma unroll
            for (u32 h = 0; h < F32_HEADS; h++)
                fetch_rows<P>(xs + (buffer * F32_HEADS + h) * Q * NARROW, x_from + size_t(from) * p.x_stride + item.head(h) * P, p.x_stride, rows(from));
        }
        fetched();
    };
    auto fetch_c = [&](u32 from) {
        if (OUT && from < item.end) fetch_rows<N>(c, c_from + size_t(from) * p.bc_stride, p.bc_stride, rows(from));
        fetched();
    };
    // Two tokens a lane of a head's first warp, asked for a chunk ahead.
    float d0 = 0.0f, d1 = 0.0f;
    auto ask = [&](u32 from) {
        if (warp % 4) return;
        const u32 t = from + 2 * lane;
        d0 = t < item.end ? step_size<float>(p, t, head) : 0.0f;
        d1 = t + 1 < item.end ? step_size<float>(p, t + 1, head) : 0.0f;
    };
    fetch_b_x(item.start, 0);
    fetch_c(item.start);
    ask(item.start);
    // S[c][n], c = row0 + r (+8), n = 8 j + 2 q (+1).
    float s[N / 8][4];
    const float *first = p.segments == 1 ? p.state + size_t(head) * P * N
                                         : p.segment_state + (size_t(item.segment) * p.parts * p.heads + head) * P * N;
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float2 v = make_float2(0.0f, 0.0f);
            if (OUT) v = *reinterpret_cast<const float2 *>(first + (row0 + r + 8 * i) * N + 8 * j + 2 * q);
            s[j][2 * i] = v.x, s[j][2 * i + 1] = v.y;
        }
    float total = 0.0f;
    u32 buffer = 0;
    for (u32 from = item.start; from < item.end; from += Q) {
        if (buffers == 2) fetch_b_x(from + Q, buffer ^ 1);
        if (warp % 4 == 0) {
            FineSteps &to = steps[own];
            double sum = double(d0) * a + double(d1) * a;
#pragma unroll
            for (int step = 1; step < 32; step <<= 1) {
                const double before = __shfl_up_sync(FULL, sum, step);
                if (lane >= step) sum += before;
            }
            const double last = __shfl_sync(FULL, sum, 31), logs[2] = {sum - double(d1) * a, sum};
            const float dts[2] = {d0, d1};
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                const u32 t = 2 * lane + i;
                const float log = float(logs[i]);
                to.dt[t] = dts[i], to.log[t] = log, to.rest[t] = float(logs[i] - log), to.decay[t] = exp2_fast(log);
                to.weight[t] = exp2_fast(float(last - logs[i])) * dts[i];
            }
        }
        if (buffers == 2) asm volatile("cp.async.wait_group 1;" ::: "memory");
        else asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads();
        ask(from + Q);
        const float *const b = bs + buffer * Q * WIDE, *const x = xs + (buffer * F32_HEADS + own) * Q * NARROW;
        const FineSteps &step = steps[own];
        if (OUT) {
            const u32 key0 = 32 * own;  // of this warp's 16 queries from row0, here
            if (key0 < row0 + 16) {
                float g[4][4] = {};
#pragma unroll 4
                for (u32 k = 0; k < N; k += 8) {
                    const float2 u = *reinterpret_cast<const float2 *>(c + (row0 + r) * WIDE + k + 2 * q);
                    const float2 v = *reinterpret_cast<const float2 *>(c + (row0 + r + 8) * WIDE + k + 2 * q);
                    const Halves of[4] = {halve(u.x), halve(v.x), halve(u.y), halve(v.y)};
#pragma unroll
                    for (u32 j = 0; j < 4; j++) {
                        const float2 w = *reinterpret_cast<const float2 *>(b + (key0 + 8 * j + r) * WIDE + k + 2 * q);
                        multiply_add(g[j], of, w.x, w.y);
                    }
                }
#pragma unroll
                for (u32 h = 0; h < F32_HEADS; h++) {
                    const FineSteps &of = steps[h];
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        const u32 query = row0 + r + i / 2 * 8;
                        const float log = of.log[query], rest = of.rest[query];
                        // Keys q and q + 4 of eight side by side.
                        float *to = scores + (h * Q + query) * NARROW + key0 + (q < 2 ? 4 * q : 4 * q - 7) + i % 2 * 2;
#pragma unroll
                        for (u32 j = 0; j < 4; j++) {
                            const u32 key = key0 + 8 * j + 2 * q + i % 2;
                            const float m = g[j][i] * exp2_fast((log - of.log[key]) + (rest - of.rest[key])) * of.dt[key];
                            to[8 * j] = key > query ? 0.0f : m;
                        }
                    }
                }
            }
            __syncthreads();
            // yᵀ[c][t], t = 8 j + 2 q (+1).
            float y[Q / 8][4] = {};
#pragma unroll
            for (u32 k = 0; k < N / 8; k++) {
                const Halves of[4] = {halve(s[k][0]), halve(s[k][2]), halve(s[k][1]), halve(s[k][3])};
#pragma unroll
                for (u32 j = 0; j < Q / 8; j++) {
                    const float2 w = *reinterpret_cast<const float2 *>(c + (8 * j + r) * WIDE + 8 * k + 2 * q);
                    multiply_add(y[j], of, w.x, w.y);
                }
            }
#pragma unroll
            for (u32 j = 0; j < Q / 8; j++) {
                const float2 e = *reinterpret_cast<const float2 *>(step.decay + 8 * j + 2 * q);
                y[j][0] *= e.x, y[j][1] *= e.y, y[j][2] *= e.x, y[j][3] *= e.y;
            }
#pragma unroll
            for (u32 k = 0; k < Q / 8; k++) {
                const float *at = x + (8 * k + q) * NARROW + row0 + r;
                const Halves of[4] = {halve(at[0]), halve(at[8]), halve(at[4 * NARROW]), halve(at[4 * NARROW + 8])};
#pragma unroll
                for (u32 j = k; j < Q / 8; j++) {
                    const float2 m = *reinterpret_cast<const float2 *>(scores + (own * Q + 8 * j + r) * NARROW + 8 * k + 2 * q);
                    multiply_add(y[j], of, m.x, m.y);
                }
            }
            if (item.is_own(own)) {
                float skip[2] = {};
#pragma unroll
                for (u32 i = 0; i < 2; i++)
                    if (p.d) skip[i] = p.d[p.d_by_channel ? head * P + row0 + r + 8 * i : head];
                float *to = static_cast<float *>(p.y) + head * P + row0 + r;
#pragma unroll
                for (u32 j = 0; j < Q / 8; j++)
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        const u32 t = 8 * j + 2 * q + i % 2;
                        if (t < item.end - from)
                            to[size_t(from + t) * p.y_stride + i / 2 * 8] = y[j][i] + skip[i / 2] * x[t * NARROW + row0 + r + i / 2 * 8];
                    }
            }
            __syncthreads();
            fetch_c(from + Q);
        }
        const float last = step.log[Q - 1], decay = step.decay[Q - 1];
        total += last;
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[j][i] *= decay;
#pragma unroll 2
        for (u32 k = 0; k < Q; k += 8) {
            const float *at = x + (k + q) * NARROW + row0 + r, w0 = step.weight[k + q], w1 = step.weight[k + q + 4];
            const Halves of[4] = {halve(at[0] * w0), halve(at[8] * w0), halve(at[4 * NARROW] * w1), halve(at[4 * NARROW + 8] * w1)};
#pragma unroll
            for (u32 j = 0; j < N / 8; j++) multiply_add(s[j], of, b[(k + q) * WIDE + 8 * j + r], b[(k + q + 4) * WIDE + 8 * j + r]);
        }
        __syncthreads();
        if (buffers == 2) buffer ^= 1;
        else fetch_b_x(from + Q, 0);
    }
    float *to = OUT ? (item.segment + 1 == p.segments ? p.state + size_t(head) * P * N : nullptr)
                    : p.segment_state + (size_t(item.segment + 1) * p.heads + head) * P * N;
    if (!to || !item.is_own(own)) return;
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            *reinterpret_cast<float2 *>(to + (row0 + r + 8 * i) * N + 8 * j + 2 * q) = make_float2(s[j][2 * i], s[j][2 * i + 1]);
    if (!OUT && threadIdx.x % 128 == 0) p.segment_decay[item.segment * p.heads + head] = total;
}

// Two buffers where there is room for them.
DEVICE u32 buffers_of(u32 one, u32 rest) {
    u32 bytes;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
    return bytes >= 2 * one + rest ? 2 : 1;
}
#define FINE(N)                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(F32_THREADS, 1) ssd_chunk_##N##_f32(const __grid_constant__ SsdParams p) {             \
        fine<N, true>(p, buffers_of(4 * Q * (N + 8 + F32_HEADS * (P + 8)), 4 * Q * (N + 8 + F32_HEADS * (P + 8))));                  \
    }                                                                                                                                \
    extern "C" __global__ void __launch_bounds__(F32_THREADS, 1) ssd_segment_##N##_f32(const __grid_constant__ SsdParams p) {           \
        fine<N, false>(p, buffers_of(4 * Q * (N + 8 + F32_HEADS * (P + 8)), 0));                                                     \
    }
FINE(64)
FINE(128)
