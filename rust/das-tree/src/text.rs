//! The text of a tree: every sequence's own log of tokens, in chunks of 64 that any number of threads can add at once.
//!
//! A position names a token for good: `chunk * 64 + offset`. Since no string in the tree is longer than 64 tokens, reading
//! one from its start crosses at most one chunk border, and so does going back to the start of one from its end.

use crate::{
    arena::Arena,
    id::{NONE, Pos, SeqId, Token},
    known::{Distribution, KnownLog},
    meter::Meter,
    sync::{AtomicBool, AtomicU32, AtomicU64, OnceLock, Ordering},
};

/// Tokens in a chunk, and the largest depth a tree may have.
pub(crate) const CHUNK: u32 = if cfg!(loom) { 4 } else { 64 };
/// Longest sequence, markers included: its length shares a word with the active point.
pub(crate) const MAX_SEQUENCE: usize = (1 << 24) - 1;
/// Chunks a tree may have: of as many tokens all nodes have names.
const MAX_CHUNKS: u32 = 1 << 23;
/// Names of chunks have 25 bits, so positions have 31.
const CHUNK_BITS: u32 = if cfg!(loom) { 8 } else { 18 };

/// 64 consecutive tokens of one sequence.
#[derive(Debug)]
pub(crate) struct Chunk {
    tokens: [AtomicU32; CHUNK as usize],
    /// The sequence these tokens belong to. Set once.
    owner: AtomicU32,
    /// Offset in the sequence of the first token here. Set once.
    base: AtomicU32,
    /// The chunks before and after; `NONE` if there is none. Each set once.
    previous: AtomicU32,
    next: AtomicU32,
    /// The side log of these tokens (see `known.rs`); `NONE` as long as it is empty.
    known: AtomicU32,
    /// A bit for each token that was new where it came (see [`Text::mark_new`]). Written by whoever indexes.
    new: AtomicU64,
}

impl Default for Chunk {
    fn default() -> Self {
        Self {
            tokens: std::array::from_fn(|_| AtomicU32::new(0)),
            owner: AtomicU32::new(0),
            base: AtomicU32::new(0),
            previous: AtomicU32::new(NONE),
            next: AtomicU32::new(NONE),
            known: AtomicU32::new(NONE),
            new: AtomicU64::new(0),
        }
    }
}

/// What is known of one sequence.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Tokens published, markers included. Written by the sequence's appender.
    len: AtomicU32,
    /// First and last chunk. Written by the appender.
    first: AtomicU32,
    last: AtomicU32,
    /// Where indexing stands: see [`Active`]. Written by whoever indexes.
    active: AtomicU64,
    /// The chunk of the next token to index. Written by whoever indexes.
    pub(crate) index_chunk: AtomicU32,
    /// Whether the sequence is on the tree's list of those with tokens to index, and the one after it there.
    pub(crate) queued: AtomicBool,
    pub(crate) next_queued: AtomicU32,
    /// What each occurrence in this sequence counts. Set once.
    weight: AtomicU64,
}

/// A sequence's place in the tree: its longest suffix that occurs elsewhere (up to the depth cap) ends `along` tokens
/// below `node`. Valid for the first `indexed` tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Active {
    pub(crate) indexed: u32,
    pub(crate) node: u32,
    pub(crate) along: u32,
}

impl Active {
    fn to_bits(self) -> u64 {
        u64::from(self.indexed) << 40 | u64::from(self.along) << 32 | u64::from(self.node)
    }

    fn from_bits(bits: u64) -> Self {
        Self {
            indexed: (bits >> 40) as u32,
            along: (bits >> 32) as u32 & 0xff,
            node: bits as u32,
        }
    }
}

impl Record {
    /// Tokens that may be read.
    pub(crate) fn len(&self) -> u32 {
        self.len.load(Ordering::Acquire) // pairs with `append`: tokens and chunk links before this length are visible
    }

    pub(crate) fn active(&self) -> Active {
        Active::from_bits(self.active.load(Ordering::Acquire)) // pairs with `set_active`: what it points to is visible
    }

    pub(crate) fn set_active(&self, active: Active) {
        self.active.store(active.to_bits(), Ordering::Release); // pairs with `active`
    }

    pub(crate) fn weight(&self) -> u64 {
        self.weight.load(Ordering::Relaxed) // set before the sequence's first length was published
    }

    pub(crate) fn first_chunk(&self) -> u32 {
        self.first.load(Ordering::Relaxed) // set before the sequence's first length was published
    }
}

