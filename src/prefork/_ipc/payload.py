"""Large objects on their way: anonymous files, whose descriptors are passed along.

The kernel frees the memory with the last mapping, whoever dies.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
from collections.abc import Iterable

from prefork._ipc.memfd import BEST, MemoryFile, Spares, Transport, high
from prefork._system import at_fork

__all__ = ["Parcel", "Post", "receive_parcel", "send_parcel"]

_ALIGN = 64  # bytes: where a buffer starts in a parcel
_HEADER = struct.Struct("<Q")  # job


class Parcel:
    """A large pickle with its out-of-band buffers, in an anonymous file.

    The receiver maps the file privately: it may write to its arrays, and the kernel frees the
    memory with the last mapping, whoever dies.

    Args:
        spares: where the file may come from, and goes when the parcel is closed.
    """

    def __init__(
        self,
        pickled: bytes,
        buffers: Iterable[memoryview] = (),
        transport: Transport = BEST,
        spares: Spares | None = None,
    ) -> None:
        pieces = [memoryview(pickled), *buffers]
        lengths = array.array("Q", [len(pieces), *[piece.nbytes for piece in pieces]])
        pieces.insert(0, memoryview(lengths).cast("B"))
        positions = [0]
        for piece in pieces:
            positions.append(_aligned(positions[-1] + piece.nbytes))
        self._spares = spares
        spare = spares.take(positions[-1]) if spares is not None else None
        self._file = spare or MemoryFile("prefork-parcel", transport)
        try:
            for piece, position in zip(pieces, positions, strict=False):
                self._file.write(piece, position)
        except OSError:
            self._file.close()
            raise

    @property
    def fd(self) -> int:
        return self._file.fd

    def lease(self) -> at_fork.Descriptors | None:
        """A descriptor to send, if the file is to be used again; None: send its own."""
        if self._spares is None:
            return None
        try:
            return self._file.lease()
        except OSError:  # no descriptor is left for that
            self._spares = None
            return None

    def close(self) -> None:
        """It needs not be sent any more."""
        spares, self._spares = self._spares, None
        if spares is None:
            self._file.close()
        elif self.fd >= 0:
            spares.put(self._file)

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
    lease = parcel.lease()
    try:
        (fd,) = lease.fds if lease is not None else (parcel.fd,)
        socket.send_fds(post.socket(), [_HEADER.pack(job)], [fd])
    finally:
        if lease is not None:
            lease.close()


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
