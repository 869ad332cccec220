//! The few vector operations that integer kernels need: one trait, one implementation an instruction set.
//!
//! A vector holds one dword or one f32 of each of [`Simd::LANES`] weight rows, so a number in a lane always belongs
//! to the same output. Formats are unpacked and multiplied by code that is written once over this trait.

/// `[value for i = 0, value for i = 1, ..]`, of `n` values. Kernels build arrays of vectors with this and not with
/// closures: what a closure calls is compiled without the instruction set's features, so every vector operation in
/// it becomes a function call.
macro_rules! array {
    ($i:ident < $n:expr => $value:expr) => {{
        let mut values = [{
            let $i = 0;
            $value
        }; $n];
        let mut $i = 1;
        while $i < $n {
            values[$i] = $value;
            $i += 1;
        }
        values
    }};
}
pub(super) use array;

/// One instruction set.
///
/// # Safety
/// All methods: the instruction set's features are present. Pointers are valid for what the method reads or
/// writes, at any alignment.
pub(super) unsafe trait Simd: Copy + 'static {
    /// Rows that are worked on together: 32-bit lanes of a vector; at most 16.
    const LANES: usize;
    /// Panels that are multiplied together when there are several rows of x.
    const PANELS: usize;
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
    unsafe fn store(x: Self::I, to: *mut i32);
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn xor(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn add(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn sub(a: Self::I, b: Self::I) -> Self::I;
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
