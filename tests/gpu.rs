//! The tests that need a GPU are in the rooms that they test, in builds with feature `cuda`; elsewhere they are named here and skipped.

#[test]
#[ignore = "needs an NVIDIA GPU and CUDA 13: cargo test --workspace --features cuda -- --ignored cuda"]
fn cuda_kernels_and_models() {
    assert!(
        cfg!(feature = "cuda"),
        "this build has no GPU tests; run cargo test --workspace --features cuda -- --ignored cuda"
    );
}
