"""How long many things took: counts in buckets that are a few percent wide, and what follows."""

from __future__ import annotations

from array import array
from math import log10
from typing import Final, NamedTuple

__all__ = ["Bar", "Spread"]

PER_DECADE: Final = 20
DECADES: Final = 12
LEAST: Final = 1e-6  # seconds; what is shorter counts as this
_PER_LEAST: Final = 1e6
_BUCKETS: Final = PER_DECADE * DECADES


class Bar(NamedTuple):
    """Some buckets next to each other.

    Attributes:
        least, most: seconds.
        number: how many took longer than the one, and at most the other.
    """

    least: float
    most: float
    number: int


class Spread:
    """
    Attributes:
        count: how many there are.
        seconds: all of them together.
        longest: of them, seconds.
    """

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.longest = 0.0
        self._counts = array("q", bytes(8 * _BUCKETS))

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds
        if seconds > self.longest:  # noqa: PLR1730 (in a third of the time)
            self.longest = seconds
        if seconds <= LEAST:
            self._counts[0] += 1
        else:
            bucket = int(log10(seconds * _PER_LEAST) * PER_DECADE)
            self._counts[bucket if bucket < _BUCKETS else _BUCKETS - 1] += 1

    @property
    def mean(self) -> float:
        return self.seconds / self.count if self.count else 0.0

    def quantile(self, fraction: float) -> float:
        """So long took this fraction of them at most; to a few percent."""
        wanted = fraction * self.count
        before = 0
        for bucket, count in enumerate(self._counts):
            if count and before + count >= wanted:
                share = (wanted - before) / count
                return min(self.longest, _bound(bucket + share))
            before += count
        return self.longest

    def bars(self, most: int) -> list[Bar]:
        """At most about so many, from the shortest to the longest of them."""
        filled = [bucket for bucket, count in enumerate(self._counts) if count]
        if not filled:
            return []
        first, last = filled[0], filled[-1]
        size = next(n for n in (1, 2, 4, 5, 10, 20) if (last - first) / n < most or n == 20)
        first -= first % size
        return [
            Bar(_bound(at), _bound(at + size), sum(self._counts[at : at + size]))
            for at in range(first, last + 1, size)
        ]


def _bound(bucket: float) -> float:
    return LEAST * 10 ** (bucket / PER_DECADE)
