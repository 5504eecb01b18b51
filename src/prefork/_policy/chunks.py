"""How `map` divides its input, and how far `imap` reads ahead: policy without I/O.

Without a chunk size from the caller, chunks are sized by what the items so far have cost: about
`CHUNK_SECONDS` each, so that handing over costs little beside them, but never so large
that the end of the input would leave workers idle.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Final

__all__ = ["LEAST_AHEAD", "MOST_BYTES", "AdaptiveChunks", "fixed_chunks", "read_ahead"]

CHUNK_SECONDS: Final = 0.005
FIRST_CHUNKS: Final = 2  # per worker, of one item each, to measure by
LEAST_SECONDS: Final = 0.0001  # of work in a chunk, lest handing it over takes longer
SHARE: Final = 4  # a chunk is at most this fraction of a worker's fair share of what is left
MAX_CHUNK: Final = 10_000  # items
MOST_BYTES: Final = 1 << 28
"""Pickled calls of one input that are on their way: it is read no further ahead."""
LEAST_AHEAD: Final = 128
"""Chunks of one input on their way, per worker: enough for batches of short tasks."""
MOST_AHEAD: Final = 1024
"""The same of tiny tasks, where the threads that make jobs and take results then get more done
before one has to wait for another."""
AHEAD_SECONDS: Final = 0.02  # of work on its way, per worker


def read_ahead(workers: int, mean_seconds: float) -> int:
    """How many chunks may be on their way or wait to be taken, by how long they run."""
    chunks = int(AHEAD_SECONDS / (mean_seconds + 1e-6))
    return workers * min(MOST_AHEAD, max(LEAST_AHEAD, chunks))


def fixed_chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


class AdaptiveChunks:
    """Iterate over slices of `items`; tell it by `measured` what the chunks have cost."""

    def __init__(self, items: list[Any], workers: int) -> None:
        self._items = items
        self._workers = workers
        self._position = 0
        self._seconds = 0.0
        self._measured = 0  # items

    def measured(self, items: int, seconds: float) -> None:
        self._measured += items
        self._seconds += seconds

    def size(self) -> int:
        """Items to take next."""
        left = len(self._items) - self._position
        if not self._measured:
            return min(left, 1)
        mean = self._seconds / self._measured + 1e-8
        by_share = max(left // (self._workers * SHARE), int(LEAST_SECONDS / mean))
        return min(left, max(1, min(int(CHUNK_SECONDS / mean), by_share, MAX_CHUNK)))

    def __iter__(self) -> Iterator[list[Any]]:
        while size := self.size():
            chunk = self._items[self._position : self._position + size]
            self._position += size
            yield chunk
