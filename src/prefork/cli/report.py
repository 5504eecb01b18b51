"""What is said at the start of a run and at its end."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator

from prefork._observe.rates import duration, per_second
from prefork.cli.inputs import PAUSE, BadInput, Inputs
from prefork.cli.jsontext import to_json
from prefork.cli.plan import Plan
from prefork.cli.records import Earlier
from prefork.cli.run import Ending
from prefork.cli.stats import Stats

__all__ = ["closing", "headline", "outlook", "preview"]

LISTED_KINDS = 10
PREVIEWED = 10  # inputs


def headline(plan: Plan, stats: Stats, earlier: Earlier) -> str:
    """What is about to be done."""
    text = f"{plan.work} over "
    text += "inputs" if stats.total is None else _count(stats.total, "input")
    if plan.app is None:
        text += f", in {_count(plan.processes, 'process', 'es')}"
    else:
        text += f", on the cluster of {plan.app_name}"
    if held := len(earlier):
        text += f"; the output file holds {held} already"
    return text


def preview(plan: Plan, inputs: Inputs) -> Iterator[str]:
    """What a run would do."""
    yield headline(plan, Stats(inputs.total), Earlier())
    values = (value for value in inputs if value is not PAUSE)
    for value in itertools.islice(values, PREVIEWED):
        yield f"  {value.reason}" if isinstance(value, BadInput) else f"  {to_json(value).decode()}"
    if next(values, None) is not None:
        yield "  …"


def closing(
    stats: Stats, ending: Ending, going_on: str | None, path: str | None, records: str | None
) -> Iterator[tuple[str, str]]:
    """What has come of it: lines with their styles.

    Args:
        going_on: what the same command needs to do the rest; None: it cannot.
        path: the output file's; None: it has gone to standard output.
        records: likewise, of the file that it is made from, which may be the same.
    """
    if stats.failed:
        yield f"{_count(stats.failed, 'input')} failed:", "bold red"
        kinds = sorted(stats.kinds.values(), key=lambda kind: -kind.count)
        for kind in kinds[:LISTED_KINDS]:
            yield f"  {kind.count} x {kind.example.reason}, with {kind.example.input}", "red"
        if rest := kinds[LISTED_KINDS:]:
            more = sum(kind.count for kind in rest)
            yield f"  {more} for {_count(len(rest), 'other reason')}", "red"
    if stats.skipped:
        text = f"skipped {_count(stats.skipped, 'input')} that {records} held already"
        if stats.skipped_failed:
            text += f", {stats.skipped_failed} of them failed"
        yield text, ""
    if ending.problem is not None:
        yield f"error: {ending.problem}", "bold red"
    style = "yellow" if stats.all_failed else "bold green"
    if ending.problem is not None or ending.failed:
        style = "bold red"
    if ending.signum is not None:
        style = "bold yellow"
    totals = outlook(stats, ending)
    if not ending.unwritten:
        yield f"{totals}; results in {path}" if path else totals, style
    if going_on and (ending.signum is not None or ending.problem is not None or ending.failed):
        yield f"{records} keeps what is done: the same command with {going_on} does the rest", ""


def outlook(stats: Stats, ending: Ending) -> str:
    """How many came through, and what has stopped it, if something has."""
    text = _totals(stats)
    if ending.signum is not None:
        return f"stopped by {signal.Signals(ending.signum).name}: {text}"
    if ending.failed:
        return f"stopped after {_count(stats.failed, 'failure')}: {text}"
    return text


def _totals(stats: Stats) -> str:
    came_through = stats.handled - stats.all_failed
    inputs = "inputs" if stats.total is None else _count(stats.total, "input")
    of = " " if stats.total is None else " of "
    seconds = stats.seconds
    text = f"{came_through}{of}{inputs} came through, {stats.all_failed} failed"
    text += f", in {duration(seconds)}"
    if stats.done and seconds > 0:
        text += f" ({per_second(stats.done / seconds)})"
    return text


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{plural}"
