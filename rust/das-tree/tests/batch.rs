//! A step does what separate calls do, on however many threads, and takes a long prompt in by parts.
#![cfg(not(loom))]

use std::sync::Arc;

use das_tree::{DraftOptions, KnownRows, Sequence, StepDrafts, StepRequest, Tree, step, step_into};
use proptest::prelude::*;

const WIDTH: usize = 8;

fn request<'a>(sequence: &'a Sequence, accepted: &'a [u32]) -> StepRequest<'a> {
    let options = DraftOptions {
        max_nodes: WIDTH,
        ..DraftOptions::default()
    };
    StepRequest {
        sequence,
        accepted,
        known: KnownRows::default(),
        options,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Forty sequences in trees of all sizes, some on their own, some many to a tree.
    #[test]
    fn spread_over_trees(
        trees in prop::collection::vec(0usize..7, 40),
        rounds in prop::collection::vec(prop::collection::vec(prop::collection::vec(0u32..3, 0..4), 40), 1..8),
    ) {
        let open = || -> Vec<Sequence> {
            let forest: Vec<Arc<Tree>> = (0..7).map(|_| Tree::new(64).unwrap()).collect();
            trees.iter().map(|&tree| forest[tree].sequence(&[1, 2]).unwrap()).collect()
        };
        let (together, apart) = (open(), open());
        let mut drafts = StepDrafts::default();
        for round in &rounds {
            let requests: Vec<StepRequest> = together.iter().zip(round).map(|(sequence, accepted)| request(sequence, accepted)).collect();
            step_into(&requests, WIDTH, &mut drafts).unwrap();
            for (sequence, accepted) in apart.iter().zip(round) {
                sequence.append(accepted).unwrap();
            }
            for (i, sequence) in apart.iter().enumerate() {
                let options = DraftOptions { max_nodes: WIDTH, ..DraftOptions::default() };
                prop_assert_eq!(drafts.draft(i), sequence.draft(&options).unwrap());
                prop_assert!(drafts.tokens[i * WIDTH + drafts.sizes[i] as usize..(i + 1) * WIDTH].iter().all(|&token| token == 0));
            }
        }
    }
}

/// A batch large enough to be spread, from several threads at once.
#[test]
fn batches_from_many_threads() {
    let run = |seed: u32| -> Vec<StepDrafts> {
        let forest: Vec<Arc<Tree>> = (0..8).map(|_| Tree::new(64).unwrap()).collect();
        let sequences: Vec<Sequence> = (0..64)
            .map(|i| forest[i % 8].sequence(&[]).unwrap())
            .collect();
        let tokens: Vec<u32> = (0..64 * 200u32)
            .map(|i| i.wrapping_mul(seed) >> 29)
            .collect();
        let steps = tokens.chunks(64 * 2).map(|tokens| {
            let requests: Vec<StepRequest> = sequences
                .iter()
                .zip(tokens.chunks(2))
                .map(|(sequence, tokens)| request(sequence, tokens))
                .collect();
            step(&requests, WIDTH).unwrap()
        });
        steps.collect()
    };
    let seeds = [2_654_435_761, 40_503, 97];
    let alone = seeds.map(run);
    let together = std::thread::scope(|scope| {
        seeds
            .map(|seed| scope.spawn(move || run(seed)))
            .map(|thread| thread.join().unwrap())
    });
    assert_eq!(alone, together);
}

#[test]
fn errors_change_nothing() {
    let tree = Tree::new(64).unwrap();
    let sequences: Vec<Sequence> = (0..3).map(|_| tree.sequence(&[]).unwrap()).collect();
    sequences[2].close();
    let requests: Vec<StepRequest> = sequences
        .iter()
        .map(|sequence| request(sequence, &[1]))
        .collect();
    assert!(step(&requests, WIDTH).unwrap_err().is_closed());
    let invalid = [
        request(&sequences[0], &[1]),
        request(&sequences[1], &[1 << 31]),
    ];
    assert!(
        step(&invalid, WIDTH)
            .unwrap_err()
            .to_string()
            .contains("tokens[0] is 2147483648")
    );
    let odd = StepRequest {
        known: KnownRows::new(1, &[1, 2], &[9, 9]).unwrap(),
        ..request(&sequences[1], &[1])
    };
    assert!(step(&[request(&sequences[0], &[1]), odd], WIDTH).is_err());
    assert_eq!(tree.len(), 0);
}

/// A prompt of 128k tokens is taken in over some steps, 4096 tokens in each, and is drafted from as far as it is in.
#[test]
fn a_long_prompt_joins_by_parts() {
    let tree = Tree::new(64).unwrap();
    let prompt: Vec<u32> = (0..131_072u32)
        .map(|i| i.wrapping_mul(2_654_435_761) >> 1)
        .collect();
    let others: Vec<Sequence> = (0..8)
        .map(|_| tree.sequence(&prompt[..50]).unwrap())
        .collect();
    let joining = tree.sequence(&prompt).unwrap();
    let sequences: Vec<&Sequence> = others.iter().chain([&joining]).collect();
    for steps in 1..32 {
        // What was said at the end of the part taken in last is known; what comes after it is not.
        let taken_in = 4096 * (steps + 1);
        let known = steps % 2 == 0 || taken_in == prompt.len();
        let at = if known { taken_in - 4 } else { taken_in + 100 };
        let accepted = &prompt[at..=at];
        let tokens = |sequence: &Sequence| {
            let joins = std::ptr::eq(sequence, &joining);
            if joins { accepted } else { &[] }
        };
        let requests: Vec<StepRequest> = sequences
            .iter()
            .map(|sequence| request(sequence, tokens(sequence)))
            .collect();
        let drafts = step(&requests, WIDTH).unwrap().draft(8);
        let expected = known.then(|| prompt[at + 1]);
        assert_eq!(drafts.tokens.first().copied(), expected, "{steps} steps");
    }
}

/// Another thread closes sequences while a batch large enough to be spread goes over them: the step says so, and the next one
/// without them is whole.
#[test]
fn sequences_closed_meanwhile() {
    let forest: Vec<Arc<Tree>> = (0..8).map(|_| Tree::new(64).unwrap()).collect();
    let open = || -> Vec<Sequence> {
        let sequences = (0..64).map(|i| forest[i % 8].sequence(&[]).unwrap());
        sequences.collect()
    };
    for round in 0..50u32 {
        let sequences = open();
        let accepted = [round % 5, 1, 2, round % 3];
        let requests: Vec<StepRequest> = sequences
            .iter()
            .map(|sequence| request(sequence, &accepted))
            .collect();
        std::thread::scope(|scope| {
            scope.spawn(|| sequences.iter().step_by(7).for_each(Sequence::close));
            while !sequences[63].is_closed() {
                match step(&requests, WIDTH) {
                    Ok(drafts) => assert_eq!(drafts.sizes.len(), 64),
                    Err(error) => assert!(error.is_closed(), "{error}"),
                }
            }
        });
        let rest: Vec<StepRequest> = requests
            .into_iter()
            .filter(|request| !request.sequence.is_closed())
            .collect();
        assert_eq!(step(&rest, WIDTH).unwrap().sizes.len(), rest.len());
    }
}
