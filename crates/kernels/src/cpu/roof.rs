//! What memory gives a processor that does next to nothing with it: the roof of products with one row.

use super::isa::Isa;
use super::simd::{Kernel, Simd, array};

/// Vectors that are read together.
const TOGETHER: usize = 4;
/// Places that are read in turns: a processor waits for more lines at once if they are not all in one place.
const STREAMS: usize = 4;
/// Bytes that are asked for ahead of time.
const AHEAD: usize = 8 << 10;

/// Reads all words with `threads` threads and adds them up.
pub fn read_all(words: &[i32], threads: usize) -> i32 {
    let isa = Isa::detect();
    let part = words.len().div_ceil(threads.max(1)).max(1);
    let sum = |words| {
        let mut total = 0;
        // SAFETY: the kernel reads the words alone.
        unsafe { isa.enter(Sum { words, total: &mut total }) };
        total
    };
    std::thread::scope(|scope| {
        let mut parts = words.chunks(part);
        let own = parts.next().unwrap_or_default();
        // Where the system starts no more threads, this one reads their parts.
        let start = |part| {
            let other = std::thread::Builder::new().spawn_scoped(scope, move || sum(part));
            other.map_err(|_| part)
        };
        let others: Vec<_> = parts.map(start).collect();
        let mut total = sum(own);
        for other in others {
            // A sum does not panic.
            let more = other.map_or_else(sum, |other| other.join().unwrap_or(0));
            total = total.wrapping_add(more);
        }
        total
    })
}

struct Sum<'a> {
    words: &'a [i32],
    total: &'a mut i32,
}

impl Kernel for Sum<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let together = TOGETHER * S::LANES;
        let stream = self.words.len() / STREAMS / together * together;
        let mut lanes = [0i32; 16];
        // SAFETY: the caller promises the features; what is read lies in the words, which lanes there are at most.
        unsafe {
            let mut sums = [S::splat(0); TOGETHER];
            for at in (0..stream).step_by(together) {
                for s in 0..STREAMS {
                    let from = self.words.as_ptr().add(s * stream + at);
                    for byte in (0..4 * together).step_by(64) {
                        S::prefetch(from.cast::<u8>().wrapping_add(AHEAD + byte));
                    }
                    sums = array!(v < TOGETHER => S::add(sums[v], S::load(from.add(v * S::LANES))));
                }
            }
            for sums in sums {
                let mut these = [0i32; 16];
                S::store(sums, these.as_mut_ptr());
                for i in 0..16 {
                    lanes[i] = lanes[i].wrapping_add(these[i]);
                }
            }
        }
        let rest = &self.words[STREAMS * stream..];
        *self.total = rest.iter().chain(&lanes).fold(0, |sum, x| sum.wrapping_add(*x));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_once() {
        for len in [0, 1, 127, 128, 255, 256, 257, 1000, 5000] {
            let words: Vec<i32> = (1..=len).collect();
            for threads in [0, 1, 2, 3, 7] {
                assert_eq!(read_all(&words, threads), len * (len + 1) / 2, "{len} words, {threads} threads");
            }
        }
    }
}
