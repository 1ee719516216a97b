// One token through a linear map, with what stands before it (norm, gate) and after it (bias, convolution, softplus, gated unit,
// residual) in the same launch: y = epilogue(W prologue(x)). A stream of weights: each warp takes R rows, so that one read of x from
// shared memory serves R products; the first weights are on their way before the launch before has ended.
#include "common.cuh"

enum Prologue : u32 { PLAIN = 0, RMS = 1, LAYER = 2, GATE_RMS = 3, RMS_GATE = 4, GATE = 5, SIGMOID_GATE = 6 };

struct LinearParams {
    const void *weight;   // [rows, cols]
    const void *weight2;  // [rows, cols]: the `up` of a gated unit
    const float *bias, *bias2;
    const float *row_scale;  // [rows], on W x + b
    const float *x, *norm_weight, *norm_bias, *gate;
    float *y;                // [rows]; W x + b scaled
    const float *residual_in;
    float *residual_out;
    // Rows conv_from..conv_to meet a convolution of `taps`; rows from dt_from are softplus'ed.
    const float *conv_weight, *conv_bias;
    float *history, *conv, *value;
    const float *dt_bias;
    float *delta;
    u32 rows, cols;
    u32 prologue, groups;
    u32 conv_from, conv_to, taps, dt_from;
    u32 activation, pad;
    float eps, scale, dt_low, dt_high;
    float gate_scale, output_scale;
};

constexpr int WARPS = 8;

// Where element i of x stands in shared memory: the halves of each eight apart, so that 16-byte reads meet no bank twice.
DEVICE u32 place(u32 i, u32 eights) { return ((i / 4 % 2) * eights + i / 8) * 4 + i % 4; }

// What is read of x in one go by a thread: V fours, 4 · 256 · V elements a block.
constexpr int V = 3;

DEVICE float4 load_four(const float *from, u32 i, u32 cols, bool whole) {
    if (whole) return i < cols ? *reinterpret_cast<const float4 *>(from + i) : make_float4(0, 0, 0, 0);
    return make_float4(i < cols ? from[i] : 0.0f, i + 1 < cols ? from[i + 1] : 0.0f, i + 2 < cols ? from[i + 2] : 0.0f,
                       i + 3 < cols ? from[i + 3] : 0.0f);
}
template <typename F> DEVICE float4 each(float4 a, float4 b, F f) {
    return make_float4(f(a.x, b.x), f(a.y, b.y), f(a.z, b.z), f(a.w, b.w));
}

// Puts what W multiplies into `xs`. Loads go out together: first the norm's weights, which wait for nobody, then all of x.
struct Inputs {
    float4 weights[V];
    bool whole, normed;

    DEVICE u32 at(u32 round, int v) const { return ((round * V + v) * WARPS * 32 + threadIdx.x) * 4; }

    DEVICE void ahead(const LinearParams &p) {
        const u64 addresses = u64(p.x) | u64(p.gate) | u64(p.norm_weight) | u64(p.norm_bias);
        whole = p.cols % 4 == 0 && addresses % 16 == 0;
        normed = p.prologue != PLAIN && p.prologue != GATE && p.prologue != SIGMOID_GATE;
        if (normed)
#pragma unroll
            for (int v = 0; v < V; v++) weights[v] = load_four(p.norm_weight, at(0, v), p.cols, whole);
    }

