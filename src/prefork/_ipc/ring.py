"""Where in the shared memory of a channel the calls lie that its worker has not finished."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["Ring"]

FREED: Final = 0  # instead of the key of a block that is not in use any more


class Ring:
    """Which bytes of the shared memory are in use: a ring, allocated in the order of sending, and
    mostly freed so.

    Positions count on for ever; modulo the size they are offsets. Keys are not 0.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._head = self._tail = 0
        self._blocks: deque[tuple[int, int]] = deque()  # key, end position; oldest first

    def allocate(self, key: int, length: int) -> int | None:
        """The offset of `length` consecutive bytes, or None when there is no room now."""
        if not self._blocks:
            self._head = self._tail = 0  # start again where the memory is warm
        start = self._head
        offset = start % self.size
        if offset + length > self.size:
            start += self.size - offset
            offset = 0
        end = start + length
        if end - self._tail > self.size:
            return None
        self._head = end
        self._blocks.append((key, end))
        return offset

    def free(self, key: int) -> None:
        """The bytes that were allocated with this key are not in use any more."""
        blocks = self._blocks
        oldest, end = blocks[0]
        if key != oldest:
            self._free_early(key)
            return
        self._tail = end
        blocks.popleft()
        while blocks and blocks[0][0] == FREED:
            self._tail = blocks.popleft()[1]

    def _free_early(self, key: int) -> None:
        """Before an older one."""
        for i, (other, end) in enumerate(self._blocks):
            if other == key:
                self._blocks[i] = FREED, end
                return

    def is_empty(self) -> bool:
        return not self._blocks

    def holds(self, key: int) -> bool:
        """Whether something is allocated with this key."""
        return any(key == other for other, _ in self._blocks)
