//! Rollouts of different weight that grow in one tree at once, against the naive oracle: weighted counts and drafts, and the
//! takeover of a leaf by a lighter or a heavier text.
#![cfg(not(loom))]

#[allow(dead_code, reason = "shared with other tests")]
mod oracle;

use das_tree::{DraftOptions, HistoryOptions, RolloutHistory, Sequence};
use oracle::Oracle;
use proptest::prelude::*;

/// What an occurrence of weight 1 counts in the oracle: as fine as the weights used here.
const UNIT: u64 = 16;

#[derive(Clone, Debug)]
enum Op {
    /// Opens a rollout of this weight in sixteenths.
    Open(Vec<u32>, u64),
    Append(usize, Vec<u32>),
    Lockstep(u32),
    Close(usize),
}

fn op(alphabet: u32) -> impl Strategy<Value = Op> {
    let token = 0..alphabet;
    let prompt = prop::collection::vec(token.clone(), 0..5);
    prop_oneof![
        2 => (prompt, 1u64..64).prop_map(|(prompt, weight)| Op::Open(prompt, weight)),
        6 => (any::<usize>(), prop::collection::vec(token.clone(), 1..6)).prop_map(|(i, t)| Op::Append(i, t)),
        8 => token.prop_map(Op::Lockstep),
        1 => any::<usize>().prop_map(Op::Close),
    ]
}

struct World {
    history: RolloutHistory,
    oracle: Oracle,
    sequences: Vec<Sequence>,
}

impl World {
    fn new(max_depth: usize) -> Self {
        let options = HistoryOptions {
            max_depth,
            shared: false,
            ..HistoryOptions::default()
        };
        let mut oracle = Oracle::new(max_depth);
        oracle.unit = UNIT;
        Self {
            history: RolloutHistory::new(options).unwrap(),
            oracle,
            sequences: Vec::new(),
        }
    }

    fn running(&self) -> Vec<usize> {
        let open = |id: &usize| !self.oracle.texts[*id].closed;
        (0..self.sequences.len()).filter(open).collect()
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
        match op {
            Op::Open(prompt, weight) => {
                let share = *weight as f64 / UNIT as f64;
                let sequence = self.history.rollout_with_weight(1, prompt, share);
                self.sequences.push(sequence.unwrap());
                self.oracle.open_weighted(prompt, *weight);
            }
            _ if running.is_empty() => {}
            Op::Append(i, tokens) => self.append(running[i % running.len()], tokens),
            Op::Lockstep(token) => running.iter().for_each(|&id| self.append(id, &[*token])),
            Op::Close(i) => self.close(running[i % running.len()]),
        }
    }

    fn check_counts(&self) {
        let Some(tree) = self.history.tree(1) else {
            return;
        };
        tree.check_integrity().unwrap();
        for text in &self.oracle.texts {
            for length in 1..=tree.max_depth().min(9) {
                let user = |string: &&[u32]| string.iter().all(|&token| token < oracle::START);
                for string in text.symbols.windows(length).filter(user) {
                    let expected = self.oracle.count(string) as f64 / UNIT as f64;
                    assert_eq!(tree.weight(string).unwrap(), expected, "{string:?}");
                }
            }
        }
    }

    /// Path and probability of every node, but for those that tie with the last: which of these come is a matter of rounding.
    fn check_drafts(&self) {
        for id in self.running() {
            let options = DraftOptions {
                max_nodes: 12,
                ..DraftOptions::default()
            };
            let draft = self.sequences[id].draft(&options).unwrap();
            let got: Vec<_> = (0..draft.len())
                .map(|i| (draft.tokens[i], draft.parents[i], draft.probabilities[i]))
                .collect();
            let expected = self.oracle.draft(id, 12, 0.0, false);
            assert_eq!(got.len(), expected.len(), "{got:?}\n{expected:?}");
            let last = expected.last().map_or(0.0, |node| node.2);
            let (got, expected) = (paths(&got, last), paths(&expected, last));
            assert_eq!(got.len(), expected.len(), "{got:?}\n{expected:?}");
            for (one, other) in got.iter().zip(&expected) {
                assert_eq!(one.0, other.0);
                assert!((one.1 - other.1).abs() < 1e-5, "{one:?} {other:?}");
            }
        }
    }
}

/// The nodes that are clearly more probable than the last: their paths, in order, and probabilities.
fn paths(draft: &[(u32, i32, f32)], last: f32) -> Vec<(Vec<u32>, f32)> {
    let mut all: Vec<Vec<u32>> = Vec::new();
    for &(token, parent, _) in draft {
        let above = usize::try_from(parent).map_or(&[][..], |parent| &all[parent]);
        all.push([above, &[token]].concat());
    }
    let clear = all
        .into_iter()
        .zip(draft)
        .filter(|(_, node)| node.2 > last + 1e-4);
    let mut paths: Vec<_> = clear.map(|(path, node)| (path, node.2)).collect();
    paths.sort_by(|one, other| one.0.cmp(&other.0));
    paths
}

/// A depth, and what is done, with one of these alphabets; with a large one nodes become wide early.
fn script(alphabets: &[u32]) -> impl Strategy<Value = (usize, Vec<Op>)> {
    let depth = prop::sample::select(vec![4usize, 8, 64]);
    let ops = prop::sample::select(alphabets.to_vec());
    let ops = ops.prop_flat_map(|alphabet| prop::collection::vec(op(alphabet), 1..50));
    (depth, ops)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn weighted_counts((depth, ops) in script(&[2, 3, 9])) {
        let mut world = World::new(depth);
        for (i, op) in ops.iter().enumerate() {
            world.apply(op);
            if i % 8 == 0 {
                world.check_counts();
            }
        }
        world.check_counts();
        for id in world.running() {
            world.close(id);
        }
        world.check_counts();
    }

    #[test]
    fn weighted_drafts((depth, ops) in script(&[2, 3, 9])) {
        let mut world = World::new(depth);
        for (i, op) in ops.iter().enumerate() {
            world.apply(op);
            if i % 8 == 7 {
                world.check_drafts();
            }
        }
        world.check_drafts();
    }
}
