//! Quantising 32 values, with what an instruction set has for it. All make the same bytes.

use super::BLOCK;
use super::activations::Order;
use crate::cpu::isa::Isa;

/// Code over [`Steps`], to be compiled for each instruction set.
pub(super) trait Quantise {
    fn run<S: Steps>(self);
}

/// Runs it with the best that `isa` has. What it calls must be `#[inline(always)]` to take part.
pub(super) fn enter(isa: Isa, work: impl Quantise) {
    match isa {
        // SAFETY: an `Isa` other than portable exists only where its features were detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx2Vnni | Isa::Avx512 | Isa::Avx512Bf16 => unsafe { avx2::enter(work) },
        _ => work.run::<Plain>(),
    }
}

/// What is done with 32 values.
pub(super) trait Steps {
    /// The bits of the largest magnitude.
    fn largest(x: &[f32; BLOCK]) -> u32;

    /// In steps, `inverse` of them in one, rounded to the nearest, and the sums of the halves.
    fn bytes(x: &[f32; BLOCK], inverse: f32) -> ([i8; BLOCK], [i32; 2]);

    /// In the order of block `block` of a row.
    fn permute(order: Order, block: usize, q: &[i8; BLOCK], out: &mut [i8; BLOCK]);
}

/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits. What is not finite then has 0 there.
const ROUND: f32 = 12_582_912.0;

/// What the compiler makes of loops.
pub(super) struct Plain;

impl Steps for Plain {
    #[inline(always)]
    fn largest(x: &[f32; BLOCK]) -> u32 {
        // As integers, magnitudes have the order of numbers, and the compiler knows how to find the largest of a vector.
        let mut largest = [0u32; 16];
        for x in x.chunks_exact(16) {
            for (largest, x) in largest.iter_mut().zip(x) {
                *largest = (x.to_bits() & 0x7fff_ffff).max(*largest);
            }
        }
        largest.into_iter().fold(0, u32::max)
    }

    #[inline(always)]
    fn bytes(x: &[f32; BLOCK], inverse: f32) -> ([i8; BLOCK], [i32; 2]) {
        let mut steps = [0i32; BLOCK];
        for (steps, x) in steps.iter_mut().zip(x) {
            *steps = ((x * inverse + ROUND).to_bits() as i32) << 24 >> 24;
        }
        let mut q = [0i8; BLOCK];
        for (q, steps) in q.iter_mut().zip(&steps) {
            *q = *steps as i8;
        }
        let (low, high) = steps.split_at(BLOCK / 2);
        (q, [low, high].map(|half| half.iter().sum()))
    }

