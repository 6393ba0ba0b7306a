//! The side log of a tree's text. The entries of a chunk of tokens follow each other in pages made on demand; how many each
//! token has is kept in four bits, so that a place is found by adding them up.

use crate::{
    arena::Arena,
    known::{Distribution, MAX_ENTRIES},
    meter::Meter,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// Entries in a page, and pages of a chunk.
const PAGE: u32 = 32;
const PAGES: usize = 64 * MAX_ENTRIES / PAGE as usize;
/// Tokens whose sizes share a word.
const PER_WORD: u32 = 16;

/// The side logs of all chunks of a tree.
#[derive(Debug)]
pub(crate) struct KnownLog {
    chunks: Arena<KnownChunk, 24>,
    pages: Arena<Page, 24>,
}

/// The side log of one chunk. A reader looks only at what belongs to tokens already published.
#[derive(Debug, Default)]
struct KnownChunk {
    /// Entries of each token, four bits each.
    sizes: [AtomicU64; 64 / PER_WORD as usize],
    pages: [AtomicU32; PAGES],
}

#[derive(Debug, Default)]
struct Page([AtomicU32; PAGE as usize]);

impl Default for KnownLog {
    fn default() -> Self {
        Self::new()
    }
}

impl KnownLog {
    fn new() -> Self {
        Self {
            chunks: Arena::new(),
            pages: Arena::new(),
        }
    }

    /// The log of another chunk: never `NONE`.
    pub(crate) fn open(&self, meter: &Meter) -> u32 {
        self.chunks.push(meter) + 1
    }

    /// Notes the distribution of the token at `offset` of the chunk, later than those noted before. One thread at a time
    /// per chunk; published with the token.
    pub(crate) fn push(&self, log: u32, offset: u32, distribution: &Distribution, meter: &Meter) {
        let chunk = self.chunks.get(log - 1);
        let first = chunk.entries_before(offset);
        for (at, (&token, &probability)) in (first..).zip(
            distribution
                .tokens()
                .iter()
                .zip(distribution.probabilities()),
        ) {
            let page = &chunk.pages[(at / PAGE) as usize];
            if at % PAGE == 0 {
                page.store(self.pages.push(meter), Ordering::Relaxed); // published with the token, as all here
            }
            let page = self.pages.get(page.load(Ordering::Relaxed)); // only this thread writes it
            page.0[(at % PAGE) as usize]
                .store(token << 8 | u32::from(probability), Ordering::Relaxed);
        }
        let (word, shift) = place(offset);
        let before = chunk.sizes[word].load(Ordering::Relaxed); // only this thread writes it
        chunk.sizes[word].store(
            before | (distribution.len() as u64) << shift,
            Ordering::Relaxed,
        );
    }

    /// The distribution of the token at `offset` of the chunk, which must have been published.
    pub(crate) fn get(&self, log: u32, offset: u32) -> Distribution {
        let chunk = self.chunks.get(log - 1);
        let (word, shift) = place(offset);
        let size = chunk.sizes[word].load(Ordering::Relaxed) >> shift & 15; // published with the token, as all here
        let first = chunk.entries_before(offset);
        let mut distribution = Distribution {
            len: size as u8,
            ..Distribution::default()
        };
        let end = first + size as u32;
        let mut at = first;
        while at < end {
            let page = chunk.pages[(at / PAGE) as usize].load(Ordering::Relaxed);
            let page = &self.pages.get(page).0[(at % PAGE) as usize..];
            for entry in page.iter().take((end - at) as usize) {
                let (i, entry) = ((at - first) as usize, entry.load(Ordering::Relaxed));
                distribution.tokens[i] = entry >> 8;
                distribution.probabilities[i] = entry as u8;
                at += 1;
            }
        }
        distribution
    }
}

/// Where a token's size is: word and shift.
fn place(offset: u32) -> (usize, u32) {
    ((offset / PER_WORD) as usize, offset % PER_WORD * 4)
}

impl KnownChunk {
    /// Entries of the tokens before `offset`.
    fn entries_before(&self, offset: u32) -> u32 {
        let (word, shift) = place(offset);
        let load = |i: usize| self.sizes[i].load(Ordering::Relaxed); // published with the token
        let whole: u32 = (0..word).map(|i| sum(load(i))).sum();
        whole + sum(load(word) & ((1 << shift) - 1))
    }
}

/// The sum of sixteen numbers of four bits, none above 8.
fn sum(sizes: u64) -> u32 {
    const LOW: u64 = 0x0f0f_0f0f_0f0f_0f0f;
    let pairs = (sizes & LOW) + (sizes >> 4 & LOW);
    (pairs.wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_at_every_offset() {
        let (meter, log) = (Meter::default(), KnownLog::new());
        let distribution = |offset: u32| {
            let size = offset.wrapping_mul(0x9E37_79B1) >> 28;
            Distribution::new((0..size.min(8)).map(|i| (offset * 100 + i, (i * 29 % 255) as u8)))
        };
        for _ in 0..3 {
            let chunk = log.open(&meter);
            for offset in 0..64 {
                if !distribution(offset).is_empty() {
                    log.push(chunk, offset, &distribution(offset), &meter);
                }
                assert!((0..=offset).all(|i| log.get(chunk, i) == distribution(i)));
            }
        }
    }

    #[test]
    fn all_full() {
        let (meter, log) = (Meter::default(), KnownLog::new());
        let chunk = log.open(&meter);
        let distribution =
            |offset: u32| Distribution::new((0..8).map(|i| (offset + i, 255 - i as u8)));
        (0..64).for_each(|offset| log.push(chunk, offset, &distribution(offset), &meter));
        assert!((0..64).all(|offset| log.get(chunk, offset) == distribution(offset)));
    }
}
