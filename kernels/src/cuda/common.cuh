// What all kernels share: element types, sums over warps and blocks, pointwise functions, dependent launch.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef unsigned int u32;
typedef unsigned long long u64;
#define DEVICE __device__ __forceinline__
constexpr float LOG2_E = 1.4426950408889634f;
constexpr u32 FULL = 0xffffffffu;

// Programmatic dependent launch (Hopper on): a kernel may start while the one before it still runs, and reads what that one wrote
// only after `wait_for_previous`. Before it, weights and this layer's own state may be read: nothing in the same graph writes them
// earlier. Without the launch attribute both do nothing.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
DEVICE float to_float(__half x) { return __half2float(x); }
template <typename T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
template <> DEVICE __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16(x); }
template <> DEVICE __half from_float<__half>(float x) { return __float2half(x); }

// Eight elements as they lie in memory, 16-byte aligned.
template <typename T> struct Eight {
    uint4 raw[sizeof(T) / 2];
    DEVICE void zero() {
#pragma unroll
        for (int i = 0; i < int(sizeof(T) / 2); i++) raw[i] = make_uint4(0, 0, 0, 0);
    }
    // Weights are read once: past L1.
    DEVICE void load_once(const T *from) {
#pragma unroll
        for (int i = 0; i < int(sizeof(T) / 2); i++)
            asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                         : "=r"(raw[i].x), "=r"(raw[i].y), "=r"(raw[i].z), "=r"(raw[i].w)
                         : "l"(reinterpret_cast<const uint4 *>(from) + i));
    }
    DEVICE void widen(float (&out)[8]) const;
};
template <> DEVICE void Eight<float>::widen(float (&out)[8]) const {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        out[4 * i] = __uint_as_float(raw[i].x), out[4 * i + 1] = __uint_as_float(raw[i].y);
        out[4 * i + 2] = __uint_as_float(raw[i].z), out[4 * i + 3] = __uint_as_float(raw[i].w);
    }
}
template <> DEVICE void Eight<__nv_bfloat16>::widen(float (&out)[8]) const {
    const u32 words[4] = {raw[0].x, raw[0].y, raw[0].z, raw[0].w};
#pragma unroll
    for (int i = 0; i < 4; i++)
        out[2 * i] = __uint_as_float(words[i] << 16), out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
}
template <> DEVICE void Eight<__half>::widen(float (&out)[8]) const {
    const u32 words[4] = {raw[0].x, raw[0].y, raw[0].z, raw[0].w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 two = __half22float2(*reinterpret_cast<const __half2 *>(&words[i]));
        out[2 * i] = two.x, out[2 * i + 1] = two.y;
    }
}

// Eight elements to memory, 16-byte aligned.
DEVICE void store_eight(float *to, const float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 2; i++) reinterpret_cast<float4 *>(to)[i] = make_float4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
}
DEVICE void store_eight(__nv_bfloat16 *to, const float (&x)[8]) {
    __nv_bfloat162 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
    *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(pairs);
}
DEVICE void store_eight(__half *to, const float (&x)[8]) {
    __half2 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = __floats2half2_rn(x[2 * i], x[2 * i + 1]);
    *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(pairs);
}

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float sigmoid(float x) { return __fdividef(1.0f, 1.0f + exp2_fast(-x * LOG2_E)); }
// __fdividef gives 0 for divisors above 2^126, which is what silu is there.
DEVICE float silu(float x) { return x * sigmoid(x); }
DEVICE float softplus(float x) { return x > 20.0f ? x : log1pf(exp2_fast(x * LOG2_E)); }

enum Activation : u32 { SILU = 0, GELU = 1, GELU_TANH = 2, RELU2 = 3, IDENTITY = 4 };
DEVICE float activate(u32 kind, float x) {
    switch (kind) {
    case SILU: return silu(x);
    case GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case RELU2: return x > 0.0f ? x * x : 0.0f;
    default: return x;
    }
}

DEVICE float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(FULL, x, step);
    return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
    for (int step = 16; step; step >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL, x, step));
    return x;
}
// `scratch` [32], free to be used again after the next __syncthreads.
DEVICE float block_sum(float x, float *scratch) {
    x = warp_sum(x);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = lane < blockDim.x / 32 ? scratch[lane] : 0.0f;
    return warp_sum(x);
}
