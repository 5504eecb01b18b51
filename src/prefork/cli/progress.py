"""What a person sees of a run, on standard error: a bar on a terminal, log lines elsewhere.

It writes to a stream of its own: a worker is forked at any time, and would inherit the lock of
`sys.stderr` locked if a thread was just writing to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from prefork._observe.lines import OutputLine
from prefork._observe.rates import Meter, clock, duration, line_due, per_second
from prefork.cli.stats import INPUT_WIDTH, Stats, shown

__all__ = ["STYLES", "Bar", "Log", "Progress", "make_progress"]

LONG = 2.0  # seconds: what takes longer is named in the bar
REDRAWS = 8  # of the bar, per second
SHORTEST_BAR, LONGEST_BAR = 8, 40  # columns
SHORTEST_NAME = 12  # columns, of an input

Longest = Callable[[], tuple[str, float] | None]
"""Tells an input, as JSON, and for how many seconds it has been running."""


class Progress(Protocol):
    """What shows the progress of a run."""

    stats: Stats

    @property
    def capture(self) -> Callable[[OutputLine], object] | None:
        """Takes what is printed meanwhile; None: that goes where it goes."""

    def start(self, headline: str) -> None: ...

    def watch(self, longest: Longest) -> None:
        """Who can tell what has been running for longest."""

    def next_tick(self) -> float | None:
        """Seconds until `tick` is to be called; None: never."""

    def tick(self) -> None: ...

    def stop(self) -> None:
        """Show no more progress; `say` still works."""

    def say(self, text: str, style: str = "") -> None:
        """A line of text for the person."""

    def close(self) -> None: ...


STYLES = ("auto", "bar", "log", "json", "none")


def make_progress(style: str = "auto", fd: int = 2) -> Log | Bar:
    """One of `STYLES`; "auto" is what fits what this descriptor is. That is duplicated."""
    stream = open(os.dup(fd), "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    if style == "json":
        return JsonLog(stream)
    if style == "none":
        return Quiet(stream)
    if style == "bar" or (style == "auto" and stream.isatty()):
        console = Console(file=stream, force_terminal=True, highlight=False, soft_wrap=True)
        if style == "bar" or not console.is_dumb_terminal:
            return Bar(console)
    return Log(stream)


class Log:
    """Plain lines, at first often, then every minute."""

    capture = None

    def __init__(self, stream: TextIO) -> None:
        self.stats = Stats()
        self._stream = stream
        self._meter = Meter(window=120.0)
        self._lines = 0

    def start(self, headline: str) -> None:
        self.say(headline)
        self._meter.sample(time.monotonic(), 0)

    def watch(self, longest: Longest) -> None:
        pass

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


class Quiet(Log):
    """Nothing but what is wrong."""

    def next_tick(self) -> float | None:
        return None

    def say(self, text: str, style: str = "") -> None:
        if "red" in style:
            super().say(text, style)


class JsonLog(Log):
    """One JSON object per line: for programs."""

    def tick(self) -> None:
        self._lines += 1
        self._write(self._state())

    @property
    def due(self) -> float:
        return float(self._lines + 1)

    def _state(self) -> dict[str, object]:
        stats = self.stats
        return {
            "done": stats.handled,
            "total": stats.total,
            "failed": stats.all_failed,
            "seconds": round(stats.seconds, 3),
        }

    def stop(self) -> None:
        self._write(self._state())

    def say(self, text: str, style: str = "") -> None:
        self._write({"message": text})

    def _write(self, fields: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            self._stream.write(json.dumps(fields) + "\n")
            self._stream.flush()


class Bar:
    """A bar at the bottom of the terminal, drawn by a thread of its own.

    It is a sink for records, too: those that go to the same terminal.
    """

    def __init__(self, console: Console) -> None:
        self.stats = Stats()
        self._console = console
        self._meter = Meter()
        self._spinner = Spinner("dots")
        self._longest: Longest = lambda: None
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

    def watch(self, longest: Longest) -> None:
        self._longest = longest

    def _render(self) -> RenderableType:
        stats = self.stats
        self._meter.sample(time.monotonic(), stats.done)
        rate = self._meter.rate
        count = f"{stats.handled}"
        if stats.total:
            count = f"{stats.handled}/{stats.total} {stats.handled / stats.total:4.0%}"
        cells = [
            Text(count),
            Text(f"{stats.failed} failed", "bold red" if stats.failed else "green"),
            Text(per_second(rate) if rate else "-/s", "cyan"),
        ]
        if stats.total:
            left = self._meter.seconds_left(stats.total - stats.handled)
            cells.append(Text(f"ETA {'-:--:--' if left is None else clock(left)}", "magenta"))
        return self._fit(cells)

    def _fit(self, cells: list[Text]) -> RenderableType:
        """One line, with as many of the cells as there is room for, and what has been running for
        longest; what is left is the bar's."""
        stats = self.stats
        room = self._console.width - 1
        row = Table.grid(padding=(0, 1))
        fitting: list[RenderableType] = []
        for cell in cells:
            if cell.cell_len >= room:
                break
            fitting.append(cell)
            room -= cell.cell_len + 1
        if (longest := self._longest()) is not None and longest[1] > LONG:
            given, seconds = longest
            label, time_taken = "longest: ", f" {duration(seconds)}"
            width = min(INPUT_WIDTH, room - len(label) - len(time_taken) - 1)
            if width >= SHORTEST_NAME:
                cell = Text(f"{label}{shown(given, width)}{time_taken}", "dim")
                fitting.append(cell)
                room -= cell.cell_len + 1
        if not stats.total:
            fitting.insert(0, self._spinner)
        elif room > SHORTEST_BAR:
            width = min(room - 1, LONGEST_BAR)
            fitting.insert(0, ProgressBar(stats.total, min(stats.handled, stats.total), width))
        row.add_row(*fitting)
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

    def capture(self, line: OutputLine) -> None:
        """What is printed for this terminal goes above the bar."""
        if line.stream == "stdout" and not os.isatty(1):
            with contextlib.suppress(OSError):
                os.write(1, f"{line.text}\n".encode("utf-8", "surrogateescape"))
        else:
            self._print(line.text)

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
