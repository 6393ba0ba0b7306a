"""The results: a table for people, a JSON file, a plot."""

import json
from pathlib import Path
from typing import Any

from sglang_das import machine

from . import data, peers, structures, worker

Row = dict[str, Any]

_COLUMNS = {
    "drafts": (
        ("append_ns_per_token", "append ns/token", "{:.0f}"),
        ("append_cpu_ns_per_token", "CPU ns/token", "{:.0f}"),
        ("bytes_per_token", "bytes/token", "{:.0f}"),
        ("draft_us_p50", "draft us p50", "{:.1f}"),
        ("draft_us_p99", "draft us p99", "{:.1f}"),
        ("step64_ms", "step 64 ms", "{:.2f}"),
        ("step256_ms", "step 256 ms", "{:.2f}"),
    ),
    "expiry": (
        ("expire_ms", "expiry ms", "{:.1f}"),
        ("returned_bytes_per_token", "bytes back/token", "{:.0f}"),
        ("alone_us_p99", "p99 us before", "{:.1f}"),
        ("draft_us_p99", "draft us p99", "{:.1f}"),
        ("alone_us_max", "max us before", "{:.0f}"),
        ("draft_us_max", "draft us max", "{:.0f}"),
        ("alone_kept_us_max", "kept us before", "{:.0f}"),
        ("draft_kept_us_max", "kept draft us max", "{:.0f}"),
        ("append_kept_us_max", "kept append max", "{:.0f}"),
    ),
    "snapshot": (
        ("save_ms", "save ms", "{:.0f}"),
        ("load_ms", "load ms", "{:.0f}"),
        ("file_bytes_per_token", "bytes/token", "{:.1f}"),
    ),
}
_PLOTTED = tuple(_COLUMNS["drafts"][i] for i in (1, 2, 4, 5))


def title(case: str, threads: int) -> str:
    """What a kind of case is called."""
    return {"expiry": "expiry beside drafts", "snapshot": "saving and loading"}.get(
        case, f"{threads} thread{'s' * (threads > 1)}"
    )


def show(results: list[Row]) -> None:
    """Print the results, a block per kind of case."""
    for case, threads in dict.fromkeys((row["case"], row["threads"]) for row in results):
        rows = [row for row in results if (row["case"], row["threads"]) == (case, threads)]
        columns = _COLUMNS[case]
        print(f"\n{title(case, threads)}")
        print(f"{'data':<16}{'tokens':>10}  {'structure':<12}" + "".join(f"{name:>18}" for _, name, _ in columns))
        for row in sorted(rows, key=lambda row: (data.KINDS.index(row["data"]), row["tokens"])):
            cells = (form.format(row[key]) for key, _, form in columns)
            line = f"{row['data']:<16}{row['tokens']:>10}  {row['structure']:<12}"
            print(line + "".join(f"{cell:>18}" for cell in cells))


def write(file: Path, results: list[Row], left_out: list[Row], note: str | None) -> None:
    """Write machine, settings and results. The note says what a reader should know of the run."""
    settings = {
        "draft_nodes": structures.DRAFT,
        "step_tokens": worker.STEP_TOKENS,
        "drafters": worker.DRAFTERS,
        "draft_steps": worker.DRAFT_STEPS,
        "steps": worker.BATCHES,
        "live_requests": data.LIVE,
        "vocabulary": data.VOCABULARY,
        "rollout_tokens": data.ROLLOUT_TOKENS,
        "rollouts_per_problem": data.GROUP,
        "noise": data.NOISE,
        "peers": peers.versions(),
        "left_out": left_out,
        "note": note,
    }
    content = {"machine": machine.describe(), "settings": settings, "results": results}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")


def plot(file: Path, results: list[Row]) -> None:
    """Draw the single-threaded results: a row of panels per kind of data, a panel per figure, over the tokens stored.

    Raises RuntimeError if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError("--plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [row for row in results if (row["case"], row["threads"]) == ("drafts", 1)]
    kinds = [kind for kind in data.KINDS if any(row["data"] == kind for row in rows)]
    figure, panels = pyplot.subplots(
        len(kinds), len(_PLOTTED), figsize=(4 * len(_PLOTTED), 3 * len(kinds)), squeeze=False, sharex=True
    )
    for kind, line in zip(kinds, panels, strict=True):
        for (key, name, _), panel in zip(_PLOTTED, line, strict=True):
            for structure in dict.fromkeys(row["structure"] for row in rows):
                points = sorted(
                    (row["tokens"], row[key]) for row in rows if row["data"] == kind and row["structure"] == structure
                )
                if points:
                    panel.plot(*zip(*points, strict=True), marker="o", label=structure)
            panel.set(xscale="log", yscale="log", title=f"{kind}: {name}")
            panel.grid(visible=True, which="both", alpha=0.2)
    for panel in panels[-1]:
        panel.set_xlabel("tokens stored")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=len(labels))
    figure.suptitle(machine.describe()["cpu"], x=0.02, ha="left")
    figure.tight_layout()
    figure.savefig(file)
