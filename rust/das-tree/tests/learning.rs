//! What is learned over all problems is the same whatever the threads, wherever trees lie, and after a file in between.
#![cfg(not(loom))]

mod scratch;

use std::fs;

use das_tree::{
    Coupling, Draft, DraftOptions, HistoryOptions, KnownRows, RolloutHistory, Sequence,
    StepRequest, step,
};
use proptest::prelude::*;
use scratch::File;

const ROWS: usize = 48;
const NODES: usize = 8;

/// Tokens that a row appends in a round, with two entries of their distributions each.
#[derive(Clone, Debug)]
struct Accepted {
    tokens: Vec<u32>,
    ids: Vec<u32>,
    probabilities: Vec<u8>,
}

impl Accepted {
    fn rows(&self) -> KnownRows<'_> {
        KnownRows::new(2, &self.ids, &self.probabilities).unwrap()
    }
}

fn accepted() -> impl Strategy<Value = Accepted> {
    let token = prop_oneof![3 => Just(1u32), 1 => 0u32..4];
    prop::collection::vec((token, 1u8..250, 0u32..4), 0..4).prop_map(|drawn| Accepted {
        tokens: drawn.iter().map(|drawn| drawn.0).collect(),
        ids: drawn
            .iter()
            .flat_map(|drawn| [drawn.0, drawn.2 + 10])
            .collect(),
        probabilities: drawn
            .iter()
            .flat_map(|drawn| [drawn.1, 255 - drawn.1])
            .collect(),
    })
}

type Round = Vec<Accepted>;

/// How the same things are done.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// In one call a round, with the trees of the problems made in this or the other order.
    Step { reversed: bool },
    /// All appends of a round one by one, then all drafts: the same where each row has a tree of its own.
    OneByOne,
}

/// Sequences by row, of so many problems from `first` on, whose trees were made in ascending or descending order.
fn open(
    history: &RolloutHistory,
    (first, problems): (u64, usize),
    reversed: bool,
) -> Vec<Sequence> {
    let mut order: Vec<usize> = (0..ROWS).collect();
    order.sort_by_key(|row| {
        if reversed {
            problems - row % problems
        } else {
            row % problems
        }
    });
    let mut opened: Vec<(usize, Sequence)> = order
        .into_iter()
        .map(|row| {
            (
                row,
                history
                    .rollout(first + (row % problems) as u64, &[2])
                    .unwrap(),
            )
        })
        .collect();
    opened.sort_by_key(|&(row, _)| row);
    opened.into_iter().map(|(_, sequence)| sequence).collect()
}

/// Plays the rounds with new rollouts of these problems; returns all drafts.
fn play(
    history: &RolloutHistory,
    problems: (u64, usize),
    rounds: &[Round],
    way: Way,
) -> Vec<Draft> {
    let sequences = open(history, problems, way == Way::Step { reversed: true });
    let mut all = Vec::new();
    for (position, round) in (0..).zip(rounds) {
        let request = |(row, accepted): (usize, &'_ Accepted)| DraftOptions {
            max_nodes: NODES,
            coupling: match row % 3 {
                0 => Coupling::Blind,
                1 => Coupling::Greedy,
                _ => Coupling::Seeded {
                    seed: row as i64,
                    position: position + accepted.tokens.len() as i64,
                },
            },
            ..DraftOptions::default()
        };
        let options: Vec<DraftOptions> = round.iter().enumerate().map(request).collect();
        if way == Way::OneByOne {
            for (sequence, accepted) in sequences.iter().zip(round) {
                sequence
                    .append_known(&accepted.tokens, accepted.rows())
                    .unwrap();
            }
            let drafts = sequences
                .iter()
                .zip(&options)
                .map(|(sequence, options)| sequence.draft(options));
            all.extend(drafts.map(Result::unwrap));
            continue;
        }
        let rows = sequences.iter().zip(round).zip(&options);
        let requests: Vec<StepRequest> = rows
            .map(|((sequence, accepted), &options)| StepRequest {
                sequence,
                accepted: &accepted.tokens,
                known: accepted.rows(),
                options,
            })
            .collect();
        let drafts = step(&requests, NODES).unwrap();
        all.extend((0..ROWS).map(|row| drafts.draft(row)));
    }
    all
}

