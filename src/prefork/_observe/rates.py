"""How fast it goes, and how that is told to people."""

from __future__ import annotations

from collections import deque
from datetime import timedelta

__all__ = ["Meter", "clock", "duration", "line_due", "per_second"]

LINES_AFTER = (1, 2, 5, 10, 20, 30, 45, 60)  # seconds from the start; then every minute


def line_due(lines: int) -> int:
    """When the next line comes where progress is told by lines, in seconds from the start, after
    so many lines: at first often, then every minute."""
    over = lines - len(LINES_AFTER)
    return LINES_AFTER[lines] if over < 0 else LINES_AFTER[-1] + 60 * (over + 1)


class Meter:
    """How fast it goes: inputs per second over about the last `window` seconds."""

    def __init__(self, window: float = 30.0) -> None:
        self._window = window
        self._samples: deque[tuple[float, int]] = deque()

    def sample(self, now: float, done: int) -> None:
        self._samples.append((now, done))
        while len(self._samples) > 2 and self._samples[1][0] < now - self._window:
            self._samples.popleft()

    @property
    def rate(self) -> float | None:
        """Per second; None: nothing has been done yet."""
        if not self._samples:
            return None
        (since, before), (now, done) = self._samples[0], self._samples[-1]
        return (done - before) / (now - since) if done > before and now > since else None

    def seconds_left(self, left: int) -> float | None:
        rate = self.rate
        return left / rate if rate else None


def per_second(rate: float) -> str:
    """For people: "0.4/s", "1234/s"."""
    return f"{rate:.0f}/s" if rate >= 100 else f"{rate:.1f}/s"


def clock(seconds: float) -> str:
    """For people: "1:02:03"."""
    return str(timedelta(seconds=round(seconds)))


def duration(seconds: float) -> str:
    """For people: "0.4 s", "75 s", "1:02:03"."""
    if seconds < 600:
        return f"{seconds:.1f} s" if seconds < 60 else f"{seconds:.0f} s"
    return clock(seconds)
