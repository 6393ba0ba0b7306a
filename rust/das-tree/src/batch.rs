//! One call per engine step: append what each request has accepted, then draft for it.

use std::cell::RefCell;

use crate::{
    draft::{Draft, DraftOptions},
    error::Error,
    id::{Token, check_tokens},
    known::KnownRows,
    pool,
    sequence::{Sequence, TAKEN_IN, check_rows},
    spread, sync,
};

/// One request's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepRequest<'a> {
    /// The running sequence.
    pub sequence: &'a Sequence,
    /// Tokens to append before drafting.
    pub accepted: &'a [Token],
    /// What the target knew of each of them, or nothing.
    pub known: KnownRows<'a>,
    /// What to draft.
    pub options: DraftOptions,
}

/// The drafts of a batch, one row of `width` cells per request. Unused cells hold token 0, parent -1, probability 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepDrafts {
    /// Tokens.
    pub tokens: Vec<i32>,
    /// For each node the index, in its row, of the node it follows; -1 for those that follow the text itself.
    pub parents: Vec<i32>,
    /// Path probabilities.
    pub probabilities: Vec<f32>,
    /// Nodes in each row.
    pub sizes: Vec<i32>,
}

/// Appends to all sequences, in order, then drafts for all: each draft, of at most `width` nodes, knows what every request of
/// the step accepted. If a sequence is given twice, its later tokens wait for its earlier draft: then row follows row.
///
/// # Errors
/// As [`Sequence::append_known`]. If an argument is invalid or a sequence closed, nothing has been appended, unless another
/// thread closed it during the call.
pub fn step(requests: &[StepRequest], width: usize) -> Result<StepDrafts, Error> {
    let mut drafts = StepDrafts::default();
    step_into(requests, width, &mut drafts)?;
    Ok(drafts)
}

/// As [`step`], into arrays that are used again: in the long run it allocates nothing but what the trees grow by.
///
/// # Errors
/// As [`step`].
pub fn step_into(
    requests: &[StepRequest],
    width: usize,
    drafts: &mut StepDrafts,
) -> Result<(), Error> {
    SCRATCH.with(|scratch| {
        let Scratch { sequences, draft } = &mut *scratch.borrow_mut();
        let spread = spread::pays(requests, width);
        let _awake = spread.then(pool::wake);
        let taken_in = check(requests)?;
        drafts.clear(requests.len(), width);
        if !all_different(requests, sequences) {
            for (row, request) in requests.iter().enumerate() {
                let handle = request.sequence.handle();
                handle.append(request.accepted, request.known, taken_in)?;
                handle.draft(&request.options, width, draft)?;
                drafts.write(row, width, draft);
            }
            return Ok(());
        }
        // What is learned over trees is learned in the requests' order, by one thread.
        let learn = || {
            for request in requests {
                let handle = request.sequence.handle();
                handle.learn(request.accepted, request.known);
            }
        };
        if spread {
            return spread::step(requests, width, taken_in, learn, drafts);
        }
        for request in requests {
            let handle = request.sequence.handle();
            handle.take_in(request.accepted, request.known, taken_in)?;
        }
        learn();
        for (row, request) in requests.iter().enumerate() {
            let handle = request.sequence.handle();
            handle.draft(&request.options, width, draft)?;
            drafts.write(row, width, draft);
        }
        Ok(())
    })
}

/// What a step works with, kept for the next one.
#[derive(Default)]
struct Scratch {
    sequences: Vec<usize>,
    draft: Draft,
}

sync::thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Checks the requests; returns how much of a long prompt each may take in, so that many that join at once do not stall the
/// others.
fn check(requests: &[StepRequest]) -> Result<usize, Error> {
    let mut joining = 0;
    for request in requests {
        check_tokens(request.accepted)?;
        check_rows(request.accepted, request.known)?;
        let handle = request.sequence.handle();
        joining += usize::from(handle.check_room(request.accepted.len())? > 0);
    }
    Ok((TAKEN_IN / joining.max(1)).max(TAKEN_IN / 16))
}

/// Whether no sequence is given twice.
fn all_different(requests: &[StepRequest], sequences: &mut Vec<usize>) -> bool {
    sequences.clear();
    sequences.extend(
        requests
            .iter()
            .map(|request| std::ptr::from_ref(request.sequence) as usize),
    );
    sequences.sort_unstable();
    sequences.windows(2).all(|pair| pair[0] != pair[1])
}

impl StepDrafts {
    /// The draft of a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn draft(&self, row: usize) -> Draft {
        let width = self.tokens.len() / self.sizes.len();
        let cells = row * width..row * width + self.sizes[row] as usize;
        Draft {
            tokens: self.tokens[cells.clone()]
                .iter()
                .map(|&token| token as u32)
                .collect(),
            parents: self.parents[cells.clone()].to_vec(),
            probabilities: self.probabilities[cells].to_vec(),
        }
    }

    /// Room for so many rows, all cells unused.
    pub(crate) fn clear(&mut self, rows: usize, width: usize) {
        self.tokens.clear();
        self.tokens.resize(rows * width, 0);
        self.parents.clear();
        self.parents.resize(rows * width, -1);
        self.probabilities.clear();
        self.probabilities.resize(rows * width, 0.0);
        self.sizes.clear();
        self.sizes.resize(rows, 0);
    }

    /// Writes the draft of a row.
    pub(crate) fn write(&mut self, row: usize, width: usize, draft: &Draft) {
        let cells = row * width..row * width + draft.len();
        for (cell, &token) in self.tokens[cells.clone()].iter_mut().zip(&draft.tokens) {
            *cell = token as i32;
        }
        self.parents[cells.clone()].copy_from_slice(&draft.parents);
        self.probabilities[cells].copy_from_slice(&draft.probabilities);
        self.sizes[row] = draft.len() as i32;
    }

    /// Copies row `from` of another batch.
    pub(crate) fn copy_row(&mut self, row: usize, other: &Self, from: usize, width: usize) {
        let (here, there) = (
            row * width..(row + 1) * width,
            from * width..(from + 1) * width,
        );
        self.tokens[here.clone()].copy_from_slice(&other.tokens[there.clone()]);
        self.parents[here.clone()].copy_from_slice(&other.parents[there.clone()]);
        self.probabilities[here].copy_from_slice(&other.probabilities[there]);
        self.sizes[row] = other.sizes[from];
    }
}
