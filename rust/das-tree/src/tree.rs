//! The tree as a whole: its parts, opening and closing sequences, counts, sizes.

use crate::{
    backoff::Backoff,
    baton::Baton,
    blend::in_units,
    draft::{Draft, DraftOptions},
    error::{Error, Kind},
    id::{NONE, START, SeqId, TOKEN_LIMIT, Token, check_tokens, end_marker},
    known::{Distribution, KnownRows},
    locus::Locus,
    meter::{Ledger, Meter},
    node::Nodes,
    sequence::Sequence,
    sync::{Arc, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    text::{CHUNK, MAX_SEQUENCE, Text},
};

/// An online suffix tree over the token sequences of one problem, any number of which grow at once.
///
/// Appends never wait for another thread and reads never wait at all; see the crate's `Consistency` section. Nothing is
/// removed: memory returns when the tree is dropped.
#[derive(Debug)]
pub struct Tree {
    pub(crate) max_depth: u32,
    pub(crate) meter: Meter,
    pub(crate) text: Text,
    pub(crate) nodes: Nodes,
    /// Top of the stack of sequences with tokens to index, as id + 1.
    pub(crate) queue: AtomicU32,
    /// Submissions not yet dealt with; who raises it from zero indexes.
    pub(crate) work: AtomicU32,
    /// How who indexes is relieved.
    pub(crate) baton: Baton,
    /// User tokens published.
    tokens: AtomicUsize,
    /// What an occurrence of full weight counts at present.
    unit: AtomicU64,
    pub(crate) lore: Lore,
}

/// What a tree draws on beside its own texts.
#[derive(Clone, Debug)]
pub(crate) struct Lore {
    /// What has been learnt over all problems.
    pub(crate) backoff: Arc<Backoff>,
    /// The problem there.
    pub(crate) problem: u64,
    /// Whether to draft from distributions, from what follows over all problems, from drafts that were not kept.
    pub(crate) soft: bool,
    pub(crate) shared: bool,
    pub(crate) rejected: bool,
}

impl Lore {
    /// That of a tree on its own.
    fn alone() -> Self {
        Self {
            backoff: Arc::new(Backoff::new(0)),
            problem: 0,
            soft: true,
            shared: false,
            rejected: false,
        }
    }
}

impl Tree {
    /// A tree that keeps statistics of strings up to `max_depth` tokens, 2 to 64.
    ///
    /// ```
    /// let tree = das_tree::Tree::new(64)?;
    /// let first = tree.sequence(&[])?;
    /// first.append(&[5, 6, 7, 8])?;
    /// first.close();
    /// assert_eq!(tree.count(&[6, 7])?, 1);
    /// # Ok::<(), das_tree::Error>(())
    /// ```
    ///
    /// # Errors
    /// If `max_depth` is out of range.
    pub fn new(max_depth: usize) -> Result<Arc<Self>, Error> {
        if !(2..=CHUNK as usize).contains(&max_depth) {
            return Err(Kind::MaxDepth(max_depth).into());
        }
        Ok(Self::with_meter(
            max_depth,
            1,
            Meter::default(),
            Lore::alone(),
        ))
    }

    /// A tree of a history: an occurrence of full weight counts `unit`, and its bytes are in the ledger, aside for now.
    pub(crate) fn in_history(
        max_depth: usize,
        unit: u64,
        ledger: &Arc<Ledger>,
        lore: Lore,
    ) -> Arc<Self> {
        Self::with_meter(max_depth, unit, Meter::aside(Arc::clone(ledger)), lore)
    }

    fn with_meter(max_depth: usize, unit: u64, meter: Meter, lore: Lore) -> Arc<Self> {
        meter.add(size_of::<Self>());
        let (text, nodes) = (Text::new(&meter), Nodes::new(&meter));
        let (queue, work, tokens) = (AtomicU32::new(NONE), AtomicU32::new(0), AtomicUsize::new(0));
        Arc::new(Self {
            max_depth: max_depth as u32,
            meter,
            text,
            nodes,
            queue,
            work,
            baton: Baton::default(),
            tokens,
            unit: AtomicU64::new(unit),
            lore,
        })
    }

    /// What an occurrence of full weight counts.
    pub(crate) fn unit(&self) -> u64 {
        self.unit.load(Ordering::Relaxed) // only scales what is known
    }

    /// From now on an occurrence of full weight counts this much.
    pub(crate) fn set_unit(&self, unit: u64) {
        self.unit.store(unit, Ordering::Relaxed); // as above
    }

    /// Opens a sequence. `context` is its prompt: evidence for its own drafts, not part of the tree.
    ///
    /// # Errors
    /// If a token is 2^31 or larger, or the tree is full.
    pub fn sequence(self: &Arc<Self>, context: &[u32]) -> Result<Sequence, Error> {
        Sequence::open(self, context, self.unit())
    }

    /// Drafts from `context` alone: its own repetitions, and what followed its suffixes in the tree. An empty context
    /// gives an empty draft.
    ///
    /// # Errors
    /// If a token is 2^31 or larger.
    pub fn draft(&self, context: &[u32], options: &DraftOptions) -> Result<Draft, Error> {
        check_tokens(context)?;
        Ok(crate::draft::stateless(self, context, options))
    }

    /// How often `tokens` occurs in the tree's sequences. Exact once all are closed; while a sequence is open, the
    /// occurrences that start in its longest suffix known from elsewhere are not counted yet. Where sequences differ in
    /// weight, as in a history with decay, it is [`Self::weight`] to the nearest, but at least 1 for what occurs.
    ///
    /// # Errors
    /// If `tokens` is empty, longer than `max_depth`, or contains a token of 2^31 or larger.
    pub fn count(&self, tokens: &[u32]) -> Result<u32, Error> {
        let found = self.find(tokens)?;
        let count = found.map_or(0, |at| in_units(self.occurrences(&at), self.unit()));
        Ok(count.try_into().unwrap_or(u32::MAX))
    }

    /// The sum of the weights of the occurrences that [`Self::count`] counts.
    ///
    /// # Errors
    /// As [`Self::count`].
    pub fn weight(&self, tokens: &[u32]) -> Result<f64, Error> {
        let found = self.find(tokens)?;
        Ok(found.map_or(0.0, |at| self.occurrences(&at) as f64 / self.unit() as f64))
    }

    /// The place of a string that somebody asks for.
    pub(crate) fn find(&self, tokens: &[u32]) -> Result<Option<Locus>, Error> {
        check_tokens(tokens)?;
        if tokens.is_empty() {
            return Err(Kind::EmptyQuery.into());
        }
        if tokens.len() > self.max_depth() {
            return Err(Kind::QueryTooLong {
                length: tokens.len(),
                limit: self.max_depth(),
            }
            .into());
        }
        Ok(self.locate(tokens))
    }

    /// Longest string the tree has statistics of.
    pub fn max_depth(&self) -> usize {
        self.max_depth as usize
    }

    /// Number of tokens appended to all sequences, contexts not included.
    pub fn len(&self) -> usize {
        self.tokens.load(Ordering::Relaxed) // a statistic
    }

    /// Whether no token has been appended.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of sequences opened, closed ones included.
    pub fn sequences(&self) -> usize {
        self.text.sequences() as usize
    }

    /// Bytes allocated for the tree and the own-text indices of its running sequences.
    pub fn memory_usage(&self) -> usize {
        self.meter.bytes()
    }

    /// Opens a record each of whose occurrences counts `weight`, and writes its start marker.
    pub(crate) fn open_record(&self, weight: u64) -> Result<SeqId, Error> {
        self.check_room(0, 0)?;
        let id = self.text.open(weight, &self.meter);
        self.append_marker(id, START);
        Ok(id)
    }

    /// Appends user tokens, already checked, and what was known of each, to a record. One thread at a time per record.
    pub(crate) fn append_record(
        &self,
        id: SeqId,
        tokens: &[Token],
        known: KnownRows,
    ) -> Result<(), Error> {
        let known = (!known.is_empty()).then(|| known.beside_all(tokens));
        self.append_text(id, tokens, known)
    }

    /// Appends tokens and, perhaps, the distributions to be kept beside them.
    pub(crate) fn append_text(
        &self,
        id: SeqId,
        tokens: &[Token],
        known: Option<impl Iterator<Item = Distribution>>,
    ) -> Result<(), Error> {
        let more = tokens.len();
        self.check_room(self.text.record(id).len() as usize, more)?;
        let tokens = tokens.iter().copied();
        self.text.append(id, tokens, known, &self.meter);
        self.tokens.fetch_add(more, Ordering::Relaxed); // a statistic
        self.submit(id);
        Ok(())
    }

    /// Writes the end marker, after which all counts of the sequence are exact. One thread at a time per record.
    pub(crate) fn close_record(&self, id: SeqId) {
        self.append_marker(id, end_marker(id));
    }

    fn append_marker(&self, id: SeqId, marker: Token) {
        let nothing = None::<std::iter::Empty<Distribution>>;
        self.text
            .append(id, std::iter::once(marker), nothing, &self.meter);
        self.submit(id);
    }

    /// Number of user tokens of a closed record.
    pub(crate) fn tokens_in(&self, id: SeqId) -> usize {
        self.text.record(id).len() as usize - 2
    }

    /// User tokens of a record.
    pub(crate) fn tokens_of(&self, id: SeqId) -> Vec<Token> {
        let mut symbols = self.text.symbols(id, 1);
        if symbols.last().is_some_and(|&token| token >= TOKEN_LIMIT) {
            symbols.pop();
        }
        symbols
    }

    /// Whether `more` tokens have room in a record that holds `present`, and in the tree, as far as it is filled now.
    pub(crate) fn check_room(&self, present: usize, more: usize) -> Result<(), Error> {
        let (length, limit) = (present + more + 1, MAX_SEQUENCE);
        if length > limit {
            return Err(Kind::SequenceTooLong {
                length: length - 2,
                limit: limit - 2,
            }
            .into());
        }
        if self.text.is_full(more) {
            return Err(Kind::TreeFull { limit: 1 << 31 }.into());
        }
        Ok(())
    }
}
