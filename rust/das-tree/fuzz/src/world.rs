//! A rollout history and what it should hold, driven side by side.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use das_tree::{
    Coupling, Draft, DraftOptions, HistoryOptions, RolloutHistory, Sequence, Shape, StepDrafts,
    StepRequest, step,
};

use crate::{
    model::Given,
    oracle::{START, assert_same},
    problem::{Problem, Tree},
    scratch::File,
    script::{Kind, Tally},
    twin,
};

const PROBLEMS: usize = 2;

/// How a script's history is made.
pub struct Settings {
    pub alphabet: usize,
    pub most_running: usize,
    /// Whether distributions come with tokens.
    pub knows: bool,
    pub options: HistoryOptions,
}

/// A request's part of a step: which rollout, what it appends, and what is wanted.
pub struct Part {
    pub which: usize,
    pub tokens: Vec<u32>,
    pub wanted: Wanted,
}

/// What is wanted of a draft.
pub struct Wanted {
    pub nodes: usize,
    pub floor: f32,
    pub shape: Shape,
    pub coupling: Coupling,
}

struct Running {
    problem: usize,
    serial: u64,
    /// The tree it runs in, and which of its texts it is.
    tree: Tree,
    text: usize,
    rollout: Sequence,
    /// The same rollout of the twin.
    twin: Option<Sequence>,
}

pub struct World {
    pub settings: Settings,
    /// Whether to print the calls: to understand a script that fails.
    talks: bool,
    history: RolloutHistory,
    /// Where there is learning, a second history that is given the same calls.
    twin: Option<RolloutHistory>,
    generation: u64,
    serial: u64,
    /// Tokens appended so far: they number the distributions.
    appended: u32,
    problems: [Problem; PROBLEMS],
    running: Vec<Running>,
}

impl World {
    pub fn new(settings: Settings) -> Self {
        let (options, knows) = (settings.options, settings.knows);
        Self {
            talks: std::env::var_os("DAS_FUZZ_TRACE").is_some(),
            settings,
            history: RolloutHistory::new(options).unwrap(),
            twin: options.soft.then(|| RolloutHistory::new(options).unwrap()),
            generation: 0,
            serial: 0,
            appended: 0,
            problems: std::array::from_fn(|_| Problem::new(options, knows)),
            running: Vec::new(),
        }
    }

    /// Whether drafts come from what is learned too.
    pub fn learns(&self) -> bool {
        self.twin.is_some()
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.talks {
            eprintln!("{}", what());
        }
    }

    /// Opens a rollout, if there is room for one more.
    pub fn open(&mut self, problem: usize, prompt: &[u32], weight: f64, tally: &mut Tally) {
        if self.running.len() >= self.settings.most_running {
            return;
        }
        tally.note(Kind::Open);
        let key = problem % PROBLEMS;
        let rollout = self
            .history
            .rollout_with_weight(key as u64, prompt, weight)
            .unwrap();
        let twin = self.twin.as_ref().map(|twin| {
            let rollout = twin.rollout_with_weight(key as u64, prompt, weight);
            rollout.unwrap()
        });
        self.serial += 1;
        self.say(|| {
            format!(
                "problem {key}: open {}, prompt {prompt:?}, weight {weight}",
                self.serial
            )
        });
        let (tree, text) = self.problems[key].open(self.generation, self.serial, prompt, weight);
        self.running.push(Running {
            problem: key,
            serial: self.serial,
            tree,
            text,
            rollout,
            twin,
        });
    }

    /// Index in `running`, opening a rollout if there is none.
    fn pick(&mut self, which: usize, tally: &mut Tally) -> usize {
        if self.running.is_empty() {
            self.open(which, &[], 1.0, tally);
        }
        which % self.running.len()
    }

    pub fn append(&mut self, which: usize, tokens: &[u32], tally: &mut Tally) {
        let which = self.pick(which, tally);
        self.append_at(which, tokens, tally);
    }

    fn append_at(&mut self, which: usize, tokens: &[u32], tally: &mut Tally) {
        tally.note(Kind::Append);
        let given = self.given(tokens);
        let running = &self.running[which];
        self.say(|| format!("{}: append {tokens:?}", running.serial));
        for rollout in running.both() {
            rollout.append_known(tokens, given.rows()).unwrap();
        }
        let mut model = running.tree.borrow_mut();
        model.append(running.text, tokens, &given);
        drop(model);
        self.check_match(which);
        self.check_what_followed(which);
    }

