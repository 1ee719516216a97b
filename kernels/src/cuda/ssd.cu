// State-space duality over any length.
//
// `ssd_recurrent_*`: f32 arithmetic throughout, any shape; a warp keeps four rows of a state in registers and walks along time.
//
// `ssd_chunk_*`: 16-bit inputs, P = 64, N = 64 or 128, on tensor cores with f32 sums (mma.sync). A block takes one head and one
// segment of the text, chunk by chunk of 64 tokens; the state stays in its registers, a 16-bit copy in shared memory meets C. Nothing
// but y and one state a segment is written. Long texts are cut in segments so that all multiprocessors work: `ssd_segment_*` first
// makes the state that each segment adds (a quarter of the work), `ssd_carry` runs them on, and every segment then starts from its own.
#include "common.cuh"

struct SsdParams {
    const void *delta, *x, *b, *c;  // [T, stride] each: H, H·P, G·N, G·N wide
    const float *delta_bias;        // [H] or null
    const float *a, *d;             // [H]; [H], [H·P] or null
    float *state;                   // [H, P, N]: the first, moved on to the last
    void *y;                        // [T, stride]
    float *segment_state;           // [segments, H, P, N]
    float *segment_decay;           // [segments, H], log2
    u32 tokens, heads, head_dim, n, groups;
    u32 delta_stride, x_stride, bc_stride, y_stride;
    u32 softplus, d_by_channel;
    u32 segments, chunks;           // chunks of 64 tokens a segment
    float dt_low, dt_high;
    u32 pad;
};

template <typename T> DEVICE float step_size(const SsdParams &p, u32 t, u32 head) {
    float dt = to_float(static_cast<const T *>(p.delta)[size_t(t) * p.delta_stride + head]);
    if (p.delta_bias) dt += p.delta_bias[head];
    if (p.softplus) dt = softplus(dt);
    return fminf(fmaxf(dt, p.dt_low), p.dt_high);
}

constexpr int RUN = 16;
template <typename T, int PER_LANE> DEVICE void recurrent(const SsdParams &p) {
    constexpr int ROWS = 4, N = 32 * PER_LANE;
    __shared__ float bs[RUN][N], cs[RUN][N], dts[RUN], decays[RUN], xs[RUN][16];
    const u32 blocks = (p.head_dim + 15) / 16, head = blockIdx.x / blocks, p0 = blockIdx.x % blocks * 16;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = head * p.groups / p.heads;
    const float a = p.a[head] * LOG2_E;
    float s[ROWS][PER_LANE], skip[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const u32 at = p0 + warp * ROWS + r, row = head * p.head_dim + at;
        const bool in = at < p.head_dim;
        skip[r] = in && p.d ? p.d[p.d_by_channel ? row : head] : 0.0f;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) s[r][i] = in && lane + 32 * i < p.n ? p.state[size_t(row) * p.n + lane + 32 * i] : 0.0f;
    }
    const T *b = static_cast<const T *>(p.b) + group * p.n, *c = static_cast<const T *>(p.c) + group * p.n;
    const T *x = static_cast<const T *>(p.x) + head * p.head_dim + p0;
    for (u32 from = 0; from < p.tokens; from += RUN) {
        const u32 count = min(u32(RUN), p.tokens - from);
        __syncthreads();
        for (u32 i = threadIdx.x; i < count * N; i += 128) {
            const u32 t = i / N, n = i % N;
            bs[t][n] = n < p.n ? to_float(b[size_t(from + t) * p.bc_stride + n]) : 0.0f;
            cs[t][n] = n < p.n ? to_float(c[size_t(from + t) * p.bc_stride + n]) : 0.0f;
        }
        for (u32 i = threadIdx.x; i < count * 16; i += 128)
            xs[i / 16][i % 16] = p0 + i % 16 < p.head_dim ? to_float(x[size_t(from + i / 16) * p.x_stride + i % 16]) : 0.0f;
        if (threadIdx.x < count) {
            const float dt = step_size<T>(p, from + threadIdx.x, head);
            dts[threadIdx.x] = dt, decays[threadIdx.x] = exp2_fast(dt * a);
        }
        __syncthreads();
        for (u32 t = 0; t < count; t++) {
            float y[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const float step = dts[t] * xs[t][warp * ROWS + r];
                y[r] = 0.0f;
#pragma unroll
                for (int i = 0; i < PER_LANE; i++) {
                    s[r][i] = decays[t] * s[r][i] + step * bs[t][lane + 32 * i];
                    y[r] += s[r][i] * cs[t][lane + 32 * i];
                }
            }
            // Lanes with bit 4 finish rows 2 and 3, bit 3 the odd ones.
            const bool high = lane & 16, odd = lane & 8;
            float u = (high ? y[2] : y[0]) + __shfl_xor_sync(FULL, high ? y[0] : y[2], 16);
            float v = (high ? y[3] : y[1]) + __shfl_xor_sync(FULL, high ? y[1] : y[3], 16);
            float sum = (odd ? v : u) + __shfl_xor_sync(FULL, odd ? u : v, 8);
            sum += __shfl_xor_sync(FULL, sum, 4), sum += __shfl_xor_sync(FULL, sum, 2), sum += __shfl_xor_sync(FULL, sum, 1);
            const u32 r = (high ? 2 : 0) + (odd ? 1 : 0), at = p0 + warp * ROWS + r;
            const float skipped = high ? (odd ? skip[3] : skip[2]) : (odd ? skip[1] : skip[0]);
            if (lane % 8 == 0 && at < p.head_dim)
                static_cast<T *>(p.y)[size_t(from + t) * p.y_stride + head * p.head_dim + at] =
                    from_float<T>(sum + skipped * xs[t][warp * ROWS + r]);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const u32 at = p0 + warp * ROWS + r;
        if (at < p.head_dim)
#pragma unroll
            for (int i = 0; i < PER_LANE; i++)
                if (lane + 32 * i < p.n) p.state[size_t(head * p.head_dim + at) * p.n + lane + 32 * i] = s[r][i];
    }
}
#define RECURRENT(suffix, T, per_lane)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128) ssd_recurrent_##per_lane##_##suffix(const __grid_constant__ SsdParams p) {       \
        recurrent<T, per_lane>(p);                                                                                                   \
    }
