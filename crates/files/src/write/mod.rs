//! Minimal streaming writers of model files: the header first, then every tensor's bytes in the order given.
//!
//! They hold no tensor in memory, so a file may be larger than the machine. What they write, this crate reads.

mod gguf;
mod safetensors;

pub use gguf::{GgufTensor, GgufWriter};
pub use safetensors::{SafetensorsTensor, SafetensorsWriter};

use std::collections::VecDeque;
use std::io::Write;

use crate::{Error, Result};

/// The data section: a queue of tensors, each a known number of bytes and of padding.
struct DataWriter<W> {
    out: W,
    queue: VecDeque<Slot>,
}

struct Slot {
    name: String,
    /// Bytes still to come.
    left: u64,
    /// Zeros that follow.
    padding: u64,
}

impl<W: Write> DataWriter<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::io("writing a model file", e))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(slot) = self.queue.front_mut() else {
            return Err(Error::invalid("data after the last tensor"));
        };
        let len = bytes.len() as u64;
        if len > slot.left {
            let what = format!("tensor {}: {len} bytes where {} are still to come", slot.name, slot.left);
            return Err(Error::invalid(what));
        }
        slot.left -= len;
        let padding = if slot.left == 0 { slot.padding } else { 0 };
        if slot.left == 0 {
            self.queue.pop_front();
        }
        self.put(bytes)?;
        self.put(&vec![0; padding as usize])
    }

    fn finish(mut self) -> Result<W> {
        if let Some(slot) = self.queue.front() {
            return Err(Error::invalid(format!("tensor {}: {} bytes are missing", slot.name, slot.left)));
        }
        self.out.flush().map_err(|e| Error::io("writing a model file", e))?;
        Ok(self.out)
    }
}