    /// What has followed the contexts just before the end of a text most recently, as far as its present tree knows.
    fn check_what_followed(&self, which: usize) {
        let running = &self.running[which];
        let present = &self.problems[running.problem].tree;
        if !self.settings.knows || !Rc::ptr_eq(present, &running.tree) {
            return;
        }
        let tree = self.history.tree(running.problem as u64).unwrap();
        let model = running.tree.borrow();
        let output = &model.texts[running.text].symbols[1..];
        for length in [1, 2, 3, 5] {
            let end = output.len().saturating_sub(1);
            if length <= end.min(model.max_depth) {
                let context = &output[end - length..end];
                let found = tree.latest_follower(context).unwrap();
                model.check_latest(context, None, found);
            }
        }
    }

    /// Distributions for tokens that are about to be appended.
    fn given(&mut self, tokens: &[u32]) -> Given {
        self.appended += tokens.len() as u32;
        let tokens = if self.settings.knows { tokens } else { &[] };
        Given::new(tokens, self.appended)
    }

    /// Appends to and drafts from several rollouts in one call, perhaps more than once from the same.
    pub fn step(&mut self, parts: &[Part], width: usize, tally: &mut Tally) {
        let which: Vec<usize> = parts
            .iter()
            .map(|part| self.pick(part.which, tally))
            .collect();
        let given: Vec<Given> = parts.iter().map(|part| self.given(&part.tokens)).collect();
        let mut append = |row: usize| {
            tally.note(Kind::Step);
            let (part, running) = (&parts[row], &self.running[which[row]]);
            self.say(|| format!("{}: step, append {:?}", running.serial, part.tokens));
            let mut model = running.tree.borrow_mut();
            model.append(running.text, &part.tokens, &given[row]);
        };
        // What has been learned is not modelled.
        let draft = |row: usize| {
            let (wanted, running) = (&parts[row].wanted, &self.running[which[row]]);
            let nodes = wanted.nodes.min(width);
            let model = running.tree.borrow();
            let draft = || model.draft(running.text, nodes, wanted.floor, wanted.is_chain());
            (!self.learns()).then(draft)
        };
        let rows = 0..parts.len();
        let again = which.iter().collect::<BTreeSet<_>>().len() < which.len();
        let mut expected = Vec::new();
        for row in rows.clone() {
            append(row);
            if again {
                expected.push(draft(row));
            }
        }
        if !again {
            expected.extend(rows.clone().map(draft));
        }
        let request = |row: usize| StepRequest {
            sequence: &self.running[which[row]].rollout,
            accepted: &parts[row].tokens,
            known: given[row].rows(),
            options: parts[row].wanted.options(),
        };
        let requests: Vec<StepRequest> = rows.map(request).collect();
        let drafts = step(&requests, width).unwrap();
        for (row, expected) in expected.iter().enumerate() {
            if let Some(expected) = expected {
                assert_same(&draft_of(&drafts, row, width), expected);
            }
        }
        if self.learns() {
            let twins = requests
                .iter()
                .zip(&which)
                .map(|(request, &which)| StepRequest {
                    sequence: self.running[which].twin.as_ref().unwrap(),
                    ..*request
                });
            let twins: Vec<StepRequest> = twins.collect();
            assert_eq!(drafts, step(&twins, width).unwrap(), "twins");
            for (row, request) in requests.iter().enumerate() {
                tally.note(Kind::Informed);
                twin::check_form(&draft_of(&drafts, row, width), &request.options);
            }
        }
        which.iter().for_each(|&which| self.check_match(which));
    }

    /// What followed the last tokens of a rollout most recently, in its own text and in others.
    pub fn latest(&mut self, which: usize, length: usize, tally: &mut Tally) {
        let which = self.pick(which, tally);
        tally.note(Kind::Latest);
        let running = &self.running[which];
        self.say(|| format!("{}: latest {length}", running.serial));
        let latest = running.rollout.latest(length).unwrap();
        let model = running.tree.borrow();
        model.check_latest_own(running.text, length, latest.own);
        let output = &model.texts[running.text].symbols[1..];
        if length > output.len().min(model.max_depth) {
            assert_eq!(latest.history, None, "there is no such context");
        } else {
            let context = &output[output.len() - length..];
            model.check_latest(context, Some(running.text), latest.history);
        }
    }

