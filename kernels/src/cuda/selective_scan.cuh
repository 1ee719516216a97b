// What the selective scan is made of: parameters, pointwise functions, pairs of elements, barriers between warps.
#pragma once
#include "common.cuh"

struct ScanParams {
    const void *delta, *x, *b, *c, *gate;  // [T, stride] each; gate may be null
    const float *delta_bias;               // [E] or null
    const float *a, *d;                    // [E, N], [E] or null
    float *state;                          // [E, N], moved on
    void *y;                               // [T, E]: (C·h + D x) silu(gate)
    float *delta_out, *state_norm;         // [T, E] each, or null
    void *core;                            // [T, E] or null: y before the gate
    u32 tokens, channels, n, groups;       // channel e reads B and C [G, N] of group e·G/E
    u32 delta_stride, x_stride, bc_stride, gate_stride, y_stride;
    u32 softplus;
    u32 share;                             // tiles a block walks
    u32 pad;
};

constexpr int TEAM = 128, THREADS = 3 * TEAM, STAGES = 3;  // threads, threads, tiles

// Whether a warp of channels has its state where the next piece of its text finds it. Zero between launches.
constexpr u32 MOST_HANDED = 1 << 16;
__device__ u32 handed[MOST_HANDED];

// softplus as max(x, 0) + ln(1 + u), u = exp(−|x|): a polynomial right to 3e-7, without a second special function.
DEVICE float quick_softplus(float x) {
    const float u = exp2_fast(-fabsf(x) * LOG2_E);
    float p = -0.00853920262f;
    p = fmaf(p, u, 0.0440896191f), p = fmaf(p, u, -0.107681707f), p = fmaf(p, u, 0.177452415f), p = fmaf(p, u, -0.244954631f);
    p = fmaf(p, u, 0.332754791f), p = fmaf(p, u, -0.499974042f), p = fmaf(p, u, 0.999999821f);
    return fmaf(p, u, fmaxf(x, 0.0f));
}
// Gives 0 where the exponential is infinite.
DEVICE float quick_silu(float x) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + exp2_fast(-x * LOG2_E)));
    return x * inverse;
}

DEVICE float2 widen(float2 x) { return x; }
DEVICE float2 widen(__half2 x) { return __half22float2(x); }
DEVICE float2 widen(__nv_bfloat162 x) {
    const u32 word = *reinterpret_cast<const u32 *>(&x);
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
template <typename T> struct PairOf;
template <> struct PairOf<float> {
    typedef float2 type;
    DEVICE static float2 from(float x, float y) { return make_float2(x, y); }
};
template <> struct PairOf<__half> {
    typedef __half2 type;
    DEVICE static __half2 from(float x, float y) { return __floats2half2_rn(x, y); }
};
template <> struct PairOf<__nv_bfloat16> {
    typedef __nv_bfloat162 type;
    DEVICE static __nv_bfloat162 from(float x, float y) { return __floats2bfloat162_rn(x, y); }
};

// Barriers in shared memory: who waits does not wait for the others who do. The address is taken once: volatile, or the address would be made again at each use, which takes 30 clocks.
DEVICE u32 shared_address(const void *at) {
    u32 address;
    asm volatile("{\n.reg .u64 wide;\ncvta.to.shared.u64 wide, %1;\ncvt.u32.u64 %0, wide;\n}" : "=r"(address) : "l"(at));
    return address;
}
DEVICE void begin_barrier(u32 barrier, u32 threads) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(threads) : "memory"); }
// Every lane arrives for what it itself has read and written. One lane after a __syncwarp would do by the memory model, at the same
// speed, but compute-sanitizer's racecheck (2025.3) does not take what the other lanes did for ordered.
DEVICE void arrive_at(u32 barrier) { asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(barrier) : "memory"); }
DEVICE void wait_at(u32 barrier, u32 parity) {
    u32 done;
    do
#if __CUDA_ARCH__ >= 900
        asm volatile("{\n.reg .pred done;\nmbarrier.try_wait.parity.shared.b64 done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}"
#else
        asm volatile("{\n.reg .pred done;\nmbarrier.test_wait.parity.shared.b64 done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}"
#endif
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    while (!done);
}
// A place in the ring of stages, and which time round it is.
enum : u32 { THERE, DONE = STAGES, FREE = 2 * STAGES, BARRIERS = 3 * STAGES };
struct Ring {
    u32 slot = 0, parity = 0, barriers;
    DEVICE Ring(const u64 *barriers) : barriers(shared_address(barriers)) {}
    DEVICE u32 at(u32 what) const { return barriers + (what + slot) * 8; }
    DEVICE void next() {
        if (++slot == STAGES) slot = 0, parity ^= 1;
    }
};
