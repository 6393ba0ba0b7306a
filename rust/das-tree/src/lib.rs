//! An online suffix tree over token ids, for many sequences that grow at once, and drafting from it.
//!
//! Rollouts of one prompt resemble each other and themselves. A [`Tree`] holds the rollouts of one problem, finished and
//! running, as a suffix tree that grows with every token; a [`Sequence`] is a running rollout, which always knows its longest
//! suffix seen before and [drafts](Sequence::draft) what comes next, with a calibrated probability for each token. A
//! [`RolloutHistory`] keeps a tree for each of many problems, within a window of visits and a budget of bytes, weighs older
//! visits less, and can be saved to a file. Beside each token the tree may keep what the target model knew there, the
//! [`Distribution`] the token was drawn from. [`step`] serves a whole batch in one call, on several threads if that pays.
//!
//! ```
//! use das_tree::{DraftOptions, Tree};
//!
//! let tree = Tree::new(64)?;
//! let first = tree.sequence(&[])?;
//! first.append(&[11, 12, 13, 14, 15])?;
//! first.close();
//!
//! let prompt = [7, 8, 9];
//! let second = tree.sequence(&prompt)?;
//! second.append(&[11, 12])?;
//! let draft = second.draft(&DraftOptions { max_nodes: 3, ..DraftOptions::default() })?;
//! assert_eq!(draft.tokens, [13, 14, 15]);
//! assert_eq!(draft.parents, [-1, 0, 1]);
//! # Ok::<(), das_tree::Error>(())
//! ```
//!
//! # Trade-offs
//!
//! - Nothing is removed from a tree. Memory returns when the tree goes: [`RolloutHistory`] rebuilds a problem's tree from
//!   the rollouts that are still inside its window, in the background.
//! - Statistics end at a depth of 64 tokens; contexts for drafting at 32.
//! - An occurrence that is part of a running sequence's present match is counted when the match ends.
//! - 50 to 60 bytes a token, and 12 more while a sequence runs; a distribution of eight entries takes about 34 more.
//!
//! # Consistency
//!
//! Any number of threads may append to, draft from and count in the same tree. An append does not wait for another thread: if
//! one is indexing the tree, it takes the new tokens along (or, when it has long done so for others, is relieved: that takes
//! some microseconds at most, then the append gives up). Drafts and counts never wait at all (calls on one and the same
//! sequence take turns). They see all that was indexed before they began; of what is indexed meanwhile, some. What was found
//! once stays, and no count falls (but where texts of different weight meet, in a history that weighs them). With no append under way everything is exact, and the same calls give the same drafts on
//! every run and machine.
//!
//! How and why is told in `DESIGN.md`, next to this crate's `Cargo.toml`.
#![forbid(unsafe_code)]

mod arena;
mod backoff;
mod batch;
mod baton;
mod blend;
mod calibration;
mod draft;
mod error;
mod frontier;
mod history;
mod id;
mod index;
mod integrity;
mod known;
mod latest;
mod locus;
mod log;
mod meter;
mod mixture;
mod node;
mod noise;
mod own;
mod pool;
mod ratio;
mod sequence;
mod spread;
mod sync;
mod tally;
mod text;
mod tree;
mod trust;

pub use batch::{StepDrafts, StepRequest, step, step_into};
pub use draft::{Draft, DraftOptions, Shape};
pub use error::Error;
pub use history::{HistoryOptions, HistoryStats, RolloutHistory};
pub use known::{Distribution, KNOWN_TOKEN_LIMIT, KnownRows, MAX_ENTRIES};
pub use latest::{Latest, Observation};
pub use noise::Coupling;
pub use sequence::Sequence;
pub use tree::Tree;

#[cfg(all(test, not(loom)))]
mod tests {
    /// Shared between threads, all of it.
    #[test]
    fn public_types_are_send_and_sync() {
        fn check<T: Send + Sync>() {}
        check::<crate::Tree>();
        check::<crate::Sequence>();
        check::<crate::RolloutHistory>();
        check::<crate::Draft>();
        check::<crate::Error>();
    }
}