    /// What followed a string most recently that begins at some place of some text.
    pub fn latest_follower(
        &mut self,
        problem: usize,
        text: usize,
        start: usize,
        length: usize,
        tally: &mut Tally,
    ) {
        let key = problem % PROBLEMS;
        let Some(tree) = self.history.tree(key as u64) else {
            return;
        };
        let model = self.problems[key].tree.borrow();
        let Some(text) = model.texts.get(text % model.texts.len().max(1)) else {
            return;
        };
        tally.note(Kind::Latest);
        let tokens = text.symbols.iter().cycle().skip(start % text.symbols.len());
        let string: Vec<u32> = tokens.map(|&token| token % START).take(length).collect();
        self.say(|| format!("problem {key}: latest follower of {string:?}"));
        let found = tree.latest_follower(&string).unwrap();
        model.check_latest(&string, None, found);
    }

    pub fn append_to_all(&mut self, token: u32, tally: &mut Tally) {
        self.pick(0, tally);
        for which in 0..self.running.len() {
            self.append_at(which, &[token], tally);
        }
        (0..self.running.len()).for_each(|which| self.check_match(which));
    }

    /// Appends to one rollout the last tokens of another.
    pub fn copy(&mut self, from: usize, to: usize, length: usize, tally: &mut Tally) {
        let (from, to) = (self.pick(from, tally), self.pick(to, tally));
        let tail = {
            let source = &self.running[from];
            let symbols = &source.tree.borrow().texts[source.text].symbols[1..];
            symbols[symbols.len().saturating_sub(length)..].to_vec()
        };
        self.append_at(to, &tail, tally);
    }

    /// Tells a rollout what was known after drafts that were not kept: of each three tokens the first two are the context.
    pub fn reject(&mut self, which: usize, tokens: &[u32], tally: &mut Tally) {
        let which = self.pick(which, tally);
        tally.note(Kind::Reject);
        let contexts: Vec<[u32; 2]> = tokens.chunks(3).map(|three| [three[0], three[1]]).collect();
        let likeliest: Vec<u32> = tokens.chunks(3).map(|three| three[2]).collect();
        let given = Given::full(&likeliest, self.appended);
        let running = &self.running[which];
        self.say(|| format!("{}: reject {contexts:?}", running.serial));
        for rollout in running.both() {
            rollout.reject(&contexts, given.rows()).unwrap();
        }
    }

    fn check_match(&self, which: usize) {
        let running = &self.running[which];
        let expected = running.tree.borrow().active(running.text);
        let found = running.rollout.match_length().unwrap();
        assert_eq!(found, expected, "match length");
    }

    /// Ends a rollout, perhaps with another weight.
    pub fn close(&mut self, which: usize, weight: Option<f64>, tally: &mut Tally) {
        let which = self.pick(which, tally);
        tally.note(Kind::Close);
        let running = self.running.swap_remove(which);
        self.say(|| format!("{}: close, weight {weight:?}", running.serial));
        for rollout in running.both() {
            match weight {
                Some(weight) => rollout.close_with_weight(weight).unwrap(),
                None => rollout.close(),
            }
        }
        running.tree.borrow_mut().close(running.text);
        self.problems[running.problem].close(running.serial, weight);
    }

    /// Counts a string that begins at some place of some text: in most cases it occurs there.
    pub fn count(
        &mut self,
        problem: usize,
        text: usize,
        start: usize,
        length: usize,
        tally: &mut Tally,
    ) {
        let key = problem % PROBLEMS;
        let Some(tree) = self.history.tree(key as u64) else {
            return;
        };
        tally.note(Kind::Count);
        let model = self.problems[key].tree.borrow();
        let Some(text) = model.texts.get(text % model.texts.len().max(1)) else {
            assert_eq!(tree.count(&[0]).unwrap(), 0, "an empty tree counts nothing");
            return;
        };
        let tokens = text.symbols.iter().cycle().skip(start % text.symbols.len());
        let string: Vec<u32> = tokens.map(|&token| token % START).take(length).collect();
        let weight = model.count(&string);
        let expected = match weight {
            0 => 0,
            _ => ((weight + model.unit / 2) / model.unit).max(1),
        };
        self.say(|| format!("problem {key}: count {string:?}"));
        let found = tree.count(&string).unwrap();
        assert_eq!(u64::from(found), expected, "count of {string:?}");
        let found = tree.weight(&string).unwrap();
        assert_eq!(
            found,
            weight as f64 / model.unit as f64,
            "weight of {string:?}"
        );
    }

