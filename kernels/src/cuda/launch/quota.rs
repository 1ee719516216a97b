//! How much memory a program takes of a GPU: counted as it is given out, and bounded where a user says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use cudarc::driver::sys::{self, CUmemPool_attribute as Attribute};
use cudarc::driver::{CudaSlice, CudaStream, DriverError, result};

use super::{CudaError, Element, Gpu, Result};

const MIB: usize = 1 << 20;

/// Bytes given out, and at most; `usize::MAX` is no bound. The driver's own memory (context, code, graphs) is not in it.
pub(super) struct Quota {
    used: AtomicUsize,
    limit: AtomicUsize,
}

/// Bytes that are given back when it goes.
struct Charge {
    quota: Arc<Quota>,
    bytes: usize,
}

/// Device memory with what it counts for.
pub(super) struct Held<T: Element> {
    pub(super) slice: CudaSlice<T>,
    _charge: Charge,
}

impl Default for Quota {
    fn default() -> Self {
        Self { used: AtomicUsize::new(0), limit: AtomicUsize::new(usize::MAX) }
    }
}

impl Quota {
    pub(super) fn used(&self) -> usize {
        self.used.load(SeqCst)
    }

    pub(super) fn limit(&self) -> Option<usize> {
        Some(self.limit.load(SeqCst)).filter(|limit| *limit < usize::MAX)
    }

    pub(super) fn set_limit(&self, limit: Option<usize>) {
        self.limit.store(limit.unwrap_or(usize::MAX), SeqCst);
    }

    /// # Errors
    /// So much more is not allowed; nothing is counted then.
    fn take(self: &Arc<Self>, bytes: usize) -> Result<Charge> {
        let limit = self.limit.load(SeqCst);
        let fits = |used: usize| used.checked_add(bytes).filter(|used| *used <= limit);
        match self.used.fetch_update(SeqCst, SeqCst, fits) {
            Ok(_) => Ok(Charge { quota: self.clone(), bytes }),
            Err(used) => Err(CudaError::OverLimit {
                what: "this".to_owned(),
                needed: bytes.div_ceil(MIB),
                used: used.div_ceil(MIB),
                limit: limit / MIB,
            }),
        }
    }

    /// Memory for `len` elements, which the caller fills before it is read.
    pub(super) fn allocate<T: Element>(self: &Arc<Self>, stream: &Arc<CudaStream>, len: usize) -> Result<Held<T>> {
        let bytes = len.max(1) * size_of::<T>();
        let charge = self.take(bytes)?;
        if let Some(limit) = self.limit() {
            give_back(stream, bytes, limit)?;
        }
        // SAFETY: it is filled before it is read, as promised.
        match unsafe { stream.alloc(len.max(1)) } {
            Ok(slice) => Ok(Held { slice, _charge: charge }),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(CudaError::OutOfMemory {
                what: "this".to_owned(),
                needed: bytes.div_ceil(MIB),
                free: stream.context().mem_get_info().map_or(0, |(free, _)| free / MIB),
            }),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.quota.used.fetch_sub(self.bytes, SeqCst);
    }
}

impl Gpu {
    /// Bytes given out; at most those of [`Gpu::limit_memory`].
    pub fn used(&self) -> usize {
        self.quota.used()
    }

    /// Bytes that nobody uses: free, or freed and kept for the next allocation.
    pub fn free(&self) -> Result<usize> {
        let ordinal = self.context.ordinal();
        let used = pool_bytes(ordinal, Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        Ok(self.memory()?.0 + reserved(ordinal)?.saturating_sub(used))
    }

    /// Bytes that can be given out still.
    pub fn room(&self) -> Result<usize> {
        let free = self.free()?;
        Ok(self.memory_limit().map_or(free, |limit| free.min(limit.saturating_sub(self.used()))))
    }

    pub fn memory_limit(&self) -> Option<usize> {
        self.quota.limit()
    }

    /// Gives out at most so many bytes at a time from now on; all that is free if none.
    pub fn limit_memory(&self, bytes: Option<usize>) {
        self.quota.set_limit(bytes);
    }
}

/// The pool that memory comes from.
fn pool(ordinal: usize) -> Result<sys::CUmemoryPool> {
    let device = result::device::get(ordinal as i32)?;
    let mut pool = std::ptr::null_mut();
    // SAFETY: writes the pool's handle.
    unsafe { sys::cuDeviceGetDefaultMemPool(&mut pool, device) }.result()?;
    Ok(pool)
}

/// Memory that was freed stays with the program for the next allocation: snapshots come and go while tokens are made.
pub(super) fn keep_freed_memory(ordinal: usize) -> Result<()> {
    let (pool, mut threshold) = (pool(ordinal)?, u64::MAX);
    let attribute = Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: reads one 64-bit number.
    Ok(unsafe { sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()) }.result()?)
}

/// Bytes that the program holds of the GPU, those freed and kept included.
fn reserved(ordinal: usize) -> Result<usize> {
    pool_bytes(ordinal, Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)
}

fn pool_bytes(ordinal: usize, attribute: Attribute) -> Result<usize> {
    let (pool, mut bytes) = (pool(ordinal)?, 0u64);
    // SAFETY: writes one 64-bit number.
    unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()) }.result()?;
    Ok(bytes as usize)
}

/// Where `bytes` more might take the program beyond `limit`, what was freed goes back to the driver first.
fn give_back(stream: &CudaStream, bytes: usize, limit: usize) -> Result<()> {
    let ordinal = stream.context().ordinal();
    if reserved(ordinal)? + bytes <= limit {
        return Ok(());
    }
    // Only what is known to have been freed can go.
    stream.synchronize()?;
    // SAFETY: frees memory that nobody has.
    Ok(unsafe { sys::cuMemPoolTrimTo(pool(ordinal)?, 0) }.result()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_counted_and_bounded() {
        let quota = Arc::new(Quota::default());
        let kept = quota.take(3 * MIB).unwrap();
        assert!(quota.take(usize::MAX).is_err(), "more than can be counted");
        quota.set_limit(Some(5 * MIB));
        let more = quota.take(2 * MIB).unwrap();
        assert_eq!((quota.used(), quota.limit()), (5 * MIB, Some(5 * MIB)));
        let refused = quota.take(1).err().unwrap();
        assert_eq!(refused, CudaError::OverLimit { what: "this".into(), needed: 1, used: 5, limit: 5 });
        drop(more);
        assert_eq!(quota.used(), 3 * MIB);
        // A bound below what is in use takes nothing away.
        quota.set_limit(Some(MIB));
        assert!(quota.take(1).is_err());
        drop(kept);
        quota.set_limit(None);
        assert!(quota.take(100 * MIB).is_ok() && quota.used() == 0);
    }
}
