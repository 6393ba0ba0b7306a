//! What the target knew: what is read beside an occurrence is what was given with it.
#![cfg(not(loom))]

use das_tree::{
    Distribution, HistoryOptions, KnownRows, Observation, RolloutHistory, Sequence, StepRequest,
    Tree, step,
};
use proptest::prelude::*;

/// A text with a distribution of three entries for each token, different at every place.
#[derive(Clone, Debug)]
struct Text {
    tokens: Vec<u32>,
    ids: Vec<u32>,
    probabilities: Vec<u8>,
}

impl Text {
    fn new(number: usize, drawn: &[(u32, u8)]) -> Self {
        let tokens: Vec<u32> = drawn.iter().map(|&(token, _)| token).collect();
        let ids = (0..)
            .zip(&tokens)
            .flat_map(|(i, &token)| [1000 * (number as u32 + 1) + i, token, 7]);
        let probabilities = drawn.iter().flat_map(|&(_, p)| [(255 - p) / 2, p, 0]);
        Self {
            ids: ids.collect(),
            probabilities: probabilities.collect(),
            tokens,
        }
    }

    fn rows(&self, from: usize, to: usize) -> KnownRows<'_> {
        KnownRows::new(
            3,
            &self.ids[3 * from..3 * to],
            &self.probabilities[3 * from..3 * to],
        )
        .unwrap()
    }

    /// What should be read of the token at a place.
    fn entries(&self, at: usize) -> Vec<(u32, u8)> {
        let cells = 3 * at..3 * at + 3;
        if self.probabilities[3 * at + 1] > 242 {
            return vec![];
        }
        let mut entries: Vec<(u32, u8)> = self.ids[cells.clone()]
            .iter()
            .copied()
            .zip(self.probabilities[cells].iter().copied())
            .collect();
        entries.retain(|&(_, p)| p > 0);
        entries.sort_by_key(|&(id, p)| (std::cmp::Reverse(p), id));
        entries
    }

    fn is_at(&self, at: usize, found: &Observation) -> bool {
        self.tokens.get(at) == Some(&found.token)
            && self.entries(at) == entries(&found.distribution)
    }

    /// Places after an occurrence of a context, first to last.
    fn followers(&self, context: &[u32]) -> Vec<usize> {
        let starts = self
            .tokens
            .windows(context.len())
            .enumerate()
            .filter(|(_, window)| *window == context);
        starts
            .map(|(at, _)| at + context.len())
            .filter(|&at| at < self.tokens.len())
            .collect()
    }
}

fn entries(distribution: &Distribution) -> Vec<(u32, u8)> {
    distribution
        .tokens()
        .iter()
        .copied()
        .zip(distribution.probabilities().iter().copied())
        .collect()
}

fn texts() -> impl Strategy<Value = Vec<Text>> {
    let probability = prop_oneof![any::<u8>(), 240u8..=255];
    let drawn = prop::collection::vec((0u32..3, probability), 1..150);
    prop::collection::vec(drawn, 1..5).prop_map(|texts| {
        texts
            .iter()
            .enumerate()
            .map(|(i, text)| Text::new(i, text))
            .collect()
    })
}

fn append(sequence: &Sequence, text: &Text, from: usize, to: usize) {
    sequence
        .append_known(&text.tokens[from..to], text.rows(from, to))
        .unwrap();
}

fn contexts(text: &Text) -> impl Iterator<Item = &[u32]> {
    [1, 2, 3, 5, 8, 30, 63]
        .into_iter()
        .flat_map(|length| text.tokens.windows(length))
}

