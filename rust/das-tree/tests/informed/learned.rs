//! What is learned over all problems, the plain way: the parts that evidence takes, what estimates are worth, and rows of what
//! follows a few tokens; and the dice.

use std::collections::BTreeMap;

use das_tree::Coupling;

use crate::numbers::*;

/// A distribution as it is kept: tokens with 255ths, likeliest first, ties to the smaller token.
pub type Row = Vec<(u32, u8)>;
/// Tokens with a probability each.
pub type Votes = Vec<(u32, f32)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Own,
    OwnSure,
    Prompt,
    History,
    HistorySure,
    Rejected2,
    Rejected1,
    Beside,
    SharedApart,
    Shared2,
    Shared1,
    Recent,
}

/// Evidence of one kind, by length of the context and occurrences.
pub type Cell = (Kind, usize, usize);

pub fn cell(kind: Kind, length: usize, times: u64) -> Cell {
    let lengths = [2, 3, 5, 9, 17];
    let counts = [2, 3, 5];
    let length = lengths.iter().filter(|&&from| length >= from).count();
    let times = counts.iter().filter(|&&from| times >= from).count();
    (kind, length, times)
}

fn first_part((kind, length, times): Cell) -> f32 {
    match kind {
        Kind::Own | Kind::OwnSure | Kind::Prompt => OWN[length][times],
        Kind::History | Kind::HistorySure => HISTORY[length][times],
        Kind::Rejected2 => REJECTED2,
        Kind::Rejected1 => REJECTED1,
        Kind::Beside => BESIDE[times],
        Kind::SharedApart | Kind::Shared2 => SHARED2[times],
        Kind::Shared1 => SHARED1[times],
        Kind::Recent => RECENT,
    }
}

/// What came of how much.
#[derive(Clone, Copy, Debug)]
struct Fraction {
    part: f32,
    all: f32,
}

impl Fraction {
    fn new(share: f32, all: f32) -> Self {
        let part = share * all;
        Self { part, all }
    }

    fn share(self) -> f32 {
        self.part / self.all
    }

    fn learn(&mut self, share: f32, weight: f32, memory: f32) {
        if self.all + weight > memory {
            self.part *= (memory - weight) / self.all;
            self.all = memory - weight;
        }
        self.all += weight;
        self.part = (self.part + weight * share).clamp(0.0, self.all);
    }
}

/// What a token is given.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    pub estimate: f32,
    pub voices: u32,
}

/// A running mean of distributions, of which the largest entries are kept, in the order they came.
#[derive(Clone, Debug, Default)]
pub struct Mixture {
    pub seen: u32,
    pub entries: Votes,
}

impl Mixture {
    pub fn learn(&mut self, token: u32, row: &Row, room: usize, memory: u32) {
        self.seen += 1;
        let rate = 1.0 / self.seen.min(memory) as f32;
        for entry in &mut self.entries {
            entry.1 *= 1.0 - rate;
        }
        if row.is_empty() {
            self.add(token, rate, room);
        }
        for (token, p) in plain(row) {
            self.add(token, rate * p, room);
        }
    }

    fn add(&mut self, token: u32, share: f32, room: usize) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.0 == token) {
            entry.1 += share;
        } else if self.entries.len() < room {
            self.entries.push((token, share));
        } else {
            // The smallest gives way, the last of equals.
            let smallest = self.entries.iter().rev();
            let smallest = smallest.min_by(|one, other| one.1.total_cmp(&other.1));
            let (least, p) = *smallest.expect("there is room for some");
            if p < share {
                let place = self.entries.iter().position(|entry| entry.0 == least);
                self.entries[place.expect("found above")] = (token, share);
            }
        }
    }
}

/// A distribution's entries as probabilities.
pub fn plain(row: &Row) -> Votes {
    row.iter()
        .map(|&(t, p)| (t, f32::from(p) / 255.0))
        .collect()
}

/// Whose a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Of {
    All,
    /// A problem's, of drafts not kept.
    Rejected(u64),
    /// A problem's, of a token and what could have been in its place.
    Beside(u64),
}

/// What is learned over all problems.
#[derive(Clone, Debug, Default)]
pub struct Learned {
    parts: BTreeMap<Cell, Fraction>,
    /// By group of voices and log-odds.
    worth: BTreeMap<(u32, i32), Fraction>,
    rows: BTreeMap<(Of, Vec<u32>), Mixture>,
}

impl Learned {
    pub fn part(&self, cell: Cell) -> f32 {
        self.fraction(cell).share()
    }

    fn fraction(&self, cell: Cell) -> Fraction {
        let first = || Fraction::new(first_part(cell), TRUST_PRIOR);
        self.parts.get(&cell).copied().unwrap_or_else(first)
    }

    /// Learns what part each piece of evidence deserved, given what it gave the token that came, in order. `before` is what counts
    /// gave it, `left` what they left.
    pub fn judge(&mut self, given: &[(Cell, f32)], before: f32, left: f32) {
        let all = left * self.from(given);
        let mut reach = all / (before + all).max(f32::MIN_POSITIVE);
        for (i, &(cell, p)) in given.iter().enumerate() {
            if reach < LEAST_REACH {
                break;
            }
            let part = self.part(cell);
            let here = part * p;
            let deserved = here / (here + (1.0 - part) * self.from(&given[i + 1..]));
            let mut fraction = self.fraction(cell);
            fraction.learn(deserved, reach, TRUST_MEMORY);
            self.parts.insert(cell, fraction);
            reach *= 1.0 - deserved;
        }
    }

