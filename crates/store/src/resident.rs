//! The weights that are always needed: read once, in large pieces, into memory of their own.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use files::{Error, ErrorKind, Result};

use crate::disk::{Completion, Disk, Fill, Priority, ReadRequest, Reply, Ticket};
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

/// Largest read.
const PART_BYTES: u64 = 2 << 20;

/// Reads under way at once through buffers, which are copied from.
const BOUNCES: usize = 8;

/// Bytes of one such buffer.
const BOUNCE_BYTES: usize = PART_BYTES as usize + PAGE_BYTES;

/// Reads under way at once in all.
const READS: usize = 32;

/// Threads that copy.
const COPIERS: usize = 4;

/// Memory that [`load`] uses while it runs, on top of its slabs, in bytes.
pub const LOAD_BYTES: usize = BOUNCES * BOUNCE_BYTES;

/// Reads all placements into `slabs`, several at a time, and returns the bytes they hold together. Neither side
/// needs an alignment, but where the place in the file and the place in memory are equal modulo [`PAGE_BYTES`], the
/// drive writes whole pages straight to where they belong; all else goes through small buffers, from which threads
/// copy. `progress(bytes_done, bytes_total)` is called after every read and may break off.
///
/// # Errors
/// `InvalidRequest` for a placement outside its slab, or two that overlap; `Cancelled` when `progress` broke off;
/// `Memory` without room for the buffers; else the error of the read, naming the file. The slabs' content is then
/// undefined.
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
    check_disjoint(placements)?;
    // SAFETY: `slabs` is borrowed mutably until this function returns, and only after all reads and copies have
    // ended: `Reads` waits for the reads even while unwinding, and the scope for the copies. The parts that are
    // written are disjoint.
    let targets: Vec<_> = slabs.iter().map(|s| Arc::new(unsafe { s.alias() })).collect();
    let mut parts = placements.iter().flat_map(split);
    let bounce_bytes = if total == 0 { 0 } else { LOAD_BYTES };
    let bounces = SlabMemory::anonymous(bounce_bytes)?.cut(0, BOUNCE_BYTES)?;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(COPIERS);
    std::thread::scope(|scope| {
        let (to_copiers, read) = channel();
        let (to_here, done) = channel();
        let read = Arc::new(Mutex::new(read));
        for i in 0..threads {
            let (read, to_here, targets) = (read.clone(), to_here.clone(), &targets);
            let copier = std::thread::Builder::new().name(format!("copy-{i}"));
            match copier.spawn_scoped(scope, move || copy_all(&read, &to_here, targets)) {
                Err(e) if i == 0 => return Err(Error::io("copying thread", e)),
                Err(_) => break, // fewer will do
                Ok(_) => {}
            }
        }
        let reads = Reads { disk: disk.as_ref(), done, under_way: HashSet::new() };
        reads.run(&targets, &mut parts, bounces, &to_copiers, &mut |bytes| progress(bytes, total))
    })?;
    Ok(total)
}

/// A read that has ended, for the copiers.
type Ended = (Part, Completion);

/// The reads under way, each of which ends here, after its copy.
struct Reads<'a> {
    disk: &'a dyn Disk,
    done: Receiver<Ended>,
    under_way: HashSet<Ticket>,
}

