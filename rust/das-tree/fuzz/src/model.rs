//! A tree as it should be: the naive oracle, beside each token what the target knew when it drew it, and what was counted and
//! when chunks of text were begun, which says which occurrence a place in the tree remembers.

use std::ops::{Deref, DerefMut};

use das_tree::{KnownRows, Observation};

use crate::oracle::{Oracle, START, Text};

/// Entries of a distribution, likeliest first; none where nothing is kept.
pub type Row = Vec<(u32, u8)>;

/// Cells of a row as it is given.
const WIDTH: usize = 8;
/// A token drawn with more than this many 255ths needs no distribution.
const CERTAIN: u8 = 242;

/// Distributions to append along with tokens, made up from a number that is different for each.
pub struct Given {
    ids: Vec<u32>,
    probabilities: Vec<u8>,
    width: usize,
}

impl Given {
    /// For each of the tokens a row of the drawn token and others that occur nowhere else; nothing at all for one number in
    /// four.
    pub fn new(tokens: &[u32], number: u32) -> Self {
        let width = if scatter(number) % 4 < 1 { 0 } else { WIDTH };
        Self::of_width(width, tokens, number)
    }

    /// A row for each of the tokens.
    pub fn full(tokens: &[u32], number: u32) -> Self {
        Self::of_width(WIDTH, tokens, number)
    }

    fn of_width(width: usize, tokens: &[u32], number: u32) -> Self {
        let (mut ids, mut probabilities) = (Vec::new(), Vec::new());
        for (at, &token) in tokens.iter().enumerate().filter(|_| width > 0) {
            let number = number + at as u32;
            let used = scatter(number) >> 8 & 15;
            ids.push(token);
            ids.extend((1..WIDTH as u32).map(|cell| 1000 + (number % 100_000) * 8 + cell));
            probabilities.extend((0..WIDTH as u32).map(|cell| match cell {
                0 if used == 15 => 243,
                cell if cell < used => scatter(number * 8 + cell) as u8,
                _ => 0,
            }));
        }
        Self {
            ids,
            probabilities,
            width,
        }
    }

    pub fn rows(&self) -> KnownRows<'_> {
        KnownRows::new(self.width, &self.ids, &self.probabilities).unwrap()
    }

    /// What is to be kept beside these tokens.
    fn kept(&self, tokens: &[u32]) -> Vec<Row> {
        if self.width == 0 {
            return vec![Row::new(); tokens.len()];
        }
        let cells = self.ids.chunks(WIDTH).zip(self.probabilities.chunks(WIDTH));
        let kept = |(&token, (ids, probabilities)): (&u32, (&[u32], &[u8]))| {
            let cells = ids.iter().copied().zip(probabilities.iter().copied());
            let mut row: Row = cells.filter(|&(_, p)| p > 0).collect();
            row.sort_by_key(|&(id, p)| (std::cmp::Reverse(p), id));
            let certain = row
                .first()
                .is_some_and(|&(id, p)| id == token && p > CERTAIN);
            if certain { Row::new() } else { row }
        };
        tokens.iter().zip(cells).map(kept).collect()
    }
}

fn scatter(number: u32) -> u32 {
    let mixed = (number ^ number >> 15).wrapping_mul(0x2C1B_3C6D);
    (mixed ^ mixed >> 12).wrapping_mul(0x297A_2D39) >> 9
}

/// A token that followed, and the row beside it.
fn plain(found: Observation) -> (u32, Row) {
    let Observation {
        token,
        distribution,
    } = found;
    let probabilities = distribution.probabilities().iter().copied();
    let tokens = distribution.tokens().iter().copied();
    (token, tokens.zip(probabilities).collect())
}

/// An occurrence: which text, and where it starts there.
type Start = (usize, usize);

pub struct Model {
    oracle: Oracle,
    /// Beside each symbol of each text; nothing if distributions are of no interest.
    known: Option<Vec<Vec<Row>>>,
    /// Suffixes in the order they were counted, each with the one of another text in whose place it was, and for each text how
    /// many are.
    events: Vec<(Start, Option<Start>)>,
    counted: Vec<usize>,
    /// When each chunk of each text was begun.
    begun: Vec<Vec<usize>>,
    clock: usize,
}

/// Symbols of a chunk.
pub const CHUNK: usize = 64;

impl Deref for Model {
    type Target = Oracle;

    fn deref(&self) -> &Oracle {
        &self.oracle
    }
}

impl DerefMut for Model {
    fn deref_mut(&mut self) -> &mut Oracle {
        &mut self.oracle
    }
}

impl Model {
    pub fn new(max_depth: usize, unit: u64, knows: bool) -> Self {
        let mut oracle = Oracle::new(max_depth);
        oracle.unit = unit;
        Self {
            oracle,
            known: knows.then(Vec::new),
            events: Vec::new(),
            counted: Vec::new(),
            begun: Vec::new(),
            clock: 0,
        }
    }

    pub fn open(&mut self, prompt: &[u32], weight: u64) -> usize {
        let text = self.texts.len();
        self.oracle.open_weighted(prompt, weight);
        self.counted.push(0);
        self.begun.push(Vec::new());
        self.note_chunks(text);
        if let Some(known) = &mut self.known {
            known.push(vec![Row::new()]);
            self.note_counted(text);
        }
        text
    }

    /// Appends tokens with what was given with them.
    pub fn append(&mut self, text: usize, tokens: &[u32], given: &Given) {
        self.append_kept(text, tokens, &given.kept(tokens));
    }

