//! The tensor directory: name -> shape, number format and byte ranges.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::{Error, Format, Meta, Result};

/// Most dimensions a tensor may have: GGML stops at 4, and safetensors checkpoints of language models at 5.
pub(crate) const MAX_RANK: usize = 8;

/// Which file of [`TensorIndex::files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// A range of bytes in a file, checked to lie inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// The file.
    pub file: FileId,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// A tensor and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The file's own name of it. The three parts of an MLX affine matrix are one tensor named `X.weight`.
    pub name: String,
    /// Row-major, outermost dimension first (GGUF's order reversed), in values: never packed words.
    pub shape: Vec<usize>,
    /// The number format of its values.
    pub format: Format,
    /// One range for each of the format's [`Format::parts`].
    pub spans: Vec<Span>,
}

impl Tensor {
    /// Number of rows: the product of all dimensions but the last. 1 for vectors and scalars.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// Values in a row: the last dimension. 1 for scalars.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.spans.iter().map(|span| span.bytes).sum()
    }

    /// The block at index `i` of the outermost dimension: expert `i` of `[experts, rows, cols]`, row `i` of
    /// `[rows, cols]` (as a vector).
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidRequest`] when `i` is out of range or the tensor has fewer than two dimensions.
    pub fn slice_outer(&self, i: usize) -> Result<Tensor> {
        let Some((&count, inner)) = self.shape.split_first().filter(|(_, inner)| !inner.is_empty()) else {
            return Err(Error::invalid(format!("{}: shape {:?} has no blocks", self.name, self.shape)));
        };
        if i >= count {
            return Err(Error::invalid(format!("{}: block {i} of {count}", self.name)));
        }
        let spans = self.cut(i as u64, 1, count as u64);
        Ok(Tensor { name: format!("{}[{i}]", self.name), shape: inner.to_vec(), format: self.format, spans })
    }

    /// Rows `rows` of the tensor seen as a matrix `[self.rows(), self.cols()]`; contiguous in every part.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidRequest`] when the range is empty or out of range.
    pub fn slice_rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let count = self.rows();
        if rows.start >= rows.end || rows.end > count {
            return Err(Error::invalid(format!("{}: rows {rows:?} of {count}", self.name)));
        }
        let spans = self.cut(rows.start as u64, rows.len() as u64, count as u64);
        Ok(Tensor {
            name: format!("{}[{}..{}]", self.name, rows.start, rows.end),
            shape: vec![rows.len(), self.cols()],
            format: self.format,
            spans,
        })
    }

    /// Units `[first, first + len)` of `count` equal units of every part. Rows are whole blocks, so it divides.
    fn cut(&self, first: u64, len: u64, count: u64) -> Vec<Span> {
        let cut = |span: &Span| {
            let unit = span.bytes / count;
            Span { file: span.file, offset: span.offset + first * unit, bytes: len * unit }
        };
        self.spans.iter().map(cut).collect()
    }
}

/// A tensor whose values no kernel can multiply (integers, FP8, ...). Listed, and an error only when required.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The file's name of it.
    pub name: String,
    /// As in the file, outermost dimension first.
    pub shape: Vec<usize>,
    /// The file's name of its number type.
    pub dtype: String,
    /// Where it is.
    pub span: Span,
    /// Why it cannot be used.
    pub reason: String,
}

/// Every tensor of a model: which file, which bytes, which shape, which number format.
#[derive(Debug, Default)]
pub struct TensorIndex {
    files: Vec<PathBuf>,
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
    foreign: BTreeMap<String, Foreign>,
    /// What an index of shards promises and no shard has: name and reason.
    lost: BTreeMap<String, String>,
}

impl TensorIndex {
    /// Opens a model: a GGUF file (the first shard of a split one), a directory with safetensors files, one
    /// safetensors file with its `config.json` beside it, or a directory with one GGUF model.
    /// Only headers are read.
    ///
    /// # Errors
    /// Names the file, and the tensor or key: missing shards, truncated or contradictory headers, unknown types.
    pub fn open(path: &Path) -> Result<(TensorIndex, Meta)> {
        crate::open::open(path)
    }

