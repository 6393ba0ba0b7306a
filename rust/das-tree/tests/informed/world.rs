//! A history and its naive twin, driven side by side.

use std::collections::{BTreeMap, BTreeSet};

use das_tree::{
    Coupling, Draft, DraftOptions, HistoryOptions, KnownRows, RolloutHistory, Sequence,
    StepRequest, step,
};

use crate::{
    learned::{Kind, Learned, Mixture, Of, Row, apart, instead},
    numbers::{CERTAIN, RECENT_ENTRIES, RECENT_MEMORY},
    oracle::Request,
    problems::{Problem, Tree},
    rule::{Asker, Expectation, Ideas, path_to},
    scratch::File,
};

/// Cells of a row as it is given; those that a distribution does not need are unused.
pub const WIDTH: usize = 8;

/// A token and the distribution it was drawn from, as it is given: in any order.
pub type Drawn = (u32, Given);
pub type Given = Vec<(u32, u8)>;
/// The last two tokens before a draft that was not kept, and the distribution after them.
pub type Rejected = ([u32; 2], Given);

/// Tokens to append, and whether distributions come with them.
#[derive(Clone, Debug)]
pub struct Piece {
    pub drawn: Vec<Drawn>,
    pub known: bool,
}

impl Piece {
    fn tokens(&self) -> Vec<u32> {
        self.drawn.iter().map(|drawn| drawn.0).collect()
    }

    /// What is to be kept beside the tokens.
    fn kept(&self) -> Vec<(u32, Row)> {
        let kept = |(token, given): &Drawn| {
            let row = if self.known {
                sorted(given)
            } else {
                Row::new()
            };
            let certain = row
                .first()
                .is_some_and(|&(id, p)| id == *token && p > CERTAIN);
            (*token, if certain { Row::new() } else { row })
        };
        self.drawn.iter().map(kept).collect()
    }
}

fn sorted(given: &[(u32, u8)]) -> Row {
    let mut row: Row = given.iter().copied().filter(|&(_, p)| p > 0).collect();
    row.sort_by_key(|&(id, p)| (std::cmp::Reverse(p), id));
    row
}

/// Distributions as arrays.
struct Cells(Vec<u32>, Vec<u8>);

impl Cells {
    fn new<'a>(rows: impl Iterator<Item = &'a Given>) -> Self {
        let rows = rows.flat_map(|row| {
            let padding = std::iter::repeat((0, 0));
            row.iter().copied().chain(padding).take(WIDTH)
        });
        let (ids, probabilities) = rows.unzip();
        Self(ids, probabilities)
    }

    fn of(piece: &Piece) -> Self {
        Self::new(
            piece
                .drawn
                .iter()
                .filter(|_| piece.known)
                .map(|drawn| &drawn.1),
        )
    }

    fn rows(&self) -> KnownRows<'_> {
        KnownRows::new(WIDTH, &self.0, &self.1).unwrap()
    }
}

/// A rollout that runs, and what its twin knows.
struct Running {
    sequence: Sequence,
    name: u64,
    problem: u64,
    tree: Tree,
    text: usize,
    /// Prompt and output, and the length of the prompt.
    own: Vec<u32>,
    prompt: usize,
    informed: bool,
    recent: Mixture,
    /// What could have been in place of its last token.
    instead: Option<u32>,
    expected: Option<Expectation>,
    /// What is kept of its output, and how much of that has been learned from over all problems.
    kept: Vec<(u32, Row)>,
    shared: usize,
}

impl Running {
    /// Learns over all problems from what has been appended, if it was new there.
    fn learn_shared(&mut self, learned: &mut Learned) {
        let texts = self.tree.borrow();
        for at in self.shared..self.kept.len() {
            if !texts.is_new(self.text, at + 1) {
                continue;
            }
            let before = &self.own[..self.prompt + at];
            for length in (1..=3).filter(|&length| before.len() >= length) {
                let last = &before[before.len() - length..];
                let context = if length == 3 {
                    apart(last)
                } else {
                    last.to_vec()
                };
                let (token, row) = &self.kept[at];
                learned.follow(Of::All, &context, *token, row);
            }
        }
        self.shared = self.kept.len();
    }
}

pub struct World {
    history: RolloutHistory,
    options: HistoryOptions,
    problems: BTreeMap<u64, Problem>,
    running: Vec<Running>,
    pub learned: Learned,
    generation: u64,
    names: u64,
    /// Kinds of evidence that were asked.
    pub asked: BTreeSet<Kind>,
    /// Whether rounding has decided in a draft: what is learned from it may not be comparable.
    pub tied: bool,
}

