//! One problem of a history: its rollouts by visit and weight, and its tree, present or being rebuilt.
//!
//! An occurrence of weight 1 counts [`BASE`] in the visit a tree was made for. Later visits count `1 / decay` more each: all
//! that is older loses weight without being touched. A rebuild starts at [`BASE`] again.

use crate::{
    history::{
        HistoryOptions,
        rebuild::{Material, Rebuild, Source, SourceText},
        script::Script,
    },
    id::SeqId,
    meter::Ledger,
    sync::{Arc, Weak},
    tree::{Lore, Tree},
};

/// What an occurrence counts at first. A power of two, so that shares are the same as of plain numbers.
const BASE: u64 = 1 << 24;
/// What it may come to count before a rebuild begins at [`BASE`] again: 2^31 tokens of weight 16 then still add up.
const LIMIT: u64 = 1 << 28;
/// More than a token takes in a tree, to reserve room for one to be made.
const BYTES_PER_TOKEN: usize = 96;

/// What an occurrence counts in a visit, in a tree made for the visit `base`: the same on every machine.
pub(crate) fn increment(decay: f64, base: u64, visit: u64, weight: f64) -> u64 {
    let mut count = BASE as f64 * weight;
    let mut age = base;
    while age > visit && count >= 0.5 {
        count *= decay;
        age -= 1;
    }
    for _ in base..visit {
        count /= decay;
        if count > 16.0 * LIMIT as f64 {
            break;
        }
    }
    (count.round() as u64).clamp(1, 16 * LIMIT)
}

/// Bytes that a tree of so many tokens takes at most.
fn bound(tokens: usize) -> usize {
    2 * size_of::<Tree>() + BYTES_PER_TOKEN * tokens
}

/// A problem's tree.
#[derive(Debug)]
pub(crate) enum Standing {
    Ready(Arc<Tree>),
    /// Being made; put to use by the next call that needs it.
    Due(Arc<Rebuild>),
}

/// A problem.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) standing: Standing,
    /// What its trees draw on beside their own texts.
    lore: Lore,
    /// Number of the tree. A rollout that runs on while the tree is replaced stays in the one it is in.
    epoch: u64,
    /// Rollouts inside the window or running, oldest first.
    pub(crate) rollouts: Vec<Rollout>,
    /// Earlier trees with running rollouts.
    retired: Vec<Retired>,
    /// Visits so far, the generation of the last one, and the visit the tree was made for.
    pub(crate) visits: u64,
    pub(crate) generation: u64,
    base: u64,
    pub(crate) running: usize,
    pub(crate) last_used: u64,
    /// Whether it is on the history's list of those to look at when the policy version moves.
    pub(crate) touched: bool,
}

/// A rollout of a problem.
#[derive(Debug)]
pub(crate) struct Rollout {
    /// Its number in the history.
    serial: u64,
    pub(crate) visit: u64,
    pub(crate) weight: f64,
    /// The weight it has in the tree.
    counted: f64,
    running: bool,
    place: Place,
}

/// Where a rollout's text is.
#[derive(Debug)]
enum Place {
    /// In the problem's tree.
    Here(SeqId),
    /// In the earlier tree of this number, where it runs.
    Before(u64, SeqId),
    /// By itself: it ended in an earlier tree.
    Apart(Arc<Script>),
}

/// An earlier tree, kept by the rollouts that run on in it, and how many these are.
#[derive(Debug)]
struct Retired {
    epoch: u64,
    tree: Weak<Tree>,
    running: usize,
}

/// A problem on its way to or from a file.
#[derive(Debug)]
pub(crate) struct SavedProblem {
    pub(crate) key: u64,
    pub(crate) visits: u64,
    pub(crate) generation: u64,
    pub(crate) base: u64,
    pub(crate) last_used: u64,
    pub(crate) rollouts: Vec<SavedRollout>,
    /// From a file: which of the rollouts in the tree each chunk of its text is of, unless one came after the other.
    pub(crate) order: Vec<u32>,
}

/// A rollout on its way to or from a file.
#[derive(Debug)]
pub(crate) struct SavedRollout {
    pub(crate) visit: u64,
    pub(crate) weight: f64,
    pub(crate) counted: f64,
    /// Whether it waits for the next rebuild to come into the tree.
    pub(crate) apart: bool,
    pub(crate) text: SourceText,
}

/// What the beginning of a visit makes of a problem.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Rollouts that left.
    pub(crate) expired: usize,
    /// The tree replaced.
    pub(crate) old: Arc<Tree>,
    /// Bytes of texts kept apart that are now in the new tree or gone.
    pub(crate) scripts: usize,
}

impl Problem {
    pub(crate) fn new(max_depth: usize, generation: u64, ledger: &Arc<Ledger>, lore: Lore) -> Self {
        let tree = Tree::in_history(max_depth, BASE, ledger, lore.clone());
        tree.meter.set_aside(false);
        Self {
            standing: Standing::Ready(tree),
            lore,
            epoch: 0,
            rollouts: Vec::new(),
            retired: Vec::new(),
            visits: 0,
            generation,
            base: 1,
            running: 0,
            last_used: 0,
            touched: false,
        }
    }

