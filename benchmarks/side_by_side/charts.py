"""A run's charts, as SVG: one for each topic."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.side_by_side.peers import PEERS, REFERENCE
from benchmarks.side_by_side.report import quantity
from benchmarks.side_by_side.summary import Figure, Run


class Panel(NamedTuple):
    """Bars for one metric of one workload."""

    workload: str
    metric: str
    title: str


CHARTS = {
    "Short calls": (
        "calls",
        "Time per call, 2 workers",
        [
            Panel("apply_async", "wall", "many apply_async"),
            Panel("apply", "p50", "one apply after another"),
            Panel("imap", "wall", "imap, chunksize 1"),
            Panel("map", "wall", "map, default chunks"),
        ],
    ),
    "By other interfaces": (
        "faces",
        "Time per call, 2 workers",
        [
            Panel("futures", "wall", "many executor.submit"),
            Panel("gathered", "wall", "many await, gathered"),
            Panel("joblib", "wall", "joblib, 50 µs of CPU, first call"),
            Panel("joblib_again", "wall", "joblib, 50 µs of CPU, second call"),
        ],
    ),
    "Large objects, and many": (
        "payloads",
        "Time per transfer, or for all of it",
        [
            Panel("array_there", "wall", "64 MiB array there"),
            Panel("array_back", "wall", "64 MiB array there and back"),
            Panel("constant", "wall", "64 MiB for 50 tasks, map(partial)"),
            Panel("shared", "wall", "64 MiB for 50 tasks, shared"),
            Panel("frames", "wall", "DataFrame of 1,000 rows"),
            Panel("dicts", "wall", "small dict, map"),
        ],
    ),
    "The pool's own costs": (
        "pools",
        "The pool's own costs",
        [
            Panel("start_2_fork", "wall", "start, 2 workers, fork"),
            Panel("start_16_large", "wall", "start, 16 workers, in 4 GiB"),
            Panel("one_task", "wall", "a worker for each task"),
            Panel("idle_memory_fork", "bytes", "memory of an idle worker, fork"),
        ],
    ),
}
"""By topic: the file, its title, and what is in it."""

OURS, OTHERS, FLOOR = "#c2410c", "#64748b", "#cbd5e1"


def draw(run: Run, topic: str, folder: Path) -> Path | None:
    """The chart of a topic; None: the run has nothing for it."""
    import matplotlib

    matplotlib.use("svg")
    # The same data make the same file, with its text as text.
    matplotlib.rcParams.update(
        {"svg.hashsalt": "prefork", "svg.fonttype": "none", "font.size": 8, "axes.titlesize": 9}
    )
    if topic not in CHARTS:
        return None
    name, title, panels = CHARTS[topic]
    if not (panels := [panel for panel in panels if _bars(run, panel)]):
        return None
    path = folder / f"benchmarks-{name}.svg"
    _draw(run, f"{title} (lower is better; logarithmic)", panels, path)
    return path


def _bars(run: Run, panel: Panel) -> list[tuple[str, Figure]]:
    """Who is in a panel: the pools in their order, then the floors."""
    names = run.contenders(panel.workload)
    pools = [name for name in PEERS if name in names]
    floors = [name for name in names if name not in PEERS]
    found = [(name, run.figure(panel.workload, name, panel.metric)) for name in [*pools, *floors]]
    return [(name, figure) for name, figure in found if figure is not None]


def _draw(run: Run, title: str, panels: Sequence[Panel], path: Path) -> None:
    from matplotlib import pyplot

    rows = -(-len(panels) // 2)
    figure, grid = pyplot.subplots(rows, 2, figsize=(9, 2.5 * rows + 0.4), squeeze=False)
    axes = list(grid.flat)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, _bars(run, panel))
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def _draw_panel(axis: Any, panel: Panel, bars: list[tuple[str, Figure]]) -> None:
    """The median of each, a line for the quartiles, and the median in words."""
    names = [textwrap.fill(name, 22) for name, _ in bars]
    medians = [figure.median for _, figure in bars]
    spread = [
        [figure.median - figure.low for _, figure in bars],
        [figure.high - figure.median for _, figure in bars],
    ]
    axis.barh(names, medians, color=[_colour(name) for name, _ in bars], height=0.7)
    axis.errorbar(medians, names, xerr=spread, fmt="none", ecolor="black", elinewidth=0.8)
    axis.set_xscale("log")
    axis.set_xlim(min(medians) / 3, max(medians) * 6)
    axis.set_xticks([])
    axis.set_xticks([], minor=True)
    for name, (_, figure) in zip(names, bars, strict=True):
        axis.text(figure.high * 1.15, name, quantity(figure.median, panel.metric), va="center")
    axis.invert_yaxis()
    axis.set_title(panel.title, loc="left")
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def _colour(name: str) -> str:
    return OURS if name == REFERENCE else OTHERS if name in PEERS else FLOOR
