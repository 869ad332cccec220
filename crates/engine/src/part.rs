//! Whether a file belongs to a model, for whoever is about to write one.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use files::gguf;

/// Texts of a model's directory, as the hub's tools name them.
const TEXTS: [&str; 11] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
];

/// A directory's `config.json` is searched this far for what only a model has.
const CONFIG_BYTES: u64 = 1 << 20;

/// Whether the file at `path` is weights (GGUF or safetensors, whatever its name), or a text of a model's directory. False
/// where there is no file. Links are followed.
///
/// # Errors
/// The operating system's, when the file is there and cannot be read.
pub fn is_part_of_model(path: &Path) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => {}
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => return Ok(false),
    }
    if is_weights(path)? {
        return Ok(true);
    }
    let real = std::fs::canonicalize(path)?;
    Ok([path, &real].into_iter().any(is_text_of_model))
}

/// Whether a file is named as weights are.
fn is_named_as_weights(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf") || e.eq_ignore_ascii_case("safetensors"))
}

fn is_weights(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut head = Vec::new();
    file.take(9).read_to_end(&mut head)?;
    if head.starts_with(&gguf::MAGIC) {
        return Ok(true);
    }
    // Safetensors: the header's length, and an object.
    let header = head.first_chunk().map(|length| u64::from_le_bytes(*length));
    let fits =
        header.is_some_and(|header| header >= 2 && header.checked_add(8).is_some_and(|end| end <= bytes));
    Ok(fits && head.last() == Some(&b'{'))
}

fn is_text_of_model(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !TEXTS.iter().any(|text| text.eq_ignore_ascii_case(name)) {
        return false;
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = std::fs::read_dir(folder).into_iter().flatten().flatten();
    beside.into_iter().any(|entry| is_named_as_weights(&entry.path()))
        || is_config(&folder.join("config.json"))
}

fn is_config(path: &Path) -> bool {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(CONFIG_BYTES).read_to_end(&mut text));
    let has = |key: &[u8]| text.windows(key.len()).any(|part| part == key);
    read.is_ok() && (has(b"\"model_type\"") || has(b"\"architectures\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_known_by_their_content_and_texts_by_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            std::fs::write(folder.path().join(name), content).unwrap();
            is_part_of_model(&folder.path().join(name)).unwrap()
        };
        assert!(!is_part_of_model(&folder.path().join("missing")).unwrap());
        assert!(!is_part_of_model(folder.path()).unwrap());
        assert!(!write("empty", b""));
        assert!(!write("out.npy", b"\x93NUMPY\x01\x00v\x00{'descr'"));
        assert!(!write("routes.json", b"{\"layers\": []}"));
        assert!(!write("config.json", b"{\"editor\": 1}"), "somebody else's");
        assert!(write("notes.txt", b"GGUF\x03\x00\x00\x00"));
        assert!(write("weights", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"));
        assert!(!write("short", b"\x0f\x00\x00\x00\x00\x00\x00\x00{}"), "says more than there is");
        assert!(write("config.json", b"{\"model_type\": \"qwen3_moe\"}"));
        assert!(write("Tokenizer.json", b"{}") && !write("other.json", b"{}"));
        std::fs::remove_file(folder.path().join("config.json")).unwrap();
        assert!(!write("tokenizer.json", b"{}"));
        write("model.safetensors", b"");
        assert!(write("tokenizer.json", b"{}"));
        #[cfg(unix)]
        {
            let link = tempfile::tempdir().unwrap();
            let out = link.path().join("out.json");
            std::os::unix::fs::symlink(folder.path().join("tokenizer.json"), &out).unwrap();
            assert!(is_part_of_model(&out).unwrap());
        }
    }
}
