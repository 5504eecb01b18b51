"""Anonymous files of memory, and their use again.

The kernel takes longer to give a file its pages than the sender to fill them. So a file whose
object has been delivered may carry the next one (`MemfdCache`), once nobody has it any more. That
is seen by a lock: what is sent of such a file is a *lease*, one more opening of the same file, with
a shared lock of its own (flock(2)). The kernel drops that with the lease's last descriptor or
mapping, whoever dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from prefork._system import at_fork
from prefork._system.kernel import HAS_MEMFD

__all__ = [
    "BEST",
    "CACHE_SECONDS",
    "MemfdCache",
    "MemoryFile",
    "Transport",
    "explaining_size_limit",
    "memory_file",
]

CACHE_SECONDS = 1.0
"""How long files are kept that nobody uses."""
MOST_CACHED = 2  # one whose content may still be in use, while the other one is filled
MOST_CACHED_BYTES = 3 << 26
_OPENED = "/proc/self/fd"  # opens what is already open
_ALL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class Transport(NamedTuple):
    """The parts that a system may lack; both variants work on Linux, so that both are tested."""

    memfd: bool = HAS_MEMFD
    seqpacket: bool = hasattr(socket, "SOCK_SEQPACKET")


BEST = Transport()


def memory_file(
    name: str,
    size: int,
    transport: Transport,
    owner: at_fork.Descriptors,
    sealable: bool = False,
) -> int:
    """An anonymous file that lives as long as somebody has it open or mapped.

    Args:
        owner: who has it from the first moment on, and closes it, if this is interrupted, too.
        sealable: it can be sealed, where there are seals.
    """
    if transport.memfd:
        flags = os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if sealable else 0)
        fd = owner.make(os.memfd_create, name, flags)
    else:
        import tempfile  # large

        fd, path = tempfile.mkstemp(prefix=name)
        owner.add(fd)
        os.unlink(path)
    if fd < at_fork.STANDARD_STREAMS:
        low = fd
        fd = owner.make(fcntl.fcntl, fd, fcntl.F_DUPFD_CLOEXEC, at_fork.STANDARD_STREAMS)
        owner.remove(low)
    with explaining_size_limit():
        os.truncate(fd, size)
    return fd


@contextlib.contextmanager
def explaining_size_limit() -> Iterator[None]:
    """Something is written into such a file: what a limit of files' sizes has to do with that."""
    try:
        yield
    except OSError as exc:
        if exc.errno != errno.EFBIG:
            raise
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        raise OSError(
            exc.errno,
            f"{exc.strerror}: the limit of a file's size is {limit} bytes here (ulimit -f), and it "
            "holds for the memory that processes share, too",
        ) from None


class MemoryFile:
    """An anonymous file that forked children do not keep; closed with its last reference.

    Args:
        sealable: see `seal`.

    Attributes:
        fd: its descriptor.
        size: bytes that it has memory for.
    """

    __slots__ = ("_fds", "_inode", "fd", "size")

    def __init__(self, name: str, transport: Transport, sealable: bool = False) -> None:
        self._fds = at_fork.Descriptors()
        with at_fork.creating():
            self.fd = memory_file(name, 0, transport, self._fds, sealable)
        self._inode = os.fstat(self.fd).st_ino
        self.size = 0

    def write(self, data: memoryview, position: int) -> None:
        with explaining_size_limit():
            while data:
                written = os.pwrite(self.fd, data, position)
                data = data[written:]
                position += written
        self.size = max(self.size, position)

    def seal(self) -> None:
        """Nobody can change it from now on, whoever has it. (Where there are no seals, there are
        none: then it depends on who has it.)"""
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _ALL_SEALS)

    @property
    def inode(self) -> int:
        """Its number, by which it is told from any other file that is open now."""
        return self._inode

    def lease(self) -> at_fork.Descriptors:
        """A descriptor to send. The file `is_leased` while anybody has it, or has mapped it, or
        while it is on its way.

        Raises:
            OSError: no descriptor is left; there is no /proc.
        """
        lease = at_fork.Descriptors()
        try:
            with at_fork.creating():
                flags = os.O_RDONLY | os.O_CLOEXEC
                fd = lease.make(os.open, f"{_OPENED}/{self.fd}", flags)
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BaseException:
            lease.close()
            raise
        return lease

    def is_lost(self) -> bool:
        """Whether somebody has closed our descriptor, so that its number may be another file's: a
        task may close all descriptors of its process."""
        try:
            return os.fstat(self.fd).st_ino != self._inode
        except OSError:
            return True

    def is_leased(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        if self._fds.are_ours and self.is_lost():
            self._fds.hand_over()
        self._fds.close()
        self.fd = -1

    def __del__(self) -> None:
        if hasattr(self, "_inode"):
            self.close()
        elif hasattr(self, "_fds"):
            self._fds.close()


class MemfdCache:
    """A few files to be used again. Safe from any thread and in finalizers: it takes no lock.

    Args:
        on_put: called when there are some after there were none, so that somebody calls `tidy` in
            `CACHE_SECONDS`.
    """

    def __init__(self, on_put: Callable[[], object] = lambda: None) -> None:
        self._on_put = on_put
        self._files: deque[MemoryFile] = deque()
        self._used_at = 0.0
        self._closed = not os.path.isdir(_OPENED)

    def __len__(self) -> int:
        return len(self._files)

    def take(self, size: int) -> MemoryFile | None:
        """One that is free, and neither much larger nor much smaller."""
        for _ in range(len(self._files)):
            try:
                file = self._files.popleft()
            except IndexError:
                break
            fits = file.size <= 2 * size and size <= 2 * file.size
            if fits and not (file.is_lost() or file.is_leased()):
                self._used_at = time.monotonic()
                return file
            self._files.append(file)
        return None

    def put(self, file: MemoryFile) -> None:
        """This one is not needed any more, but may still be leased."""
        if self._closed or file.size > MOST_CACHED_BYTES:
            file.close()
            return
        self._used_at = time.monotonic()
        is_first = not self._files
        self._files.append(file)
        while len(self._files) > MOST_CACHED or self._bytes() > MOST_CACHED_BYTES:
            self._drop_oldest()
        if is_first:
            self._on_put()

    def _bytes(self) -> int:
        return sum(file.size for file in list(self._files))  # others may change the deque

    def _drop_oldest(self) -> None:
        with contextlib.suppress(IndexError):  # another thread was here
            self._files.popleft().close()

    def tidy(self) -> float | None:
        """Close those that were not used for so long; when to call again (monotonic), or None."""
        if not self._files:
            return None
        due = self._used_at + CACHE_SECONDS
        if time.monotonic() < due:
            return due
        self.clear()
        return None

    def clear(self) -> None:
        while self._files:
            self._drop_oldest()

    def close(self) -> None:
        """Keep none from now on."""
        self._closed = True
        self.clear()
