//! Differential fuzzing of `das-tree`: bytes are read as a script of calls on a rollout history, and every answer is
//! compared with that of a naive oracle. `src/bin/soak.rs` runs random scripts, `fuzz_targets/differential.rs` those that
//! libFuzzer finds. With `DAS_FUZZ_TRACE` set, the calls are printed: to understand a script that fails.
#![forbid(unsafe_code)]

mod model;
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../../tests/oracle/mod.rs"]
mod oracle;
mod problem;
#[path = "../../tests/scratch/mod.rs"]
mod scratch;
mod script;
mod twin;
mod world;

pub use script::{Kind, Tally, run};
