"""Pickles that several jobs have in common: each is sent to a worker beside them, in a file.

The file is sealed, so that whoever has it cannot change what others see. Its first piece is the
*key*, by which a worker tells whether it has this already. The descriptor goes along with a job, by
the same way as that of a large call, and is closed once the file is mapped; so a job that is taken
back takes it along, and a worker that is new has nothing that it should not.

    key, pickle, its out-of-band buffers …

Where there can be no file, or its descriptor cannot be sent, the pieces are copied instead, through
the channel's annex (`payload.py`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

from prefork._ipc.file_memory import file_memory
from prefork._ipc.memfd import BEST, MemoryFile, Transport
from prefork._ipc.payload import pieces_of, write_pieces

__all__ = ["FUNCTION", "MOST_CONSTANTS", "Constant", "open_constant"]

FUNCTION: Final = 0
"""The key of a function that each of its jobs unpickles anew."""

MOST_FILES: Final = 128
"""So many of these have a file, in one process: descriptors are to be left for others."""

MOST_CONSTANTS: Final = 250
"""So many may go along with one job: what fits into one message (see `payload.MOST_FDS`)."""


class _Open:
    """Files of this process."""

    count: ClassVar[int] = 0


class Constant:
    """
    Args:
        key: of it.
        pieces: the pickle and its buffers, which are copied.

    Attributes:
        nbytes: of it.

    Raises:
        OSError: there is no memory for a file, or no descriptor.
    """

    def __init__(self, key: int, pieces: list[memoryview], transport: Transport = BEST) -> None:
        self.key = key
        self.nbytes = sum(piece.nbytes for piece in pieces)
        if _Open.count >= MOST_FILES:
            raise OSError(errno.EMFILE, "as many constants have files as may have")
        file = MemoryFile("prefork-constant", transport, sealable=True)
        whole = [memoryview(key.to_bytes(_KEY, "little")), *pieces]
        file.size = write_pieces(file.fd, 0, whole)
        file.seal()
        self._owner = os.getpid()
        self._file: MemoryFile | None = file
        _Open.count += 1

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of the file, to be sent.

        Raises:
            OSError: there is none.
        """
        file = self._file
        if file is None or self._owner != os.getpid() or file.is_lost():
            raise OSError(errno.EBADF, "somebody has closed the file of a constant")
        yield file.fd

    def pieces(self) -> list[memoryview]:
        """What is in there: the key, the pickle, the buffers.

        Raises:
            OSError: it cannot be had.
        """
        with self.opened() as fd:
            return pieces_of(file_memory(fd, read_only=True))

    def write(self, fd: int, start: int) -> int:
        """Copy it into another file; see `write_pieces`."""
        return write_pieces(fd, start, self.pieces())

    def __del__(self, _getpid: object = os.getpid) -> None:
        if getattr(self, "_file", None) is not None and self._owner == _getpid():  # type: ignore[operator]
            _Open.count -= 1


_KEY: Final = 8  # bytes


def key_of(pieces: list[memoryview]) -> int:
    """
    Raises:
        OSError: these are no constant's.
    """
    if len(pieces) < 2 or pieces[0].nbytes != _KEY:
        raise OSError("a constant came as a file that holds none")
    return int.from_bytes(pieces[0], "little")


def open_constant(fd: int) -> tuple[int, list[memoryview]]:
    """Map a received file: the key; then the pickle and its buffers, which may be written to only
    if it is a function's.

    Raises:
        OSError: there is no memory for it, or it is none.
    """
    try:
        pieces = pieces_of(file_memory(fd, read_only=True))
        key = key_of(pieces)
        if key == FUNCTION:
            pieces = pieces_of(file_memory(fd))
        return key, pieces[1:]
    except (ValueError, TypeError) as exc:
        raise OSError(f"a constant came as a file that holds none: {exc}") from exc


def annexed_constant(pieces: list[memoryview]) -> tuple[int, list[memoryview]]:
    """The same, of copies."""
    key = key_of(pieces)
    return key, pieces[1:] if key == FUNCTION else [piece.toreadonly() for piece in pieces[1:]]