impl World {
    pub fn new(options: HistoryOptions) -> Self {
        Self {
            history: RolloutHistory::new(options).unwrap(),
            options,
            problems: BTreeMap::new(),
            running: Vec::new(),
            learned: Learned::default(),
            generation: 0,
            names: 0,
            asked: BTreeSet::new(),
            tied: false,
        }
    }

    pub fn runs(&self) -> usize {
        self.running.len()
    }

    fn ideas(&self) -> Ideas {
        let HistoryOptions {
            soft,
            shared,
            rejected,
            ..
        } = self.options;
        Ideas {
            soft,
            shared,
            rejected,
        }
    }

    pub fn open(&mut self, problem: u64, prompt: &[u32], weight: f64) {
        let sequence = self
            .history
            .rollout_with_weight(problem, prompt, weight)
            .unwrap();
        self.names += 1;
        let twin = self
            .problems
            .entry(problem)
            .or_insert_with(|| Problem::new(self.options));
        let (tree, text) = twin.open(self.generation, self.names, prompt, weight);
        self.running.push(Running {
            sequence,
            name: self.names,
            problem,
            tree,
            text,
            own: prompt.to_vec(),
            prompt: prompt.len(),
            informed: false,
            recent: Mixture::default(),
            instead: None,
            expected: None,
            kept: Vec::new(),
            shared: 0,
        });
    }

    /// Appends to a rollout.
    pub fn append(&mut self, which: usize, piece: &Piece) {
        let cells = Cells::of(piece);
        let sequence = &self.running[which].sequence;
        sequence
            .append_known(&piece.tokens(), cells.rows())
            .unwrap();
        self.grow(which, piece);
    }

    /// What is learned from tokens that are about to be appended.
    fn learn(&mut self, which: usize, piece: &Piece) {
        let (running, learned) = (&mut self.running[which], &mut self.learned);
        let Some(_) = piece.drawn.first() else { return };
        running.informed |= piece.known;
        if let Some(expected) = running.expected.take() {
            expected.judge(&piece.tokens(), learned);
        }
        let mut last = running.own.last().copied();
        for (token, row) in piece.kept() {
            if let Some(other) = running.instead.filter(|_| self.options.soft) {
                let context = [last.expect("it was drawn"), other];
                learned.follow(Of::Beside(running.problem), &context, token, &row);
            }
            running.instead = instead(token, &row);
            running
                .recent
                .learn(token, &row, RECENT_ENTRIES, RECENT_MEMORY);
            last = Some(token);
        }
    }

    fn grow(&mut self, which: usize, piece: &Piece) {
        self.learn(which, piece);
        let running = &mut self.running[which];
        running.own.extend(piece.tokens());
        running.kept.extend(piece.kept());
        running
            .tree
            .borrow_mut()
            .append(running.text, &piece.kept());
        if self.options.shared {
            running.learn_shared(&mut self.learned);
        }
    }

    /// The noise of a rollout's next token.
    pub fn noise(&self, which: usize) -> Coupling {
        let running = &self.running[which];
        Coupling::Seeded {
            seed: (running.name as i64).wrapping_mul(0x1234_5678_9abc_def1),
            position: running.own.len() as i64 - 1,
        }
    }

    /// What a rollout should draft.
    fn expect(&mut self, which: usize, options: &DraftOptions) -> Expectation {
        let running = &self.running[which];
        let texts = running.tree.borrow();
        let symbols = texts.symbols(running.text);
        let tail = &symbols[symbols.len() - texts.oracle.active(running.text)..];
        let asker = Asker {
            texts: &texts,
            text: Some(running.text),
            prompt: running.prompt,
            request: Request::new(&texts.oracle, running.own.clone(), tail, Some(running.text)),
            problem: running.problem,
            ideas: self.ideas(),
            learned: &self.learned,
            recent: Some(&running.recent).filter(|_| running.informed),
            instead: running.instead,
            options: *options,
        };
        let expected = asker.draft();
        self.asked.extend(&expected.asked);
        let learns =
            self.options.shared || (self.options.soft && (running.informed || texts.knows));
        drop(texts);
        self.running[which].expected = Some(expected.clone()).filter(|_| learns);
        expected
    }

    pub fn draft(&mut self, which: usize, options: &DraftOptions) {
        let expected = self.expect(which, options);
        let draft = self.running[which].sequence.draft(options).unwrap();
        self.tied |= !same(&draft, &expected);
    }

    /// The tokens down to a node of the last draft of a rollout.
    pub fn drafted(&self, which: usize, node: usize) -> Vec<u32> {
        let expected = self.running[which].expected.as_ref();
        let nodes = expected.map_or(&[][..], |expected| &expected.nodes);
        path_to(nodes, (node % (nodes.len() + 1)) as i32 - 1)
    }