/// One rollout after another: the most recent occurrence is the last one of the last text that has one.
fn check_one_after_another(tree: &Tree, texts: &[Text]) {
    for context in texts.iter().flat_map(contexts) {
        let found = tree.latest_follower(context).unwrap();
        let occurs = |text: &&Text| {
            text.tokens
                .windows(context.len())
                .any(|window| window == context)
        };
        let last = texts.iter().rfind(occurs).unwrap();
        if last.tokens.ends_with(context) {
            // It goes on nowhere: then any other that does.
            let valid = |found: Observation| {
                texts.iter().any(|text| {
                    text.followers(context)
                        .iter()
                        .any(|&at| text.is_at(at, &found))
                })
            };
            assert!(found.is_none_or(valid), "{context:?}: {found:?}");
        } else {
            let at = *last.followers(context).last().unwrap();
            assert!(
                found.is_some_and(|found| last.is_at(at, &found)),
                "{context:?}: {found:?}, not {at}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_last_occurrence_is_read(texts in texts(), pieces in 1usize..9) {
        let tree = Tree::new(64).unwrap();
        for text in &texts {
            let sequence = tree.sequence(&[]).unwrap();
            for from in (0..text.tokens.len()).step_by(pieces) {
                append(&sequence, text, from, (from + pieces).min(text.tokens.len()));
            }
        }
        tree.check_integrity().unwrap();
        check_one_after_another(&tree, &texts);
    }

    /// In turns, while all run: own text exactly, history some occurrence in another text.
    #[test]
    fn own_and_history_are_kept_apart(texts in texts(), prompt in prop::collection::vec(0u32..3, 0..6)) {
        let tree = Tree::new(64).unwrap();
        let sequences: Vec<Sequence> = texts.iter().map(|_| tree.sequence(&prompt).unwrap()).collect();
        let longest = texts.iter().map(|text| text.tokens.len()).max().unwrap();
        for at in 0..longest {
            for (i, text) in texts.iter().enumerate().filter(|(_, text)| at < text.tokens.len()) {
                append(&sequences[i], text, at, at + 1);
                if at % 5 != 0 {
                    continue;
                }
                let own = [&prompt, &text.tokens[..=at]].concat();
                for length in [1, 2, 3, 5] {
                    let latest = sequences[i].latest(length).unwrap();
                    let context = &own[own.len().saturating_sub(length)..];
                    let starts = (0..own.len() - context.len()).rfind(|&start| own[start..].starts_with(context));
                    let expected = starts.filter(|_| length <= own.len()).map(|start| start + length);
                    prop_assert_eq!(latest.own.map(|found| found.token), expected.map(|at| own[at]));
                    if let (Some(found), Some(at)) = (latest.own, expected) {
                        match at.checked_sub(prompt.len()) {
                            Some(at) => prop_assert!(text.is_at(at, &found)),
                            None => prop_assert!(found.distribution.is_empty()),
                        }
                    }
                    if let Some(found) = latest.history {
                        let others = || texts.iter().enumerate().filter(|&(j, _)| j != i).map(|(_, text)| text);
                        prop_assert!(others().any(|text| text.followers(context).iter().any(|&at| text.is_at(at, &found))));
                    }
                }
            }
        }
    }

    /// A rebuild takes the distributions along, and what leaves the window takes its own with it.
    #[test]
    fn rebuilt_trees_know_as_much(texts in texts()) {
        let history = RolloutHistory::new(HistoryOptions { window: 3, ..HistoryOptions::default() }).unwrap();
        for text in &texts {
            let rollout = history.rollout(1, &[]).unwrap();
            append(&rollout, text, 0, text.tokens.len());
            rollout.close();
            history.advance();
        }
        history.maintain();
        let inside = &texts[texts.len().saturating_sub(2)..];
        check_one_after_another(&history.tree(1).unwrap(), inside);
    }
}

#[test]
fn a_step_takes_distributions() {
    let text = Text::new(0, &[(1, 100), (2, 100), (1, 90), (2, 250), (1, 3)]);
    let tree = Tree::new(64).unwrap();
    let sequence = tree.sequence(&[]).unwrap();
    for at in 0..text.tokens.len() {
        let (accepted, known) = (&text.tokens[at..=at], text.rows(at, at + 1));
        let options = das_tree::DraftOptions::default();
        step(
            &[StepRequest {
                sequence: &sequence,
                accepted,
                known,
                options,
            }],
            4,
        )
        .unwrap();
    }
    let own = sequence.latest(1).unwrap().own.unwrap();
    assert!(text.is_at(3, &own), "{own:?}");
    assert!(own.distribution.is_empty(), "the token drawn was certain");
    assert!(text.is_at(2, &tree.latest_follower(&[1, 2]).unwrap().unwrap()));
}

#[test]
fn bytes_are_counted_and_few() {
    let bytes = |width: usize| {
        let tree = Tree::new(64).unwrap();
        let sequence = tree.sequence(&[]).unwrap();
        let tokens: Vec<u32> = (0..64_000u32)
            .map(|i| i.wrapping_mul(2_654_435_761) >> 12)
            .collect();
        let ids: Vec<u32> = (0..64_000 * width as u32).map(|i| i % 8).collect();
        let known = vec![9; ids.len()];
        sequence
            .append_known(&tokens, KnownRows::new(width, &ids, &known).unwrap())
            .unwrap();
        sequence.close();
        tree.memory_usage() as f64 / 64_000.0
    };
    let more = bytes(8) - bytes(0);
    assert!((32.0..44.0).contains(&more), "{more} bytes a token");
}

#[test]
fn rows_are_checked() {
    let message = |width, ids: &[u32], probabilities: &[u8]| {
        KnownRows::new(width, ids, probabilities)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        message(9, &[], &[]),
        "ids has 9 columns: at most 8 entries of a distribution are kept"
    );
    assert_eq!(
        message(2, &[1, 2], &[1]),
        "ids has 2 and probabilities 1 entries: both need a row of 2 for each token"
    );
    assert_eq!(
        message(2, &[5, 1 << 24], &[1, 1]),
        "ids[0, 1] is 16777216: tokens of distributions must be below 2^24"
    );
    assert_eq!(
        message(2, &[5, 6, 5, 5], &[1; 4]),
        "ids[1, 1] is 5: the row has that token already, give it once"
    );
    assert!(
        KnownRows::new(2, &[5, 5], &[0, 1]).is_ok(),
        "unused cells may hold anything"
    );
    let sequence = Tree::new(64).unwrap().sequence(&[]).unwrap();
    let error = sequence
        .append_known(&[1, 2], KnownRows::new(1, &[5], &[1]).unwrap())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "ids has 1 rows: give one for each token, 2"
    );
    assert_eq!(sequence.len(), 0);
}

/// Readers that look while others append find what was given with some occurrence, never half of it or another's.
#[test]
fn read_while_others_append() {
    let mut random = 88_172_645_463_325_252u64;
    let mut draw = move |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) % limit
    };
    for _ in 0..6 {
        let mut text = |number| {
            let drawn: Vec<(u32, u8)> = (0..1200)
                .map(|_| (draw(3) as u32, draw(256) as u8))
                .collect();
            Text::new(number, &drawn)
        };
        let texts: Vec<Text> = (0..3).map(&mut text).collect();
        let tree = Tree::new(16).unwrap();
        let writing = std::sync::atomic::AtomicUsize::new(texts.len());
        let done = std::sync::atomic::Ordering::SeqCst;
        std::thread::scope(|scope| {
            for text in &texts {
                let (tree, writing) = (&tree, &writing);
                scope.spawn(move || {
                    let sequence = tree.sequence(&[]).unwrap();
                    for from in (0..text.tokens.len()).step_by(3) {
                        append(&sequence, text, from, from + 3);
                    }
                    sequence.close();
                    writing.fetch_sub(1, done);
                });
            }
            for start in 0..2 {
                let (tree, texts, writing) = (&tree, &texts, &writing);
                scope.spawn(move || {
                    for at in (start..1190).cycle().step_by(7) {
                        if writing.load(done) == 0 {
                            break;
                        }
                        let context = &texts[at % 3].tokens[at..at + 1 + at % 6];
                        if let Some(found) = tree.latest_follower(context).unwrap() {
                            let is_there = |text: &Text| {
                                let followers = text.followers(context);
                                followers.iter().any(|&at| text.is_at(at, &found))
                            };
                            assert!(texts.iter().any(is_there), "{context:?}: {found:?}");
                        }
                    }
                });
            }
        });
        tree.check_integrity().unwrap();
    }
}
