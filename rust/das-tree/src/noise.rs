//! The dice the target will throw.
//!
//! A seeded sampler takes the token with the largest `log p + g`, where the noise `g` depends on the request's seed, the
//! position and the token, not on the context. So whoever estimates `p` can throw the same dice over the estimate, and so draft
//! what the target will pick rather than what is likely. Since a draft is kept only if it equals the target's own pick, this
//! changes how many are kept and nothing else.

use das_noise::{murmur, row_state};

use crate::{id::Token, log::ln};

/// What is known of how the target will pick a request's next tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coupling {
    /// By noise that is not known.
    #[default]
    Blind,
    /// It takes its most probable token.
    Greedy,
    /// By Gumbel-max with SGLang's noise of this seed. The token that follows the text is drawn at `position`, each one
    /// drafted below another a position later.
    Seeded {
        /// The request's sampling seed.
        seed: i64,
        /// Number of tokens committed, the prompt's included, less one.
        position: i64,
    },
}

/// The dice of one position.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dice {
    Unknown,
    None,
    Thrown(u32),
}

impl Coupling {
    /// The dice for a token drafted `depth` below the text.
    pub(crate) fn dice(self, depth: u32) -> Dice {
        match self {
            Self::Blind => Dice::Unknown,
            Self::Greedy => Dice::None,
            Self::Seeded { seed, position } => {
                Dice::Thrown(row_state(seed, position.wrapping_add(i64::from(depth))))
            }
        }
    }
}

/// Probability beyond the entries known, of which somebody may win the throw: how much it counts beside them, and the least
/// of it.
const TAIL: f32 = 1.2;
const LEAST_TAIL: f32 = 1e-4;

/// How long a token waits: the token with the smallest `wait / p` is picked.
fn wait(state: u32, token: Token) -> f32 {
    // As SGLang's `-log(hash / (2^32 - 1))`, which is clamped above zero.
    let below = f64::from(murmur(state, token)) / f64::from(u32::MAX);
    (-ln(below as f32)).clamp(2.4e-10, 1e30)
}

/// How likely each of some tokens is to be picked, by a target with these probabilities, under these dice: exactly known for
/// exact and complete probabilities, shares of the odds for estimates. Pushes what is likely at all, in the order of the entries.
pub(crate) fn throw(
    dice: Dice,
    entries: impl Iterator<Item = (Token, f32)> + Clone,
    least: f32,
    votes: &mut Vec<(Token, f32)>,
) {
    match dice {
        Dice::Unknown => votes.extend(entries.filter(|&(_, p)| p >= least)),
        Dice::None => {
            let first = entries.reduce(|best, other| if other.1 > best.1 { other } else { best });
            votes.extend(first.map(|(token, _)| (token, 1.0)));
        }
        Dice::Thrown(state) => {
            let start = votes.len();
            let (mut sum, mut odds) = (0.0, 0.0);
            for (token, p) in entries {
                let share = p / wait(state, token);
                votes.push((token, share));
                sum += p;
                odds += share;
            }
            odds += TAIL * (1.0 - sum).max(LEAST_TAIL);
            let mut kept = start;
            for i in start..votes.len() {
                let (token, share) = votes[i];
                if share >= least * odds {
                    votes[kept] = (token, share / odds);
                    kept += 1;
                }
            }
            votes.truncate(kept);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The engine's rule in double precision: the largest `log p - log(-log u)`.
    fn pick(seed: i64, position: i64, entries: &[(Token, f32)]) -> Token {
        let score = |&(token, p): &(Token, f32)| {
            let hash = murmur(row_state(seed, position), token);
            f64::from(p).ln() - (-(f64::from(hash) / f64::from(u32::MAX)).ln()).ln()
        };
        let best = entries.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
        best.unwrap().0
    }

    #[test]
    fn the_likeliest_under_the_dice_is_what_the_sampler_picks() {
        let entries: Vec<(Token, f32)> = (0..8)
            .map(|i| (100 + 7 * i, 0.3 / (i + 1) as f32))
            .collect();
        let mut picked = std::collections::HashMap::new();
        for seed in 0..2000 {
            let position = 5 + seed % 11;
            let dice = Coupling::Seeded { seed, position: 5 }.dice((seed % 11) as u32);
            let mut votes = Vec::new();
            throw(dice, entries.iter().copied(), 0.0, &mut votes);
            let best = votes.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
            assert_eq!(best, pick(seed, position, &entries));
            *picked.entry(best).or_insert(0) += 1;
        }
        // Not always the same one: each as often as it is probable.
        let total: f32 = entries.iter().map(|entry| entry.1).sum();
        for (token, p) in entries {
            let (seen, expected) = (picked[&token] as f32, 2000.0 * p / total);
            assert!(
                (seen - expected).abs() < 5.0 * expected.sqrt(),
                "{token}: {seen} of {expected}"
            );
        }
    }

    #[test]
    fn without_noise_the_most_probable_gets_all() {
        let mut votes = Vec::new();
        throw(
            Dice::None,
            [(3, 0.2), (9, 0.5), (4, 0.1)].into_iter(),
            0.0,
            &mut votes,
        );
        assert_eq!(votes, [(9, 1.0)]);
    }

    #[test]
    fn with_unknown_noise_probabilities_stay_what_they_are() {
        let mut votes = Vec::new();
        throw(
            Dice::Unknown,
            [(3, 0.2), (9, 0.5), (4, 0.001)].into_iter(),
            0.01,
            &mut votes,
        );
        assert_eq!(votes, [(3, 0.2), (9, 0.5)]);
    }
}
