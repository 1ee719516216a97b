//! The device: context, one stream, memory, modules, launches, captured graphs. The only unsafe code of the CUDA kernels.
//!
//! Everything runs on one stream, in order. A [`Buffer`] may be cloned: the clones share the numbers, and a [`Graph`] keeps the buffers
//! alive that its launches use. What a launch reads and writes is checked by the op that makes it, before it comes here.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};
use half::{bf16, f16};

mod graph;
mod pinned;
mod quota;
mod tensor_map;

use graph::Kept;
pub use graph::{Graph, Mark};
pub use pinned::Pinned;
use quota::{Held, Quota, keep_freed_memory};
pub(super) use tensor_map::TensorMap;

/// Machine code by source file.
static MODULES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// The oldest driver whose CUDA version runs our machine code, as `cuDriverGetVersion` counts.
const DRIVER: i32 = 13_000;

/// Why the GPU cannot do it, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    #[error("no NVIDIA driver is installed; run on the CPU, or install a driver for CUDA 13 or newer")]
    NoDriver,
    #[error(
        "the NVIDIA driver knows CUDA {}.{} only; install one for CUDA 13 or newer (580 or newer), or run on the CPU", version / 1000, version % 1000 / 10
    )]
    DriverTooOld { version: i32 },
    #[error("the driver sees no NVIDIA GPU; run on the CPU")]
    NoDevice,
    #[error("{name} is of compute capability {major}.{minor}; 8.0 or newer is needed (Ampere)")]
    DeviceTooOld { name: String, major: i32, minor: i32 },
    #[error(
        "{what} needs {needed} MiB of GPU memory and {free} MiB are free; take a smaller model or a shorter text, or run on the CPU"
    )]
    OutOfMemory { what: String, needed: usize, free: usize },
    #[error(
        "{what} needs {needed} MiB more of GPU memory, and {used} of the {limit} MiB allowed are in use; allow more, take a smaller model or a shorter text, or run on the CPU"
    )]
    OverLimit { what: String, needed: usize, used: usize, limit: usize },
    #[error("no CUDA kernel for {0}")]
    Unsupported(String),
    #[error("CUDA failed: {0}")]
    Driver(String),
}

impl From<DriverError> for CudaError {
    fn from(error: DriverError) -> Self {
        CudaError::Driver(error.to_string())
    }
}

impl CudaError {
    /// Whether it is for want of memory, so that less of it might do.
    pub fn is_memory(&self) -> bool {
        matches!(self, Self::OutOfMemory { .. } | Self::OverLimit { .. })
    }

    /// With what there was no memory for.
    pub fn naming(mut self, name: impl fmt::Display) -> Self {
        if let Self::OutOfMemory { what, .. } | Self::OverLimit { what, .. } = &mut self {
            *what = name.to_string();
        }
        self
    }
}

pub type Result<T> = std::result::Result<T, CudaError>;

/// An element of device memory.
pub trait Element:
    Pod + cudarc::driver::DeviceRepr + cudarc::driver::ValidAsZeroBits + Send + Sync + fmt::Debug
{
    /// What the kernels call it.
    const NAME: &'static str;
}
impl Element for f32 {
    const NAME: &'static str = "f32";
}
impl Element for bf16 {
    const NAME: &'static str = "bf16";
}
impl Element for f16 {
    const NAME: &'static str = "f16";
}
impl Element for u32 {
    const NAME: &'static str = "u32";
}

/// An address in device memory as kernels receive it; 0 is none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Ptr(u64);

/// Numbers in device memory. Clones share them.
#[derive(Clone)]
pub struct Buffer<T: Element> {
    slice: Arc<Mutex<Held<T>>>,
    address: u64,
    len: usize,
    kept: Kept,
}

impl<T: Element> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer<{}>[{}]", T::NAME, self.len)
    }
}

