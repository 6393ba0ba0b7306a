//! Mixing contexts: how far each kind is to be trusted, and the distribution that results.
//!
//! Stick-breaking, longest context first: each takes a part of the probability that is left, according to how far its
//! kind has proved right: own text or history, length, number of occurrences, one follower or several. A long context seen
//! once deserves about a quarter, whatever its counts say. What none claims is "some other token" and stays unclaimed, so
//! that the result estimates how likely each token is accepted, and is not a share.

use crate::{
    id::{TOKEN_LIMIT, Token},
    locus::Evidence,
    tally::Tally,
};

/// Contexts with different evidence that are mixed, per source.
const LEVELS: u32 = 4;
/// Unclaimed probability below which shorter contexts are not asked.
const LEAST_MASS: f32 = 0.01;
/// A follower with more than this part of a context's occurrences dominates it.
const DOMINANT: f32 = 0.6;

/// Where a context's evidence is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The request's prompt and output.
    Own,
    /// The problem's other rollouts.
    History,
}

/// The distribution of one next token, while contexts are mixed into it.
#[derive(Debug, Default)]
pub(crate) struct Blend {
    shares: Tally<f32>,
    /// Probability nobody has claimed yet.
    mass: f32,
    /// Per source: contexts mixed in, and the occurrences of the last.
    levels: [u32; 2],
    totals: [u64; 2],
}

impl Blend {
    pub(crate) fn clear(&mut self) {
        self.shares.clear();
        (self.mass, self.levels, self.totals) = (1.0, [0; 2], [0; 2]);
    }

    /// Estimated probability of each next token.
    pub(crate) fn shares(&self) -> &[(Token, f32)] {
        self.shares.entries()
    }

    /// Whether shorter contexts could still change something.
    pub(crate) fn is_open(&self) -> bool {
        self.mass > LEAST_MASS
    }

    /// Whether a source has had its say.
    pub(crate) fn is_full(&self, source: Source) -> bool {
        self.levels[source as usize] == LEVELS
    }

    /// Whether a context whose occurrences weigh so much says nothing that the last longer one of its source has not said:
    /// with the same weight they are the same ones.
    pub(crate) fn repeats(&self, source: Source, total: u64) -> bool {
        total == self.totals[source as usize]
    }

    /// Mixes in a context, longest first: its followers with their counts, the `latest` one if that matters. An occurrence
    /// of full weight counts `unit`.
    pub(crate) fn add(
        &mut self,
        source: Source,
        length: u32,
        evidence: Evidence,
        unit: u64,
        followers: &[(Token, u64)],
        latest: Option<Token>,
    ) {
        let Evidence { total, distinct } = evidence;
        self.levels[source as usize] += 1;
        self.totals[source as usize] = total;
        let most = followers.iter().map(|&(_, count)| count).max();
        let dominant = most.unwrap_or(0) as f32 > DOMINANT * total as f32;
        if let Some(token) = latest.filter(|_| distinct > 1) {
            let weight = recency_weight(dominant);
            self.claim(token, weight);
            self.mass *= 1.0 - weight;
        }
        let weight = weight(source, length, in_units(total, unit), distinct, dominant);
        for &(token, count) in followers {
            if token < TOKEN_LIMIT {
                self.claim(token, weight * count as f32 / total as f32);
            }
        }
        self.mass *= 1.0 - weight;
    }

    fn claim(&mut self, token: Token, part: f32) {
        *self.shares.entry(token) += self.mass * part;
    }
}

/// The part of the own text's latest follower, where there are several. Learned, as the parts below, from recorded
/// rollouts of a reasoning model.
fn recency_weight(dominant: bool) -> f32 {
    if dominant { 0.22 } else { 0.12 }
}

/// A sum of weights as a number of full occurrences: to the nearest, but never none.
pub(crate) fn in_units(total: u64, unit: u64) -> u64 {
    ((total + unit / 2) / unit).max(1)
}

/// The part a context gets of what longer ones have left.
fn weight(source: Source, length: u32, total: u64, distinct: u32, dominant: bool) -> f32 {
    let often = total >= 5;
    if distinct == 1 {
        let by_count = match source {
            Source::Own => [0.25, 0.48, 0.57, 0.65],
            Source::History => [0.20, 0.33, 0.40, 0.65],
        };
        let bucket = match total {
            0 | 1 => 0,
            2 => 1,
            3 | 4 => 2,
            _ => 3,
        };
        let by_length = match length {
            0..9 => 0.0,
            9..17 => 0.38,
            _ => 0.58,
        };
        return f32::max(by_count[bucket], by_length);
    }
    match source {
        Source::Own if dominant => 0.25,
        Source::Own if length == 1 && often => 0.40,
        Source::Own => 0.18,
        Source::History if length == 1 => [0.50, 0.80][usize::from(often)],
        Source::History if dominant => [0.25, 0.42][usize::from(often)],
        Source::History => [0.17, 0.30][usize::from(often)],
    }
}