    DEVICE void run(const LinearParams &p, float4 *low, float4 *high, float *scratch, u32 eights) {
        const u32 cols = p.cols, kind = p.prologue, rounds = (eights * 8 + WARPS * 128 * V - 1) / (WARPS * 128 * V);
        auto slot = [&](u32 i) -> float4 & { return (i / 4 % 2 ? high : low)[i / 8]; };
        float sum = 0.0f, square = 0.0f;
        for (u32 round = 0; round < rounds; round++) {
            float4 x[V], gate[V];
#pragma unroll
            for (int v = 0; v < V; v++) x[v] = load_four(p.x, at(round, v), cols, whole);
            if (kind == GATE_RMS || kind == GATE || kind == SIGMOID_GATE) {
#pragma unroll
                for (int v = 0; v < V; v++) gate[v] = load_four(p.gate, at(round, v), cols, whole);
#pragma unroll
                for (int v = 0; v < V; v++)
                    x[v] = each(x[v], gate[v], [&](float a, float g) { return a * (kind == SIGMOID_GATE ? sigmoid(g) : silu(g)); });
            }
#pragma unroll
            for (int v = 0; v < V; v++) {
                if (at(round, v) < eights * 8) slot(at(round, v)) = x[v];
                sum += x[v].x + x[v].y + x[v].z + x[v].w;
                square += x[v].x * x[v].x + x[v].y * x[v].y + x[v].z * x[v].z + x[v].w * x[v].w;
            }
        }
        if (normed) {
            float mean = 0.0f, rho = 0.0f;
            if (p.groups == 1) {
                if (kind == LAYER) {
                    mean = block_sum(sum, scratch) / cols;
                    __syncthreads();
                    square = 0.0f;
                    for (u32 i = threadIdx.x; i < cols; i += WARPS * 32) {
                        const float x = reinterpret_cast<float *>(low)[place(i, eights)] - mean;
                        square += x * x;
                    }
                }
                rho = rsqrtf(block_sum(square, scratch) / cols + p.eps);
            } else {
                // A warp a group; `scratch` [32..] has room for all of them.
                __syncthreads();
                const u32 width = cols / p.groups;
                for (u32 g = threadIdx.x / 32; g < p.groups; g += WARPS) {
                    float square = 0.0f;
                    for (u32 i = g * width + threadIdx.x % 32; i < (g + 1) * width; i += 32) {
                        const float x = reinterpret_cast<float *>(low)[place(i, eights)];
                        square += x * x;
                    }
                    square = warp_sum(square);
                    if (threadIdx.x % 32 == 0) scratch[32 + g] = rsqrtf(square / width + p.eps);
                }
                __syncthreads();
            }
            const u32 width = cols / p.groups;
            auto rho_at = [&](u32 i) { return p.groups == 1 ? rho : i < cols ? scratch[32 + i / width] : 0.0f; };
            for (u32 round = 0; round < rounds; round++)
#pragma unroll
                for (int v = 0; v < V; v++) {
                    const u32 i = at(round, v);
                    if (i >= eights * 8) continue;
                    const float4 w = round == 0 ? weights[v] : load_four(p.norm_weight, i, cols, whole);
                    float4 x = slot(i);
                    x.x = (x.x - mean) * rho_at(i) * w.x, x.y = (x.y - mean) * rho_at(i + 1) * w.y;
                    x.z = (x.z - mean) * rho_at(i + 2) * w.z, x.w = (x.w - mean) * rho_at(i + 3) * w.w;
                    if (kind == LAYER && p.norm_bias)
                        x = each(x, load_four(p.norm_bias, i, cols, whole), [](float a, float b) { return a + b; });
                    if (kind == RMS_GATE)
                        x = each(x, load_four(p.gate, i, cols, whole), [](float a, float g) { return a * silu(g); });
                    slot(i) = x;
                }
        }
        __syncthreads();
    }
};

// What the end of a row needs, read before the long loop.
struct Epilogue {
    float taps[4], past[3], bias, scale, other;
    u32 row;
    bool active, conv;

    DEVICE void prepare(const LinearParams &p, u32 at, bool on) {
        row = at, active = on && at < p.rows;
        conv = active && at >= p.conv_from && at < p.conv_to;
        bias = 0.0f, scale = 1.0f, other = 0.0f;
        if (!active) return;
        if (p.bias) bias = p.bias[row];
        if (p.row_scale) scale = p.row_scale[row];
        if (row >= p.dt_from) other = p.dt_bias[row - p.dt_from];
        if (conv) {
            const u32 c = row - p.conv_from, channels = p.conv_to - p.conv_from;
            if (p.conv_bias) other = p.conv_bias[c];
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (j < p.taps) taps[j] = p.conv_weight[c * p.taps + j];
#pragma unroll
            for (int j = 0; j < 3; j++)
                if (j + 1 < p.taps) past[j] = p.history[j * channels + c];
        }
    }

