//! In the long run a step allocates nothing but what trees and own texts grow by, a segment or a doubling now and then.
#![cfg(not(any(loom, tsan)))]

use std::sync::Arc;

use das_tree::{DraftOptions, KnownRows, Sequence, StepDrafts, StepRequest, Tree, step_into};

const WIDTH: usize = 16;

/// Of a hundred steps for so many requests, how many allocate.
fn that_allocate(requests: usize) -> usize {
    let forest: Vec<Arc<Tree>> = (0..4).map(|_| Tree::new(64).unwrap()).collect();
    let sequences: Vec<Sequence> = (0..requests)
        .map(|i| forest[i % 4].sequence(&[]).unwrap())
        .collect();
    let mut drafts = StepDrafts::default();
    let mut step = |number: u32| {
        let rows = 1..=requests as u32;
        let accepted: Vec<[u32; 2]> = rows
            .map(|row| [number, number + 1].map(|at| at * at % 97 * (row % 7)))
            .collect();
        let options = DraftOptions {
            max_nodes: WIDTH,
            ..DraftOptions::default()
        };
        let requests: Vec<StepRequest> = sequences
            .iter()
            .zip(&accepted)
            .map(|(sequence, accepted)| StepRequest {
                sequence,
                accepted,
                known: KnownRows::default(),
                options,
            })
            .collect();
        let count = allocation_counter::measure(|| {
            step_into(&requests, WIDTH, &mut drafts).unwrap();
        });
        usize::from(count.count_total > 0)
    };
    (0..3000).for_each(|number| _ = step(number));
    (3000..3100).map(step).sum()
}

#[test]
fn a_step_on_one_thread_or_several_allocates_next_to_nothing() {
    for requests in [8, 48] {
        let steps = that_allocate(requests);
        assert!(steps <= 20, "{steps} of 100 steps of {requests} allocate");
    }
}
