//! clang over Metal texts: type checks of many at once, and libraries of one.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::merge::{Merged, tokens};

/// The oldest clang that has `_Float16` on x86.
const VERSION_MIN: u32 = 16;
/// Texts of one run of clang: what they have alike it reads once, but it is slow with very many.
const TEXTS: usize = 64;
/// Vectors, which C++ makes otherwise than Metal.
const VECTORS: [&str; 8] = ["char", "uchar", "short", "ushort", "int", "uint", "half", "float"];

/// A clang that takes the texts.
pub struct Clang {
    program: PathBuf,
}

/// A text with its name.
pub struct Named {
    pub name: String,
    pub text: String,
}

/// The folder of the stand-in for Metal's library.
pub fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metal")
}

/// A folder under `target` for what the tests make.
pub fn made(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn version(program: &str) -> Option<u32> {
    let said = Command::new(program).arg("--version").output().ok()?.stdout;
    let said = String::from_utf8_lossy(&said).into_owned();
    let after = said.split_once("clang version ")?.1;
    after.split('.').next()?.parse().ok()
}

impl Clang {
    /// Finds one, or says that there is none.
    pub fn find() -> Option<Self> {
        let programs = ["clang-16", "clang", "clang-19", "clang-18", "clang-17"];
        let Some(program) =
            programs.into_iter().find(|program| version(program).is_some_and(|v| v >= VERSION_MIN))
        else {
            let why = "no clang of version 16 or newer (Debian: clang-16)";
            let is_needed = cfg!(target_os = "linux") && std::env::var("CI").as_deref() == Ok("true");
            assert!(!is_needed, "Metal's texts: {why}");
            println!("SKIP Metal's texts: {why}");
            return None;
        };
        Some(Self { program: program.into() })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["-std=c++17", "-x", "c++", "-fno-lax-vector-conversions", "-fno-strict-aliasing"]);
        command.args(["-Xclang", "-cl-single-precision-constant"]);
        command.arg("-I").arg(here());
        command
    }

    /// Type-checks texts, on all processors; what clang says of each that fails, or of the first of several that have the
    /// failing part alike if `merge` takes such parts together.
    pub fn check(&self, texts: &[Named], merge: bool) -> Vec<(String, String)> {
        let batches: Vec<&[Named]> = texts.chunks(TEXTS).collect();
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let worker = || {
            while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                let bad = self.check_batch(batch, merge);
                found.lock().unwrap_or_else(PoisonError::into_inner).extend(bad);
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(worker))));
        found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines that clang complains about are of a file of the text's number.
    fn check_batch(&self, batch: &[Named], merge: bool) -> Vec<(String, String)> {
        let mut source =
            String::from("#include <metal_stdlib>\n#include <simd/simd.h>\nusing metal::uint;\n");
        let mut merged = Merged::default();
        for (i, named) in batch.iter().enumerate() {
            if merge {
                merged.add(i, &named.text);
            } else {
                // Writing to a String cannot fail.
                let _ = writeln!(source, "namespace text_{i} {{\n#line 1 \"text_{i}\"\n{}\n}}", named.text);
            }
        }
        source.push_str(&merged.source);
        let mut command = self.command();
        command.args(["-fsyntax-only", "-nostdinc", "-DSPACES", "-ferror-limit=0"]);
        command.args(["-w", "-fno-caret-diagnostics", "-fno-color-diagnostics", "-"]);
        let (good, said) = run(command, &rewritten(&source));
        let of = |i: usize| {
            let start = format!("text_{i}:");
            said.lines().filter(|line| line.starts_with(&start)).collect::<Vec<_>>().join("\n")
        };
        let mut bad: Vec<(String, String)> =
            batch.iter().enumerate().map(|(i, named)| (named.name.clone(), of(i))).collect();
        bad.retain(|(_, said)| !said.is_empty());
        if !good && bad.is_empty() {
            bad.push((batch[0].name.clone(), said));
        }
        bad
    }

    /// Makes a library of one source.
    ///
    /// # Errors
    /// What clang says.
    pub fn compile(&self, source: &str, flags: &[&str], to: &Path) -> Result<(), String> {
        let object = to.with_extension("o");
        let mut command = self.command();
        command.args(["-fPIC", "-w", "-DRUN", "-c"]).args(flags).arg("-o").arg(&object).arg("-");
        if cfg!(target_arch = "x86_64") {
            command.args(["-mf16c", "-mfma"]);
        }
        let (good, said) = run(command, source);
        if !good {
            return Err(said);
        }
        let mut link = Command::new(&self.program);
        link.arg("-shared").arg("-o").arg(to).arg(&object).arg("-lm");
        let (good, said) = run(link, "");
        let _ = std::fs::remove_file(&object);
        if good { Ok(()) } else { Err(said) }
    }
}

fn run(mut command: Command, input: &str) -> (bool, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("clang starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A clang that dies early says why itself.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let done = child.wait_with_output().expect("clang ends");
    (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
}

/// `float4(a, b)` and `static_cast<float4>(a)`, which C++ has not, as calls of `make`.
pub fn rewritten(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    let mut all = tokens(text).peekable();
    while let Some(token) = all.next() {
        let next = all.peek().copied().unwrap_or("");
        if is_vector(token) && next.starts_with('(') && !out.ends_with('<') {
            let len = out.strip_suffix("metal::").map_or(out.len(), str::len);
            out.truncate(len);
            let _ = write!(out, "metal::make<metal::{token}>");
        } else if is_vector(token) && next.starts_with(">(") && strip_cast(&mut out) {
            let _ = write!(out, "metal::make<metal::{token}");
        } else {
            out.push_str(token);
        }
    }
    out
}

fn is_vector(word: &str) -> bool {
    let (scalar, count) = word.split_at(word.len().saturating_sub(1));
    matches!(count, "2" | "3" | "4") && VECTORS.contains(&scalar)
}

/// Takes the start of a cast from the end of a text, if it ends with one.
fn strip_cast(out: &mut String) -> bool {
    let len =
        ["static_cast<metal::", "static_cast<"].iter().find_map(|cast| out.strip_suffix(cast)).map(str::len);
    len.is_some_and(|len| {
        out.truncate(len);
        true
    })
}
