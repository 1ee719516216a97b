// Barriers in shared memory that the copy engine of Hopper completes.
#pragma once
#include "common.cuh"

DEVICE u32 shared_address(const void *at) { return static_cast<u32>(__cvta_generic_to_shared(at)); }
DEVICE void make_barrier(u32 barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}
// The copy engine sees the barriers made so far.
DEVICE void show_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void expect_bytes(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
DEVICE void wait_for(u32 barrier, u32 parity) {
    asm volatile("{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra DONE;\nbra AGAIN;\nDONE:\n}"
                 ::"r"(barrier), "r"(parity)
                 : "memory");
}
DEVICE void arrive_at(u32 barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }
// What this thread has read from shared memory has been read before the copy engine writes there, if it waits for a barrier that this
// thread arrives at next. An arrival alone does not wait for reads under way.
DEVICE void end_reads() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Whether the phase of that parity is over.
DEVICE bool passed(u32 barrier, u32 parity) {
    u32 done;
    asm volatile("{\n.reg .pred done;\nmbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return done;
}
// `bytes` from global memory to shared memory, all multiples of 16; counted by the barrier.
DEVICE void fetch_bytes(u32 to, const void *from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
                 "r"(barrier)
                 : "memory");
}
