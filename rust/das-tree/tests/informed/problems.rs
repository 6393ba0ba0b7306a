//! What a history should hold of one problem: the rollouts inside the window, and the texts they are in.

use std::{cell::RefCell, rc::Rc};

use das_tree::HistoryOptions;

use crate::{
    learned::Row,
    texts::{CHUNK, Texts},
};

/// What an occurrence of weight 1 counts in the visit a tree is made for, and what it may count at most.
const BASE: u64 = 1 << 24;
const LIMIT: u64 = 1 << 28;

pub type Tree = Rc<RefCell<Texts>>;

struct Rollout {
    name: u64,
    visit: u64,
    /// The weight it is to have, and the one it has in the tree.
    weight: f64,
    counted: f64,
    running: bool,
    place: Place,
}

/// The tree a rollout's text is in, or the text alone, if it ended in a tree that has been replaced.
enum Place {
    In(Tree, usize),
    Apart(Vec<(u32, Row)>),
}

pub struct Problem {
    options: HistoryOptions,
    pub tree: Tree,
    rollouts: Vec<Rollout>,
    visit: u64,
    generation: u64,
    /// The visit the tree was made for.
    base: u64,
}

impl Problem {
    pub fn new(options: HistoryOptions) -> Self {
        Self {
            options,
            tree: Rc::new(RefCell::new(Texts::new(options.max_depth, BASE))),
            rollouts: Vec::new(),
            visit: 0,
            generation: 0,
            base: 1,
        }
    }

    /// The first rollout after a change of generation begins a new visit.
    pub fn open(
        &mut self,
        generation: u64,
        name: u64,
        prompt: &[u32],
        weight: f64,
    ) -> (Tree, usize) {
        if self.visit == 0 || self.generation != generation {
            (self.visit, self.generation) = (self.visit + 1, generation);
            self.tree.borrow_mut().oracle.unit = self.counts(self.visit, 1.0);
        }
        let counts = self.counts(self.visit, weight);
        let text = self.tree.borrow_mut().open(prompt, counts);
        self.rollouts.push(Rollout {
            name,
            visit: self.visit,
            weight,
            counted: weight,
            running: true,
            place: Place::In(Rc::clone(&self.tree), text),
        });
        (Rc::clone(&self.tree), text)
    }

    /// A rollout has ended. In an earlier tree it waits for the next one, unless its visit has left the window.
    pub fn close(&mut self, name: u64, weight: Option<f64>) {
        let Some(at) = self
            .rollouts
            .iter()
            .position(|rollout| rollout.name == name)
        else {
            return;
        };
        let rollout = &mut self.rollouts[at];
        rollout.running = false;
        rollout.weight = weight.unwrap_or(rollout.weight);
        if !rollout.is_in(&self.tree) {
            rollout.place = Place::Apart(rollout.script());
            if !rollout.stays(self.visit, self.options.window) {
                self.rollouts.remove(at);
            }
        }
    }

    /// Prepares the next visit: a new tree, if anything is to leave, to come in, or to be weighed anew.
    pub fn turn(&mut self) {
        let (next, window) = (self.visit + 1, self.options.window);
        let is_right = |rollout: &Rollout| {
            let settled = rollout.counted == rollout.weight && rollout.is_in(&self.tree);
            rollout.stays(next, window) && (rollout.running || settled)
        };
        if self.rollouts.iter().all(is_right) && self.counts(next, 1.0) <= LIMIT {
            return;
        }
        self.rollouts.retain(|rollout| rollout.stays(next, window));
        self.base = next;
        let all = self.rollouts.iter_mut();
        all.filter(|rollout| !rollout.running)
            .for_each(|rollout| rollout.counted = rollout.weight);
        self.rebuild(|_| true, false);
        if self.rollouts.is_empty() {
            *self = Self::new(self.options);
        }
    }

    /// What is left after saving and loading: rollouts that ran have ended.
    pub fn reload(&mut self) {
        let running = self.rollouts.iter().filter(|rollout| rollout.running);
        let running: Vec<u64> = running.map(|rollout| rollout.name).collect();
        running.iter().for_each(|&name| self.close(name, None));
        self.rebuild(|rollout| matches!(rollout.place, Place::In(..)), true);
    }

    /// Puts the rollouts that have ended, of these, into a new tree: one after the other, or, if their chunks are to lie `as_before`,
    /// by chunks.
    fn rebuild(&mut self, which: impl Fn(&Rollout) -> bool, as_before: bool) {
        let unit = self.counts(self.visit, 1.0);
        let tree = Rc::new(RefCell::new(Texts::new(self.options.max_depth, unit)));
        let mut chunks = Vec::new();
        for (at, rollout) in self.rollouts.iter().enumerate() {
            if !rollout.running && which(rollout) {
                let begun = rollout.chunks();
                chunks.extend(begun.into_iter().map(|begun| (begun, at)));
            }
        }
        if as_before {
            chunks.sort_unstable();
        }
        let mut texts = tree.borrow_mut();
        let mut fresh = vec![None; self.rollouts.len()];
        for (_, at) in chunks {
            let rollout = &self.rollouts[at];
            let script = rollout.script();
            let (text, from) = fresh[at].unwrap_or_else(|| {
                let counts = self.counts(rollout.visit, rollout.counted);
                (texts.open(&[], counts), 0)
            });
            // The start marker is in the first chunk.
            let until = script.len().min((from + 1) / CHUNK * CHUNK + CHUNK - 1);
            texts.append(text, &script[from..until]);
            fresh[at] = Some((text, until));
        }
        drop(texts);
        for (rollout, fresh) in self.rollouts.iter_mut().zip(fresh) {
            if let Some((text, _)) = fresh {
                tree.borrow_mut().close(text);
                rollout.place = Place::In(Rc::clone(&tree), text);
            }
        }
        self.tree = tree;
    }

    /// What an occurrence in a rollout of a visit counts: `decay` times as much with every visit before the tree's own, and as
    /// much more with every one after it.
    fn counts(&self, visit: u64, weight: f64) -> u64 {
        let mut counts = BASE as f64 * weight;
        (visit..self.base).for_each(|_| counts *= self.options.decay);
        (self.base..visit).for_each(|_| counts /= self.options.decay);
        (counts.round() as u64).clamp(1, 16 * LIMIT)
    }
}

impl Rollout {
    fn stays(&self, visit: u64, window: usize) -> bool {
        self.running || (self.weight > 0.0 && self.visit + window as u64 > visit)
    }

    fn is_in(&self, tree: &Tree) -> bool {
        matches!(&self.place, Place::In(own, _) if Rc::ptr_eq(own, tree))
    }

    /// When each chunk of its text that has tokens, or the start marker, was begun, as far as they are in a tree.
    fn chunks(&self) -> Vec<usize> {
        let chunks = (self.script().len() + 1).div_ceil(CHUNK);
        match &self.place {
            Place::Apart(_) => vec![0; chunks],
            Place::In(tree, text) => {
                let begun = |chunk| tree.borrow().begun(*text, chunk);
                (0..chunks).map(begun).collect()
            }
        }
    }

    fn script(&self) -> Vec<(u32, Row)> {
        match &self.place {
            Place::Apart(script) => script.clone(),
            Place::In(tree, text) => tree.borrow().script(*text),
        }
    }
}