#define RECURRENTS(suffix, T) RECURRENT(suffix, T, 1) RECURRENT(suffix, T, 2) RECURRENT(suffix, T, 4) RECURRENT(suffix, T, 8)
RECURRENTS(f32, float)
RECURRENTS(bf16, __nv_bfloat16)
RECURRENTS(f16, __half)

// ---- tensor cores ----

constexpr int Q = 64, P = 64;  // tokens a chunk, channels a head

template <typename T> struct Pair;
template <> struct Pair<__nv_bfloat16> {
    static DEVICE u32 pack(float a, float b) {
        const __nv_bfloat162 two = __floats2bfloat162_rn(a, b);
        return *reinterpret_cast<const u32 *>(&two);
    }
    static DEVICE float2 unpack(u32 v) { return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(&v)); }
    static DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};
template <> struct Pair<__half> {
    static DEVICE u32 pack(float a, float b) {
        const __half2 two = __floats2half2_rn(a, b);
        return *reinterpret_cast<const u32 *>(&two);
    }
    static DEVICE float2 unpack(u32 v) { return __half22float2(*reinterpret_cast<const __half2 *>(&v)); }
    static DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

// A tile of 16-bit rows of WIDTH in shared memory; the 16-byte units of a row are permuted by the row, so that eight rows of a
// matrix fragment lie in eight different banks.
template <int WIDTH> struct Tile {
    static constexpr int UNITS = WIDTH / 8;
    u32 base;  // in shared memory, bytes
    DEVICE u32 unit(u32 row, u32 u) const { return base + (row * UNITS + (u ^ (row & 7))) * 16; }
    // Fragments: A of rows r0..+16, k0..+16 (row-major).
    DEVICE void a(u32 (&f)[4], u32 r0, u32 k0) const {
        const u32 lane = threadIdx.x % 32;
        ldmatrix(f, unit(r0 + lane % 16, k0 / 8 + lane / 16));
    }
    // A of the transpose: rows m0..+16 are columns, k0..+16 are rows.
    DEVICE void a_trans(u32 (&f)[4], u32 m0, u32 k0) const {
        const u32 lane = threadIdx.x % 32;
        ldmatrix_trans(f, unit(k0 + lane % 8 + lane / 16 * 8, m0 / 8 + lane / 8 % 2));
    }
    // B of n0..+16 (rows of this tile), k0..+16 (its columns): two fragments of 8, {f0, f1} and {f2, f3}.
    DEVICE void b(u32 (&f)[4], u32 n0, u32 k0) const {
        const u32 lane = threadIdx.x % 32;
        ldmatrix(f, unit(n0 + lane % 8 + lane / 16 * 8, k0 / 8 + lane / 8 % 2));
    }
    // B of n0..+16 (columns of this tile), k0..+16 (its rows).
    DEVICE void b_trans(u32 (&f)[4], u32 n0, u32 k0) const {
        const u32 lane = threadIdx.x % 32;
        ldmatrix_trans(f, unit(k0 + lane % 16, n0 / 8 + lane / 16));
    }
    static DEVICE void ldmatrix(u32 (&f)[4], u32 at) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3]) : "r"(at) : "memory");
    }
    static DEVICE void ldmatrix_trans(u32 (&f)[4], u32 at) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3]) : "r"(at) : "memory");
    }
    // Rows from global memory; those from `rows` on become zero.
    DEVICE void fetch(const void *from, size_t stride_bytes, u32 rows) const {
        for (u32 i = threadIdx.x; i < Q * UNITS; i += 128) {
            const u32 row = i / UNITS, u = i % UNITS;
            const char *at = static_cast<const char *>(from) + (row < rows ? row : 0) * stride_bytes + u * 16;
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(unit(row, u)), "l"(at), "r"(row < rows ? 16 : 0) : "memory");
        }
    }
};
DEVICE void store_shared(u32 at, u32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory"); }
DEVICE uint4 load_shared(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
    return v;
}

// OUT: makes y; otherwise only the state that the segment adds. Four warps: warp w owns tokens 16w..+16 of y and rows 16w..+16 of S.
template <typename T, int N, bool OUT> DEVICE void chunked(const SsdParams &p) {
    extern __shared__ __align__(128) char shared[];
    __shared__ float dts[Q], logs[Q], weights[Q];
    const u32 base = u32(__cvta_generic_to_shared(shared));
    const Tile<P> x{base};
    const Tile<N> b{base + Q * P * 2}, c{b.base + Q * N * 2}, state{c.base + Q * N * 2};
    const u32 head = blockIdx.x % p.heads, segment = blockIdx.x / p.heads, group = head * p.groups / p.heads;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4 * 2;
    const float a = p.a[head] * LOG2_E;
    const u32 start = segment * p.chunks * Q, end = min(p.tokens, start + p.chunks * Q);
    const T *xs = static_cast<const T *>(p.x) + head * P, *bs = static_cast<const T *>(p.b) + group * N;
    const T *cs = static_cast<const T *>(p.c) + group * N;
    // S[p][n], p = 16·warp + r (+8), n = 8j + q (+1).
    float s[N / 8][4];
    const float *first = !OUT ? nullptr : p.segments == 1 ? p.state + size_t(head) * P * N
                                                          : p.segment_state + (size_t(segment) * p.heads + head) * P * N;
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[j][i] = OUT ? first[(16 * warp + r + i / 2 * 8) * N + 8 * j + q + i % 2] : 0.0f;
    float total = 0.0f;
    for (u32 from = start; from < end; from += Q) {
        const u32 rows = min(u32(Q), end - from);
        x.fetch(xs + size_t(from) * p.x_stride, p.x_stride * 2, rows);
        b.fetch(bs + size_t(from) * p.bc_stride, p.bc_stride * 2, rows);
        if (OUT) c.fetch(cs + size_t(from) * p.bc_stride, p.bc_stride * 2, rows);
        asm volatile("cp.async.commit_group;" ::: "memory");
        if (OUT) {
            // The state's copy, for C.
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                const u32 row = 16 * warp + r;
                store_shared(state.unit(row, j) + q * 2, Pair<T>::pack(s[j][0], s[j][1]));
                store_shared(state.unit(row + 8, j) + q * 2, Pair<T>::pack(s[j][2], s[j][3]));
            }
        }
        // Steps and their running sums, two tokens a lane, by every warp alike; warp 0 shares them.
        {
            const u32 t = 2 * lane;
            const float d0 = t < rows ? step_size<T>(p, from + t, head) : 0.0f;
            const float d1 = t + 1 < rows ? step_size<T>(p, from + t + 1, head) : 0.0f;
            float sum = (d0 + d1) * a;
#pragma unroll
            for (int step = 1; step < 32; step <<= 1) {
                const float before = __shfl_up_sync(FULL, sum, step);
                if (lane >= step) sum += before;
            }
            const float last = __shfl_sync(FULL, sum, 31);
            const float l0 = sum - d1 * a;
            if (warp == 0) {
                dts[t] = d0, dts[t + 1] = d1, logs[t] = l0, logs[t + 1] = sum;
                weights[t] = exp2_fast(last - l0) * d0, weights[t + 1] = exp2_fast(last - sum) * d1;
            }
            total += last;
            // Of the whole chunk.
            const float decay = exp2_fast(last);
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) s[j][i] *= decay;
        }
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads();
        if (OUT) {
            const u32 t0 = 16 * warp;
            float g[Q / 8][4] = {}, y[P / 8][4] = {};
#pragma unroll
            for (int k = 0; k < N / 16; k++) {
                u32 fc[4];
                c.a(fc, t0, 16 * k);
#pragma unroll
                for (int j = 0; j < Q / 16; j++)
                    if (16 * j <= t0) {  // keys after these queries do not count
                        u32 fb[4];
                        b.b(fb, 16 * j, 16 * k);
                        Pair<T>::mma(g[2 * j], fc, fb[0], fb[1]);
                        Pair<T>::mma(g[2 * j + 1], fc, fb[2], fb[3]);
                    }
#pragma unroll
                for (int j = 0; j < P / 16; j++) {
                    u32 fs[4];
                    state.b(fs, 16 * j, 16 * k);
                    Pair<T>::mma(y[2 * j], fc, fs[0], fs[1]);
                    Pair<T>::mma(y[2 * j + 1], fc, fs[2], fs[3]);
                }
            }
            const float log0 = logs[t0 + r], log1 = logs[t0 + r + 8], e0 = exp2_fast(log0), e1 = exp2_fast(log1);
#pragma unroll
            for (int j = 0; j < P / 8; j++) y[j][0] *= e0, y[j][1] *= e0, y[j][2] *= e1, y[j][3] *= e1;
#pragma unroll
            for (int k = 0; k < Q / 16; k++)
                if (16 * k <= t0) {
                    u32 fg[4];
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const u32 at = 16 * k + 8 * half + q;
                        float (&v)[4] = g[2 * k + half];
                        const float w0 = dts[at], w1 = dts[at + 1], m0 = logs[at], m1 = logs[at + 1];
                        v[0] = at <= t0 + r ? v[0] * exp2_fast(log0 - m0) * w0 : 0.0f;
                        v[1] = at + 1 <= t0 + r ? v[1] * exp2_fast(log0 - m1) * w1 : 0.0f;
                        v[2] = at <= t0 + r + 8 ? v[2] * exp2_fast(log1 - m0) * w0 : 0.0f;
                        v[3] = at + 1 <= t0 + r + 8 ? v[3] * exp2_fast(log1 - m1) * w1 : 0.0f;
                        fg[2 * half] = Pair<T>::pack(v[0], v[1]), fg[2 * half + 1] = Pair<T>::pack(v[2], v[3]);
                    }
#pragma unroll
                    for (int j = 0; j < P / 16; j++) {
                        u32 fx[4];
                        x.b_trans(fx, 16 * j, 16 * k);
                        Pair<T>::mma(y[2 * j], fg, fx[0], fx[1]);
                        Pair<T>::mma(y[2 * j + 1], fg, fx[2], fx[3]);
                    }
                }
            // y + D x through this warp's own rows of C, which nobody else reads, to 16-byte stores.
            __syncwarp();
            const Tile<P> out{c.base + t0 * N * 2};
#pragma unroll
            for (int j = 0; j < P / 8; j++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const u32 row = r + 8 * half;
                    u32 raw;
                    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(raw) : "r"(x.unit(t0 + row, j) + q * 2) : "memory");
                    const float2 xv = Pair<T>::unpack(raw);
                    float d0 = 0.0f, d1 = 0.0f;
                    if (p.d) {
                        const u32 at = head * P + 8 * j + q;
                        d0 = p.d[p.d_by_channel ? at : head], d1 = p.d[p.d_by_channel ? at + 1 : head];
                    }
                    store_shared(out.unit(row, j) + q * 2, Pair<T>::pack(y[j][2 * half] + d0 * xv.x, y[j][2 * half + 1] + d1 * xv.y));
                }
            }
            __syncwarp();
            T *ys = static_cast<T *>(p.y) + head * P;
