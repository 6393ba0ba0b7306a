//! A small map from tokens to numbers that is cleared often.

use crate::id::Token;

/// Slots of the index; must exceed the number of different tokens counted at once.
const SLOTS: usize = 256;

/// Entries in order of first use, found through a table whose slots are valid only if stamped in this round.
#[derive(Debug)]
pub(crate) struct Tally<V> {
    entries: Vec<(Token, V)>,
    slots: Box<[(u32, u32)]>,
    round: u32,
}

impl<V> Default for Tally<V> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            slots: vec![(0, 0); SLOTS].into(),
            round: 1,
        }
    }
}

impl<V: Copy + Default> Tally<V> {
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.round = self.round.wrapping_add(1);
        if self.round == 0 {
            self.slots.fill((0, 0));
            self.round = 1;
        }
    }

    pub(crate) fn entries(&self) -> &[(Token, V)] {
        &self.entries
    }

    /// The value of a token, zero if it is new.
    pub(crate) fn entry(&mut self, token: Token) -> &mut V {
        assert!(
            self.entries.len() < SLOTS,
            "a tally is for fewer than {SLOTS} tokens"
        );
        let mut slot = (token.wrapping_mul(0x9E37_79B1) >> 24) as usize;
        let place = loop {
            let (round, place) = self.slots[slot];
            if round != self.round {
                self.slots[slot] = (self.round, self.entries.len() as u32);
                self.entries.push((token, V::default()));
                break self.entries.len() - 1;
            }
            if self.entries[place as usize].0 == token {
                break place as usize;
            }
            slot = (slot + 1) % SLOTS;
        };
        &mut self.entries[place].1
    }
}
