//! An online suffix tree over token ids.
#![forbid(unsafe_code)]

mod arena;
mod batch;
mod blend;
mod draft;
mod error;
mod history;
mod id;
mod index;
mod integrity;
mod locus;
mod node;
mod own;
mod sequence;
mod sync;
mod tally;
mod text;
mod tree;

pub use batch::{StepDrafts, StepRequest, step};
pub use draft::{Draft, DraftOptions, Shape};
pub use error::Error;
pub use history::{HistoryOptions, HistoryStats, RolloutHistory};
pub use sequence::Sequence;
pub use tree::Tree;
