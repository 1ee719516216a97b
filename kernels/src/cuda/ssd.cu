// State-space duality over any length.
//
// `ssd_recurrent_*`: f32 arithmetic throughout, any shape; a warp keeps four rows of a state in registers and walks along time.
//
// `ssd_chunk_*`: 16-bit inputs, P = 64, N = 64 or 128, on tensor cores with f32 sums (mma.sync). A block takes one head and one
// segment of the text, chunk by chunk of 64 tokens; the state stays in its registers, a 16-bit copy in shared memory meets C. Nothing
// but y and one state a segment is written. Long texts are cut in segments so that all multiprocessors work: `ssd_segment_*` first
// makes the state that each segment adds (a quarter of the work), `ssd_carry` runs them on, and every segment then starts from its own.
// ssd_hopper.cu does the same on Hopper, ssd_f32.cu for inputs in f32; both may make a segment's state of parts.
#include "ssd.cuh"

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

constexpr int CHUNK_THREADS = 256;

// A tile of 16-bit rows of WIDTH in shared memory; the 16-byte units of a row are permuted by the row, so that eight rows of a
// matrix fragment lie in eight different banks. Fragments start at multiples of 16 rows and units, so a lane's offset within them is
// made once (`a_lane` …) and the fragment's place is joined by one exclusive or.
template <int WIDTH> struct Tile {
    static constexpr int UNITS = WIDTH / 8, ROW = UNITS * 16;
    u32 base;  // in shared memory, bytes
    static DEVICE u32 offset(u32 row, u32 u) { return row * ROW + ((u ^ (row & 7)) << 4); }
    DEVICE u32 unit(u32 row, u32 u) const { return base + offset(row, u); }

    // A of rows r0..+16, k0..+16 (row-major).
    static DEVICE u32 a_lane() { return offset(threadIdx.x % 16, threadIdx.x / 16 % 2); }
    DEVICE void a(u32 (&f)[4], u32 lane, u32 r0, u32 k0) const { ldmatrix(f, base + (lane ^ (k0 * 2)) + r0 * ROW); }
    // A of the transpose: rows m0..+16 are columns, k0..+16 are rows.
    static DEVICE u32 a_trans_lane() { return offset(threadIdx.x % 8 + threadIdx.x / 16 % 2 * 8, threadIdx.x / 8 % 2); }
    DEVICE void a_trans(u32 (&f)[4], u32 lane, u32 m0, u32 k0) const { ldmatrix_trans(f, base + (lane ^ (m0 * 2)) + k0 * ROW); }
    // B of n0..+16 (rows of this tile), k0..+16 (its columns): two fragments of 8, {f0, f1} and {f2, f3}.
    static DEVICE u32 b_lane() { return a_trans_lane(); }
    DEVICE void b(u32 (&f)[4], u32 lane, u32 n0, u32 k0) const { ldmatrix(f, base + (lane ^ (k0 * 2)) + n0 * ROW); }
    // B of n0..+16 (columns of this tile), k0..+16 (its rows).
    static DEVICE u32 b_trans_lane() { return a_lane(); }
    DEVICE void b_trans(u32 (&f)[4], u32 lane, u32 n0, u32 k0) const { ldmatrix_trans(f, base + (lane ^ (n0 * 2)) + k0 * ROW); }

    static DEVICE void ldmatrix(u32 (&f)[4], u32 at) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3]) : "r"(at) : "memory");
    }
    static DEVICE void ldmatrix_trans(u32 (&f)[4], u32 at) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3]) : "r"(at) : "memory");
    }
    // Rows from global memory; those from `rows` on become zero.
    DEVICE void fetch(const void *from, u32 stride_bytes, u32 rows) const {
        constexpr u32 STEP = CHUNK_THREADS / UNITS;  // rows a round, a multiple of 8
        const u32 row = threadIdx.x / UNITS, to = unit(row, threadIdx.x % UNITS);
        const char *at = static_cast<const char *>(from) + size_t(row) * stride_bytes + threadIdx.x % UNITS * 16;
#pragma unroll
        for (u32 i = 0; i < Q / STEP; i++) {
            const bool on = row + i * STEP < rows;
            const char *here = on ? at + size_t(i * STEP) * stride_bytes : static_cast<const char *>(from);
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + i * STEP * ROW), "l"(here), "r"(on ? 16 : 0) : "memory");
        }
    }
};
DEVICE void store_shared(u32 at, u32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory"); }
// OUT: makes y; otherwise only the state that the segment adds. Eight warps: warp w owns tokens 16·(w/2)..+16 and channels 32·(w%2)..+32
// of y, and of S channels 16·(w/2)..+16 and half w%2 of the states. The next chunk is on its way while one is computed.
template <typename T, int N, bool OUT> DEVICE void chunked(const SsdParams &p) {
    extern __shared__ __align__(128) char shared[];
    __shared__ __align__(8) float dts[Q], logs[Q], weights[Q];
    constexpr u32 X_BYTES = Q * P * 2, B_BYTES = Q * N * 2, STAGE = X_BYTES + (OUT ? 2 : 1) * B_BYTES;
    constexpr int STATES = N / 2, TILES = STATES / 8;  // states a warp, their fragments
    const u32 base = u32(__cvta_generic_to_shared(shared));
    const Tile<N> state{base + 2 * STAGE};
    const u32 head = blockIdx.x % p.heads, segment = blockIdx.x / p.heads, group = head * p.groups / p.heads;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4 * 2;
    const u32 row0 = 16 * (warp / 2), half = warp % 2;
    const u32 wide_a = Tile<N>::a_lane(), wide_b = Tile<N>::b_lane(), narrow_bt = Tile<P>::b_trans_lane() ^ (64 * half);
    const u32 narrow_at = Tile<P>::a_trans_lane() ^ (2 * row0), wide_bt = Tile<N>::b_trans_lane() ^ (2 * STATES * half);
    const float a = p.a[head] * LOG2_E;
    const u32 start = segment * p.chunks * Q, end = min(p.tokens, start + p.chunks * Q);
    const T *xs = static_cast<const T *>(p.x) + head * P, *bs = static_cast<const T *>(p.b) + group * N;
    const T *cs = static_cast<const T *>(p.c) + group * N;
    // S[c][n], c = row0 + r (+8), n = STATES·half + 8j + q (+1).
    float s[TILES][4];
    const float *first = !OUT ? nullptr : p.segments == 1 ? p.state + size_t(head) * P * N
                                                          : p.segment_state + (size_t(segment) * p.heads + head) * P * N;
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[j][i] = OUT ? first[(row0 + r + i / 2 * 8) * N + STATES * half + 8 * j + q + i % 2] : 0.0f;
    auto copy_state = [&] {
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            const u32 unit = TILES * half + j;
            store_shared(state.unit(row0 + r, unit) + q * 2, Pair<T>::pack(s[j][0], s[j][1]));
            store_shared(state.unit(row0 + r + 8, unit) + q * 2, Pair<T>::pack(s[j][2], s[j][3]));
        }
    };
    if (OUT) copy_state();
    float skip[4][2];
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 at = head * P + 32 * half + 8 * j + q + i;
            skip[j][i] = OUT && p.d ? p.d[p.d_by_channel ? at : head] : 0.0f;
        }
    auto fetch = [&](u32 from, u32 stage) {
        if (from < end) {
            const u32 rows = min(u32(Q), end - from), at = base + stage * STAGE;
            Tile<P>{at}.fetch(xs + size_t(from) * p.x_stride, p.x_stride * 2, rows);
            Tile<N>{at + X_BYTES}.fetch(bs + size_t(from) * p.bc_stride, p.bc_stride * 2, rows);
            if (OUT) Tile<N>{at + X_BYTES + B_BYTES}.fetch(cs + size_t(from) * p.bc_stride, p.bc_stride * 2, rows);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    // Steps, two tokens a lane of warp 0, of the chunk to come.
    float d0 = 0.0f, d1 = 0.0f;
    auto fetch_steps = [&](u32 from) {
        const u32 t = from + 2 * lane;
        d0 = t < end ? step_size<T>(p, t, head) : 0.0f;
        d1 = t + 1 < end ? step_size<T>(p, t + 1, head) : 0.0f;
    };
    fetch(start, 0);
    if (warp == 0) fetch_steps(start);
    float total = 0.0f;
    u32 stage = 0;
    for (u32 from = start; from < end; from += Q, stage ^= 1) {
        const u32 rows = min(u32(Q), end - from), at = base + stage * STAGE;
        const Tile<P> x{at};
        const Tile<N> b{at + X_BYTES}, c{at + X_BYTES + B_BYTES};
        fetch(from + Q, stage ^ 1);
        if (warp == 0) {
            float sum = (d0 + d1) * a;
#pragma unroll
            for (int step = 1; step < 32; step <<= 1) {
                const float before = __shfl_up_sync(FULL, sum, step);
                if (lane >= step) sum += before;
            }
            const float last = __shfl_sync(FULL, sum, 31), earlier = sum - d1 * a;
            const u32 t = 2 * lane;
            dts[t] = d0, dts[t + 1] = d1, logs[t] = earlier, logs[t + 1] = sum;
            weights[t] = exp2_fast(last - earlier) * d0, weights[t + 1] = exp2_fast(last - sum) * d1;
        }
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        if (warp == 0) fetch_steps(from + Q);
        const float last = logs[Q - 1];
        if (OUT) {
            float g[Q / 8][4] = {}, y[4][4] = {};
#pragma unroll
            for (int k = 0; k < N / 16; k++) {
                u32 fc[4];
                c.a(fc, wide_a, row0, 16 * k);
#pragma unroll
                for (int j = 0; j < Q / 16; j++)
                    if (16 * j <= row0) {  // keys after these queries do not count
                        u32 fb[4];
                        b.b(fb, wide_b, 16 * j, 16 * k);
                        Pair<T>::mma(g[2 * j], fc, fb[0], fb[1]);
                        Pair<T>::mma(g[2 * j + 1], fc, fb[2], fb[3]);
                    }
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    u32 fs[4];
                    state.b(fs, wide_b, 32 * half + 16 * j, 16 * k);
                    Pair<T>::mma(y[2 * j], fc, fs[0], fs[1]);
                    Pair<T>::mma(y[2 * j + 1], fc, fs[2], fs[3]);
                }
            }
            const float log0 = logs[row0 + r], log1 = logs[row0 + r + 8], e0 = exp2_fast(log0), e1 = exp2_fast(log1);
#pragma unroll
            for (int j = 0; j < 4; j++) y[j][0] *= e0, y[j][1] *= e0, y[j][2] *= e1, y[j][3] *= e1;
#pragma unroll
            for (int k = 0; k < Q / 16; k++)
                if (16 * k <= row0) {
                    u32 fg[4];
#pragma unroll
                    for (int part = 0; part < 2; part++) {
                        const u32 key = 16 * k + 8 * part + q;
                        float (&v)[4] = g[2 * k + part];
                        const float2 w = *reinterpret_cast<float2 *>(&dts[key]), m = *reinterpret_cast<float2 *>(&logs[key]);
                        const float w0 = w.x, w1 = w.y, m0 = m.x, m1 = m.y;
                        v[0] *= exp2_fast(log0 - m0) * w0, v[1] *= exp2_fast(log0 - m1) * w1;
                        v[2] *= exp2_fast(log1 - m0) * w0, v[3] *= exp2_fast(log1 - m1) * w1;
                        if (16 * k == row0) {  // the future, where the exponential may be infinite
                            if (key > row0 + r) v[0] = 0.0f;
                            if (key + 1 > row0 + r) v[1] = 0.0f;
                            if (key > row0 + r + 8) v[2] = 0.0f;
                            if (key + 1 > row0 + r + 8) v[3] = 0.0f;
                        }
                        fg[2 * part] = Pair<T>::pack(v[0], v[1]), fg[2 * part + 1] = Pair<T>::pack(v[2], v[3]);
                    }
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        u32 fx[4];
                        x.b_trans(fx, narrow_bt, 16 * j, 16 * k);
                        Pair<T>::mma(y[2 * j], fg, fx[0], fx[1]);
                        Pair<T>::mma(y[2 * j + 1], fg, fx[2], fx[3]);
                    }
                }
            T *ys = static_cast<T *>(p.y) + head * P + 32 * half + q;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const u32 row = row0 + r + 8 * i;
                if (row < rows)
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        u32 raw;
                        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(raw) : "r"(x.unit(row, 4 * half + j) + q * 2) : "memory");
                        const float2 v = Pair<T>::unpack(raw);
                        *reinterpret_cast<u32 *>(ys + size_t(from + row) * p.y_stride + 8 * j) =
                            Pair<T>::pack(y[j][2 * i] + skip[j][0] * v.x, y[j][2 * i + 1] + skip[j][1] * v.y);
                    }
            }
        }
        // S ← e^{…} S + Σ_s e^{…} Δ_s x_s ⊗ B_s.
        total += last;
        const float decay = exp2_fast(last);
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[j][i] *= decay;
#pragma unroll
        for (int k = 0; k < Q / 16; k++) {
            u32 fx[4];
            x.a_trans(fx, narrow_at, 0, 16 * k);
            const float2 w0 = *reinterpret_cast<float2 *>(&weights[16 * k + q]), w1 = *reinterpret_cast<float2 *>(&weights[16 * k + 8 + q]);
            const float w[4] = {w0.x, w0.y, w1.x, w1.y};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 v = Pair<T>::unpack(fx[i]);
                fx[i] = Pair<T>::pack(v.x * w[i / 2 * 2], v.y * w[i / 2 * 2 + 1]);
            }
