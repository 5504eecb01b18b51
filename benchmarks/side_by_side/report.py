"""A run's tables, in Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.side_by_side.peers import PEERS, REFERENCE
from benchmarks.side_by_side.summary import Figure, Run
from benchmarks.side_by_side.targets import TARGETS
from benchmarks.side_by_side.workloads import TOPICS, WORKLOADS, Workload


class Line(NamedTuple):
    """One metric of one workload."""

    workload: str
    metric: str
    text: str


METRICS = {
    "wall": "",
    "p50": ", p50",
    "cpu": ", CPU",
    "call": ", / one `apply`",
    "ideal": ", makespan / ideal",
    "peak": ", / what must exist",
    "bytes": ", memory",
    "growth": ", time for a job / for one of the first 10,000",
    "switches": ", waits of threads",
    "descriptors": ", descriptors",
    "wakeups": ", wake-ups",
    "ratio": "",
}
"""In the order of the lines; what each adds to the workload's title."""

# Lines that would say what another says, or nothing.
_DROPPED = {
    *[(f"uneven_{how}", metric) for how in ("map", "calls") for metric in ("wall", "cpu")],
    *[(f"array_{how}_memory", "bytes") for how in ("there", "back")],
    ("apply", "wall"),
    ("cpu_bound", "cpu"),
    ("shared_memory", "bytes"),
    ("queued", "few"),
}


def lines(run: Run, workloads: dict[str, Workload]) -> Iterator[Line]:
    for name, workload in workloads.items():
        for metric, addition in METRICS.items():
            found = run.value(name, REFERENCE, metric) is not None
            if found and (name, metric) not in _DROPPED:
                yield Line(name, metric, workload.title + addition)


def quantity(value: float, metric: str) -> str:
    """For people, with its unit."""
    if metric in ("wall", "cpu", "p50"):
        for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
            if value * factor >= 1:
                return f"{value * factor:.3g} {unit}"
        return f"{value * 1e9:.3g} ns"
    if metric == "bytes":
        return f"{value / 2**20:.3g} MiB" if value >= 2**20 else f"{value:.0f} B"
    return f"{value:.3g}"


def _times(ratio: Figure) -> str:
    if ratio.samples == 1:
        return f"{ratio.median:.2g}"
    return f"{ratio.median:.2g} ({ratio.low:.2g}–{ratio.high:.2g})"  # noqa: RUF001


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown, padded so that it can be read as it is."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(map(str.ljust, cells, widths)) + " |"

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, rows)])


def _cell(run: Run, line: Line, contender: str) -> str:
    if failure := run.failures.get((line.workload, contender)):
        return failure
    ratio = run.ratio(line.workload, contender, line.metric)
    if ratio is not None:
        return _times(ratio)
    value = run.value(line.workload, contender, line.metric)
    return "" if value is None else quantity(value, line.metric)


def comparison(run: Run, workloads: dict[str, Workload]) -> str:
    """prefork's medians, and how many times as much the others need; empty without any."""
    found = list(lines(run, workloads))
    there = {name for workload in workloads for name in run.contenders(workload)}
    others = [peer for peer in PEERS if peer != REFERENCE and peer in there]
    rows = []
    for line in found:
        own = run.value(line.workload, REFERENCE, line.metric)
        assert own is not None
        cells = [_cell(run, line, peer) for peer in others]
        floors = [
            f"{_cell(run, line, name)} ({name.removeprefix('floor: ')})"
            for name in WORKLOADS[line.workload].floors
            if run.value(line.workload, name, line.metric) is not None
        ]
        rows.append([line.text, quantity(own, line.metric), *cells, "; ".join(floors)])
    return table(["", REFERENCE, *others, "floor"], rows) if rows else ""


def details(run: Run) -> str:
    """Every contender's median and quartiles."""
    rows = []
    for line in lines(run, WORKLOADS):
        for contender in run.contenders(line.workload):
            found = run.figure(line.workload, contender, line.metric)
            if found is not None:
                spread = [quantity(value, line.metric) for value in found[:3]]
                rows.append([line.text, contender, *spread, str(found.samples)])
    return table(["", "", "median", "quartile", "quartile", "samples"], rows)


def goals(run: Run) -> str:
    rows = []
    for target in TARGETS:
        value = target.value(run)
        if value is not None:
            bound = f"{'≥' if target.at_least else '≤'} {target.bound:g}"
            verdict = "met" if target.is_met(value) else "missed"
            rows.append([target.text, bound, f"{value:.3g}", verdict])
    return table(["", "goal", "measured", ""], rows)


def setting(run: Run) -> str:
    data = run.data
    machine = data["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    builds = [f"{name}: {build}" for name, build in data.get("builds", {}).items()]
    skipped = [f"{name} left out: {why}" for name, why in data.get("skipped", {}).items()]
    measured = (
        f"{data['when']}, {data['mode']} mode, {data['rounds']} rounds in {data['seconds']} s\n"
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory'] / 2**30:.0f} GiB, "
        f"{machine['system']}"
    )
    return "\n".join([measured, *textwrap.wrap(versions, 100), *builds, *skipped])


def report(run: Run, with_details: bool = False) -> str:
    parts = [
        setting(run),
        f"How many times as much as {REFERENCE} the others need (the quartiles of the rounds):",
    ]
    for topic, workloads in TOPICS.items():
        if found := comparison(run, workloads):
            parts += [f"{topic}:", found]
    parts.append(goals(run))
    if with_details:
        parts.append(details(run))
    for (workload, contender), status in run.failures.items():
        parts.append(f"{contender}, {workload}: {status}")
    return "\n\n".join(parts)
