"""What a worker notes of the items of its job, so that those that are done survive the next one.

A job of several calls that have outcomes of their own is reported when all are done. Until then the
outcomes are on the *page*, a part of the shared memory: if the worker dies, the pool reads there
what was done, and which item was running. When the page is full, its outcomes are reported, as a
part of the job's, and it begins anew.

    entry: whether it went well, number of pieces │ length of each │ pieces │ next entry …

On the board, behind the words of `wire.py`: how many items were begun, counted from the job's
first one; how many outcomes are on the page; the item of the first of these; when the last item was
begun. Each is written after what it tells of, so that a death leaves nothing half done that counts.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    Words = memoryview[int]

__all__ = ["NotedOutcome", "Page", "WorkersPage", "read_page", "running_item"]

_BEGUN: Final = 4
_NOTED: Final = 5
_BASE: Final = 6
_SINCE: Final = 7

_HEAD: Final = struct.Struct("<II")
_ONE: Final = struct.Struct("<IIQ")  # the same with the length of the only piece
_LENGTH: Final = 8

NotedOutcome = tuple[bool, list[bytes | bytearray]]
"""Whether a call went well, and the pickled result with its buffers, or the pickled fields of a
`PickledError`."""


class Page(NamedTuple):
    """What is known of a job that a worker has not reported."""

    base: int  # the item of the first outcome
    outcomes: list[NotedOutcome]
    begun: int  # so many of the job's items, from its first one on, have been begun; 0: none


class WorkersPage:
    """The worker's side.

    Args:
        board: the words of the board.
        clock: the same as floats.
        memory: where the page is.
    """

    def __init__(self, board: Words, clock: memoryview[float], memory: memoryview) -> None:
        self._board = board
        self._clock = clock
        self._memory = memory
        self._size = memory.nbytes
        self._end = 0  # of the part that is in use

    def turn(self, item: int) -> None:
        """All outcomes before this item's have been reported."""
        self._end = 0
        self._board[_NOTED] = 0
        self._board[_BASE] = item

    def begin(self, item: int) -> None:
        """This one is begun."""
        self._clock[_SINCE] = time.monotonic()
        self._board[_BEGUN] = item + 1

    def note(self, ok: bool, pieces: list[Any]) -> bool:
        """The outcome of the item that was begun; False if there is no room for it."""
        if len(pieces) == 1:
            size = len(pieces[0])
            table = _ONE.pack(ok, 1, size)
        else:
            lengths = [len(piece) for piece in pieces]
            size = sum(lengths)
            table = struct.pack(f"<II{len(pieces)}Q", ok, len(pieces), *lengths)
        start = self._end
        end = start + len(table) + size
        if end > self._size:
            return False
        self._memory[start:end] = b"".join((table, *pieces))
        self._end = end
        self._board[_NOTED] += 1
        return True

    def end(self) -> None:
        """The job is over."""
        self._board[_BEGUN] = 0


def running_item(board: Words, clock: memoryview[float]) -> tuple[int, float] | None:
    """The item that was begun last, of the job that runs, and when (monotonic, seconds); None: none
    was, or it has no items."""
    begun: int = board[_BEGUN]
    return (begun - 1, clock[_SINCE]) if begun else None


def read_page(board: Words, memory: Any, start: int, size: int) -> Page:
    """The pool's side; the worker may be alive. What makes no sense is not read: a task may have
    written there."""
    base = board[_BASE]
    outcomes: list[NotedOutcome] = []
    position, end = start, start + size
    for _ in range(board[_NOTED]):
        if position + _HEAD.size > end:
            break
        ok, count = _HEAD.unpack_from(memory, position)
        position += _HEAD.size
        if not count or position + count * _LENGTH > end:
            break
        lengths = struct.unpack_from(f"<{count}Q", memory, position)
        position += count * _LENGTH
        if position + sum(lengths) > end:
            break
        pieces: list[bytes | bytearray] = []
        for length in lengths:
            piece = memory[position : position + length]
            pieces.append(bytearray(piece) if pieces else bytes(piece))  # buffers may be written to
            position += length
        outcomes.append((bool(ok), pieces))
    if board[_BASE] != base:  # it has begun anew meanwhile
        outcomes.clear()
    return Page(base, outcomes, board[_BEGUN])
