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

DEVICE void prologue(const LinearParams &p, float *xs, float *scratch, u32 eights) {
    const u32 cols = p.cols, tid = threadIdx.x, kind = p.prologue;
    float sum = 0.0f, square = 0.0f;
    for (u32 i = tid; i < eights * 8; i += WARPS * 32) {
        float x = i < cols ? p.x[i] : 0.0f;
        if (i < cols && (kind == GATE_RMS || kind == GATE)) x *= silu(p.gate[i]);
        if (i < cols && kind == SIGMOID_GATE) x *= sigmoid(p.gate[i]);
        xs[place(i, eights)] = x;
        sum += x, square += x * x;
    }
    if (kind == RMS || kind == GATE_RMS || kind == RMS_GATE || kind == LAYER) {
        const u32 width = cols / p.groups;
        float mean = 0.0f;
        if (p.groups == 1) {
            if (kind == LAYER) {
                mean = block_sum(sum, scratch) / cols;
                __syncthreads();
                square = 0.0f;
                for (u32 i = tid; i < cols; i += WARPS * 32) {
                    const float x = xs[place(i, eights)] - mean;
                    square += x * x;
                }
            }
            square = block_sum(square, scratch);
            const float rho = rsqrtf(square / cols + p.eps);
            for (u32 i = tid; i < cols; i += WARPS * 32) {
                float x = (xs[place(i, eights)] - mean) * rho * p.norm_weight[i];
                if (kind == LAYER && p.norm_bias) x += p.norm_bias[i];
                if (kind == RMS_GATE) x *= silu(p.gate[i]);
                xs[place(i, eights)] = x;
            }
        } else {
            __syncthreads();
            for (u32 g = tid / 32; g < p.groups; g += WARPS) {
                float square = 0.0f;
                for (u32 i = g * width + tid % 32; i < (g + 1) * width; i += 32) {
                    const float x = xs[place(i, eights)];
                    square += x * x;
                }
                const float rho = rsqrtf(warp_sum(square) / width + p.eps);
                for (u32 i = g * width + tid % 32; i < (g + 1) * width; i += 32) {
                    float x = xs[place(i, eights)] * rho * p.norm_weight[i];
                    if (kind == RMS_GATE) x *= silu(p.gate[i]);
                    xs[place(i, eights)] = x;
                }
            }
        }
    }
    __syncthreads();
}

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
        if (p.residual_in) other = p.residual_in[row];
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

// R rows a group of S warps. VEC: rows are whole eights, 16-byte aligned. PAIR: a gated unit, two matrices.
template <typename W, int R, int S, bool PAIR, bool VEC> DEVICE void linear(const LinearParams &p) {
    extern __shared__ float xs[];
    __shared__ float scratch[32], partial[PAIR ? 2 : 1][WARPS][R];
    const u32 cols = p.cols, eights = (cols + 7) / 8;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % S;
    const u32 row0 = (blockIdx.x * (WARPS / S) + warp / S) * R;
    const u32 first = part * 32 + lane, stride = 32 * S;
    constexpr int M = PAIR ? 2 : 1;
    const W *rows[M][R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const size_t at = size_t(min(row0 + r, p.rows - 1)) * cols;
        rows[0][r] = static_cast<const W *>(p.weight) + at;
        if (PAIR) rows[M - 1][r] = static_cast<const W *>(p.weight2) + at;
    }
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
    let_next_start();
    wait_for_previous();
    prologue(p, xs, scratch, eights);
    Epilogue epilogue;
    epilogue.prepare(p, row0 + lane, lane < R && part == 0);

    float sums[M][R] = {};
    const float4 *low = reinterpret_cast<const float4 *>(xs), *high = low + eights;
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
        for (u32 i = first; i < cols; i += stride) {
            const float x = xs[place(i, eights)];
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
        if (part) return;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int r = 0; r < R; r++) {
                float sum = 0.0f;
#pragma unroll
                for (int s = 0; s < S; s++) sum += partial[m][warp + s][r];
                sums[m][r] = sum;
            }
    }
    float mine = 0.0f, mine2 = 0.0f;
#pragma unroll
    for (int r = 0; r < R; r++)
        if (lane == r) mine = sums[0][r], mine2 = sums[M - 1][r];
    epilogue.finish(p, mine, mine2);
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