impl<T: Element> Buffer<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of element `from`.
    pub(super) fn ptr(&self, from: usize) -> Ptr {
        assert!(from <= self.len, "element {from} of a buffer of {}", self.len);
        if let Some(kept) = lock(&self.kept).as_mut() {
            kept.push(self.slice.clone());
        }
        Ptr(self.address + (from * size_of::<T>()) as u64)
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held leaves nothing half done.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Blocks, threads and bytes of shared memory of a launch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) grid: (u32, u32),
    pub(super) threads: u32,
    pub(super) shared: u32,
    /// Whether it may start before the launch before it has ended: the kernel must then wait for its inputs itself.
    pub(super) early: bool,
}

struct Functions {
    /// In the order of [`MODULES`]; none of code for another chip.
    modules: Vec<Option<sys::CUmodule>>,
    by_name: HashMap<String, sys::CUfunction>,
}

// SAFETY: module and function handles belong to the context, not to a thread; the driver serialises their use.
unsafe impl Send for Functions {}

impl Drop for Gpu {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        for module in lock(&self.functions).modules.drain(..).flatten() {
            // SAFETY: the module was loaded by `open` and is unloaded once; nothing launches after the last owner of the Gpu is gone.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}

/// One GPU and one stream on it.
pub struct Gpu {
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    functions: Mutex<Functions>,
    kept: Kept,
    quota: Arc<Quota>,
    name: String,
    processors: u32,
    /// Whether launches may overlap the end of the one before (compute capability 9.0 and later).
    overlaps: bool,
    /// Whether it runs the code of `*_hopper.cu` (compute capability 9.0).
    hopper: bool,
    limit: usize,
}

/// Looks for a driver that is new enough and GPU number `ordinal`, and makes nothing on it. Returns its name.
///
/// # Errors
/// As [`Gpu::open`].
pub fn find(ordinal: usize) -> Result<String> {
    // SAFETY: this only tries to load the driver's library.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    match result::init() {
        Ok(()) => {}
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(CudaError::NoDevice),
        Err(error) => return Err(error.into()),
    }
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    if version < DRIVER {
        return Err(CudaError::DriverTooOld { version });
    }
    if result::device::get_count()? <= ordinal as i32 {
        return Err(CudaError::NoDevice);
    }
    Ok(result::device::get_name(result::device::get(ordinal as i32)?)?)
}

impl Gpu {
    /// Opens a GPU and loads the kernels.
    ///
    /// # Errors
    /// No driver, one too old, no such GPU, or one older than Ampere.
    pub fn open(ordinal: usize) -> Result<Arc<Gpu>> {
        let name = find(ordinal)?;
        let context = CudaContext::new(ordinal)?;
        let (major, minor) = context.compute_capability()?;
        if major < 8 {
            return Err(CudaError::DeviceTooOld { name, major, minor });
        }
        // SAFETY: all work goes to one stream, so that no event is needed to order it.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream()?;
        let hopper = (major, minor) == (9, 0);
        let mut modules = Vec::new();
        for (name, code) in MODULES {
            // SAFETY: the image is what nvcc made, whole.
            let load = || unsafe { result::module::load_data(code.as_ptr().cast()) };
            modules.push((hopper || !name.ends_with("_hopper")).then(load).transpose()?);
        }
        keep_freed_memory(ordinal)?;
        let processors = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        Ok(Arc::new(Gpu {
            functions: Mutex::new(Functions { modules, by_name: HashMap::new() }),
            kept: Arc::default(),
            quota: Arc::default(),
            name,
            processors,
            overlaps: major >= 9,
            hopper,
            limit: context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
            stream,
            context,
        }))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Multiprocessors.
    pub fn processors(&self) -> u32 {
        self.processors
    }

    /// Bytes of shared memory that a block may use.
    pub(super) fn shared_limit(&self) -> usize {
        self.limit
    }

    /// Whether launches are being recorded.
    pub(super) fn captures(&self) -> bool {
        lock(&self.kept).is_some()
    }

    /// Whether it runs the code of `*_hopper.cu`.
    pub(super) fn is_hopper(&self) -> bool {
        self.hopper
    }

    /// Bytes free and in all.
    pub fn memory(&self) -> Result<(usize, usize)> {
        Ok(self.context.mem_get_info()?)
    }

    /// Memory that the caller fills before it is read.
    fn allocate<T: Element>(&self, len: usize) -> Result<Held<T>> {
        self.quota.allocate(&self.stream, len)
    }

    fn wrap<T: Element>(&self, slice: Held<T>, len: usize) -> Buffer<T> {
        use cudarc::driver::DevicePtr;
        let address = slice.slice.device_ptr(&self.stream).0;
        Buffer { slice: Arc::new(Mutex::new(slice)), address, len, kept: self.kept.clone() }
    }

    /// `len` zeros.
    pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        let mut slice = self.allocate(len)?;
        self.stream.memset_zeros(&mut slice.slice)?;
        Ok(self.wrap(slice, len))
    }