/// All sequences' tokens.
#[derive(Debug)]
pub(crate) struct Text {
    chunks: Arena<Chunk, CHUNK_BITS>,
    records: Arena<Record, 24>,
    /// Made when the first distribution comes.
    log: OnceLock<Box<KnownLog>>,
    /// The weight of all sequences if they have the same, [`MIXED`] if not.
    common_weight: AtomicU64,
}

/// No sequence yet, so no common weight; sequences of different weights.
const UNKNOWN: u64 = 0;
const MIXED: u64 = u64::MAX;

impl Text {
    pub(crate) fn new(meter: &Meter) -> Self {
        let text = Self {
            chunks: Arena::new(),
            records: Arena::new(),
            log: OnceLock::new(),
            common_weight: AtomicU64::new(UNKNOWN),
        };
        text.chunks.push(meter); // chunk 0 stands for `NONE`
        text
    }

    pub(crate) fn record(&self, id: SeqId) -> &Record {
        self.records.nth(id)
    }

    pub(crate) fn sequences(&self) -> u32 {
        self.records.len()
    }

    /// A new sequence each of whose occurrences counts `weight`.
    pub(crate) fn open(&self, weight: u64, meter: &Meter) -> SeqId {
        let id = self.records.push_nth(meter);
        self.record(id).weight.store(weight, Ordering::Relaxed); // published by the first store of `len`
        // Relaxed: who sees an occurrence in this sequence has acquired, by way of its first length, what is stored here.
        let known = self.common_weight.compare_exchange(
            UNKNOWN,
            weight,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        if known.is_err_and(|common| common != weight) {
            self.common_weight.store(MIXED, Ordering::Relaxed); // as above
        }
        id
    }

    /// What the suffix that starts at `pos` counts.
    #[inline]
    pub(crate) fn weight(&self, pos: Pos) -> u64 {
        let common = self.common_weight.load(Ordering::Relaxed); // see `open`
        if common == MIXED {
            self.record(self.owner(pos).0).weight()
        } else {
            common
        }
    }

    /// Whether `more` tokens would go beyond what positions can name.
    pub(crate) fn is_full(&self, more: usize) -> bool {
        self.chunks.len() as usize + more / CHUNK as usize + 2 > MAX_CHUNKS as usize
    }

    /// Appends to a sequence's log, with what was known of each token if anything was, and publishes the new length. One
    /// thread at a time per sequence.
    pub(crate) fn append(
        &self,
        id: SeqId,
        tokens: impl Iterator<Item = Token>,
        mut known: Option<impl Iterator<Item = Distribution>>,
        meter: &Meter,
    ) {
        let record = self.record(id);
        let mut len = record.len.load(Ordering::Relaxed); // only this thread writes it
        let mut last = record.last.load(Ordering::Relaxed); // as above
        for token in tokens {
            if len.is_multiple_of(CHUNK) {
                last = self.add_chunk(id, len, last, meter);
            }
            let chunk = self.chunks.get(last);
            chunk.tokens[(len % CHUNK) as usize].store(token, Ordering::Relaxed); // published by the store of `len`
            let distribution = known.as_mut().and_then(Iterator::next);
            if let Some(distribution) = distribution.filter(|known| !known.is_empty()) {
                self.note(chunk, len % CHUNK, &distribution, meter);
            }
            len += 1;
        }
        record.len.store(len, Ordering::Release); // publishes tokens, chunk fields and links; pairs with `len`
    }

    /// Notes what was known of the token at `offset` of a chunk.
    fn note(&self, chunk: &Chunk, offset: u32, distribution: &Distribution, meter: &Meter) {
        if self.log.get().is_none() && self.log.set(Box::default()).is_ok() {
            meter.add(size_of::<KnownLog>());
        }
        let log = self.log.get().expect("made above");
        let mut known = chunk.known.load(Ordering::Relaxed); // only this thread writes it
        if known == NONE {
            known = log.open(meter);
            chunk.known.store(known, Ordering::Relaxed); // published by the store of `len`
        }
        log.push(known, offset, distribution, meter);
    }

    fn add_chunk(&self, id: SeqId, base: u32, previous: u32, meter: &Meter) -> u32 {
        let fresh = self.chunks.push(meter);
        let chunk = self.chunks.get(fresh);
        chunk.owner.store(id, Ordering::Relaxed); // this and the next four: published by the store of `len`
        chunk.base.store(base, Ordering::Relaxed);
        chunk.previous.store(previous, Ordering::Relaxed);
        let record = self.record(id);
        record.last.store(fresh, Ordering::Relaxed);
        let link = if previous == NONE {
            &record.first
        } else {
            &self.chunks.get(previous).next
        };
        link.store(fresh, Ordering::Relaxed);
        fresh
    }

    /// The token `ahead` (at most 64) places after `pos`, which must have been published.
    #[inline]
    pub(crate) fn token(&self, pos: Pos, ahead: u32) -> Token {
        let chunk = self.chunks.get(pos / CHUNK);
        let offset = pos % CHUNK + ahead;
        if offset < CHUNK {
            return chunk.tokens[offset as usize].load(Ordering::Relaxed); // published with the sequence's length
        }
        let next = self.chunks.get(chunk.next.load(Ordering::Relaxed)); // as above
        next.tokens[(offset - CHUNK) as usize].load(Ordering::Relaxed) // as above
    }

    /// What the target knew when it drew the token `ahead` (at most 64) places after `pos`, which must have been
    /// published; empty if that was not noted.
    pub(crate) fn known(&self, pos: Pos, ahead: u32) -> Distribution {
        let mut chunk = self.chunks.get(pos / CHUNK);
        let mut offset = pos % CHUNK + ahead;
        if offset >= CHUNK {
            chunk = self.chunks.get(chunk.next.load(Ordering::Relaxed)); // published with the sequence's length
            offset -= CHUNK;
        }
        let known = chunk.known.load(Ordering::Relaxed); // as above
        match self.log.get() {
            Some(log) if known != NONE => log.get(known, offset),
            _ => Distribution::default(),
        }
    }

    /// Notes that the token at `pos`, which is being indexed, has not followed the tokens before it elsewhere.
    pub(crate) fn mark_new(&self, pos: Pos) {
        let new = &self.chunks.get(pos / CHUNK).new;
        let bits = new.load(Ordering::Relaxed) | 1 << (pos % CHUNK); // only whoever indexes writes it
        new.store(bits, Ordering::Relaxed); // published with what the sequence has indexed
    }

    /// Whether the token at `pos`, which must have been indexed, was new where it came.
    pub(crate) fn is_new(&self, pos: Pos) -> bool {
        let bits = self.chunks.get(pos / CHUNK).new.load(Ordering::Relaxed); // published with what has been indexed
        bits >> (pos % CHUNK) & 1 == 1
    }

    /// The position `steps` (at most 64) places before `pos` in the same sequence.
    pub(crate) fn back(&self, pos: Pos, steps: u32) -> Pos {
        let offset = pos % CHUNK;
        if offset >= steps {
            return pos - steps;
        }
        let previous = self
            .chunks
            .get(pos / CHUNK)
            .previous
            .load(Ordering::Relaxed); // published with the length
        previous * CHUNK + CHUNK + offset - steps
    }

    /// The sequence a position lies in, and its offset there.
    pub(crate) fn owner(&self, pos: Pos) -> (SeqId, u32) {
        let chunk = self.chunks.get(pos / CHUNK);
        let base = chunk.base.load(Ordering::Relaxed); // published with the sequence's length
        (chunk.owner.load(Ordering::Relaxed), base + pos % CHUNK) // as above
    }

    /// The chunk after `chunk`; the caller knows that tokens there have been published.
    pub(crate) fn next_chunk(&self, chunk: u32) -> u32 {
        self.chunks.get(chunk).next.load(Ordering::Relaxed) // published with the sequence's length
    }

    /// Whether any distribution has been noted.
    pub(crate) fn has_known(&self) -> bool {
        self.log.get().is_some()
    }

    /// The positions of a sequence's published symbols, markers included.
    pub(crate) fn places(&self, id: SeqId) -> impl Iterator<Item = Pos> {
        let record = self.record(id);
        let (len, mut chunk) = (record.len(), record.first_chunk());
        (0..len).map(move |offset| {
            if offset > 0 && offset % CHUNK == 0 {
                chunk = self.next_chunk(chunk);
            }
            chunk * CHUNK + offset % CHUNK
        })
    }

    /// A sequence's published symbols from offset `from` on, markers included.
    pub(crate) fn symbols(&self, id: SeqId, from: u32) -> Vec<Token> {
        let record = self.record(id);
        let len = record.len();
        let mut symbols = Vec::with_capacity(len.saturating_sub(from) as usize);
        let (mut chunk, mut offset) = (record.first_chunk(), 0);
        while offset < len {
            if offset + CHUNK > from {
                let slots = &self.chunks.get(chunk).tokens[..(len - offset).min(CHUNK) as usize];
                let skip = from.saturating_sub(offset) as usize;
                symbols.extend(
                    slots[skip..]
                        .iter()
                        .map(|slot| slot.load(Ordering::Relaxed)),
                ); // published with `len`
            }
            offset += CHUNK;
            chunk = self.next_chunk(chunk);
        }
        symbols
    }
}
