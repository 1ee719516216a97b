//! Launches recorded to be replayed as one, and marks between launches.

use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaEvent, CudaGraph};

use super::{CudaError, Gpu, Result, lock};

/// Buffers that the launches being captured use.
pub(super) type Kept = Arc<Mutex<Option<Vec<Arc<dyn Any + Send + Sync>>>>>;

impl Gpu {
    /// Records what `work` launches, without running it, to be replayed as one.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        *lock(&self.kept) = Some(Vec::new());
        self.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let done = work();
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        let kept = lock(&self.kept).take().unwrap_or_default();
        done?;
        let graph = graph?.ok_or_else(|| CudaError::Driver("nothing was captured".to_owned()))?;
        graph.upload()?;
        Ok(Graph { graph, _kept: kept, _not_sync: PhantomData })
    }

    /// A point in the work, for [`Gpu::milliseconds`].
    pub fn mark(&self) -> Result<Mark> {
        Ok(Mark(self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?))
    }

    /// Moves a mark to this point in the work.
    pub fn mark_again(&self, mark: &Mark) -> Result<()> {
        Ok(mark.0.record(&self.stream)?)
    }

    /// Time on the device between two marks; waits for the second.
    pub fn milliseconds(&self, from: &Mark, to: &Mark) -> Result<f32> {
        Ok(from.0.elapsed_ms(&to.0)?)
    }

    /// Waits for all work before a mark.
    pub fn wait_for(&self, mark: &Mark) -> Result<()> {
        Ok(mark.0.synchronize()?)
    }
}

/// A point in the work of the device.
pub struct Mark(CudaEvent);

/// Recorded launches.
pub struct Graph {
    graph: CudaGraph,
    _kept: Vec<Arc<dyn Any + Send + Sync>>,
    _not_sync: PhantomData<Cell<()>>,
}

// SAFETY: the handles may be used from any thread, by one at a time, which the missing `Sync` sees to.
unsafe impl Send for Graph {}

impl Graph {
    /// Runs it all again, after what was launched before.
    pub fn replay(&self) -> Result<()> {
        Ok(self.graph.launch()?)
    }
}
