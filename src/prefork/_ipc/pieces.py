"""A pickle and its buffers in a file: the number of pieces, their lengths, the pieces."""

from __future__ import annotations

import array
import os
import struct
from typing import Final

from prefork._ipc.file_memory import read_into
from prefork._ipc.memfd import explaining_size_limit

__all__ = ["pieces_of", "read_all", "read_pieces", "write_end", "write_pieces"]

_ALIGN: Final = 64  # bytes: where a buffer starts


def _aligned(position: int) -> int:
    return -(-position // _ALIGN) * _ALIGN


def write_pieces(fd: int, start: int, pieces: list[memoryview]) -> int:
    """Write them to a file, from there on; returns the end.

    Raises:
        OSError: there is no room.
    """
    lengths = array.array("Q", [len(pieces), *[piece.nbytes for piece in pieces]])
    position = start
    for piece in [memoryview(lengths).cast("B"), *pieces]:
        _write(fd, piece, position)
        position = _aligned(position + piece.nbytes)
    return position


def _write(fd: int, data: memoryview, position: int) -> None:
    with explaining_size_limit():
        while data:
            written = os.pwrite(fd, data, position)
            data = data[written:]
            position += written


def write_end(fd: int, start: int) -> int:
    """There are no more of them, see `read_all`; returns the end."""
    _write(fd, memoryview(bytes(_ALIGN)), start)
    return start + _ALIGN


def read_all(fd: int, start: int) -> list[list[memoryview]]:
    """Copies of all that was written there, one after another, up to where `write_end` was called;
    raises the same as `read_pieces`."""
    found = []
    while any(os.pread(fd, 8, start)):
        pieces, start = _read_on(fd, start)
        found.append(pieces)
    return found


def read_pieces(fd: int, start: int) -> list[memoryview]:
    """Copies of them.

    Raises:
        OSError: there are none; or no memory.
    """
    return _read_on(fd, start)[0]


def _read_on(fd: int, start: int) -> tuple[list[memoryview], int]:
    """The same, and where they end.

    Raises:
        OSError: there are none; or no memory.
    """
    try:
        (count,) = struct.unpack("=Q", os.pread(fd, 8, start))
        table = os.pread(fd, 8 * count, start + 8)
        lengths = array.array("Q", table)
        pieces = []
        position = start + 8 + len(table)
        for length in lengths:
            position = _aligned(position)
            piece = memoryview(bytearray(length))
            read_into(fd, position, piece)
            pieces.append(piece)
            position += length
    except (ValueError, OverflowError, MemoryError, struct.error) as exc:
        raise OSError(f"a large object has come, but cannot be read: {exc!r}") from exc
    if not pieces:
        raise OSError("a large object has come empty")
    return pieces, _aligned(position)


def pieces_of(view: memoryview) -> list[memoryview]:
    """Views of them in a file that is in memory."""
    (count,) = view[:8].cast("Q")
    position = 8 * (1 + count)
    pieces = []
    for length in view[8:position].cast("Q"):
        position = _aligned(position)
        pieces.append(view[position : position + length])
        position += length
    return pieces
