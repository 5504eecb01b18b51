"""One child process to the pool: start it, notice its end, kill it with its group.

Each child leads a process group of its own, which ends with it: whatever a task started goes too,
unless it was started in a new session. When the pool's own process ends, even by SIGKILL, the
kernel kills the groups: see `Lifeline`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

from prefork._system import at_fork, forks, signals, std_internals
from prefork._system.fork_warning import warn_of_threads
from prefork._system.launch import Foreign, Launch
from prefork._system.lifeline import Lifeline
from prefork._system.process import Process, list_child, run_tied, unlist_child
from prefork._system.selector import is_readable
from prefork._system.template import Template

__all__ = ["Child", "Ties", "announce", "fork_server_pid", "give_up"]


def announce(context: BaseContext, module: str) -> None:
    """Processes are to be started in this context, for whoever calls this, and more of them later.

    Args:
        module: what they run; a fork server, unless it runs already, imports it once for all.

    Raises:
        DeprecationWarning: they are to be forked, this process has threads, and the program takes
            that warning for an error.
    """
    if (server := std_internals.fork_server_of(context)) is not None:
        std_internals.preload(server, module)
    elif std_internals.is_forking(context):
        warn_of_threads()


def fork_server_pid(context: BaseContext) -> int | None:
    """The process that the last child in this context has been asked of, if that is a fork server;
    it may have ended."""
    server = std_internals.fork_server_of(context)
    return None if server is None else std_internals.server_pid(server)


def give_up(context: BaseContext) -> None:
    """The first process could not be started in time: what may be stuck over it is not left so."""
    if (server := std_internals.fork_server_of(context)) is not None:
        std_internals.end_if_stuck(server)


def _status(thread: str) -> dict[str, str]:
    with open(f"{thread}/status", encoding="ascii", errors="replace") as status:
        lines = status.read().splitlines()  # (its name may be any bytes)
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _has(status: dict[str, str], signals: str, signum: int) -> bool:
    return bool(int(status.get(signals, "0"), 16) >> (signum - 1) & 1)


class Ties(NamedTuple):
    """What processes have to do with the one that they are made by.

    Attributes:
        lifeline: the one for all, if one is; else each gets its own.
        template: the process that they are forked from, or that the next one is to become.
    """

    lifeline: Lifeline | None = None
    template: Template | None = None


NO_TIES = Ties()


class Child:
    """A process that runs `target(*args)`: its pid, its end, and the means to end it.

    It is made, then started, and then looked after, which are three steps since forks should
    follow one upon another (see `Spawner.spawn`).

    Args:
        target: the same for all children of one template.
        args: may hold objects that `multiprocessing` can pickle only while it starts a process.
        fds: of this process, which a forked child is to keep.
        index: see `Process`.

    Raises:
        OSError: the system has no process, memory or descriptor left.
    """

    def __init__(
        self,
        process_class: type[Process],
        context: BaseContext,
        name: str,
        target: Callable[..., object],
        args: tuple[Any, ...],
        fds: tuple[int, ...] = (),
        index: int = 0,
        ties: Ties = NO_TIES,
    ) -> None:
        self.index = index
        self.pid = 0  # until it is started
        self._was_killed = False
        self._own_lifeline = None if ties.lifeline is not None else Lifeline()
        lifeline = (self._own_lifeline or ties.lifeline).end  # type: ignore[union-attr]
        forks_here = std_internals.is_forking(context)
        if not forks_here:
            # A child of the fork server has that one's mask.
            blocked = signals.blocked() if context.get_start_method() == "spawn" else None
            target, args = run_tied, (lifeline, blocked, target, args)
        self._process = process = process_class(
            target=target, name=name, args=args, context=context
        )
        process.index = index
        process.is_worker = True
        template = ties.template
        self._launch: Launch
        if not forks_here:
            self._launch = Foreign(process, context, (*fds, lifeline.fd))
        elif template is not None and template.pid:
            self._launch = forks.TemplateFork(process, fds, template)
        else:  # from here; if there is to be a template, what is forked becomes it
            self._launch = forks.Fork(process, fds, lifeline, template)
        process.launch = self._launch

    def start(self) -> None:
        """
        Raises:
            TemplateLostError: it was to be forked from a template that has gone.
            OSError: as above.
        """
        list_child(self._process)
        at_fork.keeping(self._launch.fds, self._process.start)

    def look_after(self) -> None:
        """It has been started; no harm if this is done again.

        Raises:
            TemplateLostError, OSError: as above.
        """
        self._launch.tidy()
        if self._own_lifeline is not None:
            self._own_lifeline.end.close()
        self.pid = self._launch.pid
        # Both sides do this, so that it is done whoever runs first.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(self.pid, self.pid)

    def discard(self, timeout: float) -> None:
        """It is not wanted, whether it has been started or not: end it, and free all."""
        if self._launch.has_started():
            with contextlib.suppress(OSError):  # nobody knows it: it ends of itself
                self.look_after()
            if self.pid:
                self.kill()
                if self.wait(timeout):
                    self.ask_status()
                    self.collect()
        self.close()

    def fileno(self) -> int:
        """A descriptor that is readable once the process has ended."""
        return self._launch.sentinel

    def signal(self, signum: int) -> None:
        """Send a signal to the process, if it is still there."""
        pidfd = self._launch.pidfd
        with contextlib.suppress(ProcessLookupError):
            if pidfd >= 0:
                signal.pidfd_send_signal(pidfd, signum)
            else:
                os.kill(self.pid, signum)

    def catches(self, signum: int) -> bool:
        """Whether the process has a handler for this signal; False where that is not told."""
        return any(_has(status, "SigCgt", signum) for status in self._threads())

    def has_handled(self, signum: int) -> bool:
        """Whether no such signal is waiting for the process, or being handled in it (while a
        handler runs, its own signal is blocked)."""
        sets = ("SigPnd", "ShdPnd", "SigBlk")
        return not any(_has(status, name, signum) for status in self._threads() for name in sets)

    def is_deaf_to(self, signum: int) -> bool:
        """Whether such a signal that was sent waits in vain, as all threads block it; True where
        that is not told."""
        threads = self._threads()
        waits = any(_has(each, name, signum) for each in threads for name in ("SigPnd", "ShdPnd"))
        return not threads or (waits and all(_has(each, "SigBlk", signum) for each in threads))

    def is_stopped(self) -> bool:
        """Whether somebody has stopped it (SIGSTOP, a debugger)."""
        return any(status.get("State", "")[:1] in "Tt" for status in self._threads())

    def _threads(self) -> list[dict[str, str]]:
        """What /proc tells of each thread (proc(5)); nothing, once the process has gone."""
        folder = f"/proc/{self.pid}/task"
        try:
            return [_status(f"{folder}/{thread}") for thread in os.listdir(folder)]
        except OSError:
            return []

    def kill(self) -> None:
        """SIGKILL for the process and its group."""
        self._was_killed = True
        self.signal(signal.SIGKILL)
        self._kill_group()
        # Once more, for what is forked at that very moment: see `LifelineEnd.hold`.
        self._kill_group()
        if self._own_lifeline is not None:
            self._own_lifeline.cut()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def ask_status(self) -> None:
        """The process has ended: have its status ready for `collect`, if that has to be asked for.
        To be called first, where a moment's waiting does no harm."""
        self._launch.ask_status()

    def collect(self) -> int | None:
        """The process has ended: kill what it left behind, return its exit code. Never waits.

        As in `multiprocessing.Process.exitcode`; None if nobody can tell it any more.
        """
        if not (self._was_killed and self._launch.outlives_its_number):
            self._kill_group()  # while the dead process still holds its number
        code = self._launch.known_status()
        self._launch.reap()
        return -signal.SIGKILL if code is None and self._was_killed else code

    @property
    def process(self) -> Process:
        """As multiprocessing has it."""
        return self._process

    def wait(self, timeout: float) -> bool:
        """Wait until the process has ended, at most `timeout` seconds; whether it has."""
        fd = self.fileno()
        if fd >= 0:
            return is_readable(fd, timeout)
        deadline = time.monotonic() + timeout  # no descriptor was left for it
        while self._launch.poll() is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.001)
        return True

    def close(self) -> None:
        """Free the descriptors; the process has ended."""
        if self._own_lifeline is not None:
            self._own_lifeline.cut()
        unlist_child(self._process)
        self._launch.close()
