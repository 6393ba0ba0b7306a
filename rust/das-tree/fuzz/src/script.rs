//! Scripts: how bytes are read as calls.

use das_tree::Shape;

use crate::world::World;

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
    /// The whole structure checked.
    Integrity,
}

/// Calls made, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally([u64; 7]);

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
        let alphabet = world.alphabet;
        while step(&mut reader, &mut world, alphabet, &mut tally).is_some() {}
        world.finish(&mut tally);
    }
    tally
}

fn open_world(reader: &mut Reader) -> Option<World> {
    let alphabet = [2, 3, 4, 5, 12, 50][reader.below(6)?];
    let max_depth = [2, 3, 4, 8, 16, 64][reader.below(6)?];
    let (most_running, window) = (1 + reader.below(6)?, 1 + reader.below(3)?);
    Some(World::new(alphabet, max_depth, most_running, window))
}

/// One line of the script; `None` at the end of the bytes.
fn step(reader: &mut Reader, world: &mut World, alphabet: usize, tally: &mut Tally) -> Option<()> {
    match reader.below(18)? {
        0..=4 => {
            let (which, length) = (reader.byte()?, 1 + reader.below(4)?);
            world.append(which, &reader.tokens(length, alphabet)?, tally);
        }
        // The same token to all, one after another: leaves change hands.
        5..=6 => world.append_to_all(reader.below(alphabet)? as u32, tally),
        7 => world.copy(reader.byte()?, reader.byte()?, 1 + reader.below(20)?, tally),
        8..=11 => {
            let (problem, text) = (reader.byte()?, reader.byte()?);
            let (start, length) = (reader.byte()?, 1 + reader.below(max_count(world))?);
            world.count(problem, text, start, length, tally);
        }
        12..=13 => {
            let which = reader.byte()?;
            let (nodes, floor, shape) = draft_options(reader)?;
            world.draft(which, nodes, floor, shape, tally);
        }
        14 => {
            let problem = reader.byte()?;
            let length = 1 + reader.below(12)?;
            let text = reader.tokens(length, alphabet)?;
            let (nodes, floor, shape) = draft_options(reader)?;
            world.draft_text(problem, &text, nodes, floor, shape, tally);
        }
        15 => {
            let (problem, length) = (reader.byte()?, reader.below(6)?);
            world.open(problem, &reader.tokens(length, alphabet)?, tally);
        }
        16 => world.close(reader.byte()?, tally),
        _ => world.advance(tally),
    }
    Some(())
}

fn max_count(world: &World) -> usize {
    world.max_depth.min(12)
}

/// The floors are no products of the blend's weights, so that rounding does not decide what is above them.
fn draft_options(reader: &mut Reader) -> Option<(usize, f32, Shape)> {
    let nodes = reader.below(13)?;
    let (floor, shape) = [
        (0.0, Shape::Tree),
        (0.0437, Shape::Tree),
        (0.0, Shape::Chain),
    ][reader.below(3)?];
    Some((nodes, floor, shape))
}