    /// The files that spans point into.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The tensor of this name, if it is there and in a number format of [`Format`].
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] with near names, or [`crate::ErrorKind::Unsupported`] when its number
    /// type is not one of [`Format`].
    pub fn require(&self, name: &str) -> Result<&Tensor> {
        if let Some(tensor) = self.get(name) {
            return Ok(tensor);
        }
        if let Some(foreign) = self.foreign.get(name) {
            return Err(Error::unsupported(format!("tensor {name}: {}", foreign.reason)));
        }
        if let Some(reason) = self.lost.get(name) {
            return Err(Error::corrupt(reason.clone()));
        }
        let near = self.near_names(name);
        let hint = if near.is_empty() { String::new() } else { format!("; near: {}", near.join(", ")) };
        let files = match self.files.as_slice() {
            [] => "the model".to_string(),
            [one] => one.display().to_string(),
            [first, ..] => format!("{} and {} more files", first.display(), self.files.len() - 1),
        };
        Err(Error::not_found(format!("tensor {name} is missing in {files}{hint}")))
    }

    /// All usable tensors, in the files' order.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.iter()
    }

    /// Tensors in number types that cannot be used, by name.
    pub fn foreign(&self) -> impl Iterator<Item = &Foreign> {
        self.foreign.values()
    }

    /// Number of usable tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no usable tensor (vocabulary-only files).
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Whether the files hold a tensor of this name, in whatever number type, or promise one.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name) || self.foreign.contains_key(name) || self.lost.contains_key(name)
    }

    /// Names that are not in `used`: usable tensors in the files' order, then numbers that nothing can multiply, then
    /// what the files promise and do not have. A model that has no place for one of them would answer wrongly. Integers
    /// are no weights, and not among them.
    pub fn leftovers(&self, used: &HashSet<String>) -> Vec<&str> {
        let is_integer = |dtype: &str| {
            let digits = dtype.strip_prefix(['I', 'U']).unwrap_or("?");
            dtype == "BOOL" || digits.bytes().all(|b| b.is_ascii_digit())
        };
        let foreign = self.foreign.values().filter(|f| !is_integer(&f.dtype)).map(|f| f.name.as_str());
        let names = self.tensors.iter().map(|tensor| tensor.name.as_str()).chain(foreign);
        names.chain(self.lost.keys().map(String::as_str)).filter(|&name| !used.contains(name)).collect()
    }

    pub(crate) fn add_file(&mut self, path: PathBuf) -> Result<FileId> {
        let id = u32::try_from(self.files.len())
            .map_err(|_| Error::corrupt(format!("{}: too many shards", path.display())))?;
        self.files.push(path);
        Ok(FileId(id))
    }

    /// The path of a file, for messages.
    pub(crate) fn label(&self, file: FileId) -> String {
        self.files.get(file.0 as usize).map_or_else(String::new, |path| path.display().to_string())
    }

    pub(crate) fn push(&mut self, tensor: Tensor) -> Result<()> {
        let file = tensor.spans.first().map_or(FileId(0), |span| span.file);
        self.refuse_duplicate(&tensor.name, file)?;
        self.by_name.insert(tensor.name.clone(), self.tensors.len());
        self.tensors.push(tensor);
        Ok(())
    }

    pub(crate) fn push_foreign(&mut self, foreign: Foreign) -> Result<()> {
        self.refuse_duplicate(&foreign.name, foreign.span.file)?;
        self.foreign.insert(foreign.name.clone(), foreign);
        Ok(())
    }

    /// Notes that the files promise a tensor that is not there.
    pub(crate) fn push_lost(&mut self, name: String, reason: String) {
        if !self.contains(&name) {
            self.lost.insert(name, reason);
        }
    }

    fn refuse_duplicate(&self, name: &str, file: FileId) -> Result<()> {
        if self.contains(name) {
            let file = self.label(file);
            return Err(Error::corrupt(format!("{file}: tensor {name} is there twice")));
        }
        Ok(())
    }

    /// Up to three names within an edit distance of 8, nearest first.
    fn near_names(&self, wanted: &str) -> Vec<&str> {
        // A bound on the work, not on the model: this is only the text of an error.
        let names = self.tensors.iter().map(|t| t.name.as_str()).take(20_000);
        let close = names.filter(|name| name.len() < 256 && name.len().abs_diff(wanted.len()) <= 8);
        let mut near: Vec<_> = close.map(|name| (edit_distance(name, wanted), name)).collect();
        near.retain(|&(distance, _)| distance <= 8.min(wanted.len() / 2));
        near.sort();
        near.into_iter().take(3).map(|(_, name)| name).collect()
    }
}

/// Levenshtein distance over bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The number of values of a shape, or why there is no such tensor.
pub(crate) fn count_values(shape: &[usize]) -> Result<usize> {
    if shape.len() > MAX_RANK {
        return Err(Error::corrupt(format!("{} dimensions, at most {MAX_RANK} are allowed", shape.len())));
    }
    if shape.contains(&0) {
        return Err(Error::corrupt(format!("shape {shape:?} has an empty dimension")));
    }
    let count = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    count.ok_or_else(|| Error::corrupt(format!("shape {shape:?} overflows")))
}

/// Bytes of part `part` of a tensor of this shape and format.
pub(crate) fn part_bytes(format: Format, part: usize, shape: &[usize]) -> Result<u64> {
    let values = count_values(shape)?;
    let cols = shape.last().copied().unwrap_or(1);
    let row = format.row_bytes(part, cols)?;
    let bytes = (values / cols).checked_mul(row);
    bytes
        .and_then(|b| u64::try_from(b).ok())
        .ok_or_else(|| Error::corrupt(format!("shape {shape:?} overflows in bytes")))
}

/// Checks that `[offset, offset + bytes)` lies within a file.
pub(crate) fn check_inside(name: &str, offset: u64, bytes: u64, file: &Path, file_bytes: u64) -> Result<()> {
    match offset.checked_add(bytes) {
        Some(end) if end <= file_bytes => Ok(()),
        Some(end) => Err(Error::corrupt(format!(
            "{}: truncated: tensor {name} ends at byte {end}, the file has {file_bytes}",
            file.display()
        ))),
        None => Err(Error::corrupt(format!("{}: tensor {name}: its offset overflows", file.display()))),
    }
}
