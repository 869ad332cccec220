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