    pub fn draft(&mut self, which: usize, wanted: &Wanted, tally: &mut Tally) {
        let which = self.pick(which, tally);
        tally.note(Kind::Draft);
        let running = &self.running[which];
        self.say(|| format!("{}: draft", running.serial));
        let options = wanted.options();
        let draft = running.rollout.draft(&options).unwrap();
        if let Some(twin) = &running.twin {
            tally.note(Kind::Informed);
            twin::check_form(&draft, &options);
            assert_eq!(draft, twin.draft(&options).unwrap(), "twins");
            return;
        }
        let model = running.tree.borrow();
        assert_same(
            &draft,
            &model.draft(running.text, wanted.nodes, wanted.floor, wanted.is_chain()),
        );
    }

    pub fn draft_text(&mut self, problem: usize, text: &[u32], wanted: &Wanted, tally: &mut Tally) {
        let key = problem % PROBLEMS;
        let Some(tree) = self.history.tree(key as u64) else {
            return;
        };
        tally.note(Kind::Draft);
        self.say(|| format!("problem {key}: draft after {text:?}"));
        let options = wanted.options();
        let draft = tree.draft(text, &options).unwrap();
        if let Some(twin) = &self.twin {
            tally.note(Kind::Informed);
            twin::check_form(&draft, &options);
            let twin = twin.tree(key as u64).unwrap();
            assert_eq!(draft, twin.draft(text, &options).unwrap(), "twins");
            return;
        }
        let model = self.problems[key].tree.borrow();
        assert_same(
            &draft,
            &model.stateless(text, wanted.nodes, wanted.floor, wanted.is_chain()),
        );
    }

    /// The next generation: what will be outside the window leaves.
    pub fn advance(&mut self, tally: &mut Tally) {
        tally.note(Kind::Advance);
        self.generation += 1;
        self.say(|| format!("advance to {}", self.generation));
        for history in [&self.history].into_iter().chain(&self.twin) {
            assert_eq!(history.advance(), self.generation);
        }
        self.problems.iter_mut().for_each(Problem::turn);
        self.check_stats();
    }

    /// Saves the history and goes on with what is loaded. Rollouts that run end there.
    pub fn reload(&mut self, tally: &mut Tally) {
        tally.note(Kind::Reload);
        self.say(|| "save and load".into());
        let file = File::new("fuzz");
        self.history.save(&file.0).unwrap();
        if let Some(history) = &mut self.twin {
            twin::check_learned(history, &file.0, self.settings.alphabet as u32);
            *history = RolloutHistory::load(&file.0, |_| {}).unwrap();
        }
        self.history = RolloutHistory::load(&file.0, |_| {}).unwrap();
        self.running.clear();
        self.problems.iter_mut().for_each(Problem::reload);
        self.check_stats();
    }

    fn check_stats(&self) {
        let stats = self.history.stats();
        let rollouts: usize = self.problems.iter().map(Problem::rollouts).sum();
        assert_eq!(stats.rollouts, rollouts, "rollouts");
        assert_eq!(stats.running, self.running.len(), "running rollouts");
    }

    /// Compares what is left to compare.
    pub fn finish(&mut self, tally: &mut Tally) {
        (0..self.running.len()).for_each(|which| self.check_match(which));
        for (key, problem) in self.problems.iter().enumerate() {
            let Some(tree) = self.history.tree(key as u64) else {
                assert_eq!(problem.rollouts(), 0, "a problem is missing");
                continue;
            };
            tally.note(Kind::Integrity);
            tree.check_integrity().unwrap();
            assert_eq!(tree.len(), problem.tokens(), "tokens");
        }
        self.check_stats();
    }
}

impl Running {
    /// The rollout and its twin.
    fn both(&self) -> impl Iterator<Item = &Sequence> {
        [&self.rollout].into_iter().chain(&self.twin)
    }
}

impl Wanted {
    fn options(&self) -> DraftOptions {
        DraftOptions {
            max_nodes: self.nodes,
            min_probability: self.floor,
            shape: self.shape,
            coupling: self.coupling,
        }
    }

    fn is_chain(&self) -> bool {
        self.shape == Shape::Chain
    }
}

/// A row of a batch as a draft. The cells it does not use must be empty.
fn draft_of(drafts: &StepDrafts, row: usize, width: usize) -> Draft {
    let size = drafts.sizes[row] as usize;
    let mut unused = row * width + size..(row + 1) * width;
    let is_empty = |cell: usize| {
        (
            drafts.tokens[cell],
            drafts.parents[cell],
            drafts.probabilities[cell],
        ) == (0, -1, 0.0)
    };
    assert!(unused.all(is_empty), "unused cells of row {row}");
    drafts.draft(row)
}

/// Shared by the rollouts that run in a tree and the problem it belongs to.
pub fn shared<T>(value: T) -> Rc<RefCell<T>> {
    Rc::new(RefCell::new(value))
}
