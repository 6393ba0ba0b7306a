//! Memory in huge pages, for tables that are read all over.
//!
//! Whoever reads words far apart pays for each page beside the cache miss: the processor has to find out where it lies, the
//! more so in a virtual machine, and knows some thousand pages at a time. Pages of 2 MB instead of 4 KB make that go away.
//! Linux gives them to those who ask, for memory that begins and ends at their borders; elsewhere, or when there are none,
//! this is memory like any other.
//!
//! And who knows some time before what will be read can ask for it ahead: [`fetch`].

use std::{fmt, io, ops::Deref, ptr::NonNull, slice, sync::atomic::AtomicU32};

use memmap2::MmapMut;

/// Bytes of a huge page.
pub const HUGE: usize = 2 << 20;

/// Bytes that memory is given out by, at least.
const PAGE: usize = 4096;

/// Asks for the cache line in which something begins, and does not wait for it.
#[inline(always)]
pub fn fetch<T>(place: &T) {
    let place = std::ptr::from_ref(place);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(place.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = place;
}

/// Words that are zero at first. As many as about fill [`HUGE`] bytes, or a multiple of it, waste nothing.
pub struct Words {
    first: NonNull<AtomicU32>,
    len: usize,
    /// What they lie in.
    _map: MmapMut,
}

// SAFETY: it owns its memory, and that is atomics.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// So many words.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let bytes = len * size_of::<AtomicU32>();
        let bytes = bytes.next_multiple_of(PAGE).max(PAGE);
        // Room to begin at a border: addresses without memory behind them, until they are written.
        let room = if bytes < HUGE { bytes } else { bytes + HUGE };
        let mut map = MmapMut::map_anon(room)?;
        let start = match map.as_ptr().align_offset(HUGE) {
            start if bytes >= HUGE => start,
            _ => 0,
        };
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(memmap2::Advice::HugePage, start, bytes); // a kernel may not have them
        let first = NonNull::from(&mut map[start..]).cast();
        Ok(Self {
            first,
            len,
            _map: map,
        })
    }
}

impl Deref for Words {
    type Target = [AtomicU32];

    fn deref(&self) -> &[AtomicU32] {
        // SAFETY: the map holds that many words from there on, at a border of pages. It lives as long as `self`, nobody else has
        // a way to it, and any bytes are words.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} words", self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn words_are_zero_and_keep_what_is_written() {
        for len in [0, 1, 3, 1000, HUGE / 4 - 1, HUGE / 4, HUGE / 2 + 1] {
            let words = Words::zeroed(len).unwrap();
            assert_eq!(words.len(), len);
            assert!(words.iter().all(|word| word.load(Relaxed) == 0));
            for (word, value) in words.iter().zip(0..) {
                word.store(value, Relaxed);
            }
            let (words, len) = std::thread::spawn(move || (words, len)).join().unwrap();
            assert!(
                words
                    .iter()
                    .zip(0..len)
                    .all(|(word, i)| word.load(Relaxed) as usize == i)
            );
        }
    }

    #[test]
    fn many_words_begin_at_the_border_of_a_huge_page() {
        for len in [HUGE / 4 - 100, HUGE / 4, HUGE] {
            let words = Words::zeroed(len).unwrap();
            assert_eq!(words.as_ptr().align_offset(HUGE), 0);
        }
    }
}
