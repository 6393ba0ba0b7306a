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

/// Unclaimed probability below which shorter contexts are not asked.
const LEAST_MASS: f32 = 0.01;
/// The least share of one's say that counts as naming a token.
const A_VOICE: f32 = 0.05;
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

/// What a token has been given.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Share {
    /// Estimated probability.
    pub(crate) estimate: f32,
    /// Pieces of evidence that named it.
    pub(crate) voices: u32,
}

/// The distribution of one next token, while contexts are mixed into it.
#[derive(Debug, Default)]
pub(crate) struct Blend {
    shares: Tally<Share>,
    /// Probability nobody has claimed yet.
    mass: f32,
    /// Per source: the occurrences of the last context mixed in.
    totals: [u64; 2],
    /// What an occurrence of full weight in the history counts.
    unit: u64,
}

impl Blend {
    /// Begins a distribution. An occurrence of full weight in the history counts `unit`.
    pub(crate) fn clear(&mut self, unit: u64) {
        self.unit = unit;
        self.shares.clear();
        (self.mass, self.totals) = (1.0, [0; 2]);
    }

    /// Estimated probability of each next token.
    pub(crate) fn shares(&self) -> &[(Token, Share)] {
        self.shares.entries()
    }

    /// Whether shorter contexts could still change something.
    pub(crate) fn is_open(&self) -> bool {
        self.mass > LEAST_MASS
    }

    /// Probability nobody has claimed yet.
    pub(crate) fn left(&self) -> f32 {
        self.mass
    }

    /// Gives a part of what is left to tokens by their shares of it.
    pub(crate) fn add_votes(&mut self, part: f32, votes: &[(Token, f32)]) {
        for &(token, share) in votes {
            self.claim(token, part * share, share);
        }
        self.mass *= 1.0 - part;
    }

    /// Whether a context whose occurrences weigh so much says nothing that the last longer one of its source has not said:
    /// with the same weight they are the same ones.
    pub(crate) fn repeats(&self, source: Source, total: u64) -> bool {
        total == self.totals[source as usize]
    }

    /// Mixes in a context, longest first: its followers with their counts, the `latest` one if that matters.
    pub(crate) fn add(
        &mut self,
        source: Source,
        length: u32,
        evidence: Evidence,
        followers: &[(Token, u64)],
        latest: Option<Token>,
    ) {
        let Evidence { total, distinct } = evidence;
        self.totals[source as usize] = total;
        let most = followers.iter().map(|&(_, count)| count).max();
        let dominant = float(most.unwrap_or(0)) > DOMINANT * float(total);
        if let Some(token) = latest.filter(|_| distinct > 1) {
            let weight = recency_weight(dominant);
            self.claim(token, weight, 0.0);
            self.mass *= 1.0 - weight;
        }
        let unit = [1, self.unit][source as usize];
        let occurrences = Occurrences { total, unit };
        let weight = weight(source, length, occurrences, distinct, dominant);
        for &(token, count) in followers {
            if token < TOKEN_LIMIT {
                let share = float(count) / float(total);
                self.claim(token, weight * float(count) / float(total), share);
            }
        }
        self.mass *= 1.0 - weight;
    }

    /// Gives a token a part of what is left, for one who says it has this share.
    fn claim(&mut self, token: Token, part: f32, said: f32) {
        let share = self.shares.entry(token);
        share.estimate += self.mass * part;
        share.voices += u32::from(said >= A_VOICE);
    }
}

/// A count as a float. Counts are below 2^63, and signed numbers convert faster.
fn float(count: u64) -> f32 {
    count as i64 as f32
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

/// [`in_units`] of these, without dividing.
#[derive(Clone, Copy)]
struct Occurrences {
    total: u64,
    unit: u64,
}

impl Occurrences {
    /// Whether they are that many or more, of two or more.
    fn reach(self, count: u64) -> bool {
        self.total + self.unit / 2 >= count * self.unit
    }
}

/// The part a context gets of what longer ones have left.
fn weight(
    source: Source,
    length: u32,
    occurrences: Occurrences,
    distinct: u32,
    dominant: bool,
) -> f32 {
    if distinct == 1 {
        let by_count = match source {
            Source::Own => [0.25, 0.48, 0.57, 0.65],
            Source::History => [0.20, 0.33, 0.40, 0.65],
        };
        let bucket = match occurrences {
            some if !some.reach(2) => 0,
            some if !some.reach(3) => 1,
            some if !some.reach(5) => 2,
            _ => 3,
        };
        let by_length = match length {
            0..9 => 0.0,
            9..17 => 0.38,
            _ => 0.58,
        };
        return f32::max(by_count[bucket], by_length);
    }
    let often = occurrences.reach(5);
    match source {
        Source::Own if dominant => 0.25,
        Source::Own if length == 1 && often => 0.40,
        Source::Own => 0.18,
        Source::History if length == 1 => [0.50, 0.80][usize::from(often)],
        Source::History if dominant => [0.25, 0.42][usize::from(often)],
        Source::History => [0.17, 0.30][usize::from(often)],
    }
}
