//! [`Simd`] without any: eight lanes of plain integers and floats.

use half::f16;

use super::math::widen;
use super::simd::{Kernel, Simd};

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

const N: usize = 8;

/// Runs a kernel.
///
/// # Safety
/// What the kernel asks for.
pub(super) unsafe fn enter<K: Kernel>(kernel: K) {
    // SAFETY: plain Rust needs no features; the rest is the caller's promise.
    unsafe { kernel.run::<Scalar>() }
}

/// One value a lane, without a loop: the compiler would have to unroll thousands of them.
#[inline(always)]
fn lanes<T>(f: impl Fn(usize) -> T) -> [T; N] {
    [f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)]
}

#[inline(always)]
fn map(a: [i32; N], f: impl Fn(u32) -> u32) -> [i32; N] {
    lanes(|i| f(a[i] as u32) as i32)
}

#[inline(always)]
fn zip(a: [i32; N], b: [i32; N], f: impl Fn(i32, i32) -> i32) -> [i32; N] {
    lanes(|i| f(a[i], b[i]))
}

// SAFETY: no features are needed, and pointers are used as the trait says.
unsafe impl Simd for Scalar {
    const LANES: usize = N;
    const X_ROWS: usize = 4;
    const WIDE_BASE: i32 = 0;
    type I = [i32; N];
    type F = [f32; N];

    #[inline]
    unsafe fn load16(from: *const u8, stride: usize) -> [Self::I; 4] {
        // SAFETY: the caller promises 16 bytes of each row.
        let rows = lanes(|row| unsafe { from.add(row * stride).cast::<[i32; 4]>().read_unaligned() });
        let dword = |c: usize| lanes(|row| rows[row][c]);
        [dword(0), dword(1), dword(2), dword(3)]
    }

    #[inline]
    unsafe fn splat(x: i32) -> Self::I {
        [x; N]
    }

    #[inline]
    unsafe fn load(from: *const i32) -> Self::I {
        // SAFETY: the caller promises LANES dwords.
        unsafe { from.cast::<Self::I>().read_unaligned() }
    }

    #[inline]
    unsafe fn load_words(from: *const u8) -> Self::I {
        // SAFETY: the caller promises LANES words.
        let words = unsafe { from.cast::<[u16; N]>().read_unaligned() };
        lanes(|i| i32::from(words[i]))
    }

    #[inline]
    unsafe fn store(x: Self::I, to: *mut i32) {
        // SAFETY: the caller promises room for LANES dwords.
        unsafe { to.cast::<Self::I>().write_unaligned(x) }
    }

    #[inline]
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a & b)
    }

    #[inline]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a | b)
    }

    #[inline]
    unsafe fn xor(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a ^ b)
    }

    #[inline]
    unsafe fn add(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_add)
    }

    #[inline]
    unsafe fn sub(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_sub)
    }

    #[inline]
    unsafe fn mul_low(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_mul)
    }

    #[inline]
    unsafe fn dot_words(sum: Self::I, a: Self::I, b: Self::I) -> Self::I {
        let products = |a: i32, b: i32| {
            i32::from(a as i16) * i32::from(b as i16)
                + i32::from((a >> 16) as i16) * i32::from((b >> 16) as i16)
        };
        zip(sum, zip(a, b, products), |sum, products| sum + products)
    }

    #[inline]
    unsafe fn shr(a: Self::I, n: u32) -> Self::I {
        map(a, |a| a >> n)
    }

    #[inline]
    unsafe fn shl(a: Self::I, n: u32) -> Self::I {
        map(a, |a| a << n)
    }

    #[inline]
    unsafe fn sar(a: Self::I, n: u32) -> Self::I {
        map(a, |a| (a as i32 >> n) as u32)
    }

    #[inline]
    unsafe fn lookup(table: &[u8; 16], index: Self::I) -> Self::I {
        let entry = |i: u8| table[usize::from(i & 15)];
        map(index, |i| {
            let [a, b, c, d] = i.to_le_bytes();
            u32::from_le_bytes([entry(a), entry(b), entry(c), entry(d)])
        })
    }

    #[inline]
    unsafe fn spread(bits: Self::I, n: usize) -> Self::I {
        let bit = |b: u32, i: usize| (b >> (4 * n + i) & 1) << (8 * i + 4);
        map(bits, |b| bit(b, 0) + bit(b, 1) + bit(b, 2) + bit(b, 3))
    }

    #[inline]
    unsafe fn dot<const WIDE: bool>(sum: Self::I, unsigned: Self::I, signed: Self::I) -> Self::I {
        lanes(|i| {
            let (u, s) = (unsigned[i].to_le_bytes(), signed[i].to_le_bytes());
            let product = |i: usize| i32::from(u[i]) * i32::from(s[i] as i8);
            sum[i] + (product(0) + product(1) + product(2) + product(3))
        })
    }

    #[inline]
    unsafe fn splat_f(x: f32) -> Self::F {
        [x; N]
    }

    #[inline]
    unsafe fn load_f(from: *const f32) -> Self::F {
        // SAFETY: the caller promises LANES values.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }

    #[inline]
    unsafe fn store_f(x: Self::F, to: *mut f32) {
        // SAFETY: the caller promises room for LANES values.
        unsafe { to.cast::<Self::F>().write_unaligned(x) }
    }

    #[inline]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        lanes(|i| a[i] * b[i])
    }

    #[inline]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        lanes(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline]
    unsafe fn to_f(x: Self::I) -> Self::F {
        lanes(|i| x[i] as f32)
    }

    #[inline]
    unsafe fn bits_to_f(x: Self::I) -> Self::F {
        lanes(|i| f32::from_bits(x[i] as u32))
    }

    #[inline]
    unsafe fn half_to_f(x: Self::I) -> Self::F {
        lanes(|i| widen(f16::from_bits(x[i] as u16)))
    }

    #[inline]
    unsafe fn prefetch(_at: *const u8) {}
}
