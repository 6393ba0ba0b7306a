//! Saving and loading a history: the same drafts, damage refused, and a whole file at every moment.
#![cfg(not(loom))]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use das_tree::{
    Coupling, Draft, DraftOptions, HistoryOptions, HistoryStats, KnownRows, Observation,
    RolloutHistory, Sequence,
};
use proptest::prelude::*;
use scratch::File;

mod scratch;

/// A directory of this process's own, for one test, that goes with it.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let name = format!("das-snapshot-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

type Visit = Vec<(u64, Vec<u32>, u8)>;

/// A history after these visits: rollouts of a problem, their tokens, and their weights in quarters at the close.
fn history(options: HistoryOptions, visits: &[Visit]) -> RolloutHistory {
    history_with(options, visits, true)
}

/// As [`history`]; if rollouts `overlap`, one of each visit runs on into the next.
fn history_with(options: HistoryOptions, visits: &[Visit], overlap: bool) -> RolloutHistory {
    let history = RolloutHistory::new(options).unwrap();
    let mut straggler = None;
    for visit in visits {
        for (problem, tokens, weight) in visit {
            let rollout = history.rollout(*problem, &[1]).unwrap();
            let probabilities = vec![40 + 10 * *weight; 2 * tokens.len()];
            let ids: Vec<u32> = tokens.iter().flat_map(|token| [*token, 1 << 23]).collect();
            let known = KnownRows::new(2, &ids, &probabilities).unwrap();
            let first = tokens.len().min(20);
            for at in 0..first {
                // What is drafted before tokens come is learned from.
                rollout.draft(&DraftOptions::default()).unwrap();
                let known = known.slice(at..at + 1);
                rollout.append_known(&tokens[at..=at], known).unwrap();
                let context = [tokens[at], *tokens.last().unwrap()];
                rollout.reject(&[context], known).unwrap();
            }
            let known = known.slice(first..tokens.len());
            rollout.append_known(&tokens[first..], known).unwrap();
            rollout.close_with_weight(f64::from(*weight) / 4.0).unwrap();
        }
        // One rollout runs on into the next visit, and so waits apart for a while.
        let running = history.rollout(0, &[]).unwrap();
        running.append(&[2, 0, 1, 2]).unwrap();
        if !overlap {
            running.close();
        }
        history.advance();
        drop(straggler.replace(running));
    }
    history
}

fn drafts(history: &RolloutHistory) -> Vec<Draft> {
    let mut drafts = Vec::new();
    for problem in 0..3 {
        let rollout = history.rollout(problem, &[1]).unwrap();
        for token in [0, 1, 2, 0, 1, 1, 2] {
            rollout.append(&[token]).unwrap();
            drafts.push(rollout.draft(&DraftOptions::default()).unwrap());
        }
    }
    drafts
}

fn without_bytes(history: &RolloutHistory) -> HistoryStats {
    history.maintain();
    HistoryStats {
        bytes: 0,
        ..history.stats()
    }
}

