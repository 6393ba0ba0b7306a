//! What the target knew: beside a token, the most probable entries of the distribution it was drawn from.
//!
//! An entry takes one word: 24 bits of token, 8 of probability. The entries of a chunk of tokens follow each other in pages
//! made on demand; how many each token has is kept in four bits, so that a place is found by adding them up. Where the token
//! drawn was nearly certain nothing is stored: it says as much itself.

use crate::{
    arena::Arena,
    error::{Error, Kind},
    id::Token,
    meter::Meter,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// Most entries of one distribution.
pub const MAX_ENTRIES: usize = 8;
/// Tokens of distributions are below this.
pub const KNOWN_TOKEN_LIMIT: u32 = 1 << 24;
/// A token drawn with a higher probability (of 255; 95 %) is as good as certain.
const CERTAIN: u8 = 242;
/// Entries in a page, and pages of a chunk.
const PAGE: u32 = 32;
const PAGES: usize = 64 * MAX_ENTRIES / PAGE as usize;
/// Tokens whose sizes share a word.
const PER_WORD: u32 = 16;

/// The most probable next tokens at one place, likeliest first, ties to the smaller token.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Distribution {
    len: u8,
    probabilities: [u8; MAX_ENTRIES],
    tokens: [Token; MAX_ENTRIES],
}

impl Distribution {
    /// A distribution of these tokens and probabilities (in 255ths). Entries of probability zero are left out.
    pub(crate) fn new(entries: impl Iterator<Item = (Token, u8)>) -> Self {
        let mut new = Self::default();
        for (token, probability) in entries.filter(|&(_, probability)| probability > 0) {
            let mut place = new.len as usize;
            let goes_before =
                |i: usize| (probability, !token) > (new.probabilities[i], !new.tokens[i]);
            while place > 0 && goes_before(place - 1) {
                place -= 1;
            }
            let end = new.len as usize;
            new.tokens.copy_within(place..end, place + 1);
            new.probabilities.copy_within(place..end, place + 1);
            (new.tokens[place], new.probabilities[place]) = (token, probability);
            new.len += 1;
        }
        new
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The tokens, likeliest first.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens[..self.len()]
    }

    /// Their probabilities, in 255ths.
    pub fn probabilities(&self) -> &[u8] {
        &self.probabilities[..self.len()]
    }

    /// The tokens with their probabilities.
    pub fn entries(&self) -> impl Iterator<Item = (u32, f32)> {
        let tokens = self.tokens().iter().copied();
        tokens.zip(self.probabilities().iter().map(|&p| f32::from(p) / 255.0))
    }

    /// The distribution, or an empty one if it gives `drawn`, the token drawn from it, as nearly certain.
    fn unless_certain(self, drawn: Token) -> Self {
        if self.tokens().first() == Some(&drawn) && self.probabilities[0] > CERTAIN {
            Self::default()
        } else {
            self
        }
    }
}

impl std::fmt::Debug for Distribution {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_map().entries(self.entries()).finish()
    }
}

/// Distributions that come along with tokens to append: a row of `width` entries for each.
#[derive(Clone, Copy, Debug, Default)]
pub struct KnownRows<'a> {
    width: usize,
    tokens: &'a [u32],
    probabilities: &'a [u8],
}

impl<'a> KnownRows<'a> {
    /// Rows of `width` tokens below 2^24 and as many probabilities in 255ths: row i is the distribution that the i-th token
    /// appended was drawn from. Entries of probability 0 are unused, whatever their token.
    ///
    /// # Errors
    /// If `width` is above [`MAX_ENTRIES`], the slices are not of one length that `width` divides, or a row names a token
    /// twice or one of 2^24 or larger.
    pub fn new(width: usize, tokens: &'a [u32], probabilities: &'a [u8]) -> Result<Self, Error> {
        if width > MAX_ENTRIES {
            return Err(Kind::KnownWidth(width).into());
        }
        if tokens.len() != probabilities.len() || tokens.len() % width.max(1) != 0 {
            let (ids, probabilities) = (tokens.len(), probabilities.len());
            return Err(Kind::KnownShape {
                ids,
                probabilities,
                width,
            }
            .into());
        }
        let rows = Self {
            width,
            tokens,
            probabilities,
        };
        (0..rows.len()).try_for_each(|row| rows.check(row))?;
        Ok(rows)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.tokens.len() / self.width.max(1)
    }

