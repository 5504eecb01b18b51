"""Messages through a pipe that several threads and processes write to, and any of them may be
killed over it, or interrupted.

A message travels in pieces that the kernel takes whole or not at all (PIPE_BUF), so none is ever
cut, and no lock is needed: each piece says which message it belongs to. What is lost with a process
are the messages that it had not sent, and at most one of which it had sent a part.

A task can write to any descriptor of its process: foreign bytes are passed over.
"""

from __future__ import annotations

import itertools
import os
import select
import struct
from collections.abc import Callable
from typing import Final

__all__ = ["MESSAGE", "RECORD", "WARNING", "Assembler", "Sender"]

RECORD: Final = 1
WARNING: Final = 2
KINDS: Final = (RECORD, WARNING)

_MARK: Final = b"\xc1pL\xfe"
_HEADER: Final = struct.Struct("<4sHBBQ")
"""A piece's header: the mark, its length, the kind of message, what it is of that, whose."""
_FIRST, _LAST = 1, 2
_WHOLE: Final = _FIRST | _LAST
_BODY: Final = select.PIPE_BUF - _HEADER.size  # bytes of a message in one piece

MESSAGE: Final = 1 << 20
"""Bytes of one message, at most."""
_PENDING: Final = 16
"""So many messages may have begun to arrive; of others the rest never came."""


class Sender:
    """Sends messages through a pipe; waits while it is full."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._numbers = itertools.count()

    def send(self, kind: int, message: bytes) -> None:
        """Does nothing when nobody reads any more."""
        length = len(message)
        if length <= _BODY:
            self._write(_HEADER.pack(_MARK, length, kind, _WHOLE, 0) + message)
            return
        number = os.getpid() << 32 | next(self._numbers) & 0xFFFFFFFF
        for start in range(0, length, _BODY):
            piece = message[start : start + _BODY]
            part = (_FIRST if start == 0 else 0) | (_LAST if start + _BODY >= length else 0)
            self._write(_HEADER.pack(_MARK, len(piece), kind, part, number) + piece)

    def _write(self, piece: bytes) -> None:
        try:
            os.write(self._fd, piece)
        except OSError:  # the pool has gone; or the task has closed its process's descriptors
            return


class Assembler:
    """Makes messages of what has been read.

    Args:
        take: called with each one: its kind, and its bytes.
    """

    def __init__(self, take: Callable[[int, bytes], object]) -> None:
        self._take = take
        self._unparsed = b""
        self._begun: dict[int, bytearray] = {}

    def feed(self, data: bytes) -> None:
        if self._unparsed:
            data = self._unparsed + data
        position, size = 0, len(data)
        while position + _HEADER.size <= size:
            mark, length, kind, part, number = _HEADER.unpack_from(data, position)
            if mark != _MARK or length > _BODY or kind not in KINDS:
                found = data.find(_MARK, position + 1)
                position = found if found >= 0 else max(position + 1, size - len(_MARK) + 1)
                continue
            start = position + _HEADER.size
            if start + length > size:
                break
            self._add(kind, part, number, data[start : start + length])
            position = start + length
        self._unparsed = data[position:]

    def _add(self, kind: int, part: int, number: int, piece: bytes) -> None:
        if part == _WHOLE:
            self._take(kind, piece)
            return
        if part & _FIRST:
            self._begun[number] = bytearray()
            if len(self._begun) > _PENDING:
                del self._begun[next(iter(self._begun))]
        message = self._begun.get(number)
        if message is None:
            return
        message += piece
        if len(message) > 2 * MESSAGE:  # foreign bytes that look like ours
            del self._begun[number]
        elif part & _LAST:
            del self._begun[number]
            self._take(kind, bytes(message))

    def end(self) -> None:
        """Nothing more comes."""