fn visits() -> impl Strategy<Value = Vec<Visit>> {
    let rollout = (0u64..3, prop::collection::vec(0u32..4, 1..20), 0u8..9);
    prop::collection::vec(prop::collection::vec(rollout, 0..4), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_loaded_history_drafts_identically(
        window in 1usize..4,
        decay in prop::sample::select(vec![1.0, 0.7]),
        soft in any::<bool>(),
        overlap in any::<bool>(),
        visits in visits(),
    ) {
        let directory = Directory::new("identical");
        let options = HistoryOptions { window, decay, soft, ..HistoryOptions::default() };
        let history = history_with(options, &visits, overlap);
        history.save(&directory.join("history")).unwrap();
        let loaded = RolloutHistory::load(&directory.join("history"), |_| ()).unwrap();
        prop_assert_eq!(loaded.options(), history.options());
        prop_assert_eq!(without_bytes(&loaded), without_bytes(&history));
        prop_assert_eq!(drafts(&loaded), drafts(&history));
        // And it goes on as the other does.
        for history in [&loaded, &history] {
            history.advance();
        }
        prop_assert_eq!(drafts(&loaded), drafts(&history));
        prop_assert_eq!(without_bytes(&loaded), without_bytes(&history));
    }
}

/// A rollout that grows side by side with others: its problem, its weights in quarters at the beginning and the end, its tokens,
/// and whether it runs on into the next visit.
#[derive(Clone, Debug)]
struct Grown {
    problem: u64,
    weights: (u8, u8),
    tokens: Vec<u32>,
    runs_on: bool,
}

/// Rollouts of a visit, and pieces of so many tokens in the order in which they are appended.
type Growth = (Vec<Grown>, Vec<(prop::sample::Index, usize)>);

fn growths() -> impl Strategy<Value = Vec<Growth>> {
    let grown = |alphabet: u32| {
        let weights = prop_oneof![Just((4, 4)), (1u8..9, 0u8..9)];
        let tokens = prop::collection::vec(0..alphabet, 0..180);
        let fields = (0u64..2, weights, tokens, any::<bool>());
        fields.prop_map(|(problem, weights, tokens, runs_on)| Grown {
            problem,
            weights,
            tokens,
            runs_on,
        })
    };
    let growth = move |alphabet| {
        let pieces = prop::collection::vec((any::<prop::sample::Index>(), 1usize..30), 0..40);
        (prop::collection::vec(grown(alphabet), 1..6), pieces)
    };
    prop::sample::select(vec![2u32, 4, 9])
        .prop_flat_map(move |alphabet| prop::collection::vec(growth(alphabet), 1..4))
}

/// A history in which rollouts grew side by side, and those that run, in the order in which they began.
fn grown_history(options: HistoryOptions, growths: &[Growth]) -> (RolloutHistory, Vec<Sequence>) {
    let history = RolloutHistory::new(options).unwrap();
    let mut running: Vec<(Sequence, Grown)> = Vec::new();
    let mut number = 0;
    for (rollouts, pieces) in growths {
        // The first ones may be far ahead when the last one begins.
        let (mut to_come, rounds) = (rollouts.iter(), pieces.chunks(8));
        for round in rounds.chain(rollouts.iter().map(|_| &[][..])) {
            if let Some(grown) = to_come.next() {
                let weight = f64::from(grown.weights.0) / 4.0;
                let rollout = history.rollout_with_weight(grown.problem, &[1], weight);
                running.push((rollout.unwrap(), grown.clone()));
            }
            for (which, length) in round {
                number += 1;
                let (rollout, grown) = which.get(&running);
                append_piece(rollout, &grown.tokens, *length, number);
            }
        }
        running.retain(|(rollout, grown)| {
            if !grown.runs_on {
                let weight = f64::from(grown.weights.1) / 4.0;
                rollout.close_with_weight(weight).unwrap();
            }
            grown.runs_on
        });
        history.advance();
    }
    let running = running.into_iter().map(|(rollout, _)| rollout);
    (history, running.collect())
}

/// Appends the next tokens of a text, each with another distribution, after a draft that is learned from.
fn append_piece(rollout: &Sequence, tokens: &[u32], length: usize, number: usize) {
    rollout.draft(&DraftOptions::default()).unwrap();
    let from = rollout.len();
    let piece = &tokens[from..tokens.len().min(from + length)];
    let other = |at: usize| (from + at + number) as u32 % 9;
    let probability = |at: usize| (20 + (7 * at + 31 * number) % 200) as u8;
    let cells = piece.iter().enumerate();
    let (ids, probabilities): (Vec<[u32; 2]>, Vec<[u8; 2]>) = cells
        .map(|(at, &token)| {
            let p = probability(at);
            (
                [token, other(at)],
                [p, if other(at) == token { 0 } else { 240 - p }],
            )
        })
        .unzip();
    let known = KnownRows::new(2, ids.as_flattened(), probabilities.as_flattened()).unwrap();
    // Some come without.
    if number.is_multiple_of(5) {
        rollout.append(piece).unwrap();
    } else {
        rollout.append_known(piece, known).unwrap();
    }
}

/// What is said to have followed contexts of up to three tokens last.
fn followers(history: &RolloutHistory) -> Vec<Option<Observation>> {
    let mut all = Vec::new();
    for tree in (0..2).filter_map(|problem| history.tree(problem)) {
        for number in 0..9 * 9 * 9 {
            let context = [number / 81, number / 9 % 9, number % 9];
            for length in 1..=tree.max_depth().min(3) {
                all.push(tree.latest_follower(&context[..length]).unwrap());
            }
        }
    }
    all
}

/// Drafts for new rollouts of each problem that say this.
fn drafts_after(history: &RolloutHistory, texts: &[Vec<u32>]) -> Vec<Draft> {
    let mut drafts = Vec::new();
    for (problem, text) in (0..2).cycle().zip(texts) {
        let rollout = history.rollout(problem, &[1, 2]).unwrap();
        for (at, &token) in text.iter().enumerate() {
            rollout.append(&[token]).unwrap();
            let (seed, position) = (7, at as i64 + 2);
            for coupling in [Coupling::Blind, Coupling::Seeded { seed, position }] {
                let options = DraftOptions {
                    coupling,
                    ..DraftOptions::default()
                };
                drafts.push(rollout.draft(&options).unwrap());
            }
        }
    }
    drafts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// To the bit, and whatever of it ran when it was saved: that has ended in the file as it ends in the history afterwards.
    #[test]
    fn a_loaded_history_drafts_identically_where_rollouts_grew_side_by_side(
        (window, max_depth) in (1usize..4, prop::sample::select(vec![2usize, 3, 8, 64])),
        decay in prop::sample::select(vec![1.0, 0.7]),
        (soft, shared, rejected) in any::<(bool, bool, bool)>(),
        growths in growths(),
        texts in prop::collection::vec(prop::collection::vec(0u32..9, 1..12), 6),
    ) {
        let file = File::new("side-by-side");
        let options = HistoryOptions {
            window, max_depth, decay, soft, shared, rejected, ..HistoryOptions::default()
        };
        let (history, running) = grown_history(options, &growths);
        history.save(&file.0).unwrap();
        running.iter().for_each(Sequence::close);
        let loaded = RolloutHistory::load(&file.0, |_| ()).unwrap();
        prop_assert_eq!(without_bytes(&loaded), without_bytes(&history));
        for tree in (0..2).filter_map(|problem| loaded.tree(problem)) {
            prop_assert_eq!(tree.check_integrity(), Ok(()));
        }
        prop_assert_eq!(followers(&loaded), followers(&history));
        prop_assert_eq!(drafts_after(&loaded, &texts), drafts_after(&history, &texts));
        // And they go on alike: in the next visit, with a tree that may be a new one, and after another file.
        for history in [&loaded, &history] {
            history.advance();
        }
        prop_assert_eq!(drafts_after(&loaded, &texts), drafts_after(&history, &texts));
        loaded.save(&file.0).unwrap();
        let again = RolloutHistory::load(&file.0, |_| ()).unwrap();
        prop_assert_eq!(followers(&again), followers(&history));
        prop_assert_eq!(drafts_after(&again, &texts), drafts_after(&history, &texts));
    }
}

fn small() -> RolloutHistory {
    let visit = vec![(0, vec![1, 2, 3], 4), (2, vec![3, 2], 2)];
    history(
        HistoryOptions {
            window: 3,
            ..HistoryOptions::default()
        },
        &[visit],
    )
}

/// A rollout runs on in a tree that has been replaced since. Saved, it is what it would be had it ended just then.
#[test]
fn a_rollout_in_a_replaced_tree_is_saved() {
    let directory = Directory::new("straggler");
    let path = directory.join("history");
    let options = HistoryOptions {
        window: 3,
        ..HistoryOptions::default()
    };
    let history = RolloutHistory::new(options).unwrap();
    let straggler = history.rollout(0, &[]).unwrap();
    let probabilities = [90, 60];
    let known = KnownRows::new(1, &[5, 6], &probabilities).unwrap();
    straggler.append_known(&[1, 2], known).unwrap();
    let other = history.rollout(0, &[]).unwrap();
    other.append(&[3, 3]).unwrap();
    // The new weight has the tree made anew.
    other.close_with_weight(0.5).unwrap();
    history.advance();
    assert_eq!(history.tree(0).unwrap().len(), 2, "only the other is in it");
    straggler.append(&[2, 0]).unwrap();
    history.save(&path).unwrap();

    let loaded = RolloutHistory::load(&path, |_| ()).unwrap();
    straggler.close();
    assert_eq!(without_bytes(&loaded), without_bytes(&history));
    for history in [&loaded, &history] {
        history.advance();
        let tree = history.tree(0).unwrap();
        assert_eq!((tree.len(), tree.count(&[1, 2, 2, 0]).unwrap()), (6, 1));
        let after = tree.latest_follower(&[1]).unwrap().unwrap();
        assert_eq!((after.token, after.distribution.tokens()), (2, &[6][..]));
    }
    assert_eq!(drafts(&loaded), drafts(&history));
}

/// What has run so long that its visit has left the window leaves with the end of the run: it is not saved.
#[test]
fn a_rollout_that_has_outlived_the_window_is_not_saved() {
    let directory = Directory::new("outlived");
    let path = directory.join("history");
    let options = HistoryOptions {
        window: 1,
        ..HistoryOptions::default()
    };
    let history = RolloutHistory::new(options).unwrap();
    let straggler = history.rollout(0, &[]).unwrap();
    straggler.append(&[1, 2]).unwrap();
    for _ in 0..2 {
        let other = history.rollout(0, &[]).unwrap();
        other.append(&[3, 3]).unwrap();
        other.close();
        history.advance();
    }
    drop(history.rollout(0, &[]).unwrap());
    history.save(&path).unwrap();
    let loaded = RolloutHistory::load(&path, |_| ()).unwrap();
    straggler.close();
    assert_eq!(loaded.stats().rollouts, history.stats().rollouts);
    assert_eq!(loaded.tree(0).unwrap().count(&[1, 2]).unwrap(), 0);
}

fn refusal(path: &Path) -> String {
    RolloutHistory::load(path, |_| ()).unwrap_err().to_string()
}

#[test]
fn truncated_and_damaged_files_are_refused() {
    let directory = Directory::new("damage");
    let path = directory.join("history");
    small().save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let message = refusal(&path);
        assert!(message.contains("truncated"), "{length} bytes: {message}");
    }
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, &bytes).unwrap();
        let message = refusal(&path);
        assert!(
            message.starts_with(&path.display().to_string()),
            "byte {at}: {message}"
        );
    }
    fs::write(&path, [whole.as_slice(), b"x"].concat()).unwrap();
    assert!(refusal(&path).contains("after its end"));
    fs::write(&path, b"something else entirely").unwrap();
    assert!(refusal(&path).contains("not a rollout history"));
    let mut newer = whole.clone();
    newer[8..12].copy_from_slice(&7u32.to_le_bytes());
    fs::write(&path, &newer).unwrap();
    assert!(
        refusal(&path)
            .contains("format version 7, this release reads versions up to 5: use a newer release")
    );
    fs::write(&path, &whole).unwrap();
    assert_eq!(
        drafts(&RolloutHistory::load(&path, |_| ()).unwrap()),
        drafts(&small())
    );
}

