//! What the copy engine of Hopper reads: a matrix in device memory, cut into boxes.

use cudarc::driver::sys::{
    self, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion,
    CUtensorMapSwizzle,
};

use super::{Ptr, Result};

/// A `CUtensorMap`, as kernels receive it.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(in crate::cuda) struct TensorMap([u64; 16]);

impl TensorMap {
    /// Of bf16 [rows, cols] at `start`, a row every `stride`: boxes of 64 columns and `boxed` rows, which lie in shared memory in rows of
    /// 128 bytes swizzled by 16. What lies beyond the matrix reads as zero and is not written. `start`, `stride` and `cols` are multiples of
    /// eight. A map of nothing if there is no matrix.
    pub(in crate::cuda) fn halves(start: Ptr, size: [u32; 2], stride: u32, boxed: u32) -> Result<Self> {
        let of = (CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2);
        Self::new(start, size, stride, [64, boxed], of, CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B)
    }

    /// As [`TensorMap::halves`], in rows that are not swizzled.
    pub(in crate::cuda) fn plain_halves(start: Ptr, size: [u32; 2], stride: u32, boxed: u32) -> Result<Self> {
        let of = (CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2);
        Self::new(start, size, stride, [64, boxed], of, CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE)
    }

    /// As [`TensorMap::halves`] of f32, in boxes of 32 columns.
    pub(in crate::cuda) fn wide(start: Ptr, size: [u32; 2], stride: u32, boxed: u32) -> Result<Self> {
        let of = (CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4);
        Self::new(start, size, stride, [32, boxed], of, CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B)
    }

    fn new(
        start: Ptr,
        [rows, cols]: [u32; 2],
        stride: u32,
        boxes: [u32; 2],
        (element, bytes): (CUtensorMapDataType, u64),
        swizzle: CUtensorMapSwizzle,
    ) -> Result<Self> {
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        if start == Ptr::default() {
            return Ok(Self(map.opaque));
        }
        let (sizes, strides, steps) = ([u64::from(cols), u64::from(rows)], [u64::from(stride) * bytes], [1, 1]);
        // SAFETY: reads arrays of two numbers (of one, the strides) and writes the map; the address is only noted.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                element,
                2,
                start.0 as *mut _,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()?;
        Ok(Self(map.opaque))
    }
}