    /// Whether nothing is known of any token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The rows of these tokens, or none if nothing is known of any.
    ///
    /// # Panics
    /// If the range goes beyond them.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        if self.is_empty() {
            return *self;
        }
        let range = range.start * self.width..range.end * self.width;
        let (tokens, probabilities) = (&self.tokens[range.clone()], &self.probabilities[range]);
        Self {
            tokens,
            probabilities,
            ..*self
        }
    }

    /// What to store beside each of the tokens, which were drawn from the rows.
    pub(crate) fn beside_all(self, drawn: &[Token]) -> impl Iterator<Item = Distribution> {
        let beside = move |(row, &token)| Distribution::new(self.row(row)).unless_certain(token);
        drawn.iter().enumerate().map(beside)
    }

    fn row(&self, row: usize) -> impl Iterator<Item = (Token, u8)> + Clone + 'a {
        let cells = row * self.width..(row + 1) * self.width;
        let probabilities = self.probabilities[cells.clone()].iter();
        self.tokens[cells]
            .iter()
            .copied()
            .zip(probabilities.copied())
    }

    fn check(&self, row: usize) -> Result<(), Error> {
        let used = |&(_, probability): &(Token, u8)| probability > 0;
        for (column, (token, _)) in self.row(row).enumerate().filter(|(_, entry)| used(entry)) {
            if token >= KNOWN_TOKEN_LIMIT {
                return Err(Kind::KnownToken {
                    row,
                    column,
                    value: token,
                }
                .into());
            }
            let mut before = self.row(row).take(column).filter(used);
            if before.any(|(other, _)| other == token) {
                return Err(Kind::KnownTwice {
                    row,
                    column,
                    value: token,
                }
                .into());
            }
        }
        Ok(())
    }
}

/// Distributions that outlive the call they came with.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnedRows {
    width: usize,
    tokens: Vec<u32>,
    probabilities: Vec<u8>,
}

impl From<KnownRows<'_>> for OwnedRows {
    fn from(rows: KnownRows) -> Self {
        Self {
            width: rows.width,
            tokens: rows.tokens.to_vec(),
            probabilities: rows.probabilities.to_vec(),
        }
    }
}

impl OwnedRows {
    pub(crate) fn rows(&self) -> KnownRows<'_> {
        KnownRows {
            width: self.width,
            tokens: &self.tokens,
            probabilities: &self.probabilities,
        }
    }
}

/// The side logs of all chunks of a tree.
#[derive(Debug)]
pub(crate) struct KnownLog {
    chunks: Arena<KnownChunk>,
    pages: Arena<Page>,
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
        for (i, at) in (first..first + size as u32).enumerate() {
            let page = chunk.pages[(at / PAGE) as usize].load(Ordering::Relaxed);
            let entry = self.pages.get(page).0[(at % PAGE) as usize].load(Ordering::Relaxed);
            distribution.tokens[i] = entry >> 8;
            distribution.probabilities[i] = entry as u8;
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

    #[test]
    fn likeliest_first_and_nothing_of_probability_zero() {
        let known = Distribution::new([(9, 3), (4, 0), (7, 200), (8, 3)].into_iter());
        assert_eq!(known.tokens(), [7, 8, 9]);
        assert_eq!(known.probabilities(), [200, 3, 3]);
    }

    #[test]
    fn a_certain_token_needs_no_distribution() {
        let rows = KnownRows::new(2, &[5, 6, 5, 6, 5, 6], &[243, 12, 243, 12, 242, 12]).unwrap();
        let stored: Vec<Vec<u32>> = rows
            .beside_all(&[5, 6, 5])
            .map(|known| known.tokens().to_vec())
            .collect();
        assert_eq!(stored, [vec![], vec![5, 6], vec![5, 6]]);
    }
}
