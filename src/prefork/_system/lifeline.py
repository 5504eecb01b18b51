"""Ends a child's process group when this process ends, even by SIGKILL."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from multiprocessing import reduction
from typing import Any

from prefork._system import at_fork
from prefork._system.selector import is_readable


class Lifeline:
    """Ties a child's process group to this process, without a thread and without polling.

    A pipe. The child asks the kernel to send SIGKILL to its group when something happens to the
    reading end, and the only thing that ever happens is that the last writer, this process, goes
    or closes its end. It works for a child that is stopped, or stuck in C code.

    Each child has a pipe of its own: before Linux 5.6 the end of any reader signals the others.
    """

    def __init__(self) -> None:
        with at_fork.creating():
            reader, writer = os.pipe()
            self._writer = at_fork.Descriptors(writer)
            self.end = LifelineEnd(at_fork.Descriptors(reader))

    def cut(self) -> None:
        """Kill the child with its group (if it has come so far as to hold its end)."""
        self._writer.close()

    def __del__(self) -> None:
        if hasattr(self, "end"):
            self.end.close()
            self.cut()


class LifelineEnd:
    """The child's end; this process closes its copy once the child has started."""

    def __init__(self, owned: at_fork.Descriptors) -> None:
        self._owned = owned
        (self.fd,) = owned.fds

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_lifeline_end, (reduction.DupFd(self.fd),)

    def hold(self) -> None:
        """In the child: lead a process group, and have it killed when the parent is gone.

        What a task forks keeps it, too: so it is killed even if this process has ended before.
        """
        self._owned.hand_over()
        if os.getsid(0) != os.getpid():  # else we lead a session, and with it a group
            os.setpgid(0, 0)
        if hasattr(fcntl, "F_SETSIG"):
            self._arm(self.fd)
            # Once more: new kernels do not keep others from forking while they signal a group, and
            # so miss a process that is forked at that moment. It is there the second time.
            with contextlib.suppress(OSError):  # no /proc, or no descriptor is left
                self._arm(os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY))
            if is_readable(self.fd, 0):  # gone before the kernel knew whom to tell
                self._kill_own_group()
        else:
            threading.Thread(target=self._watch, name="prefork-lifeline", daemon=True).start()

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


def _rebuild_lifeline_end(duplicate: Any) -> LifelineEnd:
    fd = duplicate.detach()
    os.set_inheritable(fd, False)
    return LifelineEnd(at_fork.Descriptors(fd))
