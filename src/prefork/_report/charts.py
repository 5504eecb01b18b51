"""Drawings, as SVG. Each stands by itself: what it shows is told in words, or in a table, too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from prefork._report.spread import Bar
from prefork._report.words import count, escape

__all__ = ["WIDTH", "Mark", "Strip", "area", "gantt", "histogram"]

WIDTH: Final = 1000
LEFT: Final = 90  # of it, for the names of the rows
ROW: Final = 20
HEIGHT: Final = 160
GRADES: Final = 4
"""Of how busy a worker was."""
LEAST_SHOWN: Final = 0.02
NARROWEST: Final = 1.0  # mark


class Mark(NamedTuple):
    """A run in a strip: from where to where, as shares of the whole."""

    start: float
    end: float
    text: str
    has_failed: bool


class Strip(NamedTuple):
    """A row of the Gantt chart.

    Attributes:
        busy: for each bin, how much of it; [] if all runs are marks.
        failures: for each bin, how many.
    """

    name: str
    busy: Sequence[float]
    failures: Sequence[int]
    marks: Sequence[Mark]


def gantt(strips: Sequence[Strip], seconds: float, tell: Callable[[float], str]) -> str:
    """One row for each worker, with a ruler of so many seconds below."""
    height = len(strips) * ROW
    parts = []
    for number, strip in enumerate(strips):
        parts.append(_row(strip, number * ROW))
    parts.append(_ruler(seconds, height, tell))
    label = "What each worker did when. Arrow keys go from run to run."
    return _svg(label, height + 24, parts, 'id="gantt" tabindex="0" role="application"')


def _row(strip: Strip, top: float) -> str:
    middle = top + ROW / 2
    parts = [
        f'<text x="{LEFT - 8}" y="{middle + 4:g}" class="end">{escape(strip.name)}</text>'
        f'<path class="rail" d="M{LEFT} {middle:g}H{WIDTH}"/>'
    ]
    if strip.busy:
        scale = (WIDTH - LEFT) / len(strip.busy)
        parts.append(f'<g transform="translate({LEFT} {middle:g}) scale({scale:.5g} 1)">')
        parts += _shades(strip.busy)
        parts.append("</g>")
    parts.append("<g>")
    for mark in strip.marks:
        x, end = _across(mark.start), _across(mark.end)
        width = max(NARROWEST, end - x)
        style = ' class="bad"' if mark.has_failed else ""
        parts.append(
            f'<rect x="{x:.2f}" y="{top + 3:g}" width="{width:.2f}" height="{ROW - 6}"{style}>'
            f"<title>{escape(mark.text)}</title></rect>"
        )
    parts.append("</g>")
    failed = [at for at, number in enumerate(strip.failures) if number]
    if failed:
        scale = 1 / len(strip.failures)
        ticks = "".join(
            f"M{_across((at + 0.5) * scale):.1f} {top + ROW - 1:g}l-3 -5h6z" for at in failed
        )
        parts.append(f'<path class="failure" d="{ticks}"/>')
    return "".join(parts)


def _shades(busy: Sequence[float]) -> Iterable[str]:
    """A path for each grade, in units of bins."""
    paths: dict[int, list[str]] = {}
    ends: dict[int, int] = {}
    position = 0
    for grade, group in groupby(busy, _grade):
        length = len(list(group))
        if grade:
            step = position - ends.get(grade, 0)
            paths.setdefault(grade, []).append(f"m{step} 0h{length}")
            ends[grade] = position + length
        position += length
    for grade, path in sorted(paths.items()):
        yield f'<path class="busy g{grade}" d="M0 0{"".join(path)}"/>'


def _grade(share: float) -> int:
    return 0 if share < LEAST_SHOWN else min(GRADES, 1 + int(share * GRADES))


def _across(share: float) -> float:
    return LEFT + min(1.0, max(0.0, share)) * (WIDTH - LEFT)


def _ruler(seconds: float, top: float, tell: Callable[[float], str]) -> str:
    step = _step(seconds)
    parts = []
    for number in range(int(seconds / step + 1e-9) + 1 if seconds > 0 else 1):
        x = _across(number * step / seconds if seconds > 0 else 0.0)
        anchor = "end" if x > WIDTH - 40 else "middle" if number else "start"
        parts.append(
            f'<path class="grid" d="M{x:.1f} 0V{top + 4:g}"/>'
            f'<text x="{x:.1f}" y="{top + 18:g}" class="{anchor}">{tell(number * step)}</text>'
        )
    return "".join(parts)


def _step(most: float, about: int = 8) -> float:
    """Between two lines of a grid."""
    if most <= 0:
        return 1.0
    rough = most / about
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * each for each in (1, 2, 5, 10) if power * each >= rough * 0.999)


def area(
    label: str,
    series: Sequence[tuple[str, Sequence[float]]],
    seconds: float,
    tell: Callable[[float], str],
    tell_time: Callable[[float], str],
) -> str:
    """Something over time: the first of the series behind the others.

    Args:
        series: names and values, one for each bin.
    """
    most = max((max(values, default=0.0) for _, values in series), default=0.0)
    parts = [_scale(most, tell), _ruler(seconds, HEIGHT, tell_time)]
    for number, (_, values) in enumerate(series):
        step = (WIDTH - LEFT) / max(1, len(values))
        path = [f"M{LEFT} {HEIGHT}"]
        before = None
        for at, value in enumerate(values):
            y = HEIGHT - (value / most if most else 0.0) * (HEIGHT - 10)
            if y != before:
                path.append(f"H{LEFT + at * step:.1f}V{y:.1f}")
            before = y
        path.append(f"H{WIDTH}V{HEIGHT}z")
        parts.append(f'<path class="area a{number}" d="{"".join(path)}"/>')
    return _svg(label, HEIGHT + 24, parts)


def histogram(label: str, bars: Sequence[Bar], tell: Callable[[float], str]) -> str:
    """How many took how long; the scale of the lengths is logarithmic."""
    most = max((bar.number for bar in bars), default=0)
    parts = [_scale(most, lambda value: count(round(value)))]
    width = (WIDTH - LEFT) / max(1, len(bars))
    every = max(1, math.ceil(len(bars) / 9))
    for number, bar in enumerate(bars):
        x = LEFT + number * width
        height = bar.number / most * (HEIGHT - 10)
        text = f"{count(bar.number)} took {tell(bar.least)} to {tell(bar.most)}"
        parts.append(
            f'<rect class="bar" x="{x + 1:.1f}" y="{HEIGHT - height:.1f}" '
            f'width="{max(1.0, width - 2):.1f}" height="{height:.1f}">'
            f"<title>{text}</title></rect>"
        )
        if number % every == 0:
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT + 18}">{tell(bar.least)}</text>')
    return _svg(label, HEIGHT + 24, parts)


def _scale(most: float, tell: Callable[[float], str]) -> str:
    parts = [f'<path class="grid" d="M{LEFT} {HEIGHT}H{WIDTH}"/>']
    for share in (0.5, 1.0):
        y = HEIGHT - share * (HEIGHT - 10)
        text = tell(most * share)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y:g}H{WIDTH}"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:g}" class="end">{escape(text)}</text>'
        )
    return "".join(parts)


def _svg(label: str, height: float, parts: Iterable[str], more: str = 'role="img"') -> str:
    return (
        f'<svg {more} aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {height:g}">'
        f"{''.join(parts)}</svg>"
    )
