"""The report as one HTML page that needs nothing else: figures, plots, a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .compare import ABOUT
from .jobs import POLICY
from .plots import Series, bars, colour, lines
from .report import best_peer, shown

Row = dict[str, Any]
Content = dict[str, Any]

_STYLE = """
:root { --ink: #1d2733; --soft: #5b6776; --rule: #dde3ea; --paper: #ffffff; --ground: #f4f6f9; --accent: #00798c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf1; --soft: #9aa7b6; --rule: #2f3a47; --paper: #19212b; --ground: #10161d; --accent: #3fb6c9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 32px 24px 48px; }
h1 { margin: 0 0 4px; font-size: 28px; letter-spacing: -0.01em; }
h2 { margin: 36px 0 12px; font-size: 19px; }
h3 { margin: 0; font-size: 15px; }
p { margin: 4px 0; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; margin-top: 20px; }
.card, figure { background: var(--paper); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; }
.card b { display: block; font-size: 27px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card .gain { color: var(--accent); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 16px; }
figure { margin: 0; }
figcaption p { font-size: 13px; min-height: 2.9em; }
svg { width: 100%; height: auto; display: block; margin-top: 6px; }
svg text { fill: var(--soft); font-size: 12px; } svg .axis { fill: var(--ink); font-size: 12.5px; }
svg .grid { stroke: var(--rule); } svg .guide { stroke: var(--soft); stroke-dasharray: 5 4; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 12px 0; font-size: 14px; }
.legend small { color: var(--soft); margin-left: 6px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; }
.tabs input { position: absolute; opacity: 0; }
.tabs label { display: inline-block; padding: 5px 15px; margin: 0 6px 12px 0; border: 1px solid var(--rule);
  border-radius: 999px; background: var(--paper); cursor: pointer; }
.tabs input:checked + label { background: var(--accent); border-color: var(--accent); color: var(--paper); }
.tabs input:focus-visible + label { outline: 2px solid var(--ink); }
.panel { display: none; }
.table { overflow-x: auto; background: var(--paper); border: 1px solid var(--rule); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 6px 14px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } td:nth-child(2), th:nth-child(2) { text-align: left; }
tr:last-child td { border-bottom: 0; } tr.first td { border-top: 2px solid var(--rule); }
footer { margin-top: 28px; font-size: 13px; } footer p { font-size: 13px; }
"""


def render(content: Content) -> str:
    """The page for what `report.content` gives."""
    rows = shown(content["results"])
    names = list(dict.fromkeys(row["drafter"] for row in rows))
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    body = [
        _header(content["trace"]),
        _cards(rows),
        "<h2>All budgets</h2>",
        _legend(names),
        f'<div class="plots">{_tokens_per_step(rows, names, budgets)}{_makespan(rows, names, budgets)}</div>',
        "<h2>At one budget</h2>",
        _tabs([(str(budget), _panel([row for row in rows if row["budget"] == budget], names)) for budget in budgets]),
        "<h2>Figures</h2>",
        _table(rows),
        _footer(content),
    ]
    title = f"Replay: {', '.join(Path(name).name for name in content['trace']['files'])}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _header(trace: Row) -> str:
    files = ", ".join(Path(name).name for name in trace["files"])
    known = "with" if trace["distributions"] else "without"
    history = f", {trace['history_rollouts']} more as history" if trace["history_rollouts"] else ""
    return (
        f"<h1>Replay of {escape(files)}</h1><p>{trace['rollouts']:,} rollouts of {trace['problems']} problems in "
        f"{trace['epochs']} epochs{history}; {trace['tokens']:,} tokens, the longest rollout {trace['longest']:,}. "
        f"{trace['seeded']:.0%} have a seed; recorded {known} the target's distributions. "
        f"What follows counts the epochs {escape(trace['counted_epochs'])}.</p>"
    )


def _cards(rows: list[Row]) -> str:
    """A card for each budget: ours, if it was played, and how it compares."""
    cards = []
    for budget in dict.fromkeys(row["budget"] for row in rows):
        of_budget = [row for row in rows if row["budget"] == budget]
        ours = [row for row in of_budget if row["drafter"] == "das"]
        best = max(ours or of_budget, key=lambda row: float(row["tokens_per_step"]))
        head, figure, foot = _policy_card(best) if budget == POLICY else _budget_card(best, rows)
        cards.append(f'<div class="card"><p>{escape(head)}</p><b>{figure}</b><p>{foot}</p></div>')
    return f'<div class="cards">{"".join(cards)}</div>'


def _budget_card(row: Row, rows: list[Row]) -> tuple[str, str, str]:
    peer = best_peer(row, rows)
    gain = ""
    if peer:
        change = row["tokens_per_step"] / peer["tokens_per_step"] - 1
        gain = f'<span class="gain">{change:+.1%}</span> against {escape(peer["drafter"])}'
    return f"{row['drafter']}, {row['budget']} drafts", f"{row['tokens_per_step']:.2f}", f"tokens per step {gain}"


def _policy_card(row: Row) -> tuple[str, str, str]:
    change = f"{row['makespan_ratio'] - 1:+.1%}"
    return f"{row['drafter']}, by the policy", change, f"makespan, at {row['tokens_per_step']:.2f} tokens per step"


def _legend(names: Sequence[str]) -> str:
    def entry(name: str) -> str:
        patch = f'<i style="background:{colour(name, names)}"></i>'
        return f"<span>{patch}{escape(name)}<small>{escape(ABOUT[name])}</small></span>"

    return f'<div class="legend">{"".join(map(entry, names))}</div>'


def _figure(key: str, title: str, caption: str, plot: str) -> str:
    return (
        f'<figure data-plot="{key}"><figcaption><h3>{escape(title)}</h3><p>{escape(caption)}</p></figcaption>'
        f"{plot}</figure>"
    )


def _over_budgets(
    rows: list[Row], names: Sequence[str], budgets: Sequence[int | str], key: str, form: str
) -> list[Series]:
    return [
        Series(
            name,
            [
                (budgets.index(row["budget"]), row[key], f"{name}, {row['budget']}: {row[key]:{form}}")
                for row in rows
                if row["drafter"] == name and row["budget"] in budgets
            ],
        )
        for name in names
    ]


def _tokens_per_step(rows: list[Row], names: Sequence[str], budgets: Sequence[int | str]) -> str:
    fixed = [budget for budget in budgets if budget != POLICY]
    series = _over_budgets(rows, names, fixed, "tokens_per_step", ".3f")
    plot = lines(series, names, "most drafts per request and step", "tokens per step", [str(b) for b in fixed])
    caption = "Tokens a request emits in a verify step: accepted drafts, and one more. Plain decoding has 1."
    return _figure("budget", "Tokens per step against draft budget", caption, plot)


def _makespan(rows: list[Row], names: Sequence[str], budgets: Sequence[int | str]) -> str:
    series = _over_budgets(rows, names, budgets, "makespan_ratio", ".3f")
    plot = bars(series, names, "drafts per request and step", "of plain decoding", [str(b) for b in budgets], mark=1.0)
    caption = "Time until the last rollout of each epoch has ended, under the latency model. Below 1 is faster."
    return _figure("makespan", "Makespan", caption, plot)


def _tabs(panels: Sequence[tuple[str, str]]) -> str:
    """One panel at a time, chosen without a script."""
    shown_first = len(panels) // 3
    rules = "".join(f"#tab{i}:checked ~ #panel{i} {{ display: block; }}" for i in range(len(panels)))
    buttons = "".join(
        f'<input type="radio" name="tab" id="tab{i}"{" checked" * (i == shown_first)}>'
        f'<label for="tab{i}">{escape(name if name == POLICY else f"{name} drafts")}</label>'
        for i, (name, _) in enumerate(panels)
    )
    bodies = "".join(f'<div class="panel" id="panel{i}">{body}</div>' for i, (_, body) in enumerate(panels))
    return f'<div class="tabs"><style>{rules}</style>{buttons}{bodies}</div>'


def _panel(rows: list[Row], names: Sequence[str]) -> str:
    groups: list[tuple[str, str, str, str, Callable[..., str]]] = [
        ("by_match_length", "By match length", "Longest suffix of the rollout so far that it or an earlier one of its "
         "problem contains too.", "tokens matched", lines),
        ("by_position", "By position in the rollout", "Where the step begins.", "tokens generated", lines),
        ("by_length_class", "By length of the rollout", "Rollouts in the shortest and longest fifth, and the others.",
         "tokens of the rollout", bars),
        ("by_epoch", "By epoch", "The history grows from epoch to epoch.", "epoch", lines),
    ]  # fmt: skip
    plots = [_reliability(rows, names), _depth(rows, names)]
    for key, title, caption, axis, chart in groups:
        series, labels = _grouped(rows, key)
        plots.append(_figure(key, title, caption, chart(series, names, axis, "tokens per step", labels)))
    return f'<div class="plots">{"".join(plots)}</div>'


def _grouped(rows: list[Row], key: str) -> tuple[list[Series], list[str]]:
    labels = list(dict.fromkeys(group["group"] for row in rows for group in row[key]))
    labels.sort(key=lambda label: min(i for row in rows for i, g in enumerate(row[key]) if g["group"] == label))
    series = []
    for row in rows:
        points = [
            (
                labels.index(group["group"]),
                group["tokens_per_step"],
                f"{row['drafter']}, {group['group']}: {group['tokens_per_step']:.3f} in {group['steps']:,} steps",
            )
            for group in row[key]
        ]
        series.append(Series(row["drafter"], sorted(points)))
    return series, labels


def _reliability(rows: list[Row], names: Sequence[str]) -> str:
    series = []
    for row in rows:
        if row["reliability"]:
            points = [
                (
                    group["promised"],
                    group["kept"],
                    f"{row['drafter']}: promised {group['promised']:.3f}, kept {group['kept']:.3f} "
                    f"of {group['nodes']:,} nodes",
                )
                for group in row["reliability"]
            ]
            series.append(Series(row["drafter"], points))
    plot = lines(series, names, "promised probability of a drafted path", "share accepted", diagonal=True)
    errors = ", ".join(f"{row['drafter']} {row['ece']:.3f}" for row in rows if row["ece"] is not None)
    caption = f"On the diagonal a promise of 0.7 means 0.7. Expected calibration error: {errors or 'none promises'}."
    return _figure("reliability", "Reliability of the probabilities", caption, plot)


_DEEPEST = 12


def _depth(rows: list[Row], names: Sequence[str]) -> str:
    series = [
        Series(
            row["drafter"],
            [
                (
                    group["depth"] - 1,
                    group["share_of_steps"],
                    f"{row['drafter']}, depth {group['depth']}: {group['share_of_steps']:.3f}",
                )
                for group in row["by_depth"]
                if group["depth"] <= _DEEPEST
            ],
        )
        for row in rows
    ]
    depth = max((int(x) + 1 for line in series for x, _, _ in line.points), default=1)
    labels = [str(d) for d in range(1, depth + 1)]
    plot = lines(series, names, "depth in the draft", "share of steps", labels, from_zero=True)
    return _figure("depth", "By depth in the draft", "In which share of the steps a draft was accepted so far.", plot)


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("budget", lambda row: str(row["budget"])),
    ("drafter", lambda row: f"{row['drafter']} ({row['match_type']})" if "match_type" in row else row["drafter"]),
    ("nodes/step", lambda row: f"{row['nodes'] / max(row['steps'], 1):.2f}"),
    ("tokens/step", lambda row: f"{row['tokens_per_step']:.3f}"),
    ("accepted", lambda row: f"{row['accepted'] / row['nodes']:.1%}" if row["nodes"] else "-"),
    ("ECE", lambda row: "-" if row["ece"] is None else f"{row['ece']:.3f}"),
    ("draft µs p50", lambda row: f"{row['draft_us_p50']:.1f}"),
    ("p99", lambda row: f"{row['draft_us_p99']:.1f}"),
    ("makespan s", lambda row: f"{row['makespan_s']:.1f}"),
    ("of plain", lambda row: f"{row['makespan_ratio']:.3f}"),
)


def _table(rows: list[Row]) -> str:
    lines_ = []
    for row, before in zip(rows, [None, *rows], strict=False):
        kind = ' class="first"' if before is not None and before["budget"] != row["budget"] else ""
        lines_.append(f"<tr{kind}>{''.join(f'<td>{escape(cell(row))}</td>' for _, cell in _COLUMNS)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in _COLUMNS)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines_)}</tbody></table></div>'


def _footer(content: Content) -> str:
    machine, settings = content["machine"], content["settings"]
    latency = settings["latency"]
    left_out = "".join(
        f"<p>{escape(name)} was left out: {escape(why)}.</p>" for name, why in settings["left_out"].items()
    )
    return (
        f"<footer>{left_out}<p>{settings['slots']} requests at a time. A verify step takes {latency['base']} s + "
        f"{latency['per_request']} s per request + {latency['per_row']} s per row; the rows of a step are its requests "
        f"times the widest draft and one. Drafting times are per request, measured on {escape(machine['cpu'])}, "
        f"{machine['cores']} cores, and include learning what was emitted.</p>"
        f"<p>A live server also learns from drafted nodes that were not kept; a recording does not have them.</p>"
        f"<p>sglang-das {escape(str(machine['versions']['sglang-das']))}, Python "
        f"{escape(machine['versions']['python'])}.</p></footer>"
    )
