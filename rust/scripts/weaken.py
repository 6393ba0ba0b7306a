#!/usr/bin/env python3
"""Shows that the loom models can fail: breaks the tree in one place after another, in a copy, and runs them.

Each weakening is an edit of one place in rust/das-tree/src, most of them an ordering made Relaxed, some a step of the
protocol left out or put too late. Prints a row per weakening with the models that caught it; `rust/das-tree/DESIGN.md`
keeps the result. Status 1 if one that should be caught was not, or an edit no longer fits the source.

    scripts/weaken.py [--preemptions N] [--skip MODEL] [NAME PART ...]
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPY = ROOT / "target" / "weaken"
CRATES = ("das-tree", "das-noise", "das-pages")
TIMEOUT_S = 900


@dataclass(frozen=True)
class Weakening:
    """One place made wrong: in `file`, the only occurrence of `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str


def relaxed(name: str, file: str, line: str) -> Weakening:
    """The ordering on a line made Relaxed."""
    new = re.sub(r"Ordering::(Release|Acquire|AcqRel)", "Ordering::Relaxed", line)
    return Weakening(name, file, line, new)


WEAKENINGS = (
    relaxed("edge: publish", "node.rs", "slot.store(edge.to_bits(), Ordering::Release)"),
    relaxed("edge: load", "node.rs", "slot.load(Ordering::Acquire) // pairs with `publish`"),
    relaxed("suffix link: set", "node.rs", "self.link.store(target, Ordering::Release)"),
    relaxed("suffix link: get", "node.rs", "self.link.load(Ordering::Acquire)"),
    relaxed("node above: set", "node.rs", "self.parent.store(parent, Ordering::Release)"),
    relaxed("node above: get", "node.rs", "self.parent.load(Ordering::Acquire)"),
    relaxed("wide: publish", "node.rs", "node.wide.store(fresh, Ordering::Release)"),
    relaxed("wide: find", "node.rs", "wide.load(Ordering::Acquire); // pairs with `widen`: the block is visible"),
    relaxed("wide: followers", "node.rs", "wide.load(Ordering::Acquire); // pairs with `widen`: the list is visible"),
    relaxed("length: publish", "text.rs", "record.len.store(len, Ordering::Release)"),
    relaxed("length: get", "text.rs", "self.len.load(Ordering::Acquire)"),
    relaxed("active point: set", "text.rs", "self.active.store(active.to_bits(), Ordering::Release)"),
    relaxed("active point: get", "text.rs", "Active::from_bits(self.active.load(Ordering::Acquire))"),
    relaxed("queued flag: set", "index.rs", "        if !record.queued.swap(true, Ordering::AcqRel)"),
    relaxed("queued flag: clear", "index.rs", "record.queued.swap(false, Ordering::AcqRel)"),
    relaxed("work: add", "index.rs", "self.work.fetch_add(1, Ordering::AcqRel) == 0"),
    relaxed("work: subtract", "index.rs", "self.work.fetch_sub(seen, Ordering::AcqRel)"),
    relaxed("queue: push", "index.rs", "id + 1,\n                Ordering::Release,"),
    relaxed("queue: take", "index.rs", "self.queue.swap(NONE, Ordering::Acquire)"),
    relaxed("baton: give", "baton.rs", "now + GIVEN - OFFERED,\n                    Ordering::Release,"),
    Weakening(
        "baton: take",
        "baton.rs",
        ".compare_exchange(from, to, Ordering::Relaxed, Ordering::Acquire)",
        ".compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)",
    ),
    relaxed("last occurrence: note", "node.rs", "self.recent.store(start, Ordering::Release)"),
    relaxed("last occurrence: read", "node.rs", "self.recent.load(Ordering::Acquire)"),
    relaxed("first occurrence: note", "node.rs", "self.position.store(start, Ordering::Release)"),
    relaxed("first occurrence: read", "node.rs", "self.position.load(Ordering::Acquire)"),
    relaxed("top list: set", "node.rs", "self.counts[i].store(count, Ordering::Release)"),
    relaxed("top list: get", "node.rs", "self.counts[i].load(Ordering::Acquire)"),
    relaxed("row: begin to read", "backoff.rs", "version.load(Ordering::Acquire)"),
    relaxed("row: take", "backoff.rs", "version + 1, Ordering::Acquire"),
    relaxed("row: leave", "backoff.rs", "self.head[VERSION].store(version, Ordering::Release)"),
    Weakening("row: fence of the reader", "backoff.rs", "        fence(Ordering::Acquire);", "       "),
    Weakening("row: fence of the writer", "backoff.rs", "        fence(Ordering::Release);", "       "),
    Weakening(
        "a row is not looked at again after it was read",
        "backoff.rs",
        "(version.load(Ordering::Relaxed) == before).then_some(found)",
        "Some(found)",
    ),
    Weakening(
        "a row is read while it is written",
        "backoff.rs",
        "        if before % 2 == 1 {",
        "        if before % 2 == 2 {",
    ),
    Weakening(
        "a row is written by two at once",
        "backoff.rs",
        "        let taken = version.is_multiple_of(2)\n            && self",
        "        let taken = version % 2 == 2\n            || self",
    ),
    Weakening(
        "an append lets another of its sequence in between its tokens",
        "sequence.rs",
        "        state.take_in(tokens, known, taken_in)?;\n        state.running()?.learn(tokens, known);",
        "        drop(state);\n"
        "        let one = |token| self.lock().take_in(token, known, taken_in);\n"
        "        tokens.chunks(1).try_for_each(one)?;\n"
        "        let mut state = self.lock();\n"
        "        state.running()?.learn(tokens, known);",
    ),
    Weakening(
        "a tree is made anew by two threads at once",
        "sync.rs",
        "        let _one_at_a_time = lock(&self.making);\n        if self.value",
        "        let _ = lock(&self.making);\n        if self.value",
    ),
    Weakening(
        "work is announced before it is queued",
        "index.rs",
        "        if !record.queued.swap(true, Ordering::AcqRel) {\n"
        "            self.push_queue(id, record);\n        }\n"
        "        // AcqRel: receives all that the previous indexer wrote, and hands over the push before it.\n"
        "        if self.work.fetch_add(1, Ordering::AcqRel) == 0 {",
        "        let first = self.work.fetch_add(1, Ordering::AcqRel) == 0;\n"
        "        if !record.queued.swap(true, Ordering::AcqRel) {\n"
        "            self.push_queue(id, record);\n        }\n"
        "        if first {",
    ),
    Weakening(
        "an indexer that is relieved forgets the sequence it was at",
        "index.rs",
        "if indexed < len && !record.queued.swap(true, Ordering::AcqRel) {",
        "if indexed > len {",
    ),
    Weakening(
        "an indexer goes on after it gave the index away",
        "index.rs",
        "            if self.baton.is_offered() && self.baton.give() {\n                return false;\n            }",
        "            if self.baton.is_offered() && self.baton.give() {\n                continue;\n            }",
    ),
    Weakening(
        "the indexer leaves without looking again",
        "index.rs",
        "            seen = before - seen;",
        "            self.work.store(0, Ordering::Release);\n            return;",
    ),
    Weakening(
        "the queued flag is cleared after the length was read",
        "index.rs",
        "        record.queued.swap(false, Ordering::AcqRel);\n        let len = record.len();",
        "        let len = record.len();\n        record.queued.swap(false, Ordering::AcqRel);",
    ),
    Weakening(
        "a collision changes the way before it copies the edge",
        "node.rs",
        "            publish(&lower.0[slot_index(there.token, level + 1)], there);\n            publish(\n"
        "                slot,\n                Edge {\n                    token: SUB_BLOCK,\n"
        "                    child: Child::Node(id),\n                },\n            );",
        "            publish(\n                slot,\n                Edge {\n                    token: SUB_BLOCK,\n"
        "                    child: Child::Node(id),\n                },\n            );\n"
        "            publish(&lower.0[slot_index(there.token, level + 1)], there);",
    ),
    Weakening(
        "a node's list is filled after it was published",
        "node.rs",
        "        for slot in &node.edges {\n            let edge = Edge::from_bits(load(slot));\n"
        "            wide.raise(edge.token, self.child_count(edge.child, text));\n        }\n"
        "        node.wide.store(fresh, Ordering::Release); // pairs with `find` and `top`",
        "        node.wide.store(fresh, Ordering::Release); // pairs with `find` and `top`\n"
        "        for slot in &node.edges {\n            let edge = Edge::from_bits(load(slot));\n"
        "            wide.raise(edge.token, self.child_count(edge.child, text));\n        }",
    ),
    Weakening(
        "a split starts the new node's count anew",
        "index.rs",
        "        let count = self.nodes.child_count(child, &self.text);\n        let (first",
        "        let count = 0;\n        let (first",
    ),
    Weakening(
        "a leaf taken over leaves its text's active point alone",
        "index.rs",
        "                        self.reopen(owner, at, depth);\n",
        "                        let _ = owner;\n",
    ),
)


def copy_crate() -> None:
    """A workspace with nothing but das-tree and what it needs, so that the product's own files stay as they are."""
    shutil.rmtree(COPY / "rust", ignore_errors=True)
    # With new times, or cargo would take what an earlier run broke for what is there now.
    for crate in CRATES:
        source, ignored = ROOT / "rust" / crate, shutil.ignore_patterns("fuzz")
        shutil.copytree(source, COPY / "rust" / crate, ignore=ignored, copy_function=shutil.copy)
    manifest = (ROOT / "Cargo.toml").read_text()
    members = json.dumps([f"rust/{crate}" for crate in CRATES])
    (COPY / "Cargo.toml").write_text(re.sub(r"^members = .*$", f"members = {members}", manifest, flags=re.M))
    shutil.copy(ROOT / "Cargo.lock", COPY / "Cargo.lock")


def run_models(preemptions: int, skip: list[str]) -> list[str]:
    """Names of the models that failed; "(build)" or "(time)" when there were no results."""
    environment = os.environ | {
        "RUSTFLAGS": "--cfg loom -Awarnings",
        "CARGO_TARGET_DIR": str(COPY / "target"),
        "CARGO_PROFILE_RELEASE_LTO": "off",
        "LOOM_MAX_PREEMPTIONS": str(preemptions),
    }
    command = ["cargo", "test", "--quiet", "-p", "das-tree", "--release", "--no-fail-fast"]
    command += ["--lib", "--test", "loom", "--"]
    command += [word for model in skip for word in ("--skip", model)]
    try:
        outcome = subprocess.run(
            command, cwd=COPY, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return ["(time)"]
    failed = re.findall(r"^failures:\n((?:    \S+\n)+)", outcome.stdout, flags=re.M)
    models = [model for models in failed for model in models.split()]
    if outcome.returncode and not models:
        return ["(build)" if "error: could not compile" in outcome.stderr else "(abort)"]
    return models


def weaken(weakening: Weakening) -> bool:
    """Apply it to the copy; whether it fits."""
    file = COPY / "rust" / "das-tree" / "src" / weakening.file
    text = file.read_text()
    if text.count(weakening.old) != 1 or weakening.old == weakening.new:
        return False
    file.write_text(text.replace(weakening.old, weakening.new))
    return True


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preemptions", type=int, default=2, metavar="N", help="bound on preemptions (default 2)")
    parser.add_argument(
        "names", nargs="*", metavar="NAME PART", help="only weakenings whose name contains one of these"
    )
    parser.add_argument("--skip", action="append", default=[], metavar="MODEL", help="leave a model out")
    options = parser.parse_args()
    chosen = [one for one in WEAKENINGS if not options.names or any(part in one.name for part in options.names)]
    COPY.mkdir(parents=True, exist_ok=True)
    copy_crate()
    if failed := run_models(options.preemptions, options.skip):
        print(f"unchanged, {', '.join(failed)} fails", file=sys.stderr)
        return 1
    missed = 0
    for weakening in chosen:
        copy_crate()
        caught = (
            run_models(options.preemptions, options.skip)
            if weaken(weakening)
            else ["(the edit does not fit the source)"]
        )
        missed += not caught or caught[0].startswith("(the") or caught == ["(build)"]
        print(f"| {weakening.name} | {', '.join(caught) or 'nothing'} |", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
