//! Intel's matrix tiles (AMX): eight registers of 16 rows of 64 bytes, products of signed bytes summed in dwords.
//!
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18. Stable Rust has no intrinsics for
//! them.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// Rows of a tile.
pub(super) const ROWS: usize = 16;
/// Bytes of a tile's row.
pub(super) const ROW_BYTES: usize = 64;

/// Whether the processor has tiles of bytes and the system lets this process use them. The first call asks for that.
pub(super) fn available() -> bool {
    // tidy: allow what the processor and the system have is the same for all
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const TILE: u32 = 1 << 24;
        const INT8: u32 = 1 << 25;
        let features = __cpuid_count(7, 0).edx;
        features & TILE != 0 && features & INT8 != 0 && permitted()
    })
}

/// Asks Linux for the tiles' state, which it gives only to processes that want it (`arch_prctl(2)`).
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call reads and writes no memory of this process; what it changes is what it is made for.
    unsafe {
        asm!(
            "syscall",
            inout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    result == 0
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn permitted() -> bool {
    false
}

/// Tiles of full size, for as long as this lives.
pub(super) struct Tiles(());

impl Tiles {
    /// # Safety
    /// [`available`], and this thread has no other.
    pub(super) unsafe fn new() -> Self {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(ROW_BYTES as u16);
        config.rows[..8].fill(ROWS as u8);
        // SAFETY: the processor has tiles, as the caller promises; the configuration is 64 valid bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Self(())
    }

    /// `sums[t][r][n] = sum over k of x[r][k] * w[t][k / 4][n][k % 4]`, for 256 bytes of 32 rows of x, which are `pitch`
    /// bytes apart, and both matrices of w, as two tiles of rows of the first and then two of the second.
    ///
    /// # Safety
    /// x has these rows, each of w 64 rows of 64 bytes, and there is room for 4 tiles.
    #[inline(always)]
    pub(super) unsafe fn multiply(&self, x: *const i8, pitch: usize, w: [*const i32; 2], sums: *mut i32) {
        // What the next step needs is loaded as soon as its place is free. A step is 64 bytes of x and 16 rows of w.
        macro_rules! step {
            ($x:literal, $w:literal) => {
                concat!(
                    "tdpbssd tmm0, tmm4, tmm6\n",
                    "tdpbssd tmm2, tmm4, tmm7\n",
                    "tileloadd tmm4, [{x} + {pitch} + ",
                    $x,
                    "]\n",
                    "tdpbssd tmm1, tmm5, tmm6\n",
                    "tileloadd tmm6, [{high} + {near} + ",
                    $w,
                    "]\n",
                    "tdpbssd tmm3, tmm5, tmm7\n",
                    "tileloadd tmm7, [{low} + {near} + ",
                    $w,
                    "]\n",
                    "tileloadd tmm5, [{y} + {pitch} + ",
                    $x,
                    "]",
                )
            };
        }
        // SAFETY: as the caller promises; the tiles are configured.
        unsafe {
            asm!(
                "tileloadd tmm4, [{x} + {pitch}]",
                "tileloadd tmm6, [{high} + {near}]",
                "tileloadd tmm7, [{low} + {near}]",
                "tileloadd tmm5, [{y} + {pitch}]",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                step!("64", "1024"), step!("128", "2048"), step!("192", "3072"),
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm2, tmm4, tmm7",
                "tdpbssd tmm1, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "tilestored [{sums} + {near}], tmm0",
                "tilestored [{sums} + {near} + 1024], tmm1",
                "tilestored [{sums} + {near} + 2048], tmm2",
                "tilestored [{sums} + {near} + 3072], tmm3",
                x = in(reg) x, y = in(reg) x.wrapping_add(ROWS * pitch),
                high = in(reg) w[0], low = in(reg) w[1], sums = in(reg) sums,
                pitch = in(reg) pitch, near = in(reg) ROW_BYTES,
                options(nostack)
            );
        }
    }

    /// The same for 16 rows of x: one tile for each matrix, where the others have two.
    ///
    /// # Safety
    /// As [`Tiles::multiply`].
    #[inline(always)]
    pub(super) unsafe fn multiply_16(&self, x: *const i8, pitch: usize, w: [*const i32; 2], sums: *mut i32) {
        macro_rules! step {
            ($x:literal, $w:literal) => {
                concat!(
                    "tdpbssd tmm0, tmm4, tmm6\n",
                    "tileloadd tmm6, [{high} + {near} + ",
                    $w,
                    "]\n",
                    "tdpbssd tmm2, tmm4, tmm7\n",
                    "tileloadd tmm4, [{x} + {pitch} + ",
                    $x,
                    "]\n",
                    "tileloadd tmm7, [{low} + {near} + ",
                    $w,
                    "]",
                )
            };
        }
        // SAFETY: as the caller promises; the tiles are configured.
        unsafe {
            asm!(
                "tileloadd tmm4, [{x} + {pitch}]",
                "tileloadd tmm6, [{high} + {near}]",
                "tileloadd tmm7, [{low} + {near}]",
                "tilezero tmm0", "tilezero tmm2",
                step!("64", "1024"), step!("128", "2048"), step!("192", "3072"),
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm2, tmm4, tmm7",
                "tilestored [{sums} + {near}], tmm0",
                "tilestored [{sums} + {near} + 2048], tmm2",
                x = in(reg) x, high = in(reg) w[0], low = in(reg) w[1], sums = in(reg) sums,
                pitch = in(reg) pitch, near = in(reg) ROW_BYTES,
                options(nostack)
            );
        }
    }

    /// [`Tiles::multiply`] for 64 bytes of 32 rows of x and 16 rows of w.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn multiply_line(
        &self,
        x: *const i8,
        pitch: usize,
        w: [*const i32; 2],
        sums: *mut i32,
    ) {
        // SAFETY: as the caller promises; the tiles are configured.
        unsafe {
            asm!(
                "tileloadd tmm4, [{x} + {pitch}]",
                "tileloadd tmm5, [{y} + {pitch}]",
                "tileloadd tmm6, [{high} + {near}]",
                "tileloadd tmm7, [{low} + {near}]",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm5, tmm6",
                "tdpbssd tmm2, tmm4, tmm7",
                "tdpbssd tmm3, tmm5, tmm7",
                "tilestored [{sums} + {near}], tmm0",
                "tilestored [{sums} + {near} + 1024], tmm1",
                "tilestored [{sums} + {near} + 2048], tmm2",
                "tilestored [{sums} + {near} + 3072], tmm3",
                x = in(reg) x, y = in(reg) x.wrapping_add(ROWS * pitch),
                high = in(reg) w[0], low = in(reg) w[1], sums = in(reg) sums,
                pitch = in(reg) pitch, near = in(reg) ROW_BYTES,
                options(nostack)
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: whoever made this had tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
