"""`das demo` with stub servers and made-up prompts instead of SGLang, for tests.

Usage: stub_demo.py FOLDER KINDS das-demo-options... KINDS are those of stub_server.py, one per arm, with commas.
"""

import sys
from pathlib import Path

from sglang_das import cli
from sglang_das.demo import arms, run, server
from sglang_das.demo.tasks import Prompt

STUB = Path(__file__).with_name("stub_server.py")


def main(folder: str, kinds: str, *options: str) -> int:
    server.STOP_PATIENCE_S = 1.0
    kind_of = dict(zip(arms.KNOWN, kinds.split(","), strict=False))
    run.ensure_model = lambda say: Path(folder)
    run.make_prompts = lambda tasks, count, model, seed: [Prompt("made-up", [number, 5, 6]) for number in range(count)]
    run.detect_engine = lambda threads: server.Engine("cpu", [])
    run.server_command = lambda arm, *_, port, **__: [sys.executable, str(STUB), str(port), folder, kind_of[arm]]
    return cli.main(["demo", *options])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
