//! Differential fuzzing of `das-tree`: bytes are read as a script of calls on a rollout history, and every answer is
//! compared with that of a naive oracle. `src/bin/soak.rs` runs random scripts, `fuzz_targets/differential.rs` those that
//! libFuzzer finds.
#![forbid(unsafe_code)]

#[path = "../../tests/oracle/mod.rs"]
mod oracle;
mod script;
mod world;

pub use script::{Kind, Tally, run};
