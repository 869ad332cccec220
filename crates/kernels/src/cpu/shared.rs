//! A slice whose disjoint parts are written by different threads.

use std::marker::PhantomData;

/// Mutable access to disjoint parts of one slice from many threads.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a, T> {
    pointer: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: `Parts` is a `&mut [T]` whose users promise to stay out of each other's way.
unsafe impl<T: Send> Send for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { pointer: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The values `start .. start + len`. Panics outside the slice.
    ///
    /// # Safety
    /// While the result lives, nobody else accesses these values.
    // One `Parts` hands out many mutable slices on purpose; the contract above keeps them apart.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "{start} + {len} of {}", self.len);
        // SAFETY: in bounds, as just checked; exclusive, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), len) }
    }
}

impl<'a, T> Parts<'a, T> {
    /// The values `start .. start + len` for several threads in turn. Panics outside the slice.
    pub(super) fn sub(&self, start: usize, len: usize) -> Self {
        assert!(start <= self.len && len <= self.len - start, "{start} + {len} of {}", self.len);
        Self { pointer: self.pointer.wrapping_add(start), len, slice: PhantomData }
    }
}

/// Where products go: the sums of row i of x to row `rows[i]` of `values`, which has `width` columns.
#[derive(Clone, Copy)]
pub(super) struct Sums<'a> {
    pub(super) values: Parts<'a, f32>,
    pub(super) rows: &'a [u32],
    pub(super) width: usize,
    /// The output that has the first column.
    pub(super) base: usize,
}

impl<'a> Sums<'a> {
    /// Output n of row 0 of the values. Panics if one of the rows is outside them.
    pub(super) fn column(&self, n: usize) -> *mut f32 {
        let rows = self.values.len / self.width;
        assert!((self.base..self.base + self.width).contains(&n));
        assert!(self.rows.iter().all(|row| (*row as usize) < rows));
        self.values.pointer.wrapping_add(n - self.base)
    }

    /// Those of row i of x, from output `n` on. Panics outside the values.
    ///
    /// # Safety
    /// As [`Parts::part`].
    // As there.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(super) unsafe fn part(&self, i: usize, n: usize, len: usize) -> &'a mut [f32] {
        assert!(self.base <= n && n - self.base + len <= self.width);
        // SAFETY: as the caller promises.
        unsafe { self.values.part(self.rows[i] as usize * self.width + n - self.base, len) }
    }
}
