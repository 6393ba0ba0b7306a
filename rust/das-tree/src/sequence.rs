//! A rollout in progress: what appends to the tree and drafts from it.

use crate::{
    backoff::Key,
    draft::{
        Draft, DraftOptions, Place, context_limit,
        insight::{Insight, Sources, last_of, place, shared_contexts},
    },
    error::{Error, Kind},
    history::Home,
    id::{ROOT, START, SeqId, Token, check_tokens},
    known::KnownRows,
    latest::{Latest, Observation},
    locus::Locus,
    noise::Coupling,
    own::OwnText,
    sync::{Arc, Mutex, MutexGuard, lock},
    text::CHUNK,
    tree::Tree,
};

/// Tokens of a long prompt that one call takes in.
pub(crate) const TAKEN_IN: usize = 4096;

/// Tokens whose rows over all problems are fetched together: a few hundred cache lines.
const AT_ONCE: usize = 8;

/// A sequence that grows: the handle of one running rollout.
///
/// Threads may share it; calls on the same sequence take turns, calls on different ones do not. Dropping it closes it: its
/// tokens stay in the tree.
#[derive(Debug)]
pub struct Sequence {
    handle: Handle,
    home: Option<Home>,
}

/// What calls on a sequence work on, one at a time.
#[derive(Clone, Debug)]
pub(crate) struct Handle(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Gone once the sequence is closed.
    running: Option<Running>,
    output: usize,
}

/// A sequence that is not closed.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) tree: Arc<Tree>,
    pub(crate) id: SeqId,
    /// Prompt and output.
    own: OwnText,
    prompt: usize,
    /// Chunks of the tree's text that hold the output.
    chunks: Vec<u32>,
    insight: Insight,
    /// Where the tokens begin that were taken in last, until they are learned from.
    fresh: Option<usize>,
    /// Output tokens that have been learned from over all problems.
    shared: usize,
}

impl Sequence {
    /// Opens a sequence each of whose occurrences counts `weight`.
    pub(crate) fn open(tree: &Arc<Tree>, context: &[u32], weight: u64) -> Result<Self, Error> {
        check_tokens(context)?;
        let running = Running::open(Arc::clone(tree), context, weight)?;
        let state = State {
            running: Some(running),
            output: 0,
        };
        Ok(Self {
            handle: Handle(Arc::new(Mutex::new(state))),
            home: None,
        })
    }

    pub(crate) fn set_home(&mut self, home: Home) {
        self.home = Some(home);
    }

    pub(crate) fn id(&self) -> Option<SeqId> {
        self.handle
            .lock()
            .running
            .as_ref()
            .map(|running| running.id)
    }

    /// Appends output tokens. Nothing is appended if there is an error.
    ///
    /// # Errors
    /// If the sequence is closed, a token is 2^31 or larger, or the sequence or its tree is full.
    pub fn append(&self, tokens: &[u32]) -> Result<(), Error> {
        self.append_known(tokens, KnownRows::default())
    }

    /// Appends output tokens together with what the target knew: for each token the distribution it was drawn from.
    /// Nothing is appended if there is an error.
    ///
    /// # Errors
    /// As [`Self::append`], and if there is neither one row for each token nor none at all.
    pub fn append_known(&self, tokens: &[u32], known: KnownRows) -> Result<(), Error> {
        check_tokens(tokens)?;
        check_rows(tokens, known)?;
        self.handle.append(tokens, known, TAKEN_IN)
    }

    /// Learns what the target's distributions were after drafts that were not kept. `contexts` has the last two tokens before
    /// each, the older first; `known` a row for each.
    ///
    /// # Errors
    /// If the sequence is closed, a token is 2^31 or larger, or there is not one row for each context.
    pub fn reject(&self, contexts: &[[u32; 2]], known: KnownRows) -> Result<(), Error> {
        check_tokens(contexts.as_flattened())?;
        if known.len() != contexts.len() {
            let (rows, tokens) = (known.len(), contexts.len());
            return Err(Kind::KnownRows { rows, tokens }.into());
        }
        self.handle.lock().running()?.reject(contexts, known);
        Ok(())
    }

