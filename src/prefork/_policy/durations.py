"""How long things took, counted in buckets: a job costs a comparison and two additions."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

__all__ = ["BOUNDS", "Durations"]

BOUNDS: Final = (
    0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3,
    1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0,
)  # fmt: skip
"""Seconds. Each is about three times the one before."""

_LEAST: Final = 0.0001  # the first bound
_MOST: Final = 1e9
"""Seconds, about thirty years. What took longer, or less than none, is of a worker's channel that
a task has written into."""


class Durations:
    """
    Attributes:
        seconds: all of them together.
    """

    __slots__ = ("_longer", "_shortest", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._shortest = 0  # the first bucket, apart: most are there where it matters
        self._longer = [0] * (len(BOUNDS) + 1)

    def add(self, seconds: float) -> None:
        if seconds <= _LEAST:
            self._shortest += 1
            if seconds > 0.0:
                self.seconds += seconds
        elif seconds < _MOST:
            self.seconds += seconds
            self._longer[bisect_left(BOUNDS, seconds)] += 1

    def counts(self) -> tuple[int, ...]:
        """For each bucket, and for what took longer than all bounds."""
        return (self._shortest, *self._longer[1:])
