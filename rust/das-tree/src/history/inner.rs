//! What a history consists of, behind its lock, and every change of it.

use std::collections::{BTreeSet, HashMap};

use crate::{
    backoff::Backoff,
    error::Error,
    history::{
        HistoryOptions, Home,
        problem::{Problem, Standing},
        rebuild::Rebuild,
    },
    id::SeqId,
    meter::Ledger,
    sequence::Sequence,
    sync::{Arc, Mutex, MutexGuard, Weak, Worker, lock},
    tree::{Lore, Tree},
};

/// A tree of more bytes than this is dropped in the background.
const LARGE: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: HistoryOptions,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) backoff: Arc<Backoff>,
    pub(crate) inner: Mutex<Inner>,
    /// Held while a file is written.
    pub(crate) saving: Mutex<()>,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) generation: u64,
    /// Counts rollouts opened: their serial numbers, and the order of visits.
    pub(crate) clock: u64,
    pub(crate) problems: HashMap<u64, Problem>,
    /// Problems used since the policy version moved, in order.
    pub(crate) touched: Vec<u64>,
    /// Problems whose tree is being made, the bytes reserved for all of these trees and for the largest one.
    pub(crate) due: BTreeSet<u64>,
    pub(crate) reserved: usize,
    pub(crate) largest: usize,
    /// Bytes of the problems' lists, and of texts kept apart.
    pub(crate) directory: usize,
    pub(crate) scripts: usize,
    pub(crate) workers: Vec<Worker>,
    pub(crate) expired_rollouts: u64,
    pub(crate) evicted_problems: u64,
}

impl Shared {
    /// What a problem's trees draw on beside their own texts.
    pub(crate) fn lore(&self, problem: u64) -> Lore {
        Lore {
            backoff: Arc::clone(&self.backoff),
            problem,
            soft: self.options.soft,
            shared: self.options.shared,
            rejected: self.options.rejected,
        }
    }

    /// The inside, with the problem's tree at hand.
    pub(crate) fn settled(&self, key: u64) -> MutexGuard<'_, Inner> {
        loop {
            let mut inner = lock(&self.inner);
            match inner.problems.get(&key).map(|problem| &problem.standing) {
                Some(Standing::Due(rebuild)) => {
                    let rebuild = Arc::clone(rebuild);
                    if let Some(tree) = rebuild.finished() {
                        inner.settle(key, &rebuild, Arc::clone(tree));
                        return inner;
                    }
                    drop(inner);
                    rebuild.finish();
                }
                _ => return inner,
            }
        }
    }

    /// Takes out the least recently used problems until the rest fits; returns their trees.
    pub(crate) fn evict(&self, inner: &mut Inner) -> Vec<Arc<Tree>> {
        let mut dropped = Vec::new();
        while self.charged(inner) > self.options.max_bytes {
            let idle = inner
                .problems
                .iter()
                .filter(|(_, problem)| problem.running == 0);
            let Some((&oldest, _)) = idle.min_by_key(|(_, problem)| problem.last_used) else {
                break;
            };
            dropped.extend(inner.remove(oldest));
            inner.evicted_problems += 1;
        }
        dropped
    }

    /// Bytes held against the budget. What background work is doing at the moment has no part in it: all of what is being
    /// made is charged beforehand, and the largest tree of it twice, since it is there together with its predecessor.
    pub(crate) fn charged(&self, inner: &Inner) -> usize {
        self.ledger.live()
            + inner.reserved
            + inner.largest
            + inner.overhead()
            + self.backoff.memory_usage()
    }

    pub(crate) fn bytes(&self, inner: &Inner) -> usize {
        self.ledger.live() + self.ledger.aside() + inner.overhead() + self.backoff.memory_usage()
    }
}

impl Inner {
    pub(crate) fn open(
        &mut self,
        shared: &Arc<Shared>,
        key: u64,
        context: &[u32],
        weight: f64,
    ) -> Result<Sequence, Error> {
        let (options, generation) = (&shared.options, self.generation);
        self.clock += 1;
        let serial = self.clock;
        let new = || {
            Problem::new(
                options.max_depth,
                generation,
                &shared.ledger,
                shared.lore(key),
            )
        };
        let problem = self.problems.entry(key).or_insert_with(new);
        let Standing::Ready(tree) = &problem.standing else {
            unreachable!("the caller has settled the problem");
        };
        let tree = Arc::clone(tree);
        let directory = problem.directory();
        problem.last_used = serial;
        problem.visit(generation, options.decay, &tree);
        let increment = problem.increment(options.decay, weight);
        let mut sequence = Sequence::open(&tree, context, increment)?;
        sequence.set_home(Home {
            shared: Arc::downgrade(shared),
            problem: key,
            serial,
        });
        problem.opened(
            serial,
            sequence.id().expect("it has just been opened"),
            weight,
        );
        self.directory = self.directory - directory + problem.directory();
        self.touch(key);
        Ok(sequence)
    }

