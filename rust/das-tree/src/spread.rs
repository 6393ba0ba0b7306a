//! The drafts of a step spread over threads, row by row. Drafting changes nothing that another row looks at, so the drafts are
//! those of one thread.

use crate::{
    batch::{StepDrafts, StepRequest},
    draft::{Draft, DraftOptions},
    error::Error,
    pool::{self, Parts},
    sequence::Handle,
    sync::unmodelled::{Arc, Mutex, lock},
};

/// Drafted nodes and the like for which waking a helper pays: a tenth of a millisecond of work.
const LEAST_WORK: usize = 400;
/// Rows that a thread takes at a time.
const ROWS: usize = 4;

/// A step's drafts still to be made, and where they are left.
struct Batch {
    rows: Vec<(Handle, DraftOptions)>,
    width: usize,
    parts: Vec<Mutex<Part>>,
}

/// The drafts of some rows.
struct Part {
    drafts: StepDrafts,
    outcome: Result<(), Error>,
}

/// Whether to spread the drafts of a step over threads.
pub(crate) fn pays(requests: &[StepRequest], width: usize) -> bool {
    // A row takes as long as a few nodes.
    let work = |request: &StepRequest| 4 + request.options.max_nodes.min(width);
    requests.iter().map(work).sum::<usize>() >= LEAST_WORK && pool::has_helpers()
}

/// Drafts for requests that have appended what they accepted, into `drafts`, which is clear.
pub(crate) fn draft(
    requests: &[StepRequest],
    width: usize,
    drafts: &mut StepDrafts,
) -> Result<(), Error> {
    let batch = Arc::new(Batch::new(requests, width));
    pool::run(batch.clone(), batch.parts.len());
    for (number, part) in batch.parts.iter().enumerate() {
        let part = lock(part);
        part.outcome.clone()?;
        for from in 0..part.drafts.sizes.len() {
            drafts.copy_row(number * ROWS + from, &part.drafts, from, width);
        }
    }
    Ok(())
}

impl Batch {
    fn new(requests: &[StepRequest], width: usize) -> Self {
        let row = |request: &StepRequest| (request.sequence.handle().clone(), request.options);
        let part = || Part {
            drafts: StepDrafts::default(),
            outcome: Ok(()),
        };
        let parts = requests.len().div_ceil(ROWS);
        Self {
            rows: requests.iter().map(row).collect(),
            width,
            parts: (0..parts).map(|_| Mutex::new(part())).collect(),
        }
    }
}

impl Parts for Batch {
    fn run(&self, number: usize) {
        let first = number * ROWS;
        let rows = &self.rows[first..self.rows.len().min(first + ROWS)];
        let part = &mut *lock(&self.parts[number]);
        part.drafts.clear(rows.len(), self.width);
        let mut draft = Draft::default();
        for (row, (sequence, options)) in rows.iter().enumerate() {
            match sequence.draft(options, self.width, &mut draft) {
                Ok(()) => part.drafts.write(row, self.width, &draft),
                Err(error) => part.outcome = Err(error),
            }
        }
    }
}
