//! A state directory that somebody else has written to, or that was left half way: what it holds is whole, or a miss.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tidemill_engine::{Batch, ErrorKind, Logits, Model, OpenOptions, Part, Sequence};

use super::faulty::{Faulty, Op};
use super::prefixes::{MUCH, SETS, ask, files, is_hybrid, with_states};
use super::tools::{golden, tokens};
use crate::common::open;

/// The words of a header: fingerprint, number format, position of the first token, first position, position after the last,
/// and whether there is a recurrent state.
type Words = [u64; 6];

fn words(file: &[u8]) -> Words {
    std::array::from_fn(|i| u64::from_le_bytes(file[8 + 8 * i..][..8].try_into().expect("8 bytes")))
}

/// The file with other words, and a checksum that holds.
fn with_words(mut file: Vec<u8>, words: &Words) -> Vec<u8> {
    for (i, word) in words.iter().enumerate() {
        file[8 + 8 * i..][..8].copy_from_slice(&word.to_le_bytes());
    }
    let end = file.len() - 8;
    let sum = twox_hash::XxHash3_64::oneshot(&file[..end]);
    file[end..].copy_from_slice(&sum.to_le_bytes());
    file
}

/// Headers that are not this one.
fn lies(words: Words) -> Vec<Words> {
    let mut lies = Vec::new();
    let absurd = [0, 511, 1 << 23, (1 << 24) - 1, 1 << 24, 1 << 62, u64::MAX];
    for at in 0..words.len() {
        let near =
            [1, 512].into_iter().flat_map(|by| [words[at].wrapping_add(by), words[at].wrapping_sub(by)]);
        let near: Vec<u64> = near.collect();
        // Of what is no position every other value is wrong alike.
        let others = if (2..5).contains(&at) { &absurd[..] } else { &absurd[..2] };
        for &value in near.iter().chain(others) {
            let mut lie = words;
            lie[at] = value;
            lies.push(lie);
        }
    }
    let [from, first, end] = [words[2], words[3], words[4]];
    let positions = [
        [0; 3],
        [512; 3],
        [(1 << 24) - 512; 3],
        [1 << 23; 3],
        [from, first, first],
        [first, first, end],
        [first; 3],
        // All tokens, and no page.
        [from, end.next_multiple_of(512), end.next_multiple_of(512)],
        [from, 1 << 23, 1 << 23],
        [0, first, 1 << 23],
    ];
    for positions in positions {
        let mut lie = words;
        lie[2..5].copy_from_slice(&positions);
        lies.push(lie);
    }
    lies.retain(|lie| *lie != words);
    lies.sort_unstable();
    lies.dedup();
    lies
}

/// Files that are not this one, with a checksum that holds.
fn crafted(file: &[u8]) -> Vec<Vec<u8>> {
    let own = words(file);
    let mut crafted: Vec<_> = lies(own).iter().map(|lie| with_words(file.to_vec(), lie)).collect();
    // All tokens of full pages, and none of their keys and values.
    let (from, full) = (own[2], own[4] / 512 * 512);
    let tokens = 56 + 4 * (full - from) as usize;
    let bare = [&file[..tokens], &[0; 8]].concat();
    crafted.push(with_words(bare, &[own[0], own[1], from, full, full, own[5]]));
    crafted
}

/// How much of `text` is known, in memory or on the disk; nothing is computed.
fn known(model: &Arc<Model>, text: &[u32]) -> usize {
    let mut sequence = Sequence::new(model).expect("there is room");
    sequence.extend(text).expect("fits");
    sequence.reuse().expect("copies")
}

/// A checksum finds damage, not malice: whatever a header says, its file is a miss and goes, and the next one that is stored
/// under its name is found again.
#[test]
fn a_file_with_a_header_that_lies_is_a_miss_and_goes() {
    for set in SETS {
        let directory = tempfile::tempdir().expect("a directory");
        let model = with_states(set, directory.path(), MUCH);
        let text = tokens(&model, 1, 1031);
        ask(&model, &text[..1030], &[]);
        assert!(model.flush_states().is_none());
        drop(model);
        let whole = contents(directory.path());
        assert_eq!(whole.len(), 3, "two pages and a border");
        // The second page and the border: a file that begins within, and one that begins at 0.
        for (file, bytes) in whole.iter().filter(|(_, bytes)| words(bytes)[4] > 512) {
            let crafted = crafted(bytes);
            assert!(crafted.len() > 40, "{}", crafted.len());
            for lie in crafted {
                whole.iter().for_each(|(file, bytes)| fs::write(file, bytes).expect("writable"));
                fs::write(file, &lie).expect("writable");
                let model = with_states(set, directory.path(), MUCH);
                let why = format!("{set}: {} of {} bytes says {:?}", file.display(), lie.len(), words(&lie));
                assert_eq!(known(&model, &text), 0, "{why}");
                assert!(!file.exists(), "{why}, and stays");
            }
            let model = with_states(set, directory.path(), MUCH);
            ask(&model, &text[..1030], &[]);
            assert!(model.flush_states().is_none());
            assert_eq!(contents(directory.path()), whole, "{set}: stored again");
        }
    }
}

fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    files(directory).into_iter().map(|file| (file.clone(), fs::read(file).expect("readable"))).collect()
}

/// A model whose memory ops can be watched, with sequences' states kept and none stored yet, and the tokens.
fn with_kept(set: &str, device: &Arc<Faulty>, prompt: usize, borders: &[usize]) -> (Arc<Model>, Vec<u32>) {
    let options = OpenOptions { context: Some(1200), ..OpenOptions::default() };
    let model = open(&golden(set), &device.with(options));
    let text = tokens(&model, 1, prompt + 1);
    ask(&model, &text[..prompt], borders);
    (model, text)
}

/// The same model in another process.
fn reopened(set: &str, directory: &Path) -> Arc<Model> {
    let options = OpenOptions { context: Some(1200), ..OpenOptions::default() };
    let model = open(&golden(set), &Faulty::new().with(options));
    let give_up = Instant::now() + Duration::from_secs(20);
    while let Err(error) = model.store_states(directory, MUCH) {
        // The thread of the model before may still end.
        assert!(error.message().contains("in use") && Instant::now() < give_up, "{error}");
        std::thread::sleep(Duration::from_millis(5));
    }
    model
}

fn suffixes(directory: &Path) -> Vec<String> {
    let suffix = |file: &PathBuf| file.extension().map(|suffix| suffix.to_string_lossy().into_owned());
    let mut suffixes: Vec<String> = files(directory).iter().filter_map(suffix).collect();
    suffixes.sort_unstable();
    suffixes
}

/// Wherever the device fails while states are stored: what was stored before stays, of the rest is nothing there, and the
/// model goes on.
#[test]
fn a_store_that_fails_leaves_nothing_of_it() {
    for set in SETS {
        // Within each file there are several.
        for nth in (0..).step_by(3) {
            let directory = tempfile::tempdir().expect("a directory");
            let device = Faulty::new();
            let (model, text) = with_kept(set, &device, 530, &[100]);
            let free = model.free_states();
            model.store_states(directory.path(), MUCH).expect("it is nobody else's");
            let seen = device.fail(Op::Read, nth);
            let error = model.flush_states();
            device.unwatch();
            let stored = suffixes(directory.path());
            if seen.load(Ordering::Relaxed) <= nth {
                assert!(error.is_none() && nth > 8, "{set}: {nth}");
                break;
            }
            assert_eq!(error.expect("it failed").kind(), ErrorKind::Device, "{set}: {nth}");
            assert!(stored.iter().all(|suffix| suffix == "border"), "{set}: {nth}: {stored:?}");
            assert!(model.flush_states().is_none(), "it is told once");
            assert_eq!(known(&model, &text), 530, "{set}: {nth}: in memory");
            model.forget_kept();
            let all = model.free_states();
            assert!(all.0 > free.0 && all.1 == free.1, "{set}: {nth}");
            drop(model);
            let model = reopened(set, directory.path());
            assert_eq!(known(&model, &text), 100 * stored.len(), "{set}: {nth}");
        }
    }
}

/// A process that is killed while it stores leaves a directory in which everything is whole, or is not taken and goes.
#[test]
fn a_store_that_is_killed_at_any_time_leaves_what_is_whole() {
    for set in SETS {
        let directory = tempfile::tempdir().expect("a directory");
        let images = tempfile::tempdir().expect("a directory");
        let device = Faulty::new();
        let (model, text) = with_kept(set, &device, 530, &[100]);
        model.store_states(directory.path(), MUCH).expect("it is nobody else's");
        let (from, to) = (directory.path().to_path_buf(), images.path().to_path_buf());
        let count = AtomicUsize::new(0);
        device.watch(move |op| {
            if op == Op::Read {
                copy_folder(&from, &to.join(count.fetch_add(1, Ordering::Relaxed).to_string()));
            }
            Ok(())
        });
        assert!(model.flush_states().is_none());
        device.unwatch();
        let mut seen = Vec::new();
        let images: Vec<_> = fs::read_dir(images.path()).expect("is there").flatten().collect();
        for image in &images {
            let at = suffixes(&image.path());
            assert!(at.contains(&"partial".into()), "something was being written: {at:?}");
            let model = reopened(set, &image.path());
            let left = suffixes(&image.path());
            let whole = at.iter().filter(|suffix| *suffix == "border").count();
            assert_eq!(left, vec!["border"; whole], "{set}: pages of no border, and what is half written");
            assert_eq!(known(&model, &text), 100 * whole, "{set}");
            if !seen.contains(&at) {
                ask(&model, &text, &[]);
                seen.push(at);
            }
        }
        assert!(images.len() > 8 && seen.len() >= if is_hybrid(set) { 3 } else { 2 }, "{set}: {seen:?}");
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("writable");
    for entry in fs::read_dir(from).expect("is there").map(|entry| entry.expect("is there")) {
        match entry.file_type().expect("is there").is_dir() {
            true => copy_folder(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).expect("writable")),
        }
    }
}

