#!/usr/bin/env bash
# Checks the concurrency models of rust/das-tree (tests/loom.rs, and one in src/baton.rs) over all interleavings within a bound on preemptions
# (LOOM_MAX_PREEMPTIONS, default 3) and all stale values the memory model allows. Arguments select models by name.
set -euo pipefail
cd "$(dirname "$0")/../.."
RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom exec cargo test -p das-tree --release --lib --test loom -- "$@"
