//! What a running request has said itself: its prompt and output, and where each token occurred before.
//!
//! Positions with equal tokens are chained, newest first, so the earlier occurrences of the current context are found by
//! following one chain and comparing backwards. That gives exact counts for every context length at once, and the
//! positions themselves. It lives as long as the request.

use crate::id::Token;

/// "No earlier position" in a chain, "unused" in the map.
const NOWHERE: u32 = u32::MAX;
/// Occurrences looked at, newest first; older ones count as history. From 8 to 1024 the drafts on recorded rollouts differ
/// by half a percent, best at 16 to 64.
pub(crate) const OCCURRENCES: usize = 64;

/// Tokens of a prompt from which on moving a map of as many would be felt: a fifth of a millisecond.
const LONG: usize = 1 << 14;

/// The text and its chains.
#[derive(Debug, Default)]
pub(crate) struct OwnText {
    tokens: Vec<Token>,
    /// For each position the one before it with the same token. Shorter than `tokens` while a long prompt is taken in.
    previous: Vec<u32>,
    latest: TokenMap,
}

impl OwnText {
    /// A text that begins with a prompt, of which nothing is in the chains yet.
    pub(crate) fn new(prompt: &[Token]) -> Self {
        // Room for output, so that a long prompt is not copied once more when the first tokens come.
        let room = prompt.len() + prompt.len() / 4;
        let mut tokens = Vec::with_capacity(room);
        tokens.extend_from_slice(prompt);
        Self {
            tokens,
            previous: Vec::with_capacity(room),
            // It does not grow while a prompt is taken in, of however many different tokens, or soon after: to move all that is in a
            // large one would stall the step. Most prompts have few, and a small map stays in the cache.
            latest: TokenMap::new(if prompt.len() < LONG {
                prompt.len() / 2
            } else {
                2 * room
            }),
        }
    }

    pub(crate) fn extend(&mut self, tokens: &[Token]) {
        self.tokens.extend_from_slice(tokens);
    }

    /// Takes up to `most` tokens more into the chains.
    pub(crate) fn chain(&mut self, most: usize) {
        let from = self.previous.len();
        for position in from..self.tokens.len().min(from + most) {
            let before = self.latest.replace(self.tokens[position], position as u32);
            self.previous.push(before);
        }
    }

    /// Tokens not yet in the chains.
    pub(crate) fn unchained(&self) -> usize {
        self.tokens.len() - self.previous.len()
    }

    pub(crate) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Earlier positions of the last token, as far as they are in the chains, newest first.
    pub(crate) fn occurrences(&self) -> impl Iterator<Item = usize> {
        let last = self.tokens.len().wrapping_sub(1);
        let mut at = match self.previous.get(last) {
            Some(&previous) => previous,
            None => self
                .tokens
                .last()
                .map_or(NOWHERE, |&token| self.latest.get(token)),
        };
        std::iter::from_fn(move || {
            let here = (at != NOWHERE).then_some(at as usize)?;
            at = self.previous[here];
            Some(here)
        })
    }

    pub(crate) fn memory_usage(&self) -> usize {
        4 * (self.tokens.capacity() + self.previous.capacity()) + self.latest.memory_usage()
    }
}

/// Last position of each token: open addressing, at most half full. A slot holds the token and, one higher, its position; zero
/// is an empty one, so that a large table costs nothing before it is used.
#[derive(Debug, Default)]
struct TokenMap {
    slots: Vec<u64>,
    used: usize,
}

impl TokenMap {
    /// A map of at least so many slots.
    fn new(slots: usize) -> Self {
        let slots = if slots == 0 {
            0
        } else {
            slots.next_power_of_two().max(64)
        };
        Self {
            slots: vec![0; slots],
            used: 0,
        }
    }

    fn memory_usage(&self) -> usize {
        8 * self.slots.len()
    }

    /// The position of `token`, or [`NOWHERE`].
    fn get(&self, token: Token) -> u32 {
        if self.slots.is_empty() {
            return NOWHERE;
        }
        (self.slots[self.slot(token)] as u32).wrapping_sub(1)
    }