#[test]
fn files_that_cannot_be_read_or_written_say_so() {
    let directory = Directory::new("missing");
    let error = RolloutHistory::load(&directory.join("none"), |_| ()).unwrap_err();
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::NotFound));
    let error = small()
        .save(&directory.join("no/such/directory"))
        .unwrap_err();
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::NotFound));
}

#[test]
fn options_may_be_changed_on_loading() {
    let directory = Directory::new("options");
    let path = directory.join("history");
    small().save(&path).unwrap();
    let loaded = RolloutHistory::load(&path, |options| options.max_bytes = 0).unwrap();
    assert_eq!(loaded.stats().problems, 0, "nothing fits in no bytes");
    let error = RolloutHistory::load(&path, |options| options.window = 0).unwrap_err();
    assert!(error.to_string().contains("window is 0"));
}

/// What a save that was killed has left goes with the next one; what somebody is at, or is none of its, stays.
#[test]
fn what_a_killed_save_has_left_is_removed() {
    let directory = Directory::new("left");
    let left = ["history.71-7f00.tmp", "history.4000000-aa.tmp"];
    let others = [
        "history",
        "history.71.tmp",
        "history.71-xyz.tmp",
        "history.json",
        "other.71-7f00.tmp",
    ];
    for name in left.iter().chain(&others) {
        fs::write(directory.join(name), b"DASHIST").unwrap();
    }
    // Somebody else writes, and somebody is about to.
    let (locked, empty) = ("history.72-1.tmp", "history.73-1.tmp");
    fs::write(directory.join(locked), b"DASHIST").unwrap();
    let writer = fs::File::options().write(true).open(directory.join(locked));
    let writer = writer.unwrap();
    writer.try_lock().unwrap();
    fs::write(directory.join(empty), b"").unwrap();

    let names = || {
        let entries = fs::read_dir(&directory.0).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<BTreeSet<String>>()
    };
    let expected = |some: &[&str]| {
        let all = others.iter().chain(some).map(|name| name.to_string());
        all.collect::<BTreeSet<String>>()
    };
    small().save(&directory.join("history")).unwrap();
    assert_eq!(names(), expected(&[locked, empty]));
    drop(writer);
    small().save(&directory.join("history")).unwrap();
    assert_eq!(names(), expected(&[empty]));
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    let file = fs::File::options().write(true).open(directory.join(empty));
    file.unwrap().set_modified(long_ago).unwrap();
    small().save(&directory.join("history")).unwrap();
    assert_eq!(names(), expected(&[]));
}

