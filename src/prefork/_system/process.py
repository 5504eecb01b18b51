"""One child process to the operating system: start it, notice its end, kill it with its group.

Each child leads a process group of its own, which ends with it: whatever a task started goes too,
unless it was started in a new session. When the pool's own process ends, even by SIGKILL, the
kernel kills the groups: see `Lifeline`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import context as mp_context
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess, _children  # type: ignore[attr-defined]
from typing import Any, NamedTuple

from prefork._system import at_fork, forks, orderly_end, signals
from prefork._system.lifeline import Lifeline, LifelineEnd
from prefork._system.newborn import surviving_interrupts
from prefork._system.selector import is_readable
from prefork._system.template import Template

__all__ = ["Child", "Process", "Ties"]

STATUS_SECONDS = 1.0
"""How long to wait for a fork server to tell the exit code of a child that has ended."""


class Process(BaseProcess):
    """The standard library's process class, for any start method.

    Takes the arguments of `multiprocessing.Process`; `context` says how the process is started,
    and further keyword arguments are accepted for the sake of callers that pass more.
    """

    kind = "PreforkWorker"  # what a pool's workers are called, before their number
    index = 0  # in a pool: its place there; free places are used again, the lowest first
    is_worker = False  # it is a `Child`, which decides for itself what happens at Ctrl-C

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
        self._fork: forks.Fork | forks.TemplateFork | None = None

    def prepare(
        self, fds: tuple[int, ...], lifeline: LifelineEnd, template: Template | None = None
    ) -> None:
        """Make a worker of it, if it is to be forked; before it is started, once.

        Args:
            fds: of this process, which it is to keep.
            lifeline: what ties it to this process.
            template: the process that it is to be forked from. If there is no such process yet,
                the one that is forked here becomes it.

        Raises:
            OSError: no descriptor is left.
        """
        if template is not None and template.pid:
            self._fork = forks.TemplateFork(self, fds, template)
        else:
            self._fork = forks.Fork(self, fds, lifeline, template)

    @staticmethod
    def forks(context: BaseContext | None) -> bool:
        """Whether processes are forked in this context."""
        return getattr(context, "Process", None) is getattr(mp_context, "ForkProcess", 0)

    def fds(self) -> tuple[int, ...]:
        """What a process that is prepared needs of this one's descriptors."""
        return self._fork.fds if self._fork is not None else ()

    def twin(self, name: str, identity: tuple[int, ...], index: int, args: Any) -> Process:
        """In a process that was forked from a template, which has inherited the first worker's
        object: the object of this process. What makes it differ from the first is told here."""
        process = type(self).__new__(type(self))
        vars(process).update(vars(self))
        process._name = name  # type: ignore[attr-defined]
        process._identity = identity
        process.index = index
        process._args = args  # type: ignore[attr-defined]
        return process

    @property
    def popen(self) -> Any:
        """The process that there is, if there is any, even if its start was interrupted."""
        if self._fork is not None and self._fork.has_started():
            return self._fork
        return self._popen  # type: ignore[attr-defined]

    @property
    def sentinel(self) -> int:
        """A descriptor that is readable once the process has ended."""
        if self._fork is not None and not self._closed:  # type: ignore[attr-defined]
            return self._fork.sentinel
        return super().sentinel

    @property
    def is_foreign(self) -> bool:
        """Whether it is started by the standard library's own means."""
        return self._fork is None

    @property
    def pidfd(self) -> int:
        """Of a worker that was forked; -1 if there is none."""
        return self._fork.pidfd if self._fork is not None else -1

    @property
    def outlives_its_number(self) -> bool:
        """Whether somebody else may have reaped it, so that its number may be another's."""
        return self._fork is not None and self._fork.outlives_its_number

    def ask_status(self) -> None:
        """It has ended: have its status ready, if that has to be asked for."""
        if self._fork is not None:
            self._fork.ask_status()

    def reap(self) -> None:
        """It has been accounted for."""
        if self._fork is not None:
            self._fork.reap()

    def tidy(self) -> None:
        """To be called once it has been started."""
        if self._fork is not None:
            self._fork.tidy()

    def close(self) -> None:
        super().close()
        if self._fork is not None:
            self._fork.close()

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        """All that the child does; the standard library's name for it."""
        is_fresh = multiprocessing.get_start_method() == "spawn"
        if self._start_method is not None:
            is_fresh = self._start_method == "spawn"
        orderly_end.begin(is_fresh)
        code: int = super()._bootstrap(parent_sentinel)  # type: ignore[misc]
        if not is_fresh or orderly_end.must_end():
            orderly_end.end(code)
        return code

    def _Popen(self, process_obj: BaseProcess) -> Any:
        if self._fork is not None:
            self._fork.launch()
            return self._fork
        context = self._start_context or multiprocessing.get_context()
        self._start_context = None  # the child neither needs it nor could unpickle it
        return context.Process._Popen(process_obj)  # type: ignore[attr-defined]


