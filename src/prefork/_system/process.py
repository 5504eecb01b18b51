"""One child process to the operating system: start it, notice its end, kill it with its group.

Each child leads a process group of its own, which ends with it: whatever a task started goes too,
unless it was started in a new session. When the pool's own process ends, even by SIGKILL, the
kernel kills the groups: see `Lifeline`.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import context as mp_context
from multiprocessing import popen_fork, util
from multiprocessing import process as mp_process
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from prefork._system import at_fork
from prefork._system.lifeline import Lifeline, LifelineEnd
from prefork._system.selector import is_readable

__all__ = ["Child", "Process", "preload"]

STATUS_SECONDS = 1.0
"""How long to wait for a fork server to tell the exit code of a child that has ended."""


_listed: set[BaseProcess] = set()  # our children that are in multiprocessing's list


def _forget_listed() -> None:
    """In a forked child, which at its end would wait for them, as if they were its own."""
    _all_children().difference_update(_listed)
    _listed.clear()


os.register_at_fork(after_in_child=_forget_listed)


def _all_children() -> set[BaseProcess]:
    """What `multiprocessing.active_children` looks at. (It is another set in each child.)"""
    children: set[BaseProcess] = mp_process._children  # type: ignore[attr-defined]
    return children


class Process(BaseProcess):
    """The standard library's process class, for any start method.

    Takes the arguments of `multiprocessing.Process`; `context` says how the process is started,
    and further keyword arguments are accepted for the sake of callers that pass more.
    """

    kind = "PreforkWorker"  # what a pool's workers are called, before their number
    index = 0  # in a pool: its place there; free places are used again, the lowest first
    keeps_status = False  # others may see how it has ended; it stays for `Child.collect`

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
        self._fork: _Fork | None = None

    def prepare(self) -> None:
        """Do what can be done before it is started, if there is anything; once.

        Raises:
            OSError: no descriptor is left.
        """
        if getattr(self._start_context, "Process", None) is getattr(mp_context, "ForkProcess", 0):
            self._fork = _Fork(self)

    def fds(self) -> tuple[int, ...]:
        """What a process that is prepared needs of this one's descriptors."""
        return self._fork.fds if self._fork is not None else ()

    @property
    def popen(self) -> Any:
        """The process that there is, if there is any, even if its start was interrupted."""
        if self._fork is not None and self._fork.pid:
            return self._fork
        return self._popen  # type: ignore[attr-defined]

    def tidy(self) -> None:
        """To be called once it has been started."""
        if self._fork is not None:
            self._fork.tidy()

    def close(self) -> None:
        super().close()
        if self._fork is not None:
            self._fork.close()

    def let_go(self) -> None:
        """Like `close`, but who has this from `active_children` may still ask how it has ended."""
        _all_children().discard(self)
        for popen in (self._popen, self._fork):  # type: ignore[attr-defined]
            if popen is not None:
                popen.close()

    def _Popen(self, process_obj: BaseProcess) -> Any:
        if self._fork is not None:
            self._fork.launch()
            return self._fork
        context = self._start_context or multiprocessing.get_context()
        self._start_context = None  # the child neither needs it nor could unpickle it
        popen = context.Process._Popen(process_obj)  # type: ignore[attr-defined]
        return _KeepsStatus(popen) if self.keeps_status else popen


def _peek(popen: Any, flag: int) -> int | None:
    """The exit code of a child that has ended, which stays a zombie: its number is its own until
    its status is taken."""
    if popen.returncode is None:
        try:
            ended = os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT | flag)
        except ChildProcessError:  # somebody else has taken it
            return None
        if ended is not None:
            exited = ended.si_code == os.CLD_EXITED
            popen.returncode = ended.si_status if exited else -ended.si_status
    code: int | None = popen.returncode
    return code


def _take(popen: Any) -> int | None:
    """The same, and the zombie goes."""
    code = _peek(popen, os.WNOHANG)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(popen.pid, os.WNOHANG)
    return code


class _KeepsStatus:
    """What the standard library has of a started process, for one whose status is taken once, by
    `Child.collect`: whoever in this program asks for the active children just sees it."""

    def __init__(self, popen: Any) -> None:
        self._popen = popen
        self._lock = threading.Lock()
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._popen, name)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if self._popen.method != "forkserver":
            return _peek(self._popen, flag)
        if flag != os.WNOHANG:
            is_readable(self._popen.sentinel, None)
        with self._lock:  # it comes through a pipe, once
            code: int | None = self._popen.returncode if self._closed else self._popen.poll()
            return code

    def wait(self, timeout: float | None = None) -> int | None:
        if timeout is not None and not is_readable(self._popen.sentinel, timeout):
            return None
        return self.poll(os.WNOHANG if timeout == 0.0 else 0)

    def take(self) -> int | None:
        return self.poll() if self._popen.method == "forkserver" else _take(self._popen)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._popen.close()


