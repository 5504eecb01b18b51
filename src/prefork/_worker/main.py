"""What runs in a worker process: initialise, then receive, run, report until told to leave.

main ─► lead a group ─► initializer ─► READY ─► ┌ receive a ticket
                                                │ note it on the board
                                                │ load, run              SIGUSR1: soft limit
                                                └ report ─► … ─► finalizer ─► leave
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing import util
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from prefork._describe import describe
from prefork._ipc.descriptors import arriving
from prefork._ipc.outcome import (
    encode_exit,
    encode_failure,
    encode_reason,
    encode_result,
    format_traceback,
)
from prefork._ipc.pickling import CallUnpickler, dumps, load, pack
from prefork._ipc.wire import (
    ACCEPT,
    CALL,
    CONTEXT,
    EACH,
    HEEDED,
    KEYWORDS,
    LIMITED,
    MAP,
    MODE,
    SEEDED,
    TOGETHER,
    Kind,
    Ticket,
)
from prefork._ipc.worker_end import WorkerEnd
from prefork._system import at_fork, orderly_end, random_state, stacks
from prefork._system.signals import IGNORE, forget_handlers, let_through, set_action, unblock
from prefork._worker.options import SOFT_SIGNAL, WorkerOptions, allowing_sessions

if TYPE_CHECKING:
    from prefork._worker.environment import Place

__all__ = ["Worker", "main"]

_EXITS: Final = (SystemExit, KeyboardInterrupt)  # a task that raises one of these ends its process


MOST_TEXT: Final = 10_000  # characters of a traceback that is only logged


def main(
    options: WorkerOptions,
    end: WorkerEnd,
    max_tasks: int | None,
    place: Place | None = None,
    tap: Any = None,
) -> None:
    """
    Args:
        options: the same for all workers of a pool.
        max_tasks: after so many it leaves, to be replaced by another one.
        place: what it has of its own; None: nothing.
        tap: where what it sends beside its results goes (a `TapEnd`), if anything does.
    """
    global running  # noqa: PLW0603
    # Right before the standard library would wait for what the tasks have left behind.
    util.Finalize(None, orderly_end.part, exitpriority=0)
    stacks.install(end.open())
    try:
        running = Worker(options, end, max_tasks, _attach(options, tap))
        try:
            running.run(place)
        finally:
            running.let_go()
    finally:
        running = None
        stacks.uninstall()
        end.close()  # the pool need not wait for what else there is to clean up


def _exit_code(exc: BaseException) -> int:
    """What the process will exit with (as `multiprocessing` does it)."""
    code = exc.code if isinstance(exc, SystemExit) else 1
    return 0 if code is None else code if isinstance(code, int) else 1


def _attach(options: WorkerOptions, tap: Any) -> Any:
    settings = options.observing
    if settings is None:
        return None
    from prefork._observe.attachment import Attachment

    return Attachment(settings, tap, options.soft_limit)


class Worker:
    """One worker, in its own process.

    Attributes:
        state: what the initializer has returned.
        data: whatever tasks want to keep.
    """

    def __init__(
        self, options: WorkerOptions, end: WorkerEnd, max_tasks: int | None, attachment: Any
    ) -> None:
        self._options = options
        self._attachment = attachment  # an `Attachment`, if anything is sent beside results
        self._end = end
        self._max_tasks = max_tasks
        self._calls = CallUnpickler()
        self._fds: list[int] = []  # duplicates that belong to the result, until it is sent
        self._items: Iterator[Any] = iter(())  # of the chunk that runs, those that are left
        self._first = 0  # of its items that is to be run
        self._limited = False  # the job that runs has time limits
        self._soft_timeout = 0.0
        self._soft_deadline = 0.0  # of the item that runs now, monotonic; 0.0: no limit
        self._soft_error: BaseException | None = None  # that was raised for it
        self._clock_started = 0.0  # of the limits
        self._unraisable: Callable[[Any], object] = sys.unraisablehook
        self._finalizer: Callable[..., object] | None = None
        self._pid = os.getpid()
        self._job = 0  # the one that runs, while there is a function
        self._flags = 0  # of its ticket
        self._func: Callable[..., Any] | None = None  # that it calls
        self.state: object = None
        self.data: dict[str, Any] = {}

    def run(self, place: Place | None) -> None:
        at_fork.register(self)
        self._set_signals()
        try:
            self._initialise(place)
            set_action(SOFT_SIGNAL, self._on_soft_limit)  # the initializer may have reset it
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
            self._end.report(Kind.READY)
            self._work()
            self._finalise()
        except BrokenPipeError:
            # Nobody reads what it reports: the pool has gone, has not waited for it, or does not
            # know of it. (What its tasks raise does not come to here.)
            return

    def let_go(self) -> None:
        """No more tasks: what calls this object when something happens refers to it, and so to
        all that they have, which would outlive the modules at the end of an interpreter."""
        set_action(SOFT_SIGNAL, IGNORE)
        if sys.unraisablehook == self._on_unraisable:
            sys.unraisablehook = self._unraisable

    def _work(self) -> None:
        tasks_left = self._max_tasks
        memory = None
        if self._options.max_memory:
            from prefork._system.resources import ResidentMemory  # as long as all the rest

            memory = ResidentMemory()
        while tasks_left is None or tasks_left > 0:
            ticket = self._end.receive()
            if ticket is None:
                return
            self._run_task(ticket)
            if tasks_left is not None:
                tasks_left -= 1
            if memory is not None and self._has_outgrown(memory.now()):
                return
        if self._finalizer is not None:  # which may take its time, and the pool does not know yet
            self._say_that_it_leaves(f"it has run {self._max_tasks} tasks")

    def _has_outgrown(self, kib: int) -> bool:
        limit = self._options.max_memory
        if limit is None or kib <= limit:
            return False
        self._say_that_it_leaves(f"{kib} KiB of memory, more than {limit} KiB")
        return True

    def _say_that_it_leaves(self, why: str) -> None:
        self._end.report(Kind.LEAVING, pickled=encode_reason(why))

    def _set_signals(self) -> None:
        """Handlers that the parent installed are the parent's; Ctrl-C is for it to decide. Until
        here a forked worker has all signals blocked, and no other one is ended by Ctrl-C. From here
        on those are blocked that the parent has blocked, but for what the pool itself sends."""
        signal.set_wakeup_fd(-1)
        set_action(signal.SIGINT, IGNORE)
        forget_handlers()
        set_action(SOFT_SIGNAL, self._on_soft_limit)
        let_through()
        unblock(SOFT_SIGNAL, signal.SIGTERM, *stacks.SIGNALS)

    def _initialise(self, place: Place | None) -> None:
        random_state.renew()
        if "opentelemetry.context" in sys.modules:  # inherited, with a span that is not ours
            from prefork._observe.context import forget_trace

            forget_trace()
        options = self._options
        try:
            if place is not None:
                place.take()
            if options.finalizer is not None:
                self._finalizer = options.finalizer.load()
            if options.initializer is not None:
                with allowing_sessions():
                    self.state = options.initializer.load()()
        except BaseException as exc:
            self._end.report(Kind.BROKEN, pickled=dumps(encode_failure(exc)))
            raise SystemExit(1) from None

    def _finalise(self) -> None:
        """All is done, in order; the pool kills a worker that takes too long for it."""
        if self._finalizer is None or self._end.closed:
            return
        try:
            self._finalizer(self.state)
        except BaseException as exc:
            text = format_traceback(exc)[-MOST_TEXT:].strip()
            try:
                self._end.report(Kind.FINALIZER_FAILED, pickled=encode_reason(text))
            except OSError:  # nobody hears it
                traceback.print_exception(exc)

    # ---- one task

    def _run_task(self, ticket: Ticket) -> None:
        end = self._end
        job, soft_timeout, first, _, _, _, flags = ticket
        end.clock[2] = started = time.monotonic()
        end.clock[1] = started + self._options.load_seconds  # until `_restart_clock`
        end.board[0] = job
        if flags & ACCEPT:
            end.report(Kind.ACCEPTED, job, started)
        self._limited = bool(flags & LIMITED)
        self._soft_timeout = soft_timeout
        self._first = first
        try:
            try:
                kind, pickled, buffers = self._load_and_call(ticket)
            finally:
                self._forget_limit()
                self._func = None
                if self._attachment is not None:
                    self._attachment.end()
        except BaseException as exc:
            if isinstance(exc, _EXITS):
                if not end.closed and os.getpid() == self._pid:
                    why = encode_exit(_exit_code(exc), f"it raised {describe(exc)}"[:1000])
                    end.report(Kind.EXITING, job, started, pickled=why)
                raise
            kind, pickled, buffers = Kind.FAILED, dumps(encode_failure(exc, self._fds)), []
        if end.closed:  # in a child that the task forked, and that has come back here
            os._exit(0)
        self._report(kind, job, started, pickled, buffers)
        if flags & MODE == EACH:
            end.page.end()

    def _load_and_call(self, ticket: Ticket) -> tuple[int, bytes, list[memoryview]]:
        """The arguments are gone when this returns, unless the task, or its result, keeps them."""
        func, arguments = self._load(ticket)
        self._job, self._flags, self._func = ticket[0], ticket[-1], func
        if self._attachment is not None:
            self._attachment.begin(ticket[0], func)
        flags = ticket[-1]
        if flags & CONTEXT:
            from prefork._observe.context import call_in

            arguments, context = arguments
            return call_in(context, self._call, flags, func, arguments)
        return self._call(flags, func, arguments)

    def _load(self, ticket: Ticket) -> tuple[Callable[..., Any], Any]:
        try:
            pickled, buffers, fds, function = self._end.read_call(ticket)
            if function is not None:
                return _load_once(ticket[-1], function, pickled, buffers)
            if fds is None:
                return self._calls.load(pickled, ticket[-2], buffers)
            with arriving(fds):
                return self._calls.load(pickled, ticket[-2], buffers)
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
            self._send(kind, job, started, seconds, pickled, buffers)
        except OSError as exc:
            # There may be no memory left for a large result.
            failure = dumps(encode_failure(exc))
            self._end.report(Kind.FAILED, job, started, seconds, failure)

    def _send(
        self,
        kind: int,
        job: int,
        started: float,
        seconds: float,
        pickled: bytes,
        buffers: list[memoryview],
    ) -> None:
        try:
            self._end.report(kind, job, started, seconds, pickled, buffers, self._fds)
        finally:
            if self._fds:
                at_fork.Descriptors(*self._fds).close()
                self._fds.clear()

    def _call(
        self, flags: int, func: Callable[..., Any], arguments: Any
    ) -> tuple[int, bytes, list[memoryview]]:
        if self._limited:
            self._restart_clock()  # what it took until here is not the task's own time
        mode = flags & MODE
        if mode == CALL:
            if flags & KEYWORDS:
                args, kwargs = arguments
                return self._encode(func(*args, **kwargs))
            return self._encode(func(*arguments))
        items = self._items = iter(arguments)
        if mode == EACH:
            return Kind.OUTCOMES, *pack(self._call_each(func, items))
        if self._limited:
            items = self._timed(items)
        # No map(): a task's StopIteration would end it.
        if mode == MAP:
            return self._encode([func(item) for item in items])
        return self._encode([func(*item) for item in items])

    def _encode(self, value: object) -> tuple[int, bytes, list[memoryview]]:
        return encode_result(value, self._options.soft_limit, self._fds)

    def _call_each(self, func: Callable[..., Any], items: Iterator[Any]) -> list[tuple[bool, Any]]:
        """The outcomes that have not been reported yet when all is done."""
        if self._flags & TOGETHER:
            return [self._one_of_many(func, item) for item in items]
        end, page, first = self._end, self._end.page, self._first
        if first:
            _skip(first, func, items)
        page.turn(first)
        outcomes: list[tuple[bool, Any]] = []
        for number, item in enumerate(items, first):
            page.begin(number)
            ok, value = self._one_of_many(func, item)
            if end.closed:  # in a child that the task forked, and that has come back here
                return []
            outcomes.append((ok, value))
            if self._fds or not page.note(ok, value if ok else [dumps(value)]):
                self._send(Kind.PART, self._job, len(outcomes), first, *pack(outcomes))
                outcomes = []
                first = number + 1
                page.turn(first)
        return outcomes

    def _one_of_many(self, func: Callable[..., Any], item: Any) -> tuple[bool, Any]:
        try:
            try:
                if self._limited:
                    self._restart_clock()
                kind, pickled, buffers = self._encode(func(item))
            finally:
                self._forget_limit()
        except _EXITS:
            raise
        except BaseException as exc:
            return False, encode_failure(exc, self._fds)
        if kind == Kind.DONE:
            return True, [pickled, *map(bytearray, buffers)]
        return False, load(pickled)

    def now(self) -> tuple[int, int, Callable[..., Any]] | None:
        """The job that runs now: its number, the flags of its ticket, and what it calls."""
        func = self._func
        return None if func is None else (self._job, self._flags, func)

    def close_in_child(self) -> None:
        """In a child that the task forks: the job is not its own, so there are no more items; and
        it is no worker."""
        global running  # noqa: PLW0603
        running = None
        deque(self._items, 0)

    # ---- time limits: they are each item's, so the clock starts anew for each

    def _restart_clock(self) -> None:
        """From here on the soft limit raises; to be called where that will be caught.

        The pool sends its signal when the clock that it sees here has run out. However long this
        process is kept from running in between, the signal must find the deadline set.
        """
        self._soft_error = None
        self._clock_started = started = time.monotonic()
        if self._soft_timeout:
            self._soft_deadline = started + self._soft_timeout
        self._end.clock[1] = started

    def _forget_limit(self) -> None:
        self._soft_deadline = 0.0
        self._soft_error = None

    def _timed(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self._restart_clock()
            yield item

    def _on_soft_limit(self, signum: int, frame: FrameType | None) -> None:
        """Raise in the task that runs now, if it has passed its own limit; else the signal was
        meant for one that has finished."""
        if 0.0 < self._soft_deadline <= time.monotonic():
            self._soft_deadline = 0.0
            limit = self._soft_timeout
            error = self._options.soft_limit(f"the soft time limit of {limit:g} s has passed")
            self._soft_error = error
            self._end.clock[HEEDED] = self._clock_started
            raise error

    def _on_unraisable(self, unraisable: Any) -> None:
        """Something was raised where nobody can catch it, as in a destructor. If it was the soft
        limit, it is still to be raised: when the pool reminds us."""
        if self._soft_error is None or unraisable.exc_value is not self._soft_error:
            self._unraisable(unraisable)
            return
        self._soft_error = None
        self._soft_deadline = time.monotonic()
        self._end.clock[HEEDED] = 0.0


def _load_once(
    flags: int, function: list[memoryview], pickled: memoryview, buffers: list[memoryview]
) -> tuple[Callable[..., Any], Any]:
    """A call whose function has come as a constant."""
    from prefork._ipc.once import load_once

    func, arguments = load_once(function, pickled, buffers)
    if flags & SEEDED:
        from prefork._worker.seeding import arrive

        arguments, seed, position = arguments
        func = arrive(func, seed, position)
    return func, arguments


def _skip(count: int, func: Callable[..., Any], items: Iterator[Any]) -> None:
    """So many items have been run elsewhere."""
    from prefork._worker.seeding import Seeded

    deque(islice(items, count), 0)
    if isinstance(func, Seeded):
        func.skip(count)


running: Worker | None = None  # the worker that this process is
