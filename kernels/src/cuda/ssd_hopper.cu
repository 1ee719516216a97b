// State-space duality on Hopper (sm_90a): 16-bit inputs, P = 64, N = 64 or 128. What it makes, and the passes over a long text, are those
// of ssd.cu.
//
// A block takes two heads of a group and one segment after another, chunk by chunk of 64 tokens, so that B and C come once for both. One
// warp asks the copy engine for x, B and C, one a head makes the steps and their sums. A warpgroup a head keeps the state in registers,
// adds a chunk to it by wgmma (A: the weighted xᵀ from registers, B as it lies) and leaves a 16-bit copy in shared memory, two chunks
// ahead at most; another makes y: C Bᵀ, whose sums become, masked and decayed, the left operand in registers of the product with x, on
// top of C Sᵀ. y leaves by the copy engine through the copy of the state, which C has met by then.
//
// The pass before, of states alone, takes four heads a block, all four warpgroups with one each.
#include "gemm_hopper.cuh"
#include "ssd.cuh"

struct HopperSsdParams {
    TensorMap x, b, c, y;  // boxes of 64 × 64
    SsdParams of;
    u32 pad[10];
};

constexpr u32 SSD_THREADS = 640, TILE = 64 * 128;  // bytes of 64 rows of 64 numbers
// Registers of a thread of the warpgroup that copies and of those that multiply: 32 + 4 · 112 = 5 · 96.
constexpr u32 SSD_FEW = 32, SSD_MANY = 112;

// The lower halves of descriptors of operands in tiles swizzled by 16: rows along K do not need the distance of the next 64 columns; where
// rows lie across K that is TILE bytes. Sixteen numbers, or rows, further along K is ALONG, or ACROSS, more.
constexpr u32 ALONG = 16 * 2 >> 4, ACROSS = 16 * 128 >> 4;
DEVICE u32 along_at(u32 at) { return at >> 4 | 1 << 16; }
DEVICE u32 across_at(u32 at) { return at >> 4 | (TILE >> 4) << 16; }
DEVICE u64 operand(u32 low) { return u64(1024 >> 4 | 1 << 30) << 32 | low; }

#define SSD_WGMMA(n, type, sums, x, w, more, last, ...)                                                                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " more ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" sums "}, " x \
                 ", " w ", p, 1, 1, " last ";\n}" __VA_ARGS__)