    /// Notes the position of `token`; returns the one it had, or [`NOWHERE`].
    fn replace(&mut self, token: Token, position: u32) -> u32 {
        if 2 * (self.used + 1) > self.slots.len() {
            self.grow();
        }
        let slot = self.slot(token);
        let before = (self.slots[slot] as u32).wrapping_sub(1);
        self.used += usize::from(before == NOWHERE);
        self.slots[slot] = u64::from(token) << 32 | u64::from(position + 1);
        before
    }

    /// Where `token` is, or would go.
    fn slot(&self, token: Token) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = token.wrapping_mul(0x9E37_79B1) as usize >> 7 & mask;
        while self.slots[slot] != 0 && (self.slots[slot] >> 32) as u32 != token {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        let larger = Self::new((2 * self.slots.len()).max(64));
        let old = std::mem::replace(
            self,
            Self {
                used: self.used,
                ..larger
            },
        );
        for entry in old.slots.into_iter().filter(|&entry| entry != 0) {
            let slot = self.slot((entry >> 32) as u32);
            self.slots[slot] = entry;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_map_gives_the_last_position_of_each_token_while_it_grows(
            spread in prop::sample::select(vec![1u32, 7, 1 << 8, 1 << 16]),
            tokens in prop::collection::vec((0u32..1 << 15, 0u8..4), 0..3000),
        ) {
            let (mut map, mut expected) = (TokenMap::default(), HashMap::new());
            let mut seen = vec![0];
            for (position, (number, again)) in tokens.into_iter().enumerate() {
                // One token in four has come before.
                let token = match again {
                    0 => seen[number as usize % seen.len()],
                    _ => number * spread,
                };
                seen.push(token);
                let before = map.replace(token, position as u32);
                prop_assert_eq!(before, expected.insert(token, position as u32).unwrap_or(NOWHERE));
                prop_assert_eq!(map.used, expected.len());
                let other = seen[number as usize % seen.len()];
                prop_assert_eq!(map.get(other), expected.get(&other).copied().unwrap_or(NOWHERE));
            }
            for (&token, &position) in &expected {
                prop_assert_eq!(map.get(token), position);
            }
        }
    }

    /// A step does not wait for a long prompt of many different tokens.
    #[test]
    fn a_long_prompt_moves_nothing() {
        let prompt: Vec<u32> = (0..50_000).map(|i| 3 * i).collect();
        let mut own = OwnText::new(&prompt);
        let before = own.memory_usage();
        while own.unchained() > 0 {
            own.chain(4096);
        }
        for token in 0..10_000 {
            own.extend(&[3 * token + 1]);
            own.chain(1);
        }
        assert_eq!(own.memory_usage(), before);
    }

    #[test]
    fn chains_list_all_earlier_positions_of_the_last_token() {
        let mut own = OwnText::default();
        let tokens: Vec<u32> = (0..3000u32).map(|i| i * i % 911).collect();
        for (i, &token) in tokens.iter().enumerate() {
            own.extend(&[token]);
            own.chain(1);
            let expected: Vec<usize> = (0..i).rev().filter(|&j| tokens[j] == token).collect();
            assert_eq!(own.occurrences().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_prompt_taken_in_by_parts_ends_as_if_taken_in_at_once() {
        let prompt: Vec<u32> = (0..1000u32).map(|i| i * i % 97).collect();
        let mut own = OwnText::new(&prompt);
        while own.unchained() > 0 {
            // What is found meanwhile is what there is in the part that has been taken in.
            let chained = own.tokens().len() - own.unchained();
            let last = *own.tokens().last().unwrap();
            let expected: Vec<usize> = (0..chained)
                .rev()
                .filter(|&j| own.tokens()[j] == last)
                .collect();
            assert_eq!(own.occurrences().collect::<Vec<_>>(), expected);
            own.extend(&[5]);
            own.chain(70);
        }
        let mut at_once = OwnText::new(own.tokens());
        at_once.chain(usize::MAX);
        assert_eq!(own.previous, at_once.previous);
    }
}