    /// The problem that was saved so, with its tree to be made.
    pub(crate) fn restored(
        options: &HistoryOptions,
        ledger: &Arc<Ledger>,
        lore: Lore,
        saved: SavedProblem,
    ) -> Self {
        let mut problem = Self::new(options.max_depth, saved.generation, ledger, lore);
        (problem.visits, problem.base, problem.last_used) =
            (saved.visits, saved.base, saved.last_used);
        let mut sources = Vec::with_capacity(saved.rollouts.len());
        for rollout in saved.rollouts {
            let SavedRollout {
                visit,
                weight,
                counted,
                apart,
                text,
            } = rollout;
            let mut rollout = Rollout {
                serial: 0,
                visit,
                weight,
                counted,
                running: false,
                place: Place::Here(sources.len() as SeqId),
            };
            if apart {
                rollout.place = Place::Apart(text.script());
            } else {
                let weight = increment(options.decay, saved.base, visit, counted);
                sources.push(Source { text, weight });
            }
            problem.rollouts.push(rollout);
        }
        let order = saved.order;
        let material = Material { sources, order };
        let reserved = bound(material.tokens());
        problem.replace(options, ledger, material, reserved);
        problem
    }

    /// Bytes of its lists.
    pub(crate) fn directory(&self) -> usize {
        self.rollouts.capacity() * size_of::<Rollout>()
            + self.retired.capacity() * size_of::<Retired>()
    }

    /// Bytes of the texts kept apart.
    pub(crate) fn scripts(&self) -> usize {
        self.rollouts.iter().map(Rollout::script_bytes).sum()
    }

    /// Output tokens in its tree.
    pub(crate) fn tokens(&self) -> usize {
        match &self.standing {
            Standing::Ready(tree) => tree.len(),
            Standing::Due(rebuild) => rebuild.tokens,
        }
    }

    /// Begins a visit if the last one was of another generation.
    pub(crate) fn visit(&mut self, generation: u64, decay: f64, tree: &Tree) {
        if self.visits == 0 || self.generation != generation {
            self.visits += 1;
            self.generation = generation;
            tree.set_unit(increment(decay, self.base, self.visits, 1.0));
        }
    }

    /// What an occurrence in a rollout of the present visit counts.
    pub(crate) fn increment(&self, decay: f64, weight: f64) -> u64 {
        increment(decay, self.base, self.visits, weight)
    }

    /// Notes a rollout that has begun.
    pub(crate) fn opened(&mut self, serial: u64, id: SeqId, weight: f64) {
        self.running += 1;
        self.rollouts.push(Rollout {
            serial,
            visit: self.visits,
            weight,
            counted: weight,
            running: true,
            place: Place::Here(id),
        });
    }

    /// Notes that a rollout has ended, in the tree given. Returns the bytes of its text if that is kept apart now, and whether
    /// it left because its visit had.
    pub(crate) fn closed(
        &mut self,
        serial: u64,
        weight: Option<f64>,
        window: usize,
        (tree, id): (&Tree, SeqId),
    ) -> (usize, bool) {
        self.running -= 1;
        let at = self
            .rollouts
            .partition_point(|rollout| rollout.serial < serial);
        let Some(rollout) = self.rollouts.get_mut(at) else {
            return (0, false);
        };
        rollout.running = false;
        if let Some(weight) = weight {
            rollout.weight = weight;
        }
        let Place::Before(epoch, _) = rollout.place else {
            return (0, false);
        };
        self.leave(epoch, tree);
        let rollout = &mut self.rollouts[at];
        if !rollout.stays(self.visits, window) {
            self.rollouts.remove(at);
            return (0, true);
        }
        rollout.place = Place::Apart(Arc::new(tree.script(id)));
        (rollout.script_bytes(), false)
    }

    /// The earlier tree of this number, in which rollouts run.
    fn earlier(&self, epoch: u64) -> Option<Arc<Tree>> {
        let mut retired = self.retired.iter();
        retired
            .find(|retired| retired.epoch == epoch)?
            .tree
            .upgrade()
    }

    /// One rollout fewer runs in an earlier tree; after the last one the tree is on its way out.
    fn leave(&mut self, epoch: u64, tree: &Tree) {
        let Some(at) = self
            .retired
            .iter()
            .position(|retired| retired.epoch == epoch)
        else {
            return;
        };
        self.retired[at].running -= 1;
        if self.retired[at].running == 0 {
            self.retired.remove(at);
            tree.meter.set_aside(true);
        }
    }

