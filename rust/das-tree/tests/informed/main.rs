//! The informed rule (`DESIGN.md`, "The rule in full") against a second, naive implementation of it: all contexts are found by
//! comparing everything with everything, and what is learned is kept in plain maps.
//!
//! Compared after every draft, with all that has been learned until then: tokens, parents and their order exactly (but where
//! rounding decides, which ends a script), probabilities to 1e-5. Not compared, as it is arranged otherwise than told there: which context gives way when the table of
//! rows is full (`backoff.rs` tests that it is one seen least), prompts of more than 4096 tokens, and what is learned
//! by threads that append at the same time.
#![cfg(not(loom))]

mod learned;
mod numbers;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../oracle/mod.rs"]
mod oracle;
mod problems;
mod rule;
#[path = "../scratch/mod.rs"]
mod scratch;
mod texts;
mod world;

use das_tree::{Coupling, DraftOptions, HistoryOptions, Shape};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use world::{Drawn, Given, Piece, Rejected, World};

/// What is wanted of a draft.
#[derive(Clone, Debug)]
struct Wanted {
    nodes: usize,
    floor: f32,
    shape: Shape,
    /// Blind, greedy, seeded.
    coupling: u8,
}

#[derive(Clone, Debug)]
enum Op {
    Open(u64, Vec<u32>, u8),
    /// Appends, and drafts.
    Turn(usize, Piece, Wanted),
    /// Appends the tokens down to a node of the last draft and what came instead of more, and drafts.
    Accept(usize, usize, Piece, Wanted),
    /// Appends the last tokens of another rollout, or its own, and drafts.
    Copy(usize, Option<usize>, usize, Piece, Wanted),
    /// Appends a few tokens over and over, and drafts.
    Repeat(usize, Vec<u32>, usize, Piece, Wanted),
    /// Appends to some rollouts in one call.
    Step(Vec<(Piece, Wanted)>),
    Reject(usize, Vec<Rejected>),
    Stateless(u64, Vec<u32>, Wanted),
    /// Ends a rollout, perhaps with another weight in quarters.
    Close(usize, Option<u8>),
    Advance,
    Reload,
}

/// The tokens of a script: those that come, and how many more have a probability now and then.
#[derive(Clone, Copy, Debug)]
struct Alphabet {
    comes: u32,
    more: u32,
}

fn distribution(alphabet: Alphabet) -> impl Strategy<Value = Given> {
    let probability = prop_oneof![4 => 0u8..60, 2 => any::<u8>(), 1 => 235u8..=255];
    prop::collection::btree_map(
        0..alphabet.comes + alphabet.more,
        probability,
        0..=world::WIDTH,
    )
    .prop_map(|row| row.into_iter().collect())
}

fn drawn(alphabet: Alphabet) -> impl Strategy<Value = Drawn> {
    (0..alphabet.comes, distribution(alphabet))
}

fn piece(alphabet: Alphabet, most: usize) -> impl Strategy<Value = Piece> {
    let drawn = prop::collection::vec(drawn(alphabet), 0..most);
    (drawn, prop::bool::weighted(0.8)).prop_map(|(drawn, known)| Piece { drawn, known })
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let floors = prop::sample::select(vec![0.0f32, 0.0, 0.02, 0.1]);
    let shapes = prop::sample::select(vec![Shape::Tree, Shape::Tree, Shape::Tree, Shape::Chain]);
    (0usize..20, floors, shapes, 0u8..3).prop_map(|(nodes, floor, shape, coupling)| Wanted {
        nodes,
        floor,
        shape,
        coupling,
    })
}

