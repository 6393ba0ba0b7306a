//! Models of what threads may do to one tree at the same time, checked by loom over all interleavings with at most
//! [`PREEMPTIONS`] preemptions (or LOOM_MAX_PREEMPTIONS), and all stale values the memory model lets a load return:
//!
//! ```sh
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p das-tree --release --test loom
//! ```
//!
//! Under loom chunks hold four tokens and the first segments one element, so that a few tokens cross every border. Loom
//! does not explore load buffering, and the number of preemptions is bounded: a pass is strong evidence, not a proof.
#![cfg(loom)]

use std::sync::Arc;

use das_tree::{Draft, DraftOptions, HistoryOptions, RolloutHistory, Sequence, Tree};

const PREEMPTIONS: usize = 3;

fn model(body: impl Fn() + Sync + Send + 'static) {
    bounded_model(PREEMPTIONS, body);
}

fn bounded_model(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 100_000;
    builder.check(body);
}

fn tree() -> Arc<Tree> {
    Tree::new(4).unwrap()
}

fn sequence(tree: &Arc<Tree>, tokens: &[u32]) -> Sequence {
    let sequence = tree.sequence(&[]).unwrap();
    sequence.append(tokens).unwrap();
    sequence
}

fn draft_one(tree: &Tree, text: &[u32]) -> Draft {
    let options = DraftOptions {
        max_nodes: 1,
        ..DraftOptions::default()
    };
    tree.draft(text, &options).unwrap()
}

fn count(tree: &Tree, tokens: &[u32]) -> u32 {
    tree.count(tokens).unwrap()
}

/// A text that was indexed before a reader began is found by it, wherever the writer puts a node on the way.
#[test]
fn split_vs_descend() {
    model(|| {
        let tree = tree();
        let _first = sequence(&tree, &[1, 2, 3]);
        let second = sequence(&tree, &[2]);
        let reader = {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || {
                assert_eq!(count(&tree, &[2, 3]), 1);
                assert!((1..=2).contains(&count(&tree, &[2])));
            })
        };
        second.append(&[5]).unwrap();
        reader.join().unwrap();
        assert_eq!((count(&tree, &[2]), count(&tree, &[2, 5])), (2, 1));
        tree.check_integrity().unwrap();
    });
}

/// While one text takes a leaf over from another, both are found, and the one that lost it still finds its place.
#[test]
fn takeover_vs_descend() {
    model(|| {
        let tree = tree();
        let behind = sequence(&tree, &[1]);
        let ahead = sequence(&tree, &[1]);
        let reader = {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || {
                assert_eq!(count(&tree, &[1]), 1);
                assert!([0, 2].contains(&behind.match_length().unwrap()));
                behind
            })
        };
        ahead.append(&[7]).unwrap();
        let behind = reader.join().unwrap();
        assert_eq!(behind.match_length().unwrap(), 2);
        assert_eq!(count(&tree, &[1, 7]), 1);
        tree.check_integrity().unwrap();
    });
}

/// Edges that were there are found while more are added beside the node, the first of them and two that collide.
#[test]
fn overflow_insert_vs_find() {
    model(|| {
        let tree = tree();
        // With the start marker these fill the root.
        let first = sequence(&tree, &[1, 2, 3]);
        let reader = {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || {
                assert_eq!(count(&tree, &[2, 3]), 1);
                assert_eq!(count(&tree, &[NEVER]), 0);
                let seen = count(&tree, &[8]);
                assert!(seen <= 1 && seen <= count(&tree, &[8]));
            })
        };
        first.append(&[8, COLLIDES_WITH_8]).unwrap();
        reader.join().unwrap();
        assert_eq!(
            (count(&tree, &[8]), count(&tree, &[COLLIDES_WITH_8])),
            (1, 1)
        );
        tree.check_integrity().unwrap();
    });
}

/// Tokens that choose the same slot of an edge trie as token 8.
const COLLIDES_WITH_8: u32 = 21;
const NEVER: u32 = 16;

