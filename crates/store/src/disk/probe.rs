//! A short look at the very drive: how fast which engine reads which pieces at which depth, and what to use.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use files::{Error, ErrorKind, Result};

use super::cached::{Left, PageCache};
use super::{Disk, Fill, Inbox, PreadDisk, PreadOptions, Priority, ReadRequest};
use crate::key::Range;
use crate::slab::{PAGE_BYTES, SlabMemory, Window};

/// The engines that read real files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// A pool of reading threads.
    Pread,
    /// io_uring, on Linux.
    Uring,
}

/// A way to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DiskChoice {
    /// Which engine.
    pub engine: Engine,
    /// Past the page cache, where the file system can.
    pub direct: bool,
    /// Largest single read.
    pub piece_bytes: usize,
    /// Reads in flight.
    pub depth: usize,
}

impl Default for DiskChoice {
    /// What most drives like, for when nothing was measured.
    fn default() -> Self {
        Self { engine: Engine::Pread, direct: true, piece_bytes: 2 << 20, depth: 8 }
    }
}

/// What one way to read reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DriveRate {
    /// The way.
    pub choice: DiskChoice,
    /// Reads of random ranges that were not in the page cache.
    pub bytes_per_s: f64,
}

/// What a probe saw, in the order of measuring.
#[derive(Clone, Debug, PartialEq)]
pub struct DriveProbe {
    /// One entry for each way that this system offers.
    pub rates: Vec<DriveRate>,
}

impl DriveProbe {
    /// The rate of the best way, 0 without any.
    pub fn best_bytes_per_s(&self) -> f64 {
        self.rates.iter().map(|r| r.bytes_per_s).fold(0.0, f64::max)
    }
}

/// A file must have this size to be worth probing, in bytes: below it, a drive's own cache answers.
pub const PROBE_FILE_BYTES_MIN: u64 = 64 << 20;

/// So many places are tried to find one that is not in the page cache.
const PLACES_TRIED: usize = 64;

/// Each way is measured this often, alternating: the rate of a shared drive changes by the second.
const ROUNDS: u32 = 3;

/// A way that reaches this share of the best rate is as good as the best.
const AS_GOOD: f64 = 0.9;

/// Opens files with the chosen engine, or with the pread workers where the system refuses io_uring.
///
/// # Errors
/// `NotFound` or `Io` naming the file that does not open.
pub fn open(paths: &[PathBuf], choice: &DiskChoice) -> Result<Arc<dyn Disk>> {
    match open_exactly(paths, choice) {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            // More threads than this cost memory and gain nothing.
            let depth = choice.depth.min(16);
            open_exactly(paths, &DiskChoice { engine: Engine::Pread, depth, ..*choice })
        }
        other => other,
    }
}

/// Opens files with the chosen engine, and with no other.
///
/// # Errors
/// `Unsupported` where the system refuses io_uring; `NotFound` or `Io` naming the file that does not open.
pub fn open_exactly(paths: &[PathBuf], choice: &DiskChoice) -> Result<Arc<dyn Disk>> {
    let DiskChoice { engine, direct, piece_bytes, depth } = *choice;
    match engine {
        Engine::Pread => {
            Ok(Arc::new(PreadDisk::open(paths, &PreadOptions { workers: depth, direct, piece_bytes })?))
        }
        #[cfg(target_os = "linux")]
        Engine::Uring => {
            let options = super::UringOptions { depth, direct, piece_bytes };
            Ok(Arc::new(super::UringDisk::open(paths, &options)?))
        }
        #[cfg(not(target_os = "linux"))]
        Engine::Uring => Err(Error::unsupported("io_uring is Linux's alone")),
    }
}

/// Names the drive that holds `path` for as long as it stays attached: the number of its device where the system
/// has one, else the file's directory.
///
/// # Errors
/// `NotFound` or `Io` naming the path.
pub fn drive_key(path: &Path) -> Result<String> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path.display(), e))?;
    #[cfg(unix)]
    {
        Ok(format!("device-{:x}", std::os::unix::fs::MetadataExt::dev(&meta)))
    }
    #[cfg(not(unix))]
    {
        let _ = meta;
        Ok(path.parent().unwrap_or(path).display().to_string())
    }
}

