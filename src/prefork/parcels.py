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
import tempfile
from collections.abc import Iterable
from typing import NamedTuple

from prefork import forks

__all__ = ["BEST", "Parcel", "Transport", "high", "memory_file", "receive_parcel", "send_parcel"]

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
            forks.own(self)
        try:
            position = 0
            for piece in pieces:
                _write_all(self.fd, piece, position)
                position = _aligned(position + piece.nbytes)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            forks.disown(self)
            os.close(fd)

    abandon = close

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            self.close()

    @staticmethod
    def open(fd: int) -> list[memoryview]:
        """Map a received parcel and close its descriptor: the pickle, then the buffers."""
        try:
            memory = mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)
        view = memoryview(memory)
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


def send_parcel(sock: socket.socket, job: int, parcel: Parcel) -> None:
    socket.send_fds(sock, [_HEADER.pack(job)], [parcel.fd])


def receive_parcel(sock: socket.socket, job: int) -> list[memoryview]:
    """The parcel of this job; parcels of jobs that were taken back meanwhile are thrown away."""
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(sock, _HEADER.size, 1)
        except ConnectionResetError:
            # Said once when the other end has closed with parcels unread; those to us are here.
            continue
        if not fds:
            raise OSError("no file descriptor is left to receive a large object (ulimit -n)")
        if _HEADER.unpack(data) == (job,):
            return Parcel.open(high(fds[0]))
        os.close(fds[0])