impl Reads<'_> {
    fn run(
        mut self,
        targets: &[Arc<SlabMemory>],
        parts: &mut dyn Iterator<Item = Part>,
        mut bounces: Vec<Window>,
        to_copiers: &Sender<Ended>,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut bytes_done = 0;
        let mut next = parts.next();
        loop {
            while let Some(part) = next.filter(|_| self.under_way.len() < READS) {
                let window = if part.direct {
                    // SAFETY: no other part writes these pages, and nobody reads them before all have ended.
                    unsafe {
                        Window::cover(&targets[part.slab], part.slab, part.offset, part.range.bytes as usize)
                    }
                } else {
                    let Some(window) = bounces.pop() else { break };
                    window
                };
                self.submit(part, window, to_copiers.clone());
                next = parts.next();
            }
            let Some((part, completion)) = self.wait() else { return Ok(()) };
            completion.result?;
            if !part.direct {
                bounces.push(completion.window);
            }
            bytes_done += part.range.bytes;
            if progress(bytes_done).is_break() {
                return Err(Error::new(ErrorKind::Cancelled, "loading was interrupted"));
            }
        }
    }

    fn submit(&mut self, part: Part, window: Window, to_copiers: Sender<Ended>) {
        let ticket = self.disk.ticket();
        self.under_way.insert(ticket);
        // The copiers live until all senders are gone.
        let reply = Reply::new(move |completion| drop(to_copiers.send((part, completion))));
        let fills = vec![Fill { range: part.range, at: shift(&part) }];
        self.disk.submit(vec![ReadRequest { ticket, priority: Priority::Demand, window, fills, reply }]);
    }

    /// The next read that has ended and is copied; `None` when none is under way.
    fn wait(&mut self) -> Option<Ended> {
        while !self.under_way.is_empty() {
            let ended = match self.done.try_recv() {
                Ok(ended) => ended,
                Err(_) if self.disk.progress(true) => continue,
                Err(_) => self.done.recv().ok()?,
            };
            self.under_way.remove(&ended.1.ticket);
            return Some(ended);
        }
        None
    }
}

impl Drop for Reads<'_> {
    /// Waits for what is under way, also after an error: it writes into memory that is only borrowed.
    fn drop(&mut self) {
        self.disk.cancel(&self.under_way.iter().copied().collect::<Vec<_>>());
        while self.wait().is_some() {}
    }
}

/// A copying thread: takes reads that have ended until nobody can send more.
fn copy_all(read: &Mutex<Receiver<Ended>>, done: &Sender<Ended>, targets: &[Arc<SlabMemory>]) {
    loop {
        let next = read.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((part, completion)) = next else { return };
        if !part.direct && completion.result.is_ok() {
            let from = &completion.window.as_slice()[shift(&part)..][..part.range.bytes as usize];
            // SAFETY: parts lie inside their slabs and are disjoint, nobody else touches them while they load.
            unsafe { targets[part.slab].write(part.offset, from) };
        }
        if done.send((part, completion)).is_err() {
            return;
        }
    }
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

/// No two placements may write the same byte.
fn check_disjoint(placements: &[Placement]) -> Result<()> {
    let mut order: Vec<_> = placements.iter().filter(|p| p.range.bytes > 0).collect();
    order.sort_by_key(|p| (p.slab, p.offset));
    let meet =
        |a: &Placement, b: &Placement| a.slab == b.slab && a.offset as u64 + a.range.bytes > b.offset as u64;
    match order.windows(2).find(|pair| meet(pair[0], pair[1])) {
        Some(pair) => Err(Error::invalid(format!(
            "two resident weights overlap at byte {} of slab {}",
            pair[1].offset, pair[1].slab
        ))),
        None => Ok(()),
    }
}

/// One read: at most [`PART_BYTES`], for byte `offset` of slab `slab`. A direct one fills whole pages.
#[derive(Clone, Copy, Debug)]
struct Part {
    range: Range,
    slab: usize,
    offset: usize,
    direct: bool,
}

/// Cuts a placement at multiples of the part size in the file; where the pages of file and memory coincide, the
/// ragged ends are parts of their own.
fn split(place: &Placement) -> impl Iterator<Item = Part> + use<> {
    let page = PAGE_BYTES as u64;
    let (start, end) = (place.range.offset, place.range.offset + place.range.bytes);
    let congruent = start % page == place.offset as u64 % page;
    let pages = if congruent { start.next_multiple_of(page)..end - end % page } else { start..start };
    let (place, mut at) = (*place, start);
    std::iter::from_fn(move || {
        let direct = pages.contains(&at);
        let border = if direct {
            pages.end
        } else if at < pages.start {
            pages.start
        } else {
            end
        };
        let last = (at - at % PART_BYTES).saturating_add(PART_BYTES).min(border).min(end);
        let range = Range { file: place.range.file, offset: at, bytes: last - at };
        let part = Part { range, slab: place.slab, offset: place.offset + (at - start) as usize, direct };
        at = last;
        (range.bytes > 0).then_some(part)
    })
}

/// Where a part lies in its window: direct reads keep the file's remainder.
fn shift(part: &Part) -> usize {
    (part.range.offset % PAGE_BYTES as u64) as usize
}
