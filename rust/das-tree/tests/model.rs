//! Properties of the tree against a naive oracle, over interleaved appends with small alphabets.
#![cfg(not(loom))]

#[allow(dead_code, reason = "shared with other tests")]
mod oracle;

use std::collections::HashSet;

use das_tree::{DraftOptions, Sequence, Shape, Tree};
use oracle::{Oracle, assert_same};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    /// Appends to one running sequence.
    Append(usize, Vec<u32>),
    /// Appends the same token to all running sequences, one after the other: forces leaf takeovers.
    Lockstep(u32),
    /// Copies the last few tokens of one running sequence to another.
    Copy(usize, usize, usize),
    Close(usize),
    Open(Vec<u32>),
}

fn op(alphabet: u32) -> impl Strategy<Value = Op> {
    let token = 0..alphabet;
    prop_oneof![
        6 => (any::<usize>(), prop::collection::vec(token.clone(), 1..5)).prop_map(|(i, t)| Op::Append(i, t)),
        8 => token.clone().prop_map(Op::Lockstep),
        3 => (any::<usize>(), any::<usize>(), 1usize..20).prop_map(|(i, j, n)| Op::Copy(i, j, n)),
        1 => any::<usize>().prop_map(Op::Close),
        1 => prop::collection::vec(token, 0..6).prop_map(Op::Open),
    ]
}

fn script() -> impl Strategy<Value = (usize, usize, Vec<Op>)> {
    (
        2u32..5,
        prop::sample::select(vec![4usize, 8, 64]),
        1usize..7,
    )
        .prop_flat_map(|(alphabet, depth, sequences)| {
            (
                Just(depth),
                Just(sequences),
                prop::collection::vec(op(alphabet), 1..60),
            )
        })
}

struct World {
    tree: std::sync::Arc<Tree>,
    sequences: Vec<Sequence>,
    oracle: Oracle,
    most: usize,
}

impl World {
    fn new(max_depth: usize, most: usize) -> Self {
        let mut world = Self {
            tree: Tree::new(max_depth).unwrap(),
            sequences: vec![],
            oracle: Oracle::new(max_depth),
            most,
        };
        world.open(&[]);
        world
    }

    fn open(&mut self, prompt: &[u32]) {
        if self.sequences.len() < self.most {
            self.sequences.push(self.tree.sequence(prompt).unwrap());
            self.oracle.open(prompt);
        }
    }

    fn running(&self) -> Vec<usize> {
        (0..self.sequences.len())
            .filter(|&id| !self.oracle.texts[id].closed)
            .collect()
    }

    fn append(&mut self, id: usize, tokens: &[u32]) {
        self.sequences[id].append(tokens).unwrap();
        self.oracle.append(id, tokens);
    }

    fn close(&mut self, id: usize) {
        self.sequences[id].close();
        self.oracle.close(id);
    }

    fn apply(&mut self, op: &Op) {
        let running = self.running();
        let pick = |i: usize| running[i % running.len()];
        match op {
            Op::Open(prompt) => self.open(prompt),
            _ if running.is_empty() => {}
            Op::Append(i, tokens) => self.append(pick(*i), tokens),
            Op::Lockstep(token) => running.iter().for_each(|&id| self.append(id, &[*token])),
            Op::Copy(i, j, n) => {
                let text = &self.oracle.texts[*i % self.sequences.len()].symbols;
                let tail: Vec<u32> = text[text.len().saturating_sub(*n)..]
                    .iter()
                    .copied()
                    .filter(|&token| token < oracle::START)
                    .collect();
                self.append(pick(*j), &tail);
            }
            Op::Close(i) => self.close(pick(*i)),
        }
    }

    fn check_active(&self) {
        for id in self.running() {
            assert_eq!(
                self.sequences[id].match_length().unwrap(),
                self.oracle.active(id),
                "sequence {id}"
            );
        }
    }

    fn check_counts(&self) {
        let mut strings = HashSet::new();
        for text in &self.oracle.texts {
            for length in 1..=self.tree.max_depth().min(12) {
                strings.extend(
                    text.symbols
                        .windows(length)
                        .filter(|w| w.iter().all(|&t| t < oracle::START)),
                );
            }
        }
        for string in strings {
            assert_eq!(
                u64::from(self.tree.count(string).unwrap()),
                self.oracle.count(string),
                "{string:?}"
            );
        }
    }

    fn check_drafts(&self) {
        for id in self.running() {
            for (max_nodes, floor, shape) in [
                (12, 0.0, Shape::Tree),
                (30, 0.05, Shape::Tree),
                (6, 0.0, Shape::Chain),
            ] {
                let options = DraftOptions {
                    max_nodes,
                    min_probability: floor,
                    shape,
                    ..DraftOptions::default()
                };
                let draft = self.sequences[id].draft(&options).unwrap();
                let expected = self
                    .oracle
                    .draft(id, max_nodes, floor, shape == Shape::Chain);
                assert_same(&draft, &expected);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn active_lengths_and_structure((depth, most, ops) in script()) {
        let mut world = World::new(depth, most);
        for (i, op) in ops.iter().enumerate() {
            world.apply(op);
            world.check_active();
            if i % 4 == 0 {
                world.tree.check_integrity().unwrap();
            }
        }
        world.tree.check_integrity().unwrap();
    }

    #[test]
    fn counts((depth, most, ops) in script()) {
        let mut world = World::new(depth, most);
        ops.iter().for_each(|op| world.apply(op));
        world.check_counts();
        for id in world.running() {
            world.close(id);
        }
        world.check_counts();
        world.tree.check_integrity().unwrap();
    }

    #[test]
    fn drafts((depth, most, ops) in script()) {
        let mut world = World::new(depth, most);
        for (i, op) in ops.iter().enumerate() {
            world.apply(op);
            if i % 8 == 7 {
                world.check_drafts();
            }
        }
        world.check_drafts();
    }

    #[test]
    fn stateless_drafts((depth, most, ops) in script(), text in prop::collection::vec(0u32..4, 1..40)) {
        let mut world = World::new(depth, most);
        ops.iter().for_each(|op| world.apply(op));
        let options = DraftOptions { max_nodes: 12, ..DraftOptions::default() };
        let draft = world.tree.draft(&text, &options).unwrap();
        assert_same(&draft, &world.oracle.stateless(&text, 12, 0.0, false));
    }
}
