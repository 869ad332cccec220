//! Runs the built program as a user would.
#![allow(dead_code, unreachable_pub)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A golden set's model.
pub fn golden(set: &str) -> PathBuf {
    root().join("testdata/goldens").join(set)
}

/// The program with a cache of its own, away from the user's.
pub fn tidemill<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
    command.args(args).stdin(Stdio::null());
    command
        .env("HOME", home)
        .env("XDG_CACHE_HOME", home.join("cache"))
        .env("XDG_STATE_HOME", home.join("state"));
    for variable in ["COLUMNS", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "RUST_BACKTRACE"] {
        command.env_remove(variable);
    }
    command
}

/// Standard output of a run that must succeed, and standard error.
pub fn succeed(command: &mut Command) -> (String, String) {
    texts(&command.output().expect("the program starts"), 0)
}

/// The one JSON object of a run that must succeed.
pub fn json(command: &mut Command) -> Value {
    let (out, err) = succeed(command);
    assert_eq!(out.trim_end().lines().count(), 1, "one line: {out}\n{err}");
    let value: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"));
    assert!(value.is_object(), "{out}");
    value
}

/// Runs with `input` on standard input.
pub fn piped(command: &mut Command, input: &str, code: i32) -> (String, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("piped");
    // A program that ends early does not read it all; its output tells.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    texts(&child.wait_with_output().expect("the program ends"), code)
}

fn texts(output: &Output, code: i32) -> (String, String) {
    let out = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    let err = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(output.status.code(), Some(code), "stdout: {out}\nstderr: {err}");
    (out, err)
}

/// A run that must fail with this exit code, nothing on stdout, and one line on stderr that holds all `said`.
pub fn fails<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>, code: i32, said: &[&str]) {
    fails_with(&mut tidemill(args), code, said);
}

/// The same for a command that is prepared further.
pub fn fails_with(command: &mut Command, code: i32, said: &[&str]) {
    let shown = format!("{command:?}");
    let output = command.output().expect("the program starts");
    let (out, err) = texts(&output, code);
    assert_eq!(out, "", "{shown}");
    assert!(
        err.starts_with("error: ") && err.ends_with('\n') && err.lines().count() == 1,
        "{shown}: {err:?}"
    );
    for text in said {
        assert!(err.contains(text), "{text:?} is not in {err:?}");
    }
}

/// Runs in a terminal of its own. `typed` says what to wait for on the screen, and what to type then. Returns the exit code
/// and all that was sent to the terminal.
#[cfg(target_os = "linux")]
pub fn in_terminal(mut command: Command, typed: &[(&str, &[u8])]) -> (Option<i32>, String) {
    use std::ffi::CStr;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{AsRawFd, FromRawFd};

    // SAFETY: the call makes a new descriptor, which nobody else has.
    let mut master = unsafe { File::from_raw_fd(libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY)) };
    let mut name = [0; 64];
    // SAFETY: the descriptor is that of a terminal, and the name has the room that the call is told.
    let made = unsafe {
        libc::grantpt(master.as_raw_fd()) == 0
            && libc::unlockpt(master.as_raw_fd()) == 0
            && libc::ptsname_r(master.as_raw_fd(), name.as_mut_ptr(), name.len()) == 0
    };
    assert!(made, "no terminal: {}", std::io::Error::last_os_error());
    // SAFETY: the call above has filled the name and ended it.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_str().expect("UTF-8");
    let open = || File::options().read(true).write(true).open(name).expect("the other end");
    command.env("TERM", "xterm").stdin(open()).stdout(open()).stderr(open());
    let mut child = command.spawn().expect("the program starts");
    drop(command); // it holds the other end too
    let (mut shown, mut seen, mut typed, mut buffer) = (Vec::new(), 0, typed.iter(), [0; 4096]);
    let mut next = typed.next();
    loop {
        let mut waits = libc::pollfd { fd: master.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: it is one entry, as the call is told.
        let ready = unsafe { libc::poll(&mut waits, 1, 120_000) };
        if ready <= 0 {
            let _ = child.kill();
            panic!("the program waits for something else than {next:?}: {}", String::from_utf8_lossy(&shown));
        }
        // The end of the terminal is an error where the program ends.
        let Ok(count) = master.read(&mut buffer) else { break };
        shown.extend_from_slice(&buffer[..count]);
        while let Some((wait, keys)) = next
            && String::from_utf8_lossy(&shown[seen..]).contains(wait)
        {
            master.write_all(keys).expect("typed");
            (seen, next) = (shown.len(), typed.next());
        }
    }
    (child.wait().expect("ends").code(), String::from_utf8_lossy(&shown).into_owned())
}

/// Copies a model's directory.
pub fn copy_model(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for entry in std::fs::read_dir(from).expect("readable") {
        let path = entry.expect("readable").path();
        let name = path.file_name().expect("a file");
        if !name.to_string_lossy().starts_with("golden.") {
            std::fs::copy(&path, to.join(name)).expect("copied");
        }
    }
}

/// Changes a file's bytes.
pub fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).expect("readable");
    change(&mut bytes);
    std::fs::write(path, bytes).expect("writable");
}

/// A safetensors file.
pub struct Tensors {
    pub bytes: Vec<u8>,
    header: Value,
    data: usize,
}

impl Tensors {
    pub fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("readable");
        let len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + len]).expect("a JSON header");
        Self { bytes, header, data: 8 + len }
    }

    /// Where a tensor's bytes are in the file.
    pub fn range(&self, name: &str) -> std::ops::Range<usize> {
        let offsets = &self.header[name]["data_offsets"];
        let at =
            |i: usize| self.data + offsets[i].as_u64().unwrap_or_else(|| panic!("no tensor {name}")) as usize;
        at(0)..at(1)
    }

    /// The 32-bit words of a tensor.
    pub fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let bytes = &self.bytes[self.range(name)];
        bytes.chunks_exact(4).map(|word| word.try_into().expect("4 bytes")).collect()
    }
}
