"""How a worker process is started and watched, whatever starts it: what all ways have in common,
and the way of the standard library. For the others see `forks.py`.

Whoever asks for a status only looks at it: `multiprocessing.active_children()` does, in any thread.
The process stays a zombie, whose number is its own, until the pool has accounted for it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
import time
from multiprocessing import popen_fork
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any

from prefork._system import at_fork, std_internals
from prefork._system.kernel import HAS_PIDFD
from prefork._system.locks import Lock
from prefork._system.newborn import surviving_interrupts
from prefork._system.selector import is_readable

if TYPE_CHECKING:
    from prefork._system.process import Process
    from prefork._system.template import Template

__all__ = ["UNGUARDED", "Foreign", "Launch"]

UNGUARDED = (
    "A worker that is not forked imports the program's file: what the program does when it is run "
    'belongs under `if __name__ == "__main__":`'
)
"""A program that starts its work when it is imported would start it in each worker, and in the fork
server, too: the standard library refuses that there."""

STATUS_SECONDS = 1.0
"""How long to wait for the exit code of a child that has ended, if only a pipe has told so."""

STEP_SECONDS = 0.05


def peek(popen: Any, flag: int) -> int | None:
    """The exit code of a child that has ended, which stays a zombie: its number is its own until
    `reap`. None if it has not, or if somebody else has reaped it."""
    if popen.returncode is None:
        try:
            ended = os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT | flag)
        except ChildProcessError:
            return None
        if ended is not None:
            exited = ended.si_code == os.CLD_EXITED
            popen.returncode = ended.si_status if exited else -ended.si_status
    code: int | None = popen.returncode
    return code


def await_end(popen: Any, timeout: float | None) -> int | None:
    """Wait for the end of a process that the pool may account for at the same time: in steps, since
    its descriptor is closed then, and the number may become another's."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while (code := popen.poll()) is None and (fd := popen.sentinel) >= 0:
        left = STEP_SECONDS if deadline is None else deadline - time.monotonic()
        if left <= 0:
            break
        is_readable(fd, min(STEP_SECONDS, left))
    return code  # type: ignore[no-any-return]


def reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


class Launch(popen_fork.Popen):
    """How one process is started, and ends; to the standard library, which calls this a Popen, it
    is the process.

    Args:
        template: what forks it; None: this process does, so that it is a child of this one.

    Attributes:
        fds: of this process, which a child that is forked needs.
    """

    finalizer = None
    returncode: int | None = None
    fds: tuple[int, ...] = ()

    def __init__(self, process: Process, template: Template | None) -> None:
        self._process = process
        self._pidfd = at_fork.Descriptors()  # one, once it has been started
        self._template = template
        self._is_adopted = template is not None
        if template is not None:
            template.adopt()

    @property
    def method(self) -> str:  # type: ignore[override]
        return "fork"

    @property
    def pidfd(self) -> int:
        """-1 if there is none."""
        return self._pidfd.fds[0] if self._pidfd.fds else -1

    @property
    def sentinel(self) -> int:  # type: ignore[override]
        """A descriptor that is readable once the process has ended; -1 if there is none yet."""
        return self.pidfd

    @property
    def pid(self) -> int:  # type: ignore[override]
        """0 until it is launched."""
        raise NotImplementedError

    def has_started(self) -> bool:
        """Whether there is a process, even if its start was interrupted."""
        raise NotImplementedError

    def launch(self) -> None:
        """
        Raises:
            TemplateLostError: nobody knows whether there is a process; it will not run.
            OSError: no process, or no descriptor, is left.
        """
        raise NotImplementedError

    def tidy(self) -> None:
        """It has been started, and there is time for the rest; no harm if this is done again.

        Raises:
            OSError: no descriptor is left.
            TemplateLostError: nobody knows whether there is a process.
        """
        raise NotImplementedError

    # ---- its end

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if self._template is None:
            return peek(self, flag)
        self.ask_status()
        return self.returncode

    def known_status(self) -> int | None:
        """The same, without asking anybody but the kernel."""
        return peek(self, os.WNOHANG) if self._template is None else self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        return await_end(self, timeout)

    def ask_status(self) -> None:
        """It has ended: learn how, if that takes a question that is to be waited for."""
        template = self._template
        if template is None:
            if self.pidfd < 0:
                self._await_status()
            return
        if self.returncode is not None or self.pidfd < 0:
            return
        if is_readable(self.pidfd, 0):
            status = template.status(self.pid)
            # Another thread may have asked, too, and reaped it before this question arrived.
            if status is not None and self.returncode is None:
                self.returncode = status
            if self.returncode is None and template.is_lost:
                self._adopt_orphan()

    def _await_status(self) -> None:
        """A pipe has told that it ends: a moment later it has ended."""
        deadline = time.monotonic() + STATUS_SECONDS
        while self.pid and self.poll() is None and time.monotonic() < deadline:
            time.sleep(STEP_SECONDS / 50)

    def _adopt_orphan(self) -> None:
        """It may be ours, after all: the first process of a container adopts orphans."""
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)

    @property
    def outlives_its_number(self) -> bool:
        """Whether somebody else may have reaped it, so that its number may be another's."""
        return self._template is not None and self._template.is_lost

    def reap(self) -> None:
        """It has been accounted for; its number may be used again."""
        if self._template is None:
            reap(self.pid)
        elif self._is_adopted:
            self._template.reap(self.pid)
            self._let_go()

    def _let_go(self) -> None:
        if self._is_adopted and self._template is not None:
            self._is_adopted = False
            self._template.let_go()

    def close(self) -> None:
        self._pidfd.close()
        if self._pidfd.are_ours:
            self._let_go()

    def __del__(self) -> None:
        # (At the interpreter's end its lock may be a thread's that does not run any more.)
        if hasattr(self, "_is_adopted") and not sys.is_finalizing():
            self.close()


