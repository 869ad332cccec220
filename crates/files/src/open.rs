//! From a path to a model: which of the layouts is it?

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::{Error, Meta, Result, TensorIndex, gguf, safetensors};

pub(crate) fn open(path: &Path) -> Result<(TensorIndex, Meta)> {
    let shown = path.display();
    let about = std::fs::metadata(path).map_err(|e| Error::io(format!("cannot open {shown}"), e))?;
    if about.is_dir() {
        return match gguf_of(path)? {
            Some(file) => gguf::open(&file),
            None => safetensors::open(path, None),
        };
    }
    if !about.is_file() {
        return Err(Error::invalid(format!("{shown}: neither a file nor a directory")));
    }
    if path.extension().is_some_and(|e| e == "safetensors") {
        return safetensors::open(path.parent().unwrap_or(Path::new(".")), Some(path));
    }
    if path.extension().is_some_and(|e| e == "gguf") || starts_with_magic(path)? {
        return gguf::open(path);
    }
    Err(Error::invalid(format!(
        "{shown}: neither a GGUF file nor safetensors; give a .gguf file or a directory with config.json"
    )))
}

fn starts_with_magic(path: &Path) -> Result<bool> {
    let file = File::open(path).map_err(|e| Error::io(format!("cannot open {}", path.display()), e))?;
    let mut head = Vec::new();
    file.take(4).read_to_end(&mut head).map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
    Ok(head == gguf::MAGIC)
}

/// The GGUF model of a directory that holds no safetensors model: one file, or the first shard of one.
fn gguf_of(dir: &Path) -> Result<Option<PathBuf>> {
    if dir.join("config.json").is_file() {
        return Ok(None);
    }
    let io = |e| Error::io(format!("cannot list {}", dir.display()), e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        // Of a split model only the first shard counts; of a multimodal one not the vision projector.
        let later_shard = name.contains("-of-") && !name.contains("-00001-of-");
        if name.ends_with(".gguf") && !later_shard && !name.starts_with("mmproj") {
            found.push(path);
        }
    }
    found.sort();
    match found.len() {
        0 => Ok(None),
        1 => Ok(found.pop()),
        n => Err(Error::invalid(format!("{}: {n} GGUF models; name one of them", dir.display()))),
    }
}

/// The text of a file of at most `max_bytes`, without the byte-order mark that some editors put before it.
pub(crate) fn read_text(path: &Path, max_bytes: u64) -> Result<String> {
    let io = |e| Error::io(format!("cannot read {}", path.display()), e);
    let file = File::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(Error::invalid(format!("{}: not a regular file", path.display())));
    }
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::corrupt(format!("{}: larger than {max_bytes} bytes", path.display())));
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    String::from_utf8(bytes)
        .map_err(|e| Error::corrupt(format!("{}: not UTF-8", path.display())).with_source(e))
}
