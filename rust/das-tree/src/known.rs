//! What the target knew: beside a token, the most probable entries of the distribution it was drawn from.
//!
//! An entry takes one word: 24 bits of token, 8 of probability. Where the token drawn was nearly certain nothing is stored: it
//! says as much itself.

mod log;

use crate::{
    error::{Error, Kind},
    id::Token,
};
pub(crate) use log::KnownLog;

/// Most entries of one distribution.
pub const MAX_ENTRIES: usize = 8;
/// Tokens of distributions are below this.
pub const KNOWN_TOKEN_LIMIT: u32 = 1 << 24;
/// A token drawn with a higher probability (of 255; 95 %) is as good as certain.
const CERTAIN: u8 = 242;

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
    pub fn entries(&self) -> impl Iterator<Item = (u32, f32)> + Clone + '_ {
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
        if tokens.len() != probabilities.len() || !tokens.len().is_multiple_of(width.max(1)) {
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

    /// Entries of a row, and the slices, for [`Self::of_parts`].
    pub(crate) fn parts(&self) -> (usize, &'a [u32], &'a [u8]) {
        (self.width, self.tokens, self.probabilities)
    }

    /// The rows that [`Self::parts`] came from.
    pub(crate) fn of_parts(width: usize, tokens: &'a [u32], probabilities: &'a [u8]) -> Self {
        Self {
            width,
            tokens,
            probabilities,
        }
    }

    /// What to store beside each of the tokens, which were drawn from the rows.
    pub(crate) fn beside_all(self, drawn: &[Token]) -> impl Iterator<Item = Distribution> {
        let beside = move |(row, &token)| Distribution::new(self.row(row)).unless_certain(token);
        drawn.iter().enumerate().map(beside)
    }

    /// The distributions as they are.
    pub(crate) fn all(self) -> impl Iterator<Item = Distribution> {
        (0..self.len()).map(move |row| Distribution::new(self.row(row)))
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

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