/// What a reader counted once it counts again, or more: also where the string's place moves from an edge to a node.
#[test]
fn counts_never_fall() {
    model(|| {
        let tree = tree();
        let _first = sequence(&tree, &[1, 2, 3]);
        let second = sequence(&tree, &[1, 2]);
        let reader = {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || {
                let mut before = 0;
                for _ in 0..3 {
                    let now = count(&tree, &[1, 2]);
                    assert!((before.max(1)..=2).contains(&now), "{before}, then {now}");
                    before = now;
                }
            })
        };
        second.append(&[4]).unwrap();
        reader.join().unwrap();
        assert_eq!(count(&tree, &[1, 2]), 2);
    });
}

/// A draft sees each follower of a node once and those of old for certain, while the node gets its fifth edge and with it
/// a list of the most frequent.
#[test]
fn widen_vs_followers() {
    model(|| {
        let tree = tree();
        let _first = sequence(&tree, &[1, 2, 1, 3, 1, 4, 1, 5, 7]);
        let second = sequence(&tree, &[1]);
        let reader = {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || {
                let options = DraftOptions {
                    max_nodes: 8,
                    ..DraftOptions::default()
                };
                let draft = tree.draft(&[1], &options).unwrap();
                let roots = draft.parents.iter().zip(&draft.tokens);
                let mut tokens: Vec<u32> = roots
                    .filter(|&(&parent, _)| parent < 0)
                    .map(|(_, &token)| token)
                    .collect();
                tokens.sort_unstable();
                assert!(
                    tokens == [2, 3, 4, 5] || tokens == [2, 3, 4, 5, 6],
                    "{tokens:?}"
                );
            })
        };
        second.append(&[6]).unwrap();
        reader.join().unwrap();
        tree.check_integrity().unwrap();
    });
}

/// Elements stay readable while their arena gets new segments.
#[test]
fn grow_vs_read() {
    model(|| {
        let tree = tree();
        let first = sequence(&tree, &[1, 2, 1, 3]);
        let reader = {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || {
                assert_eq!(count(&tree, &[1, 2]), 1);
                assert_eq!(count(&tree, &[2, 1, 3]), 1);
            })
        };
        // Crosses into a new chunk and splits twice.
        first.append(&[2, 1]).unwrap();
        reader.join().unwrap();
        tree.check_integrity().unwrap();
    });
}

/// A reader never sees a token before it was written: a fresh slot of the text would read as token 0.
#[test]
fn append_vs_read_of_its_tokens() {
    model(|| {
        let tree = tree();
        let first = sequence(&tree, &[1]);
        let reader = {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || {
                assert_eq!(count(&tree, &[1, 0]) + count(&tree, &[1, 2, 0]), 0);
                assert!(count(&tree, &[1, 2, 3]) <= count(&tree, &[1, 2]));
            })
        };
        first.append(&[2, 3]).unwrap();
        reader.join().unwrap();
        assert_eq!(count(&tree, &[1, 2, 3]), 1);
    });
}

/// What is said to have followed last has followed: the occurrence noted at a node is read as it was written, also where it
/// lies in a chunk of the text that has just been made.
#[test]
fn append_vs_latest() {
    model(|| {
        let tree = tree();
        let _first = sequence(&tree, &[1, 2, 1, 3]);
        let second = sequence(&tree, &[5, 6, 7]);
        let reader = {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || {
                let found = tree.latest_follower(&[1]).unwrap();
                let token = found.map(|found| found.token);
                assert!([Some(3), Some(4)].contains(&token), "{token:?}");
            })
        };
        // Fills the chunk, so these go to a new one.
        second.append(&[1, 4]).unwrap();
        reader.join().unwrap();
        let found = tree.latest_follower(&[1]).unwrap().unwrap();
        assert_eq!(found.token, 4);
    });
}

