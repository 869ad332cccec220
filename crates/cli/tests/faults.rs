//! Files that go bad under a running program: one line on stderr, below what was already said.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::common::{copy_model, fails_with, golden, json, succeed, tidemill};

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
        assert!(error.starts_with("error: ") && error.contains("model.safetensors"), "{disk}: {error}");
        // Cut between two reads, it is noticed at the end of the token.
        let in_a_read =
            ["error: layer ", "expert ", "truncated while running"].iter().all(|part| error.contains(part));
        assert!(in_a_read || error.contains("was written to while it was in use"), "{disk}: {error}");
    }
}

#[test]
fn weights_that_are_written_over_in_mid_answer_end_it() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let model = demo(folder.path());
    let mut command = tidemill(["run", model.to_str().expect("UTF-8"), "-p", "Tell me a story about a fox."]);
    command.args(["--temperature", "0", "--max-slots", "8", "--throttle", "0.04", "--disk", "pread"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut first = [0];
    let began = child.stdout.as_mut().expect("piped").read(&mut first).expect("readable") > 0;
    let weights = model.join("model.safetensors");
    let bytes = std::fs::metadata(&weights).expect("there").len() as usize;
    // In place, as a program does that was told to write over it.
    let file = std::fs::OpenOptions::new().write(true).open(&weights);
    file.and_then(|mut file| file.write_all(&vec![0; bytes])).expect("written");
    let output = child.wait_with_output().expect("ends");
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(began && output.status.code() == Some(4), "{error}");
    assert!(error.contains("model.safetensors: was written to while it was in use"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_mirror_of_another_file_is_refused() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let model = golden("qwen3_moe-e16/gguf-Q8_0/model-Q8_0.gguf");
    let copy = folder.path().join("model-Q8_0.gguf");
    let run = || {
        let mut command =
            tidemill(["run", model.to_str().expect("UTF-8"), "--raw", "-p", "abc", "--max-tokens", "2"]);
        command.args(["--device", "cpu", "--json", "--mirror"]).arg(folder.path());
        command
    };
    let mut data = std::fs::read(&model).expect("readable");
    std::fs::write(&copy, &data).expect("writable");
    assert_eq!(json(&mut run())["answer_tokens"], 2);
    let half = data.len() / 2;
    data[half..].fill(0);
    std::fs::write(&copy, &data).expect("writable");
    fails_with(&mut run(), 2, &[copy.to_str().expect("UTF-8"), "is not a copy of", "differ at byte"]);
}

/// A user who may start a few threads and no more.
#[cfg(target_os = "linux")]
#[test]
fn without_threads_there_is_an_error_and_no_panic() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;

    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("ours");
    let model = folder.path().join("model.gguf");
    std::fs::copy(golden("qwen3_moe-e16/gguf-Q4_0/model-Q4_0.gguf"), &model).expect("copied");
    let mut codes = Vec::new();
    for threads in 1..=12 {
        let mut command =
            tidemill(["run", model.to_str().expect("UTF-8"), "--raw", "-p", "abc", "--max-tokens", "1"]);
        command.args(["--device", "cpu", "-q", "--threads", "4"]);
        command.env("HOME", folder.path()).env("XDG_CACHE_HOME", folder.path().join("cache"));
        // SAFETY: getuid has no conditions.
        if unsafe { libc::getuid() } == 0 {
            command.uid(65534).gid(65534); // root may start as many as there are
        }
        // SAFETY: setrlimit may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                let limit = libc::rlimit { rlim_cur: threads, rlim_max: threads };
                match libc::setrlimit(libc::RLIMIT_NPROC, &limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let output = match command.output() {
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                assert!(std::env::var_os("CI").is_none(), "nobody may run the program: {e}");
                println!("SKIP nobody may run the program: {e}");
                return;
            }
            output => output.expect("the program starts"),
        };
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!error.contains("panicked"), "{threads}: {error}");
        let code = output.status.code().unwrap_or_else(|| panic!("{threads}: ended by a signal: {error}"));
        assert!(code == 0 || error.lines().count() == 1, "{threads}: {error}");
        codes.push(code);
    }
    assert!(codes.iter().all(|code| [0, 6, 9].contains(code)) && codes[0] != 0, "{codes:?}");
}
