//! States as files: written aside and renamed, so that a full disk or a crash loses nothing.
//!
//! Layout, little-endian: magic `TMSTATE4`; u64 each: model fingerprint, number format of keys and values (0 none, 1 f32,
//! 2 f16, 3 8-bit), position of the first token in the file, first position whose keys and values are in it, position after
//! the last, whether there is a recurrent state (0 or 1); the token ids, u32 each; then layer after layer: keys then values
//! of those positions, in pages of 512, head by head; or the convolution's inputs, then the delta matrices. Last the XXH3
//! hash, u64, of everything before it.
//!
//! A saved sequence begins at 0. In a [state directory](super::StateDirectory) each full page is a file, and what is after
//! the last full page one more.

use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use files::{Error, Result};
use kernels::Block;
use kernels::ops::{KvFormat, PAGE};
use twox_hash::XxHash3_64;

use super::{Found, LayerState, Page, Snapshot, StatePool, ids, kv, pages};

const MAGIC: &[u8; 8] = b"TMSTATE4";

/// States are copied to and from files in pieces of this many bytes.
const COPY_BYTES: usize = 1 << 20;

/// What a file holds, and of which model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) fingerprint: u64,
    /// Of keys and values.
    pub(super) format: u64,
    /// Position of the first token in the file.
    pub(super) tokens_from: usize,
    /// First position whose keys and values are in the file, a multiple of [`PAGE`].
    pub(super) first: usize,
    /// Position after the last.
    pub(super) end: usize,
    /// Whether there is a recurrent state, of after the last position.
    pub(super) recurrent: bool,
}

impl Header {
    fn words(&self) -> [u64; 6] {
        let Header { fingerprint, format, tokens_from, first, end, recurrent } = *self;
        [fingerprint, format, tokens_from as u64, first as u64, end as u64, u64::from(recurrent)]
    }

    /// Reads the magic and the rest of a header; `get` fills what it is given.
    fn read(name: &dyn std::fmt::Display, get: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<Self> {
        let mut magic = [0; 8];
        get(&mut magic)?;
        if &magic != MAGIC {
            return Err(Error::corrupt(format!("{name} is not a saved state of this version")));
        }
        let mut words = [[0; 8]; 6];
        for word in &mut words {
            get(word)?;
        }
        let [fingerprint, format, tokens_from, first, end, recurrent] = words.map(u64::from_le_bytes);
        // Above any context, and no more tokens than fit in memory.
        let ordered = tokens_from <= first && first <= end && end < 1 << 24;
        if !ordered || !first.is_multiple_of(PAGE as u64) || recurrent > 1 {
            return Err(Error::corrupt(format!("{name} is damaged: its header is no state's")));
        }
        let [tokens_from, first, end] = [tokens_from, first, end].map(|word| word as usize);
        Ok(Self { fingerprint, format, tokens_from, first, end, recurrent: recurrent == 1 })
    }

    /// Tokens in the file.
    pub(super) fn tokens(&self) -> usize {
        self.end - self.tokens_from
    }
}

/// A piece of a state that is copied at once: which of a layer's two blocks, and where in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    layer: usize,
    block: usize,
    offset: usize,
    pub(super) bytes: usize,
}

impl StatePool {
    /// The number of the format of keys and values.
    pub(crate) fn format_code(&self) -> u64 {
        match self.kv_format() {
            None => 0,
            Some(KvFormat::F32) => 1,
            Some(KvFormat::F16) => 2,
            Some(KvFormat::Q8) => 3,
        }
    }

    /// What files of this model begin with.
    pub(super) fn header(&self, fingerprint: u64, first: usize, end: usize) -> Header {
        let format = self.format_code();
        Header { fingerprint, format, tokens_from: 0, first, end, recurrent: self.ledger.recurrent }
    }

    /// What is after `header` and its tokens, in order; `pages` are those of all positions.
    pub(super) fn chunks(&self, header: &Header, pages: &[u32]) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        for (layer, state) in self.layers.iter().enumerate() {
            let blocks = match state {
                LayerState::Kv(cache) => {
                    let ranges = kv::ranges(cache, pages, header.first..header.end);
                    [ranges.clone(), ranges]
                }
                LayerState::Recurrent(_) if !header.recurrent => continue,
                // Within a snapshot, which is of one sequence.
                LayerState::Recurrent(s) => [&s.conv, &s.delta].map(|tensor| vec![(0, 4 * tensor.cols())]),
            };
            for (block, ranges) in blocks.into_iter().enumerate() {
                let whole = ranges.into_iter().flat_map(cut);
                chunks.extend(whole.map(|(offset, bytes)| Chunk { layer, block, offset, bytes }));
            }
        }
        chunks
    }

    /// Copies a chunk to the host.
    pub(super) fn read(&self, chunk: &Chunk, snapshot: Option<&Snapshot>, to: &mut [u8]) -> Result<()> {
        let block = match &self.layers[chunk.layer] {
            LayerState::Kv(cache) => [&cache.keys, &cache.values][chunk.block],
            LayerState::Recurrent(_) => {
                let blocks = snapshot.and_then(|snapshot| snapshot.memory.layers[chunk.layer].as_ref());
                &blocks.ok_or_else(no_snapshot)?[chunk.block]
            }
        };
        self.backend.read(block, chunk.offset, &mut to[..chunk.bytes])
    }

    /// Copies a chunk from the host.
    fn write(&mut self, chunk: &Chunk, snapshot: Option<&mut Snapshot>, from: &[u8]) -> Result<()> {
        let block: &mut Block = match &mut self.layers[chunk.layer] {
            LayerState::Kv(cache) if chunk.block == 0 => &mut cache.keys,
            LayerState::Kv(cache) => &mut cache.values,
            LayerState::Recurrent(_) => {
                let blocks = snapshot.and_then(|snapshot| snapshot.memory.layers[chunk.layer].as_mut());
                &mut blocks.ok_or_else(no_snapshot)?[chunk.block]
            }
        };
        self.backend.write(block, chunk.offset, &from[..chunk.bytes])
    }
}

