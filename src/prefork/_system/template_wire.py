"""What a pool and its template say to each other: whole messages through a socket, and descriptors
that come along with them. `template.py` tells what they are for."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from array import array
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

__all__ = [
    "CLOEXEC",
    "DONT_WAIT",
    "FIRST",
    "REAP",
    "START",
    "STATUS",
    "Answer",
    "Question",
    "close_all",
    "receive",
    "send",
    "shut_writing",
]

_MAX_MESSAGE: Final = 1 << 16
_MAX_FDS: Final = 64
DONT_WAIT: Final = getattr(socket, "MSG_DONTWAIT", 0)
CLOEXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # `socket.recv_fds` drops its flags


class Question(NamedTuple):
    number: int
    what: str  # one of those below
    pid: int = 0
    detail: bytes = b""


START, STATUS, REAP = "start", "status", "reap"
FIRST: Final = 0  # the number of the answer that tells of the first worker, unasked


class Answer(NamedTuple):
    number: int
    pid: int = 0
    status: int | None = None  # as in `multiprocessing.Process.exitcode`
    error: int = 0  # errno


@contextlib.contextmanager
def _socket(fd: int) -> Iterator[socket.socket]:
    """As an object that does not close the descriptor, not in a forked child either."""
    borrowed = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def send(fd: int, message: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    with _socket(fd) as sock:
        sock.sendmsg([pickle.dumps(tuple(message))], ancillary, socket.MSG_NOSIGNAL | DONT_WAIT)


def receive(fd: int, flags: int = 0) -> tuple[tuple[Any, ...] | None, list[int]]:
    """A message and the descriptors that have come along; None at the end."""
    fds = array("i")
    with _socket(fd) as sock:
        room = socket.CMSG_SPACE(_MAX_FDS * fds.itemsize)
        data, ancillary, _, _ = sock.recvmsg(_MAX_MESSAGE, room, CLOEXEC | flags)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
    return (pickle.loads(data) if data else None), fds.tolist()


def shut_writing(fd: int) -> None:
    """The other side reads what has been sent, and then the end."""
    with _socket(fd) as sock:
        sock.shutdown(socket.SHUT_WR)


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