template <typename T> constexpr bool BRAIN = false;
template <> constexpr bool BRAIN<__nv_bfloat16> = true;
// d [64, 64] (+)= 64 rows × 16 at x times 64 rows × 16 at w, both along K.
template <typename T> DEVICE void along(float (&d)[32], u32 x, u32 w, u32 more) {
#define OPERANDS "l"(operand(x)), "l"(operand(w)), "r"(more)
    if constexpr (BRAIN<T>) SSD_WGMMA(64, "bf16", SUMS64, "%32", "%33", "%34", "0, 0", : OUT32(0) : OPERANDS);
    else SSD_WGMMA(64, "f16", SUMS64, "%32", "%33", "%34", "0, 0", : OUT32(0) : OPERANDS);
#undef OPERANDS
}
// d [64, N] += 64 rows × 16 in registers times 16 rows × N at w, which lie across.
template <typename T, int N> DEVICE void add_across(float (&d)[N / 2], const u32 (&x)[4], u32 w) {
#define OPERANDS "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(operand(w)), "r"(1)
    if constexpr (N == 64 && BRAIN<T>) SSD_WGMMA(64, "bf16", SUMS64, "{%32,%33,%34,%35}", "%36", "%37", "1", : OUT32(0) : OPERANDS);
    if constexpr (N == 64 && !BRAIN<T>) SSD_WGMMA(64, "f16", SUMS64, "{%32,%33,%34,%35}", "%36", "%37", "1", : OUT32(0) : OPERANDS);
    if constexpr (N == 128 && BRAIN<T>) SSD_WGMMA(128, "bf16", SUMS128, "{%64,%65,%66,%67}", "%68", "%69", "1", : OUT64 : OPERANDS);
    if constexpr (N == 128 && !BRAIN<T>) SSD_WGMMA(128, "f16", SUMS128, "{%64,%65,%66,%67}", "%68", "%69", "1", : OUT64 : OPERANDS);
#undef OPERANDS
}
DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all products but the last `PENDING` groups; `d`, sums of one of those waited for, is read only from here on.
template <int PENDING, int COUNT> DEVICE void products_wait(float (&d)[COUNT]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}
// Of each thread, whose reads and writes before it count: what it read must have arrived, that is, been used.
DEVICE void arrive(u32 barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }
DEVICE void read_matrices(u32 (&f)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3]) : "r"(at) : "memory");
}
DEVICE void read_transposed(u32 (&f)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3]) : "r"(at) : "memory");
}
DEVICE void write_matrices(u32 at, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

// Of a chunk and head, by token: log2 of the decay from its start; the same less log2 of the step (step sizes are not negative); the step
// times the decay from there to the end of its 16 tokens; the token's weight in the state after the chunk.
struct alignas(16) Steps {
    float log[Q], key[Q], column[Q], weight[Q];
};

// Scores [64, 64] of a warpgroup, of whose warps this is number W: those of each query with the keys up to it, times the decay between them
// and the step of the key, as the left operand of a product. Keys of 16 tokens before the query's take the decay to the end of theirs, and
// from there; both are at most one.
template <typename T, int W> DEVICE void decayed(const float (&g)[32], u32 (&out)[4][4], const Steps &step, u32 r, u32 q) {
    const float log0 = step.log[16 * W + r], log1 = step.log[16 * W + r + 8];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        float row0 = 0.0f, row1 = 0.0f;
        if (k < W) {
            const float end = step.log[16 * k + 15];
            row0 = exp2_fast(log0 - end), row1 = exp2_fast(log1 - end);
        }
#pragma unroll
        for (int part = 0; part < 2; part++) {
            float v[4] = {};
            const float *of = g + 8 * k + 4 * part;
            if (k < W) {
                const float2 c = *reinterpret_cast<const float2 *>(step.column + 16 * k + 8 * part + q);
                v[0] = of[0] * (row0 * c.x), v[1] = of[1] * (row0 * c.y), v[2] = of[2] * (row1 * c.x), v[3] = of[3] * (row1 * c.y);
            }
            if (k == W) {
                const float2 m = *reinterpret_cast<const float2 *>(step.key + 16 * k + 8 * part + q);
                if (part == 0) v[0] = of[0] * exp2_fast(log0 - m.x), v[1] = of[1] * exp2_fast(log0 - m.y);
                v[2] = of[2] * exp2_fast(log1 - m.x), v[3] = of[3] * exp2_fast(log1 - m.y);
                float *edge = v + 2 * part;  // the future, where the exponential may be infinite
                if (q > r) edge[0] = 0.0f;
                if (q + 1 > r) edge[1] = 0.0f;
            }
            out[k][2 * part] = Pair<T>::pack(v[0], v[1]), out[k][2 * part + 1] = Pair<T>::pack(v[2], v[3]);
        }
    }
}

