//! Which way to read a model's files: as asked, as a probe of this very drive chose before, or as one chooses now.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use files::{Error, ErrorKind, Result};
use store::disk::{
    Disk, MirrorDisk, PROBE_FILE_BYTES_MIN, ThrottleOptions, ThrottledDisk, chosen_rate, measure,
    open_exactly, probe, same_content,
};

pub use store::disk::{DiskChoice, DriveRate, Engine, drive_key};

use crate::model::{CacheKind, OpenOptions};

/// Who reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskKind {
    /// What a probe of the drive finds best.
    #[default]
    Auto,
    /// io_uring, past the page cache.
    Uring,
    /// A pool of reading threads, past the page cache.
    Pread,
    /// A pool of reading threads, through the page cache.
    Buffered,
}

/// How to read a model's files.
#[derive(Clone, Debug, Default)]
pub struct DriveOptions {
    /// Who reads.
    pub kind: DiskKind,
    /// What a probe of this drive chose before; `None` probes it where much will be read.
    pub known: Option<DiskChoice>,
    /// Pretend that the drive reads no more than this.
    pub throttle_bytes_per_s: Option<f64>,
    /// A directory on another drive with copies of the files, to read from both.
    pub mirror: Option<PathBuf>,
}

/// Files that can be read.
pub(crate) struct OpenedDrive {
    /// Reads them.
    pub(crate) disk: Arc<dyn Disk>,
    /// What a probe has just chosen, with its rate.
    pub(crate) probed: Option<DriveRate>,
}

/// A probe takes about this long, once in the life of a drive: fourteen ways need time to differ by more than noise.
const PROBE_TIME: Duration = Duration::from_millis(2000);

/// Each of two drives is measured this long, to know which one takes more of the work.
const MIRROR_TIME: Duration = Duration::from_millis(150);

/// Opens `paths`. Where experts are `streamed`, they will be read again and again in parts of so many bytes, and the
/// way matters.
pub(crate) fn open(paths: &[PathBuf], options: &OpenOptions, streamed: Option<u64>) -> Result<OpenedDrive> {
    if let Some(disk) = &options.disk {
        return Ok(OpenedDrive { disk: disk.clone(), probed: None });
    }
    let find = |file: &Path| Ok(chosen_rate(&probe(file, PROBE_TIME)?));
    let (found, probed) = way(paths, &options.drive, options.cache, streamed.is_some(), &find)?;
    let choice = for_parts(found, streamed);
    let mut disk = match (options.drive.kind, open_exactly(paths, &choice)) {
        (DiskKind::Auto, Err(e)) if e.kind() == ErrorKind::Unsupported => store::disk::open(paths, &choice)?,
        (_, opened) => opened?,
    };
    if let Some(copies) = &options.drive.mirror {
        disk = mirrored(disk, paths, copies, &choice)?;
    }
    if let Some(bytes_per_s) = options.drive.throttle_bytes_per_s {
        let throttle = ThrottleOptions { bytes_per_s, latency: Duration::ZERO };
        disk = Arc::new(ThrottledDisk::new(disk, &throttle)?);
    }
    Ok(OpenedDrive { disk, probed })
}

/// Most reads in flight.
const DEPTH_MAX: usize = 64;

/// `choice` with as many bytes in flight as where it was found, by whole pieces, if the parts to read are smaller.
fn for_parts(choice: DiskChoice, part_bytes: Option<u64>) -> DiskChoice {
    let Some(part_bytes) = part_bytes.filter(|_| choice.engine == Engine::Uring) else { return choice };
    let part_bytes = usize::try_from(part_bytes).unwrap_or(usize::MAX).min(choice.piece_bytes).max(1);
    let depth = choice.depth.saturating_mul(choice.piece_bytes).div_ceil(part_bytes);
    DiskChoice { depth: depth.clamp(choice.depth, DEPTH_MAX.max(choice.depth)), ..choice }
}

/// The way to read, and what `find` has just found, if that is it.
fn way(
    paths: &[PathBuf],
    options: &DriveOptions,
    cache: CacheKind,
    streams: bool,
    find: &dyn Fn(&Path) -> Result<DriveRate>,
) -> Result<(DiskChoice, Option<DriveRate>)> {
    let direct = cache == CacheKind::Slots;
    let of_engine = |engine, depth| {
        let known = options.known.filter(|known| known.engine == engine);
        DiskChoice { direct, ..known.unwrap_or(DiskChoice { engine, depth, ..DiskChoice::default() }) }
    };
    Ok(match options.kind {
        DiskKind::Uring => (of_engine(Engine::Uring, 16), None),
        DiskKind::Pread => (of_engine(Engine::Pread, 8), None),
        DiskKind::Buffered => (DiskChoice { direct: false, ..of_engine(Engine::Pread, 8) }, None),
        DiskKind::Auto if !direct => (DiskChoice { direct: false, ..DiskChoice::default() }, None),
        DiskKind::Auto => match (options.known, largest(paths)) {
            (Some(known), _) => (known, None),
            (None, Some(file)) if streams => match find(file) {
                Ok(found) => (found.choice, Some(found).filter(|found| found.bytes_per_s > 0.0)),
                // A drive that the probe could not read may still have what is needed; else a read of that says so.
                Err(e) if e.kind() == ErrorKind::Io => (DiskChoice::default(), None),
                Err(e) => return Err(e),
            },
            _ => (DiskChoice::default(), None),
        },
    })
}

