//! Scripts: how bytes are read as calls.

use das_tree::{Coupling, HistoryOptions, Shape};

use crate::world::{Part, Settings, Wanted, World};

/// What a call was, for the statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A rollout opened.
    Open,
    /// Tokens appended; the match length afterwards is compared.
    Append,
    /// A rollout closed.
    Close,
    /// Occurrences of a string.
    Count,
    /// A draft, of a running rollout or of a text that is in no tree.
    Draft,
    /// The next generation: rollouts may expire.
    Advance,
    /// The history saved and loaded.
    Reload,
    /// The whole structure checked.
    Integrity,
    /// A row of a batch step: an append and a draft.
    Step,
    /// What followed most recently, and what was known there.
    Latest,
    /// What the target knew after a draft that was not kept.
    Reject,
    /// A draft, or a row of a batch step, from what was learned too.
    Informed,
}

/// Calls made, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally([u64; 12]);

impl Tally {
    pub(crate) fn note(&mut self, kind: Kind) {
        self.0[kind as usize] += 1;
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a += b);
    }

    /// Calls of one kind.
    pub fn of(&self, kind: Kind) -> u64 {
        self.0[kind as usize]
    }

    /// All calls.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// Bytes, one after another; a script ends where they do.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<usize> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first.into())
    }

    fn below(&mut self, limit: usize) -> Option<usize> {
        Some(self.byte()? % limit)
    }

    fn tokens(&mut self, length: usize, alphabet: usize) -> Option<Vec<u32>> {
        (0..length)
            .map(|_| self.below(alphabet).map(|token| token as u32))
            .collect()
    }
}

/// Runs a script to the end of its bytes and returns the calls made.
///
/// # Panics
/// If an answer differs from the oracle's.
pub fn run(bytes: &[u8]) -> Tally {
    let mut tally = Tally::default();
    let mut reader = Reader(bytes);
    if let Some(mut world) = open_world(&mut reader) {
        while step(&mut reader, &mut world, &mut tally).is_some() {}
        world.finish(&mut tally);
    }
    tally
}

fn open_world(reader: &mut Reader) -> Option<World> {
    let alphabet = [2, 3, 4, 5, 12, 50][reader.below(6)?];
    let max_depth = [2, 3, 4, 8, 16, 64][reader.below(6)?];
    let (most_running, window) = (1 + reader.below(6)?, 1 + reader.below(3)?);
    let kind = reader.byte()?;
    let decay = [1.0, 1.0, 0.5, 0.7][kind % 4];
    // In one script of eight drafts come from what has been learned too, from what rows over all problems say or not.
    let learns = (208..240).contains(&kind);
    let knows = learns || kind / 4 % 2 == 1;
    let options = HistoryOptions {
        window,
        max_depth,
        decay,
        max_bytes: if learns { 1 << 24 } else { 4 << 30 },
        soft: learns,
        shared: learns && kind < 232,
        ..HistoryOptions::default()
    };
    Some(World::new(Settings {
        alphabet,
        most_running,
        knows,
        options,
    }))
}

/// One line of the script; `None` at the end of the bytes.
fn step(reader: &mut Reader, world: &mut World, tally: &mut Tally) -> Option<()> {
    let alphabet = world.settings.alphabet;
    let what = reader.byte()?;
    match what {
        255 => {
            world.reload(tally);
            return Some(());
        }
        247.. => return batch(reader, world, tally),
        239.. if what % 2 == 0 && world.learns() => return reject(reader, world, tally),
        239.. => return latest(reader, world, tally),
        _ => {}
    }
    match what % 18 {
        0..=4 => {
            let (which, length) = (reader.byte()?, 1 + reader.below(4)?);
            world.append(which, &reader.tokens(length, alphabet)?, tally);
        }
        // The same token to all, one after another: leaves change hands.
        5..=6 => world.append_to_all(reader.below(alphabet)? as u32, tally),
        7 => world.copy(reader.byte()?, reader.byte()?, 1 + reader.below(20)?, tally),
        8..=11 => {
            let longest = world.settings.options.max_depth.min(12);
            let (problem, text) = (reader.byte()?, reader.byte()?);
            let (start, length) = (reader.byte()?, 1 + reader.below(longest)?);
            world.count(problem, text, start, length, tally);
        }
        12..=13 => world.draft(reader.byte()?, &wanted(reader, world.learns())?, tally),
        14 => {
            let (problem, length) = (reader.byte()?, 1 + reader.below(12)?);
            let text = reader.tokens(length, alphabet)?;
            world.draft_text(problem, &text, &wanted(reader, world.learns())?, tally);
        }
        15 => {
            let (problem, length) = (reader.byte()?, reader.below(6)?);
            let prompt = reader.tokens(length, alphabet)?;
            world.open(problem, &prompt, weight(reader)?.unwrap_or(1.0), tally);
        }
        16 => world.close(reader.byte()?, weight(reader)?, tally),
        _ => world.advance(tally),
    }
    Some(())
}

/// A batch step. One in eight is so wide that it is spread over threads, if it has rows of both problems.
fn batch(reader: &mut Reader, world: &mut World, tally: &mut Tally) -> Option<()> {
    let (rows, wide) = (1 + reader.below(6)?, reader.below(8)? == 0);
    let mut parts = Vec::new();
    for _ in 0..rows {
        let (which, length) = (reader.byte()?, reader.below(4)?);
        let tokens = reader.tokens(length, world.settings.alphabet)?;
        let mut wanted = wanted(reader, world.learns())?;
        wanted.nodes += if wide { 90 } else { 0 };
        parts.push(Part {
            which,
            tokens,
            wanted,
        });
    }
    world.step(&parts, if wide { 96 } else { 8 }, tally);
    Some(())
}

fn reject(reader: &mut Reader, world: &mut World, tally: &mut Tally) -> Option<()> {
    let alphabet = world.settings.alphabet;
    let (which, places) = (reader.byte()?, 1 + reader.below(3)?);
    let tokens = reader.tokens(3 * places, alphabet)?;
    world.reject(which, &tokens, tally);
    Some(())
}

fn latest(reader: &mut Reader, world: &mut World, tally: &mut Tally) -> Option<()> {
    let longest = world.settings.options.max_depth.min(12);
    let (place, length) = (reader.byte()?, 1 + reader.below(longest)?);
    if place % 2 == 0 {
        world.latest(place / 2, length, tally);
    } else {
        world.latest_follower(place / 2, reader.byte()?, reader.byte()?, length, tally);
    }
    Some(())
}

/// The floors are no products of the blend's weights, so that rounding does not decide what is above them.
fn wanted(reader: &mut Reader, learns: bool) -> Option<Wanted> {
    let nodes = reader.below(13)?;
    let (floor, shape) = [
        (0.0, Shape::Tree),
        (0.0437, Shape::Tree),
        (0.0, Shape::Chain),
    ][reader.below(3)?];
    let coupling = match learns.then(|| reader.byte()) {
        None | Some(Some(0..64)) => Coupling::Blind,
        Some(Some(64..96)) => Coupling::Greedy,
        Some(seed) => Coupling::Seeded {
            seed: seed? as i64,
            position: reader.byte()? as i64,
        },
    };
    Some(Wanted {
        nodes,
        floor,
        shape,
        coupling,
    })
}

/// A rollout's weight; in most cases none is said.
fn weight(reader: &mut Reader) -> Option<Option<f64>> {
    let weights = [
        None,
        None,
        None,
        None,
        Some(0.5),
        Some(2.0),
        Some(1.5),
        Some(0.0),
    ];
    Some(weights[reader.below(8)?])
}