template <typename T, int N, bool OUT> DEVICE void hopper_ssd(const HopperSsdParams &params) {
    constexpr u32 HEADS = OUT ? 2 : 4, STAGES = OUT ? 3 : 4, B_TILES = N / 64, B_AT = HEADS * TILE, C_AT = B_AT + B_TILES * TILE;
    constexpr u32 STAGE = OUT ? C_AT + B_TILES * TILE : C_AT, STATE = B_TILES * TILE;
    extern __shared__ unsigned char memory[];
    __shared__ Steps steps[STAGES][HEADS];
    __shared__ u64 barriers[2 * STAGES + 4 * HEADS];
    __shared__ __align__(8) float skips[HEADS][P];
    const SsdParams &p = params.of;
    const u32 base = (shared_address(memory) + 1023) / 1024 * 1024, states = base + STAGES * STAGE;
    u32 thread;  // kept: the compiler would read it again and again, which is slow
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    const u32 warp = thread / 32 % 4, lane = thread % 32, r = lane / 4, q = lane % 4 * 2;
    auto full = [&](u32 stage) { return shared_address(barriers + stage); };
    auto empty = [&](u32 stage) { return shared_address(barriers + STAGES + stage); };
    // Of copy 0 or 1 of a head's state.
    auto written = [&](u32 head, u32 copy) { return shared_address(barriers + 2 * STAGES + 4 * head + copy); };
    auto read = [&](u32 head, u32 copy) { return shared_address(barriers + 2 * STAGES + 4 * head + 2 + copy); };
    if (thread == 0) {
        auto init = [](u32 at, u32 count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count)); };
        for (u32 s = 0; s < STAGES; s++) init(full(s), 1 + 32), init(empty(s), 512);
        for (u32 h = 0; h < HEADS; h++)
            for (u32 copy = 0; copy < 2; copy++) init(written(h, copy), 128), init(read(h, copy), 128);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    let_next_start();
    wait_for_previous();
    const u32 chunks = OUT ? p.chunks : p.chunks / p.parts;
    const u32 items = Item<HEADS>::count(p, OUT ? p.segments : (p.segments - 1) * p.parts);
    u32 stage = 0, parity = 0;
    auto advance = [&] {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    };
    if (thread < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(SSD_FEW));
        if (warp == 0 && lane == 0) {
            for (u32 i = blockIdx.x; i < items; i += gridDim.x) {
                const Item<HEADS> item(p, i, chunks);
                for (u32 from = item.start; from < item.end; from += Q, advance()) {
                    const u32 to = base + stage * STAGE;
                    wait_for(empty(stage), parity ^ 1);
                    expect_bytes(full(stage), STAGE);
                    for (u32 j = 0; j < B_TILES; j++) fetch(to + B_AT + j * TILE, params.b, item.group * N + 64 * j, from, full(stage));
                    for (u32 j = 0; OUT && j < B_TILES; j++) fetch(to + C_AT + j * TILE, params.c, item.group * N + 64 * j, from, full(stage));
                    for (u32 j = 0; j < HEADS; j++) fetch(to + j * TILE, params.x, item.head(j) * P, from, full(stage));
                }
            }
        } else if (warp) {
            // Steps: each of three warps makes every third chunk's, two tokens a lane.
            u32 turn = 1;
            for (u32 i = blockIdx.x; i < items; i += gridDim.x) {
                const Item<HEADS> item(p, i, chunks);
                for (u32 from = item.start; from < item.end; from += Q, advance(), turn = turn == 3 ? 1 : turn + 1) {
                    if (turn != warp) continue;
                    float d[HEADS][2];
#pragma unroll
                    for (u32 h = 0; h < HEADS; h++)
#pragma unroll
                        for (u32 k = 0; k < 2; k++) {
                            const u32 t = from + 2 * lane + k;
                            d[h][k] = t < item.end ? to_float(static_cast<const T *>(p.delta)[size_t(t) * p.delta_stride + item.head(h)]) : 0.0f;
                        }
                    wait_for(empty(stage), parity ^ 1);
#pragma unroll
                    for (u32 h = 0; h < HEADS; h++) {
                        const float a = p.a[item.head(h)] * LOG2_E;
#pragma unroll
                        for (u32 k = 0; k < 2; k++) d[h][k] = from + 2 * lane + k < item.end ? step_of(p, d[h][k], item.head(h)) : 0.0f;
                        const float d0 = d[h][0], d1 = d[h][1];
                        float sum = (d0 + d1) * a;
#pragma unroll
                        for (int step = 1; step < 32; step <<= 1) {
                            const float before = __shfl_up_sync(FULL, sum, step);
                            if (lane >= step) sum += before;
                        }
                        const float last = __shfl_sync(FULL, sum, 31), end = __shfl_sync(FULL, sum, lane | 7), earlier = sum - d1 * a;
                        Steps &to = steps[stage][h];
                        *reinterpret_cast<float2 *>(to.log + 2 * lane) = make_float2(earlier, sum);
                        *reinterpret_cast<float2 *>(to.key + 2 * lane) = make_float2(earlier - __log2f(d0), sum - __log2f(d1));
                        *reinterpret_cast<float2 *>(to.column + 2 * lane) = make_float2(exp2_fast(end - earlier) * d0, exp2_fast(end - sum) * d1);
                        *reinterpret_cast<float2 *>(to.weight + 2 * lane) = make_float2(exp2_fast(last - earlier) * d0, exp2_fast(last - sum) * d1);
                    }
                    arrive(full(stage));
                }
            }
        }
        __syncwarp();
        return;
    }
    const u32 own = (thread / 128 - 1) % HEADS, row = 16 * warp + lane % 16;  // `row`: whose address this lane gives for matrices
    u32 copy = 0, copy_parity = 0;
    auto next_copy = [&] {
        if (copy ^= 1; copy == 0) copy_parity ^= 1;
    };
    if (!OUT || thread >= 128 + 128 * HEADS) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(SSD_MANY));
        // The state [64, N]: S[c][n], c = 16 · warp + r (+8), n = 8 j + q (+1) in s[4 j …].
        float s[N / 2];
        auto leave_copy = [&] {
            wait_for(read(own, copy), copy_parity ^ 1);
            const u32 to = states + (2 * own + copy) * STATE + row * 128;
#pragma unroll
            for (u32 j = 0; j < N / 8; j += 2) {
                const float *of = s + 4 * j;
                write_matrices(to + j / 8 * TILE + (((j % 8 + lane / 16) ^ (row & 7)) << 4), Pair<T>::pack(of[0], of[1]), Pair<T>::pack(of[2], of[3]),
                               Pair<T>::pack(of[4], of[5]), Pair<T>::pack(of[6], of[7]));
            }
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            arrive(written(own, copy));
            next_copy();
        };
        const u32 x_row = lane % 8 + lane / 16 * 8, x_unit = 2 * warp + lane / 8 % 2;
        for (u32 i = blockIdx.x; i < items; i += gridDim.x) {
            const Item<HEADS> item(p, i, chunks);
            const u32 head = item.head(own);
            const u32 place = (16 * warp + r) * N + q;  // s[0] within [P, N]
            const float *first = p.segments == 1 ? p.state + size_t(head) * P * N + place
                                                 : p.segment_state + (size_t(item.segment) * p.parts * p.heads + head) * P * N + place;
            float total = 0.0f;
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float2 v = make_float2(0.0f, 0.0f);
                    if (OUT) v = *reinterpret_cast<const float2 *>(first + half * 8 * N + 8 * j);
                    s[4 * j + 2 * half] = v.x, s[4 * j + 2 * half + 1] = v.y;
                }
            if (OUT) leave_copy();
            for (u32 from = item.start; from < item.end; from += Q, advance()) {
                const u32 at = base + stage * STAGE;
                wait_for(full(stage), parity);
                const Steps &step = steps[stage][own];
                u32 fx[4][4];
#pragma unroll
                for (u32 k = 0; k < 4; k++) {
                    read_transposed(fx[k], at + own * TILE + (16 * k + x_row) * 128 + ((x_unit ^ (x_row & 7)) << 4));
                    const float2 w0 = *reinterpret_cast<const float2 *>(step.weight + 16 * k + q);
                    const float2 w1 = *reinterpret_cast<const float2 *>(step.weight + 16 * k + 8 + q);
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        const float2 v = Pair<T>::unpack(fx[k][j]), w = j < 2 ? w0 : w1;
                        fx[k][j] = Pair<T>::pack(v.x * w.x, v.y * w.y);
                    }
                }
                const float last = step.log[Q - 1], decay = exp2_fast(last);
                total += last;
