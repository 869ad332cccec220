//! Memory of a device: raw buffers, exclusively owned blocks and tensors, shared read-only views, weights.
//!
//! Three kinds of handle keep host access sound without a lock: a [`Block`] owns its buffer alone, so `&mut`
//! means exclusive; a [`View`] promises that nobody writes its bytes; a bare [`Buffer`] gives no safe access at
//! all and is what the store fills.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use files::{Error, Format, Result};

/// One allocation of a backend.
pub trait DeviceMemory: Any + Send + Sync {
    /// Size of the allocation.
    fn bytes(&self) -> usize;
    /// Start of the allocation as this process sees it, page-aligned for slabs; `None` when it cannot be mapped.
    fn host(&self) -> Option<NonNull<u8>>;
    /// For the backend to find its own type again.
    fn as_any(&self) -> &dyn Any;
}

/// A shared handle on raw device memory. Gives no safe access to the bytes.
#[derive(Clone)]
pub struct Buffer(Arc<dyn DeviceMemory>);

impl Buffer {
    /// Wraps an allocation of a backend.
    pub fn new(memory: impl DeviceMemory) -> Self {
        Self(Arc::new(memory))
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// The host address, if the memory is mapped into this process.
    pub fn host(&self) -> Option<NonNull<u8>> {
        self.0.host()
    }

    /// The backend's own type.
    pub fn downcast<T: 'static>(&self) -> Option<&T> {
        self.0.as_any().downcast_ref()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes())
    }
}

/// Device memory with a single owner: activations, states, caches.
#[derive(Debug)]
pub struct Block(Buffer);

impl Block {
    /// Takes sole ownership of `buffer`.
    ///
    /// # Errors
    /// [`files::ErrorKind::InvalidRequest`] when another handle to the buffer exists.
    pub fn new(buffer: Buffer) -> Result<Self> {
        if Arc::strong_count(&buffer.0) != 1 {
            return Err(Error::invalid("a block needs a buffer that nobody else holds"));
        }
        Ok(Self(buffer))
    }

    /// The device memory, for the backend that made it.
    pub fn buffer(&self) -> &Buffer {
        &self.0
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// The bytes as the host sees them.
    ///
    /// # Errors
    /// [`files::ErrorKind::Device`] when the memory is not mapped.
    pub fn host<T: bytemuck::Pod>(&self) -> Result<&[T]> {
        let pointer = self.host_pointer()?;
        // SAFETY: the allocation is at least `bytes` long and outlives `self`; `&self` of the only owner excludes
        // writers; allocations are aligned to 64 bytes, which covers every Pod type used.
        let bytes = unsafe { std::slice::from_raw_parts(pointer.as_ptr(), self.bytes()) };
        Ok(whole_items(bytes))
    }

    /// The bytes as the host sees them, to write.
    ///
    /// # Errors
    /// [`files::ErrorKind::Device`] when the memory is not mapped.
    pub fn host_mut<T: bytemuck::Pod>(&mut self) -> Result<&mut [T]> {
        let pointer = self.host_pointer()?;
        // SAFETY: as in `host`; `&mut self` of the only owner excludes every other access.
        let bytes = unsafe { std::slice::from_raw_parts_mut(pointer.as_ptr(), self.bytes()) };
        let whole = bytes.len() - bytes.len() % size_of::<T>();
        Ok(bytemuck::cast_slice_mut(&mut bytes[..whole]))
    }

    /// Gives up the right to write: from now on the memory is shared and constant.
    pub fn freeze(self) -> View {
        let bytes = self.bytes();
        View { buffer: self.0, offset: 0, bytes }
    }

    fn host_pointer(&self) -> Result<NonNull<u8>> {
        self.0.host().ok_or_else(not_mapped)
    }
}

fn whole_items<T: bytemuck::Pod>(bytes: &[u8]) -> &[T] {
    bytemuck::cast_slice(&bytes[..bytes.len() - bytes.len() % size_of::<T>()])
}

fn not_mapped() -> Error {
    Error::new(files::ErrorKind::Device, "this device memory is not visible to the host")
}

/// A constant range of device memory: a part of a weight.
#[derive(Clone, Debug)]
pub struct View {
    buffer: Buffer,
    offset: usize,
    bytes: usize,
}

impl View {
    /// A view of `range` of `buffer`.
    ///
    /// # Safety
    /// From the first access through this view or a clone of it, until the last of them is gone, nobody writes the
    /// range. It may still be filled before.
    ///
    /// # Errors
    /// [`files::ErrorKind::InvalidRequest`] when the range leaves the buffer.
    pub unsafe fn new(buffer: &Buffer, range: Range<usize>) -> Result<Self> {
        if range.start > range.end || range.end > buffer.bytes() {
            return Err(Error::invalid(format!(
                "view {range:?} leaves a buffer of {} bytes",
                buffer.bytes()
            )));
        }
        Ok(Self { buffer: buffer.clone(), offset: range.start, bytes: range.len() })
    }

    /// A part of this view.
    ///
    /// # Errors
    /// [`files::ErrorKind::InvalidRequest`] when the range leaves the view.
    pub fn slice(&self, range: Range<usize>) -> Result<Self> {
        if range.start > range.end || range.end > self.bytes {
            return Err(Error::invalid(format!("slice {range:?} leaves a view of {} bytes", self.bytes)));
        }
        Ok(Self { buffer: self.buffer.clone(), offset: self.offset + range.start, bytes: range.len() })
    }

