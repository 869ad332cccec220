//! Files of known size, written from front to back, and gone on with where the last run stopped.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind as IoErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use files::write::{GgufTensor, GgufWriter, SafetensorsTensor, SafetensorsWriter};
use files::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

use super::tensors::{Weights, tensors};
use super::vocab::{CHAT_TEMPLATE, Vocab};
use super::{SynthOptions, SynthProgress, Synthesised, config};

/// mlx-lm's limit for a shard.
const SHARD_BYTES: u64 = 5 << 30;

/// GGUF's default alignment of tensors.
const GGUF_ALIGNMENT: u64 = 32;

/// What is made and written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Chunks that wait to be written.
const CHUNKS_AHEAD: usize = 8;

/// One part of one tensor in a file.
struct Piece<'a> {
    weights: &'a Weights,
    part: usize,
    rows: usize,
    row_bytes: usize,
    /// Zeros that follow.
    padding: usize,
    /// All of it is zeros that nobody writes.
    is_hole: bool,
}

impl<'a> Piece<'a> {
    fn new(options: &SynthOptions, weights: &'a Weights, part: usize, alignment: u64) -> Result<Self> {
        let row_bytes = weights.format().row_bytes(part, weights.filler.cols)?;
        let rows = weights.rows();
        let bytes = (rows * row_bytes) as u64;
        Ok(Self {
            weights,
            part,
            rows,
            row_bytes,
            padding: (bytes.next_multiple_of(alignment) - bytes) as usize,
            is_hole: weights.is_expert && options.is_hole(weights.layer()),
        })
    }

    fn bytes(&self) -> u64 {
        (self.rows * self.row_bytes) as u64
    }

    fn chunk_rows(&self) -> usize {
        (CHUNK_BYTES / self.row_bytes).clamp(1, self.rows)
    }
}

/// What comes next in a file.
enum Made {
    Chunk(Vec<u8>),
    /// So many zeros that nobody writes.
    Hole(u64),
}

/// A file to write.
struct Plan<'a> {
    path: PathBuf,
    header: Vec<u8>,
    pieces: Vec<Piece<'a>>,
}

impl Plan<'_> {
    fn bytes(&self) -> u64 {
        let pieces: u64 = self.pieces.iter().map(|piece| piece.bytes() + piece.padding as u64).sum();
        self.header.len() as u64 + pieces
    }

    /// Bytes that the file holds nothing of.
    fn hole_bytes(&self) -> u64 {
        self.pieces.iter().filter(|piece| piece.is_hole).map(Piece::bytes).sum()
    }

    fn partial(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_os_string();
        name.push(".partial");
        name.into()
    }

    /// Bytes that are there: all of them when the file is finished.
    ///
    /// # Errors
    /// `InvalidRequest` when the file, finished or partial, is another one.
    fn present_bytes(&self) -> Result<u64> {
        if self.path.exists() {
            let length = self.length_if_ours(&self.path)?;
            return match length == self.bytes() {
                true => Ok(length),
                false => Err(another(&self.path)),
            };
        }
        let partial = self.partial();
        if !partial.exists() {
            return Ok(0);
        }
        let length = self.length_if_ours(&partial)?;
        if length > self.bytes() { Err(another(&partial)) } else { Ok(length) }
    }

    fn length_if_ours(&self, path: &Path) -> Result<u64> {
        let io = |e| Error::io(path.display(), e);
        let mut found = Vec::new();
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        file.take(self.header.len() as u64).read_to_end(&mut found).map_err(io)?;
        if self.header.starts_with(&found) { Ok(length) } else { Err(another(path)) }
    }

    /// Where a chunk begins that byte `at` lies in, as piece, row and offset in the file.
    fn resume_at(&self, at: u64) -> (usize, usize, u64) {
        let mut offset = self.header.len() as u64;
        for (i, piece) in self.pieces.iter().enumerate() {
            let whole = piece.bytes() + piece.padding as u64;
            if at < offset + whole {
                let row = (at.saturating_sub(offset) / piece.row_bytes as u64) as usize;
                // The last chunk brings the padding with it.
                let row = row.min(piece.rows - 1) / piece.chunk_rows() * piece.chunk_rows();
                return (i, row, offset + (row * piece.row_bytes) as u64);
            }
            offset += whole;
        }
        (self.pieces.len(), 0, offset)
    }
}

