//! The noise of seeded sampling.

pub(crate) use das_noise::{finish, scramble_step};
pub use das_noise::{murmur, row_state};