    // What the launches before may have written.
    DEVICE void prepare_late(const LinearParams &p) {
        if (active && p.residual_in) other = p.residual_in[row];
    }

    DEVICE void finish(const LinearParams &p, float sum, float sum2) const {
        if (!active) return;
        float v = (sum + bias) * scale;
        if (p.weight2) {
            const float up = sum2 + (p.bias2 ? p.bias2[row] : 0.0f);
            p.y[row] = activate(p.activation, v * p.gate_scale) * up;
            return;
        }
        v *= p.output_scale;
        if (p.activation != IDENTITY) v = activate(p.activation, v);
        if (p.y) p.y[row] = v;
        if (p.residual_out) p.residual_out[row] = other + v * p.scale;
        if (row >= p.dt_from)
            p.delta[row - p.dt_from] = fminf(fmaxf(softplus(v + other), p.dt_low), p.dt_high);
        if (!conv) return;
        const u32 c = row - p.conv_from, channels = p.conv_to - p.conv_from;
        float out = other;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (j + 1 < p.taps) out += taps[j] * past[j < 3 ? j : 0];
            else if (j + 1 == p.taps) out += taps[j] * v;
        }
#pragma unroll
        for (int j = 0; j < 3; j++)
            if (j + 1 < p.taps) p.history[j * channels + c] = j + 2 < p.taps ? past[j < 2 ? j + 1 : 0] : v;
        p.conv[c] = out;
        p.value[c] = silu(out);
    }
};

// R rows a group of S warps, several groups of rows one after the other where the grid is smaller than the matrix. VEC: rows are whole
// eights, 16-byte aligned. PAIR: a gated unit, two matrices.
template <typename W, int R, int S, bool PAIR, bool VEC> DEVICE void linear(const LinearParams &p) {
    extern __shared__ float4 xs[];
    __shared__ float scratch[32 + 256], partial[PAIR ? 2 : 1][WARPS][R];
    const u32 cols = p.cols, eights = (cols + 7) / 8;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % S;
    const u32 first = part * 32 + lane, stride = 32 * S, step = gridDim.x * (WARPS / S) * R;
    u32 row0 = (warp / S * gridDim.x + blockIdx.x) * R;
    constexpr int M = PAIR ? 2 : 1;
    const W *rows[M][R];
    auto aim = [&](u32 row0) {
#pragma unroll
        for (int r = 0; r < R; r++) {
            const size_t at = size_t(min(row0 + r, p.rows - 1)) * cols;
            rows[0][r] = static_cast<const W *>(p.weight) + at;
            if (PAIR) rows[M - 1][r] = static_cast<const W *>(p.weight2) + at;
        }
    };
    aim(row0);
    constexpr int U = VEC ? 2 : 1;  // eights of a row in flight, besides those being multiplied
    Eight<W> next[M][R][U];
    auto load = [&](u32 from) {
#pragma unroll
        for (int u = 0; u < U; u++)
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int r = 0; r < R; r++) {
                    const u32 at = from + u * stride;
                    if (at < eights) next[m][r][u].load_once(rows[m][r] + size_t(at) * 8);
                    else next[m][r][u].zero();
                }
    };
    if (VEC) load(first);
    const bool mine = lane < R && part == 0;
    Epilogue epilogue;
    epilogue.prepare(p, row0 + lane, mine);
    Inputs inputs;
    inputs.ahead(p);
    let_next_start();
    wait_for_previous();
    epilogue.prepare_late(p);
    inputs.run(p, xs, xs + eights, scratch, eights);

    const float4 *low = xs, *high = xs + eights;
    while (true) {
        float sums[M][R] = {};
        if (VEC) {
            for (u32 at = first; at < eights; at += U * stride) {
                Eight<W> now[M][R][U];
#pragma unroll
                for (int u = 0; u < U; u++)
#pragma unroll
                    for (int m = 0; m < M; m++)
#pragma unroll
                        for (int r = 0; r < R; r++) now[m][r][u] = next[m][r][u];
                if (at + U * stride < eights) load(at + U * stride);
                else if (row0 + step < p.rows) aim(row0 + step), load(first);
#pragma unroll
                for (int u = 0; u < U; u++) {
                    const u32 here = at + u * stride < eights ? at + u * stride : 0;  // its weights are zero
                    const float4 a = low[here], b = high[here];
#pragma unroll
                    for (int m = 0; m < M; m++)
#pragma unroll
                        for (int r = 0; r < R; r++) {
                            float w[8];
                            now[m][r][u].widen(w);
                            float &sum = sums[m][r];
                            sum += w[0] * a.x, sum += w[1] * a.y, sum += w[2] * a.z, sum += w[3] * a.w;
                            sum += w[4] * b.x, sum += w[5] * b.y, sum += w[6] * b.z, sum += w[7] * b.w;
                        }
                }
            }
        } else {
            aim(row0);
            for (u32 i = first; i < cols; i += stride) {
                const float x = reinterpret_cast<const float *>(xs)[place(i, eights)];
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int r = 0; r < R; r++) sums[m][r] += to_float(rows[m][r][i]) * x;
            }
        }
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int r = 0; r < R; r++) sums[m][r] = warp_sum(sums[m][r]);
        if (S > 1) {
            if (lane == 0)
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int r = 0; r < R; r++) partial[m][warp][r] = sums[m][r];
            __syncthreads();
            if (part == 0)
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int r = 0; r < R; r++) {
                        float sum = 0.0f;
#pragma unroll
                        for (int s = 0; s < S; s++) sum += partial[m][warp + s][r];
                        sums[m][r] = sum;
                    }
            __syncthreads();
        }
        float sum = 0.0f, sum2 = 0.0f;
