//! Rollouts of many problems over time: a tree for each problem, a window of visits, a byte budget.

use std::collections::HashMap;

use crate::{
    error::{Error, Kind},
    id::SeqId,
    sequence::Sequence,
    sync::{Arc, AtomicUsize, Mutex, Ordering, Weak, lock},
    tree::Tree,
};

/// What a history keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryOptions {
    /// Visits of a problem whose rollouts are kept.
    pub window: usize,
    /// Bytes for all problems together.
    pub max_bytes: usize,
    /// Depth of the trees.
    pub max_depth: usize,
}

impl Default for HistoryOptions {
    fn default() -> Self {
        Self {
            window: 16,
            max_bytes: 4 << 30,
            max_depth: 64,
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
    /// Rollouts present, and how many of them are running.
    pub rollouts: usize,
    /// Rollouts not closed yet.
    pub running: usize,
    /// Output tokens present.
    pub tokens: usize,
    /// Bytes in use.
    pub bytes: usize,
    /// Rollouts that left the window, and problems that left for want of space, since the beginning.
    pub expired_rollouts: u64,
    /// Problems dropped to stay within the byte budget, since the beginning.
    pub evicted_problems: u64,
}

/// The rollouts of many problems, each problem's in a [`Tree`] of its own.
///
/// The policy version moves with [`Self::advance`]; the first rollout of a problem after that begins a new *visit* of it.
/// A problem keeps the rollouts of its last `window` visits. When a visit begins and older ones have left the window, the
/// tree is rebuilt from those that remain, as soon as none of the problem's rollouts is running. When the history exceeds
/// its bytes, the problems visited least recently leave; one with running rollouts stays.
#[derive(Debug)]
pub struct RolloutHistory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: HistoryOptions,
    /// Bytes of all trees.
    bytes: Arc<AtomicUsize>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    generation: u64,
    /// Counts rollouts opened: the order of visits.
    clock: u64,
    problems: HashMap<u64, Problem>,
    expired_rollouts: u64,
    evicted_problems: u64,
}

#[derive(Debug)]
struct Problem {
    tree: Arc<Tree>,
    /// Rollouts in the tree, oldest first.
    rollouts: Vec<Rollout>,
    /// Visits so far, and the generation of the last one.
    visits: u64,
    generation: u64,
    running: usize,
    last_used: u64,
}

#[derive(Clone, Copy, Debug)]
struct Rollout {
    id: SeqId,
    visit: u64,
}

/// A rollout's way back to the history it belongs to.
#[derive(Debug)]
pub(crate) struct Home {
    shared: Weak<Shared>,
    problem: u64,
}

impl Home {
    /// Notes that one rollout of the problem has ended.
    pub(crate) fn rollout_closed(&self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut inner = lock(&shared.inner);
        if let Some(problem) = inner.problems.get_mut(&self.problem) {
            problem.running -= 1;
        }
        shared.evict(&mut inner);
    }
}

impl RolloutHistory {
    /// An empty history.
    ///
    /// # Errors
    /// If `window` is zero or `max_depth` is out of range.
    pub fn new(options: HistoryOptions) -> Result<Self, Error> {
        if options.window == 0 {
            return Err(Kind::Window(0).into());
        }
        Tree::new(options.max_depth)?;
        let (bytes, inner) = (Arc::default(), Mutex::new(Inner::default()));
        Ok(Self {
            shared: Arc::new(Shared {
                options,
                bytes,
                inner,
            }),
        })
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
        crate::id::check_tokens(context)?;
        let mut inner = lock(&self.shared.inner);
        let sequence = inner.open(&self.shared, problem, context)?;
        self.shared.evict(&mut inner);
        Ok(sequence)
    }

    /// Moves to the next policy version and returns its number.
    pub fn advance(&self) -> u64 {
        let mut inner = lock(&self.shared.inner);
        inner.generation += 1;
        inner.generation
    }

    /// The policy version: how often [`Self::advance`] was called.
    pub fn generation(&self) -> u64 {
        lock(&self.shared.inner).generation
    }