    /// Appends tokens with what is kept beside them.
    pub fn append_kept(&mut self, text: usize, tokens: &[u32], rows: &[Row]) {
        let Some(known) = &mut self.known else {
            self.oracle.append(text, tokens);
            self.note_chunks(text);
            return;
        };
        known[text].extend_from_slice(rows);
        for &token in tokens {
            self.oracle.append(text, &[token]);
            self.note_counted(text);
        }
        self.note_chunks(text);
    }

    pub fn close(&mut self, text: usize) {
        self.oracle.close(text);
        self.note_chunks(text);
        if self.known.is_some() {
            self.note_counted(text);
        }
    }

    /// Output tokens of a text and what is kept beside them.
    pub fn script(&self, text: usize) -> (Vec<u32>, Vec<Row>) {
        let own = &self.texts[text];
        let range = 1..own.symbols.len() - usize::from(own.closed);
        let rows = self
            .known
            .as_ref()
            .map(|known| known[text][range.clone()].to_vec());
        (own.symbols[range].to_vec(), rows.unwrap_or_default())
    }

    /// Notes the chunks that a text has come to.
    fn note_chunks(&mut self, text: usize) {
        let chunks = self.oracle.texts[text].symbols.len().div_ceil(CHUNK);
        while self.begun[text].len() < chunks {
            self.clock += 1;
            self.begun[text].push(self.clock);
        }
    }

    /// When a chunk of a text was begun.
    pub fn begun(&self, text: usize, chunk: usize) -> usize {
        self.begun[text][chunk]
    }

    /// Notes what was counted when a text grew by its last symbol. A suffix that took another text's leaf over is counted in
    /// that one's stead.
    fn note_counted(&mut self, text: usize) {
        let (before, length) = (self.counted[text], self.oracle.texts[text].symbols.len());
        let mut instead = vec![None; length + 1];
        for (other, theirs) in self.oracle.texts.iter().enumerate() {
            let symbols = theirs.symbols.len();
            let now = symbols - self.oracle.active(other);
            let had = std::mem::replace(&mut self.counted[other], now);
            for lost in (now..had).filter(|_| other != text) {
                instead[symbols - lost + 1] = Some((other, lost));
            }
        }
        let fresh = before..self.counted[text];
        let events = fresh.map(|start| ((text, start), instead[length - start]));
        self.events.extend(events);
    }

    /// The last occurrence of a string, in the order of the text, of those that were counted while there were others.
    fn last(&self, is_there: impl Fn(&Start) -> bool) -> Option<Start> {
        let order = |&(text, start): &Start| (self.begun[text][start / CHUNK], start);
        let (mut counted, mut last) = (Vec::new(), None);
        for &(this, theirs) in &self.events {
            let place = counted.iter().position(|&start| Some(start) == theirs);
            if place.is_some() && counted.len() == 1 {
                (counted, last) = (Vec::new(), None); // nobody else had it: it is forgotten
            } else if let Some(place) = place {
                counted.swap_remove(place);
            }
            if is_there(&this) {
                counted.push(this);
                last = last.into_iter().chain([this]).max_by_key(order);
            }
        }
        last
    }

    /// Checks what is said to have followed the most recent occurrence of a string, of which nothing is asked that is in
    /// the text `except`.
    pub fn check_latest(&self, string: &[u32], except: Option<usize>, found: Option<Observation>) {
        let Some(known) = &self.known else { return };
        let is_there = |&(text, start): &Start| {
            let symbols = &self.texts[text].symbols;
            symbols[start..].starts_with(string)
        };
        let follower = |(text, start): Start| {
            let at = start + string.len();
            let symbol = *self.texts[text].symbols.get(at)?;
            (Some(text) != except && symbol < START).then(|| (symbol, known[text][at].clone()))
        };
        let found = found.map(plain);
        let counted = self.counted.iter().enumerate();
        let counted =
            counted.flat_map(|(text, &counted)| (0..counted).map(move |start| (text, start)));
        let counted: Vec<Start> = counted.filter(is_there).collect();
        let remembered = match counted[..] {
            [] => None,
            [only] => Some(only),
            _ => self.last(is_there),
        };
        let expected = remembered.and_then(follower);
        if counted.len() < 2 || expected.is_some() {
            assert_eq!(found, expected, "latest follower of {string:?}, {except:?}");
        } else if found.is_some() {
            // The one remembered does not do: any other that goes on.
            let all = self.texts.iter().enumerate();
            let mut all =
                all.flat_map(|(text, own)| (0..own.symbols.len()).map(move |start| (text, start)));
            let found_there = |start| is_there(&start) && follower(start) == found;
            assert!(
                all.any(found_there),
                "{found:?} follows {string:?} nowhere, {except:?}"
            );
        }
    }

    /// Checks what is said to have followed the last `length` tokens of a running text, in its own prompt and output.
    pub fn check_latest_own(&self, text: usize, length: usize, found: Option<Observation>) {
        let Some(known) = &self.known else { return };
        let Text {
            prompt, symbols, ..
        } = &self.texts[text];
        let own = [prompt.as_slice(), &symbols[1..]].concat();
        let context = own.len().checked_sub(length).map(|start| &own[start..]);
        let earlier = context.and_then(|context| {
            let starts = 0..own.len() - length;
            starts
                .rev()
                .find(|&start| own[start..].starts_with(context))
        });
        let expected = earlier.map(|start| {
            let at = start + length;
            let row = at
                .checked_sub(prompt.len())
                .map(|output| known[text][output + 1].clone());
            (own[at], row.unwrap_or_default())
        });
        assert_eq!(
            found.map(plain),
            expected,
            "own latest follower at length {length}"
        );
    }
}
