//! What it costs that an expert lies in three places of a file (GGUF) or nine (MLX) instead of one, as a packed copy
//! would have it: random experts of several shapes, the same bytes in parts and whole, taking turns.
//!
//! `cargo bench -p tidemill-store --bench parts -- FILE [pread|uring]`, with a file larger than memory or on a drive that
//! is read past the page cache.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_store::disk::{Disk, DiskChoice, Engine, Fill, Inbox, Priority, ReadRequest, open_exactly};
use tidemill_store::{Range, SlabMemory, Window};

const PAGE: u64 = 4096;
/// Time of one measurement; each is made [`ROUNDS`] times.
const TIME: Duration = Duration::from_millis(250);
const ROUNDS: usize = 3;
/// Reads in flight: each way has the rate of the depth that suits it best.
const DEPTHS: [usize; 3] = [8, 24, 64];
/// Bytes that are asked for at a time, where enough is asked for.
const ASKED_BYTES: usize = 32 << 20;
/// Experts that a layer misses in a token.
const BURST: usize = 5;

/// An expert: the sizes of its parts.
fn shapes() -> Vec<(&'static str, Vec<u64>)> {
    let affine = |weights: u64| [weights, weights / 16, weights / 16].repeat(3);
    vec![
        ("35B, Q4_0, 3 parts", vec![589_824; 3]),
        ("35B, MLX, 9 parts", affine(524_288)),
        ("small, Q4_0, 3 parts", vec![147_456; 3]),
        ("small, MLX, 9 parts", affine(131_072)),
        ("397B, MLX, 9 parts", affine(2_097_152)),
    ]
}

/// splitmix64, Steele et al. 2014
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % most.max(1)
    }
}

/// Random places for the parts of an expert: on pages if whole, else as ragged as file formats have them.
fn fills(parts: &[u64], file_bytes: u64, random: &mut Random) -> Vec<Fill> {
    let mut at = 0;
    let place = |bytes: &u64| {
        let step = if parts.len() == 1 { PAGE } else { 32 };
        let offset = random.below((file_bytes - bytes) / step) * step;
        let fill =
            Fill { range: Range { file: 0, offset, bytes: *bytes }, at: (at + offset % PAGE) as usize };
        at += (offset % PAGE + bytes).next_multiple_of(PAGE);
        fill
    };
    parts.iter().map(place).collect()
}

/// Useful bytes/s of random experts: a `burst` at a time, or as many as keep the drive busy.
fn rate(disk: &Arc<dyn Disk>, parts: &[u64], burst: bool, random: &mut Random) -> f64 {
    let bytes: u64 = parts.iter().sum();
    let window_bytes = (bytes + (parts.len() as u64 + 1) * PAGE).next_multiple_of(PAGE) as usize;
    let count = if burst { BURST } else { ASKED_BYTES.div_ceil(bytes as usize) };
    let mut slab = SlabMemory::anonymous(count * window_bytes).unwrap();
    slab.as_mut_slice().fill(0); // pages that do not exist yet would be measured too
    let file_bytes = disk.file_bytes(0).unwrap();
    let mut inbox = Inbox::default();
    let mut request = |window: Window, inbox: &mut Inbox| {
        let fills = fills(parts, file_bytes, random);
        let (ticket, reply) = (disk.ticket(), inbox.expect());
        ReadRequest { ticket, priority: Priority::Demand, window, fills, reply }
    };
    let (start, mut experts) = (Instant::now(), 0u64);
    let mut free = slab.cut(0, window_bytes).unwrap();
    let mut end = start;
    while start.elapsed() < TIME {
        disk.submit(free.drain(..).map(|window| request(window, &mut inbox)).collect());
        while let Some(completion) = inbox.wait(disk.as_ref()) {
            completion.result.unwrap();
            (experts, end) = (experts + 1, completion.finished.max(end));
            if burst || start.elapsed() >= TIME {
                free.push(completion.window);
            } else {
                disk.submit(vec![request(completion.window, &mut inbox)]);
            }
        }
    }
    (experts * bytes) as f64 / end.duration_since(start).as_secs_f64()
}

fn main() {
    // Cargo adds `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let Some(file) = args.first().map(PathBuf::from) else {
        println!("SKIP: name a large file to read");
        return;
    };
    let engine = if args.get(1).is_some_and(|a| a == "pread") { Engine::Pread } else { Engine::Uring };
    let mut random = Random(1);
    println!("{:<22} {:<6} {:>8} {:>8}  GB/s in parts, whole", format!("{engine:?}"), "", "parts", "whole");
    for (name, parts) in shapes() {
        let whole = [parts.iter().sum()];
        for burst in [false, true] {
            let mut rates: [[Vec<f64>; DEPTHS.len()]; 2] = Default::default();
            for _ in 0..ROUNDS {
                for (d, depth) in DEPTHS.into_iter().enumerate() {
                    for (way, parts) in [&parts[..], &whole].into_iter().enumerate() {
                        let choice = DiskChoice { engine, direct: true, piece_bytes: 2 << 20, depth };
                        let disk = open_exactly(std::slice::from_ref(&file), &choice).unwrap();
                        rates[way][d].push(rate(&disk, parts, burst, &mut random));
                    }
                }
            }
            let mode = if burst { "burst" } else { "stream" };
            let median = |mut rates: Vec<f64>| {
                rates.sort_by(f64::total_cmp);
                rates[ROUNDS / 2] / 1e9
            };
            let [parts, whole] = rates.map(|depths| depths.map(median).into_iter().fold(0.0, f64::max));
            println!("{name:<22} {mode:<6} {parts:>8.2} {whole:>8.2}  whole x {:.2}", whole / parts);
        }
    }
}