    #[inline(always)]
    fn permute(order: Order, block: usize, q: &[i8; BLOCK], out: &mut [i8; BLOCK]) {
        match order {
            Order::EvenOdd => {
                for i in 0..16 {
                    (out[i], out[16 + i]) = (q[2 * i], q[2 * i + 1]);
                }
            }
            Order::Quads => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = q[i / 16 * 16 + i % 4 * 4 + i / 4 % 4];
                }
            }
            Order::Rotated16 if block.is_multiple_of(2) => {
                for (q, out) in q.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
                    out[..2].copy_from_slice(&q[14..]);
                    out[2..].copy_from_slice(&q[..14]);
                }
            }
            Order::Rotated32 if block.is_multiple_of(2) => {
                out[..2].copy_from_slice(&q[30..]);
                out[2..].copy_from_slice(&q[..30]);
            }
            Order::Natural | Order::Rotated16 | Order::Rotated32 => *out = *q,
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Order, Quantise, ROUND, Steps};
    use crate::cpu::simd::array;

    /// Only where [`enter`] has come from: it needs AVX2.
    struct Avx2;

    /// # Safety
    /// The features are present.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn enter(work: impl Quantise) {
        work.run::<Avx2>();
    }

    impl Steps for Avx2 {
        #[inline(always)]
        fn largest(x: &[f32; BLOCK]) -> u32 {
            // SAFETY: the processor has AVX2; all loads are within x.
            unsafe {
                let mask = _mm256_set1_epi32(0x7fff_ffff);
                let sizes =
                    array!(i < 4 => _mm256_and_si256(_mm256_loadu_si256(x.as_ptr().add(8 * i).cast()), mask));
                let [a, b] = array!(i < 2 => _mm256_max_epu32(sizes[i], sizes[2 + i]));
                let all = _mm256_max_epu32(a, b);
                let four = _mm_max_epu32(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
                let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b_01_00_11_10>(four));
                let one = _mm_max_epu32(two, _mm_shuffle_epi32::<0b_10_11_00_01>(two));
                _mm_cvtsi128_si32(one) as u32
            }
        }

        #[inline(always)]
        fn bytes(x: &[f32; BLOCK], inverse: f32) -> ([i8; BLOCK], [i32; 2]) {
            let mut q = [0; BLOCK];
            // SAFETY: the processor has AVX2; all loads are within x, the store is within q.
            unsafe {
                let (inverse, round) = (_mm256_set1_ps(inverse), _mm256_set1_ps(ROUND));
                let low = _mm256_set1_epi32(0xff);
                let steps = array!(i < 4 => {
                    let x = _mm256_loadu_ps(x.as_ptr().add(8 * i));
                    let rounded = _mm256_add_ps(_mm256_mul_ps(x, inverse), round);
                    _mm256_and_si256(_mm256_castps_si256(rounded), low)
                });
                // Four dwords of each of the four at a time.
                let words = array!(i < 2 => _mm256_packus_epi32(steps[2 * i], steps[2 * i + 1]));
                let bytes = _mm256_packus_epi16(words[0], words[1]);
                let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
                _mm256_storeu_si256(q.as_mut_ptr().cast(), bytes);
                // Sums of eight bytes, each 128 too large.
                let raised = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
                let eights = _mm256_sad_epu8(raised, _mm256_setzero_si256());
                let halves = _mm256_add_epi32(eights, _mm256_shuffle_epi32::<0b_01_00_11_10>(eights));
                let sum = |half| _mm_cvtsi128_si32(half) - 16 * 128;
                (q, [sum(_mm256_castsi256_si128(halves)), sum(_mm256_extracti128_si256::<1>(halves))])
            }
        }

        #[inline(always)]
        fn permute(order: Order, block: usize, q: &[i8; BLOCK], out: &mut [i8; BLOCK]) {
            let odd = !block.is_multiple_of(2);
            let from = match order {
                Order::EvenOdd => const { &Places::of(Order::EvenOdd) },
                Order::Quads => const { &Places::of(Order::Quads) },
                Order::Rotated16 if !odd => const { &Places::of(Order::Rotated16) },
                Order::Rotated32 if !odd => const { &Places::of(Order::Rotated32) },
                Order::Natural | Order::Rotated16 | Order::Rotated32 => {
                    *out = *q;
                    return;
                }
            };
            // SAFETY: the processor has AVX2; the arrays have 32 bytes.
            unsafe {
                let load = |bytes: *const i8| _mm256_loadu_si256(bytes.cast());
                let q = load(q.as_ptr());
                let swapped = _mm256_permute2x128_si256::<1>(q, q);
                let near = _mm256_shuffle_epi8(q, load(from.near.as_ptr()));
                let far = _mm256_shuffle_epi8(swapped, load(from.far.as_ptr()));
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_or_si256(near, far));
            }
        }
    }

    /// Where the bytes of an order come from: in the same half, or in the other one; -128 for those that do not.
    struct Places {
        near: [i8; BLOCK],
        far: [i8; BLOCK],
    }

    impl Places {
        /// Those of even blocks.
        const fn of(order: Order) -> Self {
            let mut places = Self { near: [-128; BLOCK], far: [-128; BLOCK] };
            let mut i = 0;
            while i < BLOCK {
                let from = match order {
                    Order::Natural => i,
                    Order::EvenOdd => i % 16 * 2 + i / 16,
                    Order::Quads => i / 16 * 16 + i % 4 * 4 + i / 4 % 4,
                    Order::Rotated16 => i / 16 * 16 + (i + 14) % 16,
                    Order::Rotated32 => (i + 30) % BLOCK,
                };
                if from / 16 == i / 16 {
                    places.near[i] = (from % 16) as i8;
                } else {
                    places.far[i] = (from % 16) as i8;
                }
                i += 1;
            }
            places
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything of every instruction set, over the same values.
    struct All<'a>(&'a [f32; BLOCK], f32, &'a mut Vec<i64>);

    impl Quantise for All<'_> {
        #[inline(always)]
        fn run<S: Steps>(self) {
            let Self(x, inverse, out) = self;
            out.push(i64::from(S::largest(x)));
            let (q, sums) = S::bytes(x, inverse);
            out.extend(q.iter().map(|q| i64::from(*q)).chain(sums.map(i64::from)));
            for order in [Order::Natural, Order::EvenOdd, Order::Quads, Order::Rotated16, Order::Rotated32] {
                for block in 0..2 {
                    let mut moved = [0; BLOCK];
                    S::permute(order, block, &q, &mut moved);
                    out.extend(moved.map(i64::from));
                }
            }
        }
    }

    #[test]
    fn all_instruction_sets_make_the_same_bytes() {
        let mut random = 1u32;
        let mut next = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) as f32 / 8_388_608.0 - 1.0
        };
        for case in 0..500 {
            let mut x: [f32; BLOCK] = std::array::from_fn(|_| next());
            let size = f32::exp2(next() * 30.0);
            x.iter_mut().for_each(|x| *x *= size);
            match case % 5 {
                1 => {
                    x[case % BLOCK] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-45][case % 7 % 5]
                }
                2 => x = x.map(|x| x * 1e-38),
                3 => x = x.map(f32::trunc),
                _ => {}
            }
            let largest = x.iter().map(|x| x.abs().to_bits()).max().unwrap();
            let inverse = 127.0 / f32::from_bits(largest);
            let mut expected = Vec::new();
            All(&x, inverse, &mut expected).run::<Plain>();
            assert_eq!(expected[0], i64::from(largest));
            for isa in Isa::available() {
                let mut got = Vec::new();
                enter(isa, All(&x, inverse, &mut got));
                assert_eq!(got, expected, "{} {x:?}", isa.name());
            }
        }
    }
}
