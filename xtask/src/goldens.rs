//! Brings golden references into `testdata/goldens`: small checkpoints and the numbers that Hugging Face
//! transformers computes from them in float32.

use std::fs;
use std::path::Path;

use files::{Error, Result};

/// The sets that the tests run, `family-config` and its formats.
pub const NEEDED: [(&str, &[&str]); 7] = [
    ("llama-dense", &["bf16", "gguf-Q4_0", "gguf-Q8_0", "mlx-4bit"]),
    ("qwen3-dense", &["bf16", "gguf-F16", "gguf-Q4_0", "gguf-Q8_0", "mlx-4bit"]),
    ("qwen3_5-dense", &["bf16", "gguf-BF16", "gguf-Q4_0", "gguf-Q8_0", "mlx-4bit", "mlx-8bit"]),
    ("qwen3_5_moe-e32", &["bf16", "gguf-Q4_0", "gguf-Q4_K_M", "gguf-Q8_0", "mlx-4bit", "mlx-8bit"]),
    ("qwen3_5_moe-e512", &["bf16", "mlx-4bit"]),
    ("qwen3_moe-e16", &["bf16", "gguf-Q4_0", "gguf-Q8_0", "mlx-4bit", "mlx-8bit"]),
    ("qwen3_moe-kq", &["gguf-Q4_K_M"]),
];

/// Copies every needed set from `from` to `to` and checks that each is whole. Returns the bytes copied.
///
/// # Errors
/// `NotFound` naming the first set or file that is missing, `Io` when a copy fails.
pub fn copy(from: &Path, to: &Path) -> Result<u64> {
    let mut bytes = 0;
    for (set, formats) in NEEDED {
        for format in formats {
            let source = from.join(set).join(format);
            check(&source, format)?;
            bytes += copy_folder(&source, &to.join(set).join(format))?;
        }
    }
    Ok(bytes)
}

/// Checks that every needed set lies under `folder`.
///
/// # Errors
/// `NotFound` naming the first set or file that is missing.
pub fn verify(folder: &Path) -> Result<()> {
    for (set, formats) in NEEDED {
        for format in formats {
            check(&folder.join(set).join(format), format)?;
        }
    }
    Ok(())
}

/// One set is whole if it has its numbers and its model.
fn check(set: &Path, format: &str) -> Result<()> {
    let is_gguf = format.starts_with("gguf-");
    let model = if is_gguf { format!("model-{}.gguf", &format[5..]) } else { "config.json".into() };
    for file in ["golden.json", "golden.safetensors", &model] {
        if !set.join(file).is_file() {
            return Err(Error::not_found(format!("golden {}: no {file}", set.display())));
        }
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<u64> {
    fs::create_dir_all(to).map_err(|e| Error::io(to.display(), e))?;
    let mut bytes = 0;
    for entry in fs::read_dir(from).map_err(|e| Error::io(from.display(), e))? {
        let entry = entry.map_err(|e| Error::io(from.display(), e))?;
        let source = entry.path();
        if source.is_file() {
            // Contents only: a read-only source must not leave files that the next copy cannot replace.
            let content = fs::read(&source).map_err(|e| Error::io(source.display(), e))?;
            let target = to.join(entry.file_name());
            fs::write(&target, &content).map_err(|e| Error::io(target.display(), e))?;
            bytes += content.len() as u64;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn testdata() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/goldens")
    }

    #[test]
    fn every_needed_set_is_in_the_repository() {
        verify(&testdata()).unwrap();
    }

    #[test]
    fn every_set_in_the_repository_is_needed() {
        for set in fs::read_dir(testdata()).unwrap() {
            let set = set.unwrap().path();
            for format in fs::read_dir(&set).unwrap() {
                let format = format.unwrap().file_name();
                let known = NEEDED.iter().any(|(name, formats)| {
                    set.ends_with(name) && formats.iter().any(|needed| format == *needed)
                });
                assert!(known, "{}/{} is run by no test", set.display(), format.display());
            }
        }
    }

    #[test]
    fn a_missing_set_is_named() {
        let error = verify(Path::new("nowhere")).unwrap_err();
        assert!(error.message().contains("llama-dense"), "{error}");
    }
}
