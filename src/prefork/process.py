"""One child process to the operating system: start it, notice its end, kill it with its group.

Each child leads a process group of its own, which ends with it: whatever a task started goes too,
unless it was started in a new session. When the pool's own process ends, even by SIGKILL, the
kernel kills the groups: see `Lifeline`.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing.process
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import reduction
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

__all__ = ["Child", "Lifeline", "LifelineEnd", "Process"]


class Process(BaseProcess):
    """The standard library's process class, for any start method.

    Takes the arguments of `multiprocessing.Process`; `context` says how the process is started,
    and further keyword arguments are accepted for the sake of callers that pass more.
    """

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},
        daemon: bool | None = None,
        *,
        context: BaseContext | None = None,
        **_kw: Any,
    ) -> None:
        super().__init__(group, target, name, tuple(args), dict(kwargs), daemon=daemon)
        self._start_context = context
        # In the child, the default for processes that it starts itself.
        self._start_method = context.get_start_method() if context else None

    def _Popen(self, process_obj: BaseProcess) -> Any:
        context = self._start_context or multiprocessing.get_context()
        self._start_context = None  # the child neither needs it nor could unpickle it
        return context.Process._Popen(process_obj)  # type: ignore[attr-defined]


class Lifeline:
    """Ties process groups to the life of this process, without a thread and without polling.

    A pipe that only this process can write to. Each child asks the kernel to send SIGKILL to its
    group when the pipe changes state, and the only thing that ever happens to it is that its last
    writer goes. It works for a child that is stopped or stuck in C code.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        _lifelines.add(self)

    def end(self) -> LifelineEnd:
        """The reading end for one child: an open file of its own, as each has its own owner."""
        if os.path.exists("/proc/self/fd"):
            return LifelineEnd(os.open(f"/proc/self/fd/{self._reader}", os.O_RDONLY | os.O_CLOEXEC))
        return LifelineEnd(os.dup(self._reader))

    def close(self) -> None:
        """Let go: whatever is still tied to it is killed."""
        if self._writer >= 0:
            os.close(self._writer)
            os.close(self._reader)
            self._reader = self._writer = -1
            _lifelines.discard(self)

    def __del__(self) -> None:
        self.close()


_lifelines: weakref.WeakSet[Lifeline] = weakref.WeakSet()


def _close_inherited() -> None:
    for lifeline in list(_lifelines):
        lifeline.close()


os.register_at_fork(after_in_child=_close_inherited)


class LifelineEnd:
    """A child's end of the lifeline; the pool closes its copy once the child has started."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_lifeline_end, (reduction.DupFd(self._fd),)

    def attach(self) -> None:
        """In the child: lead a process group, and have it killed when the parent is gone."""
        with contextlib.suppress(PermissionError):  # we lead a session already
            os.setpgid(0, 0)
        if hasattr(fcntl, "F_SETSIG"):
            fcntl.fcntl(self._fd, fcntl.F_SETOWN, -os.getpgrp())
            fcntl.fcntl(self._fd, fcntl.F_SETSIG, signal.SIGKILL)
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_ASYNC)
            if _has_ended(self._fd):  # before the kernel knew whom to tell
                _kill_own_group()
        else:
            threading.Thread(target=self._watch, name="prefork-lifeline", daemon=True).start()

    def _watch(self) -> None:
        os.read(self._fd, 1)
        _kill_own_group()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _has_ended(fd: int) -> bool:
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 1) == b""
    except BlockingIOError:
        return False


def _kill_own_group() -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _rebuild_lifeline_end(fd: Any) -> LifelineEnd:
    return LifelineEnd(fd.detach())


class Child:
    """A started process: its pid, its end, and the means to end it."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        process.start()
        assert process.pid is not None
        self.pid: int = process.pid
        # Both sides do this, so that it is done whoever runs first.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(self.pid, self.pid)
        self._pidfd = self._open_pidfd()

    def _open_pidfd(self) -> int:
        """A descriptor that becomes readable with the end of the process itself; its sentinel
        is a pipe, which what the child forked can hold open."""
        is_ours = getattr(self._process._popen, "method", "") != "forkserver"  # type: ignore[attr-defined]
        if is_ours and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # an old kernel; no descriptor left
                return os.pidfd_open(self.pid)
        return -1

    def fileno(self) -> int:
        """A descriptor that is readable once the process has ended."""
        return self._pidfd if self._pidfd >= 0 else self._process.sentinel

    def poll(self) -> int | None:
        """Collect the exit code of a child that has ended; None if nobody can tell it."""
        return self._process._popen.poll()  # type: ignore[attr-defined,no-any-return]

    def signal(self, signum: int) -> None:
        """Send a signal to the process, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signum)
            else:
                os.kill(self.pid, signum)

    def kill(self) -> None:
        """SIGKILL for the process and its group; harmless if they have gone already."""
        self.signal(signal.SIGKILL)
        self.kill_group()

    def kill_group(self) -> None:
        """SIGKILL for whatever the process has left behind."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Free the descriptors; the process has ended."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        try:
            self._process.close()
        except ValueError:  # somebody else has collected its status, so it counts as running
            self._process._popen.close()  # type: ignore[attr-defined]
            multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]
