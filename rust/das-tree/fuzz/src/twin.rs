//! What is checked where drafts come from what has been learned, beside the tree, which the oracle follows all the same: drafts are
//! well formed, a second history that is given the same calls drafts the same whatever threads help with its batches, and a file
//! brings back all that was learned.

use std::path::Path;

use das_tree::{Coupling, Draft, DraftOptions, RolloutHistory, Shape};

/// A problem that scripts do not use.
const UNTOLD: u64 = 1000;

/// Checks what holds for any draft.
pub fn check_form(draft: &Draft, options: &DraftOptions) {
    assert!(draft.len() <= options.max_nodes, "{draft:?}");
    for at in 0..draft.len() {
        let (parent, probability) = (draft.parents[at], draft.probabilities[at]);
        let before = if at == 0 {
            1.0
        } else {
            draft.probabilities[at - 1]
        };
        assert!((0.0..=before).contains(&probability), "{draft:?}"); // a long path may round to zero
        assert!(probability >= options.min_probability, "{draft:?}");
        assert!((-1..at as i32).contains(&parent), "{draft:?}");
        assert!(draft.tokens[at] < 1 << 31, "{draft:?}");
        let is_chain = options.shape == Shape::Chain;
        assert!(!is_chain || parent == at as i32 - 1, "{draft:?}");
        let is_twin = |other: usize| {
            (draft.parents[other], draft.tokens[other]) == (parent, draft.tokens[at])
        };
        assert!(!(0..at).any(is_twin), "{draft:?}");
    }
}

/// Checks that a history and one loaded from its file have learned the same: for a problem that neither has seen they draft alike.
pub fn check_learned(history: &RolloutHistory, file: &Path, alphabet: u32) {
    let loaded = RolloutHistory::load(file, |_| {}).unwrap();
    for last in 0..alphabet.min(12) {
        let drafts = [history, &loaded].map(|history| {
            let rollout = history.rollout(UNTOLD, &[last / 2, last]).unwrap();
            let options = DraftOptions {
                coupling: match last % 3 {
                    0 => Coupling::Blind,
                    1 => Coupling::Greedy,
                    _ => Coupling::Seeded {
                        seed: last.into(),
                        position: 1,
                    },
                },
                ..DraftOptions::default()
            };
            rollout.draft(&options).unwrap()
        });
        assert_eq!(drafts[0], drafts[1], "after loading");
    }
}
