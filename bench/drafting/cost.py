"""Times engine steps on one core: `python -m bench.drafting.cost FILE NODES DRAFTERS`.

A step takes in what 64 requests emitted, drafts for each, and packs the drafts into arrays: one call of
`sglang_das.step`. Prints a JSON object: milliseconds of a step by drafter, the median over the steps with all 64. The
process has one core and its CPU time is taken, so that what else the machine does counts little.
"""

import json
import os
import sys
import time
from pathlib import Path

REQUESTS = 64


def main() -> None:
    """Measures the drafters on the recording."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before anything starts threads
    import numpy as np
    from sglang_das.replay.jobs import Job, Setup, run

    path, nodes, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
    setup = Setup([str(path)], slots=REQUESTS)
    trace = setup.read()
    costs = {}
    for name in names:
        (played,) = run([Job(name, nodes)], trace, setup, lambda tokens: None, time.process_time)
        full = (played.requests == REQUESTS) & (played.epoch > 0)
        if full.any():
            costs[name] = float(1e3 * np.median(played.draft_seconds[full]))
    print(json.dumps(costs))


if __name__ == "__main__":
    main()
