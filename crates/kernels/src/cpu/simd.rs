//! The few vector operations that integer kernels need: one trait, one implementation an instruction set.
//!
//! A vector holds one dword or one f32 of each of [`Simd::LANES`] weight rows, so a number in a lane always belongs
//! to the same output. Formats are unpacked and multiplied by code that is written once over this trait.

/// `[value for i = 0, value for i = 1, ..]`, of `n` values, at most 9. Kernels build arrays of vectors with this and not
/// with closures: what a closure calls is compiled without the instruction set's features, so every vector operation
/// in it becomes a function call. And not with a loop: a kernel has thousands of them once it is inlined, and unrolling
/// those takes a large part of the time that this crate is compiled for.
macro_rules! array {
    ($i:ident < $n:expr => $value:expr) => {{
        const { assert!($n <= 9) };
        let mut values = [{
            let $i = 0;
            $value
        }; $n];
        $crate::cpu::simd::array!(@ values, $i, $n, $value, 1 2 3 4 5 6 7 8);
        values
    }};
    (@ $values:ident, $i:ident, $n:expr, $value:expr, $($k:literal)*) => {
        $(
            // What stands behind a constant that is false is not compiled at all.
            #[allow(unconditional_panic, arithmetic_overflow)]
            if const { $k < $n } {
                let $i = $k;
                $values[$k] = $value;
            }
        )*
    };
}
pub(super) use array;

/// The statement for each of some numbers, one after the other. The compiler leaves a loop with a large body as it is;
/// what the body indexes then has to lie in memory, where a number that is known leaves it in registers.
macro_rules! unrolled {
    ($i:ident in [$($n:literal),*] => $body:block) => {
        $({
            let $i = $n;
            $body
        })*
    };
}
pub(super) use unrolled;

/// The largest [`Simd::X_ROWS`].
pub(super) const X_ROWS_MAX: usize = 6;

