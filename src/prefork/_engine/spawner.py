"""Starts the workers of a running pool, and judges starts that fail.

                  ┌─ failed: again, after a pause; or the pool gives up
    spawn ─► STARTING ─► READY (from here on: `supervisor.py`)

With fork a start is one call. With the other start methods it is a conversation: with the fork
server, which may have been stopped or killed, or with the child, which may hang. The supervisor
must not wait for that, so it is had in the background, one worker at a time.
"""

from __future__ import annotations

import errno
import functools
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from prefork._describe import describe, describe_exit
from prefork._engine.places import free_places
from prefork._engine.starts import BackgroundStart, PendingWorker, persist
from prefork._engine.state import PoolPhase, PoolState
from prefork._engine.taps import TAP_DESCRIPTORS, Taps
from prefork._engine.templates import Templates
from prefork._engine.worker_handle import GIVE_UP_SECONDS, Phase, WorkerHandle
from prefork._ipc.outcome import decode
from prefork._ipc.wire import Kind
from prefork._system import resources
from prefork._system.child import announce, give_up
from prefork._system.launch import UNGUARDED
from prefork._system.log import DEBUG, ERROR
from prefork._system.template import TemplateLostError
from prefork._system.uninterrupted import uninterrupted
from prefork._worker.main import main
from prefork.errors import PoolBrokenError

if TYPE_CHECKING:
    from prefork._engine.dispatcher import Dispatcher
    from prefork._engine.lifecycle import Lifecycle
    from prefork._engine.options import Options