/// The ways worth trying.
fn candidates() -> Vec<DiskChoice> {
    let (k, m) = (1 << 10, 1 << 20);
    let pread = [(256 * k, 8), (m, 8), (m, 16), (2 * m, 4), (2 * m, 8), (4 * m, 8)];
    let uring = [(256 * k, 32), (m, 16), (m, 32), (2 * m, 4), (2 * m, 8), (4 * m, 8)];
    let way = |engine, direct| move |&(piece_bytes, depth)| DiskChoice { engine, direct, piece_bytes, depth };
    let mut all: Vec<_> = pread.iter().map(way(Engine::Pread, true)).collect();
    if cfg!(target_os = "linux") {
        all.extend(uring.iter().map(way(Engine::Uring, true)));
        // Elsewhere nothing drops pages from the cache, so a buffered rate would be that of memory.
        all.extend([(m, 8), (m, 16)].iter().map(way(Engine::Pread, false)));
    }
    all
}

/// Measures the drive under the file `path` for about `time` in all, with reads of random ranges of that file.
/// It takes up to 64 MiB of memory meanwhile. Places that cannot be read are passed over.
///
/// # Errors
/// `InvalidRequest` for a file below 64 MiB; else the error of opening or memory, or of reading where a way could read
/// nothing.
pub fn probe(path: &Path, time: Duration) -> Result<DriveProbe> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path.display(), e))?;
    if meta.len() < PROBE_FILE_BYTES_MIN {
        return Err(Error::invalid(format!(
            "{}: {} bytes are too few to probe a drive with",
            path.display(),
            meta.len()
        )));
    }
    let choices = candidates();
    let share = time / (choices.len() as u32 * ROUNDS);
    let mut seen: Vec<Vec<f64>> = vec![Vec::new(); choices.len()];
    for round in 0..ROUNDS {
        for (choice, rates) in choices.iter().zip(&mut seen) {
            match measure(path, choice, share, u64::from(round)) {
                Ok(rate) => rates.push(rate),
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                Err(error) => return Err(error),
            }
        }
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied()
    };
    let rates = choices.iter().zip(&mut seen);
    let rates = rates.filter_map(|(&choice, r)| Some(DriveRate { choice, bytes_per_s: median(r)? }));
    Ok(DriveProbe { rates: rates.collect() })
}

/// The way to read that a probe speaks for: as good as the fastest, direct if possible, without threads that would
/// have to be woken while all cores compute, and of these the one that has least in flight, because a demand waits for
/// what is in flight. The default where nothing was measured.
pub fn choose(probe: &DriveProbe) -> DiskChoice {
    let best = probe.best_bytes_per_s();
    let good = probe.rates.iter().filter(|r| r.bytes_per_s >= AS_GOOD * best && best > 0.0);
    let cost = |c: &DiskChoice| (!c.direct, c.engine == Engine::Pread, c.depth * c.piece_bytes, c.depth);
    good.map(|r| r.choice).min_by_key(cost).unwrap_or_default()
}

/// [`choose`] with the rate that it had; 0 where nothing was measured.
pub fn chosen_rate(probe: &DriveProbe) -> DriveRate {
    let choice = choose(probe);
    let seen = probe.rates.iter().find(|rate| rate.choice == choice);
    DriveRate { choice, bytes_per_s: seen.map_or(0.0, |rate| rate.bytes_per_s) }
}

/// Reads random pieces of the file in the given way for about `time`, and returns bytes/s. A file that was just written or
/// copied lies in the page cache, and its rate would be that of memory: pieces are dropped from it first, and those that
/// stay are left out. Places that cannot be read are passed over: whoever needs what is there will hear of it.
///
/// # Errors
/// `Unsupported` where this system does not offer the way, or reads through the page cache and all that was tried is in it;
/// else the error of opening or memory, or of reading where nothing could be read.
pub fn measure(path: &Path, choice: &DiskChoice, time: Duration, seed: u64) -> Result<f64> {
    let disk = open_exactly(&[path.to_path_buf()], choice)?;
    let file = std::fs::File::open(path).map_err(|e| Error::io(path.display(), e))?;
    let cache = PageCache::of(&file);
    let left = |offset, bytes| {
        cache.forget(offset, bytes);
        cache.left(offset, bytes)
    };
    let direct = disk.is_direct(0);
    // Direct reads wait until dirty pages are written; where the system does not tell, they are the drive's all the same.
    let fresh = |offset, bytes| match left(offset, bytes) {
        Left::Nothing => true,
        Left::Something => false,
        Left::Unknown => direct,
    };
    match measure_disk(disk.as_ref(), choice, time, seed, &fresh) {
        Err(e) if e.kind() == ErrorKind::Unsupported => {
            cache.write_back();
            // All of it: pages lie there in folios, and a piece cannot be dropped from a larger one.
            cache.forget(0, disk.file_bytes(0).unwrap_or(0));
            // What other programs have mapped stays; that does not concern direct reads.
            let fresh = |offset, bytes| fresh(offset, bytes) || direct;
            measure_disk(disk.as_ref(), choice, time, seed, &fresh)
        }
        measured => measured,
    }
}

