//! The tree as a whole: its parts, opening and closing sequences, counts, sizes.

use crate::{
    arena::Meter,
    draft::{Draft, DraftOptions},
    error::{Error, Kind},
    id::{NONE, START, SeqId, TOKEN_LIMIT, Token, check_tokens, end_marker},
    node::Nodes,
    sequence::Sequence,
    sync::{Arc, AtomicU32, AtomicUsize, Ordering},
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
    /// User tokens published.
    tokens: AtomicUsize,
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
        Self::with_meter(max_depth, None)
    }

    /// A tree whose bytes are counted in `shared` too.
    pub(crate) fn with_meter(
        max_depth: usize,
        shared: Option<Arc<AtomicUsize>>,
    ) -> Result<Arc<Self>, Error> {
        if !(2..=CHUNK as usize).contains(&max_depth) {
            return Err(Kind::MaxDepth(max_depth).into());
        }
        let meter = Meter::new(shared);
        meter.add(size_of::<Self>());
        let (text, nodes) = (Text::new(&meter), Nodes::new(&meter));
        let (queue, work, tokens) = (AtomicU32::new(NONE), AtomicU32::new(0), AtomicUsize::new(0));
        Ok(Arc::new(Self {
            max_depth: max_depth as u32,
            meter,
            text,
            nodes,
            queue,
            work,
            tokens,
        }))
    }

    /// Opens a sequence. `context` is its prompt: evidence for its own drafts, not part of the tree.
    ///
    /// # Errors
    /// If a token is 2^31 or larger, or the tree is full.
    pub fn sequence(self: &Arc<Self>, context: &[u32]) -> Result<Sequence, Error> {
        Sequence::open(self, context)
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
    /// occurrences that start in its longest suffix known from elsewhere are not counted yet.
    ///
    /// # Errors
    /// If `tokens` is empty, longer than `max_depth`, or contains a token of 2^31 or larger.
    pub fn count(&self, tokens: &[u32]) -> Result<u32, Error> {
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
        Ok(self
            .locate(tokens)
            .map_or(0, |locus| self.occurrences(&locus)))
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

    /// Opens a record and writes its start marker.
    pub(crate) fn open_record(&self) -> Result<SeqId, Error> {
        self.check_room(0, 0)?;
        let id = self.text.open(&self.meter);
        self.text.append(id, std::iter::once(START), &self.meter);
        self.submit(id);
        Ok(id)
    }

    /// Appends user tokens, already checked, to a record. One thread at a time per record.
    pub(crate) fn append_record(&self, id: SeqId, tokens: &[Token]) -> Result<(), Error> {
        self.check_room(self.text.record(id).len() as usize, tokens.len())?;
        self.text.append(id, tokens.iter().copied(), &self.meter);
        self.tokens.fetch_add(tokens.len(), Ordering::Relaxed); // a statistic
        self.submit(id);
        Ok(())
    }

    /// Writes the end marker, after which all counts of the sequence are exact. One thread at a time per record.
    pub(crate) fn close_record(&self, id: SeqId) {
        self.text
            .append(id, std::iter::once(end_marker(id)), &self.meter);
        self.submit(id);
    }

    /// User tokens of a record.
    pub(crate) fn tokens_of(&self, id: SeqId) -> Vec<Token> {
        let mut symbols = self.text.symbols(id, 1);
        if symbols.last().is_some_and(|&token| token >= TOKEN_LIMIT) {
            symbols.pop();
        }
        symbols
    }

    fn check_room(&self, present: usize, more: usize) -> Result<(), Error> {
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
