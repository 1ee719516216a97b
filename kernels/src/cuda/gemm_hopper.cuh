// What the linear maps on Hopper (sm_90a) are made of: barriers, the copy engine, products of a warpgroup.
#pragma once
#include "gemm.cuh"
#include "ring.cuh"

struct alignas(64) TensorMap {
    u64 words[16];
};
struct HopperParams {
    TensorMap x, w;               // boxes of 64 × 128 (in f32 of 32 × 128) and of 64 × BN / 2
    TensorMap y, wide, residual;  // where there are such: boxes of 64 × 64 in bf16, of 32 × 64 in f32
    GemmParams of;
    u32 pad[8];
};

constexpr u32 BM = 128, BK = 64, THREADS = 384, TOGETHER = 8;
// Registers of a thread of the warpgroup that copies and of those that multiply: 128 · 40 + 256 · 232 ≤ 65,536.
constexpr u32 FEW = 40, MANY = 232;
constexpr u32 OUT_BYTES = 64 * 128;  // 64 rows of 128 bytes

// Arrives at the barrier of that name in block `rank` of the cluster.
DEVICE void arrive_at(u32 barrier, u32 rank) {
    asm volatile("{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [remote];\n}"
                 ::"r"(barrier), "r"(rank)
                 : "memory");
}
DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// A tile from (column, row) of a matrix to here, or to the same place in both blocks.
DEVICE void fetch(u32 to, const TensorMap &map, u32 column, u32 row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(&map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}
DEVICE void fetch_for_both(u32 to, const TensorMap &map, u32 column, u32 row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;"
                 ::"r"(to), "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<unsigned short>(3))
                 : "memory");
}

// Rows of 128 bytes, swizzled by 16; eight of them are 1,024 bytes.
DEVICE u64 descriptor(u32 at) { return u64(at >> 4 & 0x3fff) | u64(1) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62; }

#define TEN(t) "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define OUT8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define OUT32(i) OUT8(i), OUT8(i + 8), OUT8(i + 16), OUT8(i + 24)
// The instruction for N outputs, with the places of its operands: those after the sums depend on how many sums there are.
#define WGMMA(n, sums, x, w, more, last, ...)                                                                                        \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " more ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" sums "}, " x ", " w \
                 ", p, 1, 1, " last ";\n}" __VA_ARGS__)
#define SUMS64 TEN() TEN(1) TEN(2) "%30,%31"
#define SUMS128 TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) "%60,%61,%62,%63"
#define SUMS192 TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) "%90,%91,%92,%93,%94,%95"
#define SUMS256                                                                                                                      \
    TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) TEN(9) TEN(10) TEN(11) "%120,%121,%122,%123,%124,%125,%126,%127"
#define OUT64 OUT32(0), OUT32(32)
#define OUT96 OUT64, OUT32(64)
#define OUT128 OUT96, OUT32(96)
// d [64, BN] of a warpgroup (+)= 64 rows × 16 at x, in shared memory, times BN rows × 16 at w.
template <int BN> DEVICE void multiply(float (&d)[BN / 2], u64 x, u64 w, u32 more) {
#define OPERANDS "l"(x), "l"(w), "r"(more)
    if constexpr (BN == 64) WGMMA(64, SUMS64, "%32", "%33", "%34", "0, 0", : OUT32(0) : OPERANDS);
    if constexpr (BN == 128) WGMMA(128, SUMS128, "%64", "%65", "%66", "0, 0", : OUT64 : OPERANDS);
    if constexpr (BN == 192) WGMMA(192, SUMS192, "%96", "%97", "%98", "0, 0", : OUT96 : OPERANDS);
    if constexpr (BN == 256) WGMMA(256, SUMS256, "%128", "%129", "%130", "0, 0", : OUT128 : OPERANDS);
#undef OPERANDS
}
// The same with x in registers.
template <int BN> DEVICE void multiply(float (&d)[BN / 2], const u32 (&x)[4], u64 w, u32 more) {
#define OPERANDS "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(w), "r"(more)
    if constexpr (BN == 64) WGMMA(64, SUMS64, "{%32,%33,%34,%35}", "%36", "%37", "0", : OUT32(0) : OPERANDS);
    if constexpr (BN == 128) WGMMA(128, SUMS128, "{%64,%65,%66,%67}", "%68", "%69", "0", : OUT64 : OPERANDS);
    if constexpr (BN == 192) WGMMA(192, SUMS192, "{%96,%97,%98,%99}", "%100", "%101", "0", : OUT96 : OPERANDS);
    if constexpr (BN == 256) WGMMA(256, SUMS256, "{%128,%129,%130,%131}", "%132", "%133", "0", : OUT128 : OPERANDS);
#undef OPERANDS
}
