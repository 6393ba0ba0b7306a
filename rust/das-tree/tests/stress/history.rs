//! A history: rollouts begin, grow, draft and end while others read, the policy version moves, trees are made anew and files
//! are written. Nothing is ever counted that was not said, and when all is done every rollout weighs what it should.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use das_tree::{DraftOptions, HistoryOptions, RolloutHistory, Sequence, Shape};

use crate::texts::{Random, check_draft, join, occurrences, texts};

const PROBLEMS: usize = 2;
const WRITERS: usize = 2;
/// Rollouts of each writer, and how many of them run at once.
const ROLLOUTS: usize = 12;
const AT_ONCE: usize = 3;
const LENGTH: usize = 300;

/// What is to be said of a problem: texts, and the weight of each in quarters when it has ended.
struct Plan {
    texts: Vec<Vec<u32>>,
    quarters: Vec<u32>,
}

impl Plan {
    fn new(seed: u64) -> Self {
        let mut random = Random(77 + seed);
        let count = WRITERS * ROLLOUTS;
        Self {
            texts: texts(count, LENGTH, seed),
            quarters: (0..count).map(|_| [4, 4, 2, 6][random.below(4)]).collect(),
        }
    }

    /// The weight of a string when every rollout has ended, all of them inside the window.
    fn weight(&self, string: &[u32]) -> f64 {
        let texts = self.texts.iter().zip(&self.quarters);
        let weigh = |(text, quarters): (&Vec<u32>, &u32)| {
            occurrences(std::slice::from_ref(text), string) * quarters
        };
        f64::from(texts.map(weigh).sum::<u32>()) / 4.0
    }

    /// A string that is said, and somewhat more.
    fn string(&self, random: &mut Random) -> &[u32] {
        let text = &self.texts[random.below(self.texts.len())];
        let start = random.below(LENGTH - 8);
        &text[start..start + 1 + random.below(8)]
    }
}

struct Stage {
    history: RolloutHistory,
    plans: Vec<Plan>,
    writing: AtomicUsize,
}

impl Stage {
    fn is_over(&self) -> bool {
        self.writing.load(Ordering::Acquire) == 0
    }

    /// Writes the rollouts of one writer, a few at a time.
    fn write(&self, writer: usize, seed: u64) {
        let mut random = Random(seed);
        let mut waiting: Vec<(usize, usize)> = (0..PROBLEMS)
            .flat_map(|problem| (0..ROLLOUTS).map(move |i| (problem, writer * ROLLOUTS + i)))
            .collect();
        let mut running: Vec<((usize, usize), usize, Sequence)> = Vec::new();
        while !waiting.is_empty() || !running.is_empty() {
            if running.len() < AT_ONCE && !waiting.is_empty() {
                let next = waiting.swap_remove(random.below(waiting.len()));
                let sequence = self.history.rollout(next.0 as u64, &[1, 2]).unwrap();
                running.push((next, 0, sequence));
            }
            let at = random.below(running.len());
            let ((problem, number), done, sequence) = &mut running[at];
            let plan = &self.plans[*problem];
            let more = (1 + random.below(24)).min(LENGTH - *done);
            sequence
                .append(&plan.texts[*number][*done..*done + more])
                .unwrap();
            *done += more;
            check_draft(
                &sequence.draft(&DraftOptions::default()).unwrap(),
                Shape::Tree,
            );
            if *done == LENGTH {
                let quarters = plan.quarters[*number];
                match quarters {
                    4 => sequence.close(),
                    _ => sequence
                        .close_with_weight(f64::from(quarters) / 4.0)
                        .unwrap(),
                }
                running.swap_remove(at);
            }
        }
        self.writing.fetch_sub(1, Ordering::Release);
    }

    /// No string weighs more than it can come to: no rollout is there twice, none has more than it said.
    fn check_bounds(&self, history: &RolloutHistory, random: &mut Random) {
        for (key, plan) in (0..).zip(&self.plans) {
            let Some(tree) = history.tree(key) else {
                continue;
            };
            let string = plan.string(random);
            let (found, most) = (
                tree.count(string).unwrap(),
                occurrences(&plan.texts, string),
            );
            // A weight is at most half as large again as it was during the run.
            assert!(
                found <= most + most / 2 + 1,
                "{string:?}: {found} of {most}"
            );
            check_draft(
                &tree.draft(string, &DraftOptions::default()).unwrap(),
                Shape::Tree,
            );
        }
    }