    /// What evidence gives the token, of what is left before it.
    fn from(&self, given: &[(Cell, f32)]) -> f32 {
        match given {
            [] => UNNAMED,
            [(cell, p), rest @ ..] => {
                let part = self.part(*cell);
                part * p + (1.0 - part) * self.from(rest)
            }
        }
    }

    fn knot(&self, group: u32, knot: i32) -> Fraction {
        let first = || {
            let odds = (knot as f32).exp();
            Fraction::new(odds / (1.0 + odds), WORTH_PRIOR)
        };
        self.worth
            .get(&(group, knot))
            .copied()
            .unwrap_or_else(first)
    }

    /// The group of an estimate, the knot below it, and how far on to the next it is.
    fn place(share: Share) -> (u32, i32, f32) {
        let odds = (share.estimate / f32::max(1.0 - share.estimate, 1e-6)).ln();
        let odds = odds.clamp(-LAST_KNOT as f32, LAST_KNOT as f32) + LAST_KNOT as f32;
        let knot = (odds.floor() as i32).min(2 * LAST_KNOT - 1);
        let group = share.voices.clamp(1, GROUPS);
        (group, knot - LAST_KNOT, odds - knot as f32)
    }

    /// What an estimate is worth.
    pub fn worth(&self, share: Share) -> f32 {
        let (group, knot, along) = Self::place(share);
        self.knot(group, knot).share() * (1.0 - along) + self.knot(group, knot + 1).share() * along
    }

    /// Learns whether what was estimated came.
    pub fn compare(&mut self, share: Share, came: bool) {
        let (group, knot, along) = Self::place(share);
        let missed = if came { 1.0 } else { 0.0 } - self.worth(share);
        for (knot, weight) in [(knot, 1.0 - along), (knot + 1, along)] {
            let mut fraction = self.knot(group, knot);
            fraction.learn(fraction.share() + missed, weight, WORTH_MEMORY);
            self.worth.insert((group, knot), fraction);
        }
    }

    /// Learns what follows a context.
    pub fn follow(&mut self, of: Of, context: &[u32], token: u32, row: &Row) {
        let mixture = self.rows.entry((of, context.to_vec())).or_default();
        mixture.learn(token, row, ROW_ENTRIES, ROW_MEMORY);
        for entry in &mut mixture.entries {
            entry.1 = (entry.1 * ROW_UNIT).floor() / ROW_UNIT;
        }
        mixture.entries.retain(|entry| entry.1 > 0.0);
    }

    pub fn row(&self, of: Of, context: &[u32]) -> Option<&Mixture> {
        self.rows.get(&(of, context.to_vec()))
    }

    /// How far it has come: the most observations behind a part, and behind a knot.
    pub fn most_seen(&self) -> (f32, f32) {
        let most = |all: Vec<f32>| all.into_iter().fold(0.0, f32::max);
        (
            most(self.parts.values().map(|fraction| fraction.all).collect()),
            most(self.worth.values().map(|fraction| fraction.all).collect()),
        )
    }
}

/// The first token of a row, and so the likeliest, that is another one.
pub fn instead(token: u32, row: &Row) -> Option<u32> {
    row.iter()
        .map(|entry| entry.0)
        .find(|&other| other != token)
}

/// The context of the last of three tokens and the first of them, whatever is between.
pub fn apart(tokens: &[u32]) -> Vec<u32> {
    vec![tokens[0], u32::MAX, tokens[2]]
}

/// How likely each entry is to be what the target picks, by what is known of how it will, `depth` tokens on.
pub fn votes(coupling: Coupling, depth: usize, entries: &Votes) -> Votes {
    let (seed, position) = match coupling {
        Coupling::Blind => return at_least(LEAST_VOTE, entries.clone()),
        Coupling::Greedy => {
            let largest = entries.iter().map(|entry| entry.1).fold(0.0, f32::max);
            let first = entries.iter().find(|entry| entry.1 == largest);
            return first.map(|entry| (entry.0, 1.0)).into_iter().collect();
        }
        Coupling::Seeded { seed, position } => (seed, position.wrapping_add(depth as i64)),
    };
    let odds: Votes = entries
        .iter()
        .map(|&(token, p)| (token, p / wait(seed, position, token)))
        .collect();
    let known: f32 = entries.iter().map(|entry| entry.1).sum();
    let sum: f32 =
        odds.iter().map(|entry| entry.1).sum::<f32>() + TAIL * (1.0 - known).max(LEAST_TAIL);
    at_least(
        LEAST_VOTE,
        odds.iter()
            .map(|&(token, odds)| (token, odds / sum))
            .collect(),
    )
}

fn at_least(least: f32, mut votes: Votes) -> Votes {
    votes.retain(|vote| vote.1 >= least);
    votes
}

/// -log u, with u = hash / (2^32 - 1) in single precision.
fn wait(seed: i64, position: i64, token: u32) -> f32 {
    let u = (f64::from(murmur3(seed, position, token)) / f64::from(u32::MAX)) as f32;
    ((-f64::from(u).ln()) as f32).clamp(2.4e-10, 1e30)
}

/// MurmurHash3 (x86, 32 bits, seed 0) of the sixteen bytes seed, low half of the position, token.
fn murmur3(seed: i64, position: i64, token: u32) -> u32 {
    let words = [seed as u32, (seed >> 32) as u32, position as u32, token];
    let mut hash = 0u32;
    for word in words {
        let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15);
        hash ^= word.wrapping_mul(0x1b87_3593);
        hash = hash
            .rotate_left(13)
            .wrapping_mul(5)
            .wrapping_add(0xe654_6b64);
    }
    hash ^= 16;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}
