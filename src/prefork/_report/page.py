"""The page: one file of HTML that needs nothing else, and can fetch nothing else."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import Final, NamedTuple

from prefork._report import charts
from prefork._report.account import Account, Lane, Longest
from prefork._report.charts import Mark, Strip
from prefork._report.failures import Kind
from prefork._report.file import MARK
from prefork._report.words import bytes_of, count, escape, percent, seconds
from prefork.buildinfo import build_info

__all__ = ["Frame", "render"]

SLOWEST: Final = 25
"""So many are in the table."""
ALWAYS_DRAWN: Final = 100
"""So many of the longest runs are in the chart, even if they are too short to be seen."""
BARS: Final = 45

Cells = Sequence[str]


class Frame(NamedTuple):
    """What the page is about.

    Attributes:
        title: what was run.
        processes: how many workers there should be.
        end: of the recording, or now (monotonic, seconds).
        runs: what one run is called: "run", or "input".
        began: as the time of day (`time.time`).
        note: what else is to be known; or "".
    """

    title: str
    processes: int
    end: float
    runs: str
    began: float
    note: str = ""


def render(account: Account, frame: Frame) -> str:
    """The whole page."""
    page = _Page(account, frame)
    folder = files("prefork._report")
    css, script = ((folder / name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_digest(css)}'; script-src '{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'{MARK} {build_info().version}">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(frame.title)} &ndash; report</title>",
            f"<style>{css}</style>",
            "</head>",
            "<body>",
            *page.parts(),
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        )
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


class _Page:
    def __init__(self, account: Account, frame: Frame) -> None:
        self._account = account
        self._frame = frame
        self._seconds = max(1e-9, frame.end - account.begin)
        account.timeline.reach(frame.end)
        self._bins = account.timeline.used(frame.end)
        self._longest = account.longest()
        self._has_memory = any(lane.memory for lane in account.lanes)

    def parts(self) -> Iterable[str]:
        frame, account = self._frame, self._account
        sections = [("timeline", "Timeline", self._timeline())]
        sections += [("times", "Run times", self._run_times())]
        sections += [("waiting", "Waiting", self._waiting())]
        sections += [("memory", "Memory", self._memory())]
        sections += [("failures", "Failures", self._failures())]
        sections += [("functions", "Functions", self._functions())]
        sections += [("workers", "Workers", self._workers())]
        yield '<a class="skip" href="#main">To the content</a>'
        yield f"<header><h1>{escape(frame.title)}</h1>"
        began = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(frame.began))
        processes = _number(frame.processes, "worker process", "es")
        yield f'<p class="faint">{began}, {seconds(self._seconds)}, {processes}; {build_info()}</p>'
        if frame.note:
            yield f"<p>{escape(frame.note)}</p>"
        yield '<nav aria-label="Sections"><ul>'
        yield from (f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
        yield '</ul></nav></header><main id="main" tabindex="-1">'
        yield from self._tiles()
        if not account.run_time.count:
            yield "<p>Nothing was run.</p>"
        for name, title, content in sections:
            yield f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>'
            yield from content
            yield "</section>"
        yield "</main>"

    # ---- in figures

    def _tiles(self) -> Iterable[str]:
        account = self._account
        times, waits, failures = account.run_time, account.wait_time, account.failures
        busy = sum(lane.seconds for lane in account.lanes)
        tiles = [
            (f"{self._frame.runs}s", count(times.count)),
            ("failures", count(failures.count)),
            ("time", seconds(self._seconds)),
            ("efficiency", percent(self._share(busy))),
            ("throughput", f"{times.count / self._seconds:,.3g}/s"),
            ("median run time", seconds(times.quantile(0.5))),
            ("95 % took at most", seconds(times.quantile(0.95))),
            ("longest", seconds(times.longest)),
            ("median wait", seconds(waits.quantile(0.5))),
        ]
        if self._has_memory:
            most = max(lane.memory for lane in account.lanes)
            tiles.append(("memory of a worker", bytes_of(most)))
        yield '<dl class="tiles">'
        yield from (f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles)
        yield "</dl>"
        yield (
            '<p class="faint">Efficiency is the share of their time that the workers have run '
            f"something: {seconds(busy)} of {seconds(self._frame.processes * self._seconds)}."
            f"{self._tail()}</p>"
        )

    def _share(self, busy: float) -> float:
        return min(1.0, busy / (max(1, self._frame.processes) * self._seconds))

    def _tail(self) -> str:
        """Of the end, when not all of them had something to run any more."""
        lanes = self._account.lanes
        if len(lanes) < 2 or not self._account.run_time.count:
            return ""
        first, last = (pick(lane.end for lane in lanes) for pick in (min, max))
        if last - first < 0.05 * self._seconds:
            return ""
        return (
            f" In the last {seconds(last - first)} of work, not all workers had something to run: "
            "the longest ones first, or smaller ones, would end sooner."
        )

    # ---- charts

    def _timeline(self) -> Iterable[str]:
        account = self._account
        drawn = self._drawn()
        strips = [
            Strip(
                _lane_name(lane, number),
                [] if account.is_complete else lane.busy.values(self._bins),
                lane.failures.values(self._bins),
                drawn.get(number, []),
            )
            for number, lane in enumerate(account.lanes)
        ]
        if not strips:
            yield "<p>There is nothing to draw.</p>"
            return
        yield "<p>A row is a worker, with those that took its place when it had ended. "
        if account.is_complete:
            yield f"Each bar is one {self._frame.runs}."
        else:
            yield (
                'The darker, the busier it was (<span class="key k0 low"></span> little, <span '
                'class="key k0"></span> all the time); the longest of the '
                f"{count(account.run_time.count)} {self._frame.runs}s are bars."
            )
        yield ' <span class="key bad"></span> is a failure.</p>'
        yield '<figure><div class="wide">'
        yield charts.gantt(strips, self._seconds, seconds)
        yield '</div><figcaption><output id="told" for="gantt">Choose a bar by the mouse, or by '
        yield "the arrow keys when the chart has the focus.</output></figcaption></figure>"

    def _drawn(self) -> dict[int, list[Mark]]:
        """The bars of each row, from left to right."""
        found: dict[int, list[Longest]] = {}
        narrowest = self._seconds / charts.WIDTH
        for number, each in enumerate(self._longest):
            if self._account.is_complete or number < ALWAYS_DRAWN or each.seconds >= narrowest:
                found.setdefault(each.lane, []).append(each)
        return {
            lane: [self._mark(each) for each in sorted(many, key=lambda one: one.run.started)]
            for lane, many in found.items()
        }

    def _mark(self, each: Longest) -> Mark:
        run, account = each.run, self._account
        start = max(0.0, run.started - account.begin)
        text = (
            f"{self._name(each)}: {seconds(each.seconds)}, from {seconds(start)} on, in process "
            f"{run.pid}"
        )
        if has_failed := account.has_failed(each):
            text += "; it has failed"
        end = run.started + run.seconds - account.begin
        return Mark(start / self._seconds, end / self._seconds, text, has_failed)

    def _name(self, each: Longest) -> str:
        what = self._account.describe(each.run.what)
        if len(self._account.functions) > 1 or not what:
            return f"{each.run.function} {what}".rstrip()
        return what

    def _run_times(self) -> Iterable[str]:
        times = self._account.run_time
        if not times.count:
            yield "<p>Nothing was run.</p>"
            return
        yield f"<p>The mean is {seconds(times.mean)}. {_quantiles(times.quantile)}</p>"
        label = "Histogram of the run times"
        yield _figure(charts.histogram(label, times.bars(BARS), seconds), label)
        rows = [
            (
                escape(self._name(each)),
                seconds(each.seconds),
                seconds(max(0.0, each.run.started - self._account.begin)),
                str(each.run.pid),
                "failed" if self._account.has_failed(each) else "",
            )
            for each in self._longest[:SLOWEST]
        ]
        runs = f"{self._frame.runs}s"
        yield from _table(
            f"The slowest {runs}", (self._frame.runs, "time", "begun at", "process", ""), rows
        )

    def _waiting(self) -> Iterable[str]:
        account = self._account
        waits = account.wait_time
        if not waits.count:
            yield "<p>Nothing has waited.</p>"
            return
        yield (
            f"<p>From when it was handed in until a worker began with it: the mean is "
            f"{seconds(waits.mean)}. {_quantiles(waits.quantile)}</p>"
        )
        label = "How many were waiting for a worker"
        chart = charts.area(
            label,
            [("waiting", account.waiting.values(self._bins))],
            self._seconds,
            lambda value: f"{value:,.3g}",
            seconds,
        )
        yield _figure(chart, label, "wait")
        label = "Histogram of the times of waiting"
        yield _figure(charts.histogram(label, waits.bars(BARS), seconds), label, "wait")

    def _memory(self) -> Iterable[str]:
        if not self._has_memory:
            yield "<p>It was not measured.</p>"
            return
        values = [lane.resident.values(self._bins) for lane in self._account.lanes]
        together = [float(sum(column)) for column in zip(*values, strict=True)]
        largest = [float(max(column)) for column in zip(*values, strict=True)]
        yield (
            f"<p>At most {bytes_of(max(together))} were resident in all workers together, at most "
            f"{bytes_of(max(largest))} in one. Pages that they share count in each.</p>"
        )
        label = "Resident memory over time: of all workers together, and of the largest one"
        series = [("together", together), ("largest", largest)]
        chart = charts.area(label, series, self._seconds, bytes_of, seconds)
        legend = '<span class="key k0"></span> together <span class="key k1"></span> the largest'
        yield _figure(chart, f"Resident memory: {legend}")

    # ---- tables

    def _failures(self) -> Iterable[str]:
        failures = self._account.failures
        if not failures.count:
            yield "<p>Nothing has failed.</p>"
            return
        text = f"{_number(failures.count, 'failure')}"
        if failures.retried:
            text += f", {count(failures.retried)} of them of what was run again"
        yield f"<p>{text}.</p>"
        yield from map(self._kind, failures.kinds())
        if failures.others:
            yield f"<p>{count(failures.others)} more, of further kinds.</p>"

    def _kind(self, kind: Kind) -> str:
        examples = "".join(
            f"<li>{escape(what)}: {escape(message)}</li>" for what, message in kind.examples
        )
        where = f", {escape(kind.place)}" if kind.place else ""
        more = f" ({count(kind.retried)} run again)" if kind.retried else ""
        stack = f"<pre>{escape(kind.stack)}</pre>" if kind.stack else ""
        return (
            f"<details><summary><strong>{count(kind.count)} &times; {escape(kind.error)}</strong>"
            f"{where}{more}</summary><ul>{examples}</ul>{stack}</details>"
        )

    def _functions(self) -> Iterable[str]:
        functions = sorted(self._account.functions.items(), key=lambda item: -item[1].seconds)
        rows = [
            (
                escape(name),
                count(each.runs),
                count(each.failed),
                seconds(each.seconds),
                seconds(each.seconds / each.runs if each.runs else 0.0),
                seconds(each.longest),
            )
            for name, each in functions
        ]
        runs = f"{self._frame.runs}s"
        yield from _table("", ("function", runs, "failures", "together", "mean", "longest"), rows)

    def _workers(self) -> Iterable[str]:
        rows = [
            (
                _lane_name(lane, number),
                "several" if lane.is_shared else _processes(lane),
                count(lane.runs),
                count(lane.failed),
                seconds(lane.seconds),
                percent(min(1.0, lane.seconds / self._seconds)),
                bytes_of(lane.memory) if lane.memory else "&ndash;",
            )
            for number, lane in enumerate(self._account.lanes)
        ]
        runs = f"{self._frame.runs}s"
        head = ("worker", "processes", runs, "failures", "busy", "of the time", "memory at most")
        yield from _table("", head, rows)


def _lane_name(lane: Lane, number: int) -> str:
    return "all others" if lane.is_shared else f"worker {number + 1}"


def _processes(lane: Lane) -> str:
    return str(lane.pid) if lane.pids == 1 else f"{count(lane.pids)}, the last one {lane.pid}"


def _quantiles(quantile: Callable[[float], float]) -> str:
    told = [(0.5, "Half"), (0.95, "95 %"), (0.99, "99 %")]
    text = ", ".join(f"{name} took at most {seconds(quantile(share))}" for share, name in told)
    return f"{text}."


def _figure(chart: str, caption: str, style: str = "") -> str:
    return (
        f'<figure class="{style}"><figcaption>{caption}</figcaption><div class="wide">{chart}'
        "</div></figure>"
    )


def _table(caption: str, head: Cells, rows: Iterable[Cells]) -> Iterable[str]:
    """The first column is text, and names its row."""
    yield '<div class="wide"><table>'
    if caption:
        yield f"<caption>{caption}</caption>"
    cells = "".join(f'<th scope="col"{_text(at)}>{cell}</th>' for at, cell in enumerate(head))
    yield f"<thead><tr>{cells}</tr></thead><tbody>"
    for row in rows:
        first, *rest = row
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        yield f'<tr><th scope="row" class="text">{first}</th>{cells}</tr>'
    yield "</tbody></table></div>"


def _text(column: int) -> str:
    return "" if column else ' class="text"'


def _number(number: int, noun: str, plural: str = "s") -> str:
    return f"{count(number)} {noun}{'' if number == 1 else plural}"
