#!/usr/bin/env bash
# Compares the suffix tree with a naive oracle, call by call, on the committed scripts and then on random ones.
#
#   rust/scripts/fuzz.sh [--seconds S] [--operations N] [--seed N] [--threads N]    random scripts; builds on stable
#   rust/scripts/fuzz.sh guided [libFuzzer options]                                 scripts that reach new code
#
# The second needs a C++ compiler. libFuzzer comes with the crate `libfuzzer-sys`; the compiler flags are those it is
# documented to need, which the stable compiler takes with RUSTC_BOOTSTRAP=1. What it finds goes to target/fuzz/corpus.
# Leaks are not looked for after each script: the threads that help with a batch live on, and own a little.
set -euo pipefail
cd "$(dirname "$0")/../.."
crate=rust/das-tree/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=target/fuzz

if [ "${1:-}" = guided ]; then
    shift
    export RUSTC_BOOTSTRAP=1
    llvm="-Cllvm-args=-sanitizer-coverage"
    RUSTFLAGS="-Cpasses=sancov-module $llvm-level=4 $llvm-inline-8bit-counters $llvm-pc-table $llvm-trace-compares \
-Ccodegen-units=1 -Zsanitizer=address -Cunsafe-allow-abi-mismatch=sanitizer --cfg fuzzing" \
        cargo build --quiet --release --target "$host" --manifest-path $crate/Cargo.toml --features guided --bin differential
    mkdir -p target/fuzz/corpus
    exec "target/fuzz/$host/release/differential" -max_len=1024 -detect_leaks=0 -artifact_prefix=target/fuzz/ "$@" \
        target/fuzz/corpus $crate/corpus/differential
fi
cargo build --quiet --release --manifest-path $crate/Cargo.toml --bin soak
exec target/fuzz/release/soak "$@" $crate/corpus/differential
