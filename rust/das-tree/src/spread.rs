//! A step's work spread over threads: appends tree by tree, drafts row by row. Trees do not know of each other, and drafting
//! changes nothing that another row looks at, so what comes out is what one thread would make.

use std::{cell::RefCell, ops::Range};

use crate::{
    batch::{StepDrafts, StepRequest},
    draft::{Draft, DraftOptions},
    error::Error,
    id::Token,
    known::KnownRows,
    pool::{self, Parts},
    sequence::Handle,
    sync::{
        self,
        unmodelled::{Arc, Mutex, lock},
    },
};

/// Drafted nodes and the like for which waking a helper pays: a tenth of a millisecond where they come from counts.
const LEAST_WORK: usize = 400;
/// Rows that a thread takes at a time; to append, more where a tree has more.
const ROWS: usize = 4;

/// A step, as helpers see it, who may hold it for a moment longer than the call lasts.
#[derive(Default)]
struct Batch {
    /// Tree by tree, so that who appends to a tree mostly drafts from it too.
    rows: Vec<Row>,
    /// What all accepted, and what the target knew.
    tokens: Vec<Token>,
    known_tokens: Vec<Token>,
    known_probabilities: Vec<u8>,
    /// How much of a long prompt a row may take in, and nodes of a draft.
    taken_in: usize,
    width: usize,
    /// What is given out: rows to append to, then rows to draft for.
    parts: Vec<(Work, Range<usize>)>,
    /// A place for the drafts of each part.
    drafts: Vec<Mutex<Drafts>>,
    /// The first request that failed.
    failed: Mutex<Option<(usize, Error)>>,
}

#[derive(Clone, Copy)]
enum Work {
    Append,
    Draft,
}

/// A request.
struct Row {
    tree: usize,
    /// Its place in the step.
    number: usize,
    sequence: Handle,
    options: DraftOptions,
    accepted: Range<usize>,
    /// Entries for each token accepted, and where they are.
    entries: usize,
    known: Range<usize>,
}

/// Drafts of some rows, and one to work in.
#[derive(Default)]
struct Drafts {
    all: StepDrafts,
    draft: Draft,
}

sync::thread_local! {
    /// The last step's, whose memory serves again.
    static LAST: RefCell<(Arc<Batch>, pool::Place)> = RefCell::default();
}

/// Whether to spread a step over threads.
pub(crate) fn pays(requests: &[StepRequest], width: usize) -> bool {
    // A row takes as long as a few nodes.
    let work = |request: &StepRequest| 4 + request.options.max_nodes.min(width);
    requests.iter().map(work).sum::<usize>() >= LEAST_WORK && pool::has_helpers()
}

/// A step for requests of different sequences, into `drafts`, which is clear; between appends and drafts comes `learn`.
pub(crate) fn step(
    requests: &[StepRequest],
    width: usize,
    taken_in: usize,
    learn: impl FnOnce(),
    drafts: &mut StepDrafts,
) -> Result<(), Error> {
    LAST.with(|last| {
        let (batch, place) = &mut *last.borrow_mut();
        place.clear();
        if Arc::get_mut(batch).is_none() {
            *batch = Arc::default(); // a helper is still about to leave the last one
        }
        let filled = Arc::get_mut(batch).expect("nobody else has it yet");
        filled.fill(requests, width, taken_in)?;
        let (appends, parts) = (filled.plan(), filled.parts.len());
        pool::run(place, batch.clone(), 0..appends);
        if let Some((_, error)) = lock(&batch.failed).take() {
            return Err(error);
        }
        learn();
        pool::run(place, batch.clone(), appends..parts);
        batch.collect(drafts)
    })
}

impl Batch {
    /// Takes in a step.
    fn fill(
        &mut self,
        requests: &[StepRequest],
        width: usize,
        taken_in: usize,
    ) -> Result<(), Error> {
        (self.width, self.taken_in) = (width, taken_in);
        *lock(&self.failed) = None; // a panic may have left it
        self.rows.clear();
        self.tokens.clear();
        self.known_tokens.clear();
        self.known_probabilities.clear();
        for (number, request) in requests.iter().enumerate() {
            let (entries, tokens, probabilities) = request.known.parts();
            let accepted = extend(&mut self.tokens, request.accepted);
            let known = extend(&mut self.known_tokens, tokens);
            extend(&mut self.known_probabilities, probabilities);
            let sequence = request.sequence.handle().clone();
            self.rows.push(Row {
                tree: sequence.tree()?,
                number,
                sequence,
                options: request.options,
                accepted,
                entries,
                known,
            });
        }
        self.rows.sort_unstable_by_key(|row| (row.tree, row.number));
        Ok(())
    }

    /// Divides the rows; returns how many parts are to append.
    fn plan(&mut self) -> usize {
        self.parts.clear();
        let mut first = 0;
        for end in 1..=self.rows.len() {
            let of_one_tree = |pair: &[Row]| pair[0].tree == pair[1].tree;
            let in_a_tree = self.rows.get(end - 1..=end).is_some_and(of_one_tree);
            if end == self.rows.len() || end - first >= ROWS && !in_a_tree {
                self.parts.push((Work::Append, first..end));
                first = end;
            }
        }
        let appends = self.parts.len();
        let rows = self.rows.len();
        let drafts = (0..rows).step_by(ROWS);
        self.parts
            .extend(drafts.map(|first| (Work::Draft, first..rows.min(first + ROWS))));
        self.drafts
            .resize_with(self.parts.len().max(self.drafts.len()), Mutex::default);
        appends
    }

    fn append(&self, row: &Row) -> Result<(), Error> {
        let known = row.known.clone();
        let (tokens, probabilities) = (
            &self.known_tokens[known.clone()],
            &self.known_probabilities[known],
        );
        let known = KnownRows::of_parts(row.entries, tokens, probabilities);
        let accepted = &self.tokens[row.accepted.clone()];
        row.sequence.take_in(accepted, known, self.taken_in)
    }

    fn fail(&self, row: &Row, error: Error) {
        let mut failed = lock(&self.failed);
        if failed.as_ref().is_none_or(|first| row.number < first.0) {
            *failed = Some((row.number, error));
        }
    }

    /// Copies all drafts to their places.
    fn collect(&self, drafts: &mut StepDrafts) -> Result<(), Error> {
        if let Some((_, error)) = lock(&self.failed).take() {
            return Err(error);
        }
        for ((work, rows), part) in self.parts.iter().zip(&self.drafts) {
            if matches!(work, Work::Draft) {
                let part = lock(part);
                for (from, row) in self.rows[rows.clone()].iter().enumerate() {
                    drafts.copy_row(row.number, &part.all, from, self.width);
                }
            }
        }
        Ok(())
    }
}

impl Parts for Batch {
    fn run(&self, number: usize) {
        let (work, rows) = &self.parts[number];
        let rows = &self.rows[rows.clone()];
        match work {
            Work::Append => {
                for row in rows {
                    self.append(row)
                        .unwrap_or_else(|error| self.fail(row, error));
                }
            }
            Work::Draft => {
                let Drafts { all, draft } = &mut *lock(&self.drafts[number]);
                all.clear(rows.len(), self.width);
                for (at, row) in rows.iter().enumerate() {
                    match row.sequence.draft(&row.options, self.width, draft) {
                        Ok(()) => all.write(at, self.width, draft),
                        Err(error) => self.fail(row, error),
                    }
                }
            }
        }
    }
}

/// Appends to an array; returns where.
fn extend<T: Copy>(array: &mut Vec<T>, more: &[T]) -> Range<usize> {
    let start = array.len();
    array.extend_from_slice(more);
    start..array.len()
}
