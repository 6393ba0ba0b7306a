//! A problem's texts with the distributions beside their tokens, and which occurrence of a string is remembered.

use std::collections::BTreeMap;

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

/// The counted occurrences of a string, the one it was first counted for when it had a second, and the one counted last.
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
        let weight = |start: Start| self.oracle.texts[start.0].weight;
        let mut memory = Memory::default();
        for &event in &self.events {
            let (Event::Counted(this) | Event::InPlaceOf(_, this)) = event;
            if let Event::InPlaceOf(theirs, _) = event {
                if let Some(place) = memory.counted.iter().position(|&start| start == theirs) {
                    if !self.has(this, string) {
                        // It was counted when it was shorter than the string, and is no more.
                        memory = Memory::default();
                        continue;
                    }
                    memory.counted[place] = this;
                    if memory.counted.len() > 1 && weight(theirs) != weight(this) {
                        memory.last = Some(this);
                    }
                    continue;
                }
            }
            if self.has(this, string) {
                if memory.counted.len() == 1 {
                    memory.first = Some(memory.counted[0]);
                }
                memory.counted.push(this);
                memory.last = Some(this);
            }
        }
        memory
    }

    /// The one occurrence, or the one counted last.
    fn remembered(&self, string: &[u32]) -> Option<Start> {
        let memory = self.memory(string);
        match memory.counted[..] {
            [only] => Some(only),
            _ => memory.last,
        }
    }

    /// What has followed a string, in the order in which it did first.
    fn followers(&self, string: &[u32]) -> Vec<u32> {
        let mut first: BTreeMap<u32, usize> = BTreeMap::new();
        for (text, times) in self.times.iter().enumerate() {
            let symbols = self.symbols(text);
            for start in 0..symbols.len().saturating_sub(string.len()) {
                if symbols[start..].starts_with(string) {
                    let at = start + string.len();
                    let time = first.entry(symbols[at]).or_insert(usize::MAX);
                    *time = times[at].min(*time);
                }
            }
        }
        let mut followers: Vec<u32> = first.keys().copied().collect();
        followers.sort_by_key(|token| first[token]);
        followers
    }

    /// Text comes in chunks of 64 symbols; a chunk that was begun later comes after.
    fn order(&self, (text, start): Start) -> (usize, usize) {
        (self.times[text][start / 64 * 64], start)
    }

    /// What followed a string in the occurrence that is remembered, and what is kept there. If that is one of the text `except`, or
    /// nothing followed, then in another that the place remembers.
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
            let mut edges = self.followers(&branching);
            edges.truncate(if branching.len() < self.oracle.max_depth {
                EDGES
            } else {
                0
            });
            let below = edges
                .iter()
                .filter_map(|&token| self.remembered(&[&branching[..], &[token]].concat()));
            let usable = below
                .chain(memory.first)
                .filter(|&start| follower(start).is_some());
            usable
                .max_by_key(|&start| self.order(start))
                .and_then(follower)
        })
    }
}
