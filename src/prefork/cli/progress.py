"""What a person sees of a run, on standard error: a bar on a terminal, log lines elsewhere.

It writes to a stream of its own: a worker is forked at any time, and would inherit the lock of
`sys.stderr` locked if a thread was just writing to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from prefork._observe.rates import Meter, clock, duration, line_due, per_second

__all__ = [
    "Bar",
    "Failure",
    "Log",
    "Meter",
    "Progress",
    "Stats",
    "duration",
    "make_progress",
    "per_second",
]

LISTED_FAILURES = 20
REDRAWS = 8  # of the bar, per second
INPUT_WIDTH = 80
REASON_WIDTH = 160


class Failure:
    """An input and why it failed; short, on one line."""

    def __init__(self, given: bytes, error: bytes) -> None:
        value = json.loads(given)
        reason = json.loads(error)
        self.input = _shorten(value if isinstance(value, str) else given.decode(), INPUT_WIDTH)
        message = reason["message"].strip().partition("\n")[0]
        text = _shorten(f"{reason['type']}: {message}".removesuffix(": "), REASON_WIDTH)
        self.reason = text + _place(reason.get("traceback", ""))

    def __str__(self) -> str:
        return f"{self.input}: {self.reason}"


def _place(stack: str) -> str:
    """Where a worker was when it was lost, from a stack with the most recent call first."""
    found = re.search(r'File "(?:.*/)?([^/]*/[^/]+)", line (\d+) in (.+)', stack)
    return ", in {3} ({1}:{2})".format(*found.group(0, 1, 2, 3)) if found else ""


def _shorten(text: str, width: int) -> str:
    """On one line, printable, and with the middle left out if it is too long."""
    if not text.isprintable() or not text:
        text = json.dumps(text)
    half = width // 2
    return text if len(text) <= width else f"{text[:half]}…{text[1 - half :]}"


@dataclass
class Stats:
    """How far a run is. One thread counts, others may look."""

    total: int | None = None  # inputs, those that are skipped included
    done: int = 0  # of this run, failed ones included
    failed: int = 0
    skipped: int = 0  # which an earlier run had done
    skipped_failed: int = 0  # of these, which had failed
    failures: list[Failure] = field(default_factory=list)  # the first ones
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    def count(self) -> None:
        """One more input came through."""
        self.done += 1

    def count_failure(self, given: bytes, error: bytes) -> None:
        """One more has failed: input and error as JSON."""
        self.done += 1
        self.failed += 1
        if len(self.failures) < LISTED_FAILURES:
            self.failures.append(Failure(given, error))

    @property
    def handled(self) -> int:
        return self.done + self.skipped

    @property
    def all_failed(self) -> int:
        """In this run or in the earlier one."""
        return self.failed + self.skipped_failed

    @property
    def seconds(self) -> float:
        """How long the run has taken, or took."""
        return (time.monotonic() if self.ended is None else self.ended) - self.started


class Progress(Protocol):
    """What shows the progress of a run."""

    stats: Stats

    def start(self, headline: str) -> None: ...

    def next_tick(self) -> float | None:
        """Seconds until `tick` is to be called; None: never."""

    def tick(self) -> None: ...

    def stop(self) -> None:
        """Show no more progress; `say` still works."""

    def say(self, text: str, style: str = "") -> None:
        """A line of text for the person."""

    def close(self) -> None: ...


def make_progress(fd: int = 2) -> Log | Bar:
    """The kind of progress that fits what this descriptor is; it is duplicated."""
    stream = open(os.dup(fd), "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    if stream.isatty():
        console = Console(file=stream, force_terminal=True, highlight=False, soft_wrap=True)
        if not console.is_dumb_terminal:
            return Bar(console)
    return Log(stream)


class Log:
    """Plain lines, at first often, then every minute."""

    def __init__(self, stream: TextIO) -> None:
        self.stats = Stats()
        self._stream = stream
        self._meter = Meter(window=120.0)
        self._lines = 0

    def start(self, headline: str) -> None:
        self.say(headline)
        self._meter.sample(time.monotonic(), 0)

    @property
    def due(self) -> float:
        """When the next line comes, in seconds from the start."""
        return line_due(self._lines)

    def next_tick(self) -> float | None:
        return max(0.0, self.due - self.stats.seconds)

    def tick(self) -> None:
        stats = self.stats
        self._lines += 1
        while self.due <= stats.seconds:  # a slow reader of the records has kept us
            self._lines += 1
        self._meter.sample(time.monotonic(), stats.done)
        text = f"{stats.handled}"
        if stats.total:
            text += f" of {stats.total} inputs ({stats.handled / stats.total:.0%})"
        else:
            text += " inputs"
        text += f", {stats.failed} failed"
        if (rate := self._meter.rate) is not None:
            text += f", {per_second(rate)}"
        if stats.total:
            left = self._meter.seconds_left(stats.total - stats.handled)
            if left is not None:
                text += f", {clock(left)} left"
        self.say(text)

    def stop(self) -> None:
        pass

    def say(self, text: str, style: str = "") -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            self._stream.write("".join(f"prefork: {line}\n" for line in text.splitlines()))
            self._stream.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.close()


class Bar:
    """A bar at the bottom of the terminal, drawn by a thread of its own.

    It is a sink for records, too: those that go to the same terminal.
    """

    def __init__(self, console: Console) -> None:
        self.stats = Stats()
        self._console = console
        self._meter = Meter()
        self._spinner = Spinner("dots")
        self._live = Live(
            get_renderable=self._render,
            console=console,
            refresh_per_second=REDRAWS,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def start(self, headline: str) -> None:
        self.say(headline)
        self._live.start()

    def _render(self) -> RenderableType:
        stats = self.stats
        self._meter.sample(time.monotonic(), stats.done)
        rate = self._meter.rate
        cells: list[RenderableType] = []
        count = f"{stats.handled}"
        if stats.total:
            cells.append(ProgressBar(stats.total, min(stats.handled, stats.total), width=40))
            count = f"{stats.handled}/{stats.total} {stats.handled / stats.total:4.0%}"
        else:
            cells.append(self._spinner)
        cells.append(Text(count))
        cells.append(Text(per_second(rate) if rate else "-/s", "cyan"))
        if stats.total:
            left = self._meter.seconds_left(stats.total - stats.handled)
            cells.append(Text(f"ETA {'-:--:--' if left is None else clock(left)}", "magenta"))
        cells.append(Text(f"{stats.failed} failed", "bold red" if stats.failed else "green"))
        row = Table.grid(padding=(0, 1))
        row.add_row(*cells)
        return row

    def next_tick(self) -> float | None:
        return None

    def tick(self) -> None:
        pass

    def write(self, lines: bytes) -> None:
        """Write records to the same terminal, above the bar."""
        self._print(lines.decode("utf-8", "replace").rstrip("\n"))

    def write_within(self, lines: bytes, seconds: float) -> None:
        if lines:
            self.write(lines)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._live.stop()

    def say(self, text: str, style: str = "") -> None:
        self._print(text, style)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._console.file.close()

    def _print(self, text: str, style: str = "") -> None:
        with contextlib.suppress(OSError):
            self._console.print(Text(text, style))