fn another(path: &Path) -> Error {
    let path = path.display();
    Error::invalid(format!(
        "{path}: is something else than this run would write; delete it, or write elsewhere"
    ))
}

/// The random weights as a directory that mlx-lm could have written.
pub(super) fn mlx(options: &SynthOptions, out: &Path, progress: SynthProgress<'_>) -> Result<Synthesised> {
    let weights = tensors(options);
    let vocab = Vocab::new(options.shape.vocab_size)?;
    let mut entries = Vec::new();
    for tensor in &weights {
        let parts = SafetensorsTensor::parts(&tensor.name, &tensor.shape, tensor.format())?;
        for (part, entry) in parts.into_iter().enumerate() {
            entries.push((entry, Piece::new(options, tensor, part, 1)?));
        }
    }
    let parameters: u64 = weights.iter().map(Weights::values).sum();
    let total_bytes: u64 = entries.iter().map(|(_, piece)| piece.bytes()).sum();
    let shards = shards(entries);
    let mut weight_map = Map::new();
    let mut plans = Vec::with_capacity(shards.len());
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_string(),
            count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        weight_map.extend(shard.iter().map(|(entry, _)| (entry.name.clone(), json!(name))));
        let entries: Vec<SafetensorsTensor> = shard.iter().map(|(entry, _)| entry.clone()).collect();
        let mut header = Vec::new();
        SafetensorsWriter::new(
            &mut header,
            &[("format", "mlx"), ("description", &options.describe())],
            &entries,
        )?;
        plans.push((out.join(name), header));
    }
    let pieces = shards.into_iter().map(|shard| shard.into_iter().map(|(_, piece)| piece).collect());
    let plans = plans.into_iter().zip(pieces).map(|((path, header), pieces)| Plan { path, header, pieces });
    let plans: Vec<Plan<'_>> = plans.collect();
    let index = json!({
        "metadata": {"total_size": total_bytes, "total_parameters": parameters},
        "weight_map": weight_map,
    });
    let texts = [
        ("model.safetensors.index.json", pretty(&index)),
        ("tokenizer.json", vocab.tokenizer_json(options.shape.delta.is_some()).to_string()),
        ("tokenizer_config.json", pretty(&config::tokenizer_config_json(options))),
        ("chat_template.jinja", CHAT_TEMPLATE.to_owned()),
        ("config.json", pretty(&config::config_json(options, &weights)?)),
    ];
    check_directory(out, &plans, &texts)?;
    let written = write_all(out, plans, progress)?;
    // These last: without them a directory that is not finished does not pass for a model.
    for (name, text) in &texts {
        put_text(out, name, text)?;
    }
    Ok(Synthesised { path: out.to_path_buf(), ..written })
}

