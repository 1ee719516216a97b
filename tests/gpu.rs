//! The tests that need a GPU are in the rooms that they test, in builds with feature `cuda`; elsewhere they are named here and skipped.

#[test]
#[cfg(not(feature = "cuda"))]
#[ignore = "needs an NVIDIA GPU and CUDA 13: cargo test --workspace --features cuda -- --ignored cuda"]
fn cuda_kernels_and_models() {
    panic!("this build has no GPU tests; run cargo test --workspace --features cuda -- --ignored cuda");
}
