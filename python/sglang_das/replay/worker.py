"""Plays the drafters of one package in a process of its own: `python -m sglang_das.replay.worker FOLDER`, started by
`jobs.run_apart`.
"""

import sys
from pathlib import Path

from . import jobs


def main() -> None:
    """Does the jobs of the folder and leaves a file there for each; prints how many tokens were played."""
    folder = Path(sys.argv[1])
    todo, setup = jobs.from_folder(folder)

    def tick(tokens: int) -> None:
        print(f"+{tokens}", flush=True)

    for number, played in enumerate(jobs.run(todo, setup.read(), setup, tick)):
        played.save(folder / f"{number}.npz")


if __name__ == "__main__":
    main()