#pragma unroll
            for (int j = 0; j < TILES / 2; j++) {
                u32 fb[4];
                b.b_trans(fb, wide_bt, 16 * j, 16 * k);
                Pair<T>::mma(s[2 * j], fx, fb[0], fb[1]);
                Pair<T>::mma(s[2 * j + 1], fx, fb[2], fb[3]);
            }
        }
        __syncthreads();
        if (OUT) copy_state();
    }
    float *to = OUT ? (segment + 1 == p.segments ? p.state + size_t(head) * P * N : nullptr)
                    : p.segment_state + (size_t(segment + 1) * p.heads + head) * P * N;
    if (to)
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) to[(row0 + r + i / 2 * 8) * N + STATES * half + 8 * j + q + i % 2] = s[j][i];
    if (!OUT && threadIdx.x == 0) p.segment_decay[segment * p.heads + head] = total;
}

#define CHUNKED(suffix, T, N)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(CHUNK_THREADS, 2) ssd_chunk_##N##_##suffix(const __grid_constant__ SsdParams p) {              \
        chunked<T, N, true>(p);                                                                                                      \
    }                                                                                                                                \
    extern "C" __global__ void __launch_bounds__(CHUNK_THREADS, 3) ssd_segment_##N##_##suffix(const __grid_constant__ SsdParams p) {            \
        chunked<T, N, false>(p);                                                                                                     \
    }