__all__ = ["FailedStart", "Spawner"]

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""From the third failed start in a row on, so many seconds pass before the next one: twice as many
each time, up to the longest."""

START_DESCRIPTORS = 12
"""A worker takes no more than that while it is being started; afterwards half of it."""

SPARE_DESCRIPTORS = 64
"""So many are left for what comes later, such as large objects."""

MOST_TEMPLATES = 10
"""So many templates may be lost over one start, which then has failed."""

NO_TEMPLATE = (
    "no worker could be started: each process that was forked for that has ended before it did "
    "anything. Something that runs in a forked child ends it (`os.register_at_fork`), or a sandbox "
    "refuses a system call"
)

QUIET_SECONDS = 0.1
"""How long a start may wait for the callback that is running, see `CallbackRunner.pausing`."""


class FailedStart(NamedTuple):
    """A worker that has ended before it was ready."""

    worker: WorkerHandle
    exitcode: int | None
    stack: str


class Spawner:
    """
    Args:
        in_background: workers are started on a thread of their own.
        pausing: entered for each fork of the pool's own process, see `CallbackRunner.pausing`.
        on_generation: called with the number of the workers' next generation, before they are made.
        taps: what each worker is given for what it sends beside its results; None: nothing.

    Attributes:
        generation: how often all workers were to be replaced.
    """

    def __init__(
        self,
        options: Options,
        state: PoolState,
        dispatcher: Dispatcher,
        lifecycle: Lifecycle,
        in_background: bool,
        pausing: Callable[[float], AbstractContextManager[object]],
        on_generation: Callable[[int], object],
        taps: Taps | None = None,
    ) -> None:
        self._on_generation = on_generation
        self._taps = taps
        self._descriptors = START_DESCRIPTORS + (0 if taps is None else TAP_DESCRIPTORS)
        self.generation = 0
        self._options = options
        self._processes = options.processes
        self._run = functools.partial(main, options.for_workers())
        self._templates = Templates(options.context, state.log)
        self._state = state
        self._log = state.log
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._in_background = in_background
        self._pausing = pausing
        self._spawned = 0  # workers, so far
        self._good_starts = 0
        self._failed_starts = 0  # in a row
        self._said_after = -1  # so many good starts: that the pool cannot start more workers
        self._pause_until = 0.0  # no worker is started before (monotonic)
        self._start: BackgroundStart | None = None  # that is under way
        self._abandon_at = math.inf  # it is not waited for any longer (monotonic)

    def begin_generation(self) -> None:
        """All workers are to be replaced."""
        self._on_generation(self.generation + 1)
        self.generation += 1

    def no_more(self) -> None:
        """No more workers are to come: what they are forked from ends beside them."""
        self._templates.retire()

    def close(self) -> None:
        """There are no workers any more, and none are to come."""
        self._templates.close()

    # ---- starts

    def spawn(self, count: int = 1) -> None:
        """Start so many more worker processes. One takes milliseconds with fork, more with spawn.

        Raises:
            OSError: the system has no process, memory or descriptor left. If more descriptors are
                needed than the soft limit allows, that is raised first, up to the hard limit.
            Exception: the start method's own trouble, such as an initializer that cannot be
                pickled for `spawn`.
        """
        needed = count * self._descriptors + SPARE_DESCRIPTORS
        try:
            self._spawn(count)
        except OSError as exc:
            if exc.errno != errno.EMFILE:
                raise
            used, _ = resources.raise_descriptor_limit(0)  # all that are allowed
            allowed, hard = resources.raise_descriptor_limit(used + needed)
            if allowed == used:
                raise OSError(
                    errno.EMFILE,
                    f"{os.strerror(errno.EMFILE)}: the pool needs {used + needed} descriptors, "
                    f"RLIMIT_NOFILE allows {allowed} (hard limit {hard})",
                ) from exc
            self._spawn(count)

    def _spawn(self, count: int) -> None:
        """After a fork, parent and child share all memory; a page that either of them touches is
        copied then. So as much as possible is done before the first fork or after the last one,
        where it is not paid for again after each."""
        pending: deque[PendingWorker] = deque()
        try:
            # The first one makes a template, perhaps, and is known only when that has answered: it
            # is started first, and admitted last.
            first, *others = self._free_places(count)
            uninterrupted(lambda: pending.append(self._prepare(first)))
            top = pending[0].highest_descriptor
            resources.raise_descriptor_limit(top + count * self._descriptors + SPARE_DESCRIPTORS)
            for place in reversed(others):
                uninterrupted(lambda: pending.appendleft(self._prepare(place)))  # noqa: B023
            with self._quiet(pending):
                for i in reversed(range(count)):
                    self._insist(pending, i, PendingWorker.start)
            goes_on = True
            while pending and goes_on:
                goes_on = uninterrupted(lambda: self._admit(pending))
        finally:
            uninterrupted(lambda: self._discard_all(pending))

    def _discard_all(self, pending: Iterable[PendingWorker]) -> None:
        for start in pending:
            self._discard(start)

    def _quiet(self, pending: Iterable[PendingWorker]) -> AbstractContextManager[object]:
        if any(start.origin.forks_here for start in pending):
            return self._pausing(QUIET_SECONDS)
        return nullcontext()

    def _prepare(self, place: int) -> PendingWorker:
        self._spawned += 1
        name = f"{self._options.process_class.kind}-{self._spawned}"
        origin = self._templates.origin(self.generation)
        tap = None
        try:
            tap = None if self._taps is None else self._taps.tap(name)
            return PendingWorker(self._options, self._run, name, place, origin, tap)
        except BaseException:
            if tap is not None:
                tap.close()
            self._templates.has_failed(origin)
            raise

    def _insist(
        self, pending: deque[PendingWorker], i: int, step: Callable[[PendingWorker], T]
    ) -> T:
        """Take this step; if the template is lost over it, with another one, from the beginning.
        Nothing of the first is used again: somebody may have it.

        Raises:
            PoolBrokenError: that has happened too often in a row.
        """
        for lost_before in itertools.count():
            try:
                return step(pending[i])
            except TemplateLostError as exc:
                if lost_before == MOST_TEMPLATES:
                    raise PoolBrokenError(NO_TEMPLATE) from exc
                text = "worker %s is started anew: %s"
                self._log.note(DEBUG, text, pending[i].name, str(exc))
                lost, pending[i] = pending[i], self._prepare(pending[i].place)
                self._discard(lost)
                if step is not PendingWorker.start:
                    self._insist(pending, i, PendingWorker.start)
        raise AssertionError

    def _discard(self, start: PendingWorker) -> None:
        start.discard()
        self._templates.has_failed(start.origin)

    def _admit(self, pending: deque[PendingWorker]) -> bool:
        """Make the first one of the pool's workers, if that has not ended meanwhile; whether it
        is. Only then it is not pending any more, whatever happens."""
        state = self._state
        worker = self._insist(pending, 0, PendingWorker.worker)
        origin = pending[0].origin
        worker.begin(self._start_limit())
        with state.lock:
            if state.phase is PoolPhase.ENDED:
                return False
            state.exits.add(worker.process, worker)
            try:
                self._dispatcher.add_worker(worker)
            finally:
                if worker in state.workers:
                    pending.popleft()
                else:
                    state.exits.discard(worker.process)
            if state.phase is PoolPhase.TERMINATE:
                worker.kill("the pool was terminated")
            self._templates.has_worker(origin, worker)
            state.wake_supervisor()  # its start may have to be watched
            state.log.note(DEBUG, "started worker %d (%s)", worker.pid, worker.name)
        return True

    def spawn_first(self) -> None:
        """Start the first workers; raises what keeps one from it."""
        context = self._options.context
        announce(context, main.__module__)
        if not self._in_background:
            persist(context, lambda: self.spawn(self._options.processes))
            return
        for _ in range(self._options.processes):
            persist(context, self._spawn_aside)

    def _spawn_aside(self) -> None:
        start = BackgroundStart(self.spawn, self._state.wake_supervisor)
        try:
            start.finish(self._start_limit())
        except TimeoutError:
            give_up(self._options.context)
            raise

    def _free_places(self, count: int) -> list[int]:
        with self._state.lock:
            return free_places(self._state.workers, count, self.generation, self._processes)

    def fill_up(self, is_short: Callable[[], bool], processes: int) -> None:
        """Start workers while there are too few, which are to be so many."""
        self._processes = processes
        self._see_start_end()
        while self._start is None and is_short() and time.monotonic() >= self._pause_until:
            try:
                if self._in_background:
                    self._start = BackgroundStart(self.spawn, self._state.wake_supervisor)
                else:
                    self.spawn()
            except Exception as exc:
                self._judge_no_process(exc)

    def _see_start_end(self) -> None:
        start = self._start
        if start is None:
            return
        if start.ended:
            self._start = None
            if start.error is not None:
                self._judge_no_process(start.error)
        elif self._is_overdue(start) and not self._state.workers:
            limit = self._start_limit()
            self._lifecycle.break_down(f"no worker process could be started within {limit:g} s")

    def _is_overdue(self, start: BackgroundStart) -> bool:
        limit = self._start_limit()
        return limit is not None and time.monotonic() >= start.began + limit

    def _start_limit(self) -> float | None:
        """How long a worker may take from now until it is ready, in seconds.

        If the first ones were given longer than their successors, and one has needed that, its
        successors may need as long, and a bit more on a busy machine.
        """
        options, slowest = self._options, self._state.slowest_start
        if not self._state.ready_count:
            return options.first_start_timeout or options.start_timeout
        if options.start_timeout is None or slowest <= options.start_timeout:
            return options.start_timeout
        return 2.0 * slowest

    def has_ended(self) -> bool:
        """Whether the pool can end: a start that is under way is waited for, but not for ever."""
        if self._start is None or self._start.ended:
            return True
        now = time.monotonic()
        self._abandon_at = min(self._abandon_at, now + GIVE_UP_SECONDS)
        return now >= self._abandon_at

    def next_times(self, is_short: Callable[[], bool]) -> list[float]:
        """When `fill_up` wants to be called again (monotonic)."""
        times = []
        if self._start is not None:
            times.append(self._abandon_at)
            limit = self._start_limit()
            if limit is not None and not self._is_overdue(self._start):
                times.append(self._start.began + limit)
        elif is_short():
            times.append(self._pause_until)
        return times

    # ---- starts that fail (without the lock: texts are made of users' exceptions)

    def look_at_start_failures(self) -> None:
        """Give up at once if no worker has ever been ready, and the initializer has failed in one:
        in the others it would probably fail, too."""
        if self._state.ready_count:
            return
        for worker in list(self._state.workers):
            cause = _cause(worker)
            if cause is not None:
                why = f"the initializer failed in a worker: {describe(cause)}"
                self._lifecycle.break_down(why, cause)
                return

    def judge(self, start: FailedStart) -> None:
        """A worker ended before it was ready: its successor would probably, too."""
        if self._state.phase is PoolPhase.TERMINATE:
            return  # that is why, and there is to be no successor
        self._count_failed_start()
        worker, exitcode, stack = start
        cause = _cause(worker)
        on_purpose = cause is not None or worker.is_late or (exitcode is not None and exitcode >= 0)
        are_all_so = on_purpose and not self._state.ready_count
        if not are_all_so and self._failed_starts <= self._options.max_restarts:
            return
        how = worker.reason or f"{describe_exit(exitcode)} before it was ready"
        if cause is not None:
            how = f"the initializer failed: {describe(cause)}"
        self._give_up(
            f"worker process {worker.pid} could not start: {how}; failed starts in a row: "
            f"{self._failed_starts}; see its error output{self._hint(exitcode)}\n{stack}".rstrip(),
            cause,
        )

    def _hint(self, exitcode: int | None) -> str:
        is_unlikely = exitcode != 1 or self._options.start_method == "fork"
        return "" if is_unlikely else f". {UNGUARDED}"

    def _judge_no_process(self, error: Exception) -> None:
        """There is not even a process. That may pass: what the system lacks now, such as a
        descriptor that the program holds, there is in a moment; a fork server that has died is
        replaced. So it counts like a worker that ends before it is ready."""
        self._log.note(ERROR, "cannot start a worker process: %s", describe(error))
        if self._state.ready_count or isinstance(error, (EOFError, ConnectionError)):
            self._count_failed_start()
            if self._failed_starts <= self._options.max_restarts:
                return
        self._pause_until = time.monotonic() + LONGEST_PAUSE
        # One that is starting has a process. If others have got so far before, it will work, too.
        is_starting_good = self._state.ready_count > 0
        why = f"the pool cannot start a worker process: {describe(error)}"
        self._give_up(why, error, is_starting_good)

    def _give_up(
        self, why: str, cause: BaseException | None, is_starting_good: bool = False
    ) -> None:
        """The pool breaks down, unless workers are left that work, or will: those go on, and now
        and then another start is tried. A job whose worker is ending has an outcome of its own."""
        with self._state.lock:
            is_anybody_left = any(
                worker.can_work
                or (worker.ready and worker.sent)
                or (is_starting_good and worker.phase is Phase.STARTING)
                for worker in self._state.workers
            )
        if not is_anybody_left:
            self._lifecycle.break_down(why, cause)
        elif self._said_after != self._state.ready_count:
            self._said_after = self._state.ready_count
            text = "%s; the pool goes on with the workers that it has, and tries again"
            self._log.note(ERROR, text, why)

    def _count_failed_start(self) -> None:
        if self._state.ready_count != self._good_starts:
            self._good_starts, self._failed_starts = self._state.ready_count, 0
        self._failed_starts += 1
        if self._failed_starts > 2:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._failed_starts - 3))
            self._pause_until = time.monotonic() + pause


def _cause(worker: WorkerHandle) -> BaseException | None:
    """What its initializer has raised; unpickling it may run a user's code."""
    failure = worker.start_failure
    if failure is None or isinstance(failure, BaseException):
        return failure
    _, error = decode(Kind.BROKEN, failure)
    worker.fail_to_start(error)
    return error  # type: ignore[no-any-return]