    /// Drafts what may come next.
    ///
    /// # Errors
    /// If the sequence is closed.
    pub fn draft(&self, options: &DraftOptions) -> Result<Draft, Error> {
        let mut draft = Draft::default();
        self.handle.draft(options, options.max_nodes, &mut draft)?;
        Ok(draft)
    }

    /// What a step works on.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// What followed the most recent occurrences of the last `length` tokens (of the output, for the history).
    ///
    /// # Errors
    /// If the sequence is closed.
    pub fn latest(&self, length: usize) -> Result<Latest, Error> {
        Ok(self.handle.lock().running()?.latest(length))
    }

    /// Ends the sequence: its counts become exact and its tokens stay. Closing again does nothing.
    pub fn close(&self) {
        self.end(None);
    }

    /// Ends the sequence, whose weight in its history turned out to be this (by its reward, say): it counts so from the next
    /// rebuild of the problem's tree on, and with weight 0 it leaves then. Closing again does nothing, and neither does a
    /// weight outside a history.
    ///
    /// # Errors
    /// If the weight is not from 0 to 16; the sequence goes on.
    pub fn close_with_weight(&self, weight: f64) -> Result<(), Error> {
        crate::history::check_weight(weight)?;
        self.end(Some(weight));
        Ok(())
    }

    fn end(&self, weight: Option<f64>) {
        let mut state = self.handle.lock();
        let Some(mut running) = state.running.take() else {
            return;
        };
        running.learn_shared(running.output());
        running.tree.meter.sub(running.own_bytes());
        running.tree.close_record(running.id);
        drop(state);
        if let Some(home) = &self.home {
            home.rollout_closed(running.tree, running.id, weight);
        }
    }

    /// Whether the sequence has been closed.
    pub fn is_closed(&self) -> bool {
        self.handle.lock().running.is_none()
    }

    /// Number of output tokens.
    pub fn len(&self) -> usize {
        self.handle.lock().output
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
        let mut state = self.handle.lock();
        let running = state.running()?;
        Ok(running.place(running.tree.max_depth - 1).start.depth() as usize)
    }
}

impl Handle {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Appends tokens, already checked, with what the target knew, and learns from them; takes in at most so much of a long
    /// prompt.
    pub(crate) fn append(
        &self,
        tokens: &[u32],
        known: KnownRows,
        taken_in: usize,
    ) -> Result<(), Error> {
        let mut state = self.lock();
        state.take_in(tokens, known, taken_in)?;
        state.running()?.learn(tokens, known);
        Ok(())
    }

    /// The part of [`Self::append`] that concerns this sequence and its tree alone.
    pub(crate) fn take_in(
        &self,
        tokens: &[u32],
        known: KnownRows,
        taken_in: usize,
    ) -> Result<(), Error> {
        self.lock().take_in(tokens, known, taken_in)
    }

    /// The rest of it, unless another thread has appended or closed meanwhile. The order among all sequences of a history
    /// matters for what is drafted.
    pub(crate) fn learn(&self, tokens: &[u32], known: KnownRows) {
        if let Some(running) = &mut self.lock().running {
            running.learn(tokens, known);
        }
    }

    /// Checks that so many tokens have room; returns how many of the prompt are still to be taken in.
    pub(crate) fn check_room(&self, more: usize) -> Result<usize, Error> {
        let mut state = self.lock();
        let running = state.running()?;
        let present = running.tree.text.record(running.id).len();
        running.tree.check_room(present as usize, more)?;
        Ok(running.own.unchained())
    }

    /// Which tree it is.
    pub(crate) fn tree(&self) -> Result<usize, Error> {
        let mut state = self.lock();
        Ok(Arc::as_ptr(&state.running()?.tree) as usize)
    }

