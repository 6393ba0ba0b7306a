//! Rollouts of many problems over time: a tree for each problem, a window of visits that weigh less the older they are, a
//! byte budget. What leaves is dropped in the background, and only at calls that say so: see [`RolloutHistory`].

mod inner;
mod problem;
mod rebuild;
mod script;
mod snapshot;
mod wire;

use crate::{
    backoff::Backoff,
    error::{Error, Kind},
    id::SeqId,
    meter::Ledger,
    sequence::Sequence,
    sync::{Arc, Mutex, Weak, Worker, lock},
    tree::Tree,
};
use inner::{Inner, Shared};
use problem::{Problem, Standing};

/// Largest weight of a rollout.
pub(crate) const MAX_WEIGHT: f64 = 16.0;

/// What a history keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HistoryOptions {
    /// Visits of a problem whose rollouts are kept, the present one included.
    pub window: usize,
    /// Bytes for all problems together.
    pub max_bytes: usize,
    /// Depth of the trees.
    pub max_depth: usize,
    /// What an occurrence weighs, compared with one a visit younger: above 0, at most 1.
    pub decay: f64,
    /// Whether to draft from the target's distributions where they are known, and not from counts alone.
    pub soft: bool,
    /// Whether to draft from what follows one or two tokens over all problems, too.
    pub shared: bool,
    /// Whether to draft from the distributions after drafts that were not kept, too.
    pub rejected: bool,
}

impl Default for HistoryOptions {
    fn default() -> Self {
        Self {
            window: 16,
            max_bytes: 4 << 30,
            max_depth: 64,
            decay: 1.0,
            soft: true,
            shared: true,
            rejected: true,
        }
    }
}

/// Figures about a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryStats {
    /// Policy version, as counted by [`RolloutHistory::advance`].
    pub generation: u64,
    /// Problems present.
    pub problems: usize,
    /// Rollouts present, running ones included.
    pub rollouts: usize,
    /// Rollouts not closed yet.
    pub running: usize,
    /// Output tokens in the problems' trees.
    pub tokens: usize,
    /// Bytes in use.
    pub bytes: usize,
    /// Problems whose tree is being made anew.
    pub rebuilding: usize,
    /// Rollouts that left the window, since the beginning.
    pub expired_rollouts: u64,
    /// Problems dropped to stay within the byte budget, since the beginning.
    pub evicted_problems: u64,
}

/// The rollouts of many problems, each problem's in a [`Tree`] of its own.
///
/// The policy version moves with [`Self::advance`]; the first rollout of a problem after that begins a new *visit* of it.
/// A problem keeps the rollouts of its last `window` visits, the present one included, and an occurrence a visit older weighs
/// `decay` times as much. [`Self::advance`] makes room for the next visit: a problem's rollouts that will be outside the window
/// leave, and a tree of those that stay is made in the background. The next rollout of the problem opens in it, and waits
/// should it not be finished; rollouts that run meanwhile stay in the tree they are in, undisturbed, and join the others in the
/// rebuild after their end. So what is drafted depends on the calls alone, not on the time the background work takes.
///
/// When the history exceeds its bytes, the problems visited least recently leave, whenever a rollout begins or ends, the
/// version moves, or background work is waited for; a problem with running rollouts stays. Room for trees being made is part of
/// the reckoning; what has left is freed in the background moments later.
#[derive(Debug)]
pub struct RolloutHistory {
    shared: Arc<Shared>,
}

/// A rollout's way back to the history it belongs to.
#[derive(Debug)]
pub(crate) struct Home {
    shared: Weak<Shared>,
    problem: u64,
    serial: u64,
}

impl Home {
    /// Notes that the rollout has ended, in the tree given, and perhaps its weight.
    pub(crate) fn rollout_closed(&self, tree: Arc<Tree>, id: SeqId, weight: Option<f64>) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut inner = lock(&shared.inner);
        inner.close(&shared, self, &tree, id, weight);
        let mut dropped = shared.evict(&mut inner);
        dropped.push(tree);
        inner.work(Vec::new(), dropped);
    }
}

/// Checks the weight of a rollout.
pub(crate) fn check_weight(weight: f64) -> Result<(), Error> {
    if (0.0..=MAX_WEIGHT).contains(&weight) {
        Ok(())
    } else {
        Err(Kind::Weight(weight).into())
    }
}

impl HistoryOptions {
    fn check(&self) -> Result<(), Error> {
        if self.window == 0 {
            return Err(Kind::Window(0).into());
        }
        if !(self.decay > 0.0 && self.decay <= 1.0) {
            return Err(Kind::Decay(self.decay).into());
        }
        Tree::new(self.max_depth).map(drop)
    }
}