fn no_snapshot() -> Error {
    Error::invalid("a recurrent state without a snapshot")
}

/// A range in pieces that fit the copying buffer.
fn cut((offset, bytes): (usize, usize)) -> impl Iterator<Item = (usize, usize)> {
    (0..bytes).step_by(COPY_BYTES).map(move |start| (offset + start, COPY_BYTES.min(bytes - start)))
}

/// What a file is made of.
pub(super) struct Draft<'a> {
    pub(super) header: Header,
    pub(super) tokens: &'a [u32],
    pub(super) chunks: Vec<Chunk>,
}

impl Draft<'_> {
    /// Of the whole file.
    pub(super) fn bytes(&self) -> u64 {
        let around = MAGIC.len() + size_of_val(&self.header.words()) + size_of::<u64>();
        let chunks: usize = self.chunks.iter().map(|chunk| chunk.bytes).sum();
        (around + size_of_val(self.tokens) + chunks) as u64
    }
}

/// Brings a chunk.
type ReadChunk<'a> = &'a mut dyn FnMut(&Chunk, &mut [u8]) -> Result<()>;

/// Writes a file at `path` that only its owner may read.
///
/// # Errors
/// `Io` naming the file, and what `read` answers; what was at `path` before is untouched then.
pub(super) fn write_file(path: &Path, draft: &Draft<'_>, read: ReadChunk<'_>) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".partial");
    let aside = Path::new(&aside);
    let written = write_aside(aside, draft, read)
        .and_then(|()| fs::rename(aside, path).map_err(|e| Error::io(path.display(), e)));
    if written.is_err() {
        let _ = fs::remove_file(aside); // the first error is the one to tell
    }
    written
}

fn write_aside(path: &Path, draft: &Draft<'_>, read: ReadChunk<'_>) -> Result<()> {
    let io = |e| Error::io(format!("writing {}", path.display()), e);
    let _ = fs::remove_file(path); // of a run that was killed; a link is not followed
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut out = BufWriter::new(options.open(path).map_err(io)?);
    let mut hash = XxHash3_64::new();
    let mut put = |bytes: &[u8]| {
        hash.write(bytes);
        out.write_all(bytes).map_err(io)
    };
    put(MAGIC)?;
    for word in draft.header.words() {
        put(&word.to_le_bytes())?;
    }
    for token in draft.tokens {
        put(&token.to_le_bytes())?;
    }
    let mut data = vec![0; COPY_BYTES];
    for chunk in &draft.chunks {
        read(chunk, &mut data)?;
        put(&data[..chunk.bytes])?;
    }
    let sum = hash.finish().to_le_bytes();
    out.write_all(&sum).map_err(io)?;
    let file = out.into_inner().map_err(|e| io(e.into_error()))?;
    file.sync_all().map_err(io)
}

/// The header of a file, and its tokens.
///
/// # Errors
/// `Io`, and `Corrupt` for what is no state.
pub(super) fn read_tokens(path: &Path) -> Result<(Header, Vec<u32>)> {
    let name = path.display();
    let file = File::open(path).map_err(|e| Error::io(format!("opening {name}"), e))?;
    let bytes = file.metadata().map_err(|e| Error::io(&name, e))?.len();
    let mut input = BufReader::new(file);
    let mut get = |bytes: &mut [u8]| input.read_exact(bytes).map_err(|e| cut_off(path, e));
    let header = Header::read(&name, &mut get)?;
    if 4 * header.tokens() as u64 > bytes {
        return Err(Error::corrupt(format!("{name} is cut off")));
    }
    let mut tokens = vec![0u32; header.tokens()];
    get(bytemuck::cast_slice_mut(&mut tokens))?;
    Ok((header, tokens))
}

fn cut_off(path: &Path, e: std::io::Error) -> Error {
    Error::corrupt(format!("{} is cut off", path.display())).with_source(e)
}