    /// A copy of all of `buffer`.
    pub fn twin<T: Element>(&self, buffer: &Buffer<T>) -> Result<Buffer<T>> {
        let twin = self.allocate(buffer.len)?;
        let twin = self.wrap(twin, buffer.len);
        self.copy(buffer, &twin)?;
        Ok(twin)
    }

    /// A copy of `values`.
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<Buffer<T>> {
        let mut slice = self.allocate(values.len())?;
        self.stream.memcpy_htod(values, &mut slice.slice)?;
        // The host may go on with its memory.
        self.stream.synchronize()?;
        Ok(self.wrap(slice, values.len()))
    }

    /// Overwrites elements from `from` on.
    pub fn write<T: Element>(&self, buffer: &Buffer<T>, from: usize, values: &[T]) -> Result<()> {
        let mut slice = lock(&buffer.slice);
        self.stream.memcpy_htod(values, &mut slice.slice.slice_mut(from..from + values.len()))?;
        self.stream.synchronize()?;
        Ok(())
    }

    /// All numbers, after everything launched so far.
    pub fn download<T: Element>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); buffer.len];
        self.read(buffer, 0, &mut values)?;
        Ok(values)
    }

    /// Elements from `from` on into `out`.
    pub fn read<T: Element>(&self, buffer: &Buffer<T>, from: usize, out: &mut [T]) -> Result<()> {
        let slice = lock(&buffer.slice);
        self.stream.memcpy_dtoh(&slice.slice.slice(from..from + out.len()), out)?;
        self.stream.synchronize()?;
        Ok(())
    }

    /// Zeros in page-locked host memory.
    pub fn pinned<T: Element>(&self, len: usize) -> Result<Pinned<T>> {
        self.context.bind_to_thread()?;
        // SAFETY: allocates; every bit pattern is a number (`Pod`), and all are set before anything reads them.
        let start = unsafe {
            let start: *mut T = result::malloc_host(len.max(1) * size_of::<T>(), 0)?.cast();
            start.write_bytes(0, len.max(1));
            start
        };
        Ok(Pinned { start, len, context: self.context.clone() })
    }

    /// Copies as many numbers as both have from the start of `from` to that of `to`; may be captured.
    pub fn copy<T: Element>(&self, from: &Buffer<T>, to: &Buffer<T>) -> Result<()> {
        let bytes = from.len.min(to.len) * size_of::<T>();
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both are live buffers of at least so many bytes, and different ones, or the same numbers are written again.
        unsafe { result::memcpy_dtod_async(to.ptr(0).0, from.ptr(0).0, bytes, self.stream.cu_stream()) }?;
        Ok(())
    }

    /// Sets all numbers to zero; may be captured.
    pub fn clear<T: Element>(&self, buffer: &Buffer<T>) -> Result<()> {
        Ok(self.stream.memset_zeros(&mut lock(&buffer.slice).slice)?)
    }

    /// Starts a copy of `len` elements from `from` of `buffer` to `to` of `host`; may be captured. `host` must be kept while the graph is.
    pub fn copy_out<T: Element>(
        &self,
        buffer: &Buffer<T>,
        from: usize,
        host: &mut Pinned<T>,
        to: usize,
        len: usize,
    ) -> Result<()> {
        assert!(from + len <= buffer.len, "copy of {len} from {from} of {}", buffer.len);
        let target = &mut host.as_mut_slice()[to..to + len];
        // SAFETY: both ranges were checked; page-locked memory may be written by the device at any later time while it lives.
        unsafe { result::memcpy_dtoh_async(target, buffer.ptr(from).0, self.stream.cu_stream()) }?;
        Ok(())
    }

    /// Starts a copy of `host` to elements `to`…; may be captured, and then reads what `host` holds at each replay.
    pub fn copy_in<T: Element>(&self, host: &Pinned<T>, buffer: &Buffer<T>, to: usize) -> Result<()> {
        let values = host.as_slice();
        assert!(to + values.len() <= buffer.len, "copy of {} to {to} of {}", values.len(), buffer.len);
        // SAFETY: both ranges were checked; page-locked memory may be read by the device at any later time while it lives.
        unsafe { result::memcpy_htod_async(buffer.ptr(to).0, values, self.stream.cu_stream()) }?;
        Ok(())
    }

    /// Waits for all work.
    pub fn wait(&self) -> Result<()> {
        Ok(self.stream.synchronize()?)
    }

    /// Launches a kernel of `module` whose only parameter is `params`, of the layout that its source declares.
    pub(super) fn launch<P: Pod>(&self, module: &str, kernel: &str, shape: Shape, params: &P) -> Result<()> {
        // SAFETY: the struct is plain data; a launch may change it.
        let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let early = shape.early && self.overlaps;
        self.launch_with(module, kernel, shape, params, early.then_some(attribute))
    }

    /// As [`Gpu::launch`]; all blocks run at the same time, and may wait for each other, or it fails.
    pub(super) fn launch_together<P: Pod>(&self, module: &str, kernel: &str, shape: Shape, params: &P) -> Result<()> {
        // SAFETY: as above.
        let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
        attribute.value.cooperative = 1;
        self.launch_with(module, kernel, shape, params, Some(attribute))
    }

    fn launch_with<P: Pod>(
        &self,
        module: &str,
        kernel: &str,
        shape: Shape,
        params: &P,
        mut attribute: Option<sys::CUlaunchAttribute>,
    ) -> Result<()> {
        self.context.bind_to_thread()?;
        assert!(shape.shared as usize <= self.limit, "{kernel}: {} bytes of shared memory", shape.shared);
        let function = self.function(module, kernel)?;
        let config = sys::CUlaunchConfig {
            gridDimX: shape.grid.0,
            gridDimY: shape.grid.1,
            gridDimZ: 1,
            blockDimX: shape.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared,
            hStream: self.stream.cu_stream(),
            numAttrs: u32::from(attribute.is_some()),
            attrs: attribute.as_mut().map_or(std::ptr::null_mut(), std::ptr::from_mut),
        };
        let mut arguments = [std::ptr::from_ref(params) as *mut c_void];
        // SAFETY: the kernel takes one struct by value, which the driver copies during the call; that its addresses are of live
        // buffers long enough is checked by the op.
        unsafe { sys::cuLaunchKernelEx(&config, function, arguments.as_mut_ptr(), std::ptr::null_mut()) }.result()?;
        Ok(())
    }

    fn function(&self, module: &str, name: &str) -> Result<sys::CUfunction> {
        let mut functions = lock(&self.functions);
        if let Some(function) = functions.by_name.get(name) {
            return Ok(*function);
        }
        let index = MODULES.iter().position(|(known, _)| *known == module).expect("a file of src/cuda");
        let code = functions.modules[index].expect("code for this chip");
        let symbol = CString::new(name).expect("kernel names hold no zero byte");
        let shared = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let fixed = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: the module is loaded in this context, and the function is of it; it may use all shared memory that its own arrays leave.
        let function = unsafe {
            let function = result::module::get_function(code, symbol)?;
            let used = result::function::get_function_attribute(function, fixed)?;
            result::function::set_function_attribute(function, shared, self.limit as i32 - used)?;
            function
        };
        functions.by_name.insert(name.to_owned(), function);
        Ok(function)
    }
}
