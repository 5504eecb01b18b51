"""Ends a child's process group when this process ends, even by SIGKILL."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import signal
import threading
from multiprocessing import reduction
from typing import Any

from prefork._system import at_fork
from prefork._system.selector import is_readable

__all__ = ["Lifeline", "LifelineEnd", "is_shareable"]


@functools.cache
def is_shareable() -> bool:
    """Whether one pipe serves any number of children.

    Before Linux 5.6 the end of any reader signals the others; and each child opens the pipe anew,
    which takes a /proc.
    """
    if not hasattr(fcntl, "F_SETSIG") or not os.path.isdir("/proc/self/fd"):
        return False
    major, minor, *_ = (os.uname().release + ".0.0").split(".")
    return (int(major), int("".join(filter(str.isdigit, minor)) or 0)) >= (5, 6)


class Lifeline:
    """Ties the process groups of children to this process, without a thread and without polling.

    A pipe. Each child asks the kernel to send SIGKILL to its group when something happens to the
    reading end, and the only thing that ever happens is that the last writer, this process, goes
    or closes its end. It works for a child that is stopped, or stuck in C code.

    One for all children, where that `is_shareable`; else one for each.
    """

    def __init__(self) -> None:
        with at_fork.creating():
            reader, writer = os.pipe()
            self._writer = at_fork.Descriptors(writer)
            self.end = LifelineEnd(at_fork.Descriptors(reader))

    def cut(self) -> None:
        """Kill the children with their groups (those that have come so far as to hold their end).
        No child can be tied to it any more."""
        self.end.close()
        self._writer.close()

    def __del__(self) -> None:
        if hasattr(self, "end"):
            self.cut()


class LifelineEnd:
    """The children's end. This process closes its copy when no more children are to come."""

    def __init__(self, owned: at_fork.Descriptors) -> None:
        self._owned = owned
        (self.fd,) = owned.fds

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_lifeline_end, (reduction.DupFd(self.fd),)

    def keep(self) -> None:
        """In a child that forks others, which are to hold it: they inherit it."""
        self._owned.hand_over()

    def hold(self) -> list[int]:
        """In the child: lead a process group, and have it killed when the parent is gone.

        What a task forks keeps it, too: so it is killed even if this process has ended before.

        Returns:
            The descriptors that do this; readable once the parent has gone.

        Raises:
            OSError: no descriptor is left for it.
        """
        self._owned.hand_over()
        if os.getsid(0) != os.getpid():  # else we lead a session, and with it a group
            os.setpgid(0, 0)
            _ignore_the_terminal()
        if not hasattr(fcntl, "F_SETSIG"):
            threading.Thread(target=self._watch, name="prefork-lifeline", daemon=True).start()
            return [self.fd]
        if is_shareable():
            fds = [self._open_anew()]  # who is to be told is a property of the opening
            os.close(self.fd)
            self.fd = fds[0]
        else:
            fds = [self.fd]
        self._arm(fds[0])
        # Once more: new kernels do not keep others from forking while they signal a group, and
        # so miss a process that is forked at that moment. It is there the second time.
        with contextlib.suppress(OSError):  # no /proc, or no descriptor is left
            fds.append(self._open_anew())
            self._arm(fds[1])
        if is_readable(self.fd, 0):  # gone before the kernel knew whom to tell
            self._kill_own_group()
        return fds

    def _open_anew(self) -> int:
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    @staticmethod
    def _arm(fd: int) -> None:
        fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC)

    def _watch(self) -> None:
        os.read(self.fd, 1)
        self._kill_own_group()

    @staticmethod
    def _kill_own_group() -> None:
        os.killpg(os.getpgrp(), signal.SIGKILL)

    def close(self) -> None:
        self._owned.close()


def _ignore_the_terminal() -> None:
    """This group is in the background of its terminal, if it has one. By default the kernel stops
    for ever whoever writes to it under `stty tostop`, sets it or reads from it there; now the first
    two do as they would in the foreground, and reading is an error (EIO)."""
    for signum in (signal.SIGTTOU, signal.SIGTTIN):
        if signal.getsignal(signum) is signal.SIG_DFL:
            signal.signal(signum, signal.SIG_IGN)


def _rebuild_lifeline_end(duplicate: Any) -> LifelineEnd:
    fd = duplicate.detach()
    os.set_inheritable(fd, False)
    return LifelineEnd(at_fork.Descriptors(fd))
