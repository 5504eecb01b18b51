"""What happened when, in a fixed number of bins: when time grows out of them, each two become one.

So a second and a week take the same room, and to note something costs the same whatever its length:
what lasts is noted by its two ends.
"""

from __future__ import annotations

from array import array
from typing import Final, Protocol, TypeVar

__all__ = ["BINS", "Counts", "Levels", "Peaks", "Timeline"]

BINS: Final = 512
FIRST_WIDTH: Final = 0.001  # seconds


class Series(Protocol):
    def halve(self) -> None:
        """Each two bins become one; the second half is empty then."""


S = TypeVar("S", bound=Series)


class Timeline:
    """
    Args:
        begin: when it begins (monotonic, seconds).

    Attributes:
        width: of a bin, seconds.
    """

    def __init__(self, begin: float) -> None:
        self.begin = begin
        self.width = FIRST_WIDTH
        self._series: list[Series] = []

    def levels(self) -> Levels:
        return self._add(Levels())

    def counts(self) -> Counts:
        return self._add(Counts())

    def peaks(self) -> Peaks:
        return self._add(Peaks())

    def _add(self, series: S) -> S:
        self._series.append(series)
        return series

    def reach(self, time: float) -> None:
        """Have room for what happens until then: to be called before positions are asked for."""
        while (time - self.begin) / self.width >= BINS:
            for series in self._series:
                series.halve()
            self.width *= 2

    def position(self, time: float) -> float:
        """In bins, from the beginning on."""
        position = (time - self.begin) / self.width
        return position if position > 0.0 else 0.0

    def used(self, time: float) -> int:
        """How many bins there are until then, at least one."""
        return min(BINS, int(self.position(time)) + 1)


class Levels:
    """How many of something there are at a time, as the mean of each bin."""

    def __init__(self) -> None:
        # Of each begin and end of something: how many more there are from the next bin on, and how
        # much of that is in its own bin already.
        self._steps = array("q", bytes(8 * BINS))
        self._parts = array("d", bytes(8 * BINS))

    def add(self, start: float, end: float) -> None:
        """One more, from one position to another one."""
        at = int(start)
        self._steps[at] += 1
        self._parts[at] += at + 1 - start
        at = int(end)
        self._steps[at] -= 1
        self._parts[at] -= at + 1 - end

    def values(self, count: int) -> list[float]:
        """Of the first bins, so many."""
        found = []
        level = 0
        for step, part in zip(self._steps[:count], self._parts[:count], strict=True):
            found.append(max(0.0, level + part))
            level += step
        return found

    def halve(self) -> None:
        steps, parts = self._steps, self._parts
        halves = [(parts[at] + steps[at] + parts[at + 1]) / 2 for at in range(0, BINS, 2)]
        sums = [steps[at] + steps[at + 1] for at in range(0, BINS, 2)]
        self._parts = array("d", halves + [0.0] * (BINS // 2))
        self._steps = array("q", sums + [0] * (BINS // 2))


class Counts:
    """How often something happened in each bin."""

    def __init__(self) -> None:
        self._counts = array("q", bytes(8 * BINS))

    def add(self, position: float) -> None:
        self._counts[int(position)] += 1

    def values(self, count: int) -> list[int]:
        return self._counts[:count].tolist()

    def halve(self) -> None:
        counts = self._counts
        sums = [counts[at] + counts[at + 1] for at in range(0, BINS, 2)]
        self._counts = array("q", sums + [0] * (BINS // 2))


class Peaks:
    """The most that something was in each bin."""

    def __init__(self) -> None:
        self._peaks = array("q", bytes(8 * BINS))

    def add(self, start: float, end: float, value: int) -> None:
        """It was so much from one position to another one."""
        peaks = self._peaks
        for at in range(int(start), int(end) + 1):
            peaks[at] = max(peaks[at], value)

    def values(self, count: int) -> list[int]:
        return self._peaks[:count].tolist()

    def halve(self) -> None:
        peaks = self._peaks
        most = [max(peaks[at], peaks[at + 1]) for at in range(0, BINS, 2)]
        self._peaks = array("q", most + [0] * (BINS // 2))