/// A string is found while the first occurrence of it, where its tokens are read, becomes one that lies before: in a chunk that
/// was begun before the others and is written just now.
#[test]
fn earlier_occurrence_vs_descend() {
    model(|| {
        let tree = tree();
        let first = sequence(&tree, &[]);
        let _second = sequence(&tree, &[1, 2, 3, 1, 2, 4]);
        let reader = {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || {
                assert!((2..=3).contains(&count(&tree, &[1, 2])));
            })
        };
        first.append(&[1, 2, 5]).unwrap();
        reader.join().unwrap();
        assert_eq!(count(&tree, &[1, 2]), 3);
        tree.check_integrity().unwrap();
    });
}

/// A draft made while nodes appear under its contexts still has all that was known before: the shorter context is
/// reached by the suffix link of a node just made, or without it.
#[test]
fn split_vs_draft() {
    model(|| {
        let tree = tree();
        sequence(&tree, &[1, 2, 3, 4, 2, 3, 6, 2, 3]).close();
        let second = sequence(&tree, &[1, 2]);
        let reader = {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || {
                let draft = draft_one(&tree, &[1, 2]);
                // With the context of length 2 alone it would be 0.2 at most.
                assert_eq!(draft.tokens, [3]);
                assert!(draft.probabilities[0] > 0.25, "{draft:?}");
            })
        };
        second.append(&[5]).unwrap();
        reader.join().unwrap();
        tree.check_integrity().unwrap();
    });
}

/// From a context on an edge the shorter one is reached by way of what is below it, and found whether or not a split has just
/// put a node there.
#[test]
fn split_vs_suffix() {
    model(|| {
        let tree = tree();
        sequence(&tree, &[1, 2, 3, 4, 1, 2, 3, 6, 2, 3]).close();
        let second = sequence(&tree, &[2]);
        let reader = {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || {
                let draft = draft_one(&tree, &[1, 2]);
                // With the context of length 2 alone it would be 0.33.
                assert_eq!(draft.tokens, [3]);
                assert!(draft.probabilities[0] > 0.5, "{draft:?}");
            })
        };
        second.append(&[5]).unwrap();
        reader.join().unwrap();
        tree.check_integrity().unwrap();
    });
}

/// A running sequence drafts while another takes its leaf over and goes on: what the other adds may show or not.
#[test]
fn takeover_vs_draft() {
    model(|| {
        let tree = tree();
        let behind = sequence(&tree, &[1]);
        let ahead = sequence(&tree, &[1]);
        let reader = loom::thread::spawn(move || {
            let draft = behind.draft(&DraftOptions::default()).unwrap();
            assert!(draft.is_empty() || draft.tokens == [7], "{draft:?}");
            behind
        });
        ahead.append(&[7]).unwrap();
        let behind = reader.join().unwrap();
        assert_eq!(behind.draft(&DraftOptions::default()).unwrap().tokens, [7]);
    });
}

/// Two threads append to two sequences: whoever indexes, all tokens are indexed when both are done.
#[test]
fn two_appenders() {
    model(|| {
        let tree = tree();
        let (first, second) = (sequence(&tree, &[1]), sequence(&tree, &[1]));
        let other = loom::thread::spawn(move || {
            second.append(&[2]).unwrap();
            second
        });
        first.append(&[2]).unwrap();
        let second = other.join().unwrap();
        tree.check_integrity().unwrap();
        let mut lengths = [
            first.match_length().unwrap(),
            second.match_length().unwrap(),
        ];
        lengths.sort_unstable();
        assert_eq!(
            lengths,
            [0, 3],
            "the first to come has a leaf, the other matches it"
        );
    });
}

/// Two threads append to a sequence each, one after another. What they publish while the other one is at the index is taken
/// along by it, or indexed by the publisher: never left. So much happens here that two preemptions
/// have to do.
fn append_side_by_side(texts: [&'static [&'static [u32]]; 2]) {
    bounded_model(2, move || {
        let tree = tree();
        let threads = texts.map(|appends| {
            let sequence = sequence(&tree, &[]);
            loom::thread::spawn(move || {
                appends
                    .iter()
                    .for_each(|tokens| sequence.append(tokens).unwrap());
                sequence
            })
        });
        let _sequences = threads.map(|thread| thread.join().unwrap());
        // Before the check of the whole, which would index what is left.
        for token in texts.into_iter().flatten().copied().flatten() {
            assert_eq!(count(&tree, &[*token]), 1, "token {token} is left");
        }
        tree.check_integrity().unwrap();
    });
}

