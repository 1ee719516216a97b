//! The fast CPU twins: explicit SIMD over contiguous slices, work split over [`crate::par`].

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod channel_scan;
pub(crate) mod conv;
pub(crate) mod delta_rule;
pub(crate) mod gemm;
pub(crate) mod heads;
pub(crate) mod linear;
pub(crate) mod linear_attention;
pub(crate) mod long_conv;
pub(crate) mod mixing;
pub(crate) mod norm;
pub(crate) mod product;
pub(crate) mod reduce;
pub(crate) mod rope;
pub(crate) mod selective_scan;
pub(crate) mod simd;
pub(crate) mod ssd;
pub(crate) mod state_space;
pub(crate) mod vector;
