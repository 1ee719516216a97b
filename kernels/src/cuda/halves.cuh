// f32 on tensor cores: each number is the sum of two of eleven bits, and a product that of three products of those (mma.sync, TF32; Markidis
// et al. 2018), which leaves the error of f32 but for what the tensor core cuts off its sums.
//
// Along K the order is free: where numbers 2 q and 2 q + 1 of eight take the places of q and q + 4, a lane reads both at once.
#pragma once
#include "common.cuh"

struct Halves {
    u32 high, low;
};
// x to eleven bits, and what is missing, of which the tensor core reads eleven bits.
DEVICE Halves halve(float x) {
    const u32 high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
    return {high, __float_as_uint(x - __uint_as_float(high))};
}
DEVICE void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// One of the three products of d [16, 8] += a [16, 8] b [8, 8], the smallest first.
DEVICE void multiply_part(int part, float (&d)[4], const Halves (&a)[4], const Halves (&b)[2]) {
    if (part == 0) mma(d, a[0].low, a[1].low, a[2].low, a[3].low, b[0].high, b[1].high);
    if (part == 1) mma(d, a[0].high, a[1].high, a[2].high, a[3].high, b[0].low, b[1].low);
    if (part == 2) mma(d, a[0].high, a[1].high, a[2].high, a[3].high, b[0].high, b[1].high);
}
// d [16, 8] += a [16, 8] b [8, 8].
DEVICE void multiply_add(float (&d)[4], const Halves (&a)[4], float b0, float b1) {
    const Halves b[2] = {halve(b0), halve(b1)};
#pragma unroll
    for (int part = 0; part < 3; part++) multiply_part(part, d, a, b);
}