fn op(alphabet: Alphabet) -> impl Strategy<Value = Op> {
    let tokens = |most: usize| prop::collection::vec(0..alphabet.comes, 0..most);
    let context = [0..alphabet.comes, 0..alphabet.comes];
    let rejected = prop::collection::vec((context, distribution(alphabet)), 0..4);
    let which = any::<usize>;
    let problem = 0u64..2;
    prop_oneof![
        4 => (problem.clone(), tokens(6), 1u8..9).prop_map(|(p, t, w)| Op::Open(p, t, w)),
        10 => (which(), piece(alphabet, 6), wanted()).prop_map(|(i, p, w)| Op::Turn(i, p, w)),
        8 => (which(), which(), piece(alphabet, 3), wanted()).prop_map(|(i, n, p, w)| Op::Accept(i, n, p, w)),
        4 => (which(), prop::option::of(which()), 1usize..30, piece(alphabet, 30), wanted()).prop_map(|(i, j, n, p, w)| Op::Copy(i, j, n, p, w)),
        2 => (which(), tokens(4), 1usize..50, piece(alphabet, 30), wanted()).prop_map(|(i, t, n, p, w)| Op::Repeat(i, t, n, p, w)),
        4 => prop::collection::vec((piece(alphabet, 4), wanted()), 0..4).prop_map(Op::Step),
        4 => (which(), rejected).prop_map(|(i, r)| Op::Reject(i, r)),
        2 => (problem, tokens(9), wanted()).prop_map(|(p, t, w)| Op::Stateless(p, t, w)),
        2 => (which(), prop::option::weighted(0.3, 0u8..9)).prop_map(|(i, w)| Op::Close(i, w)),
        1 => Just(Op::Advance),
        1 => Just(Op::Reload),
    ]
}

fn options() -> impl Strategy<Value = HistoryOptions> {
    let depths = prop::sample::select(vec![4usize, 8, 64, 64]);
    let decays = prop::sample::select(vec![1.0, 1.0, 0.5]);
    let on = || prop::bool::weighted(0.8);
    (1usize..4, decays, depths, on(), on(), on()).prop_map(
        |(window, decay, max_depth, soft, shared, rejected)| {
            HistoryOptions {
                window,
                decay,
                max_depth,
                soft,
                shared,
                rejected,
                max_bytes: 1 << 29, // for a table of rows in which nothing has to give way
            }
        },
    )
}

impl World {
    fn options(&self, which: usize, wanted: &Wanted) -> DraftOptions {
        DraftOptions {
            max_nodes: wanted.nodes,
            min_probability: wanted.floor,
            shape: wanted.shape,
            coupling: match wanted.coupling {
                0 => Coupling::Blind,
                1 => Coupling::Greedy,
                _ => self.noise(which),
            },
        }
    }

    fn turn(&mut self, which: usize, piece: &Piece, wanted: &Wanted) {
        self.append(which, piece);
        let options = self.options(which, wanted);
        self.draft(which, &options);
    }

    /// A piece that brings these tokens first, with the distributions of its own.
    fn bring(tokens: &[u32], piece: &Piece) -> Piece {
        let rows = piece.drawn.iter().map(|drawn| drawn.1.clone());
        let rows = rows.chain(std::iter::repeat(Vec::new()));
        let first: Vec<Drawn> = tokens.iter().copied().zip(rows).collect();
        let drawn = [&first[..], &piece.drawn[..piece.drawn.len().min(2)]].concat();
        Piece { drawn, ..*piece }
    }

    fn apply(&mut self, op: &Op) {
        let runs = self.runs();
        match op {
            Op::Open(problem, prompt, weight) if runs < 5 => {
                self.open(*problem, prompt, f64::from(*weight) / 4.0);
            }
            Op::Stateless(problem, text, wanted) => {
                let coupling = [
                    Coupling::Blind,
                    Coupling::Greedy,
                    Coupling::Seeded {
                        seed: 7,
                        position: 3,
                    },
                ];
                let options = DraftOptions {
                    max_nodes: wanted.nodes,
                    min_probability: wanted.floor,
                    shape: wanted.shape,
                    coupling: coupling[usize::from(wanted.coupling)],
                };
                self.stateless(*problem, text, &options);
            }
            Op::Advance => self.advance(),
            Op::Reload => self.reload(),
            _ if runs == 0 => {}
            Op::Open(..) => {}
            Op::Turn(i, piece, wanted) => self.turn(i % runs, piece, wanted),
            Op::Accept(i, node, piece, wanted) => {
                let tokens = self.drafted(i % runs, *node);
                self.turn(i % runs, &Self::bring(&tokens, piece), wanted);
            }
            Op::Copy(i, j, length, piece, wanted) => {
                let tokens = self.tail(j.unwrap_or(*i) % runs, *length);
                self.turn(i % runs, &Self::bring(&tokens, piece), wanted);
            }
            Op::Repeat(i, tokens, length, piece, wanted) => {
                let tokens: Vec<u32> = tokens.iter().copied().cycle().take(*length).collect();
                self.turn(i % runs, &Self::bring(&tokens, piece), wanted);
            }
            Op::Step(parts) => {
                let part = |(which, (piece, wanted)): (usize, &(Piece, Wanted))| {
                    // Accepted tokens come after those drafted: the noise is that of their place.
                    let mut options = self.options(which, wanted);
                    if let Coupling::Seeded { position, .. } = &mut options.coupling {
                        *position += piece.drawn.len() as i64;
                    }
                    (which, piece.clone(), options)
                };
                let parts: Vec<_> = parts.iter().take(runs).enumerate().map(part).collect();
                self.step(&parts, 9);
            }
            Op::Reject(i, contexts) => self.reject(i % runs, contexts),
            Op::Close(i, weight) => {
                self.close(i % runs, weight.map(|weight| f64::from(weight) / 4.0))
            }
        }
    }
}