    /// Drafts at most `width` nodes into `draft`.
    pub(crate) fn draft(
        &self,
        options: &DraftOptions,
        width: usize,
        draft: &mut Draft,
    ) -> Result<(), Error> {
        let options = DraftOptions {
            max_nodes: options.max_nodes.min(width),
            ..*options
        };
        self.lock().running()?.draft(&options, draft);
        Ok(())
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.close();
    }
}

/// Checks that distributions come with every token or with none.
pub(crate) fn check_rows(tokens: &[u32], known: KnownRows) -> Result<(), Error> {
    if known.is_empty() || known.len() == tokens.len() {
        return Ok(());
    }
    let (rows, tokens) = (known.len(), tokens.len());
    Err(Kind::KnownRows { rows, tokens }.into())
}

impl State {
    fn running(&mut self) -> Result<&mut Running, Error> {
        Ok(self.running.as_mut().ok_or(Kind::Closed)?)
    }

    fn take_in(&mut self, tokens: &[u32], known: KnownRows, taken_in: usize) -> Result<(), Error> {
        self.running()?.take_in(tokens, known, taken_in)?;
        self.output += tokens.len();
        Ok(())
    }
}

impl Running {
    fn open(tree: Arc<Tree>, context: &[u32], weight: u64) -> Result<Self, Error> {
        let id = tree.open_record(weight)?;
        let mut own = OwnText::new(context);
        own.chain(TAKEN_IN);
        let running = Self {
            tree,
            id,
            own,
            prompt: context.len(),
            chunks: Vec::new(),
            insight: Insight::default(),
            fresh: None,
            shared: 0,
        };
        running.tree.meter.add(running.own_bytes());
        Ok(running)
    }

    fn take_in(&mut self, tokens: &[u32], known: KnownRows, taken_in: usize) -> Result<(), Error> {
        if !tokens.is_empty() {
            self.tree.append_record(self.id, tokens, known)?;
        } else if self.own.unchained() == 0 {
            return Ok(());
        }
        let before = self.own_bytes();
        self.fresh = Some(self.own.tokens().len());
        self.own.extend(tokens);
        self.own.chain(tokens.len().max(taken_in));
        self.note_chunks();
        // The chains never shrink.
        self.tree.meter.add(self.own_bytes() - before);
        Ok(())
    }

    /// Notes the chunks that the output has reached.
    fn note_chunks(&mut self) {
        let text = &self.tree.text;
        let record = text.record(self.id);
        while self.chunks.len() < record.len().div_ceil(CHUNK) as usize {
            let next = self
                .chunks
                .last()
                .map_or_else(|| record.first_chunk(), |&last| text.next_chunk(last));
            self.chunks.push(next);
        }
    }

    /// Bytes beside the tree.
    fn own_bytes(&self) -> usize {
        self.own.memory_usage() + 4 * self.chunks.capacity() + self.insight.memory_usage()
    }

    fn draft(&mut self, options: &DraftOptions, draft: &mut Draft) {
        if options.max_nodes == 0 {
            draft.clear();
            self.insight.expect_nothing();
            return;
        }
        let place = self.place(context_limit(&self.tree));
        let before = self.insight.memory_usage();
        let mut insight = std::mem::take(&mut self.insight);
        let (sources, earlier) = (self.sources(), self.own.occurrences());
        crate::draft::running(sources, earlier, place, options, draft, &mut insight);
        self.insight = insight;
        // What is noted of a draft only ever gets more room.
        self.tree.meter.add(self.insight.memory_usage() - before);
    }