    fn read(&self, seed: u64) {
        let mut random = Random(seed);
        while !self.is_over() {
            self.check_bounds(&self.history, &mut random);
        }
    }

    /// Moves the policy version on.
    fn turn(&self, seed: u64) {
        let mut random = Random(seed);
        while !self.is_over() {
            let before = self.history.generation();
            assert_eq!(self.history.advance(), before + 1);
            if random.below(2) == 0 {
                self.history.maintain();
            }
            std::thread::sleep(Duration::from_micros(random.below(900) as u64));
        }
    }

    /// Saves and loads what was saved.
    fn save(&self, file: &Path, seed: u64) {
        let mut random = Random(seed);
        while !self.is_over() {
            self.history.save(file).unwrap();
            let loaded = RolloutHistory::load(file, |_| ()).unwrap();
            let stats = loaded.stats();
            assert!(stats.running == 0 && stats.rollouts <= PROBLEMS * WRITERS * ROLLOUTS);
            for key in 0..PROBLEMS as u64 {
                if let Some(tree) = loaded.tree(key) {
                    tree.check_integrity().unwrap();
                }
            }
            self.check_bounds(&loaded, &mut random);
        }
    }

    /// With everybody gone every string weighs what it should.
    fn check_weights(&self, history: &RolloutHistory) {
        history.advance();
        for (key, plan) in (0..).zip(&self.plans) {
            let tree = history.tree(key).unwrap();
            tree.check_integrity().unwrap();
            assert_eq!(tree.len(), plan.texts.len() * LENGTH);
            let mut random = Random(5);
            for _ in 0..400 {
                let string = plan.string(&mut random);
                assert_eq!(tree.weight(string).unwrap(), plan.weight(string));
            }
        }
    }

    /// A visit for each place in the window, of one rollout of each problem: then there is nothing else.
    fn check_expiry(&self, window: usize) {
        for _ in 0..window {
            self.history.advance();
            for problem in 0..PROBLEMS as u64 {
                let rollout = self.history.rollout(problem, &[]).unwrap();
                rollout.append(&[1000, 1001]).unwrap();
            }
        }
        self.history.maintain();
        let stats = self.history.stats();
        assert_eq!(stats.rollouts, PROBLEMS * window);
        assert_eq!(stats.tokens, PROBLEMS * window * 2);
        assert_eq!(
            stats.expired_rollouts as usize,
            PROBLEMS * WRITERS * ROLLOUTS
        );
        // What has been learnt over all problems stays.
        let most = if self.history.options().shared {
            16 << 20
        } else {
            200_000
        };
        assert!(stats.bytes < most, "{} bytes are left", stats.bytes);
    }
}

/// A file of one round, which goes with it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn run(window: usize, round: u64) {
    let options = HistoryOptions {
        window,
        max_depth: [8, 64][round as usize % 2],
        shared: round.is_multiple_of(2),
        ..HistoryOptions::default()
    };
    let name = format!("das-stress-{}-{window}-{round}", std::process::id());
    let file = Scratch(std::env::temp_dir().join(name));
    let stage = Stage {
        history: RolloutHistory::new(options).unwrap(),
        plans: (0..PROBLEMS as u64)
            .map(|problem| Plan::new(1 + 10 * round + problem))
            .collect(),
        writing: AtomicUsize::new(WRITERS),
    };
    std::thread::scope(|scope| {
        let (stage, file) = (&stage, &file.0);
        let mut threads = vec![
            scope.spawn(move || stage.read(21 + round)),
            scope.spawn(move || stage.turn(31 + round)),
            scope.spawn(move || stage.save(file, 41 + round)),
        ];
        for writer in 0..WRITERS {
            let seed = 51 + 2 * round + writer as u64;
            threads.push(scope.spawn(move || stage.write(writer, seed)));
        }
        join(threads);
    });
    if window < 1000 {
        stage.check_expiry(window);
        return;
    }
    stage.check_weights(&stage.history);
    stage.history.save(&file.0).unwrap();
    stage.check_weights(&RolloutHistory::load(&file.0, |_| ()).unwrap());
}

#[test]
fn all_rollouts_stay_and_weigh_what_they_should() {
    (0..4).for_each(|round| run(1 << 20, round));
}

#[test]
fn all_rollouts_leave_the_window() {
    (0..4).for_each(|round| run(2, round));
}