impl RolloutHistory {
    /// An empty history.
    ///
    /// # Errors
    /// If `window` is zero, `max_depth` out of range, or `decay` not above 0 and at most 1.
    pub fn new(options: HistoryOptions) -> Result<Self, Error> {
        options.check()?;
        Ok(Self::with(options, Arc::default(), Inner::default()))
    }

    fn with(options: HistoryOptions, ledger: Arc<Ledger>, inner: Inner) -> Self {
        let backoff = Arc::new(Backoff::new(options.max_bytes));
        Self {
            shared: Arc::new(Shared {
                backoff,
                options,
                ledger,
                inner: Mutex::new(inner),
                saving: Mutex::new(()),
            }),
        }
    }

    /// What the history keeps.
    pub fn options(&self) -> HistoryOptions {
        self.shared.options
    }

    /// Opens a rollout of a problem. `context` is its prompt.
    ///
    /// # Errors
    /// If a token is 2^31 or larger, or the problem's tree is full.
    pub fn rollout(&self, problem: u64, context: &[u32]) -> Result<Sequence, Error> {
        self.rollout_with_weight(problem, context, 1.0)
    }

    /// Opens a rollout whose occurrences weigh `weight` times as much as others of their visit.
    ///
    /// # Errors
    /// As [`Self::rollout`], and if the weight is not from 0 to 16. With weight 0 it counts next to nothing while it runs, and
    /// leaves at the first rebuild after its end.
    pub fn rollout_with_weight(
        &self,
        problem: u64,
        context: &[u32],
        weight: f64,
    ) -> Result<Sequence, Error> {
        crate::id::check_tokens(context)?;
        check_weight(weight)?;
        let mut inner = self.shared.settled(problem);
        let sequence = inner.open(&self.shared, problem, context, weight)?;
        let dropped = self.shared.evict(&mut inner);
        inner.work(Vec::new(), dropped);
        Ok(sequence)
    }

    /// Moves to the next policy version and returns its number. Waits until the work of the last call is done; what is to be
    /// done now goes on in the background.
    pub fn advance(&self) -> u64 {
        self.maintain();
        let mut inner = lock(&self.shared.inner);
        inner.generation += 1;
        let (rebuilds, mut dropped) = inner.turn(&self.shared);
        dropped.append(&mut self.shared.evict(&mut inner));
        inner.work(rebuilds, dropped);
        inner.generation
    }

    /// Waits until all background work is done: trees are made and put to use, and what has left is freed. There is no need to
    /// call it; between two policy versions, when there is time, it spares the next rollouts a wait.
    pub fn maintain(&self) {
        let workers = std::mem::take(&mut lock(&self.shared.inner).workers);
        // A worker that panicked has left its work to whoever needs it.
        workers.into_iter().for_each(Worker::join);
        let due: Vec<u64> = lock(&self.shared.inner).due.iter().copied().collect();
        for problem in due {
            drop(self.shared.settled(problem));
        }
        let mut inner = lock(&self.shared.inner);
        let dropped = self.shared.evict(&mut inner);
        drop(inner);
        drop(dropped);
    }

    /// The policy version: how often [`Self::advance`] was called.
    pub fn generation(&self) -> u64 {
        lock(&self.shared.inner).generation
    }

    /// Whether the history has rollouts of a problem.
    pub fn contains(&self, problem: u64) -> bool {
        lock(&self.shared.inner).problems.contains_key(&problem)
    }

    /// The present tree of a problem, to be read: a sequence opened in it directly is not the history's, and does not come
    /// along when the tree is made anew. Waits if it is being made.
    pub fn tree(&self, problem: u64) -> Option<Arc<Tree>> {
        match &self
            .shared
            .settled(problem)
            .problems
            .get(&problem)?
            .standing
        {
            Standing::Ready(tree) => Some(Arc::clone(tree)),
            Standing::Due(_) => None,
        }
    }

    /// Bytes allocated for all problems, trees being made or dropped included.
    pub fn memory_usage(&self) -> usize {
        self.shared.bytes(&lock(&self.shared.inner))
    }

    /// Figures about the history.
    pub fn stats(&self) -> HistoryStats {
        let inner = lock(&self.shared.inner);
        let problems = || inner.problems.values();
        HistoryStats {
            generation: inner.generation,
            problems: inner.problems.len(),
            rollouts: problems().map(|problem| problem.rollouts.len()).sum(),
            running: problems().map(|problem| problem.running).sum(),
            tokens: problems().map(Problem::tokens).sum(),
            bytes: self.shared.bytes(&inner),
            rebuilding: inner.due.len(),
            expired_rollouts: inner.expired_rollouts,
            evicted_problems: inner.evicted_problems,
        }
    }
}
