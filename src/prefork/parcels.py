"""Large objects on their way: anonymous files, whose descriptors are passed along.

The kernel frees the memory with the last mapping, whoever dies.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from prefork import forks

__all__ = [
    "BEST",
    "Parcel",
    "Post",
    "Transport",
    "high",
    "memory_file",
    "receive_parcel",
    "send_parcel",
]

_ALIGN = 64  # bytes: where a buffer starts in a parcel
_HEADER = struct.Struct("<Q")  # job
_STANDARD_STREAMS = 3


class Transport(NamedTuple):
    """The parts that a system may lack; both variants work on Linux, so that both are tested."""

    memfd: bool = hasattr(os, "memfd_create")
    seqpacket: bool = hasattr(socket, "SOCK_SEQPACKET")


BEST = Transport()


def high(fd: int) -> int:
    """The same open file on a descriptor that no task takes for stdin, stdout or stderr."""
    if fd >= _STANDARD_STREAMS:
        return fd
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STANDARD_STREAMS)
    os.close(fd)
    return high


def memory_file(name: str, size: int, transport: Transport) -> int:
    """An anonymous file that lives as long as somebody has it open or mapped."""
    if transport.memfd:
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    else:
        import tempfile  # large

        fd, path = tempfile.mkstemp(prefix=name)
        os.unlink(path)
    fd = high(fd)
    try:
        os.truncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


class Parcel:
    """A large pickle with its out-of-band buffers, in an anonymous file.

    The receiver maps the file privately: it may write to its arrays, and the kernel frees the
    memory with the last mapping, whoever dies.
    """

    def __init__(
        self, pickled: bytes, buffers: Iterable[memoryview] = (), transport: Transport = BEST
    ) -> None:
        pieces = [memoryview(pickled), *buffers]
        lengths = array.array("Q", [len(pieces), *[piece.nbytes for piece in pieces]])
        pieces.insert(0, memoryview(lengths).cast("B"))
        with forks.creating():
            self.fd = memory_file("prefork-parcel", 0, transport)
            self._fds = forks.Descriptors(self.fd)
        try:
            position = 0
            for piece in pieces:
                _write_all(self.fd, piece, position)
                position = _aligned(position + piece.nbytes)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        self.fd = -1
        self._fds.close()

    def __del__(self) -> None:
        if hasattr(self, "_fds"):
            self.close()

    @staticmethod
    def open(fd: int) -> list[memoryview]:
        """Map a received parcel and close its descriptor: the pickle, then the buffers.

        Raises:
            OSError: there is no memory for it, or it is none.
        """
        try:
            memory = mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
            return Parcel._pieces(memoryview(memory))
        except (ValueError, TypeError) as exc:
            raise OSError(f"a large object came as a file that holds none: {exc}") from exc
        finally:
            os.close(fd)

    @staticmethod
    def _pieces(view: memoryview) -> list[memoryview]:
        (count,) = view[:8].cast("Q")
        position = 8 * (1 + count)
        pieces = []
        for length in view[8:position].cast("Q"):
            position = _aligned(position)
            pieces.append(view[position : position + length])
            position += length
        return pieces


def _aligned(position: int) -> int:
    return -(-position // _ALIGN) * _ALIGN


def _write_all(fd: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(fd, data, position)
        data = data[written:]
        position += written


class Post:
    """An end of the socket that parcels go through. Its object is made for the first parcel: many
    a worker never sees one."""

    def __init__(self, fd: int, blocking: bool) -> None:
        self._fd = fd
        self._blocking = blocking
        self._socket: socket.socket | None = None

    def fileno(self) -> int:
        return self._fd

    def socket(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(fileno=self._fd)
            self._socket.setblocking(self._blocking)
        return self._socket

    def detach(self) -> None:
        """The descriptor is closed by somebody else."""
        self._fd = -1
        if self._socket is not None:
            self._socket.detach()


def send_parcel(post: Post, job: int, parcel: Parcel) -> None:
    socket.send_fds(post.socket(), [_HEADER.pack(job)], [parcel.fd])


def receive_parcel(post: Post, job: int) -> list[memoryview]:
    """The parcel of this job. Whatever else has come is thrown away: parcels of jobs that were
    taken back meanwhile, and what a task may have written there.

    Raises:
        OSError: it cannot be had.
    """
    wanted = _HEADER.pack(job)
    while True:
        try:
            data, fds, flags, _ = socket.recv_fds(post.socket(), _HEADER.size, 1)
        except ConnectionResetError:
            # Said once when the other end has closed with parcels unread; those to us are here.
            continue
        except BlockingIOError:
            raise OSError("a large object has not come along with its report") from None
        if data == wanted and fds:
            return Parcel.open(high(fds[0]))
        for fd in fds:
            os.close(fd)
        if not data:
            raise OSError("the other end closed before a large object had come")
        if flags & socket.MSG_CTRUNC:
            raise OSError("no file descriptor is left to receive a large object (ulimit -n)")
