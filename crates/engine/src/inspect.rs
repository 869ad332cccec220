//! What a model is, and whether its weights are sound, without running it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use files::{Dialect, Error, ErrorKind, Format, Meta, Result, Tensor, TensorIndex, TokenizerSource};
use kernels::Backend;
use kernels::ops::{KvFormat, PAGE};
use kernels::reference::Reference;
use store::ExpertLayout;

use crate::models::{self, Bound, LeftOut};
use crate::state::LayerShape;
use crate::text::Tokenizer;

/// A tensor is checked in pieces of about this many bytes, so that checking needs no memory to speak of.
const CHECK_BYTES: usize = 4 << 20;

/// What one number format takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FormatShare {
    /// Tensors in it.
    pub tensors: usize,
    /// Weights in it.
    pub weights: u64,
    /// Their bytes, scales included.
    pub bytes: u64,
}

/// Where the bytes of a model that can run go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Weights that every token needs.
    pub resident_bytes: u64,
    /// All routed experts.
    pub experts_bytes: u64,
    /// The largest expert, as in the file.
    pub expert_bytes: u64,
    /// Routed experts that one token reads if none is in memory.
    pub expert_bytes_per_token: u64,
    /// Layers with routed experts.
    pub moe_layers: usize,
    /// KV cache of one position, half precision.
    pub kv_bytes_per_token: u64,
    /// State that does not grow with the context.
    pub recurrent_bytes: u64,
}

/// A model as its files describe it.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// What the files say.
    pub meta: Meta,
    /// The files that hold weights.
    pub files: Vec<PathBuf>,
    /// Number formats by name.
    pub formats: BTreeMap<String, FormatShare>,
    /// Tensors in number types that nothing can multiply: name and type.
    pub foreign: Vec<(String, String)>,
    /// Where the bytes go; what is wrong where the model cannot run.
    pub footprint: std::result::Result<Footprint, (ErrorKind, String)>,
    /// What else the files hold that text does not need: its role, and how many tensors.
    pub left_out: Vec<(&'static str, usize)>,
    /// What a user should know about how the files were read.
    pub notes: Vec<String>,
    /// The tokenizer, for people; what is wrong with it where it cannot be used.
    pub tokenizer: std::result::Result<String, (ErrorKind, String)>,
}

impl Inspection {
    /// Reads the headers of the model at `path`; weights stay unread, and an architecture that cannot run is
    /// described all the same.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `Corrupt` or `Unsupported` when the headers themselves cannot be read.
    pub fn of(path: &Path) -> Result<Self> {
        let (index, meta) = TensorIndex::open(path)?;
        let mut formats = BTreeMap::<String, FormatShare>::new();
        for tensor in index.iter() {
            let share = formats.entry(tensor.format.to_string()).or_default();
            share.tensors += 1;
            share.weights += (tensor.rows() * tensor.cols()) as u64;
            share.bytes += tensor.bytes();
        }
        let described = |e: Error| (e.kind(), e.message().to_owned());
        let tokenizer = Tokenizer::of_model(&meta);
        let of_tokenizer = tokenizer.as_ref().map(|t| t.notes().to_vec()).unwrap_or_default();
        let (footprint, left_out) = match footprint(&index, &meta) {
            Ok((footprint, left_out)) => (Ok(footprint), left_out.into_iter().collect()),
            Err(e) => (Err(described(e)), Vec::new()),
        };
        Ok(Self {
            files: index.files().to_vec(),
            formats,
            foreign: index.foreign().map(|f| (f.name.clone(), f.dtype.clone())).collect(),
            footprint,
            left_out,
            notes: meta.notes.iter().cloned().chain(of_tokenizer).collect(),
            tokenizer: tokenizer.map(|t| describe_tokenizer(&meta, t.vocab_size())).map_err(described),
            meta,
        })
    }

    /// Weights in all.
    pub fn weights(&self) -> u64 {
        self.formats.values().map(|share| share.weights).sum()
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> u64 {
        self.formats.values().map(|share| share.bytes).sum()
    }

    /// Whose naming the tensors have, for people.
    pub fn layout(&self) -> &'static str {
        match self.meta.dialect {
            Dialect::Gguf => "GGUF",
            Dialect::Hf => "safetensors, Hugging Face names",
            Dialect::Mlx => "safetensors, MLX names",
        }
    }
}

fn footprint(index: &TensorIndex, meta: &Meta) -> Result<(Footprint, LeftOut)> {
    models::check_arch(meta)?;
    meta.check()?;
    let backend: Arc<dyn Backend> = Arc::new(Reference::default());
    let bound = models::bind(index, meta, &backend, None)?;
    Ok((Footprint::of(&bound)?, bound.left_out))
}

