"""What runs in a worker process: initialise, then receive, run, report until told to leave.

main ─► lead a group ─► initializer ─► READY ─► ┌ receive a ticket
                                                │ note it on the board
                                                │ load, run              SIGUSR1: soft limit
                                                └ report ─► … ─► leave
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, NamedTuple

from prefork import stacks
from prefork.channel import WorkerEnd
from prefork.errors import SoftTimeLimitExceeded
from prefork.memory import ResidentMemory
from prefork.messages import (
    ACCEPT,
    CALL,
    EACH,
    MAP,
    Kind,
    Ticket,
    describe,
    dumps,
    encode_failure,
    encode_result,
    load,
    pack,
)

__all__ = ["SOFT_SIGNAL", "Initializer", "WorkerOptions", "main"]

SOFT_SIGNAL = signal.SIGUSR1

_EXITS = (SystemExit, KeyboardInterrupt)  # a task that raises one of these ends its process


class Initializer:
    """A function and its arguments, to be called once in each worker.

    Where it has to be pickled (not with fork), the worker unpickles it itself, when it can report
    that this fails.
    """

    def __init__(self, func: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._call: tuple[Callable[..., object], tuple[Any, ...]] | bytes = func, args

    def __getstate__(self) -> bytes:
        return bytes(ForkingPickler.dumps(self._call))

    def __setstate__(self, pickled: bytes) -> None:
        self._call = pickled

    def __call__(self) -> None:
        func, args = load(self._call) if isinstance(self._call, bytes) else self._call
        func(*args)


class WorkerOptions(NamedTuple):
    """How a worker works. `max_tasks` and `max_memory` (KiB resident, after a task) are when it
    leaves, to be replaced by another one."""

    initializer: Initializer | None = None
    max_tasks: int | None = None
    max_memory: int | None = None
    soft_limit: type[BaseException] = SoftTimeLimitExceeded  # what it raises in a task


def main(end: WorkerEnd, options: WorkerOptions) -> None:
    stacks.install(end.open())
    try:
        _Worker(end, options).run()
    finally:
        stacks.uninstall()
        end.close()  # the pool need not wait for what else there is to clean up


def _exit_code(exc: BaseException) -> int:
    """What the process will exit with (as `multiprocessing` does it)."""
    code = exc.code if isinstance(exc, SystemExit) else 1
    return 0 if code is None else code if isinstance(code, int) else 1


class _Worker:
    def __init__(self, end: WorkerEnd, options: WorkerOptions) -> None:
        self._end = end
        self._options = options
        self._started = 0.0  # the item that runs now (monotonic)
        self._soft_timeout = 0.0
        self._soft_deadline = 0.0  # of the item that runs now, monotonic; 0.0: no limit

    def run(self) -> None:
        self._set_signals()
        self._initialise()
        signal.signal(SOFT_SIGNAL, self._on_soft_limit)  # the initializer may have reset it
        self._end.report(Kind.READY)
        tasks_left = self._options.max_tasks
        memory = ResidentMemory() if self._options.max_memory else None
        while tasks_left is None or tasks_left > 0:
            ticket = self._end.receive()
            if ticket is None:
                return
            self._run_task(ticket)
            if tasks_left is not None:
                tasks_left -= 1
            if memory is not None and self._has_outgrown(memory.now()):
                return

    def _has_outgrown(self, kib: int) -> bool:
        limit = self._options.max_memory
        if limit is None or kib <= limit:
            return False
        why = f"{kib} KiB of memory, more than {limit} KiB"
        self._end.report(Kind.LEAVING, pickled=dumps(why))
        return True

    def _set_signals(self) -> None:
        """Handlers that the parent installed are the parent's; Ctrl-C is for it to decide."""
        signal.set_wakeup_fd(-1)
        for signum in signal.valid_signals():
            if callable(signal.getsignal(signum)):
                signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(SOFT_SIGNAL, self._on_soft_limit)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [SOFT_SIGNAL, signal.SIGTERM])

    def _initialise(self) -> None:
        if self._options.initializer is None:
            return
        try:
            self._options.initializer()
        except BaseException as exc:
            self._end.report(Kind.BROKEN, pickled=dumps(encode_failure(exc)))
            raise SystemExit(1) from None

    # ---- one task

    def _run_task(self, ticket: Ticket) -> None:
        end, job = self._end, ticket.job
        self._soft_timeout = ticket.soft_timeout
        end.clock[1] = end.clock[2] = started = time.monotonic()
        end.board[0] = job
        if ticket.flags & ACCEPT:
            end.report(Kind.ACCEPTED, job, started)
        try:
            try:
                call = self._load(ticket)
                self._restart_clock()  # imports that unpickling took are not the task's own time
                kind, pickled, buffers = self._call(*call)
            finally:
                self._disarm()
        except BaseException as exc:
            if isinstance(exc, _EXITS):
                if not end.closed:
                    why = _exit_code(exc), f"it raised {describe(exc)}"[:1000]
                    end.report(Kind.EXITING, job, started, pickled=dumps(why))
                raise
            kind, pickled, buffers = Kind.FAILED, dumps(encode_failure(exc)), []
        self._leave_if_forked()
        self._report(kind, job, started, pickled, buffers)

    def _load(self, ticket: Ticket) -> Any:
        try:
            return load(self._end.payload(ticket))
        except Exception as exc:
            exc.add_note(
                "while unpickling the call in a worker process: it can use what is importable "
                "there, and what was defined when the pool was made"
            )
            raise

    def _report(
        self, kind: int, job: int, started: float, pickled: bytes, buffers: list[memoryview]
    ) -> None:
        seconds = time.monotonic() - started
        try:
            self._end.report(kind, job, started, seconds, pickled, buffers)
        except OSError as exc:
            # A large result goes into a file; there may be no memory or descriptor left for it.
            failure = dumps(encode_failure(exc))
            self._end.report(Kind.FAILED, job, started, seconds, failure)

    def _call(
        self, mode: int, func: Callable[..., Any], args: Any, kwargs: Any = None
    ) -> tuple[int, bytes, list[memoryview]]:
        if mode == CALL:
            value = func(*args, **kwargs) if kwargs else func(*args)
            return self._encode(value)
        if mode == EACH:
            return Kind.OUTCOMES, *pack([self._one_of_many(func, item) for item in args])
        if mode == MAP:
            return self._encode([func(item) for item in self._timed(args)])
        return self._encode([func(*item) for item in self._timed(args)])

    def _encode(self, value: object) -> tuple[Kind, bytes, list[memoryview]]:
        return encode_result(value, self._options.soft_limit)

    def _one_of_many(self, func: Callable[..., Any], item: Any) -> tuple[bool, Any]:
        try:
            try:
                self._restart_clock()
                kind, pickled, buffers = self._encode(func(item))
            finally:
                self._disarm()
        except _EXITS:
            raise
        except BaseException as exc:
            self._leave_if_forked()
            return False, encode_failure(exc)
        self._leave_if_forked()
        if kind == Kind.DONE:
            return True, [pickled, *map(bytearray, buffers)]
        return False, load(pickled)

    def _leave_if_forked(self) -> None:
        """A child that the task forked, and that came back here: the job is not its own."""
        if self._end.closed:
            os._exit(0)

    # ---- time limits: they are each item's, so the clock starts anew for each

    def _restart_clock(self) -> None:
        self._end.clock[1] = self._started = time.monotonic()
        self._arm()

    def _arm(self) -> None:
        """From here on the soft limit raises; to be called where that will be caught."""
        if self._soft_timeout:
            self._soft_deadline = self._started + self._soft_timeout

    def _disarm(self) -> None:
        """From here on the signal is dropped."""
        self._soft_deadline = 0.0

    def _timed(self, items: list[Any]) -> Iterator[Any]:
        for item in items:
            self._restart_clock()
            yield item
            self._leave_if_forked()

    def _on_soft_limit(self, signum: int, frame: FrameType | None) -> None:
        """Raise in the task that runs now, if it has passed its own limit; else the signal was
        meant for one that has finished."""
        if 0.0 < self._soft_deadline <= time.monotonic():
            self._soft_deadline = 0.0
            limit = self._soft_timeout
            raise self._options.soft_limit(f"the soft time limit of {limit:g} s has passed")