/// Whether `out` holds nothing of another model, also of one that calls its files otherwise.
fn check_directory(out: &Path, plans: &[Plan<'_>], texts: &[(&str, String)]) -> Result<()> {
    let weights: Vec<_> = plans.iter().flat_map(|plan| [plan.path.clone(), plan.partial()]).collect();
    for entry in fs::read_dir(out).into_iter().flatten() {
        let path = entry.map_err(|e| Error::io(out.display(), e))?.path();
        let io = |e| Error::io(path.display(), e);
        let text = texts.iter().find(|(name, _)| path.file_name().is_some_and(|found| found == *name));
        let is_ours = match text {
            Some((_, text)) => fs::read(&path).map_err(io)? == text.as_bytes(),
            // Their headers are looked at where they are gone on with.
            None => weights.contains(&path) || !crate::is_part_of_model(&path).map_err(io)?,
        };
        if !is_ours {
            return Err(another(&path));
        }
    }
    Ok(())
}

/// Neighbours together, until a shard is full.
fn shards(entries: Vec<(SafetensorsTensor, Piece<'_>)>) -> Vec<Vec<(SafetensorsTensor, Piece<'_>)>> {
    let mut shards = vec![Vec::new()];
    let mut bytes = 0;
    for entry in entries {
        let own = entry.1.bytes();
        if bytes + own > SHARD_BYTES {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes += own;
        if let Some(shard) = shards.last_mut() {
            shard.push(entry);
        }
    }
    shards
}

/// The random weights as one GGUF file.
pub(super) fn gguf(options: &SynthOptions, path: &Path, progress: SynthProgress<'_>) -> Result<Synthesised> {
    let weights = tensors(options);
    let entries: Vec<GgufTensor> =
        weights.iter().map(|w| GgufTensor::new(w.name.clone(), &w.shape, w.format())).collect();
    let mut header = Vec::new();
    GgufWriter::new(&mut header, &config::gguf_metadata(options)?, &entries)?;
    let pieces = weights.iter().map(|w| Piece::new(options, w, 0, GGUF_ALIGNMENT)).collect::<Result<_>>()?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let plan = Plan { path: path.to_path_buf(), header, pieces };
    let written = write_all(directory, vec![plan], progress)?;
    Ok(Synthesised { path: path.to_path_buf(), ..written })
}

fn pretty(json: &Value) -> String {
    format!("{json:#}\n")
}

/// Writes a small file as a whole.
fn put_text(directory: &Path, name: &str, text: &str) -> Result<()> {
    let (path, partial) = (directory.join(name), directory.join(format!("{name}.partial")));
    let _ = fs::remove_file(&partial); // of a run that was killed; a link is not followed
    let written = File::create_new(&partial)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&partial, &path));
    if written.is_err() {
        let _ = fs::remove_file(&partial); // the first error is the one to tell
    }
    written.map_err(|e| write_error(&path, e))
}

/// Directories that were made for a model, removed again unless something came into them.
struct NewDirectories(Vec<PathBuf>);

impl NewDirectories {
    fn new(directory: &Path) -> Result<Self> {
        let missing = directory.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let own = Self(missing.map(Path::to_path_buf).collect());
        fs::create_dir_all(directory).map_err(|e| Error::io(directory.display(), e))?;
        Ok(own)
    }
}

impl Drop for NewDirectories {
    fn drop(&mut self) {
        // The innermost first; one that holds something stays.
        self.0.iter().all(|directory| fs::remove_dir(directory).is_ok());
    }
}

/// The drive is asked about the nearest directory that is there.
fn nearest(directory: &Path) -> &Path {
    let there = directory.ancestors().find(|path| path.exists());
    there.unwrap_or(Path::new("."))
}

fn write_all(directory: &Path, plans: Vec<Plan<'_>>, progress: SynthProgress<'_>) -> Result<Synthesised> {
    let total: u64 = plans.iter().map(Plan::bytes).sum();
    let mut present = Vec::with_capacity(plans.len());
    for plan in &plans {
        present.push(plan.present_bytes()?);
    }
    // What is there of a file may be its holes, so that is a guess.
    let missing = total - present.iter().sum::<u64>();
    let holes: u64 = plans.iter().filter(|plan| !plan.path.exists()).map(Plan::hole_bytes).sum();
    check_space(directory, missing.saturating_sub(holes), free_bytes(nearest(directory)))?;
    let _new = NewDirectories::new(directory)?;
    let mut done = 0;
    let mut written = 0;
    for (plan, present) in plans.iter().zip(present) {
        if !plan.path.exists() {
            written += write_file(plan, present, done, total, progress)?;
        }
        done += plan.bytes();
        if progress(done, total).is_break() {
            return Err(cancelled(directory));
        }
    }
    Ok(Synthesised { path: directory.to_path_buf(), bytes: total, written_bytes: written })
}

fn cancelled(path: &Path) -> Error {
    let path = path.display();
    Error::new(ErrorKind::Cancelled, format!("{path}: broken off; the same command goes on from here"))
}

/// Bytes that this drive has left for us; `None` where the system does not tell.
fn free_bytes(directory: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(directory).ok()?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = directory;
        None
    }
}

