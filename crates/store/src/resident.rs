//! The weights that are always needed: read once, in large pieces, into memory of their own.

use std::ops::ControlFlow;
use std::sync::Arc;

use files::{Error, ErrorKind, Result};

use crate::disk::{Disk, Fill, Inbox, Priority, ReadRequest};
use crate::key::Range;
use crate::slab::{PAGE_BYTES, SlabMemory, Window};

/// Where the bytes of a range go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// What to read; any alignment.
    pub range: Range,
    /// Index of the slab.
    pub slab: usize,
    /// First byte within the slab; any alignment.
    pub offset: usize,
}

/// Bytes of one bounce buffer: the largest read.
const BOUNCE_BYTES: usize = 2 << 20;

/// Reads under way at once.
const BOUNCES: usize = 8;

/// Memory that [`load`] uses while it runs, on top of its slabs, in bytes.
pub const LOAD_BYTES: usize = BOUNCES * (BOUNCE_BYTES + PAGE_BYTES);

/// One read: `range` of at most [`BOUNCE_BYTES`], for byte `offset` of slab `slab`.
type Part = Placement;

/// Reads all placements into `slabs`, several at a time, and returns the bytes they hold together. Neither side
/// needs an alignment: the drive is read in aligned pieces into a small buffer, from which the exact bytes are
/// copied. `progress(bytes_done, bytes_total)` is called after every piece and may break off.
///
/// # Errors
/// `InvalidRequest` for a placement outside its slab; `Cancelled` when `progress` broke off; `Memory` without room
/// for the buffers; else the error of the read, naming the file. The slabs' content is then undefined.
pub fn load(
    disk: &Arc<dyn Disk>,
    slabs: &mut [SlabMemory],
    placements: &[Placement],
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<u64> {
    let mut total = 0;
    for place in placements {
        check(disk.as_ref(), slabs, place)?;
        total += place.range.bytes;
    }
    let mut parts = placements.iter().flat_map(split);
    let window_bytes = BOUNCE_BYTES + PAGE_BYTES;
    let bounce_bytes = if total == 0 { 0 } else { LOAD_BYTES };
    let mut free = SlabMemory::anonymous(bounce_bytes)?.cut(0, window_bytes)?;
    let mut inbox = Inbox::default();
    let mut waiting = std::collections::HashMap::new();
    let mut done = 0;
    let mut failed = None;
    loop {
        while failed.is_none()
            && let Some(window) = free.pop()
        {
            let Some(part) = parts.next() else { break };
            let request = request(disk.as_ref(), part, window, &mut inbox);
            waiting.insert(request.ticket, part);
            disk.submit(vec![request]);
        }
        // After an error the reads under way end first: nothing of ours is left behind on the drive.
        let Some(completion) = inbox.wait(disk.as_ref()) else { break };
        let part = waiting.remove(&completion.ticket);
        match (completion.result, part) {
            (Ok(_), Some(part)) if failed.is_none() => {
                copy(&completion.window, &part, slabs);
                done += part.range.bytes;
                if progress(done, total).is_break() {
                    failed = Some(Error::new(ErrorKind::Cancelled, "loading was interrupted"));
                }
            }
            (Err(error), _) => {
                failed.get_or_insert(error);
            }
            _ => {}
        }
        if failed.is_some() {
            disk.cancel(&waiting.drain().map(|(ticket, _)| ticket).collect::<Vec<_>>());
        }
        free.push(completion.window);
    }
    failed.map_or(Ok(total), Err)
}

fn check(disk: &dyn Disk, slabs: &[SlabMemory], place: &Placement) -> Result<()> {
    let Placement { range, slab, offset } = *place;
    let slab_bytes = slabs.get(slab).map_or(0, SlabMemory::bytes);
    if (offset as u64).checked_add(range.bytes).is_none_or(|end| end > slab_bytes as u64) {
        return Err(Error::invalid(format!(
            "{}: {} bytes do not fit at byte {offset} of slab {slab}, which has {slab_bytes}",
            disk.file_name(range.file),
            range.bytes
        )));
    }
    let file_bytes = disk.file_bytes(range.file).unwrap_or(0);
    if range.end().is_none_or(|end| end > file_bytes) {
        return Err(Error::corrupt(format!(
            "{}: {} bytes at offset {} are wanted, the file has {file_bytes}",
            disk.file_name(range.file),
            range.bytes,
            range.offset
        )));
    }
    Ok(())
}

/// Cuts a placement at multiples of the buffer size in the file.
fn split(place: &Placement) -> impl Iterator<Item = Part> + use<> {
    let place = *place;
    let mut done = 0;
    std::iter::from_fn(move || {
        let rest = place.range.bytes - done;
        let offset = place.range.offset + done;
        let room = BOUNCE_BYTES as u64 - offset % BOUNCE_BYTES as u64;
        let bytes = rest.min(room);
        let part = Part {
            range: Range { file: place.range.file, offset, bytes },
            slab: place.slab,
            offset: place.offset + done as usize,
        };
        done += bytes;
        (bytes > 0).then_some(part)
    })
}

/// Where a part lies in its buffer: direct reads keep the file's remainder.
fn shift(part: &Part) -> usize {
    (part.range.offset % PAGE_BYTES as u64) as usize
}

fn request(disk: &dyn Disk, part: Part, window: Window, inbox: &mut Inbox) -> ReadRequest {
    let fills = vec![Fill { range: part.range, at: shift(&part) }];
    let reply = inbox.expect();
    ReadRequest { ticket: disk.ticket(), priority: Priority::Demand, window, fills, reply }
}

fn copy(window: &Window, part: &Part, slabs: &mut [SlabMemory]) {
    let bytes = part.range.bytes as usize;
    let from = &window.as_slice()[shift(part)..][..bytes];
    slabs[part.slab].as_mut_slice()[part.offset..][..bytes].copy_from_slice(from);
}
