//! A short fuzz run: real headers with bytes changed, numbers replaced and ends cut off never panic, never claim
//! bytes outside the file, and never allocate much more than the file's size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::common::{qwen3_config, small_gguf, testdata};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseResult;
use tidemill_files::{Meta, Result, TensorIndex, gguf, safetensors};

/// Counts what the current thread holds, and the most it held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that is ending has no counters any more; nothing is measured there.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        PEAK.try_with(|peak| peak.set(peak.get().max(held.get())))
    });
}

// SAFETY: every call is handed on unchanged to the system's allocator; the counters do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise about `ptr` and `layout` is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size as isize - layout.size() as isize);
        // SAFETY: the caller's promise about `ptr`, `layout` and `new_size` is passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MAX_BYTES: isize = 64 << 20;

/// One change of a file.
#[derive(Clone, Debug)]
enum Change {
    Byte(Index, u8),
    /// Overwrites eight bytes with a number that counts and offsets stumble over.
    Number(Index, u64),
    Copy(Index, Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    let number = prop_oneof![
        Just(0u64),
        Just(1),
        Just(u32::MAX.into()),
        Just(1 << 31),
        Just(1 << 40),
        Just(1 << 63),
        Just(u64::MAX),
        Just(u64::MAX - 31),
        any::<u64>(),
    ];
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, to)| Change::Byte(at, to)),
        3 => (any::<Index>(), number).prop_map(|(at, to)| Change::Number(at, to)),
        1 => (any::<Index>(), any::<Index>(), any::<u8>()).prop_map(|(from, to, n)| Change::Copy(from, to, n)),
        1 => any::<Index>().prop_map(Change::Cut),
        1 => (any::<Index>(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, b)| Change::Insert(at, b)),
    ]
}

/// Applies changes to the first `header` bytes of a file.
fn apply(file: &mut Vec<u8>, header: usize, changes: &[Change]) {
    for change in changes {
        let header = header.min(file.len());
        if header == 0 {
            return;
        }
        match change {
            Change::Byte(at, to) => file[at.index(header)] = *to,
            Change::Number(at, to) => {
                let at = at.index(header);
                let end = (at + 8).min(file.len());
                file[at..end].copy_from_slice(&to.to_le_bytes()[..end - at]);
            }
            Change::Copy(from, to, n) => {
                let (from, to) = (from.index(header), to.index(header));
                let n = usize::from(*n).min(file.len() - from.max(to));
                file.copy_within(from..from + n, to);
            }
            Change::Cut(at) => file.truncate(at.index(file.len())),
            Change::Insert(at, bytes) => {
                drop(file.splice(at.index(header)..at.index(header), bytes.iter().copied()))
            }
        }
    }
}

/// Opens `file` with the memory measured, and uses everything that came out.
fn open_and_use(file: &[u8], open: impl Fn(&[u8]) -> Result<(TensorIndex, Meta)>) -> TestCaseResult {
    let before = HELD.get();
    PEAK.set(before);
    let opened = open(file);
    let peak = PEAK.get() - before;
    prop_assert!(peak < MAX_BYTES, "{peak} bytes for a file of {}", file.len());
    let (index, meta) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let named =
                ["m.gguf", "model.safetensors", "config.json"].iter().any(|f| error.message().contains(f));
            prop_assert!(named, "no file is named: {error}");
            prop_assert!(error.message().len() < 2000 && !error.message().contains('\n'), "{error}");
            return Ok(());
        }
    };
    let _ = meta.check();
    prop_assert!(meta.layers <= 4096);
    for tensor in index.iter() {
        for span in &tensor.spans {
            prop_assert!(span.offset.checked_add(span.bytes).is_some_and(|end| end <= file.len() as u64));
        }
        let rows = tensor.slice_rows(0..tensor.rows()).unwrap();
        prop_assert_eq!(rows.bytes(), tensor.bytes());
        if tensor.shape.len() > 1 {
            let last = tensor.slice_outer(tensor.shape[0] - 1).unwrap();
            prop_assert_eq!(last.bytes() * tensor.shape[0] as u64, tensor.bytes());
        }
    }
    let _ = index.require("no such tensor");
    Ok(())
}

fn open_gguf(file: &[u8]) -> Result<(TensorIndex, Meta)> {
    gguf::open_bytes(file, "m.gguf".as_ref())
}

