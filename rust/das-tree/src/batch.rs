//! One call per engine step: append what each request has accepted, then draft for it.

use crate::{
    draft::{Draft, DraftOptions},
    error::Error,
    id::{Token, check_tokens},
    sequence::Sequence,
};

/// One request's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepRequest<'a> {
    /// The running sequence.
    pub sequence: &'a Sequence,
    /// Tokens to append before drafting.
    pub accepted: &'a [Token],
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

/// Appends to and drafts from all sequences, in order. Each draft has at most `width` nodes.
///
/// # Errors
/// As [`Sequence::append`]. If a token is invalid or a sequence is closed, nothing has been appended, unless another
/// thread closed it during the call.
pub fn step(requests: &[StepRequest], width: usize) -> Result<StepDrafts, Error> {
    for request in requests {
        check_tokens(request.accepted)?;
        request.sequence.check_open()?;
    }
    let cells = requests.len() * width;
    let mut drafts = StepDrafts {
        tokens: vec![0; cells],
        parents: vec![-1; cells],
        probabilities: vec![0.0; cells],
        sizes: Vec::with_capacity(requests.len()),
    };
    let mut draft = Draft::default();
    for (row, request) in requests.iter().enumerate() {
        let max_nodes = request.options.max_nodes.min(width);
        let options = DraftOptions {
            max_nodes,
            ..request.options
        };
        request
            .sequence
            .append_and_draft(request.accepted, &options, &mut draft)?;
        let cells = row * width..row * width + draft.len();
        for (cell, &token) in drafts.tokens[cells.clone()].iter_mut().zip(&draft.tokens) {
            *cell = token as i32;
        }
        drafts.parents[cells.clone()].copy_from_slice(&draft.parents);
        drafts.probabilities[cells].copy_from_slice(&draft.probabilities);
        drafts.sizes.push(draft.len() as i32);
    }
    Ok(drafts)
}
