//! What a device says about itself and about what it did.

/// What a backend is.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// For people: device and instruction set or driver.
    pub name: String,
    /// How activations are held and multiplied.
    pub precision: Precision,
    /// The largest buffer that [`super::Backend::alloc`] gives, so the largest slab of expert slots.
    pub buffer_bytes_max: usize,
    /// Whether the host may write device memory that kernels read without a copy. When false,
    /// [`super::Backend::publish`] copies.
    pub unified_memory: bool,
    /// The most of the machine's memory that the device may have mapped at a time, in bytes; `None` where nothing but the
    /// machine limits it, or nobody says.
    pub mapped_bytes_max: Option<u64>,
    /// Whether a driver keeps the pages of such memory, so that they cannot be given back to the system before all of it.
    pub pins_memory: bool,
    /// Whether [`super::Backend::give_back`] does, so that more blocks may be made than there is memory for.
    pub gives_back: bool,
    /// Threads that compute; 0 for a GPU.
    pub threads: usize,
    /// Host memory that copies to the device go through, at most; 0 where there are none.
    pub staging_bytes: usize,
    /// Whether [`super::Backend::expert_table`] makes tables.
    pub looks_up_experts: bool,
}

/// What a device was asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounts {
    /// Pieces of work handed to its driver.
    pub submissions: u64,
    /// Times that the host waited for an answer.
    pub readbacks: u64,
    /// Copies of host memory that [`super::Backend::publish`] and [`super::Backend::write`] made.
    pub copies: u64,
    /// Bytes that the host sent: those copies, ids, and tables.
    pub copied_bytes: u64,
    /// Pipelines that were compiled.
    pub pipelines: u64,
}

impl DeviceCounts {
    /// What was counted after `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            submissions: self.submissions - earlier.submissions,
            readbacks: self.readbacks - earlier.readbacks,
            copies: self.copies - earlier.copies,
            copied_bytes: self.copied_bytes - earlier.copied_bytes,
            pipelines: self.pipelines - earlier.pipelines,
        }
    }
}

/// Time that a device spent in one kind of dispatch.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// The kernel.
    pub name: &'static str,
    /// Dispatches.
    pub calls: u64,
    /// Seconds of all of them.
    pub seconds: f64,
}

/// How activations are held and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout; the mode in which goldens are checked.
    Exact,
    /// What is fastest within the documented bounds: integer dots, half-precision KV cache, on a CPU with values of bf16.
    Fast,
}