#pragma unroll
            for (int i = 0; i < 16 * P / 8 / 32; i++) {
                const u32 row = i * 4 + lane / 8, u = lane % 8;
                if (t0 + row < rows)
                    *reinterpret_cast<uint4 *>(ys + size_t(from + t0 + row) * p.y_stride + u * 8) = load_shared(out.unit(row, u));
            }
        }
        // S += Σ_s e^{…} Δ_s x_s ⊗ B_s; the decay was applied above.
#pragma unroll
        for (int k = 0; k < Q / 16; k++) {
            u32 fx[4];
            x.a_trans(fx, 16 * warp, 16 * k);
            const float w[4] = {weights[16 * k + q], weights[16 * k + q + 1], weights[16 * k + 8 + q], weights[16 * k + 9 + q]};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 v = Pair<T>::unpack(fx[i]);
                fx[i] = Pair<T>::pack(v.x * w[i / 2 * 2], v.y * w[i / 2 * 2 + 1]);
            }
#pragma unroll
            for (int j = 0; j < N / 16; j++) {
                u32 fb[4];
                b.b_trans(fb, 16 * j, 16 * k);
                Pair<T>::mma(s[2 * j], fx, fb[0], fb[1]);
                Pair<T>::mma(s[2 * j + 1], fx, fb[2], fb[3]);
            }
        }
        __syncthreads();
    }
    float *last = OUT ? (segment + 1 == p.segments ? p.state + size_t(head) * P * N : nullptr)
                      : p.segment_state + (size_t(segment + 1) * p.heads + head) * P * N;
    if (last)
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) last[(16 * warp + r + i / 2 * 8) * N + 8 * j + q + i % 2] = s[j][i];
    if (!OUT && threadIdx.x == 0) p.segment_decay[segment * p.heads + head] = total;
}

