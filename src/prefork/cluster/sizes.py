"""How many items go in one chunk: as many as take about so long, by what those before have taken.

The first chunks of a function are single items, and a chunk has at most eight times as many as the
largest one that has come back; so a function whose items turn out to be slow holds up nobody.
"""

from __future__ import annotations

from typing import Final

__all__ = ["IN_FLIGHT", "SHORT", "Sizes"]

CHUNK_SECONDS: Final = 0.09
IN_FLIGHT: Final = 3  # chunks per process: one runs, one waits there, one is on its way
SHORT: Final = 0.01
"""Seconds: calls that take less may share a chunk with those that others wait for."""
GROWTH: Final = 8
MOST_ITEMS: Final = 10_000
LEAST_SECONDS: Final = 0.01  # of work in a chunk near the end of the input
SHARE: Final = 2  # there, a chunk has at most this fraction of a process's fair share


class Sizes:
    """
    Args:
        chunk_seconds: how long a chunk is to take; 0: each is one item.
    """

    def __init__(self, chunk_seconds: float = CHUNK_SECONDS) -> None:
        self._chunk_seconds = chunk_seconds
        self._means: dict[str, float] = {}  # seconds of an item, by the function
        self._largest: dict[str, int] = {}  # chunk of it that has come back

    def mean(self, function: str) -> float | None:
        """Seconds that an item takes; None: it is not known."""
        return self._means.get(function)

    def size(self, function: str, waiting: int, processes: int) -> int:
        """Items to send next.

        Args:
            waiting: how many there are now.
            processes: of all nodes.
        """
        mean = self._means.get(function)
        if mean is None or self._chunk_seconds == 0.0:
            return 1
        share = max(waiting // (SHARE * max(1, processes)), int(LEAST_SECONDS / mean))
        grown = self._largest[function] * GROWTH
        return max(1, min(int(self._chunk_seconds / mean), share, grown, MOST_ITEMS))

    def measured(self, function: str, items: int, seconds: float) -> None:
        """So many of its items have taken so long on a node, one after another."""
        mean = max(seconds / items, 1e-7)
        known = self._means.get(function, mean)
        # What was once fast may be so again: a first item has loaded what others find loaded.
        self._means[function] = mean if mean < known else (known + mean) / 2
        self._largest[function] = max(items, self._largest.get(function, 1))
