//! What a running request has said itself: its prompt and output, and where each token occurred before.
//!
//! Positions with equal tokens are chained, newest first, so the earlier occurrences of the current context are found by
//! following one chain and comparing backwards. That gives exact counts for every context length at once, and the
//! positions themselves. It lives as long as the request.

use crate::id::Token;

/// "No earlier position" in a chain, "no slot" in the map.
const NOWHERE: u32 = u32::MAX;
/// Occurrences looked at, newest first; older ones count as history. From 8 to 1024 the drafts on recorded rollouts differ
/// by half a percent, best at 16 to 64.
pub(crate) const OCCURRENCES: usize = 64;

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
            latest: TokenMap::default(),
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

/// Last position of each token: as many chains as there are different tokens, by linear hashing. A token that is new adds a chain,
/// which takes from one other what belongs in it. So nothing is ever rehashed or copied at once, which would take milliseconds
/// with a long prompt, and memory is taken a little at a time.
#[derive(Debug, Default)]
struct TokenMap {
    segments: Vec<Box<[Slot]>>,
    used: usize,
}

/// A token, its last position, and the slot after it in its chain; also the slot that is first in the chain of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    first: u32,
    token: Token,
    position: u32,
    next: u32,
}

/// Slots of a segment.
const SEGMENT: usize = 256;

impl TokenMap {
    /// The position of `token`, or [`NOWHERE`].
    fn get(&self, token: Token) -> u32 {
        self.find(token)
            .map_or(NOWHERE, |slot| self.slot(slot).position)
    }

    /// Notes the position of `token`; returns the one it had, or [`NOWHERE`].
    fn replace(&mut self, token: Token, position: u32) -> u32 {
        if let Some(slot) = self.find(token) {
            return std::mem::replace(&mut self.slot_mut(slot).position, position);
        }
        let slot = self.used as u32;
        if self.used.is_multiple_of(SEGMENT) {
            let unused = Slot {
                first: NOWHERE,
                token,
                position,
                next: NOWHERE,
            };
            self.segments.push(vec![unused; SEGMENT].into());
        }
        self.used += 1;
        self.divide(slot);
        let fresh = self.slot_mut(slot);
        (fresh.token, fresh.position) = (token, position);
        self.link(slot);
        NOWHERE
    }

    /// The slot of `token`.
    fn find(&self, token: Token) -> Option<u32> {
        let mut at = match self.used {
            0 => NOWHERE,
            _ => self.slot(self.chain(token)).first,
        };
        while at != NOWHERE {
            let slot = self.slot(at);
            if slot.token == token {
                return Some(at);
            }
            at = slot.next;
        }
        None
    }

    /// The chain that `token` belongs in. Half as many as the next power of two always exist; of the others those that do.
    fn chain(&self, token: Token) -> u32 {
        // The upper bits of such a product are spread best.
        let hash = token.wrapping_mul(0x9E37_79B1).reverse_bits();
        let mask = self.used.next_power_of_two() as u32 - 1;
        match hash & mask {
            chain if (chain as usize) < self.used => chain,
            chain => chain & mask >> 1,
        }
    }

    /// After a chain has been added: takes what belongs in it from the chain where that was before.
    fn divide(&mut self, added: u32) {
        let Some(half) = added.checked_ilog2() else {
            return;
        };
        let from = self.slot_mut(added - (1 << half));
        let mut at = std::mem::replace(&mut from.first, NOWHERE);
        while at != NOWHERE {
            let next = self.slot(at).next;
            self.link(at);
            at = next;
        }
    }

    /// Puts a slot at the head of the chain it belongs in.
    fn link(&mut self, slot: u32) {
        let chain = self.chain(self.slot(slot).token);
        let after = std::mem::replace(&mut self.slot_mut(chain).first, slot);
        self.slot_mut(slot).next = after;
    }

    fn slot(&self, number: u32) -> &Slot {
        &self.segments[number as usize / SEGMENT][number as usize % SEGMENT]
    }

    fn slot_mut(&mut self, number: u32) -> &mut Slot {
        &mut self.segments[number as usize / SEGMENT][number as usize % SEGMENT]
    }

    fn memory_usage(&self) -> usize {
        self.segments.len() * SEGMENT * size_of::<Slot>()
            + self.segments.capacity() * size_of::<Box<[Slot]>>()
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

    /// What is written when a token comes, however many there are: a step does not wait for a prompt of many different tokens.
    #[test]
    fn few_slots_are_changed_with_a_token() {
        for spread in [1u32, 7, 1 << 8, 1 << 16] {
            let mut map = TokenMap::default();
            let mut before: Vec<Slot> = Vec::new();
            for token in 0..3000u32 {
                map.replace(token * spread, token);
                let now = map.segments.concat();
                let changed = before
                    .iter()
                    .zip(&now)
                    .filter(|(before, now)| before != now);
                let (changed, segments) = (changed.count(), now.len() - before.len());
                assert!(
                    changed <= 12,
                    "{changed} of {token} changed, spread {spread}"
                );
                assert!(segments <= SEGMENT, "{segments} were added");
                before = now;
            }
            assert_eq!(map.used, 3000);
            assert!(
                map.memory_usage() <= 17 * 3072,
                "{} bytes",
                map.memory_usage()
            );
        }
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
