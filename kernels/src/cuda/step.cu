// One token through the recurrences of Mamba-1 and Mamba-2. The state, which only the same launch of the token before has written, is
// on its way before the launch before has ended.
#include "common.cuh"

struct ScanStepParams {
    const void *dt_weight;                  // [E, R]
    const float *dt_bias;                   // [E]
    const float *dbc;                       // [R + 2N]: δ, B, C
    const float *dt_norm, *b_norm, *c_norm; // [R], [N], [N]: scales of RMS norms, or null
    const float *a, *d;                     // [E, N], [E]
    const float *value, *gate;              // [E]: x, z
    float *state;                           // [E, N]
    float *delta, *key, *query, *core, *gated;  // [E], [N], [N], [E], [E]
    float *state_norm;                      // [E], may be null
    u32 channels, n, r;
    float eps;
};

// Four lanes a channel, 32 channels a block.
template <typename W, bool VEC> DEVICE void scan_step(const ScanStepParams &p) {
    extern __shared__ float dbc[];
    const u32 sub = threadIdx.x % 4, channel = blockIdx.x * 32 + threadIdx.x / 4, c = min(channel, p.channels - 1);
    const bool active = channel < p.channels;
    const W *row = static_cast<const W *>(p.dt_weight) + size_t(c) * p.r;
    float4 *state = reinterpret_cast<float4 *>(p.state + size_t(c) * p.n);
    const float4 *rates = reinterpret_cast<const float4 *>(p.a + size_t(c) * p.n);
    constexpr int AHEAD = 5;
    Eight<W> weights[AHEAD];
    float4 h = make_float4(0, 0, 0, 0), a = h;
    if (VEC) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if ((sub + 4 * i) * 8 < p.r) weights[i].load_once(row + (sub + 4 * i) * 8);
            else weights[i].zero();
        if (sub < p.n / 4) h = state[sub], a = rates[sub];
    }
    const float bias = p.dt_bias[c], skip = p.d[c];
    let_next_start();
    wait_for_previous();

    const float x = p.value[c], z = p.gate[c];
    for (u32 i = threadIdx.x; i < p.r + 2 * p.n; i += blockDim.x) dbc[i] = p.dbc[i];
    __syncthreads();
    if (p.dt_norm) {
        // One warp a part.
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const u32 from = warp == 0 ? 0 : p.r + (warp - 1) * p.n, width = warp == 0 ? p.r : p.n;
        const float *scales = warp == 0 ? p.dt_norm : warp == 1 ? p.b_norm : p.c_norm;
        if (warp < 3) {
            float square = 0.0f;
            for (u32 i = lane; i < width; i += 32) square += dbc[from + i] * dbc[from + i];
            const float rho = rsqrtf(warp_sum(square) / width + p.eps);
            for (u32 i = lane; i < width; i += 32) dbc[from + i] *= rho * scales[i];
        }
        __syncthreads();
    }
    const float *b = dbc + p.r, *query = b + p.n;
    if (blockIdx.x == 0)
        for (u32 i = threadIdx.x; i < p.n; i += blockDim.x) p.key[i] = b[i], p.query[i] = query[i];

    float sum = 0.0f;
    if (VEC) {
        for (u32 i = 0; sub * 8 + i * 32 < p.r; i++) {
            Eight<W> eight;
            if (i < AHEAD) {
#pragma unroll
                for (int j = 0; j < AHEAD; j++)
                    if (j == i) eight = weights[j];
            } else eight.load_once(row + sub * 8 + i * 32);
            float w[8];
            eight.widen(w);
#pragma unroll
            for (int j = 0; j < 8; j++) sum += w[j] * dbc[sub * 8 + i * 32 + j];
        }
    } else
        for (u32 i = sub; i < p.r; i += 4) sum += to_float(row[i]) * dbc[i];
    sum += __shfl_xor_sync(FULL, sum, 1);
    sum += __shfl_xor_sync(FULL, sum, 2);
    const float delta = softplus(sum + bias), step = delta * x, power = delta * LOG2_E;

    float y = 0.0f, square = 0.0f;
    auto advance = [&](float h, float a, u32 n) {
        h = exp2_fast(power * a) * h + step * b[n];
        y += query[n] * h;
        square += h * h;
        return h;
    };
    if (VEC) {
        for (u32 i = sub; i < p.n / 4; i += 4) {
            if (i != sub) h = state[i], a = rates[i];
            h.x = advance(h.x, a.x, 4 * i), h.y = advance(h.y, a.y, 4 * i + 1);
            h.z = advance(h.z, a.z, 4 * i + 2), h.w = advance(h.w, a.w, 4 * i + 3);
            if (active) state[i] = h;
        }
    } else
        for (u32 n = sub; n < p.n; n += 4) {
            float &h = p.state[size_t(c) * p.n + n];
            const float next = advance(h, p.a[size_t(c) * p.n + n], n);
            if (active) h = next;
        }
    y += __shfl_xor_sync(FULL, y, 1), y += __shfl_xor_sync(FULL, y, 2);
    square += __shfl_xor_sync(FULL, square, 1), square += __shfl_xor_sync(FULL, square, 2);
    if (!active || sub) return;
    y += skip * x;
    p.delta[c] = delta, p.core[c] = y, p.gated[c] = y * silu(z);
    if (p.state_norm) p.state_norm[c] = sqrtf(square);
}

