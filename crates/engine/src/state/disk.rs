//! A sequence's state as a file: written aside and renamed, so that a full disk or a crash loses nothing.
//!
//! Layout, little-endian: magic `TMSTATE3`, model fingerprint u64, number format of keys and values u64 (0 none, 1 f32,
//! 2 f16, 3 8-bit), token count u64, token ids u32 each, then per layer: for KV caches keys then values, in pages of
//! 512 positions, head by head, the held positions only; for recurrent layers the convolution's inputs, then the delta
//! matrices. Last the FNV-1a hash u64 of everything before it.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use files::{Error, Result};
use kernels::Block;
use kernels::ops::KvFormat;

use super::{COPY_BYTES, LayerState, Page, Ranges, SequenceState, StatePool, kv, recurrent};

const MAGIC: &[u8; 8] = b"TMSTATE3";

/// FNV-1a, 64 bits: finds damage, not malice.
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn update(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Writes `state`, which holds `tokens`, to `path`.
///
/// # Errors
/// `Io` naming the file; what was at `path` before is untouched then.
pub(crate) fn save(
    states: &StatePool,
    state: &SequenceState,
    tokens: &[u32],
    fingerprint: u64,
    path: &Path,
) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".partial");
    let aside = Path::new(&aside);
    let written = write_file(states, state, tokens, fingerprint, aside)
        .and_then(|()| fs::rename(aside, path).map_err(|e| Error::io(path.display(), e)));
    if written.is_err() {
        let _ = fs::remove_file(aside); // the first error is the one to tell
    }
    written
}

fn write_file(
    states: &StatePool,
    state: &SequenceState,
    tokens: &[u32],
    fingerprint: u64,
    path: &Path,
) -> Result<()> {
    let io = |e| Error::io(format!("writing {}", path.display()), e);
    let _ = fs::remove_file(path); // of a run that was killed; a link is not followed
    let mut out = BufWriter::new(File::create_new(path).map_err(io)?);
    let mut hash = Hash::new();
    let mut put = |bytes: &[u8]| {
        hash.update(bytes);
        out.write_all(bytes).map_err(io)
    };
    put(MAGIC)?;
    put(&fingerprint.to_le_bytes())?;
    put(&format_code(states).to_le_bytes())?;
    put(&(tokens.len() as u64).to_le_bytes())?;
    for token in tokens {
        put(&token.to_le_bytes())?;
    }
    let mut data = vec![0; COPY_BYTES];
    for layer in &states.layers {
        for (block, ranges) in pieces(layer, state, tokens.len()) {
            for (offset, bytes) in ranges.into_iter().flat_map(cut) {
                states.backend.read(block, offset, &mut data[..bytes])?;
                put(&data[..bytes])?;
            }
        }
    }
    let sum = hash.0.to_le_bytes();
    out.write_all(&sum).map_err(io)?;
    let file = out.into_inner().map_err(|e| io(e.into_error()))?;
    file.sync_all().map_err(io)
}

/// Fills `state` from `path` and returns the tokens it holds.
///
/// # Errors
/// `Corrupt` or `InvalidRequest` for a file that is damaged, of another model, or too long; `state` is empty then.
pub(crate) fn load(
    states: &mut StatePool,
    state: &mut SequenceState,
    vocab: usize,
    fingerprint: u64,
    path: &Path,
) -> Result<Vec<u32>> {
    state.reset();
    let loaded = read_file(states, state, vocab, fingerprint, path);
    match &loaded {
        Ok(tokens) => state.position = tokens.len(),
        Err(_) => state.reset(),
    }
    loaded
}

