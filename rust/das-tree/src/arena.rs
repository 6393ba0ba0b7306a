//! An append-only vector whose elements never move, so that readers may hold references while it grows.
//!
//! Elements live in segments allocated on demand: four of each size, sizes doubling up to a largest. At most a quarter more is
//! allocated than is used. What [`Arena::push`] hands out is not an index but says where the element is, since readers do
//! little else than to look up elements: the number of its segment and, in the low bits, its place there.

use crate::{
    meter::Meter,
    sync::{AtomicU32, OnceLock, Ordering},
};

/// The first four segments have `1 << (BASE - 2)` elements each.
const BASE: u32 = if cfg!(loom) { 2 } else { 5 };
/// A model makes do with fewer.
const SEGMENTS: usize = if cfg!(loom) { 12 } else { 128 };

/// The vector. Elements start out as `T::default()` and are changed through their atomics. The largest segment has
/// `1 << BITS` of them; names of elements have that many bits, and seven more.
#[derive(Debug)]
pub(crate) struct Arena<T, const BITS: u32> {
    segments: [OnceLock<Box<[T]>>; SEGMENTS],
    /// Number of elements handed out.
    len: AtomicU32,
}

/// Segment, offset in it, and its size, for an index, where the largest segment has `1 << bits` elements.
fn locate(index: u32, bits: u32) -> (u32, u32, u32) {
    let shifted = u64::from(index) + (1 << BASE);
    let top = 63 - shifted.leading_zeros();
    let quarter = (top - 2).min(bits);
    // Where sizes no longer double, all that is above counts.
    let before = 4 * (quarter + 2 - BASE) as u64;
    let segment = before + (shifted >> quarter) - 4;
    let size = 1 << quarter;
    (segment as u32, shifted as u32 & (size - 1), size)
}

impl<T: Default, const BITS: u32> Arena<T, BITS> {
    pub(crate) fn new() -> Self {
        Self {
            segments: std::array::from_fn(|_| OnceLock::new()),
            len: AtomicU32::new(0),
        }
    }

    /// The element of a name that has been handed out by [`Self::push`] and has reached this thread by an Acquire.
    #[inline]
    pub(crate) fn get(&self, name: u32) -> &T {
        let (segment, offset) = (name >> BITS, name & ((1 << BITS) - 1));
        &self.segments[segment as usize % SEGMENTS]
            .get()
            .expect("a name is published only after its segment")[offset as usize]
    }

    /// The element of an index that has been handed out by [`Self::push_nth`] and has reached this thread likewise.
    pub(crate) fn nth(&self, index: u32) -> &T {
        let (segment, offset, _) = locate(index, BITS);
        self.get(segment << BITS | offset)
    }

    /// Hands out the next element, by its name; those handed out later have larger ones.
    pub(crate) fn push(&self, meter: &Meter) -> u32 {
        self.hand_out(meter).1
    }

    /// Hands out the next element, by its index.
    pub(crate) fn push_nth(&self, meter: &Meter) -> u32 {
        self.hand_out(meter).0
    }

    /// Index and name of the next element. Threads that race for a new segment each make one and one of them wins: nobody waits
    /// for an allocation of another's.
    fn hand_out(&self, meter: &Meter) -> (u32, u32) {
        let index = self.len.fetch_add(1, Ordering::Relaxed); // only uniqueness matters; the caller publishes the element
        let (segment, offset, size) = locate(index, BITS);
        let place = &self.segments[segment as usize];
        if place.get().is_none() {
            let fresh: Box<[T]> = (0..size).map(|_| T::default()).collect();
            if place.set(fresh).is_ok() {
                meter.add(size as usize * size_of::<T>());
            }
        }
        (index, segment << BITS | offset)
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
        for bits in [3, 5, 8] {
            let mut expected = (0, 0);
            for index in 0..20_000 {
                let (segment, offset, size) = locate(index, bits);
                assert_eq!((segment, offset), expected);
                assert!(size <= 1 << bits);
                expected = if offset + 1 == size {
                    (segment + 1, 0)
                } else {
                    (segment, offset + 1)
                };
            }
        }
    }

    #[test]
    fn growth_keeps_elements_and_counts_bytes() {
        let (arena, meter) = (Arena::<AtomicU32, 6>::new(), Meter::default());
        let mut names = Vec::new();
        for i in 0..1000 {
            let name = arena.push(&meter);
            arena.get(name).store(i * 3, Ordering::Relaxed);
            names.push(name);
        }
        assert!(names.is_sorted());
        for (i, &name) in (0..).zip(&names) {
            assert_eq!(arena.get(name).load(Ordering::Relaxed), 3 * i);
            assert_eq!(arena.nth(i).load(Ordering::Relaxed), 3 * i);
        }
        let elements = meter.bytes() / size_of::<AtomicU32>();
        assert!(
            (1000..1300).contains(&elements),
            "{elements} elements allocated for 1000"
        );
    }
}
