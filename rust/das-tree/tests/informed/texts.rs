//! A problem's texts with the distributions beside their tokens, and which occurrence of a string is remembered.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    learned::Row,
    numbers::{EDGES, FAMILIAR},
    oracle::{Oracle, START},
};

/// An occurrence: which text, and where it starts there.
type Start = (usize, usize);

/// What became of a suffix when a text grew by a token.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// It is counted from now on.
    Counted(Start),
    /// It is counted from now on in the place of one of another text.
    InPlaceOf(Start, Start),
}

/// The texts in one tree.
#[derive(Clone, Debug)]
pub struct Texts {
    pub oracle: Oracle,
    /// Beside each symbol of each text, what is kept there, and when the symbol came.
    rows: Vec<Vec<Row>>,
    times: Vec<Vec<usize>>,
    clock: usize,
    events: Vec<Event>,
    /// Suffixes counted of each text.
    counted: Vec<usize>,
    /// Whether each symbol of each text was new where it came: the tokens before it were followed by another, or nowhere else.
    new: Vec<Vec<bool>>,
    /// Whether any distribution has been kept.
    pub knows: bool,
}

/// Symbols of a chunk.
pub const CHUNK: usize = 64;

/// The counted occurrences of a string, and of all that were counted since there is a place that remembers, the first and the last.
#[derive(Default)]
struct Memory {
    counted: Vec<Start>,
    first: Option<Start>,
    last: Option<Start>,
}

impl Texts {
    pub fn new(max_depth: usize, unit: u64) -> Self {
        let mut oracle = Oracle::new(max_depth);
        oracle.unit = unit;
        Self {
            oracle,
            rows: Vec::new(),
            times: Vec::new(),
            clock: 0,
            events: Vec::new(),
            counted: Vec::new(),
            new: Vec::new(),
            knows: false,
        }
    }

    pub fn open(&mut self, prompt: &[u32], weight: u64) -> usize {
        self.oracle.open_weighted(prompt, weight);
        self.rows.push(Vec::new());
        self.times.push(Vec::new());
        self.counted.push(0);
        self.new.push(Vec::new());
        let text = self.counted.len() - 1;
        self.note(text, Row::new());
        text
    }

    /// Appends tokens with what is to be kept beside them.
    pub fn append(&mut self, text: usize, tokens: &[(u32, Row)]) {
        for (token, row) in tokens {
            self.oracle.append(text, &[*token]);
            self.note(text, row.clone());
        }
    }

    pub fn close(&mut self, text: usize) {
        self.oracle.close(text);
        self.note(text, Row::new());
    }

    pub fn symbols(&self, text: usize) -> &[u32] {
        &self.oracle.texts[text].symbols
    }

    pub fn row(&self, text: usize, at: usize) -> &Row {
        &self.rows[text][at]
    }

    /// Whether a symbol of a text was new where it came.
    pub fn is_new(&self, text: usize, at: usize) -> bool {
        self.new[text][at]
    }

    /// Suffixes counted of a text.
    pub fn counted(&self, text: usize) -> usize {
        self.counted[text]
    }

    /// Tokens of a text and what is kept beside them.
    pub fn script(&self, text: usize) -> Vec<(u32, Row)> {
        let all = self
            .symbols(text)
            .iter()
            .copied()
            .zip(self.rows[text].iter().cloned());
        all.filter(|(symbol, _)| *symbol < START).collect()
    }

    /// Notes that a text has grown by a symbol.
    fn note(&mut self, text: usize, row: Row) {
        self.clock += 1;
        self.knows |= !row.is_empty();
        self.rows[text].push(row);
        self.times[text].push(self.clock);
        self.new[text].push(self.oracle.active(text) <= FAMILIAR);
        let length = self.symbols(text).len();
        let before = self.counted[text];
        // Suffixes of others that are no longer counted, by their length.
        let mut lost = BTreeMap::new();
        for other in 0..self.counted.len() {
            let symbols = self.symbols(other).len();
            let now = symbols - self.oracle.active(other);
            let had = std::mem::replace(&mut self.counted[other], now);
            lost.extend((now..had).map(|start| (symbols - start, (other, start))));
        }
        for start in before..self.counted[text] {
            let this = (text, start);
            let event = match lost.get(&(length - 1 - start)) {
                Some(&theirs) => Event::InPlaceOf(theirs, this),
                None => Event::Counted(this),
            };
            self.events.push(event);
        }
    }

