//! A step spread over threads by tree. The rows of a tree stay together and in order, and trees have nothing in common, so
//! the drafts are those of one thread.

use crate::{
    batch::{StepDrafts, StepRequest},
    draft::{Draft, DraftOptions},
    error::Error,
    id::Token,
    known::OwnedRows,
    pool::{self, Parts},
    sequence::Handle,
    sync::unmodelled::{Arc, Mutex, lock},
};

/// Drafted nodes and the like for which waking a helper pays: a tenth of a millisecond of work.
const LEAST_WORK: usize = 400;

/// A step's work, and where its results are left.
struct Batch {
    rows: Vec<Row>,
    /// Accepted tokens of all rows.
    tokens: Vec<Token>,
    width: usize,
    taken_in: usize,
    parts: Vec<Mutex<Part>>,
}

struct Row {
    sequence: Handle,
    accepted: std::ops::Range<usize>,
    known: OwnedRows,
    options: DraftOptions,
}

/// The rows of one tree.
struct Part {
    rows: Vec<usize>,
    drafts: StepDrafts,
    outcome: Result<(), Error>,
}

/// Whether to spread a step over threads; `trees` has the tree of each row.
pub(crate) fn pays(requests: &[StepRequest], trees: &[usize], width: usize) -> bool {
    // A token takes about twice as long to append as one takes to draft, a row as long as a few.
    let work = |request: &StepRequest| {
        4 + 2 * request.accepted.len() + request.options.max_nodes.min(width)
    };
    requests.iter().map(work).sum::<usize>() >= LEAST_WORK
        && trees.iter().any(|&tree| tree != trees[0])
        && pool::has_helpers()
}

/// As `batch::step_into`, for arguments that have been checked.
pub(crate) fn step(
    requests: &[StepRequest],
    trees: &[usize],
    width: usize,
    taken_in: usize,
    drafts: &mut StepDrafts,
) -> Result<(), Error> {
    let batch = Arc::new(Batch::new(requests, trees, width, taken_in));
    let parts = batch.parts.len();
    pool::run(batch.clone(), parts);
    drafts.clear(requests.len(), width);
    for part in &batch.parts {
        let part = lock(part);
        for (from, &row) in part.rows.iter().enumerate() {
            drafts.copy_row(row, &part.drafts, from, width);
        }
        part.outcome.clone()?;
    }
    Ok(())
}

impl Batch {
    fn new(requests: &[StepRequest], trees: &[usize], width: usize, taken_in: usize) -> Self {
        let mut tokens =
            Vec::with_capacity(requests.iter().map(|request| request.accepted.len()).sum());
        let row = |request: &StepRequest| {
            let from = tokens.len();
            tokens.extend_from_slice(request.accepted);
            Row {
                sequence: request.sequence.handle(),
                accepted: from..tokens.len(),
                known: request.known.into(),
                options: request.options,
            }
        };
        let rows = requests.iter().map(row).collect();
        let mut order: Vec<usize> = (0..trees.len()).collect();
        order.sort_by_key(|&row| trees[row]);
        let mut parts: Vec<Part> = order
            .chunk_by(|&one, &other| trees[one] == trees[other])
            .map(|rows| Part {
                rows: rows.to_vec(),
                drafts: StepDrafts::default(),
                outcome: Ok(()),
            })
            .collect();
        // The largest first, so that no thread is left with one at the end.
        parts.sort_by_key(|part| std::cmp::Reverse(part.rows.len()));
        Self {
            rows,
            tokens,
            width,
            taken_in,
            parts: parts.into_iter().map(Mutex::new).collect(),
        }
    }
}

impl Parts for Batch {
    fn run(&self, part: usize) {
        let part = &mut *lock(&self.parts[part]);
        part.drafts.clear(part.rows.len(), self.width);
        let mut draft = Draft::default();
        for (to, &row) in part.rows.iter().enumerate() {
            let Row {
                sequence,
                accepted,
                known,
                options,
            } = &self.rows[row];
            let accepted = &self.tokens[accepted.clone()];
            let (known, width) = (known.rows(), self.width);
            let outcome = sequence.append_and_draft(
                accepted,
                known,
                self.taken_in,
                options,
                width,
                &mut draft,
            );
            match outcome {
                Ok(()) => part.drafts.write(to, self.width, &draft),
                Err(error) => part.outcome = Err(error),
            }
        }
    }
}