    /// Whether the history has rollouts of a problem.
    pub fn contains(&self, problem: u64) -> bool {
        lock(&self.shared.inner).problems.contains_key(&problem)
    }

    /// The present tree of a problem.
    pub fn tree(&self, problem: u64) -> Option<Arc<Tree>> {
        lock(&self.shared.inner)
            .problems
            .get(&problem)
            .map(|problem| Arc::clone(&problem.tree))
    }

    /// Bytes allocated for all problems.
    pub fn memory_usage(&self) -> usize {
        let inner = lock(&self.shared.inner);
        self.shared.bytes.load(Ordering::Relaxed) + inner.overhead() // a statistic
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
            tokens: problems().map(|problem| problem.tree.len()).sum(),
            bytes: self.shared.bytes.load(Ordering::Relaxed) + inner.overhead(), // a statistic
            expired_rollouts: inner.expired_rollouts,
            evicted_problems: inner.evicted_problems,
        }
    }
}

impl Shared {
    /// Drops the least recently used problems until the rest fits.
    fn evict(&self, inner: &mut Inner) {
        while self.bytes.load(Ordering::Relaxed) > self.options.max_bytes {
            let idle = inner
                .problems
                .iter()
                .filter(|(_, problem)| problem.running == 0);
            let Some((&oldest, _)) = idle.min_by_key(|(_, problem)| problem.last_used) else {
                return;
            };
            inner.problems.remove(&oldest);
            inner.evicted_problems += 1;
        }
    }

    fn new_tree(&self) -> Arc<Tree> {
        Tree::with_meter(self.options.max_depth, Some(Arc::clone(&self.bytes)))
            .expect("the depth was checked")
    }
}

impl Inner {
    fn open(&mut self, shared: &Arc<Shared>, key: u64, context: &[u32]) -> Result<Sequence, Error> {
        let generation = self.generation;
        self.clock += 1;
        let problem = self.problems.entry(key).or_insert_with(|| Problem {
            tree: shared.new_tree(),
            rollouts: Vec::new(),
            visits: 0,
            generation,
            running: 0,
            last_used: 0,
        });
        problem.last_used = self.clock;
        if problem.visits == 0 || problem.generation != generation {
            problem.visits += 1;
            problem.generation = generation;
        }
        self.expired_rollouts += problem.expire(shared) as u64;
        let mut sequence = problem.tree.sequence(context)?;
        sequence.set_home(Home {
            shared: Arc::downgrade(shared),
            problem: key,
        });
        problem.rollouts.push(Rollout {
            id: sequence.id(),
            visit: problem.visits,
        });
        problem.running += 1;
        Ok(sequence)
    }

    /// Bytes of the directory itself.
    fn overhead(&self) -> usize {
        let rollouts: usize = self
            .problems
            .values()
            .map(|problem| problem.rollouts.capacity())
            .sum();
        self.problems.capacity() * size_of::<(u64, Problem)>() + rollouts * size_of::<Rollout>()
    }
}

impl Problem {
    /// Rebuilds the tree without the visits that have left the window; returns how many rollouts went.
    fn expire(&mut self, shared: &Shared) -> usize {
        let inside = |rollout: &Rollout| rollout.visit + shared.options.window as u64 > self.visits;
        let expired = self
            .rollouts
            .iter()
            .filter(|rollout| !inside(rollout))
            .count();
        if expired == 0 || self.running > 0 {
            return 0;
        }
        let tree = shared.new_tree();
        let mut rollouts = Vec::with_capacity(self.rollouts.len() - expired);
        for rollout in self.rollouts.iter().filter(|rollout| inside(rollout)) {
            let id = tree
                .open_record()
                .expect("the new tree holds less than the old one");
            tree.append_record(id, &self.tree.tokens_of(rollout.id))
                .expect("as above");
            tree.close_record(id);
            rollouts.push(Rollout {
                id,
                visit: rollout.visit,
            });
        }
        self.tree = tree;
        self.rollouts = rollouts;
        expired
    }
}
