//! A history against a naive one: lists of rollouts with their visits and weights, weighed and counted the slow way.
#![cfg(not(loom))]

use std::collections::{BTreeMap, HashSet};

use das_tree::{DraftOptions, HistoryOptions, RolloutHistory, Sequence, Tree};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    /// Opens a rollout of a problem, of this weight in quarters.
    Open(u64, u8),
    Append(usize, Vec<u32>),
    /// Appends the same token to all: forces leaf takeovers between rollouts of different weight.
    Lockstep(u32),
    /// Closes a rollout, perhaps with another weight in quarters.
    Close(usize, Option<u8>),
    Advance,
    Maintain,
}

fn op() -> impl Strategy<Value = Op> {
    let token = 0u32..3;
    prop_oneof![
        4 => (0u64..2, 1u8..9).prop_map(|(problem, weight)| Op::Open(problem, weight)),
        8 => (any::<usize>(), prop::collection::vec(token.clone(), 1..8)).prop_map(|(i, t)| Op::Append(i, t)),
        6 => token.prop_map(Op::Lockstep),
        4 => (any::<usize>(), prop::option::weighted(0.3, 0u8..9)).prop_map(|(i, w)| Op::Close(i, w)),
        3 => Just(Op::Advance),
        1 => Just(Op::Maintain),
    ]
}

#[derive(Clone, Debug)]
struct Rollout {
    visit: u64,
    weight: f64,
    counted: f64,
    tokens: Vec<u32>,
    running: bool,
    /// The tree it is in: its number, or none while it waits for the next rebuild.
    tree: Option<u64>,
}

#[derive(Debug, Default)]
struct Problem {
    rollouts: Vec<Rollout>,
    visits: u64,
    generation: u64,
    tree: u64,
    /// The visit the tree was made for, less one.
    base: u64,
}

impl Problem {
    fn is_out_of_place(&self, rollout: &Rollout) -> bool {
        !rollout.running && (rollout.tree != Some(self.tree) || rollout.counted != rollout.weight)
    }

    /// What `advance` does to it.
    fn turn(&mut self, window: u64, decay: f64) {
        let next = self.visits + 1;
        let stays = |rollout: &Rollout| {
            rollout.running || (rollout.visit + window > next && rollout.weight > 0.0)
        };
        let settled = |rollout: &Rollout| stays(rollout) && !self.is_out_of_place(rollout);
        let growth = decay.powi(self.base as i32 + 1 - next as i32);
        if self.rollouts.iter().all(settled) && growth <= 16.0 {
            return;
        }
        self.base = self.visits;
        self.rollouts.retain(stays);
        self.tree += 1;
        for rollout in self.rollouts.iter_mut().filter(|rollout| !rollout.running) {
            (rollout.tree, rollout.counted) = (Some(self.tree), rollout.weight);
        }
    }

    /// The weight of a string in the present tree, with open suffixes counted too.
    fn weight(&self, string: &[u32], decay: f64) -> f64 {
        let weigh = |rollout: &Rollout| {
            let found = rollout
                .tokens
                .windows(string.len())
                .filter(|window| *window == string);
            found.count() as f64
                * rollout.counted
                * decay.powi((self.visits - rollout.visit) as i32)
        };
        let here = |rollout: &&Rollout| rollout.tree == Some(self.tree);
        self.rollouts.iter().filter(here).map(weigh).sum()
    }

    fn strings(&self) -> HashSet<&[u32]> {
        let windows = |rollout: &'_ Rollout| -> Vec<(usize, usize)> {
            (1..5)
                .flat_map(|n| {
                    (0..(rollout.tokens.len() + 1).saturating_sub(n)).map(move |at| (at, n))
                })
                .collect()
        };
        let strings = |rollout| {
            windows(rollout)
                .into_iter()
                .map(move |(at, n)| &rollout.tokens[at..at + n])
        };
        self.rollouts.iter().flat_map(strings).collect()
    }
}