#define SCAN_STEP(suffix, W)                                                                                                         \
    extern "C" __global__ void __launch_bounds__(128) scan_step_##suffix(const __grid_constant__ ScanStepParams p) {                  \
        scan_step<W, true>(p);                                                                                                       \
    }                                                                                                                                \
    extern "C" __global__ void __launch_bounds__(128) scan_step_any_##suffix(const __grid_constant__ ScanStepParams p) {              \
        scan_step<W, false>(p);                                                                                                      \
    }
SCAN_STEP(f32, float)
SCAN_STEP(bf16, __nv_bfloat16)
SCAN_STEP(f16, __half)

struct SsdStepParams {
    const float *delta, *a, *d;     // [H], [H], [H] or [H·P]
    const float *x, *key, *query;   // [H, P], [G, N], [G, N]
    const float *gate;              // [H, P], or null
    float *state;                   // [H, P, N]
    float *core, *gated;            // [H, P]
    u32 heads, head_dim, n, groups, d_by_channel, pad;
};

// Four rows of a state a warp; lane l holds elements l, l + 32, …
template <int PER_LANE> DEVICE void ssd_step(const SsdStepParams &p) {
    constexpr int ROWS = 4;
    const u32 lane = threadIdx.x % 32, first = (blockIdx.x * 4 + threadIdx.x / 32) * ROWS, rows = p.heads * p.head_dim;
    float s[ROWS][PER_LANE];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            const u32 n = lane + 32 * i;
            s[r][i] = first + r < rows && n < p.n ? p.state[size_t(first + r) * p.n + n] : 0.0f;
        }
    let_next_start();
    wait_for_previous();
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const u32 row = first + r;
        if (row >= rows) return;
        const u32 head = row / p.head_dim, group = head * p.groups / p.heads;
        const float *b = p.key + group * p.n, *c = p.query + group * p.n;
        const float delta = p.delta[head], x = p.x[row], step = delta * x, decay = exp2_fast(delta * p.a[head] * LOG2_E);
        float y = 0.0f;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            const u32 n = lane + 32 * i;
            if (n < p.n) {
                s[r][i] = decay * s[r][i] + step * b[n];
                y += s[r][i] * c[n];
                p.state[size_t(row) * p.n + n] = s[r][i];
            }
        }
        y = warp_sum(y) + p.d[p.d_by_channel ? row : head] * x;
        if (lane == 0) {
            p.core[row] = y;
            if (p.gate) p.gated[row] = y * silu(p.gate[row]);
        }
    }
}
#define SSD_STEP(per_lane)                                                                                                           \
    extern "C" __global__ void __launch_bounds__(128) ssd_step_##per_lane(const __grid_constant__ SsdStepParams p) {                  \
        ssd_step<per_lane>(p);                                                                                                       \
    }
SSD_STEP(1)
SSD_STEP(2)
SSD_STEP(4)
SSD_STEP(8)
