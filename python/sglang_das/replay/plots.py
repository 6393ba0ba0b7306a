"""Small charts as SVG text: lines over named places, lines over numbers, groups of bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 560, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 14, 50
_COLOURS = ("#00798c", "#d1495b", "#edae49", "#8f5fbf", "#3d5a80", "#66a182", "#b56576", "#6c757d")


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour."""

    name: str
    points: Sequence[tuple[float, float, str]]
    """Place on the x axis, value, and what a pointer over it is told."""


def colour(name: str, names: Sequence[str]) -> str:
    """The colour of a name among all names of a page."""
    return _COLOURS[list(names).index(name) % len(_COLOURS)]


def lines(
    series: Sequence[Series],
    names: Sequence[str],
    x_title: str,
    y_title: str,
    labels: Sequence[str] | None = None,
    *,
    from_zero: bool = False,
    diagonal: bool = False,
) -> str:
    """Lines through points. With `labels`, x is the place in that list, otherwise a number from 0 to 1."""
    values = [y for line in series for _, y, _ in line.points]
    axes = _Axes(
        ticks([0.0, *values] if from_zero else values, diagonal), (0, len(labels) - 1) if labels else (0.0, 1.0), 28
    )
    places = list(enumerate(labels)) if labels else [(i / 5, f"{i / 5:.1f}") for i in range(6)]
    parts = [axes.frame(x_title, y_title, places)]
    if diagonal:
        parts.append(_line((axes.x(0), axes.y(0)), (axes.x(1), axes.y(1)), "guide"))
    for line in series:
        paint = colour(line.name, names)
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y, _ in line.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{paint}" stroke-width="2.2"/>')
        parts += [
            f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="4" fill="{paint}">'
            f"<title>{escape(note)}</title></circle>"
            for x, y, note in line.points
        ]
    return _svg(parts)


def bars(
    series: Sequence[Series], names: Sequence[str], x_title: str, y_title: str, labels: Sequence[str], mark: float = 0.0
) -> str:
    """A group of bars at every label, a bar for each series; a guide line at `mark`."""
    values = [0.0, mark, *(y for line in series for _, y, _ in line.points)]
    axes = _Axes(ticks(values), (-0.5, len(labels) - 0.5), 0)
    parts = [axes.frame(x_title, y_title, list(enumerate(labels)))]
    room = (axes.x(1) - axes.x(0)) * 0.78
    width = min(room / max(len(series), 1), 46.0)
    for number, line in enumerate(series):
        paint = colour(line.name, names)
        for x, y, note in line.points:
            left = axes.x(x) + (number - len(series) / 2) * width
            parts.append(
                f'<rect x="{left:.1f}" y="{axes.y(y):.1f}" width="{max(width - 2, 1):.1f}" '
                f'height="{axes.y(0) - axes.y(y):.1f}" rx="2" fill="{paint}"><title>{escape(note)}</title></rect>'
            )
    if mark:
        parts.append(_line((_LEFT, axes.y(mark)), (_WIDTH - _RIGHT, axes.y(mark)), "guide"))
    return _svg(parts)


def ticks(values: Sequence[float], unit: bool = False) -> list[float]:
    """Round numbers that span the values; of the unit interval if asked."""
    if unit:
        return [i / 5 for i in range(6)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high <= low:
        high = low + 1.0
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


class _Axes:
    """Maps values to places in the picture."""

    def __init__(self, y_ticks: list[float], x_range: tuple[float, float], margin: float) -> None:
        self._y_ticks, self._x_range, self._margin = y_ticks, x_range, margin

    def x(self, value: float) -> float:
        first, last = self._x_range
        inner = _WIDTH - _LEFT - _RIGHT - 2 * self._margin
        share = (value - first) / (last - first) if last > first else 0.5
        return _LEFT + self._margin + inner * share

    def y(self, value: float) -> float:
        low, high = self._y_ticks[0], self._y_ticks[-1]
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)

    def frame(self, x_title: str, y_title: str, places: Sequence[tuple[float, str]]) -> str:
        """Grid, numbers and titles."""
        digits = max(0, -math.floor(math.log10(self._y_ticks[1] - self._y_ticks[0]) + 1e-9))
        parts = []
        for tick in self._y_ticks:
            parts.append(_line((_LEFT, self.y(tick)), (_WIDTH - _RIGHT, self.y(tick)), "grid"))
            parts.append(_text(_LEFT - 8, self.y(tick) + 4, f"{tick:.{digits}f}", "end"))
        for place, label in places:
            parts.append(_text(self.x(place), _HEIGHT - _BOTTOM + 18, label, "middle"))
        middle = (_TOP + _HEIGHT - _BOTTOM) / 2
        parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, x_title, "middle", "axis"))
        parts.append(
            f'<text x="14" y="{middle:.1f}" text-anchor="middle" class="axis" '
            f'transform="rotate(-90 14 {middle:.1f})">{escape(y_title)}</text>'
        )
        return "".join(parts)


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'


def _line(begin: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    return f'<line x1="{begin[0]:.1f}" y1="{begin[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" class="{kind}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'