struct World {
    history: RolloutHistory,
    options: HistoryOptions,
    problems: BTreeMap<u64, Problem>,
    generation: u64,
    /// Running rollouts: problem, place in its list by identity, handle.
    running: Vec<(u64, usize, Sequence)>,
    names: usize,
}

impl World {
    fn new(options: HistoryOptions) -> Self {
        Self {
            history: RolloutHistory::new(options).unwrap(),
            options,
            problems: BTreeMap::new(),
            generation: 0,
            running: Vec::new(),
            names: 0,
        }
    }

    /// The naive twin of a running rollout: the n-th running one of its problem, as they stay in order.
    fn twin(&mut self, at: usize) -> &mut Rollout {
        let (problem, name, _) = &self.running[at];
        let before = self
            .running
            .iter()
            .filter(|(p, n, _)| p == problem && n < name)
            .count();
        let rollouts = self.problems.get_mut(problem).unwrap().rollouts.iter_mut();
        rollouts
            .filter(|rollout| rollout.running)
            .nth(before)
            .unwrap()
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Open(key, weight) => {
                let weight = f64::from(*weight) / 4.0;
                let sequence = self
                    .history
                    .rollout_with_weight(*key, &[7, 7], weight)
                    .unwrap();
                let problem = self.problems.entry(*key).or_default();
                if problem.visits == 0 || problem.generation != self.generation {
                    problem.visits += 1;
                    problem.generation = self.generation;
                }
                problem.rollouts.push(Rollout {
                    visit: problem.visits,
                    weight,
                    counted: weight,
                    tokens: Vec::new(),
                    running: true,
                    tree: Some(problem.tree),
                });
                self.names += 1;
                self.running.push((*key, self.names, sequence));
            }
            _ if self.running.is_empty() && !matches!(op, Op::Advance | Op::Maintain) => {}
            Op::Append(i, tokens) => self.append(i % self.running.len(), tokens),
            Op::Lockstep(token) => {
                (0..self.running.len()).for_each(|at| self.append(at, &[*token]))
            }
            Op::Close(i, weight) => self.close(
                i % self.running.len(),
                weight.map(|weight| f64::from(weight) / 4.0),
            ),
            Op::Advance => {
                self.generation += 1;
                assert_eq!(self.history.advance(), self.generation);
                let (window, decay) = (self.options.window as u64, self.options.decay);
                self.problems
                    .values_mut()
                    .for_each(|problem| problem.turn(window, decay));
                self.problems
                    .retain(|_, problem| !problem.rollouts.is_empty());
            }
            Op::Maintain => self.history.maintain(),
        }
    }

    fn append(&mut self, at: usize, tokens: &[u32]) {
        self.running[at].2.append(tokens).unwrap();
        self.twin(at).tokens.extend_from_slice(tokens);
    }

    fn close(&mut self, at: usize, weight: Option<f64>) {
        let window = self.options.window as u64;
        let twin = self.twin(at);
        twin.weight = weight.unwrap_or(twin.weight);
        twin.running = false;
        let (key, _, sequence) = self.running.remove(at);
        match weight {
            Some(weight) => sequence.close_with_weight(weight).unwrap(),
            None => sequence.close(),
        }
        let problem = self.problems.get_mut(&key).unwrap();
        let (visits, tree) = (problem.visits, problem.tree);
        problem.rollouts.retain_mut(|rollout| {
            let strayed = !rollout.running && rollout.tree.is_some_and(|at| at != tree);
            if strayed {
                rollout.tree = None;
            }
            !strayed || (rollout.visit + window > visits && rollout.weight > 0.0)
        });
    }

    fn check(&mut self) {
        let stats = self.history.stats();
        assert_eq!(stats.problems, self.problems.len());
        assert_eq!(
            stats.rollouts,
            self.problems
                .values()
                .map(|problem| problem.rollouts.len())
                .sum::<usize>()
        );
        assert_eq!(stats.running, self.running.len());
        for (&key, problem) in &self.problems {
            let tree = self.history.tree(key).unwrap();
            tree.check_integrity().unwrap();
            let here = |rollout: &&Rollout| rollout.tree == Some(problem.tree);
            let tokens: usize = problem
                .rollouts
                .iter()
                .filter(here)
                .map(|rollout| rollout.tokens.len())
                .sum();
            assert_eq!(tree.len(), tokens);
        }
    }

    /// With everything closed, weights are exact up to the rounding of increments.
    fn check_weights(&mut self) {
        while !self.running.is_empty() {
            self.close(0, None);
        }
        self.check();
        for (&key, problem) in &self.problems {
            let tree = self.history.tree(key).unwrap();
            for string in problem.strings() {
                let (found, expected) = (
                    tree.weight(string).unwrap(),
                    problem.weight(string, self.options.decay),
                );
                assert!(
                    (found - expected).abs() <= 1e-3 * expected + 1e-5,
                    "{string:?}: {found} for {expected}"
                );
            }
        }
    }
}

