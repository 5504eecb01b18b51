"""A run's charts, as SVG."""

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
    "calls": (
        "Time per call, 2 workers (lower is better; logarithmic)",
        [
            Panel("apply_async", "wall", "many apply_async"),
            Panel("apply", "p50", "one apply after another"),
            Panel("imap", "wall", "imap, chunksize 1"),
            Panel("map", "wall", "map, default chunks"),
        ],
    ),
    "payloads": (
        "Time per transfer (lower is better; logarithmic)",
        [
            Panel("array_there", "wall", "64 MiB array there"),
            Panel("array_back", "wall", "64 MiB array there and back"),
            Panel("bytes_back", "wall", "1 MiB of bytes there and back"),
        ],
    ),
    "pools": (
        "The pool's own costs (lower is better; logarithmic)",
        [
            Panel("start_2_fork", "wall", "start, 2 workers, fork"),
            Panel("start_16_forkserver", "wall", "start, 16 workers, forkserver"),
            Panel("idle_memory_fork", "bytes", "memory of an idle worker, fork"),
            Panel("array_back_memory", "bytes", "peak memory, 64 MiB there and back"),
        ],
    ),
}

OURS, OTHERS, FLOOR = "#c2410c", "#64748b", "#cbd5e1"


def draw_all(run: Run, folder: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    # The same data make the same file, with its text as text.
    matplotlib.rcParams.update(
        {"svg.hashsalt": "prefork", "svg.fonttype": "none", "font.size": 8, "axes.titlesize": 9}
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, (title, panels) in CHARTS.items():
        path = folder / f"benchmarks-{name}.svg"
        _draw(run, title, [panel for panel in panels if _bars(run, panel)], path)
        print(path)


def _bars(run: Run, panel: Panel) -> list[tuple[str, Figure]]:
    """Who is in a panel: the pools in their order, then the floors."""
    names = run.contenders(panel.workload)
    pools = [name for name in PEERS if name in names]
    floors = [name for name in names if name not in PEERS]
    found = [(name, run.figure(panel.workload, name, panel.metric)) for name in [*pools, *floors]]
    return [(name, figure) for name, figure in found if figure is not None]


def _draw(run: Run, title: str, panels: Sequence[Panel], path: Path) -> None:
    from matplotlib import pyplot

    if not panels:
        return
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