    pub(crate) fn close(
        &mut self,
        shared: &Shared,
        home: &Home,
        tree: &Tree,
        id: SeqId,
        weight: Option<f64>,
    ) {
        let Some(problem) = self.problems.get_mut(&home.problem) else {
            return;
        };
        let (script, expired) =
            problem.closed(home.serial, weight, shared.options.window, (tree, id));
        self.scripts += script;
        self.expired_rollouts += u64::from(expired);
        self.touch(home.problem);
    }

    /// Notes that a problem is to be looked at when the policy version moves.
    pub(crate) fn touch(&mut self, key: u64) {
        let Some(problem) = self.problems.get_mut(&key) else {
            return;
        };
        if !std::mem::replace(&mut problem.touched, true) {
            self.touched.push(key);
        }
    }

    /// Prepares all problems used since the last time for their next visit. Returns the trees to make and those replaced.
    pub(crate) fn turn(&mut self, shared: &Shared) -> (Vec<Weak<Rebuild>>, Vec<Arc<Tree>>) {
        let (mut rebuilds, mut dropped) = (Vec::new(), Vec::new());
        for key in std::mem::take(&mut self.touched) {
            let Some(problem) = self.problems.get_mut(&key) else {
                continue;
            };
            problem.touched = false;
            let directory = problem.directory();
            let turn = problem.turn(&shared.options, &shared.ledger);
            self.directory = self.directory - directory + problem.directory();
            if problem.rollouts.is_empty() {
                dropped.extend(self.remove(key));
            } else if let (Some(_), Standing::Due(rebuild)) = (&turn, &problem.standing) {
                rebuilds.push(Arc::downgrade(rebuild));
                let reserved = rebuild.reserved;
                self.make_due(key, reserved);
            }
            if let Some(turn) = turn {
                self.scripts -= turn.scripts;
                self.expired_rollouts += turn.expired as u64;
                dropped.push(turn.old);
            }
        }
        (rebuilds, dropped)
    }

    /// Puts a tree that has been made to use.
    pub(crate) fn settle(&mut self, key: u64, rebuild: &Arc<Rebuild>, tree: Arc<Tree>) {
        if let Some(problem) = self.problems.get_mut(&key) {
            tree.meter.set_aside(false);
            problem.standing = Standing::Ready(tree);
            self.not_due(key, rebuild.reserved);
        }
    }

    pub(crate) fn make_due(&mut self, key: u64, reserved: usize) {
        self.due.insert(key);
        self.reserved += reserved;
        self.largest = self.largest.max(reserved);
    }

    pub(crate) fn not_due(&mut self, key: u64, reserved: usize) {
        self.due.remove(&key);
        self.reserved -= reserved;
        if self.due.is_empty() {
            self.largest = 0;
        }
    }

    /// Takes a problem out; returns its tree if it has one.
    pub(crate) fn remove(&mut self, key: u64) -> Option<Arc<Tree>> {
        let problem = self.problems.remove(&key)?;
        self.directory -= problem.directory();
        self.scripts -= problem.scripts();
        match problem.standing {
            Standing::Ready(tree) => {
                tree.meter.set_aside(true);
                Some(tree)
            }
            Standing::Due(rebuild) => {
                self.not_due(key, rebuild.reserved);
                None
            }
        }
    }

    /// Makes and drops trees, in the background if there is much to do.
    pub(crate) fn work(&mut self, rebuilds: Vec<Weak<Rebuild>>, dropped: Vec<Arc<Tree>>) {
        let is_large =
            |tree: &Arc<Tree>| Arc::strong_count(tree) == 1 && tree.memory_usage() > LARGE;
        if rebuilds.is_empty() && !dropped.iter().any(is_large) {
            return;
        }
        let work = move || {
            drop(dropped);
            for rebuild in rebuilds.iter().filter_map(Weak::upgrade) {
                rebuild.finish();
            }
        };
        self.workers.retain(|worker| !worker.is_finished());
        // Without a thread, trees are made when they are needed.
        self.workers.extend(Worker::start("das-history", work));
    }

    /// Bytes beside the trees.
    pub(crate) fn overhead(&self) -> usize {
        let entry = size_of::<(u64, Problem)>() + 1;
        self.problems.capacity() * entry
            + 8 * self.touched.capacity()
            + self.directory
            + self.scripts
    }
}