#[test]
fn handed_over_work_is_done() {
    append_side_by_side([&[&[3], &[4]], &[&[5], &[6]]]);
}

/// A thread that has indexed enough for others is relieved by the next that comes, or is not. Two tokens are enough to offer
/// that unasked.
#[test]
fn relief_vs_append() {
    append_side_by_side([&[&[3, 4]], &[&[5], &[6]]]);
}

/// A thread with two tokens of its own offers to take over, is given the index or not, and goes on appending: it then sees
/// all that the other wrote to the index, and the other has left it.
#[test]
fn relief_vs_append_after_it() {
    append_side_by_side([&[&[3, 4], &[7]], &[&[5]]]);
}

/// The end of one sequence is indexed whatever another thread appends meanwhile: its counts are exact afterwards.
#[test]
fn close_vs_append() {
    model(|| {
        let tree = tree();
        let (first, second) = (sequence(&tree, &[3]), sequence(&tree, &[3]));
        let closing = loom::thread::spawn(move || second.close());
        first.append(&[4]).unwrap();
        closing.join().unwrap();
        tree.check_integrity().unwrap();
        first.close();
        assert_eq!((count(&tree, &[3]), count(&tree, &[3, 4])), (2, 1));
    });
}

/// Two threads append to one and the same sequence: each append stays in one piece, and both are there.
#[test]
fn two_appenders_of_one_sequence() {
    model(|| {
        let tree = tree();
        let sequence = Arc::new(sequence(&tree, &[]));
        let other = {
            let sequence = Arc::clone(&sequence);
            loom::thread::spawn(move || sequence.append(&[1, 2]).unwrap())
        };
        sequence.append(&[3, 4]).unwrap();
        other.join().unwrap();
        sequence.close();
        assert_eq!((count(&tree, &[1, 2]), count(&tree, &[3, 4])), (1, 1));
        assert_eq!(count(&tree, &[2, 3]) + count(&tree, &[4, 1]), 1);
    });
}

/// Threads that race for a new segment of an arena agree on one.
#[test]
fn two_openers() {
    model(|| {
        let tree = tree();
        let opener = {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || tree.sequence(&[]).unwrap())
        };
        let first = tree.sequence(&[]).unwrap();
        let second = opener.join().unwrap();
        tree.check_integrity().unwrap();
        assert_eq!(tree.sequences(), 2);
        drop((first, second));
    });
}

/// A problem's tree is made anew while a rollout runs on in the old one, whoever holds the old one reads it, and the next rollout
/// waits for the new one: it finds all of it, and nothing is lost of the old.
#[test]
fn rebuild_vs_append_and_read() {
    model(|| {
        let options = HistoryOptions {
            max_depth: 4,
            ..HistoryOptions::default()
        };
        let history = RolloutHistory::new(options).unwrap();
        let ended = history.rollout(1, &[]).unwrap();
        ended.append(&[3]).unwrap();
        let running = history.rollout(1, &[]).unwrap();
        // With another weight it has to be put into a new tree.
        ended.close_with_weight(2.0).unwrap();
        let old = history.tree(1).unwrap();
        history.advance();
        let appender = loom::thread::spawn(move || {
            running.append(&[4]).unwrap();
            running
        });
        // The thread that makes the tree begins, so that the model gets to know what it does.
        loom::thread::yield_now();
        let fresh = history.rollout(1, &[]).unwrap();
        let new = history.tree(1).unwrap();
        assert!(!Arc::ptr_eq(&old, &new));
        assert_eq!((count(&new, &[3]), count(&new, &[4])), (2, 0));
        assert_eq!(count(&old, &[3]), 1);
        let draft = fresh.draft(&DraftOptions::default()).unwrap();
        assert_eq!(draft.tokens, [3]);
        drop(appender.join().unwrap());
        assert_eq!(count(&old, &[4]), 1);
        history.maintain();
        drop(fresh);
    });
}
