//! An append-only vector whose elements never move, so that readers may hold references while it grows.
//!
//! Elements live in segments allocated on demand: four of each size, sizes doubling. An index is turned into a segment and
//! an offset with a count of leading zeros. At most a quarter more is allocated than is used.

use crate::{
    meter::Meter,
    sync::{AtomicU32, OnceLock, Ordering},
};

/// The first four segments have `1 << (BASE - 2)` elements each.
const BASE: u32 = if cfg!(loom) { 2 } else { 5 };
/// Enough for all 32-bit indices; a model makes do with fewer.
const SEGMENTS: usize = if cfg!(loom) {
    12
} else {
    4 * (32 - BASE as usize)
};

/// The vector. Elements start out as `T::default()` and are changed through their atomics.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    segments: [OnceLock<Box<[T]>>; SEGMENTS],
    /// Number of elements handed out.
    len: AtomicU32,
}

/// Segment, offset in it, and its size, for an index.
#[inline]
fn locate(index: u32) -> (usize, usize, usize) {
    let shifted = index + (1 << BASE);
    let top = 31 - shifted.leading_zeros();
    let quarter = top - 2;
    let segment = 4 * (top - BASE) + ((shifted >> quarter) & 3);
    let size = 1 << quarter;
    (
        segment as usize,
        (shifted & (size - 1)) as usize,
        size as usize,
    )
}

impl<T: Default> Arena<T> {
    pub(crate) fn new() -> Self {
        Self {
            segments: std::array::from_fn(|_| OnceLock::new()),
            len: AtomicU32::new(0),
        }
    }

    /// The element at an index that has been handed out by [`Self::push`] and has reached this thread by an Acquire.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> &T {
        let (segment, offset, _) = locate(index);
        &self.segments[segment]
            .get()
            .expect("an index is published only after its segment")[offset]
    }

    /// Hands out the next element. Threads that race for a new segment each make one and one of them wins: nobody waits
    /// for an allocation of another's.
    pub(crate) fn push(&self, meter: &Meter) -> u32 {
        let index = self.len.fetch_add(1, Ordering::Relaxed); // only uniqueness matters; the caller publishes the element
        let (segment, _, size) = locate(index);
        if self.segments[segment].get().is_none() {
            let fresh: Box<[T]> = (0..size).map(|_| T::default()).collect();
            if self.segments[segment].set(fresh).is_ok() {
                meter.add(size * size_of::<T>());
            }
        }
        index
    }

    pub(crate) fn len(&self) -> u32 {
        self.len.load(Ordering::Relaxed) // a statistic, or read by the one thread that pushes
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn segments_tile_the_index_space() {
        let mut expected = (0, 0);
        for index in 0..10_000 {
            let (segment, offset, size) = locate(index);
            assert_eq!((segment, offset), expected);
            expected = if offset + 1 == size {
                (segment + 1, 0)
            } else {
                (segment, offset + 1)
            };
        }
        let (segment, _, _) = locate(u32::MAX - (1 << BASE));
        assert_eq!(segment, SEGMENTS - 1);
    }

    #[test]
    fn growth_keeps_elements_and_counts_bytes() {
        let (arena, meter) = (Arena::<AtomicU32>::new(), Meter::default());
        for i in 0..1000 {
            assert_eq!(arena.push(&meter), i);
            arena.get(i).store(i * 3, Ordering::Relaxed);
        }
        assert!((0..1000).all(|i| arena.get(i).load(Ordering::Relaxed) == i * 3));
        let elements = meter.bytes() / size_of::<AtomicU32>();
        assert!(
            (1000..1300).contains(&elements),
            "{elements} elements allocated for 1000"
        );
    }
}
