//! A rollout in progress: what appends to the tree and drafts from it.

use crate::{
    draft::{Draft, DraftOptions, context_limit},
    error::{Error, Kind},
    history::Home,
    id::{ROOT, START, SeqId, check_tokens},
    locus::Locus,
    own::OwnText,
    sync::{Arc, Mutex, lock},
    tree::Tree,
};

/// A sequence that grows: the handle of one running rollout.
///
/// Threads may share it; calls on the same sequence take turns, calls on different ones do not. Dropping it closes it: its
/// tokens stay in the tree.
#[derive(Debug)]
pub struct Sequence {
    state: Mutex<State>,
    home: Option<Home>,
}

#[derive(Debug)]
struct State {
    tree: Arc<Tree>,
    id: SeqId,
    /// Prompt and output; gone once the sequence is closed.
    own: Option<OwnText>,
    prompt: usize,
    output: usize,
}

impl Sequence {
    pub(crate) fn open(tree: &Arc<Tree>, context: &[u32]) -> Result<Self, Error> {
        check_tokens(context)?;
        let id = tree.open_record()?;
        let mut own = OwnText::default();
        own.extend(context);
        tree.meter.add(own.memory_usage());
        let state = State {
            tree: Arc::clone(tree),
            id,
            own: Some(own),
            prompt: context.len(),
            output: 0,
        };
        Ok(Self {
            state: Mutex::new(state),
            home: None,
        })
    }

    pub(crate) fn set_home(&mut self, home: Home) {
        self.home = Some(home);
    }

    pub(crate) fn id(&self) -> SeqId {
        lock(&self.state).id
    }

    /// Appends output tokens. Nothing is appended if there is an error.
    ///
    /// # Errors
    /// If the sequence is closed, a token is 2^31 or larger, or the sequence or its tree is full.
    pub fn append(&self, tokens: &[u32]) -> Result<(), Error> {
        check_tokens(tokens)?;
        lock(&self.state).append(tokens)
    }

    /// Drafts what may come next.
    ///
    /// # Errors
    /// If the sequence is closed.
    pub fn draft(&self, options: &DraftOptions) -> Result<Draft, Error> {
        let mut draft = Draft::default();
        lock(&self.state).draft(options, &mut draft)?;
        Ok(draft)
    }

    /// Appends tokens, already checked, and drafts into `draft`, with nothing of this sequence in between.
    pub(crate) fn append_and_draft(
        &self,
        tokens: &[u32],
        options: &DraftOptions,
        draft: &mut Draft,
    ) -> Result<(), Error> {
        let mut state = lock(&self.state);
        state.append(tokens)?;
        state.draft(options, draft)
    }

    /// An error if the sequence is closed.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.is_closed() {
            Err(Kind::Closed.into())
        } else {
            Ok(())
        }
    }

    /// Ends the sequence: its counts become exact and its tokens stay. Closing again does nothing.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        let Some(own) = state.own.take() else { return };
        state.tree.meter.sub(own.memory_usage());
        state.tree.close_record(state.id);
        drop(state);
        if let Some(home) = &self.home {
            home.rollout_closed();
        }
    }

    /// Whether the sequence has been closed.
    pub fn is_closed(&self) -> bool {
        lock(&self.state).own.is_none()
    }

    /// Number of output tokens.
    pub fn len(&self) -> usize {
        lock(&self.state).output
    }

    /// Whether there is no output yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of the longest suffix of the output that occurs elsewhere in the tree, or earlier in this sequence, up to
    /// one less than the tree's depth; the beginning of the sequence counts as a token.
    ///
    /// # Errors
    /// If the sequence is closed.
    pub fn match_length(&self) -> Result<usize, Error> {
        let state = lock(&self.state);
        let own = state.own.as_ref().ok_or(Kind::Closed)?;
        Ok(state.place(own, state.tree.max_depth - 1).0.depth as usize)
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.close();
    }
}

impl State {
    fn append(&mut self, tokens: &[u32]) -> Result<(), Error> {
        let own = self.own.as_mut().ok_or(Kind::Closed)?;
        if tokens.is_empty() {
            return Ok(());
        }
        self.tree.append_record(self.id, tokens)?;
        let before = own.memory_usage();
        own.extend(tokens);
        self.tree.meter.add(own.memory_usage() - before);
        self.output += tokens.len();
        Ok(())
    }

    fn draft(&self, options: &DraftOptions, draft: &mut Draft) -> Result<(), Error> {
        let own = self.own.as_ref().ok_or(Kind::Closed)?;
        let (start, counted) = self.place(own, context_limit(&self.tree));
        crate::draft::running(&self.tree, own, self.prompt, counted, start, options, draft);
        Ok(())
    }

    /// The locus of the longest suffix of the output in the tree, up to `limit` tokens, and the offset before which all
    /// suffixes are counted there.
    fn place(&self, own: &OwnText, limit: u32) -> (Locus, usize) {
        let output = &own.tokens()[self.prompt..];
        let symbol = |offset: u32| match offset {
            0 => START,
            _ => output[offset as usize - 1],
        };
        let active = self.tree.text.record(self.id).active();
        let depth = self.tree.nodes.get(active.node).depth() + active.along;
        let counted = active.indexed - depth;
        let (node, depth) = if depth <= limit {
            (active.node, depth)
        } else {
            (ROOT, limit)
        };
        let first = active.indexed - depth;
        let start = self.tree.descend(node, depth, |i| symbol(first + i));
        // Tokens that another thread has not come to index yet.
        let pending = (active.indexed..=output.len() as u32).map(symbol);
        let start = pending.fold(start.unwrap_or(Locus::ROOT), |at, token| {
            self.tree.advance(at, token, limit)
        });
        (start, counted as usize)
    }
}