    fn has(&self, (text, start): Start, string: &[u32]) -> bool {
        self.symbols(text)[start..].starts_with(string)
    }

    fn memory(&self, string: &[u32]) -> Memory {
        let mut memory = Memory::default();
        for &event in &self.events {
            let (Event::Counted(this) | Event::InPlaceOf(_, this)) = event;
            if let Event::InPlaceOf(theirs, _) = event
                && let Some(place) = memory.counted.iter().position(|&start| start == theirs)
            {
                if !self.has(this, string) {
                    // It was counted when it was shorter than the string, and is no more.
                    memory = Memory::default();
                    continue;
                }
                memory.counted[place] = this;
                if memory.counted.len() == 1 {
                    (memory.first, memory.last) = (None, None);
                }
                self.remember(&mut memory, this);
                continue;
            }
            if self.has(this, string) {
                memory.counted.push(this);
                self.remember(&mut memory, this);
            }
        }
        memory
    }

    fn remember(&self, memory: &mut Memory, this: Start) {
        let order = |&start: &Start| self.order(start);
        memory.first = memory.first.into_iter().chain([this]).min_by_key(order);
        memory.last = memory.last.into_iter().chain([this]).max_by_key(order);
    }

    /// What has followed a string.
    fn followers(&self, string: &[u32]) -> Vec<u32> {
        let mut followers = BTreeSet::new();
        for text in 0..self.times.len() {
            let windows = self.symbols(text).windows(string.len() + 1);
            let grown = windows.filter(|window| window.starts_with(string));
            followers.extend(grown.filter_map(|window| window.last()));
        }
        followers.into_iter().collect()
    }

    /// Text comes in chunks of 64 symbols; a chunk that was begun later comes after.
    fn order(&self, (text, start): Start) -> (usize, usize) {
        (self.begun(text, start / CHUNK), start)
    }

    /// When a chunk of a text was begun.
    pub fn begun(&self, text: usize, chunk: usize) -> usize {
        self.times[text][chunk * CHUNK]
    }

    /// What followed a string in its last occurrence, and what is kept there. If that is one of the text `except`, or nothing
    /// followed, then in another that the place, or one below it, remembers.
    pub fn latest(&self, string: &[u32], except: Option<usize>) -> Option<(u32, Row)> {
        let follower = |(text, start): Start| {
            let at = start + string.len();
            let symbol = *self.symbols(text).get(at)?;
            (Some(text) != except && symbol < START).then(|| (symbol, self.rows[text][at].clone()))
        };
        let memory = self.memory(string);
        if memory.counted.len() < 2 {
            return memory.counted.first().copied().and_then(follower);
        }
        let last = memory.last.and_then(follower);
        last.or_else(|| {
            let mut branching = string.to_vec();
            while let [only] = self.followers(&branching)[..] {
                if branching.len() == self.oracle.max_depth {
                    break;
                }
                branching.push(only);
            }
            let longer = |token: u32| [&branching[..], &[token]].concat();
            let mut edges = self.followers(&branching);
            edges.sort_by_key(|&token| (Reverse(self.oracle.count(&longer(token))), token));
            edges.truncate(if branching.len() < self.oracle.max_depth {
                EDGES
            } else {
                0
            });
            let below = edges
                .iter()
                .filter_map(|&token| self.memory(&longer(token)).last);
            let usable = below
                .chain(memory.first)
                .filter(|&start| follower(start).is_some());
            usable
                .max_by_key(|&start| self.order(start))
                .and_then(follower)
        })
    }
}