#pragma unroll
        for (int r = 0; r < R; r++)
            if (lane == r) sum = sums[0][r], sum2 = sums[M - 1][r];
        epilogue.finish(p, sum, sum2);
        row0 += step;
        // S warps share their rows, so a block of them goes on or ends together.
        if (row0 >= p.rows) break;
        epilogue.prepare(p, row0 + lane, mine);
        epilogue.prepare_late(p);
    }
}

#define LINEAR(name, W, R, S, PAIR, VEC)                                                                                             \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) name(const __grid_constant__ LinearParams p) {                           \
        linear<W, R, S, PAIR, VEC>(p);                                                                                               \
    }
#define LINEARS(suffix, W)                                                                                                           \
    LINEAR(linear_r1s8_##suffix, W, 1, 8, false, true)                                                                               \
    LINEAR(linear_r1_##suffix, W, 1, 1, false, true)                                                                                 \
    LINEAR(linear_r2_##suffix, W, 2, 1, false, true)                                                                                 \
    LINEAR(linear_r4_##suffix, W, 4, 1, false, true)                                                                                 \
    LINEAR(linear_pair_##suffix, W, 2, 1, true, true)                                                                                \
    LINEAR(linear_any_##suffix, W, 1, 1, false, false)                                                                               \
    LINEAR(linear_pair_any_##suffix, W, 1, 1, true, false)
LINEARS(f32, float)
LINEARS(bf16, __nv_bfloat16)
LINEARS(f16, __half)

// x = E[token] · scale (+ positions[position]); `place` = {token, position}.
struct EmbedParams {
    const void *table;
    const void *positions;
    const u32 *place;
    float *x;
    u32 width;
    float scale;
};
template <typename W> DEVICE void embed(const EmbedParams &p) {
    let_next_start();
    wait_for_previous();
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.width) return;
    float x = to_float(static_cast<const W *>(p.table)[size_t(p.place[0]) * p.width + i]) * p.scale;
    if (p.positions) x += to_float(static_cast<const W *>(p.positions)[size_t(p.place[1]) * p.width + i]);
    p.x[i] = x;
}
extern "C" __global__ void embed_f32(const __grid_constant__ EmbedParams p) { embed<float>(p); }
extern "C" __global__ void embed_bf16(const __grid_constant__ EmbedParams p) { embed<__nv_bfloat16>(p); }
extern "C" __global__ void embed_f16(const __grid_constant__ EmbedParams p) { embed<__half>(p); }