    /// Prepares the next visit: rollouts that will be outside the window then leave, those that ended elsewhere come in, and
    /// weights are put right. `None` if all can stay as it is.
    pub(crate) fn turn(&mut self, options: &HistoryOptions, ledger: &Arc<Ledger>) -> Option<Turn> {
        let Standing::Ready(old) = &self.standing else {
            return None;
        };
        let old = Arc::clone(old);
        let next = self.visits + 1;
        let stays = |rollout: &Rollout| rollout.stays(next, options.window);
        let settled = |rollout: &Rollout| stays(rollout) && !rollout.is_out_of_place();
        if self.rollouts.iter().all(settled) && self.increment_of(options.decay, next) <= LIMIT {
            return None;
        }
        let scripts = self.scripts();
        let before = self.rollouts.len();
        self.rollouts.retain(stays);
        let expired = before - self.rollouts.len();
        let (mut sources, mut stragglers) = (Vec::new(), 0);
        for rollout in &mut self.rollouts {
            let text = match &rollout.place {
                Place::Before(..) => continue,
                &Place::Here(id) if rollout.running => {
                    rollout.place = Place::Before(self.epoch, id);
                    stragglers += 1;
                    continue;
                }
                Place::Here(id) => SourceText::Tree(Arc::clone(&old), *id),
                Place::Apart(script) => SourceText::Script(Arc::clone(script)),
            };
            (rollout.place, rollout.counted) =
                (Place::Here(sources.len() as SeqId), rollout.weight);
            let weight = increment(options.decay, next, rollout.visit, rollout.weight);
            sources.push(Source { text, weight });
        }
        if stragglers > 0 {
            let (epoch, tree, running) = (self.epoch, Arc::downgrade(&old), stragglers);
            self.retired.push(Retired {
                epoch,
                tree,
                running,
            });
        } else {
            old.meter.set_aside(true);
        }
        (self.epoch, self.base) = (self.epoch + 1, next);
        let order = Vec::new();
        let material = Material { sources, order };
        let tokens = material.tokens();
        let reserved = if scripts == 0 {
            bound(tokens).min(old.memory_usage()) // there is less in it than in the old one
        } else {
            bound(tokens)
        };
        self.replace(options, ledger, material, reserved);
        Some(Turn {
            expired,
            old,
            scripts,
        })
    }

    /// Puts a tree of these texts in the place of the present one.
    fn replace(
        &mut self,
        options: &HistoryOptions,
        ledger: &Arc<Ledger>,
        material: Material,
        reserved: usize,
    ) {
        // Until the next visit begins, weights are those the last one saw.
        let unit = self.increment_of(options.decay, self.visits);
        if material.sources.is_empty() {
            let tree = Tree::in_history(options.max_depth, unit, ledger, self.lore.clone());
            tree.meter.set_aside(false);
            self.standing = Standing::Ready(tree);
            return;
        }
        let lore = self.lore.clone();
        let rebuild = Rebuild::new(options.max_depth, unit, ledger, lore, material, reserved);
        self.standing = Standing::Due(Arc::new(rebuild));
    }

    fn increment_of(&self, decay: f64, visit: u64) -> u64 {
        increment(decay, self.base, visit, 1.0)
    }

    /// The problem as it is to be saved; its tree must be at hand. Rollouts that run are taken as if they ended now.
    pub(crate) fn saved(&self, key: u64, window: usize) -> SavedProblem {
        let saved = |rollout: &Rollout| {
            let (apart, text) = match (&rollout.place, &self.standing) {
                (Place::Here(id), Standing::Ready(tree)) => {
                    (false, SourceText::Tree(Arc::clone(tree), *id))
                }
                (Place::Before(epoch, id), _) if rollout.is_inside(self.visits, window) => {
                    (true, SourceText::Tree(self.earlier(*epoch)?, *id))
                }
                (Place::Apart(script), _) => (true, SourceText::Script(Arc::clone(script))),
                _ => return None,
            };
            let Rollout {
                visit,
                weight,
                counted,
                ..
            } = *rollout;
            Some(SavedRollout {
                visit,
                weight,
                counted,
                apart,
                text,
            })
        };
        SavedProblem {
            key,
            visits: self.visits,
            generation: self.generation,
            base: self.base,
            last_used: self.last_used,
            rollouts: self.rollouts.iter().filter_map(saved).collect(),
            order: Vec::new(),
        }
    }
}

impl Rollout {
    /// Whether it is inside the window of a visit, or runs.
    fn stays(&self, visit: u64, window: usize) -> bool {
        self.running || self.is_inside(visit, window)
    }

    /// Whether it is inside the window of a visit.
    fn is_inside(&self, visit: u64, window: usize) -> bool {
        self.weight > 0.0 && self.visit.saturating_add(window as u64) > visit
    }

    /// Whether a rebuild would do something for it.
    fn is_out_of_place(&self) -> bool {
        !self.running && (self.counted != self.weight || matches!(self.place, Place::Apart(_)))
    }

    fn script_bytes(&self) -> usize {
        match &self.place {
            Place::Apart(script) => script.memory_usage(),
            _ => 0,
        }
    }
}
