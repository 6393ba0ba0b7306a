//! What usually follows: a running mean of distributions, of which the largest entries are kept.

use crate::{id::Token, latest::Observation};

/// A mean of the distributions seen, newer ones weighing more once there are many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mixture<const N: usize> {
    /// Distributions seen.
    pub(crate) seen: u32,
    pub(crate) len: u32,
    pub(crate) tokens: [Token; N],
    pub(crate) shares: [f32; N],
}

impl<const N: usize> Default for Mixture<N> {
    fn default() -> Self {
        Self {
            seen: 0,
            len: 0,
            tokens: [0; N],
            shares: [0.0; N],
        }
    }
}

impl<const N: usize> Mixture<N> {
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Token, f32)> + Clone + '_ {
        let len = self.len as usize;
        let tokens = self.tokens[..len].iter().copied();
        tokens.zip(self.shares[..len].iter().copied())
    }

    /// Mixes in what was seen: as one of equals up to `memory` of them, later with that weight.
    pub(crate) fn learn(&mut self, observation: &Observation, memory: u32) {
        self.seen = self.seen.saturating_add(1);
        let rate = 1.0 / self.seen.min(memory) as f32;
        for share in &mut self.shares[..self.len as usize] {
            *share *= 1.0 - rate;
        }
        if observation.distribution.is_empty() {
            self.add(observation.token, rate);
        }
        for (token, p) in observation.distribution.entries() {
            self.add(token, rate * p);
        }
    }

    /// Adds to a token's share; when there is no room the smallest goes, the latest among equals.
    fn add(&mut self, token: Token, share: f32) {
        let len = self.len as usize;
        if let Some(place) = self.tokens[..len].iter().position(|&other| other == token) {
            self.shares[place] += share;
            return;
        }
        let place = if len < N {
            self.len += 1;
            len
        } else {
            let mut least = 0;
            for (i, other) in self.shares.iter().enumerate() {
                if *other <= self.shares[least] {
                    least = i;
                }
            }
            if self.shares[least] >= share {
                return;
            }
            least
        };
        (self.tokens[place], self.shares[place]) = (token, share);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::known::Distribution;

    fn seen(token: Token, entries: &[(Token, u8)]) -> Observation {
        Observation {
            token,
            distribution: Distribution::new(entries.iter().copied()),
        }
    }

    #[test]
    fn it_is_the_mean_while_there_is_room() {
        let mut mixture = Mixture::<4>::default();
        mixture.learn(&seen(1, &[(1, 204), (2, 51)]), 10);
        mixture.learn(&seen(3, &[]), 10);
        mixture.learn(&seen(1, &[(1, 255)]), 10);
        let share = |token| mixture.entries().find(|entry| entry.0 == token).unwrap().1;
        for (token, expected) in [(1, 1.8 / 3.0), (2, 0.2 / 3.0), (3, 1.0 / 3.0)] {
            assert!((share(token) - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn what_is_rare_gives_way_and_what_is_old_fades() {
        let mut mixture = Mixture::<2>::default();
        for token in [1, 1, 1, 2, 3] {
            mixture.learn(&seen(token, &[]), 4);
        }
        let tokens: Vec<Token> = mixture.entries().map(|entry| entry.0).collect();
        assert_eq!(tokens, [1, 3]);
        (0..40).for_each(|_| mixture.learn(&seen(9, &[]), 4));
        assert!(mixture.entries().find(|entry| entry.0 == 9).unwrap().1 > 0.99);
    }
}
