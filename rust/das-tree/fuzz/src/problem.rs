//! What a history should hold of one problem: rollouts inside the window, and the tree they are in.

use std::{cell::RefCell, rc::Rc};

use das_tree::HistoryOptions;

use crate::{
    model::{CHUNK, Model, Row},
    world::shared,
};

/// What an occurrence of weight 1 counts in the visit a tree is made for, and what it may count at most.
const BASE: u64 = 1 << 24;
const LIMIT: u64 = 1 << 28;

pub type Tree = Rc<RefCell<Model>>;

#[derive(Clone)]
struct Rollout {
    serial: u64,
    visit: u64,
    /// The weight it is to have, and the one it has in the tree.
    weight: f64,
    counted: f64,
    running: bool,
    /// The tree its text is in, and which one it is there; or its tokens and what is kept beside them, if it ended in a tree that
    /// is gone.
    place: Place,
}

#[derive(Clone)]
enum Place {
    In(Tree, usize),
    Apart(Vec<u32>, Vec<Row>),
}

pub struct Problem {
    options: HistoryOptions,
    /// Whether distributions come with tokens.
    knows: bool,
    pub tree: Tree,
    rollouts: Vec<Rollout>,
    visit: u64,
    generation: u64,
    /// The visit the tree was made for.
    base: u64,
}

impl Problem {
    pub fn new(options: HistoryOptions, knows: bool) -> Self {
        let tree = shared(Model::new(options.max_depth, BASE, knows));
        Self {
            options,
            knows,
            tree,
            rollouts: Vec::new(),
            visit: 0,
            generation: 0,
            base: 1,
        }
    }

    pub fn rollouts(&self) -> usize {
        self.rollouts.len()
    }

    /// Tokens of all texts in the tree, markers not counted.
    pub fn tokens(&self) -> usize {
        let tree = self.tree.borrow();
        let texts = tree.texts.iter();
        texts
            .map(|text| text.symbols.len() - 1 - usize::from(text.closed))
            .sum()
    }

    /// The first rollout after a change of generation begins a new visit.
    pub fn open(
        &mut self,
        generation: u64,
        serial: u64,
        prompt: &[u32],
        weight: f64,
    ) -> (Tree, usize) {
        if self.visit == 0 || self.generation != generation {
            self.visit += 1;
            self.generation = generation;
            self.tree.borrow_mut().unit = self.counts(self.visit, 1.0);
        }
        let counts = self.counts(self.visit, weight);
        let text = self.tree.borrow_mut().open(prompt, counts);
        self.rollouts.push(Rollout {
            serial,
            visit: self.visit,
            weight,
            counted: weight,
            running: true,
            place: Place::In(Rc::clone(&self.tree), text),
        });
        (Rc::clone(&self.tree), text)
    }

    /// A rollout has ended. In an earlier tree it waits for the next one, unless its visit has left the window.
    pub fn close(&mut self, serial: u64, weight: Option<f64>) {
        let Some(at) = self
            .rollouts
            .iter()
            .position(|rollout| rollout.serial == serial)
        else {
            return;
        };
        let (visit, window) = (self.visit, self.options.window);
        let rollout = &mut self.rollouts[at];
        rollout.running = false;
        rollout.weight = weight.unwrap_or(rollout.weight);
        let (stays, apart) = (rollout.stays(visit, window), !rollout.is_in(&self.tree));
        if apart {
            let (tokens, rows) = rollout.script();
            rollout.place = Place::Apart(tokens, rows);
            if !stays {
                self.rollouts.remove(at);
            }
        }
    }