    /// The memory this view lies in.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// First byte within the buffer.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes as the host sees them.
    ///
    /// # Errors
    /// [`files::ErrorKind::Device`] when the memory is not mapped.
    pub fn host(&self) -> Result<&[u8]> {
        let pointer = self.buffer.host().ok_or_else(not_mapped)?;
        // SAFETY: construction checked the range against the allocation, which the Arc keeps alive, and
        // promised that nobody writes it any more.
        Ok(unsafe { std::slice::from_raw_parts(pointer.as_ptr().add(self.offset), self.bytes) })
    }
}

/// Activations on a device: f32 `[rows, cols]`, row-major.
#[derive(Debug)]
pub struct Tensor {
    block: Block,
    rows: usize,
    cols: usize,
}

impl Tensor {
    /// A tensor over `block`, whose start it uses.
    ///
    /// # Errors
    /// [`files::ErrorKind::InvalidRequest`] when the block is too small.
    pub fn new(block: Block, rows: usize, cols: usize) -> Result<Self> {
        let tensor = Self { block, rows, cols };
        if tensor.len() * 4 > tensor.block.bytes() {
            return Err(Error::invalid(format!(
                "[{rows}, {cols}] does not fit {} bytes",
                tensor.block.bytes()
            )));
        }
        Ok(tensor)
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Values in use.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether no value is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory underneath.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// The memory underneath, to write.
    pub fn block_mut(&mut self) -> &mut Block {
        &mut self.block
    }

    /// Gives the memory back, to be used again in another shape.
    pub fn into_block(self) -> Block {
        self.block
    }

    /// The values as the host sees them.
    ///
    /// # Errors
    /// [`files::ErrorKind::Device`] when the memory is not mapped.
    pub fn host(&self) -> Result<&[f32]> {
        Ok(&self.block.host()?[..self.len()])
    }

    /// The values as the host sees them, to write.
    ///
    /// # Errors
    /// [`files::ErrorKind::Device`] when the memory is not mapped.
    pub fn host_mut(&mut self) -> Result<&mut [f32]> {
        let len = self.len();
        Ok(&mut self.block.host_mut()?[..len])
    }
}

/// A weight matrix `[rows, cols]` in one of the [`Format`]s; a row is one output.
#[derive(Clone, Debug)]
pub struct Weight {
    format: Format,
    rows: usize,
    cols: usize,
    parts: Vec<View>,
}

impl Weight {
    /// A weight over its byte ranges: one view, or three for affine formats (packed values, scales, biases).
    ///
    /// # Errors
    /// [`files::ErrorKind::Corrupt`] when number or sizes of the parts do not match format and shape.
    pub fn new(format: Format, rows: usize, cols: usize, parts: Vec<View>) -> Result<Self> {
        if rows == 0 || cols == 0 {
            return Err(Error::corrupt(format!("a weight [{rows}, {cols}] is empty")));
        }
        if parts.len() != format.parts() {
            return Err(Error::corrupt(format!(
                "{format} has {} parts, not {}",
                format.parts(),
                parts.len()
            )));
        }
        for (part, view) in parts.iter().enumerate() {
            let expected = format.row_bytes(part, cols)?.checked_mul(rows);
            if expected != Some(view.bytes()) {
                let got = view.bytes();
                return Err(Error::corrupt(format!(
                    "{format} [{rows}, {cols}]: part {part} has {got} bytes"
                )));
            }
        }
        Ok(Self { format, rows, cols, parts })
    }

    /// The number format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The byte ranges.
    pub fn parts(&self) -> &[View] {
        &self.parts
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(View::bytes).sum()
    }

    /// The same matrix, seen by the host.
    ///
    /// # Errors
    /// [`files::ErrorKind::Device`] when the memory is not mapped.
    pub fn host(&self) -> Result<HostWeight<'_>> {
        let mut parts: [&[u8]; 3] = [&[]; 3];
        let mut row_bytes = [0; 3];
        for (i, view) in self.parts.iter().enumerate() {
            parts[i] = view.host()?;
            row_bytes[i] = self.format.row_bytes(i, self.cols)?;
        }
        Ok(HostWeight { format: self.format, rows: self.rows, cols: self.cols, parts, row_bytes })
    }
}

/// A weight as the host sees it: what CPU kernels work on.
#[derive(Clone, Copy, Debug)]
pub struct HostWeight<'a> {
    /// The number format.
    pub format: Format,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    parts: [&'a [u8]; 3],
    row_bytes: [usize; 3],
}

impl<'a> HostWeight<'a> {
    /// The bytes of row `row` in part `part`.
    pub fn row(&self, part: usize, row: usize) -> &'a [u8] {
        let n = self.row_bytes[part];
        &self.parts[part][row * n..][..n]
    }

    /// All bytes of part `part`.
    pub fn part(&self, part: usize) -> &'a [u8] {
        self.parts[part]
    }

    /// Writes the values of row `row` into `out`, `[cols]`.
    ///
    /// # Errors
    /// As [`files::quant::decode`].
    pub fn decode_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        let parts = [self.row(0, row), self.row(1, row), self.row(2, row)];
        files::quant::decode(self.format, &parts[..self.format.parts()], out)
    }
}