/// Two histories that are saved to one file at the same time do not take each other's for what was left.
#[test]
fn saves_at_the_same_time_leave_each_other_alone() {
    let directory = Directory::new("both");
    let path = directory.join("history");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let history = small();
                (0..40).for_each(|_| history.save(&path).unwrap());
            });
        }
    });
    assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 1);
}

/// A file of version 4, whose texts grew side by side and one of which ran.
#[test]
fn an_older_file_is_read() {
    let directory = Directory::new("older");
    let path = directory.join("history");
    fs::write(&path, include_bytes!("files/history-4")).unwrap();
    let history = RolloutHistory::load(&path, |_| ()).unwrap();
    let tree = history.tree(7).unwrap();
    assert_eq!((tree.len(), history.stats().rollouts), (8, 2));
    assert_eq!(tree.weight(&[1, 2]).unwrap(), 4.0);
    // One text as if it had come after the other.
    let last = tree.latest_follower(&[1, 2]).unwrap().unwrap();
    assert_eq!(last.token, 5);
    let first = tree.latest_follower(&[1]).unwrap().unwrap();
    assert_eq!(first.token, 2);
    let beside = tree.latest_follower(&[1, 2, 1]).unwrap().unwrap();
    assert_eq!(beside.token, 2);
    // What was learned is used: a draft that was not kept.
    let rollout = history.rollout(7, &[20, 21]).unwrap();
    let draft = rollout.draft(&DraftOptions::default()).unwrap();
    assert!(draft.tokens.contains(&22), "{draft:?}");
}

