//! What an estimate has proved to be worth.
//!
//! Blending says which token is likelier; how likely, it says with a bias that depends on the traffic and on how many pieces of
//! evidence agree: what several of them name comes more often than a mean of their votes tells. So estimates are looked up
//! in a table of what came of such estimates before: knots on the log-odds axis, between which is interpolated, for one piece
//! of evidence, two, three and more. A knot moves by how far what came was from what the table said, so that the line through
//! the knots is fitted and not blurred. It begins with the identity.

use std::f64::consts::E;

use crate::{log::ln, ratio::Ratio};

/// Knots at whole log-odds from -6 to 6.
const KNOTS: usize = 13;
const RANGE: f32 = 6.0;
/// The odds at the first knot, e^-6, and from one to the next.
const LEAST_ODDS: f64 = 1.0 / (E * E * E * E * E * E);
/// Groups by agreement.
const VOICES: usize = 4;
/// Observations the identity stands for at each knot, and how many are remembered.
const PRIOR: f32 = 20.0;
const MEMORY: f32 = 8192.0;

/// The table.
#[derive(Debug)]
pub(crate) struct Calibration {
    /// Came of estimated.
    knots: Box<[Ratio]>,
}

/// What the table says at one moment, without divisions: a draft asks for hundreds of estimates.
#[derive(Debug)]
pub(crate) struct Worths([f32; VOICES * KNOTS]);

/// Between which knots an estimate lies, and how near the second.
struct Place {
    knot: usize,
    along: f32,
}

fn place(estimate: f32, voices: u32) -> Place {
    let odds = estimate / (1.0 - estimate).max(1e-6);
    let at = ln(odds).clamp(-RANGE, RANGE) + RANGE;
    let knot = (at as usize).min(KNOTS - 2);
    let group = (voices.max(1) as usize - 1).min(VOICES - 1);
    Place {
        knot: group * KNOTS + knot,
        along: at - knot as f32,
    }
}

fn interpolate(Place { knot, along }: Place, share: impl Fn(usize) -> f32) -> f32 {
    share(knot) * (1.0 - along) + share(knot + 1) * along
}

impl Default for Worths {
    fn default() -> Self {
        Self([0.0; VOICES * KNOTS])
    }
}

impl Worths {
    /// Takes over what the table says now.
    pub(crate) fn read(&mut self, table: &Calibration) {
        for (share, knot) in self.0.iter_mut().zip(&table.knots) {
            *share = knot.share();
        }
    }

    /// What an estimate, named by so many pieces of evidence, is worth.
    pub(crate) fn of(&self, estimate: f32, voices: u32) -> f32 {
        interpolate(place(estimate, voices), |knot| self.0[knot])
    }
}

impl Default for Calibration {
    fn default() -> Self {
        let knot = |knot: usize| {
            let odds = (0..knot % KNOTS).fold(LEAST_ODDS, |odds, _| odds * E);
            Ratio::new((odds / (1.0 + odds)) as f32, PRIOR)
        };
        Self {
            knots: (0..VOICES * KNOTS).map(knot).collect(),
        }
    }
}

impl Calibration {
    /// Words of the table.
    pub(crate) const WORDS: usize = Ratio::WORDS * VOICES * KNOTS;

    /// See [`Worths::of`].
    fn worth(&self, estimate: f32, voices: u32) -> f32 {
        interpolate(place(estimate, voices), |knot| self.knots[knot].share())
    }

    /// Learns whether what was estimated came.
    pub(crate) fn learn(&self, estimate: f32, voices: u32, came: bool) {
        let Place { knot, along } = place(estimate, voices);
        let missed = f32::from(u8::from(came)) - self.worth(estimate, voices);
        for (knot, weight) in [(knot, 1.0 - along), (knot + 1, along)] {
            let knot = &self.knots[knot];
            knot.learn(knot.share() + missed, weight, MEMORY);
        }
    }

    /// The table, as words.
    pub(crate) fn words(&self) -> impl Iterator<Item = u32> + '_ {
        self.knots.iter().flat_map(Ratio::words)
    }

    /// Puts back what [`Self::words`] has given, where it makes sense.
    pub(crate) fn restore(&self, words: &[u32]) {
        for (knot, words) in self.knots.iter().zip(words.chunks_exact(Ratio::WORDS)) {
            knot.restore(words, MEMORY);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_begins_with_the_identity() {
        let table = Calibration::default();
        for estimate in [0.01, 0.1, 0.27, 0.5, 0.9] {
            let worth = table.worth(estimate, 1);
            assert!((worth - estimate).abs() < 0.03, "{estimate}: {worth}");
        }
    }

    #[test]
    fn it_learns_what_estimates_are_worth_by_agreement() {
        let table = Calibration::default();
        for i in 0..20_000 {
            table.learn(0.3, 1, i % 10 < 2);
            table.learn(0.3, 3, i % 10 < 6);
        }
        assert!((table.worth(0.3, 1) - 0.2).abs() < 0.02);
        assert!((table.worth(0.3, 3) - 0.6).abs() < 0.02);
        assert!((table.worth(0.3, 2) - 0.3).abs() < 0.02);
    }

    #[test]
    fn what_is_taken_over_says_the_same() {
        let (table, mut worths) = (Calibration::default(), Worths::default());
        for i in 0..5_000u32 {
            let estimate = (i * 37 % 1000) as f32 / 1000.0;
            table.learn(estimate, i % 6, i % 3 == 0);
        }
        worths.read(&table);
        for estimate in [0.0, 0.002, 0.11, 0.5, 0.93, 1.0] {
            for voices in 0..6 {
                assert_eq!(worths.of(estimate, voices), table.worth(estimate, voices));
            }
        }
    }

    #[test]
    fn what_is_rare_is_not_drawn_to_what_is_frequent() {
        let table = Calibration::default();
        let right = |i: u32, share: f32| (i * 37 % 1000) < (share * 1000.0) as u32;
        for i in 0..40_000 {
            for estimate in [0.15, 0.15, 0.15, 0.2, 0.2, 0.5, 0.8] {
                table.learn(estimate, 1, right(i, estimate));
            }
        }
        for estimate in [0.15, 0.2, 0.5, 0.8] {
            let worth = table.worth(estimate, 1);
            assert!((worth - estimate).abs() < 0.02, "{estimate}: {worth}");
        }
    }

    #[test]
    fn extremes_are_in_range() {
        let table = Calibration::default();
        for estimate in [0.0, 1e-9, 1.0, 1.0 + 1e-6] {
            table.learn(estimate, 9, true);
            let worth = table.worth(estimate, 0);
            assert!((0.0..=1.0).contains(&worth));
        }
    }
}