/// What was in a file.
pub(super) struct Contents {
    pub(super) header: Header,
    /// From `tokens_from` on.
    pub(super) tokens: Vec<u32>,
    /// From `first` on.
    pub(super) pages: Vec<Page>,
    pub(super) snapshot: Option<Snapshot>,
}

/// Reads a file of the model with this `fingerprint` into free pages.
///
/// # Errors
/// `Corrupt` or `InvalidRequest` for a file that is damaged, of another model, or too long; `Memory` without free pages.
pub(super) fn read_file(
    states: &mut StatePool,
    vocab: usize,
    fingerprint: u64,
    path: &Path,
) -> Result<Contents> {
    let name = path.display();
    let mut input = BufReader::new(File::open(path).map_err(|e| Error::io(format!("opening {name}"), e))?);
    let mut hash = XxHash3_64::new();
    let mut get = |bytes: &mut [u8]| {
        input.read_exact(bytes).map_err(|e| cut_off(path, e))?;
        hash.write(bytes);
        Ok(())
    };
    let header = Header::read(&name, &mut get)?;
    check(states, fingerprint, &header, &name)?;
    let mut tokens = vec![0u32; header.tokens()];
    get(bytemuck::cast_slice_mut(&mut tokens))?;
    let mut snapshot = header.recurrent.then(|| states.new_snapshot(header.end)).transpose()?;
    let mut own = Vec::new();
    if states.has_pages() {
        for first in (header.first..header.end).step_by(PAGE) {
            let page = states.page()?;
            page.set_written(header.end - first);
            own.push(page);
        }
    }
    // Those before `first` are in other files, and nobody asks for their numbers.
    let all = [vec![0; pages(header.first)], ids(&own)].concat();
    let mut data = vec![0; COPY_BYTES];
    for chunk in states.chunks(&header, &all) {
        get(&mut data[..chunk.bytes])?;
        states.write(&chunk, snapshot.as_mut(), &data)?;
    }
    let expected = hash.finish();
    let mut word = [0; 8];
    input.read_exact(&mut word).map_err(|e| cut_off(path, e))?;
    if u64::from_le_bytes(word) != expected {
        return Err(Error::corrupt(format!("{name} is damaged: its checksum does not match")));
    }
    if input.read(&mut word[..1]).map_err(|e| Error::io(format!("reading {name}"), e))? > 0 {
        return Err(Error::corrupt(format!("{name} is damaged: it goes on after its end")));
    }
    // The checksum finds damage, not malice.
    if let Some(token) = tokens.iter().find(|&&id| id as usize >= vocab) {
        return Err(Error::corrupt(format!("{name} holds token {token}, the model has {vocab}")));
    }
    Ok(Contents { header, tokens, pages: own, snapshot })
}

/// Refuses what is of another model.
fn check(states: &StatePool, fingerprint: u64, header: &Header, name: &dyn std::fmt::Display) -> Result<()> {
    let own = states.header(fingerprint, header.first, header.end);
    if header.fingerprint != fingerprint {
        return Err(Error::invalid(format!("{name} was saved with another model or precision")));
    }
    if header.format != own.format {
        return Err(Error::invalid(format!(
            "{name} was saved with keys and values in another number format"
        )));
    }
    if header.recurrent && !states.ledger.recurrent {
        return Err(Error::corrupt(format!("{name} is damaged: the model has no recurrent state")));
    }
    let capacity = states.ledger.context;
    if header.end > capacity {
        let count = header.end;
        return Err(Error::invalid(format!("{name} holds {count} tokens, the context is {capacity}")));
    }
    Ok(())
}

/// Writes the state after `tokens` to `path`.
///
/// # Errors
/// `Io` naming the file; what was at `path` before is untouched then.
pub(crate) fn save(
    states: &StatePool,
    state: &Found,
    tokens: &[u32],
    fingerprint: u64,
    path: &Path,
) -> Result<()> {
    let header = states.header(fingerprint, 0, tokens.len());
    let draft = Draft { header, tokens, chunks: states.chunks(&header, &ids(&state.pages)) };
    write_file(path, &draft, &mut |chunk, to| states.read(chunk, state.snapshot.as_deref(), to))
}

/// The tokens of a file that [`save`] wrote, and their state.
///
/// # Errors
/// `Corrupt` or `InvalidRequest` for a file that is damaged, of another model, no whole sequence's, or too long.
pub(crate) fn load(
    states: &mut StatePool,
    vocab: usize,
    fingerprint: u64,
    path: &Path,
) -> Result<(Vec<u32>, Found)> {
    let Contents { header, tokens, pages, snapshot } = read_file(states, vocab, fingerprint, path)?;
    if header.first > 0 || header.tokens_from > 0 || header.recurrent != states.ledger.recurrent {
        let name = path.display();
        return Err(Error::invalid(format!("{name} is a piece of a state directory, not a saved sequence")));
    }
    let found = Found { position: tokens.len(), pages, snapshot: snapshot.map(std::sync::Arc::new) };
    Ok((tokens, found))
}
