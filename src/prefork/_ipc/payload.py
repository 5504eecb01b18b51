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

from prefork._ipc.memfd import BEST, MemfdCache, MemoryFile, Transport, above_stdio
from prefork._system import at_fork
from prefork._system.uninterrupted import uninterrupted

__all__ = ["FdSocket", "Payload", "receive_payload", "send_payload"]

_ALIGN = 64  # bytes: where a buffer starts in a payload
_HEADER = struct.Struct("<Q")  # job


class Payload:
    """A large pickle with its out-of-band buffers, in an anonymous file.

    The receiver maps the file privately: it may write to its arrays, and the kernel frees the
    memory with the last mapping, whoever dies.

    Args:
        memfd_cache: where the file may come from, and goes when the payload is closed.
    """

    def __init__(
        self,
        pickled: bytes,
        buffers: Iterable[memoryview] = (),
        transport: Transport = BEST,
        memfd_cache: MemfdCache | None = None,
    ) -> None:
        pieces = [memoryview(pickled), *buffers]
        lengths = array.array("Q", [len(pieces), *[piece.nbytes for piece in pieces]])
        pieces.insert(0, memoryview(lengths).cast("B"))
        positions = [0]
        for piece in pieces:
            positions.append(_aligned(positions[-1] + piece.nbytes))
        self._memfd_cache = memfd_cache
        spare = memfd_cache.take(positions[-1]) if memfd_cache is not None else None
        self._file = spare or MemoryFile("prefork-payload", transport)
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
        if self._memfd_cache is None:
            return None
        try:
            return self._file.lease()
        except OSError:  # no descriptor is left for that
            self._memfd_cache = None
            return None

    def close(self) -> None:
        """It needs not be sent any more."""
        memfd_cache, self._memfd_cache = self._memfd_cache, None
        if memfd_cache is None:
            self._file.close()
        elif self.fd >= 0:
            memfd_cache.put(self._file)

    @staticmethod
    def open(fd: int) -> list[memoryview]:
        """Map a received payload and close its descriptor: the pickle, then the buffers.

        Raises:
            OSError: there is no memory for it, or it is none.
        """
        try:
            memory = mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
            return Payload._pieces(memoryview(memory))
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


class FdSocket:
    """An end of the socket that payloads go through. Its object is made for the first payload: many
    a worker never sees one."""

    def __init__(self, fd: int, blocking: bool) -> None:
        self._fd = fd
        self._blocking = blocking
        self._socket: socket.socket | None = None

    def fileno(self) -> int:
        return self._fd

    def socket(self) -> socket.socket:
        if self._socket is None:
            # As a whole: an object that nobody has closes the descriptor.
            uninterrupted(self._make)
        assert self._socket is not None
        return self._socket

    def _make(self) -> None:
        self._socket = socket.socket(fileno=self._fd)
        self._socket.setblocking(self._blocking)

    def detach(self) -> None:
        """The descriptor is closed by somebody else."""
        self._fd = -1
        if self._socket is not None:
            self._socket.detach()


def send_payload(post: FdSocket, job: int, payload: Payload) -> None:
    lease = payload.lease()
    try:
        (fd,) = lease.fds if lease is not None else (payload.fd,)
        socket.send_fds(post.socket(), [_HEADER.pack(job)], [fd])
    finally:
        if lease is not None:
            lease.close()


def receive_payload(post: FdSocket, job: int) -> list[memoryview]:
    """The payload of this job. Whatever else has come is thrown away: payloads of jobs that were
    taken back meanwhile, and what a task may have written there.

    Raises:
        OSError: it cannot be had.
    """
    wanted = _HEADER.pack(job)
    while True:
        try:
            data, fds, flags, _ = socket.recv_fds(post.socket(), _HEADER.size, 1)
        except ConnectionResetError:
            # Said once when the other end has closed with payloads unread; those to us are here.
            continue
        except BlockingIOError:
            raise OSError("a large object has not come along with its report") from None
        if data == wanted and fds:
            return Payload.open(above_stdio(fds[0]))
        for fd in fds:
            os.close(fd)
        if not data:
            raise OSError("the other end closed before a large object had come")
        if flags & socket.MSG_CTRUNC:
            raise OSError("no file descriptor is left to receive a large object (ulimit -n)")
