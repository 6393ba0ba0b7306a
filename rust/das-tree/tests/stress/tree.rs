//! One tree: what a reader has seen stays, and when all is done the tree is what it would be had one thread done it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::atomic::{AtomicUsize, Ordering},
};

use das_tree::{DraftOptions, Shape, Tree};

use crate::texts::{Random, check_draft, join, occurrences, texts};

fn run(round: u64) {
    let (writers, per_writer, length, max_depth) = (3, 3, 1500, [4, 16, 64][round as usize % 3]);
    let texts = texts(writers * per_writer, length, 1 + round);
    let tree = Tree::new(max_depth).unwrap();
    let running = AtomicUsize::new(writers);
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for writer in 0..writers {
            let (tree, texts, running) = (&tree, &texts, &running);
            threads.push(scope.spawn(move || {
                let mut random = Random(99 + round + writer as u64);
                let mine: Vec<_> = (0..per_writer)
                    .map(|i| (writer * per_writer + i, tree.sequence(&[1, 2]).unwrap()))
                    .collect();
                let mut done = 0;
                while done < length {
                    let more = (1 + random.below(5)).min(length - done);
                    for (id, sequence) in &mine {
                        sequence.append(&texts[*id][done..done + more]).unwrap();
                        let shape = [Shape::Tree, Shape::Chain][random.below(2)];
                        let options = DraftOptions {
                            max_nodes: 12,
                            shape,
                            ..DraftOptions::default()
                        };
                        check_draft(&sequence.draft(&options).unwrap(), shape);
                    }
                    done += more;
                }
                mine.iter().for_each(|(_, sequence)| sequence.close());
                running.fetch_sub(1, Ordering::Release);
            }));
        }
        for reader in 0..2 {
            let (tree, texts, running) = (&tree, &texts, &running);
            threads.push(scope.spawn(move || {
                let mut random = Random(7 + round + reader);
                let mut seen: HashMap<&[u32], u32> = HashMap::new();
                while running.load(Ordering::Acquire) > 0 {
                    let text = &texts[random.below(texts.len())];
                    let window = 1 + random.below(max_depth);
                    let start = random.below(text.len() - window);
                    let string = &text[start..start + window];
                    let count = tree.count(string).unwrap();
                    let before = seen.insert(string, count).unwrap_or(0);
                    let most = occurrences(texts, string);
                    assert!(
                        (before..=most).contains(&count),
                        "{string:?}: {before} occurrences, now {count}, in the end {most}"
                    );
                    let draft = tree.draft(string, &DraftOptions::default()).unwrap();
                    check_draft(&draft, Shape::Tree);
                }
            }));
        }
        join(threads);
    });
    tree.check_integrity().unwrap();
    let windows = BTreeSet::from([1, 2, 3, max_depth.min(8), max_depth]);
    let mut counts: HashMap<&[u32], u32> = HashMap::new();
    for string in texts
        .iter()
        .flat_map(|text| windows.iter().flat_map(|&window| text.windows(window)))
    {
        *counts.entry(string).or_default() += 1;
    }
    for (string, count) in counts {
        assert_eq!(tree.count(string).unwrap(), count, "{string:?}");
    }
}

#[test]
fn many_writers_and_readers() {
    (0..12).for_each(run);
}

/// A thread indexes its own long text while another publishes faster than anybody can index. It must not be left to index
/// for that one as long as it goes on.
#[test]
fn nobody_indexes_for_another_for_ever() {
    const TOO_MANY: usize = 4_000_000;
    let texts = varied_texts(400, 640);
    let long = varied_texts(20, 1000).concat();
    let tree = Tree::new(64).unwrap();
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let kept = scope.spawn(|| {
            tree.sequence(&[]).unwrap().append(&long).unwrap();
            done.store(1, Ordering::Relaxed);
        });
        while tree.is_empty() {
            std::hint::spin_loop();
        }
        for text in texts.iter().cycle() {
            if done.load(Ordering::Relaxed) == 1 || tree.len() > TOO_MANY {
                break;
            }
            tree.sequence(&[]).unwrap().append(text).unwrap();
        }
        join(vec![kept]);
    });
    assert!(
        tree.len() < TOO_MANY,
        "a thread was kept while {TOO_MANY} tokens came"
    );
}

/// Noisy copies of one text over a large alphabet.
fn varied_texts(count: usize, length: usize) -> Vec<Vec<u32>> {
    let mut random = Random(3);
    let text: Vec<usize> = (0..length).map(|_| random.below(150_000)).collect();
    let copy = |_| {
        let mut noisy = |&token: &usize| match random.below(20) {
            0 => random.below(150_000) as u32,
            _ => token as u32,
        };
        text.iter().map(&mut noisy).collect()
    };
    (0..count).map(copy).collect()
}
