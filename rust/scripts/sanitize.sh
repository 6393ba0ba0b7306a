#!/usr/bin/env bash
# Runs the Rust tests that start threads or contain unsafe code under ThreadSanitizer, then under AddressSanitizer.
# Catches: accesses from two threads that nothing orders; reads and writes outside an allocation or after its end.
# The flags are unstable, but the stable compiler takes them with RUSTC_BOOTSTRAP=1. The standard library itself is not
# instrumented: what its internals do is taken on trust, and the test harness, which relies on them, is left out.
set -euo pipefail
cd "$(dirname "$0")/../.."
export RUSTC_BOOTSTRAP=1
# The suppressions name functions, which line tables alone do not do where they are inlined.
export CARGO_PROFILE_DEV_DEBUG=full CARGO_PROFILE_TEST_DEBUG=full
export TSAN_OPTIONS="suppressions=$PWD/rust/scripts/tsan-suppressions.txt"
host=$(rustc -vV | sed -n 's/^host: //p')

# The tests of a crate, under one of the two. `--cfg tsan` has das-tree bring along the orderings of the locks it uses.
run() {
    local sanitizer=$1
    shift
    echo "== $sanitizer sanitizer: cargo test $*"
    RUSTFLAGS="-Zsanitizer=$sanitizer -Cunsafe-allow-abi-mismatch=sanitizer --cfg tsan" CARGO_TARGET_DIR="target/$sanitizer" \
        cargo test --quiet --target "$host" "$@"
}

# What das-cpu's threads do to each other goes through a condition variable of the standard library: nothing for the first.
for sanitizer in ${*:-thread address}; do
    run "$sanitizer" -p das-tree --lib --test stress --test batch
    if [ "$sanitizer" = address ]; then
        run "$sanitizer" -p das-cpu --lib --tests
        run "$sanitizer" -p das-pages --lib
    fi
done
