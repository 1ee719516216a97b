//! Host memory that the device writes and reads by itself.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

use super::Element;

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

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl<T: Element> Drop for Pinned<T> {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: allocated by `Gpu::pinned`, freed once.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}