#define CHUNKED(suffix, T, N)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(128, 3) ssd_chunk_##N##_##suffix(const __grid_constant__ SsdParams p) {              \
        chunked<T, N, true>(p);                                                                                                      \
    }                                                                                                                                \
    extern "C" __global__ void __launch_bounds__(128, 4) ssd_segment_##N##_##suffix(const __grid_constant__ SsdParams p) {            \
        chunked<T, N, false>(p);                                                                                                     \
    }
CHUNKED(bf16, __nv_bfloat16, 64)
CHUNKED(bf16, __nv_bfloat16, 128)
CHUNKED(f16, __half, 64)
CHUNKED(f16, __half, 128)

// Slot s of `segment_state` holds what segment s − 1 added; it becomes the state from which segment s starts.
extern "C" __global__ void __launch_bounds__(256) ssd_carry(const __grid_constant__ SsdParams p) {
    const u32 per_head = p.head_dim * p.n, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.heads * per_head) return;
    float state = p.state[i];
    p.segment_state[i] = state;
    for (u32 segment = 1; segment < p.segments; segment++) {
        float &slot = p.segment_state[size_t(segment) * p.heads * per_head + i];
        state = exp2_fast(p.segment_decay[(segment - 1) * p.heads + i / per_head]) * state + slot;
        slot = state;
    }
}