/// So many times the cases that proptest runs by default, or that `PROPTEST_CASES` asks for.
fn config(times: u32) -> ProptestConfig {
    let cases = times * ProptestConfig::default().cases;
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn changed_gguf_files() {
    let real = |path: &str| std::fs::read(testdata("goldens").join(path)).unwrap();
    let dense = real("llama-dense/gguf-Q4_0/model-Q4_0.gguf");
    let moe = real("qwen3_5_moe-e32/gguf-Q4_K_M/model-Q4_K_M.gguf");
    // Where metadata or tensors stand in each: changes in tensor data would change nothing.
    let files =
        [(small_gguf(), 900), (dense.clone(), 1000), (dense, 24_000), (moe.clone(), 2000), (moe, 24_000)];
    for (file, _) in &files {
        open_gguf(file).unwrap();
    }
    let changes = prop::collection::vec(change(), 1..5);
    proptest!(config(4), |(which in 0..files.len(), changes in changes)| {
        let (file, header) = &files[which];
        let mut file = file.clone();
        apply(&mut file, *header, &changes);
        open_and_use(&file, open_gguf)?;
    });
}

#[test]
fn changed_safetensors_files() {
    let dir = testdata("goldens/qwen3_moe-e16/mlx-4bit");
    let file = std::fs::read(dir.join("model.safetensors")).unwrap();
    let json = std::fs::read_to_string(dir.join("config.json")).unwrap();
    safetensors::open_bytes(&file, &json).unwrap();
    let changes = prop::collection::vec(change(), 1..4);
    proptest!(config(2), |(header in prop_oneof![Just(16usize), Just(600), Just(9600)], changes in changes)| {
        let mut file = file.clone();
        apply(&mut file, header, &changes);
        open_and_use(&file, |file| safetensors::open_bytes(file, &json))?;
    });
}

/// Header JSON whose numbers and words were exchanged stays JSON, and so gets further than random bytes.
#[test]
fn exchanged_words_of_safetensors_headers() {
    let dir = testdata("goldens/qwen3_5_moe-e32/mlx-4bit");
    let file = std::fs::read(dir.join("model.safetensors")).unwrap();
    let json = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(file[8..8 + length].to_vec()).unwrap();
    let words: Vec<&str> = header.split_inclusive(|c: char| !c.is_ascii_alphanumeric()).collect();
    let strange =
        ["0,", "-1,", "18446744073709551615,", "1e9,", "U32\"", "F32\"", "BF16\"", "null,", "[", "]"];
    let replacement = prop_oneof![any::<Index>().prop_map(Ok), (0..strange.len()).prop_map(Err)];
    let exchanges = prop::collection::vec((any::<Index>(), replacement), 1..4);
    proptest!(config(2), |(exchanges in exchanges)| {
        let mut words = words.clone();
        for (at, with) in exchanges {
            let with = match with {
                Ok(other) => words[other.index(words.len())],
                Err(strange_one) => strange[strange_one],
            };
            let at = at.index(words.len());
            words[at] = with;
        }
        let header = words.concat();
        let mut changed = (header.len() as u64).to_le_bytes().to_vec();
        changed.extend(header.as_bytes());
        changed.extend(&file[8 + length..]);
        open_and_use(&changed, |file| safetensors::open_bytes(file, &json))?;
    });
}

#[test]
fn changed_configs() {
    let file = std::fs::read(testdata("goldens/llama-dense/mlx-4bit/model.safetensors")).unwrap();
    let dir = testdata("goldens/qwen3_5_moe-e32/bf16/config.json");
    let configs = [
        qwen3_config(r#", "rope_scaling": {"type": "yarn", "factor": 4}"#),
        std::fs::read_to_string(dir).unwrap(),
    ];
    let replacement = prop_oneof![
        Just("0"),
        Just("-1"),
        Just("4294967295"),
        Just("1e308"),
        Just("null"),
        Just("[]"),
        Just("{}"),
        Just("true"),
        Just("\"yarn\""),
        Just("3.5"),
    ];
    let exchanges = prop::collection::vec((any::<Index>(), replacement), 1..4);
    proptest!(config(2), |(which in 0..configs.len(), exchanges in exchanges)| {
        let mut text = configs[which].clone();
        for (at, with) in exchanges {
            // Values stand between a colon and the next comma.
            let colons: Vec<usize> = text.match_indices(": ").map(|(i, _)| i + 2).collect();
            if colons.is_empty() {
                break;
            }
            let start = colons[at.index(colons.len())];
            let end = start + text[start..].find([',', '\n', '}']).unwrap_or(0);
            text.replace_range(start..end, with);
        }
        open_and_use(&file, |file| safetensors::open_bytes(file, &text))?;
    });
}