    /// Prepares the next visit: a new tree, if anything is to leave, to come in, or to be weighed anew.
    pub fn turn(&mut self) {
        let (next, window) = (self.visit + 1, self.options.window);
        let is_right = |rollout: &Rollout| {
            rollout.running || (rollout.counted == rollout.weight && rollout.is_in(&self.tree))
        };
        let can_stay = |rollout: &Rollout| rollout.stays(next, window) && is_right(rollout);
        if self.rollouts.iter().all(can_stay) && self.counts(next, 1.0) <= LIMIT {
            return;
        }
        self.rollouts.retain(|rollout| rollout.stays(next, window));
        self.base = next;
        let ended = (0..self.rollouts.len()).filter(|&at| !self.rollouts[at].running);
        let ended: Vec<usize> = ended.collect();
        for &at in &ended {
            self.rollouts[at].counted = self.rollouts[at].weight;
        }
        self.rebuild(&ended, false);
        if self.rollouts.is_empty() {
            *self = Self::new(self.options, self.knows);
        }
    }

    /// What is left after saving and loading: rollouts that ran have ended.
    pub fn reload(&mut self) {
        let tree = Rc::clone(&self.tree);
        let running: Vec<u64> = self
            .rollouts
            .iter()
            .filter(|rollout| rollout.running && !rollout.is_in(&tree))
            .map(|rollout| rollout.serial)
            .collect();
        running.iter().for_each(|&serial| self.close(serial, None));
        self.rollouts
            .iter_mut()
            .for_each(|rollout| rollout.running = false);
        let here = (0..self.rollouts.len()).filter(|&at| self.rollouts[at].is_in(&tree));
        let here: Vec<usize> = here.collect();
        self.rebuild(&here, true);
    }

    /// Puts these rollouts into a new tree, closed: one after the other, or, if their chunks are to lie `as_before`, by chunks.
    fn rebuild(&mut self, which: &[usize], as_before: bool) {
        let tree = self.empty_tree();
        let mut chunks: Vec<(usize, usize)> = Vec::new();
        for &at in which {
            let begun = self.rollouts[at].chunks();
            chunks.extend(begun.into_iter().map(|begun| (begun, at)));
        }
        if as_before {
            chunks.sort_unstable();
        }
        let mut model = tree.borrow_mut();
        let mut fresh = vec![None; self.rollouts.len()];
        for (_, at) in chunks {
            let rollout = &self.rollouts[at];
            let (tokens, rows) = rollout.script();
            // The start marker is in the first chunk.
            let (text, from) = fresh[at].unwrap_or_else(|| {
                let counts = self.counts(rollout.visit, rollout.counted);
                (model.open(&[], counts), 0)
            });
            let until = tokens.len().min((from + 1) / CHUNK * CHUNK + CHUNK - 1);
            let rows = rows.get(from..until).unwrap_or_default();
            model.append_kept(text, &tokens[from..until], rows);
            fresh[at] = Some((text, until));
        }
        for (rollout, fresh) in self.rollouts.iter_mut().zip(fresh) {
            if let Some((text, _)) = fresh {
                model.close(text);
                rollout.place = Place::In(Rc::clone(&tree), text);
            }
        }
        drop(model);
        self.tree = tree;
    }

    /// A tree for what stays.
    fn empty_tree(&self) -> Tree {
        let unit = self.counts(self.visit, 1.0);
        shared(Model::new(self.options.max_depth, unit, self.knows))
    }

    /// What an occurrence in a rollout of a visit counts: `decay` times as much with every visit before the tree's own, and
    /// as much more with every one after it.
    fn counts(&self, visit: u64, weight: f64) -> u64 {
        let mut counts = BASE as f64 * weight;
        for _ in visit..self.base {
            counts *= self.options.decay;
        }
        for _ in self.base..visit {
            counts /= self.options.decay;
        }
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
        let chunks = (self.script().0.len() + 1).div_ceil(CHUNK);
        match &self.place {
            Place::Apart(..) => vec![0; chunks],
            Place::In(tree, text) => (0..chunks)
                .map(|chunk| tree.borrow().begun(*text, chunk))
                .collect(),
        }
    }

    fn script(&self) -> (Vec<u32>, Vec<Row>) {
        match &self.place {
            Place::Apart(tokens, rows) => (tokens.clone(), rows.clone()),
            Place::In(tree, text) => tree.borrow().script(*text),
        }
    }
}