    /// The last tokens of a rollout.
    pub fn tail(&self, which: usize, length: usize) -> Vec<u32> {
        let own = &self.running[which].own;
        own[own.len().saturating_sub(length)..].to_vec()
    }

    /// Appends to and drafts from some rollouts, each once, in one call.
    pub fn step(&mut self, parts: &[(usize, Piece, DraftOptions)], width: usize) {
        let cells: Vec<Cells> = parts.iter().map(|part| Cells::of(&part.1)).collect();
        let tokens: Vec<Vec<u32>> = parts.iter().map(|part| part.1.tokens()).collect();
        let request =
            |(((which, _, options), cells), tokens): ((&(usize, Piece, DraftOptions), _), _)| {
                let (cells, accepted): (&Cells, &Vec<u32>) = (cells, tokens);
                StepRequest {
                    sequence: &self.running[*which].sequence,
                    accepted,
                    known: cells.rows(),
                    options: *options,
                }
            };
        let requests: Vec<StepRequest> =
            parts.iter().zip(&cells).zip(&tokens).map(request).collect();
        let drafts = step(&requests, width).unwrap();
        parts
            .iter()
            .for_each(|(which, piece, _)| self.grow(*which, piece));
        for (row, (which, _, options)) in parts.iter().enumerate() {
            let max_nodes = options.max_nodes.min(width);
            let expected = self.expect(
                *which,
                &DraftOptions {
                    max_nodes,
                    ..*options
                },
            );
            self.tied |= !same(&drafts.draft(row), &expected);
        }
    }

    /// Drafts from a text that is in no tree.
    pub fn stateless(&mut self, problem: u64, text: &[u32], options: &DraftOptions) {
        let Some(tree) = self.history.tree(problem) else {
            return;
        };
        let draft = tree.draft(text, options).unwrap();
        let texts = self.problems[&problem].tree.borrow();
        let asker = Asker {
            texts: &texts,
            text: None,
            prompt: text.len(),
            request: Request::new(&texts.oracle, text.to_vec(), text, None),
            problem,
            ideas: self.ideas(),
            learned: &self.learned,
            recent: None,
            instead: None,
            options: *options,
        };
        same(&draft, &asker.draft());
    }

    /// Distributions after drafts that were not kept.
    pub fn reject(&mut self, which: usize, contexts: &[Rejected]) {
        let running = &self.running[which];
        let cells = Cells::new(contexts.iter().map(|context| &context.1));
        let last: Vec<[u32; 2]> = contexts.iter().map(|context| context.0).collect();
        running.sequence.reject(&last, cells.rows()).unwrap();
        for (context, given) in contexts.iter().filter(|_| self.options.rejected) {
            let row = sorted(given);
            if let Some(&(likeliest, _)) = row.first() {
                for context in [&context[..], &context[1..]] {
                    self.learned
                        .follow(Of::Rejected(running.problem), context, likeliest, &row);
                }
            }
        }
    }

    pub fn close(&mut self, which: usize, weight: Option<f64>) {
        let running = self.running.remove(which);
        match weight {
            Some(weight) => running.sequence.close_with_weight(weight).unwrap(),
            None => running.sequence.close(),
        }
        running.tree.borrow_mut().close(running.text);
        let problem = self.problems.get_mut(&running.problem).unwrap();
        problem.close(running.name, weight);
    }

    /// The next policy version: what will be outside the window leaves.
    pub fn advance(&mut self) {
        self.generation += 1;
        assert_eq!(self.history.advance(), self.generation);
        self.problems.values_mut().for_each(Problem::turn);
    }

    /// Saves the history and goes on with what is loaded. Rollouts that run end there.
    pub fn reload(&mut self) {
        let file = File::new("informed");
        self.history.save(&file.0).unwrap();
        self.history = RolloutHistory::load(&file.0, |_| ()).unwrap();
        for running in self.running.drain(..) {
            running.tree.borrow_mut().close(running.text);
        }
        self.problems.values_mut().for_each(Problem::reload);
    }
}

/// Asserts that tokens and parents are the expected ones, in the same order, and probabilities nearly. Where nodes are so
/// equally probable that rounding decides which comes first it says false, and the rest is not compared.
fn same(draft: &Draft, expected: &Expectation) -> bool {
    assert_eq!(draft.len(), expected.nodes.len(), "{draft:?}\n{expected:?}");
    for (i, node) in expected.nodes.iter().enumerate() {
        let missed = (draft.probabilities[i] - node.probability).abs();
        assert!(missed <= 1e-5, "{draft:?}\n{expected:?}");
        if (draft.tokens[i], draft.parents[i]) != (node.token, node.parent) {
            let rounding = missed <= 1e-6 * node.probability;
            assert!(rounding, "{draft:?}\n{expected:?}");
            return false;
        }
    }
    true
}
