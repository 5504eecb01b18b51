"""Large objects on their way, and descriptors that go along with them.

A *payload* is a pickle with its out-of-band buffers. Above `FILE` bytes it is in an anonymous file
whose descriptor is sent: the receiver maps it, so that it is not copied again, and the kernel frees
the memory with the last mapping, whoever dies. Below, or where no file can be made or sent, it is
in memory, and is copied through the channel's own file (its *annex*), which needs no descriptor, no
mapping and no other file.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterable
from typing import Final

from prefork._ipc.file_memory import file_memory
from prefork._ipc.memfd import BEST, MemfdCache, MemoryFile, Transport
from prefork._ipc.pieces import pieces_of, read_pieces, write_pieces
from prefork._system import at_fork
from prefork._system.uninterrupted import uninterrupted

__all__ = [
    "FILE",
    "FdSocket",
    "FilePayload",
    "Payload",
    "give_up_reserve",
    "keep_reserve",
    "receive_beside",
    "receive_fds",
    "receive_file",
    "send_beside",
    "send_fds",
    "send_file",
]

FILE: Final = 1 << 18
"""Below so many bytes, to copy an object is cheaper than to make, send and map a file; anything
between 160 and 640 KiB is defensible (measured with two workers on two CPUs)."""

MOST_FDS: Final = 250
"""Descriptors in one message; the kernel takes 253 (SCM_MAX_FD)."""

_HEADER = struct.Struct("<QHH")  # job; what the descriptors are; how many
_FILE_OF_OBJECT, _PART_OF_OBJECT, _BESIDE_OBJECT = 1, 2, 3


# ---- payloads


class Payload:
    """A pickle, its out-of-band buffers, and descriptors that belong to it: in memory.

    The buffers are views of an object that may change; `keep` makes copies of them.
    """

    is_file = False

    def __init__(
        self,
        pickled: bytes | memoryview,
        buffers: Iterable[memoryview] = (),
        fds: at_fork.Descriptors | None = None,
    ) -> None:
        self.pieces = [memoryview(pickled), *buffers]
        self.fds = fds if fds is not None and fds.fds else None

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)

    def keep(self) -> None:
        self.pieces = [memoryview(piece.tobytes()) for piece in self.pieces]

    def write(self, fd: int, start: int) -> int:
        """Copy it into a file; see `write_pieces`."""
        return write_pieces(fd, start, self.pieces)

    def close(self) -> None:
        """It needs not be sent any more."""
        self.pieces = []
        if self.fds is not None:
            self.fds.close()


class FilePayload(Payload):
    """The same in a file of its own.

    Args:
        memfd_cache: where the file may come from, and goes when the payload is closed.

    Raises:
        OSError: there is no memory, or no descriptor.
    """

    is_file = True

    def __init__(
        self,
        pickled: bytes | memoryview,
        buffers: Iterable[memoryview] = (),
        fds: at_fork.Descriptors | None = None,
        transport: Transport = BEST,
        memfd_cache: MemfdCache | None = None,
    ) -> None:
        super().__init__(pickled, buffers, fds)
        self._cache = memfd_cache
        self._nbytes = super().nbytes
        cached = memfd_cache.take(self._nbytes) if memfd_cache is not None else None
        self._file = cached or MemoryFile("prefork-payload", transport)
        try:
            self._file.size = max(self._file.size, write_pieces(self.fd, 0, self.pieces))
        except OSError:
            self._file.close()
            raise
        self.pieces = []

    @property
    def fd(self) -> int:
        return self._file.fd

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def keep(self) -> None:
        """The file is a copy."""

    def write(self, fd: int, start: int) -> int:
        return write_pieces(fd, start, read_pieces(self.fd, 0))

    def lease(self) -> at_fork.Descriptors | None:
        """A descriptor to send, if the file is to be used again; None: send its own."""
        if self._cache is None:
            return None
        try:
            return self._file.lease()
        except OSError:  # no descriptor is left for that
            self._cache = None
            return None

    def close(self) -> None:
        super().close()
        cache, self._cache = self._cache, None
        if cache is None:
            self._file.close()
        elif self.fd >= 0:
            cache.put(self._file)

    @staticmethod
    def open(fd: int) -> list[memoryview]:
        """Map a received file and close its descriptor: the pickle, then the buffers.

        Raises:
            OSError: there is no memory for it, or it is none.
        """
        try:
            return pieces_of(file_memory(fd))
        except (ValueError, TypeError) as exc:
            raise OSError(f"a large object came as a file that holds none: {exc}") from exc
        finally:
            os.close(fd)


# ---- the socket that descriptors go through


class _Reserve:
    """A descriptor of each process, to be given up when one arrives and no other is free."""

    def __init__(self) -> None:
        self._fds: at_fork.Descriptors | None = None

    def fill(self) -> None:
        if self._is_there():
            return
        with contextlib.suppress(OSError), at_fork.creating():  # later, then
            if not self._is_there():  # another thread may have been here
                self._fds = at_fork.Descriptors(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def _is_there(self) -> bool:
        return self._fds is not None and self._fds.are_ours and bool(self._fds.fds)

    def give_up(self) -> None:
        if self._fds is not None:
            self._fds.close()


_reserve = _Reserve()


def give_up_reserve() -> None:
    """There is no other descriptor left; `keep_reserve` is to be called when there is one."""
    _reserve.give_up()


def keep_reserve() -> None:
    """To be called once in each process that receives descriptors."""
    _reserve.fill()


class FdSocket:
    """An end of the socket that descriptors go through. Its object is made for the first message:
    many a worker never sees one."""

    def __init__(self, fd: int, blocking: bool) -> None:
        self._fd = fd
        self._blocking = blocking
        self._socket: socket.socket | None = None
        self.sent = 0  # messages, so far
        self._taken = 0

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

    def send(self, job: int, what: int, fds: list[int]) -> None:
        """Send these for a job.

        Raises:
            BlockingIOError: there is no room now.
            OSError: they cannot be sent; a user may have so many descriptors on their way as one
                process may have open, in all.
        """
        for start in range(0, len(fds), MOST_FDS):
            part = fds[start : start + MOST_FDS]
            header = _HEADER.pack(job, what, len(part))
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", part))
            self.socket().sendmsg([header], [rights])
            self.sent += 1

    def receive(self, job: int, what: int) -> list[int]:
        """The next descriptors of this job and kind. Whatever else has come is thrown away: those
        of jobs that were taken back meanwhile, and what a task may have written there.

        Raises:
            OSError: they cannot be had.
        """
        while True:
            try:
                data, fds, is_whole = self._next()
            except ConnectionResetError:
                # Said once when the other end has closed with some unread; those to us are here.
                continue
            except BlockingIOError:
                raise OSError("a large object has not come along with its report") from None
            if not data:
                raise OSError("the other end closed before a large object had come")
            if data == _HEADER.pack(job, what, len(fds)) and fds and is_whole:
                return [at_fork.above_stdio(fd) for fd in fds]
            for fd in fds:
                os.close(fd)
            if not is_whole and data[:10] == _HEADER.pack(job, what, 0)[:10]:
                raise OSError("no file descriptor is left to receive a large object (ulimit -n)")

    def _next(self) -> tuple[bytes, list[int], bool]:
        """The next message: its data, its descriptors, and whether all of these could be had.

        It is looked at first, and taken then: what there is no descriptor for stays, to be looked
        at again when the reserve was given up.
        """
        data, fds, is_whole = self._look()
        if not is_whole:
            for fd in fds:
                os.close(fd)
            _reserve.give_up()
            data, fds, is_whole = self._look()
        # Without room for descriptors: the kernel drops those that are in the message.
        self.socket().recv(_HEADER.size)
        self._taken += 1
        return data, fds, is_whole

    def discard(self, number: int) -> None:
        """Throw away what has come, up to the message of this number; without waiting for it."""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while self._taken < number and self.socket().recv(_HEADER.size, socket.MSG_DONTWAIT):
                self._taken += 1

    def _look(self) -> tuple[bytes, list[int], bool]:
        # Not `socket.recv_fds`, which takes no flags.
        data, ancillary, flags, _ = self.socket().recvmsg(
            _HEADER.size,
            socket.CMSG_SPACE(4 * MOST_FDS),
            socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC,
        )
        fds = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content[: len(content) // 4 * 4])
        return data, list(fds), not flags & socket.MSG_CTRUNC

    def detach(self) -> None:
        """The descriptor is closed by somebody else."""
        self._fd = -1
        if self._socket is not None:
            self._socket.detach()


def send_file(post: FdSocket, job: int, payload: FilePayload) -> None:
    """Raises OSError, see `FdSocket.send`."""
    lease = payload.lease()
    try:
        post.send(job, _FILE_OF_OBJECT, lease.fds if lease is not None else [payload.fd])
    finally:
        if lease is not None:
            lease.close()


def receive_file(post: FdSocket, job: int) -> list[memoryview]:
    """The payload of this job: the pickle, then the buffers.

    Raises:
        OSError: it cannot be had.
    """
    try:
        fd, *others = post.receive(job, _FILE_OF_OBJECT)
        for other in others:
            os.close(other)
        return FilePayload.open(fd)
    finally:
        _reserve.fill()


def send_fds(post: FdSocket, job: int, fds: list[int]) -> None:
    """Send the descriptors of an object; raises OSError, see `FdSocket.send`."""
    post.send(job, _PART_OF_OBJECT, fds)


def receive_fds(post: FdSocket, job: int, count: int) -> list[int]:
    """So many descriptors that belong to this job's object.

    Raises:
        OSError: they cannot be had.
    """
    fds: list[int] = []
    try:
        while len(fds) < count:
            fds += post.receive(job, _PART_OF_OBJECT)
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    finally:
        _reserve.fill()
    return fds


def send_beside(post: FdSocket, job: int, fds: list[int]) -> None:
    """Send the descriptors of what a job has in common with others, at most `MOST_FDS`; raises
    OSError, see `FdSocket.send`."""
    post.send(job, _BESIDE_OBJECT, fds)


def receive_beside(post: FdSocket, job: int) -> list[int]:
    """
    Raises:
        OSError: they cannot be had.
    """
    try:
        return post.receive(job, _BESIDE_OBJECT)
    finally:
        _reserve.fill()
