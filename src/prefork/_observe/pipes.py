"""The pipes of one worker: for log records, and for what it prints.

Each worker has its own, in which nothing is locked: a worker that is killed, or a task that writes
nonsense, concerns nobody else.
"""

from __future__ import annotations

import os
from multiprocessing import reduction
from typing import Any

from prefork._system import at_fork

__all__ = ["Pipes", "TapEnd"]


class Pipes:
    """So many, all from the worker to the pool.

    Raises:
        OSError: no descriptor is left.
    """

    def __init__(self, count: int) -> None:
        self.fds, theirs = at_fork.Descriptors(), at_fork.Descriptors()
        with at_fork.creating():
            try:
                for _ in range(count):
                    reader, _ = at_fork.pipe(self.fds, theirs)
                    os.set_blocking(reader, False)
            except BaseException:
                self.fds.close()
                theirs.close()
                raise
        self._end: TapEnd | None = TapEnd(theirs)

    def take_end(self) -> TapEnd:
        """The worker's side, once: who takes it closes it."""
        end, self._end = self._end, None
        assert end is not None
        return end


class TapEnd:
    """The worker's side, with the descriptors that it writes to."""

    def __init__(self, owned: at_fork.Descriptors) -> None:
        self._owned = owned

    def __reduce__(self) -> tuple[Any, ...]:
        # Only while a child is being started: multiprocessing duplicates the descriptors into it.
        return _rebuild, tuple(map(reduction.DupFd, self.fds()))

    def fds(self) -> tuple[int, ...]:
        return tuple(self._owned.fds)

    def take(self) -> list[int]:
        """In the worker: they are its own, and what it forks keeps them: it may log, too."""
        fds = list(self._owned.fds)
        self._owned.hand_over()
        return fds

    def close(self) -> None:
        self._owned.close()


def _rebuild(*duplicates: Any) -> TapEnd:
    fds = [duplicate.detach() for duplicate in duplicates]
    for fd in fds:  # they came through an exec, but what the tasks start must not get them
        os.set_inheritable(fd, False)
    return TapEnd(at_fork.Descriptors(*fds))