/// The largest of the files, if it is large enough to tell a drive's rate.
fn largest(paths: &[PathBuf]) -> Option<&Path> {
    let sizes = paths.iter().map(|p| (std::fs::metadata(p).map_or(0, |meta| meta.len()), p));
    let (bytes, path) = sizes.max()?;
    (bytes >= PROBE_FILE_BYTES_MIN).then_some(path)
}

/// Both drives as one, each with work in proportion to its rate.
fn mirrored(
    first: Arc<dyn Disk>,
    paths: &[PathBuf],
    copies: &Path,
    choice: &DiskChoice,
) -> Result<Arc<dyn Disk>> {
    let copy = |path: &PathBuf| {
        let name =
            path.file_name().ok_or_else(|| Error::invalid(format!("{} has no name", path.display())))?;
        Ok(copies.join(name))
    };
    let copies = paths.iter().map(copy).collect::<Result<Vec<_>>>()?;
    for (path, copy) in paths.iter().zip(&copies) {
        same_content(path, copy)?;
    }
    let second = store::disk::open(&copies, choice)?;
    let rate = |paths: &[PathBuf]| {
        // Where no file is large enough to tell, the drives count as equals, and so where the engine is refused.
        largest(paths).and_then(|file| measure(file, choice, MIRROR_TIME, 1).ok()).unwrap_or(1.0)
    };
    let rates = match (rate(paths), rate(&copies)) {
        (a, b) if a > 1.0 && b > 1.0 => [a, b],
        _ => [1e9, 1e9],
    };
    Ok(Arc::new(MirrorDisk::new([first, second], rates)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_parts_fly_as_many_bytes_as_whole_pieces() {
        let choice = |engine, piece_bytes, depth| DiskChoice { engine, direct: true, piece_bytes, depth };
        let depth = |c, part| for_parts(c, part).depth;
        let found = choice(Engine::Uring, 2 << 20, 4);
        assert_eq!(depth(found, Some(600_000)), 14);
        assert_eq!(depth(found, Some(16 << 20)), 4, "larger parts are cut into pieces");
        assert_eq!(depth(found, Some(1)), DEPTH_MAX);
        assert_eq!(depth(found, None), 4);
        assert_eq!(
            depth(choice(Engine::Uring, 2 << 20, 100), Some(1)),
            100,
            "never fewer than were found good"
        );
        assert_eq!(depth(choice(Engine::Pread, 2 << 20, 4), Some(600_000)), 4, "each costs a thread");
        // What a caller remembered may be anything.
        assert_eq!(depth(choice(Engine::Uring, 0, 4), Some(0)), 4);
        assert_eq!(depth(choice(Engine::Uring, usize::MAX, usize::MAX), Some(1)), usize::MAX);
    }

    #[test]
    fn a_probe_that_cannot_read_is_no_reason_not_to_open() {
        let file = std::env::temp_dir().join(format!("tidemill-drive-{}", std::process::id()));
        std::fs::File::create(&file).and_then(|f| f.set_len(PROBE_FILE_BYTES_MIN)).expect("a file of holes");
        let paths = [file.clone()];
        let find = |kind: Option<ErrorKind>| {
            let choice = DiskChoice { engine: Engine::Uring, direct: true, piece_bytes: 1 << 20, depth: 7 };
            let uring = DriveRate { choice, bytes_per_s: 2e9 };
            let found = move |_: &Path| kind.map_or(Ok(uring), |kind| Err(Error::new(kind, "on purpose")));
            way(&paths, &DriveOptions::default(), CacheKind::Slots, true, &found)
        };
        let (choice, probed) = find(None).expect("found");
        assert_eq!((choice.depth, probed.map(|rate| rate.bytes_per_s)), (7, Some(2e9)));
        let (choice, probed) = find(Some(ErrorKind::Io)).expect("opens");
        assert_eq!((choice, probed), (DiskChoice::default(), None), "and not remembered");
        assert_eq!(find(Some(ErrorKind::Memory)).unwrap_err().kind(), ErrorKind::Memory);
        std::fs::remove_file(file).expect("removable");
    }
}
