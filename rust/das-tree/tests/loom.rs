//! Models of what threads may do to one tree at the same time, checked by loom over all interleavings with at most
//! [`PREEMPTIONS`] preemptions, and all stale values the memory model lets a load return. Run with
//!
//! ```sh
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p das-tree --release --test loom
//! ```
//!
//! Under loom chunks hold four tokens and the first segments one element, so that a few tokens cross every border. Loom
//! does not explore load buffering, and the number of preemptions is bounded: a pass is strong evidence, not a proof.
#![cfg(loom)]

use std::sync::Arc;

use das_tree::{Sequence, Tree};

const PREEMPTIONS: usize = 2;

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
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

/// Edges that were there are found while more are added beside the node, and two of those collide.
#[test]
fn overflow_insert_vs_find() {
    model(|| {
        let tree = tree();
        // The start marker and three tokens fill the root; 8 and 16 share a slot of its trie.
        let first = sequence(&tree, &[1, 2, 3, 8]);
        let reader = {
            let tree = Arc::clone(&tree);
            loom::thread::spawn(move || {
                assert_eq!(count(&tree, &[8]), 1);
                assert_eq!(count(&tree, &[2, 3]), 1);
            })
        };
        first.append(&[COLLIDES_WITH_8]).unwrap();
        reader.join().unwrap();
        assert_eq!((count(&tree, &[8]), count(&tree, &[COLLIDES_WITH_8])), (1, 1));
        tree.check_integrity().unwrap();
    });
}

/// The same three bits of the hash as token 8.
const COLLIDES_WITH_8: u32 = 21;

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
        let mut lengths = [first.match_length().unwrap(), second.match_length().unwrap()];
        lengths.sort_unstable();
        assert_eq!(lengths, [0, 3], "the first to come has a leaf, the other matches it");
    });
}

/// A token published while another thread is at the index is taken along by it, or indexed by the publisher: never left.
#[test]
fn handed_over_work_is_done() {
    model(|| {
        let tree = tree();
        let sequences = [sequence(&tree, &[]), sequence(&tree, &[])];
        let threads = sequences.map(|sequence| {
            loom::thread::spawn(move || {
                sequence.append(&[3]).unwrap();
                sequence.append(&[4]).unwrap();
                sequence
            })
        });
        let _sequences = threads.map(|thread| thread.join().unwrap());
        // Checks, without appending anything, that all published tokens are indexed.
        tree.check_integrity().unwrap();
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