/// Whether the drive that holds `directory` has room for `needed` more bytes; yes where the system does not tell.
///
/// # Errors
/// `Io` with both numbers when it has not.
pub fn check_free_space(directory: &Path, needed: u64) -> Result<()> {
    check_space(directory, needed, free_bytes(directory))
}

fn check_space(directory: &Path, needed: u64, free: Option<u64>) -> Result<()> {
    match free {
        Some(free) if free < needed => {
            let gb = |bytes: u64| bytes as f64 / 1e9;
            let what = format!(
                "{}: needs {:.2} GB more and the drive has {:.2} GB free",
                directory.display(),
                gb(needed),
                gb(free)
            );
            Err(Error::io(what, IoErrorKind::StorageFull.into()))
        }
        _ => Ok(()),
    }
}

/// Writes one file from where it stands; returns the bytes written.
fn write_file(
    plan: &Plan<'_>,
    present: u64,
    done: u64,
    total: u64,
    progress: SynthProgress<'_>,
) -> Result<u64> {
    let partial = plan.partial();
    let io = |e| write_error(&partial, e);
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&partial).map_err(io)?;
    let (piece, row, offset) = plan.resume_at(present);
    if present < plan.header.len() as u64 {
        let begun = file.write_all(&plan.header);
        if begun.is_err() {
            let _ = fs::remove_file(&partial); // there is nothing in it to go on with
        }
        begun.map_err(io)?;
    }
    file.set_len(offset).map_err(io)?;
    file.seek(SeekFrom::Start(offset)).map_err(io)?;
    let mut report = |at: u64| match progress(done + offset + at, total) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(cancelled(&partial)),
    };
    report(0)?;
    let written = write_pieces(&plan.pieces, piece, row, &mut file, &partial, &mut report)?;
    file.set_len(plan.bytes()).map_err(io)?; // it may end in a hole
    file.sync_all().map_err(io)?;
    forget_cached(&file);
    drop(file);
    fs::rename(&partial, &plan.path).map_err(|e| Error::io(plan.path.display(), e))?;
    Ok(written)
}

