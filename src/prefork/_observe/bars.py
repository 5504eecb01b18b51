"""What draws progress: tqdm's and rich's bars, and lines of text where there is neither.

A bar is made in the thread of the caller, to whom its errors go; so a notebook shows it in the cell
that asked for it. It is drawn in one other thread, which may have to wait for a slow terminal.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
import time
from typing import Any, Final, Protocol

from prefork._describe import short_repr
from prefork._observe.rates import Meter, clock, line_due, per_second

__all__ = ["Bar", "make_bar"]

PAUSE: Final = 0.1
"""Seconds between two drawings."""


class Bar(Protocol):
    """One bar of one call.

    Attributes:
        pause: so many seconds pass between two drawings, at least.
    """

    pause: float

    def draw(self, done: int, failed: int, total: int | None) -> None:
        """Show that so many of so many items are done (None: nobody knows how many there are)."""

    def close(self) -> None:
        """Nothing more is drawn."""


def make_bar(progress: object, total: int | None, name: str) -> Bar:
    """
    Args:
        progress: what the caller has given: True or a label; a class like tqdm's, or a function
            that is called with `total` and returns such a bar; a bar of the caller's own; or
            rich's `Progress`, the class or an instance.
        name: of the function, for bars that need a label.

    Raises:
        TypeError: it is none of these.
        Exception: what the caller's class raises.
    """
    if progress is True:
        return _best(total, None)
    if isinstance(progress, str):
        return _best(total, progress)
    if hasattr(progress, "add_task"):
        return _RichBar(progress, total, name)
    if not isinstance(progress, type) and hasattr(progress, "update"):
        return _TqdmBar(progress, is_ours=False)
    if callable(progress):
        bar = progress(total=total)
        if hasattr(bar, "update"):
            return _TqdmBar(bar, is_ours=True)
        raise TypeError(f"progress must make a bar with an update(n), not {short_repr(bar)}")
    raise TypeError(
        "progress must be True, a label, tqdm or a class like it, or rich's Progress, not "
        f"{short_repr(progress)}"
    )


def _best(total: int | None, label: str | None) -> Bar:
    if importlib.util.find_spec("tqdm") is None:
        return _TextBar(label)
    from tqdm.auto import tqdm

    # Each drawing is meant: it draws whenever it is told something.
    bar = tqdm(total=total, desc=label, mininterval=0, miniters=1, dynamic_ncols=True)
    return _TqdmBar(bar, is_ours=True, tells_failed=True)


class _TqdmBar:
    """Anything that has tqdm's `update(n)`, and perhaps `close()`."""

    def __init__(self, bar: Any, is_ours: bool, tells_failed: bool = False) -> None:
        self._bar = bar
        self._is_ours = is_ours
        self._tells_failed = tells_failed
        self._done = self._failed = 0
        interval = getattr(bar, "mininterval", None)
        self.pause = max(PAUSE, interval) if isinstance(interval, int | float) else PAUSE

    def draw(self, done: int, failed: int, total: int | None) -> None:
        bar = self._bar
        if self._is_ours and total is not None and getattr(bar, "total", total) is None:
            bar.total = total  # the end of the input has told it
        if failed > self._failed and self._tells_failed:
            self._failed = failed
            bar.set_postfix_str(f"{failed} failed", refresh=False)
        more, self._done = done - self._done, done
        is_drawn = bar.update(more)
        # tqdm leaves out small steps after large ones; but there may be no other for long.
        if more and is_drawn is None and not getattr(bar, "disable", True):
            bar.refresh()

    def close(self) -> None:
        if self._is_ours and (close := getattr(self._bar, "close", None)) is not None:
            close()


class _RichBar:
    """A task of rich's `Progress`: of the caller's, or of one that is made for it."""

    def __init__(self, progress: Any, total: int | None, name: str) -> None:
        self.pause = PAUSE
        self._progress = progress() if isinstance(progress, type) else progress
        live = getattr(self._progress, "live", None)
        self._is_ours = not getattr(live, "is_started", False)
        self._task = self._progress.add_task(name, total=total)
        if self._is_ours:
            self._progress.start()

    def draw(self, done: int, failed: int, total: int | None) -> None:
        known = {} if total is None else {"total": total}
        self._progress.update(self._task, completed=done, **known)

    def close(self) -> None:
        if self._is_ours:
            self._progress.stop()


class _TextBar:
    """A line of text on standard error: the same one anew on a terminal, else now and then another
    one."""

    def __init__(self, label: str | None) -> None:
        self.pause = PAUSE
        self._prefix = f"{label}: " if label else ""
        self._stream: Any = sys.stderr  # None: there is none
        self._is_terminal = self._stream is not None and self._stream.isatty()
        self._began = time.monotonic()
        self._meter = Meter()
        self._meter.sample(self._began, 0)
        self._lines = 0
        self._last = ""
        self._is_shown = True

    def draw(self, done: int, failed: int, total: int | None) -> None:
        now = time.monotonic()
        self._meter.sample(now, done)
        self._last = self._prefix + self._text(done, failed, total)
        self._is_shown = self._is_terminal or now >= self._began + line_due(self._lines)
        if not self._is_shown:
            return
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r{self._last[:width]}\x1b[K")
        else:
            while now >= self._began + line_due(self._lines):
                self._lines += 1
            self._write(f"{self._last}\n")

    def _text(self, done: int, failed: int, total: int | None) -> str:
        rate = self._meter.rate
        parts = [str(done)]
        if total:
            parts = [f"{done} of {total} ({done / total:.0%})"]
        if rate is not None:
            parts.append(per_second(rate))
            if total and done < total:
                parts.append(f"{clock((total - done) / rate)} left")
        if failed:
            parts.append(f"{failed} failed")
        return ", ".join(parts)

    def close(self) -> None:
        if self._is_terminal:
            self._write("\n")
        elif not self._is_shown:
            self._write(f"{self._last}\n")

    def _write(self, text: str) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
                self._stream.write(text)
                self._stream.flush()