/// What was there at each read of a store.
type Log = Arc<Mutex<Vec<Vec<String>>>>;

/// Stops the thread that stores when it first reads what the border of two pages needs. The first channel hears of that, and
/// the second lets it go on.
fn stop_at_border(device: &Faulty, directory: &Path) -> (Receiver<()>, Sender<()>, Log) {
    let ((stopped, has_stopped), (go_on, may_go_on)) = (channel(), channel());
    let (may_go_on, log, directory) = (Mutex::new(may_go_on), Log::default(), directory.to_path_buf());
    let reads = log.clone();
    device.watch(move |op| {
        if op == Op::Read {
            let there = suffixes(&directory);
            let stops = there == ["page", "page", "partial"] && !lock(&reads).contains(&there);
            lock(&reads).push(there);
            if stops {
                stopped.send(()).expect("the test waits");
                lock(&may_go_on).recv().expect("the test goes on");
            }
        }
        Ok(())
    });
    (has_stopped, go_on, log)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic")
}

/// Wakes the thread that stores: a few other tokens are kept too.
fn wake(model: &Arc<Model>) {
    let mut sequence = Sequence::new(model).expect("there is room");
    sequence.extend(&tokens(model, 77, 17)).expect("fits");
    sequence.name_borders([16]);
    let mut parts = [Part { sequence: &mut sequence, rows: 17, logits: Logits::None }];
    let ran =
        Batch::default().run(model, &mut parts, &mut |_| ControlFlow::Continue(()), &mut |_, _, _| Ok(()));
    ran.expect("runs");
}

/// Who wants to read need not wait for the end of a store, which then goes on with the pages that it has written.
#[test]
fn a_store_that_makes_way_goes_on_where_it_was() {
    for set in SETS {
        // A machine that is busy with others may take longer than the first.
        let broken_off = [100, 1000, 10_000].map(Duration::from_millis).iter().any(|patience| {
            let (device, directory) = (Faulty::new(), tempfile::tempdir().expect("a directory"));
            let (model, text) = with_kept(set, &device, 1050, &[]);
            model.store_states(directory.path(), MUCH).expect("it is nobody else's");
            let (has_stopped, go_on, log) = stop_at_border(&device, directory.path());
            wake(&model);
            has_stopped.recv().expect("it stores");
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(*patience);
                    go_on.send(()).expect("it waits");
                });
                assert_eq!(known(&model, &text), 1050, "{set}");
            });
            assert!(model.flush_states().is_none());
            device.unwatch();
            let mut log = std::mem::take(&mut *lock(&log));
            let reads = |there: &[&str]| log.iter().filter(|seen| *seen == there).count();
            // As many as the other border has where nothing came between.
            let border = reads(&["border", "page", "page", "partial"]);
            let broken_off = border > 0 && reads(&["page", "page", "partial"]) > border;
            log.dedup();
            assert_eq!(log.len(), 4, "{set}: each file once after the other: {log:?}");
            assert_eq!(suffixes(directory.path()), ["border", "border", "page", "page"], "{set}");
            model.forget_kept();
            assert_eq!(ask(&model, &text, &[]), 1050, "{set}: from the disk");
            broken_off
        });
        assert!(broken_off, "{set}: nobody was made way for");
    }
}

/// A model that is dropped while its states are stored ends when the file is whole, with its directory.
#[test]
fn a_model_that_is_dropped_while_it_stores_leaves_what_is_whole() {
    for set in SETS {
        let (device, directory) = (Faulty::new(), tempfile::tempdir().expect("a directory"));
        let (model, text) = with_kept(set, &device, 1050, &[]);
        model.store_states(directory.path(), MUCH).expect("it is nobody else's");
        let (has_stopped, go_on, _) = stop_at_border(&device, directory.path());
        wake(&model);
        has_stopped.recv().expect("it stores");
        let ended = Arc::downgrade(&model);
        drop(model);
        go_on.send(()).expect("it waits");
        let model = reopened(set, directory.path());
        assert!(ended.upgrade().is_none(), "{set}: the thread has let the model go");
        let left = suffixes(directory.path());
        assert_eq!(left, ["border", "page", "page"], "{set}");
        assert_eq!(ask(&model, &text, &[]), 1050, "{set}");
    }
}
