"""How long things took, counted in buckets: a job costs two comparisons and two additions."""

from __future__ import annotations

from typing import Final

__all__ = ["BOUNDS", "Durations"]

BOUNDS: Final[tuple[float, ...]] = (
    0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3,
    1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0,
)  # fmt: skip
"""Seconds. Each is about three times the one before."""

_MOST: Final = 1e9
"""Seconds, about thirty years. What took longer, or less than none, is of a worker's channel that
a task has written into."""


class Durations:
    """
    Attributes:
        seconds: all of them together.
    """

    __slots__ = ("_bucket", "_counts", "_more_than", "_recent", "_up_to", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._counts = [0] * (len(BOUNDS) + 1)
        # The bucket of the latest one, apart: the next one mostly belongs there, too.
        self._bucket = 0
        self._recent = 0  # how many are not in `_counts` yet
        self._more_than = -_MOST
        self._up_to = BOUNDS[0]

    def add(self, seconds: float) -> None:
        if not self._more_than < seconds <= self._up_to:
            if not -_MOST < seconds < _MOST:
                return
            self._turn_to(seconds)
        self._recent += 1
        if seconds > 0.0:
            self.seconds += seconds

    def _turn_to(self, seconds: float) -> None:
        self._counts[self._bucket] += self._recent
        self._recent = 0
        bucket = 0
        while bucket < len(BOUNDS) and seconds > BOUNDS[bucket]:
            bucket += 1
        self._bucket = bucket
        self._more_than = BOUNDS[bucket - 1] if bucket else -_MOST
        self._up_to = BOUNDS[bucket] if bucket < len(BOUNDS) else _MOST

    def counts(self) -> tuple[int, ...]:
        """For each bucket, and for what took longer than all bounds."""
        counts = list(self._counts)
        counts[self._bucket] += self._recent
        return tuple(counts)
