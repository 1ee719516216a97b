// Norms of rows of many tokens: one block a row and group.
#include "common.cuh"

struct NormParams {
    const float *x, *gate, *weight, *bias;
    float *y;
    float *rho;  // [T, groups], may be null
    u32 width;   // of a group
    u32 groups, layer, gate_first;  // gate_first: 0 no gate, 1 before, 2 after
    float eps;
    u32 pad;
};

extern "C" __global__ void __launch_bounds__(256) norm_rows(const __grid_constant__ NormParams p) {
    extern __shared__ float xs[];
    __shared__ float scratch[32];
    let_next_start();
    wait_for_previous();
    const u32 group = blockIdx.x % p.groups;
    const size_t at = size_t(blockIdx.x) * p.width;
    float sum = 0.0f, square = 0.0f;
    for (u32 i = threadIdx.x; i < p.width; i += blockDim.x) {
        float x = p.x[at + i];
        if (p.gate_first == 1) x *= silu(p.gate[at + i]);
        xs[i] = x;
        sum += x, square += x * x;
    }
    float mean = 0.0f;
    if (p.layer) {
        mean = block_sum(sum, scratch) / p.width;
        __syncthreads();
        square = 0.0f;
        for (u32 i = threadIdx.x; i < p.width; i += blockDim.x) square += (xs[i] - mean) * (xs[i] - mean);
    }
    const float rho = rsqrtf(block_sum(square, scratch) / p.width + p.eps);
    for (u32 i = threadIdx.x; i < p.width; i += blockDim.x) {
        const u32 c = group * p.width + i;
        float y = (xs[i] - mean) * rho * p.weight[c];
        if (p.bias) y += p.bias[c];
        if (p.gate_first == 2) y *= silu(p.gate[at + i]);
        p.y[at + i] = y;
    }
    if (p.rho && threadIdx.x == 0) p.rho[blockIdx.x] = rho;
}