/// One thread makes chunks while this one writes them, in order. Holes are stepped over; returns the bytes written.
fn write_pieces(
    pieces: &[Piece<'_>],
    piece: usize,
    row: usize,
    out: &mut (impl Write + Seek),
    path: &Path,
    report: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let (full, made) = mpsc::sync_channel::<Made>(CHUNKS_AHEAD);
    let (empty, spare) = mpsc::channel::<Vec<u8>>();
    std::thread::scope(|scope| {
        let maker = std::thread::Builder::new().name("synth".into());
        let made_by = maker.spawn_scoped(scope, move || {
            let mut row = row;
            for piece in &pieces[piece.min(pieces.len())..] {
                while row < piece.rows {
                    let chunk = match piece.is_hole {
                        true => {
                            let rest =
                                (piece.rows - std::mem::replace(&mut row, piece.rows)) * piece.row_bytes;
                            Made::Hole((rest + piece.padding) as u64)
                        }
                        false => {
                            let mut chunk = spare.try_recv().unwrap_or_default();
                            make_chunk(piece, row, &mut chunk);
                            row += piece.chunk_rows();
                            Made::Chunk(chunk)
                        }
                    };
                    if full.send(chunk).is_err() {
                        return; // the writer has stopped
                    }
                }
                row = 0;
            }
        });
        made_by.map_err(|e| Error::io("writing thread", e))?;
        let (mut written, mut at) = (0, 0);
        for chunk in made {
            match chunk {
                Made::Hole(bytes) => {
                    out.seek_relative(bytes as i64).map_err(|e| write_error(path, e))?;
                    at += bytes;
                }
                Made::Chunk(chunk) => {
                    out.write_all(&chunk).map_err(|e| write_error(path, e))?;
                    written += chunk.len() as u64;
                    at += chunk.len() as u64;
                    // When the maker has finished, nobody needs it.
                    let _ = empty.send(chunk);
                }
            }
            report(at)?;
        }
        Ok(written)
    })
}

fn make_chunk(piece: &Piece<'_>, row: usize, chunk: &mut Vec<u8>) {
    let rows = row..piece.rows.min(row + piece.chunk_rows());
    let bytes = rows.len() * piece.row_bytes;
    let padding = if rows.end == piece.rows { piece.padding } else { 0 };
    chunk.resize(bytes + padding, 0);
    let (data, zeros) = chunk.split_at_mut(bytes);
    zeros.fill(0);
    piece.weights.filler.rows(piece.part, rows, data);
}

fn write_error(path: &Path, error: std::io::Error) -> Error {
    let path = path.display();
    match error.kind() {
        IoErrorKind::StorageFull | IoErrorKind::QuotaExceeded => Error::io(
            format!("{path}: the drive is full; make room and run the same command to go on"),
            error,
        ),
        _ => Error::io(path, error),
    }
}

/// Written pages would crowd out what is in use, and slow down the first direct reads.
fn forget_cached(file: &File) {
    #[cfg(target_os = "linux")]
    {
        // Advice; nothing depends on it.
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::{Layout, Shape};

    /// A drive that is full after some bytes.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(IoErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Full {
        fn seek(&mut self, _: SeekFrom) -> std::io::Result<u64> {
            Ok(0)
        }
    }

    #[test]
    fn a_full_drive_is_named_and_stops_both_threads() {
        let shape = Shape::find("qwen3-moe-tiny").unwrap();
        let options = SynthOptions::new(shape, Layout::GgufQ4_0);
        let weights = tensors(&options);
        let pieces: Vec<Piece<'_>> =
            weights.iter().map(|w| Piece::new(&options, w, 0, 32).unwrap()).collect();
        let result =
            write_pieces(&pieces, 0, 0, &mut Full(100_000), Path::new("x.gguf.partial"), &mut |_| Ok(()));
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.message().contains("x.gguf.partial: the drive is full"), "{error}");
    }

    #[test]
    fn too_little_space_is_refused_with_the_numbers() {
        let check = |free| check_space(Path::new("/data"), 20_000_000_000, free);
        assert!(check(None).is_ok() && check(Some(20_000_000_000)).is_ok());
        let error = check(Some(1_500_000_000)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.message().contains("20.00 GB") && error.message().contains("1.50 GB"), "{error}");
        assert!(free_bytes(Path::new(".")).is_none_or(|free| free > 0));
    }

    #[test]
    fn a_shard_ends_before_it_is_too_large() {
        let shape = Shape::find("qwen3.5-35b-a3b").unwrap();
        let options = SynthOptions::new(shape, Layout::Mlx4Bit);
        let weights = tensors(&options);
        let mut entries = Vec::new();
        for tensor in &weights {
            let parts = SafetensorsTensor::parts(&tensor.name, &tensor.shape, tensor.format()).unwrap();
            for (part, entry) in parts.into_iter().enumerate() {
                entries.push((entry, Piece::new(&options, tensor, part, 1).unwrap()));
            }
        }
        let total: u64 = entries.iter().map(|(_, piece)| piece.bytes()).sum();
        let sizes: Vec<u64> =
            shards(entries).iter().map(|shard| shard.iter().map(|(_, piece)| piece.bytes()).sum()).collect();
        assert_eq!(sizes.iter().sum::<u64>(), total);
        assert!(sizes.iter().all(|&bytes| bytes <= SHARD_BYTES));
        assert!(sizes.len() as u64 <= total / SHARD_BYTES + 2, "{sizes:?}");
    }
}