#pragma unroll
                for (int j = 0; j < N / 2; j++) s[j] *= decay;
                products_begin();
#pragma unroll
                for (u32 k = 0; k < 4; k++) add_across<T, N>(s, fx[k], across_at(at + B_AT) + k * ACROSS);
                products_end();
                products_wait<0>(s);
                arrive(empty(stage));
                if (OUT && from + Q < item.end) leave_copy();
            }
            float *to = OUT ? p.state + size_t(head) * P * N : p.segment_state + (size_t(item.segment + 1) * p.heads + head) * P * N;
            if (item.is_own(own) && (!OUT || item.segment + 1 == p.segments)) {
                to += place;
#pragma unroll
                for (int j = 0; j < N / 8; j++)
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        *reinterpret_cast<float2 *>(to + half * 8 * N + 8 * j) = make_float2(s[4 * j + 2 * half], s[4 * j + 2 * half + 1]);
                if (!OUT && thread % 128 == 0) p.segment_decay[item.segment * p.heads + head] = total;
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(SSD_MANY));
        u32 leaving = 0;  // the copy of the state through which y leaves, whose reader says so
        float g[32];      // C Bᵀ, begun while the chunk before is finished
        auto begin_scores = [&] {
            const u32 at = base + stage * STAGE;
            wait_for(full(stage), parity);
            products_begin();
#pragma unroll
            for (u32 k = 0; k < N / 16; k++) {
                const u32 offset = k / 4 * (TILE >> 4) + k % 4 * ALONG;
                along<T>(g, along_at(at + C_AT) + offset, along_at(at + B_AT) + offset, k);
            }
            products_end();
        };
        if (blockIdx.x < items) begin_scores();
        products_wait<0>(g);
        for (u32 i = blockIdx.x; i < items; i += gridDim.x) {
            const Item<HEADS> item(p, i, chunks);
            const u32 head = item.head(own);
            // Read behind a barrier of the warpgroup.
            if (thread % 128 < P) skips[own][thread % 128] = p.d ? p.d[p.d_by_channel ? head * P + thread % 128 : head] : 0.0f;
            for (u32 from = item.start; from < item.end; from += Q) {
                const u32 at = base + stage * STAGE, room = states + (2 * own + copy) * STATE, done = empty(stage);
                const Steps &step = steps[stage][own];
                float y[32];
                wait_for(written(own, copy), copy_parity);
                products_begin();
#pragma unroll
                for (u32 k = 0; k < N / 16; k++) {
                    const u32 offset = k / 4 * (TILE >> 4) + k % 4 * ALONG;
                    along<T>(y, along_at(at + C_AT) + offset, along_at(room) + offset, k);
                }
                products_end();
                if (leaving) {
                    if (thread % 128 == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
                    arrive(leaving);
                }
                leaving = read(own, copy);
                next_copy();
                u32 fg[4][4];
                if (warp == 0) decayed<T, 0>(g, fg, step, r, q);
                else if (warp == 1) decayed<T, 1>(g, fg, step, r, q);
                else if (warp == 2) decayed<T, 2>(g, fg, step, r, q);
                else decayed<T, 3>(g, fg, step, r, q);
                const float e0 = exp2_fast(step.log[16 * warp + r]), e1 = exp2_fast(step.log[16 * warp + r + 8]);
                products_wait<0>(y);
#pragma unroll
                for (int j = 0; j < 8; j++) y[4 * j] *= e0, y[4 * j + 1] *= e0, y[4 * j + 2] *= e1, y[4 * j + 3] *= e1;
                products_begin();
#pragma unroll
                for (u32 k = 0; k < 4; k++) add_across<T, 64>(y, fg[k], across_at(at + own * TILE) + k * ACROSS);
                products_end();
                // After the last chunk of all, its own scores once more, which nobody reads.
                if (from + Q < item.end || i + gridDim.x < items) advance();
                begin_scores();
                // All warps have met the state.
                asm volatile("bar.sync %0, 128;" ::"r"(1 + own) : "memory");
                products_wait<1>(y);
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    const u32 place = row * 128 + (((2 * j + lane / 16) ^ (row & 7)) << 4);
                    u32 fx[4], out[4];
                    read_matrices(fx, at + own * TILE + place);
#pragma unroll
                    for (u32 k = 0; k < 4; k++) {  // rows r and r + 8 of eight columns, then of the next eight
                        const float2 x = Pair<T>::unpack(fx[k]);
                        const float2 d = *reinterpret_cast<const float2 *>(&skips[own][16 * j + k / 2 * 8 + q]);
                        out[k] = Pair<T>::pack(y[8 * j + 2 * k] + d.x * x.x, y[8 * j + 2 * k + 1] + d.y * x.y);
                    }
                    write_matrices(room + place, out[0], out[1], out[2], out[3]);
                }
                arrive(done);  // x has been read: what was made of it has been stored
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                asm volatile("bar.sync %0, 128;" ::"r"(1 + own) : "memory");
                if (thread % 128 == 0) {
                    if (item.is_own(own))
                        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&params.y), "r"(head * P),
                                     "r"(from), "r"(room)
                                     : "memory");
                    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
                }
                products_wait<0>(g);
            }
        }
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
}
#define HOPPER_SSD(suffix, T, N)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(SSD_THREADS, 1) ssd_hopper_chunk_##N##_##suffix(const __grid_constant__ HopperSsdParams p) {   \
        hopper_ssd<T, N, true>(p);                                                                                                   \
    }                                                                                                                                \
    extern "C" __global__ void __launch_bounds__(SSD_THREADS, 1) ssd_hopper_segment_##N##_##suffix(const __grid_constant__ HopperSsdParams p) { \
        hopper_ssd<T, N, false>(p);                                                                                                  \
    }
HOPPER_SSD(bf16, __nv_bfloat16, 64)
HOPPER_SSD(bf16, __nv_bfloat16, 128)
HOPPER_SSD(f16, __half, 64)
HOPPER_SSD(f16, __half, 128)