/// [`measure`] on file 0 of a disk, with pieces that are `fresh` by their offset and bytes.
fn measure_disk(
    disk: &dyn Disk,
    choice: &DiskChoice,
    time: Duration,
    seed: u64,
    fresh: &dyn Fn(u64, u64) -> bool,
) -> Result<f64> {
    let piece_bytes = choice.piece_bytes.next_multiple_of(PAGE_BYTES);
    let pieces = disk.file_bytes(0).unwrap_or(0) / piece_bytes as u64;
    if pieces == 0 {
        return Err(Error::invalid(format!("{}: smaller than one read", disk.file_name(0))));
    }
    let mut random = seed ^ ((piece_bytes as u64) << 20) ^ choice.depth as u64;
    let mut next_piece = || {
        // splitmix64, Steele et al. 2014
        random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Range { file: 0, offset: (z ^ (z >> 31)) % pieces * piece_bytes as u64, bytes: piece_bytes as u64 }
    };
    let mut fresh_piece = || {
        let mut tried = (0..PLACES_TRIED).map(|_| next_piece());
        tried.find(|range| fresh(range.offset, range.bytes))
    };
    let mut slab = SlabMemory::anonymous(piece_bytes * choice.depth)?;
    slab.as_mut_slice().fill(0); // pages that do not exist yet would be measured too
    let mut inbox = Inbox::default();
    let mut submit = |window: Window, inbox: &mut Inbox| {
        let Some(range) = fresh_piece() else { return };
        let fills = vec![Fill { range, at: 0 }];
        let (ticket, reply) = (disk.ticket(), inbox.expect());
        disk.submit(vec![ReadRequest { ticket, priority: Priority::Demand, window, fills, reply }]);
    };
    let start = Instant::now();
    slab.cut(0, piece_bytes)?.into_iter().for_each(|window| submit(window, &mut inbox));
    let (mut bytes, mut end, mut failed) = (0, start, None);
    while let Some(completion) = inbox.wait(disk) {
        match completion.result {
            Ok(read) => bytes += read,
            Err(error) => failed = Some(error),
        }
        end = end.max(completion.finished);
        if end.duration_since(start) < time {
            submit(completion.window, &mut inbox);
        }
    }
    match failed {
        Some(error) if bytes == 0 => Err(error),
        None if bytes == 0 => {
            Err(Error::unsupported(format!("{}: all of it is in the page cache", disk.file_name(0))))
        }
        _ => Ok(bytes as f64 / end.duration_since(start).as_secs_f64().max(1e-9)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Fault, FaultKind, SimDisk, SimOptions};

    fn rate(engine: Engine, direct: bool, piece_bytes: usize, depth: usize, bytes_per_s: f64) -> DriveRate {
        DriveRate { choice: DiskChoice { engine, direct, piece_bytes, depth }, bytes_per_s }
    }

    #[test]
    fn the_least_in_flight_wins_among_equals_and_direct_before_buffered() {
        let mut probe = DriveProbe {
            rates: vec![
                rate(Engine::Pread, true, 1 << 20, 8, 1.0e9),
                rate(Engine::Uring, true, 1 << 20, 32, 2.0e9),
                rate(Engine::Uring, true, 1 << 20, 16, 1.9e9),
                rate(Engine::Pread, true, 1 << 20, 16, 1.89e9),
                rate(Engine::Pread, false, 1 << 20, 4, 2.01e9),
            ],
        };
        assert_eq!(choose(&probe), probe.rates[2].choice);
        probe.rates[4].bytes_per_s = 2.3e9; // a drive that direct reads hurt
        assert_eq!(choose(&probe), probe.rates[4].choice);
        assert_eq!(choose(&DriveProbe { rates: Vec::new() }), DiskChoice::default());
    }

    #[test]
    fn a_place_that_cannot_be_read_is_passed_over() {
        let sim = SimOptions { short_reads: false, ..SimOptions::default() };
        let disk = SimDisk::new(vec![vec![7; 16 << 20]], sim);
        let choice = DiskChoice { piece_bytes: 1 << 20, depth: 16, ..DiskChoice::default() };
        let bytes_per_s = || measure_disk(&disk, &choice, Duration::from_millis(20), 1, &|_, _| true);
        let fault = |offset, bytes| {
            let range = Range { file: 0, offset, bytes };
            disk.inject(Fault { range, kind: FaultKind::Io, times: u32::MAX });
        };
        // Sixteen first reads of sixteen places meet one of eight that are bad.
        (0..8).for_each(|place| fault(place << 21, 512));
        assert!(bytes_per_s().unwrap() > 1e6);
        fault(0, 16 << 20);
        let error = bytes_per_s().unwrap_err();
        assert!(error.kind() == ErrorKind::Io && error.message().contains("sim-0"), "{error}");
    }

    #[test]
    fn what_is_in_the_page_cache_is_left_out() {
        let disk = SimDisk::new(vec![vec![7; 16 << 20]], SimOptions::default());
        let choice = DiskChoice { piece_bytes: 1 << 20, depth: 4, ..DiskChoice::default() };
        let rate = |fresh: &dyn Fn(u64, u64) -> bool| {
            measure_disk(&disk, &choice, Duration::from_millis(5), 1, fresh).map_err(|e| e.kind())
        };
        assert_eq!(rate(&|_, _| false), Err(ErrorKind::Unsupported));
        // Only one place is left: whatever is read is read there.
        let read = std::cell::Cell::new(0);
        let only = |offset, _| offset == 5 << 20 && read.replace(read.get() + 1) < 1000;
        assert!(rate(&only).is_ok_and(|rate| rate > 0.0) && read.get() > 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_that_lies_in_the_page_cache_is_not_measured_through_it() {
        use std::os::unix::fs::FileExt as _;

        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("model.bin");
        std::fs::write(&path, vec![7; PROBE_FILE_BYTES_MIN as usize]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let cache = PageCache::of(&file);
        if cache.left(0, PROBE_FILE_BYTES_MIN) == Left::Unknown {
            return;
        }
        let buffered = DiskChoice { direct: false, depth: 2, piece_bytes: 1 << 20, ..DiskChoice::default() };
        // Dirty, it stays where it is until it is written back; then what is read is dropped before.
        assert!(measure(&path, &buffered, Duration::from_millis(20), 1).unwrap() > 0.0);
        // Nothing drops what another program has locked or mapped; here a reader puts it back at once.
        let disk = open_exactly(std::slice::from_ref(&path), &buffered).unwrap();
        let fresh = |offset: u64, bytes: u64| {
            file.read_exact_at(&mut vec![0; bytes as usize], offset).unwrap();
            cache.left(offset, bytes) == Left::Nothing
        };
        let error = measure_disk(disk.as_ref(), &buffered, Duration::from_millis(20), 1, &fresh).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }

    #[test]
    fn probes_real_files_and_refuses_small_ones() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("model.bin");
        std::fs::write(&path, vec![7; PROBE_FILE_BYTES_MIN as usize]).unwrap();
        let seen = probe(&path, Duration::from_millis(50)).unwrap();
        assert!(seen.rates.len() >= 6 && seen.rates.iter().all(|r| r.bytes_per_s > 1e6), "{seen:?}");
        let disk = open(std::slice::from_ref(&path), &choose(&seen)).unwrap();
        assert_eq!(disk.file_bytes(0), Some(PROBE_FILE_BYTES_MIN));
        assert_eq!(drive_key(&path).unwrap(), drive_key(dir.path()).unwrap());
        std::fs::write(&path, [1]).unwrap();
        let error = probe(&path, Duration::ZERO).unwrap_err();
        assert!(
            error.kind() == ErrorKind::InvalidRequest && error.message().contains("model.bin"),
            "{error}"
        );
    }
}