/// What a history has learned over all problems, as it saves it: the last part of the file, which begins with its number of words
/// and ends with a checksum.
fn learned(history: &RolloutHistory, file: &File) -> Vec<u8> {
    history.save(&file.0).unwrap();
    let bytes = fs::read(&file.0).unwrap();
    let end = bytes.len() - 4;
    let begins =
        |&words: &usize| bytes[end - 4 * words - 8..].starts_with(&(words as u64).to_le_bytes());
    let words = (1..(end - 8) / 4).find(begins).unwrap();
    bytes[end - 4 * words..end].to_vec()
}

fn history() -> RolloutHistory {
    RolloutHistory::new(HistoryOptions {
        max_bytes: 1 << 27,
        ..HistoryOptions::default()
    })
    .unwrap()
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    prop::collection::vec(prop::collection::vec(accepted(), ROWS), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_the_order_of_the_rows(
        first in rounds(),
        second in rounds(),
        problems in prop::sample::select(vec![ROWS, ROWS / 4]),
    ) {
        let file = File::new("learning");
        let outcome = |way| {
            let history = history();
            let drafts = [&first, &second].map(|rounds| play(&history, (0, problems), rounds, way));
            (drafts, learned(&history, &file))
        };
        let expected = outcome(Way::Step { reversed: false });
        let came = |round: &Round| round.iter().any(|accepted| !accepted.tokens.is_empty());
        let learns = first.iter().chain(&second).any(came);
        prop_assert_eq!(expected.1 != learned(&history(), &file), learns);
        let ways = [Way::Step { reversed: true }, Way::OneByOne];
        for way in ways {
            let (drafts, learned) = outcome(way);
            prop_assert_eq!(&drafts, &expected.0);
            prop_assert!(learned == expected.1, "something else was learned");
        }
    }

    #[test]
    fn and_kept_in_a_file(first in rounds(), second in rounds()) {
        let (history, file) = (history(), File::new("learning"));
        let way = Way::Step { reversed: false };
        play(&history, (0, 12), &first, way);
        let before = learned(&history, &file);
        let loaded = RolloutHistory::load(&file.0, |_| ()).unwrap();
        prop_assert!(learned(&loaded, &file) == before, "something was lost");
        // And both go on learning alike, with problems of which no texts are known: a tree that is made anew remembers other
        // occurrences than one in which texts have grown together.
        prop_assert_eq!(play(&loaded, (100, 12), &second, way), play(&history, (100, 12), &second, way));
        prop_assert!(learned(&loaded, &file) == learned(&history, &file), "something else was learned");
    }

    #[test]
    fn also_of_a_sequence_that_a_step_has_twice(rows in prop::collection::vec((0usize..3, accepted()), 1..40)) {
        let file = File::new("learning");
        let options = DraftOptions { max_nodes: NODES, coupling: Coupling::Greedy, ..DraftOptions::default() };
        let outcome = |rows_a_step: usize| {
            let history = history();
            let sequences: Vec<Sequence> = (0..3).map(|problem| history.rollout(problem, &[2]).unwrap()).collect();
            let mut drafts = Vec::new();
            for rows in rows.chunks(rows_a_step) {
                let requests: Vec<StepRequest> = rows
                    .iter()
                    .map(|(sequence, accepted)| StepRequest {
                        sequence: &sequences[*sequence],
                        accepted: &accepted.tokens,
                        known: accepted.rows(),
                        options,
                    })
                    .collect();
                let step = step(&requests, NODES).unwrap();
                drafts.extend((0..rows.len()).map(|row| step.draft(row)));
            }
            (drafts, learned(&history, &file))
        };
        // 40 rows of three sequences: one of them comes again.
        let expected = outcome(1);
        if rows.len() > 3 {
            prop_assert!(outcome(rows.len()) == expected, "together they draft or learn otherwise");
        }
    }
}