fn script() -> impl Strategy<Value = (HistoryOptions, Vec<Op>)> {
    // With many a row has no room for all.
    let alphabets = prop::sample::select(vec![(2u32, 3u32), (3, 3), (4, 3), (12, 3), (3, 100)]);
    let alphabets = alphabets.prop_map(|(comes, more)| Alphabet { comes, more });
    let ops = alphabets.prop_flat_map(|alphabet| prop::collection::vec(op(alphabet), 1..60));
    (options(), ops)
}

/// The same scripts every time, or others, as many as it says, if `PROPTEST_CASES` is set.
fn runner(config: Config) -> TestRunner {
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return TestRunner::new(Config {
            cases: Config::default().cases,
            ..config
        });
    }
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn drafts_are_the_naive_ones() {
    let config = Config {
        cases: 3000,
        failure_persistence: None,
        ..Config::default()
    };
    let asked = std::cell::RefCell::new(std::collections::BTreeSet::<learned::Kind>::new());
    // Scripts, and those in which rounding decided.
    let ran = std::cell::Cell::new((0, 0));
    let outcome = runner(config).run(&script(), |(options, ops)| {
        let mut world = World::new(options);
        world.open(0, &[1], 1.0);
        for op in &ops {
            if !world.tied {
                world.apply(op);
            }
        }
        let (scripts, tied) = ran.get();
        ran.set((scripts + 1, tied + u32::from(world.tied)));
        asked.borrow_mut().extend(world.asked);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure:?}");
    }
    let (scripts, tied) = ran.get();
    assert!(
        30 * tied < scripts,
        "rounding decided in {tied} of {scripts}"
    );
    assert_eq!(
        asked.borrow().len(),
        12,
        "kinds of evidence that were asked: {:?}",
        asked.borrow()
    );
}

/// Rollouts that say nearly always the same, so that parts and knots come to remember as much as they may, and then something new
/// at every turn, so that it matters how much that is.
#[test]
fn what_is_old_fades_alike() {
    const USUAL: usize = 4900;
    let mut world = World::new(HistoryOptions {
        window: 1,
        max_depth: 8,
        max_bytes: 1 << 29,
        ..HistoryOptions::default()
    });
    let piece = |turn: usize| {
        let token = |at: usize| match at {
            2 if turn.is_multiple_of(31) => 2,
            0 if turn >= USUAL => turn as u32,
            _ => 1,
        };
        let drawn = (0..4)
            .map(|at| (token(at), vec![(1, 200), (2, 9)]))
            .collect();
        Piece { drawn, known: true }
    };
    let options = DraftOptions {
        max_nodes: 5,
        shape: Shape::Chain,
        coupling: Coupling::Greedy,
        ..DraftOptions::default()
    };
    for turn in 0..USUAL + 300 {
        if turn % 20 == 0 {
            world.open(0, &[1, 1], 1.0);
        }
        world.append(0, &piece(turn));
        world.draft(0, &options);
        if turn % 20 == 19 {
            world.close(0, None);
            world.advance();
        }
    }
    let (part, knot) = world.learned.most_seen();
    assert!(part > numbers::TRUST_MEMORY - 0.1, "{part}");
    assert!(knot > numbers::WORTH_MEMORY - 0.1, "{knot}");
}
