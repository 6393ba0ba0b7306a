//! A rollout history and its oracle, driven side by side.

use das_tree::{DraftOptions, HistoryOptions, RolloutHistory, Sequence, Shape};

use crate::{
    oracle::{Oracle, START, assert_same},
    script::{Kind, Tally},
};

const PROBLEMS: usize = 2;

/// What the history should hold of one problem.
struct Problem {
    oracle: Oracle,
    /// The visit each text belongs to.
    visits: Vec<u64>,
    visit: u64,
    generation: u64,
}

struct Running {
    problem: usize,
    text: usize,
    rollout: Sequence,
}

pub struct World {
    pub alphabet: usize,
    pub max_depth: usize,
    most_running: usize,
    window: u64,
    history: RolloutHistory,
    generation: u64,
    problems: [Problem; PROBLEMS],
    running: Vec<Running>,
}

impl World {
    pub fn new(alphabet: usize, max_depth: usize, most_running: usize, window: usize) -> Self {
        let options = HistoryOptions {
            window,
            max_depth,
            ..HistoryOptions::default()
        };
        let problem = |_| Problem {
            oracle: Oracle::new(max_depth),
            visits: Vec::new(),
            visit: 0,
            generation: 0,
        };
        Self {
            alphabet,
            max_depth,
            most_running,
            window: window as u64,
            history: RolloutHistory::new(options).unwrap(),
            generation: 0,
            problems: std::array::from_fn(problem),
            running: Vec::new(),
        }
    }

    /// Opens a rollout, if there is room for one more.
    pub fn open(&mut self, problem: usize, prompt: &[u32], tally: &mut Tally) {
        if self.running.len() >= self.most_running {
            return;
        }
        tally.note(Kind::Open);
        let key = problem % PROBLEMS;
        let rollout = self.history.rollout(key as u64, prompt).unwrap();
        let idle = self.running.iter().all(|running| running.problem != key);
        let problem = &mut self.problems[key];
        problem.visit(self.generation);
        if idle {
            problem.expire(self.window);
        }
        problem.oracle.open(prompt, 1);
        problem.visits.push(problem.visit);
        self.running.push(Running {
            problem: key,
            text: problem.oracle.texts.len() - 1,
            rollout,
        });
    }

    /// Index in `running`, opening a rollout if there is none.
    fn pick(&mut self, which: usize, tally: &mut Tally) -> usize {
        if self.running.is_empty() {
            self.open(which, &[], tally);
        }
        which % self.running.len()
    }

    pub fn append(&mut self, which: usize, tokens: &[u32], tally: &mut Tally) {
        let which = self.pick(which, tally);
        self.append_at(which, tokens, tally);
    }

    fn append_at(&mut self, which: usize, tokens: &[u32], tally: &mut Tally) {
        tally.note(Kind::Append);
        let running = &self.running[which];
        let oracle = &mut self.problems[running.problem].oracle;
        running.rollout.append(tokens).unwrap();
        oracle.append(running.text, tokens);
        self.check_match(which);
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
        let source = &self.running[from];
        let symbols = &self.problems[source.problem].oracle.texts[source.text].symbols[1..];
        let tail = symbols[symbols.len().saturating_sub(length)..].to_vec();
        self.append_at(to, &tail, tally);
    }

    fn check_match(&self, which: usize) {
        let running = &self.running[which];
        let expected = self.problems[running.problem].oracle.active(running.text);
        assert_eq!(
            running.rollout.match_length().unwrap(),
            expected,
            "match length"
        );
    }

    pub fn close(&mut self, which: usize, tally: &mut Tally) {
        let which = self.pick(which, tally);
        tally.note(Kind::Close);
        let running = self.running.swap_remove(which);
        running.rollout.close();
        self.problems[running.problem].oracle.close(running.text);
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
        let oracle = &self.problems[key].oracle;
        let symbols = &oracle.texts[text % oracle.texts.len()].symbols;
        let tokens = symbols.iter().cycle().skip(start % symbols.len());
        let string: Vec<u32> = tokens.map(|&token| token % START).take(length).collect();
        assert_eq!(
            tree.count(&string).unwrap(),
            oracle.count(&string),
            "count of {string:?}"
        );
    }

    pub fn draft(
        &mut self,
        which: usize,
        max_nodes: usize,
        floor: f32,
        shape: Shape,
        tally: &mut Tally,
    ) {
        let which = self.pick(which, tally);
        tally.note(Kind::Draft);
        let running = &self.running[which];
        let oracle = &self.problems[running.problem].oracle;
        let draft = running
            .rollout
            .draft(&options(max_nodes, floor, shape))
            .unwrap();
        let expected = oracle.draft(running.text, max_nodes, floor, shape == Shape::Chain);
        assert_same(&draft, &expected);
    }

    pub fn draft_text(
        &mut self,
        problem: usize,
        text: &[u32],
        max_nodes: usize,
        floor: f32,
        shape: Shape,
        tally: &mut Tally,
    ) {
        let key = problem % PROBLEMS;
        let Some(tree) = self.history.tree(key as u64) else {
            return;
        };
        tally.note(Kind::Draft);
        let oracle = &self.problems[key].oracle;
        let draft = tree.draft(text, &options(max_nodes, floor, shape)).unwrap();
        assert_same(
            &draft,
            &oracle.stateless(text, max_nodes, floor, shape == Shape::Chain),
        );
    }

    pub fn advance(&mut self, tally: &mut Tally) {
        tally.note(Kind::Advance);
        self.generation += 1;
        assert_eq!(self.history.advance(), self.generation);
    }

    /// Compares what is left to compare.
    pub fn finish(&mut self, tally: &mut Tally) {
        (0..self.running.len()).for_each(|which| self.check_match(which));
        for (key, problem) in self.problems.iter().enumerate() {
            let Some(tree) = self.history.tree(key as u64) else {
                continue;
            };
            tally.note(Kind::Integrity);
            tree.check_integrity().unwrap();
            assert_eq!(tree.len(), problem.tokens(), "tokens");
        }
        let texts = self.problems.iter().map(|problem| problem.visits.len());
        assert_eq!(self.history.stats().rollouts, texts.sum(), "rollouts");
    }
}

impl Problem {
    /// The first rollout after a change of generation begins a new visit.
    fn visit(&mut self, generation: u64) {
        if self.visit == 0 || self.generation != generation {
            self.visit += 1;
            self.generation = generation;
        }
    }

    /// Drops the texts whose visit has left the window.
    fn expire(&mut self, window: u64) {
        let kept: Vec<usize> = (0..self.visits.len())
            .filter(|&text| self.visits[text] + window > self.visit)
            .collect();
        if kept.len() == self.visits.len() {
            return;
        }
        let mut oracle = Oracle::new(self.oracle.max_depth);
        for (id, &text) in kept.iter().enumerate() {
            let symbols = &self.oracle.texts[text].symbols;
            oracle.open(&[], 1);
            oracle.append(id, &symbols[1..symbols.len() - 1]);
            oracle.close(id);
        }
        self.visits = kept.into_iter().map(|text| self.visits[text]).collect();
        self.oracle = oracle;
    }

    /// Tokens of all texts, markers not counted.
    fn tokens(&self) -> usize {
        let texts = &self.oracle.texts;
        texts
            .iter()
            .map(|text| text.symbols.len() - 1 - usize::from(text.closed))
            .sum()
    }
}

fn options(max_nodes: usize, min_probability: f32, shape: Shape) -> DraftOptions {
    DraftOptions {
        max_nodes,
        min_probability,
        shape,
    }
}