CHUNKED(bf16, __nv_bfloat16, 64)
CHUNKED(bf16, __nv_bfloat16, 128)
CHUNKED(f16, __half, 64)
CHUNKED(f16, __half, 128)

// Slot i of `segment_state` holds what part i − 1 added; where a segment starts, it becomes the state from which that one does.
extern "C" __global__ void __launch_bounds__(256) ssd_carry(const __grid_constant__ SsdParams p) {
    let_next_start();
    wait_for_previous();
    const u32 per_head = p.head_dim * p.n, i = blockIdx.x * blockDim.x + threadIdx.x, slots = (p.segments - 1) * p.parts + 1;
    if (i >= p.heads * per_head) return;
    float state = p.state[i];
    p.segment_state[i] = state;
    constexpr int AHEAD = 8;
    for (u32 from = 1; from < slots; from += AHEAD) {
        float added[AHEAD], decay[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (from + j < slots) {
                added[j] = p.segment_state[size_t(from + j) * p.heads * per_head + i];
                decay[j] = p.segment_decay[(from + j - 1) * p.heads + i / per_head];
            }
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (from + j < slots) {
                state = exp2_fast(decay[j]) * state + added[j];
                if ((from + j) % p.parts == 0) p.segment_state[size_t(from + j) * p.heads * per_head + i] = state;
            }
    }
}