fn options() -> impl Strategy<Value = HistoryOptions> {
    (
        1usize..4,
        prop::sample::select(vec![1.0, 0.9, 0.5, 0.01]),
        prop::sample::select(vec![4usize, 64]),
    )
        .prop_map(|(window, decay, max_depth)| HistoryOptions {
            window,
            decay,
            max_depth,
            shared: false,
            ..HistoryOptions::default()
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn windows_and_weights(options in options(), ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new(options);
        for (i, op) in ops.iter().enumerate() {
            world.apply(op);
            if i % 5 == 0 {
                world.check();
            }
        }
        world.check_weights();
    }

    /// Without decay a problem drafts what a tree of the rollouts inside its window drafts.
    #[test]
    fn drafts_as_a_fresh_tree(window in 1usize..4, ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new(HistoryOptions { window, shared: false, ..HistoryOptions::default() });
        for op in &ops {
            match op {
                Op::Open(key, _) => world.apply(&Op::Open(*key, 4)),
                Op::Close(i, _) => world.apply(&Op::Close(*i, None)),
                _ => world.apply(op),
            }
        }
        while !world.running.is_empty() {
            world.close(0, None);
        }
        for (&key, problem) in &world.problems {
            let fresh = Tree::new(64).unwrap();
            for rollout in problem.rollouts.iter().filter(|rollout| rollout.tree == Some(problem.tree)) {
                let sequence = fresh.sequence(&[]).unwrap();
                sequence.append(&rollout.tokens).unwrap();
            }
            let pair = [world.history.rollout(key, &[7, 1]).unwrap(), fresh.sequence(&[7, 1]).unwrap()];
            for token in [0, 1, 2, 0, 1, 1] {
                let [here, there] = [0, 1].map(|i: usize| {
                    pair[i].append(&[token]).unwrap();
                    pair[i].draft(&DraftOptions::default()).unwrap()
                });
                prop_assert_eq!(here, there);
            }
        }
    }

    /// The same calls give the same drafts and drop the same problems, however long the background work takes; and when nothing
    /// runs, all there is fits the budget.
    #[test]
    fn timing_does_not_matter(
        options in options(),
        max_bytes in prop::sample::select(vec![30_000usize, 60_000, 90_000, usize::MAX]),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let run = |pause: u64| {
            let mut world = World::new(HistoryOptions { max_bytes, ..options });
            let mut seen = Vec::new();
            for op in &ops {
                world.apply(op);
                if matches!(op, Op::Advance) {
                    std::thread::sleep(std::time::Duration::from_micros(pause));
                }
                if world.running.is_empty() {
                    world.history.maintain();
                    assert!(world.history.memory_usage() <= max_bytes);
                }
                let draft = |(_, _, sequence): &(u64, usize, Sequence)| sequence.draft(&DraftOptions::default()).unwrap();
                let drafts: Vec<_> = world.running.iter().map(draft).collect();
                let stats = world.history.stats();
                seen.push((drafts, stats.problems, stats.rollouts, stats.expired_rollouts, stats.evicted_problems));
            }
            seen
        };
        prop_assert_eq!(run(0), run(400));
    }
}