class Foreign(Launch):
    """A process that the standard library starts: with spawn, forkserver, or another context.

    Args:
        fds: of this process, which it is to keep if it is forked.
    """

    def __init__(self, process: Process, context: BaseContext, fds: tuple[int, ...]) -> None:
        super().__init__(process, None)
        self.fds = fds
        self._method = context.get_start_method()
        self._server = std_internals.fork_server_of(context)
        self._popen = std_internals.popen(context)
        if std_internals.has_standard_server(context):
            from prefork._system.server_child import ServerChild  # large

            self._popen = functools.partial(ServerChild, server=self._server)
        self._popens: list[Any] = []  # of one process, once it has been started
        self._lock = Lock()
        self._is_closed = False

    @property
    def method(self) -> str:  # type: ignore[override]
        return self._method

    @property
    def pid(self) -> int:  # type: ignore[override]
        return int(self._popens[0].pid) if self._popens else 0

    @property
    def sentinel(self) -> int:  # type: ignore[override]
        """Not the standard library's, if possible: that is a pipe, which what the child forked can
        hold open."""
        if self.pidfd >= 0 or self._is_closed or not self._popens:
            return self.pidfd
        return int(self._popens[0].sentinel)

    def has_started(self) -> bool:
        return bool(self._popens)

    def launch(self) -> None:
        try:
            with (
                std_internals.without_false_file(),
                surviving_interrupts(self._method, self._server),
            ):
                # All in C: nothing comes between the start and its being known.
                self._popens.extend(itertools.starmap(self._popen, [(self._process,)]))
        except (ConnectionError, EOFError) as exc:
            if self._method == "forkserver":
                exc.add_note(f"the fork server has ended: see its error output. {UNGUARDED}")
            raise

    def tidy(self) -> None:
        if self.pidfd < 0 and self.pid and HAS_PIDFD:
            with contextlib.suppress(OSError), at_fork.creating():  # no descriptor left
                self._pidfd.add(os.pidfd_open(self.pid))

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if self.method != "forkserver":
            return super().poll(flag)
        with self._lock:  # it comes through a pipe, once
            if not self._is_closed and self._popens:
                self.returncode = self._popens[0].poll()
            return self.returncode

    def ask_status(self) -> None:
        if self.method != "forkserver":
            super().ask_status()
        elif self._popens and not self._is_closed:
            is_readable(self._popens[0].sentinel, STATUS_SECONDS)
            self.poll()

    def known_status(self) -> int | None:
        return self.returncode if self.method == "forkserver" else super().known_status()

    def reap(self) -> None:
        if self.method != "forkserver":
            super().reap()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            super().close()
            for popen in self._popens:
                popen.close()
