// What the kernels of state-space duality share: their parameters, steps, pairs of 16-bit numbers.
#pragma once
#include "common.cuh"

struct SsdParams {
    const void *delta, *x, *b, *c;  // [T, stride] each: H, H·P, G·N, G·N wide
    const float *delta_bias;        // [H] or null
    const float *a, *d;             // [H]; [H], [H·P] or null
    float *state;                   // [H, P, N]: the first, moved on to the last
    void *y;                        // [T, stride]
    float *segment_state;           // [(segments − 1) · parts + 1, H, P, N]
    float *segment_decay;           // [(segments − 1) · parts, H], log2
    u32 tokens, heads, head_dim, n, groups;
    u32 delta_stride, x_stride, bc_stride, y_stride;
    u32 softplus, d_by_channel;
    u32 segments, chunks;           // chunks of 64 tokens a segment
    float dt_low, dt_high;
    u32 parts;                      // of a segment, whose states are made apart
};

// Δ of a head from what the projection made.
DEVICE float step_of(const SsdParams &p, float dt, u32 head) {
    if (p.delta_bias) dt += p.delta_bias[head];
    if (p.softplus) dt = softplus(dt);
    return fminf(fmaxf(dt, p.dt_low), p.dt_high);
}
template <typename T> DEVICE float step_size(const SsdParams &p, u32 t, u32 head) {
    return step_of(p, to_float(static_cast<const T *>(p.delta)[size_t(t) * p.delta_stride + head]), head);
}

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

constexpr int Q = 64, P = 64;  // tokens a chunk, channels a head

// An item is up to HEADS heads of a group in one stretch of `chunks` chunks: which, and of which tokens.
template <int HEADS> struct Item {
    u32 group, first, most, start, end, segment;
    DEVICE Item(const SsdParams &p, u32 item, u32 chunks) {
        const u32 per_group = p.heads / p.groups, sets = (per_group + HEADS - 1) / HEADS, set = item % (sets * p.groups);
        group = set / sets, first = group * per_group + set % sets * HEADS, most = (group + 1) * per_group - 1;
        segment = item / (sets * p.groups), start = segment * chunks * Q, end = min(p.tokens, start + chunks * Q);
    }
    // Where a set is not full, its last head is taken twice and written once.
    DEVICE u32 head(u32 i) const { return min(first + i, most); }
    DEVICE bool is_own(u32 i) const { return first + i <= most; }
    static DEVICE u32 count(const SsdParams &p, u32 stretches) { return (p.heads / p.groups + HEADS - 1) / HEADS * p.groups * stretches; }
};
