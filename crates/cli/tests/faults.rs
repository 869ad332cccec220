//! Files that go bad under a running program: one line on stderr, below what was already said.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::common::{copy_model, succeed, tidemill};

/// A copy of the built-in model that may be damaged.
fn demo(folder: &Path) -> PathBuf {
    succeed(&mut tidemill(["inspect"])); // unpacks it
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache/tidemill");
    let entries = std::fs::read_dir(cache).expect("a cache").map(|entry| entry.expect("readable").path());
    let demo = |path: &PathBuf| path.join("model.safetensors").is_file();
    let copy = folder.join("mill");
    copy_model(&entries.into_iter().find(demo).expect("unpacked"), &copy);
    copy
}

#[test]
fn a_file_cut_in_mid_answer_ends_the_line_and_names_the_expert() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    for disk in ["pread", "uring", "buffered"] {
        let model = demo(folder.path());
        let mut command =
            tidemill(["run", model.to_str().expect("UTF-8"), "-p", "Tell me a story about a fox."]);
        // Few slots and a slow drive: each of a hundred tokens takes a while, and reads.
        command.args(["--temperature", "0", "--max-slots", "8", "--throttle", "0.04", "--disk", disk]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut stdout = child.stdout.take().expect("piped");
        let (mut said, mut first) = (String::new(), [0]);
        let began = stdout.read(&mut first).expect("readable") > 0;
        let weights = std::fs::OpenOptions::new().write(true).open(model.join("model.safetensors"));
        weights.and_then(|file| file.set_len(1 << 20)).expect("cut");
        stdout.read_to_string(&mut said).expect("UTF-8");
        let output = child.wait_with_output().expect("ends");
        let error = String::from_utf8(output.stderr).expect("UTF-8");
        if disk == "uring" && output.status.code() == Some(5) {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            println!("SKIP: {error}");
            continue;
        }
        assert_eq!(output.status.code(), Some(4), "{disk}: {said}\n{error}");
        assert!(began && said.ends_with('\n') && said.len() > 1, "{disk}: the line is not ended: {said:?}");
        assert_eq!(error.lines().count(), 1, "{disk}: {error}");
        for part in ["error: layer ", "expert ", "model.safetensors", "truncated while running"] {
            assert!(error.contains(part), "{disk}: {part:?} is not in {error}");
        }
    }
}
