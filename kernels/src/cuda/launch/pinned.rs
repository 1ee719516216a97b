//! Host memory that the device writes and reads by itself.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

use super::{Element, Ptr};

/// Page-locked host memory that copies, captured ones too, fill and read.
pub struct Pinned<T: Element> {
    pub(super) start: *mut T,
    pub(super) len: usize,
    pub(super) context: Arc<CudaContext>,
}

// SAFETY: the memory belongs to this value alone, like a Vec's.
unsafe impl<T: Element> Send for Pinned<T> {}

impl<T: Element> Pinned<T> {
    /// What is there; copies into it must have been waited for ([`Gpu::wait`]).
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `len` numbers were allocated and set; the device writes them only between a replay and the wait for it.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    /// The address of element `from`, which the device knows by the same one, having checked that `len` follow.
    #[track_caller]
    pub(in crate::cuda) fn ptr(&self, from: usize, len: usize, what: &str) -> Ptr {
        assert!(from + len <= self.len, "{what}: {len} elements from {from} of {}", self.len);
        Ptr(self.start as u64 + (from * size_of::<T>()) as u64)
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl<T: Element> std::fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pinned<{}>[{}]", T::NAME, self.len)
    }
}

impl<T: Element> Drop for Pinned<T> {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: allocated by `Gpu::pinned`, freed once.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}