impl Footprint {
    /// Of a model that is bound to its tensors.
    pub(crate) fn of(bound: &Bound) -> Result<Self> {
        let Bound { decoder, experts, arena, .. } = bound;
        let layout_bytes = |layout: &ExpertLayout| layout.parts.iter().map(|part| part.bytes).sum::<u64>();
        let mut found = Footprint { resident_bytes: arena.bytes(), ..Footprint::default() };
        for layer in experts.iter().filter(|layer| !layer.is_empty()) {
            let largest = layer.iter().map(layout_bytes).max().unwrap_or(0);
            found.moe_layers += 1;
            found.experts_bytes += layer.iter().map(layout_bytes).sum::<u64>();
            found.expert_bytes = found.expert_bytes.max(largest);
            found.expert_bytes_per_token += largest * decoder.top_k() as u64;
        }
        let states = decoder.state_shapes(KvFormat::F16)?;
        found.recurrent_bytes = states.iter().map(LayerShape::recurrent_bytes).sum();
        found.kv_bytes_per_token = states.iter().map(LayerShape::page_bytes).sum::<u64>() / PAGE as u64;
        Ok(found)
    }
}

fn describe_tokenizer(meta: &Meta, tokens: usize) -> String {
    match &meta.tokenizer {
        TokenizerSource::Json(_) => format!("tokenizer.json, {tokens} tokens"),
        TokenizerSource::Gguf(vocab) if vocab.pre.is_empty() => {
            format!("GGUF {}, {tokens} tokens", vocab.model)
        }
        TokenizerSource::Gguf(vocab) => format!("GGUF {} ({}), {tokens} tokens", vocab.model, vocab.pre),
        TokenizerSource::Missing => "none".into(),
    }
}

/// Reads every weight of the model at `path` and looks for scales and floats that are not finite. Returns one
/// message for each bad tensor, naming it, the row and the block.
///
/// # Errors
/// `Io` when reading fails, `Cancelled` when `progress(bytes_done, bytes_total)` breaks off.
pub fn check_weights(
    path: &Path,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Vec<String>> {
    let (index, _) = TensorIndex::open(path)?;
    let total: u64 = index.iter().map(Tensor::bytes).sum();
    let mut files = Vec::new();
    for path in index.files() {
        files.push(File::open(path).map_err(|e| Error::io(format!("cannot open {}", path.display()), e))?);
    }
    let mut done = 0;
    let mut bad = Vec::new();
    for tensor in index.iter() {
        let mut weights = TensorReader { index: &index, files: &mut files, tensor };
        if let Some(message) = weights.first_bad(&mut |bytes| progress(done + bytes, total))? {
            bad.push(message);
        }
        done += tensor.bytes();
    }
    Ok(bad)
}

/// Reads rows of one tensor.
struct TensorReader<'a> {
    index: &'a TensorIndex,
    files: &'a mut [File],
    tensor: &'a Tensor,
}

impl TensorReader<'_> {
    fn format(&self) -> Format {
        self.tensor.format
    }

    /// The bytes of some rows, part by part.
    fn rows(&mut self, rows: Range<usize>) -> Result<Vec<Vec<u8>>> {
        let cols = self.tensor.cols();
        let mut parts = Vec::with_capacity(self.tensor.spans.len());
        for (part, span) in self.tensor.spans.iter().enumerate() {
            let row_bytes = self.format().row_bytes(part, cols).map_err(|e| e.context(&self.tensor.name))?;
            let mut bytes = vec![0; row_bytes * rows.len()];
            let at = span.offset + (row_bytes * rows.start) as u64;
            let file = &mut self.files[span.file.0 as usize];
            file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes)).map_err(|e| {
                let path = self.index.files()[span.file.0 as usize].display();
                Error::io(format!("{path}: reading tensor {}", self.tensor.name), e)
            })?;
            parts.push(bytes);
        }
        Ok(parts)
    }

    fn first_bad(&mut self, progress: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<Option<String>> {
        let (rows, name) = (self.tensor.rows(), self.tensor.name.clone());
        let row_bytes = (self.tensor.bytes() / rows.max(1) as u64).max(1);
        let step = (CHECK_BYTES as u64 / row_bytes).max(1) as usize;
        for start in (0..rows).step_by(step) {
            let range = start..rows.min(start + step);
            let parts = self.rows(range.clone())?;
            if check_parts(self.format(), &parts).is_err() {
                // The piece is bad: once more row by row, for the place.
                for row in range {
                    let parts = self.rows(row..row + 1)?;
                    if let Err(e) = check_parts(self.format(), &parts) {
                        return Ok(Some(format!("tensor {name}, row {row}: {}", e.message())));
                    }
                }
                return Ok(Some(format!("tensor {name}: not finite")));
            }
            if progress(row_bytes * (start + step).min(rows) as u64).is_break() {
                return Err(Error::new(ErrorKind::Cancelled, "interrupted"));
            }
        }
        Ok(None)
    }
}

fn check_parts(format: Format, parts: &[Vec<u8>]) -> Result<()> {
    let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    files::quant::check(format, &slices)
}