    /// See [`Sequence::reject`].
    fn reject(&self, contexts: &[[Token; 2]], known: KnownRows) {
        let lore = &self.tree.lore;
        if !lore.rejected {
            return;
        }
        for (context, distribution) in contexts.iter().zip(known.all()) {
            let Some(&token) = distribution.tokens().first() else {
                continue;
            };
            let seen = Observation {
                token,
                distribution,
            };
            for context in [&context[..], &context[1..]] {
                lore.backoff
                    .learn(Key::rejected(lore.problem, context), &seen);
            }
        }
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            tree: &self.tree,
            own: self.own.tokens(),
            prompt: self.prompt,
            id: Some(self.id),
            chunks: &self.chunks,
            insight: None,
            coupling: Coupling::Blind,
        }
    }

    fn output(&self) -> usize {
        self.own.tokens().len() - self.prompt
    }

    /// Learns what follows what over all problems from output tokens before `end` that are new to the problem: repeated texts
    /// would only say how often they were repeated.
    fn learn_shared(&mut self, end: usize) {
        let lore = &self.tree.lore;
        if !lore.shared {
            return;
        }
        let tokens = self.own.tokens();
        let keys = |output: usize| {
            let contexts = shared_contexts(last_of(&tokens[..self.prompt + output]));
            contexts.into_iter().flatten().map(|context| context.0)
        };
        for first in (self.shared..end).step_by(AT_ONCE) {
            let new = || (first..end.min(first + AT_ONCE)).filter(|&output| self.is_new(output));
            new()
                .flat_map(keys)
                .for_each(|key| lore.backoff.fetch_slot(key));
            new().flat_map(keys).for_each(|key| lore.backoff.fetch(key));
            for output in new() {
                let seen = self.sources().observation(self.prompt + output);
                keys(output).for_each(|key| lore.backoff.learn(key, &seen));
            }
        }
        self.shared = end;
    }

    /// Whether an output token is new to the problem after those before it; one that is not indexed yet may be.
    fn is_new(&self, output: usize) -> bool {
        let text = &self.tree.text;
        let is_indexed = output + 1 < text.record(self.id).active().indexed as usize; // the start marker counts
        !is_indexed || text.is_new(place(&self.chunks, output))
    }

    /// Learns from the tokens that were taken in last.
    fn learn(&mut self, tokens: &[Token], known: KnownRows) {
        let Some(before) = self.fresh.take().filter(|_| !tokens.is_empty()) else {
            return;
        };
        let text = &self.own.tokens()[..before];
        if known.is_empty() {
            let seen = tokens.iter().map(|&token| Observation::bare(token));
            self.insight.learn(&self.tree, text, tokens, seen);
        } else {
            self.insight.inform(&text[self.prompt..]);
            let seen = known.beside_all(tokens).zip(tokens);
            let seen = seen.map(|(distribution, &token)| Observation {
                token,
                distribution,
            });
            self.insight.learn(&self.tree, text, tokens, seen);
        }
        // Another thread may have some left to index.
        let indexed = self.tree.text.record(self.id).active().indexed as usize;
        self.learn_shared(self.output().min(indexed.saturating_sub(1)));
    }

    /// How the sequence lies in the tree: its longest suffix there, up to `limit` tokens, and what is counted.
    fn place(&self, limit: u32) -> Place {
        let output = &self.own.tokens()[self.prompt..];
        let symbol = |offset: u32| match offset {
            0 => START,
            _ => output[offset as usize - 1],
        };
        let record = self.tree.text.record(self.id);
        let active = record.active();
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
        Place {
            start,
            counted: counted as usize,
            weight: record.weight(),
        }
    }

    fn latest(&self, length: usize) -> Latest {
        let tokens = self.own.tokens();
        if length == 0 || length > tokens.len() {
            return Latest::default();
        }
        let context = &tokens[tokens.len() - length..];
        let mut own = self
            .own
            .occurrences()
            .filter(|&at| tokens[..=at].ends_with(context));
        let in_tree = length <= (tokens.len() - self.prompt).min(self.tree.max_depth as usize);
        let history = in_tree.then(|| self.tree.locate(context)).flatten();
        Latest {
            own: own.next().map(|at| self.sources().observation(at + 1)),
            history: history.and_then(|at| self.tree.latest(&at, Some(self.id))),
        }
    }
}