const CHILD: &str = "DAS_SNAPSHOT_CHILD";

/// A process that saves two histories in turn, over and over, killed at some moment: one of them is in the file, whole.
#[test]
fn a_kill_leaves_a_whole_file() {
    let rollout = |seed: u32| {
        (
            0u64,
            (0..60_000)
                .map(|i: u32| i.wrapping_mul(seed) >> 20)
                .collect(),
            4u8,
        )
    };
    let histories =
        [3, 5].map(|seed| history(HistoryOptions::default(), &[vec![rollout(seed * 40_503)]]));
    if let Some(path) = std::env::var_os(CHILD) {
        loop {
            histories
                .iter()
                .for_each(|history| history.save(Path::new(&path)).unwrap());
        }
    }
    let directory = Directory::new("kill");
    let path = directory.join("history");
    histories[0].save(&path).unwrap();
    let expected = histories.each_ref().map(drafts);
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_kill_leaves_a_whole_file"])
            .env(CHILD, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Wait until it saves, then a little more, differently each time.
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        let start = Instant::now();
        while fs::metadata(&path).unwrap().modified().unwrap() == before
            && start.elapsed() < Duration::from_secs(20)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(1300 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let loaded = drafts(&RolloutHistory::load(&path, |_| ()).unwrap());
        assert!(expected.contains(&loaded), "round {round}");
    }
    // What the killed ones left goes with the next save, also a file that was made a moment before the kill: it is empty, as
    // are those that others are about to lock, and so goes once it is old.
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    for left in fs::read_dir(&directory.0).unwrap() {
        let file = fs::File::options().write(true).open(left.unwrap().path());
        file.unwrap().set_modified(long_ago).unwrap();
    }
    histories[0].save(&path).unwrap();
    assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 1);
}
