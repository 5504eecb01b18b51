"""Descriptors that travel with a pickle: those of connections, sockets, and whatever else pickles
itself by `multiprocessing.reduction.DupFd`.

The standard library gives a descriptor to another process by a thread of its own that waits for
whoever comes for it, at a socket in the file system. Here it goes along with the pickle, through
the channel: while an object is pickled (`collecting`), a duplicate of each descriptor is kept, to
be sent; while it is unpickled (`arriving`), they are taken out again, each once. `reduction.DupFd`
is replaced for that; elsewhere it does what it always did.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator
from multiprocessing import context, reduction
from typing import Any

from prefork._system import at_fork

__all__ = ["ArrivedFds", "TravellingFd", "arriving", "collecting"]


class _Here(threading.local):
    leaving: list[int] | None = None  # those of the object that is being pickled
    arrived: ArrivedFds | None = None  # those of the object that is being unpickled


_here = _Here()
_std_dup_fd: Any = reduction.DupFd


def _dup_fd(fd: int) -> Any:
    """What a reducer calls instead of pickling the number of a descriptor."""
    leaving = _here.leaving
    if leaving is None or context.get_spawning_popen() is not None:
        return _std_dup_fd(fd)
    with at_fork.creating():
        duplicate = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        leaving.append(duplicate)
        at_fork.Descriptors(duplicate)  # forked children do not keep it
    return TravellingFd(len(leaving) - 1)


reduction.DupFd = _dup_fd


@contextlib.contextmanager
def collecting(fds: list[int]) -> Iterator[None]:
    """Pickling in here adds the duplicates of descriptors to these; none, if it fails."""
    before, _here.leaving = _here.leaving, fds
    count = len(fds)
    try:
        yield
    except BaseException:
        at_fork.Descriptors(*fds[count:]).close()
        del fds[count:]
        raise
    finally:
        _here.leaving = before


@contextlib.contextmanager
def arriving(fds: ArrivedFds | None) -> Iterator[None]:
    """Unpickling in here may take these; what nobody takes is closed."""
    before, _here.arrived = _here.arrived, fds
    try:
        yield
    finally:
        _here.arrived = before
        if fds is not None:
            fds.close()


class TravellingFd:
    """Stands for a descriptor in a pickle."""

    def __init__(self, index: int) -> None:
        self._index = index

    def detach(self) -> int:
        """The descriptor, in the process that has received it; once.

        Raises:
            OSError: it is not here.
        """
        if _here.arrived is None:
            raise OSError("a descriptor can be taken only while its object is being unpickled")
        return _here.arrived.take(self._index)


class ArrivedFds:
    """Descriptors that have come with a pickle, until each is taken."""

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds = dict(enumerate(fds))

    def take(self, index: int) -> int:
        try:
            return self._fds.pop(index)
        except KeyError:
            raise OSError("a descriptor has not come along with its object") from None

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_fds"):
            self.close()