def _status(thread: str) -> dict[str, str]:
    with open(f"{thread}/status") as status:
        lines = status.read().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _has(status: dict[str, str], signals: str, signum: int) -> bool:
    return bool(int(status.get(signals, "0"), 16) >> (signum - 1) & 1)


def _run_tied(
    end: LifelineEnd,
    blocked: Iterable[int] | None,
    target: Callable[..., object],
    args: tuple[Any, ...],
) -> None:
    signals.was_started_with(blocked)
    end.hold()
    target(*args)


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
        self._context = context
        self.pid = 0  # until it is started
        self._pidfd = -1  # of one that is not forked
        self._was_killed = False
        self._own_lifeline = None if ties.lifeline is not None else Lifeline()
        lifeline = (self._own_lifeline or ties.lifeline).end  # type: ignore[union-attr]
        if Process.forks(context):
            self._process = process_class(target=target, name=name, args=args, context=context)
            self._process.index = index
            self._process.prepare(fds, lifeline, ties.template)
        else:
            # A child of the fork server has that one's mask.
            is_held = context.get_start_method() == "spawn"
            tied = lifeline, signals.blocked() if is_held else None, target, args
            self._process = process_class(target=_run_tied, name=name, args=tied, context=context)
            self._process.index = index
        self._process.is_worker = True

    def start(self) -> None:
        """
        Raises:
            TemplateLostError: it was to be forked from a template that has gone.
            OSError: as above.
        """
        is_foreign = self._process.is_foreign
        with surviving_interrupts(self._context) if is_foreign else contextlib.nullcontext():
            at_fork.keeping(self._process.fds(), self._process.start)
            # A status can be collected once: not by whoever in this process asks multiprocessing
            # for its active children meanwhile.
            _children.discard(self._process)

    def look_after(self) -> None:
        """It has been started; no harm if this is done again.

        Raises:
            TemplateLostError, OSError: as above.
        """
        self._process.tidy()
        if self._own_lifeline is not None:
            self._own_lifeline.end.close()
        self.pid = self._process.popen.pid
        # Both sides do this, so that it is done whoever runs first.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(self.pid, self.pid)
        if self._pidfd < 0 and self._process.is_foreign and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # an old kernel; no descriptor left
                self._pidfd = os.pidfd_open(self.pid)

    def discard(self, timeout: float) -> None:
        """It is not wanted, whether it has been started or not: end it, and free all."""
        if self._process.popen is not None:
            with contextlib.suppress(OSError):  # nobody knows it: it ends of itself
                self.look_after()
            if self.pid:
                self.kill()
                if self.wait(timeout):
                    self.collect()
        self.close()

    def fileno(self) -> int:
        """A descriptor that is readable once the process has ended.

        Not its sentinel, if possible: that is a pipe which what the child forked can hold open.
        """
        return self._pidfd if self._pidfd >= 0 else self._process.sentinel

    def signal(self, signum: int) -> None:
        """Send a signal to the process, if it is still there."""
        pidfd = self._pidfd if self._pidfd >= 0 else self._process.pidfd
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
        To be called where a moment's waiting does no harm."""
        self._process.ask_status()

    def collect(self) -> int | None:
        """The process has ended: kill what it left behind, return its exit code.

        As in `multiprocessing.Process.exitcode`; None if nobody can tell it any more.
        """
        popen = self._process.popen
        if not (self._was_killed and self._process.outlives_its_number):
            self._kill_group()  # while the dead process still holds its number
        if popen.method == "forkserver":
            is_readable(self._process.sentinel, STATUS_SECONDS)
        code: int | None = popen.poll()
        self._process.reap()
        return -signal.SIGKILL if code is None and self._was_killed else code

    def wait(self, timeout: float) -> bool:
        """Wait until the process has ended, at most `timeout` seconds; whether it has."""
        fd = self.fileno()
        if fd >= 0:
            return is_readable(fd, timeout)
        deadline = time.monotonic() + timeout  # no descriptor was left for it
        while self._process.popen.poll() is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.001)
        return True

    def close(self) -> None:
        """Free the descriptors; the process has ended."""
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)
        if self._own_lifeline is not None:
            self._own_lifeline.cut()
        try:
            self._process.close()
        except ValueError:  # its status was collected by somebody else, so it counts as running
            self._process._popen.close()  # type: ignore[attr-defined]