class _Fork(popen_fork.Popen):
    """The standard library's way to fork a process, in steps.

    After a fork, parent and child share all memory; a page that either of them touches is copied
    then. So if several are forked one after another, little is to be done in between.
    """

    def __init__(self, process: Process) -> None:
        self._pids: list[int] = []  # of one process, once it has been forked
        self.returncode = None
        self.finalizer = None
        self._process = process
        self._ours, self._theirs = at_fork.Descriptors(), at_fork.Descriptors()
        with at_fork.creating():
            self._add_pipe(self._ours, self._theirs)
            self._add_pipe(self._theirs, self._ours)
        self.fds: tuple[int, ...] = tuple(self._theirs.fds)
        self.sentinel = self._ours.fds[0]

    @staticmethod
    def _add_pipe(reader_side: at_fork.Descriptors, writer_side: at_fork.Descriptors) -> None:
        reader, writer = os.pipe()
        reader_side.add(reader)
        writer_side.add(writer)

    @property
    def pid(self) -> int:  # type: ignore[override]
        """0 until it is launched."""
        return sum(self._pids)

    def launch(self) -> None:
        util._flush_std_streams()  # type: ignore[attr-defined]
        code = 1
        # All in C: no signal handler that raises comes between the fork and the number.
        self._pids.extend(itertools.starmap(os.fork, [()]))
        if self.pid == 0:
            try:
                self._theirs.hand_over()
                _, parent_sentinel = self.fds
                code = self._process._bootstrap(parent_sentinel)  # type: ignore[attr-defined]
            finally:
                os._exit(code)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if self._process.keeps_status:
            return _peek(self, flag)
        return super().poll(flag)

    def take(self) -> int | None:
        return _take(self)

    def tidy(self) -> None:
        self._theirs.close()

    def close(self) -> None:
        self._theirs.close()
        self._ours.close()

    def __del__(self) -> None:
        if hasattr(self, "_theirs"):
            self.close()


def preload(context: BaseContext, module: str) -> None:
    """Have the fork server, unless it runs already, import a module once for all its children."""
    if context.get_start_method() == "forkserver":
        from multiprocessing import forkserver  # large

        server: Any = forkserver._forkserver
        if module not in server._preload_modules:
            server.set_forkserver_preload([*server._preload_modules, module])


def _status(thread: str) -> dict[str, str]:
    with open(f"{thread}/status") as status:
        lines = status.read().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _has(status: dict[str, str], signals: str, signum: int) -> bool:
    return bool(int(status.get(signals, "0"), 16) >> (signum - 1) & 1)


def _run_tied(end: LifelineEnd, target: Callable[..., object], args: tuple[Any, ...]) -> None:
    end.hold()
    at_fork.forget_imports()
    target(*args)


class Child:
    """A process that runs `target(*args)`: its pid, its end, and the means to end it.

    It is made, then started, and then looked after, which are three steps since forks should
    follow one upon another (see `Recruiter.hire`).

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
        index: int = 0,
    ) -> None:
        self.index = index
        self.pid = 0  # until it is started
        self._pidfd = -1
        self._lifeline = Lifeline()
        self._process = process_class(
            target=_run_tied, name=name, args=(self._lifeline.end, target, args), context=context
        )
        self._process.index = index
        self._process.keeps_status = True
        self._process.prepare()

    def start(self, *fds: int) -> None:
        """Start it; it keeps these descriptors of ours."""
        fds = *fds, self._lifeline.end.fd, *self._process.fds()
        _listed.add(self._process)
        at_fork.keeping(fds, self._process.start)
        self.has_started()

    def has_started(self) -> bool:
        """Whether there is a process, even if `start` was interrupted."""
        if not self.pid and (popen := self._process.popen) is not None:
            self.pid = popen.pid
        return self.pid != 0

    def look_after(self) -> None:
        """It has been started; no harm if this is done again."""
        self._process.tidy()
        self._lifeline.end.close()
        # Both sides do this, so that it is done whoever runs first.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(self.pid, self.pid)
        if self._pidfd < 0 and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # an old kernel; no descriptor left
                self._pidfd = os.pidfd_open(self.pid)

    def fileno(self) -> int:
        """A descriptor that is readable once the process has ended.

        Not its sentinel, if possible: that is a pipe which what the child forked can hold open.
        """
        return self._pidfd if self._pidfd >= 0 else self._process.sentinel

    def signal(self, signum: int) -> None:
        """Send a signal to the process, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signum)
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
        self.signal(signal.SIGKILL)
        self._kill_group()
        self._lifeline.cut()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def collect(self) -> int | None:
        """The process has ended: kill what it left behind, return its exit code.

        As in `multiprocessing.Process.exitcode`; None if nobody can tell it any more.
        """
        self._kill_group()  # while the dead process still holds its number
        popen = self._process.popen
        if popen.method == "forkserver":
            is_readable(self._process.sentinel, STATUS_SECONDS)
        code: int | None = popen.take()
        return code

    @property
    def process(self) -> Process:
        """As multiprocessing has it."""
        return self._process

    def wait(self, timeout: float) -> bool:
        """Wait until the process has ended, at most `timeout` seconds; whether it has."""
        return is_readable(self.fileno(), timeout)

    def close(self) -> None:
        """Free the descriptors; the process has ended."""
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)
        self._lifeline.end.close()
        self._lifeline.cut()
        _listed.discard(self._process)
        self._process.let_go()