/// One instruction set.
///
/// # Safety
/// All methods: the instruction set's features are present. Pointers are valid for what the method reads or
/// writes, at any alignment.
pub(super) unsafe trait Simd: Copy + 'static {
    /// Rows that are worked on together: 32-bit lanes of a vector; at most 16.
    const LANES: usize;
    /// Rows of x that are multiplied together, as many as registers hold the sums of: 4 or [`X_ROWS_MAX`].
    const X_ROWS: usize;
    /// Whether two panels may share the loads of x: only instruction sets with registers enough for it.
    const PAIRS: bool = false;
    /// What [`Simd::dot`] subtracts from bytes that may exceed 127.
    const WIDE_BASE: i32;
    /// [`Simd::LANES`] dwords.
    type I: Copy;
    /// [`Simd::LANES`] f32 values.
    type F: Copy;

    /// 16 bytes of each row, `stride` bytes apart, transposed: dword `i` of all rows in vector `i`.
    unsafe fn load16(from: *const u8, stride: usize) -> [Self::I; 4];
    /// One dword in all lanes.
    unsafe fn splat(x: i32) -> Self::I;
    unsafe fn load(from: *const i32) -> Self::I;
    /// [`Simd::LANES`] unsigned words, widened to dwords.
    unsafe fn load_words(from: *const u8) -> Self::I;
    unsafe fn store(x: Self::I, to: *mut i32);
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn xor(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn add(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn sub(a: Self::I, b: Self::I) -> Self::I;
    /// The low dwords of the products of dwords.
    unsafe fn mul_low(a: Self::I, b: Self::I) -> Self::I;
    /// Adds the two products of each lane's signed words.
    unsafe fn dot_words(sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// Logical shifts of dwords; `n` is a constant after inlining.
    unsafe fn shr(a: Self::I, n: u32) -> Self::I;
    unsafe fn shl(a: Self::I, n: u32) -> Self::I;
    /// Arithmetic shift of dwords.
    unsafe fn sar(a: Self::I, n: u32) -> Self::I;
    /// `table[index]` for each byte; indices are 0..16.
    unsafe fn lookup(table: &[u8; 16], index: Self::I) -> Self::I;
    /// Bits `4 n .. 4 n + 4` of each dword, one in each byte of the result, as 0 or 16; n < 8.
    unsafe fn spread(bits: Self::I, n: usize) -> Self::I;
    /// Adds the four products of each lane's unsigned bytes with signed bytes in -127..=127. Without `WIDE` the
    /// unsigned ones are at most 127; with it, they are lowered by [`Simd::WIDE_BASE`] first.
    unsafe fn dot<const WIDE: bool>(sum: Self::I, unsigned: Self::I, signed: Self::I) -> Self::I;
    /// Whether [`Simd::dot_four`] is cheaper than four [`Simd::dot`].
    const FOLDS: bool = false;
    /// Four [`Simd::dot`] with bytes of at most 31.
    #[inline(always)]
    unsafe fn dot_four(mut sum: Self::I, unsigned: [Self::I; 4], signed: [Self::I; 4]) -> Self::I {
        for c in 0..4 {
            // SAFETY: as the caller promises.
            sum = unsafe { Self::dot::<false>(sum, unsigned[c], signed[c]) };
        }
        sum
    }

    unsafe fn splat_f(x: f32) -> Self::F;
    unsafe fn load_f(from: *const f32) -> Self::F;
    unsafe fn store_f(x: Self::F, to: *mut f32);
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Signed integers to floats.
    unsafe fn to_f(x: Self::I) -> Self::F;
    /// The same bits.
    unsafe fn bits_to_f(x: Self::I) -> Self::F;
    /// The low half of each dword as an IEEE half.
    unsafe fn half_to_f(x: Self::I) -> Self::F;
    /// Asks for a cache line, in the second cache.
    unsafe fn prefetch(at: *const u8);
}

/// Code over [`Simd`], to be compiled for each instruction set.
pub(super) trait Kernel {
    /// # Safety
    /// The instruction set's features are present; and what the kernel's own documentation asks for.
    unsafe fn run<S: Simd>(self);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Isa;

    /// Rows of the inputs: a multiple of all numbers of lanes.
    const ROWS: usize = 16;

    /// Dword `c` of row `r` at `[4 * r + c]`, four vectors' worth.
    type Rows = [u32; 4 * ROWS];

    /// An operation, a number that tells its uses apart, and a dword of each row.
    type Results = Vec<(&'static str, usize, [u32; ROWS])>;

    /// Applies every operation to the rows and keeps what comes out of each, row by row.
    struct Every<'a> {
        a: &'a Rows,
        b: &'a Rows,
        out: &'a mut Results,
    }

    impl Kernel for Every<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            // SAFETY: the caller promises the features; the rows and the results have room.
            unsafe {
                for first in (0..ROWS).step_by(S::LANES) {
                    let a = S::load16(self.a[4 * first..].as_ptr().cast(), 16);
                    let b = S::load16(self.b[4 * first..].as_ptr().cast(), 16);
                    integers::<S>(a, b, first, self.out);
                    bytes::<S>(a, b, first, self.out);
                    floats::<S>(a, b, first, self.out);
                }
            }
        }
    }

    /// Keeps a vector.
    #[inline(always)]
    unsafe fn keep<S: Simd>(out: &mut Results, name: (&'static str, usize), first: usize, x: S::I) {
        if first == 0 {
            out.push((name.0, name.1, [0; ROWS]));
        }
        let kept = out.iter_mut().find(|(n, i, _)| (*n, *i) == name).unwrap();
        // SAFETY: there is room from `first` for a vector.
        unsafe { S::store(x, kept.2[first..].as_mut_ptr().cast()) };
    }

    #[inline(always)]
    unsafe fn integers<S: Simd>(a: [S::I; 4], b: [S::I; 4], first: usize, out: &mut Results) {
        // SAFETY: the caller promises the features.
        unsafe {
            for c in 0..4 {
                keep::<S>(out, ("load16", c), first, a[c]);
                keep::<S>(out, ("and", c), first, S::and(a[c], b[c]));
                keep::<S>(out, ("or", c), first, S::or(a[c], b[c]));
                keep::<S>(out, ("xor", c), first, S::xor(a[c], b[c]));
                keep::<S>(out, ("add", c), first, S::add(a[c], b[c]));
                keep::<S>(out, ("sub", c), first, S::sub(a[c], b[c]));
                keep::<S>(out, ("mul_low", c), first, S::mul_low(a[c], b[c]));
                // So the sum of two products fits a dword.
                let words = S::and(b[c], S::splat(0x3fff_3fff));
                keep::<S>(out, ("dot_words", c), first, S::dot_words(S::sar(a[3], 2), a[c], words));
            }
            keep::<S>(out, ("splat", 0), first, S::splat(-123_456_789));
            for n in 0..32 {
                keep::<S>(out, ("shr", n), first, S::shr(a[0], n as u32));
                keep::<S>(out, ("shl", n), first, S::shl(a[0], n as u32));
                keep::<S>(out, ("sar", n), first, S::sar(a[0], n as u32));
            }
        }
    }

    #[inline(always)]
    unsafe fn bytes<S: Simd>(a: [S::I; 4], b: [S::I; 4], first: usize, out: &mut Results) {
        static TABLE: [u8; 16] = [7, 255, 0, 128, 3, 99, 127, 129, 1, 64, 31, 200, 254, 13, 77, 250];
        // SAFETY: the caller promises the features.
        unsafe {
            for n in 0..8 {
                keep::<S>(out, ("spread", n), first, S::spread(a[0], n));
            }
            // The base, taken from each byte, comes back in two halves, which are narrow.
            let (sum, half) = (S::sar(a[1], 8), S::splat(S::WIDE_BASE / 2 * 0x0101_0101));
            for c in 0..4 {
                let index = S::and(a[c], S::splat(0x0f0f_0f0f));
                keep::<S>(out, ("lookup", c), first, S::lookup(&TABLE, index));
                let narrow = S::and(a[c], S::splat(0x7f7f_7f7f));
                keep::<S>(out, ("dot", c), first, S::dot::<false>(sum, narrow, b[c]));
                let lowered = S::dot::<true>(sum, a[c], b[c]);
                let wide = S::dot::<false>(S::dot::<false>(lowered, half, b[c]), half, b[c]);
                keep::<S>(out, ("wide dot", c), first, wide);
            }
        }
    }

    #[inline(always)]
    unsafe fn floats<S: Simd>(a: [S::I; 4], b: [S::I; 4], first: usize, out: &mut Results) {
        // SAFETY: the caller promises the features; the buffer has room for a vector.
        unsafe {
            for c in 0..4 {
                let mut buffer = [0f32; ROWS];
                let (x, y) = (S::to_f(a[c]), S::to_f(b[c]));
                // No infinities and no NaNs: their bits may differ.
                let finite = S::bits_to_f(S::and(a[c], S::splat(0xbfff_ffff_u32 as i32)));
                let half = S::half_to_f(S::and(a[c], S::splat(0xffff_bfff_u32 as i32)));
                let values = [x, finite, half, S::mul(x, finite), S::fma(x, y, S::mul(y, finite))];
                for (n, value) in [0, 1, 2, 3, 4].into_iter().zip(values) {
                    S::store_f(value, buffer.as_mut_ptr());
                    S::store_f(S::mul(S::load_f(buffer.as_ptr()), S::splat_f(1.0)), buffer.as_mut_ptr());
                    let name = ["to_f", "bits_to_f", "half_to_f", "mul", "fma"][n];
                    keep::<S>(out, (name, c), first, S::load(buffer.as_ptr().cast()));
                }
            }
        }
    }

    #[test]
    fn every_operation_gives_the_bits_of_the_scalar_one() {
        let mut state = 0x9e37_79b9u32;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        for round in 0..200 {
            // The first rounds hold the bytes at which a dot product would overflow.
            let a = std::array::from_fn(|_| {
                if round < 4 { [0, !0, 0x8080_8080, 0x7f7f_7f7f][round] } else { next() }
            });
            let signed =
                |b: u32| u32::from_le_bytes(b.to_le_bytes().map(|b| if b == 0x80 { 0x81 } else { b }));
            let b = std::array::from_fn(|i| match round {
                0..4 => [0x7f7f_7f7f, 0x8181_8181, 0x7f81_7f81, 0x817f_7f81][i % 4],
                _ => signed(next()),
            });
            let results = |isa: Isa| {
                let mut out = Results::new();
                // SAFETY: the kernel needs nothing but the features, and this machine has them.
                unsafe { isa.enter(Every { a: &a, b: &b, out: &mut out }) };
                out
            };
            let want = results(Isa::Portable);
            for isa in Isa::available() {
                for (got, want) in results(isa).iter().zip(&want) {
                    assert_eq!(got, want, "{}", isa.name());
                }
            }
        }
    }
}