fn read_file(
    states: &mut StatePool,
    state: &mut SequenceState,
    vocab: usize,
    fingerprint: u64,
    path: &Path,
) -> Result<Vec<u32>> {
    let name = path.display();
    let mut input = BufReader::new(File::open(path).map_err(|e| Error::io(format!("opening {name}"), e))?);
    let mut hash = Hash::new();
    let mut get = |bytes: &mut [u8]| {
        input.read_exact(bytes).map_err(|e| Error::corrupt(format!("{name} is cut off")).with_source(e))?;
        hash.update(bytes);
        Ok::<_, Error>(())
    };
    let mut word = [0; 8];
    get(&mut word)?;
    if &word != MAGIC {
        return Err(Error::corrupt(format!("{name} is not a saved state")));
    }
    get(&mut word)?;
    if u64::from_le_bytes(word) != fingerprint {
        return Err(Error::invalid(format!("{name} was saved with another model or precision")));
    }
    get(&mut word)?;
    if u64::from_le_bytes(word) != format_code(states) {
        return Err(Error::invalid(format!(
            "{name} was saved with keys and values in another number format"
        )));
    }
    get(&mut word)?;
    let count = u64::from_le_bytes(word);
    if count > state.capacity() as u64 {
        let capacity = state.capacity();
        return Err(Error::invalid(format!("{name} holds {count} tokens, the context is {capacity}")));
    }
    let mut tokens = vec![0u32; count as usize];
    get(bytemuck::cast_slice_mut(&mut tokens))?;
    state.prepare(states, tokens.len())?;
    let backend = states.backend.clone();
    let mut data = vec![0; COPY_BYTES];
    for layer in &mut states.layers {
        for (block, ranges) in pieces_mut(layer, state, tokens.len()) {
            for (offset, bytes) in ranges.into_iter().flat_map(cut) {
                get(&mut data[..bytes])?;
                backend.write(block, offset, &data[..bytes])?;
            }
        }
    }
    let expected = hash.0;
    input.read_exact(&mut word).map_err(|e| Error::corrupt(format!("{name} is cut off")).with_source(e))?;
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
    Ok(tokens)
}

/// The number of the format of keys and values in a file.
fn format_code(states: &StatePool) -> u64 {
    match states.kv_format() {
        None => 0,
        Some(KvFormat::F32) => 1,
        Some(KvFormat::F16) => 2,
        Some(KvFormat::Q8) => 3,
    }
}

/// A range in pieces that fit the copying buffer.
fn cut((offset, bytes): (usize, usize)) -> impl Iterator<Item = (usize, usize)> {
    (0..bytes).step_by(COPY_BYTES).map(move |start| (offset + start, COPY_BYTES.min(bytes - start)))
}

/// Where a layer's state of a sequence lies.
fn ranges(layer: &LayerState, state: &SequenceState, positions: usize) -> [Ranges; 2] {
    match layer {
        LayerState::Kv(cache) => {
            let pages: Vec<u32> = state.pages.iter().map(Page::id).collect();
            let ranges = kv::ranges(cache, &pages, positions);
            [ranges.clone(), ranges]
        }
        LayerState::Recurrent(s) => {
            [&s.conv, &s.delta].map(|tensor| recurrent::ranges(tensor, state.slot.id()))
        }
    }
}

fn pieces<'a>(layer: &'a LayerState, state: &SequenceState, positions: usize) -> [(&'a Block, Ranges); 2] {
    let [first, second] = ranges(layer, state, positions);
    match layer {
        LayerState::Kv(cache) => [(&cache.keys, first), (&cache.values, second)],
        LayerState::Recurrent(s) => [(s.conv.block(), first), (s.delta.block(), second)],
    }
}

fn pieces_mut<'a>(
    layer: &'a mut LayerState,
    state: &SequenceState,
    positions: usize,
) -> [(&'a mut Block, Ranges); 2] {
    let [first, second] = ranges(layer, state, positions);
    match layer {
        LayerState::Kv(cache) => [(&mut cache.keys, first), (&mut cache.values, second)],
        LayerState::Recurrent(s) => [(s.conv.block_mut(), first), (s.delta.block_mut(), second)],
    }
}
