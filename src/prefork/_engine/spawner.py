"""Starts the workers of a running pool, and judges starts that fail.

                  ┌─ failed: again, after a pause; or the pool gives up
    spawn ─► STARTING ─► READY (from here on: `supervisor.py`)

With fork a start is one call. With the other start methods it is a conversation: with the fork
server, which may have been stopped or killed, or with the child, which may hang. The supervisor
must not wait for that, so it is had in the background, one worker at a time.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.context import BaseContext
from typing import NamedTuple

from prefork._describe import describe, describe_exit
from prefork._engine.dispatcher import Dispatcher
from prefork._engine.lifecycle import Lifecycle
from prefork._engine.state import PoolPhase, PoolState
from prefork._engine.worker_handle import GIVE_UP_SECONDS, WorkerHandle
from prefork._ipc.channel import Channel
from prefork._ipc.outcome import decode
from prefork._ipc.wire import Kind
from prefork._system.log import DEBUG, ERROR
from prefork._system.process import Child, Process, preload
from prefork._worker.main import main
from prefork._worker.options import Initializer, WorkerOptions
from prefork.errors import SoftTimeLimitExceeded

__all__ = ["FailedStart", "Options", "Spawner"]

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""From the third failed start in a row on, so many seconds pass before the next one: twice as many
each time, up to the longest."""

QUIET_SECONDS = 0.1
"""How long a start may wait for the callback that is running, see `CallbackRunner.pausing`."""

LATE_SECONDS = 10.0
"""How long to wait for the end of a worker whose start has come too late."""


class Options(NamedTuple):
    """What a pool's workers are made with."""

    processes: int
    context: BaseContext
    initializer: Initializer | None = None
    process_class: type[Process] = Process
    max_tasks: int | None = None  # of one worker
    tasks_jitter: int = 0  # so many fewer, at most, by chance
    max_memory: int | None = None  # of a worker after a task, KiB
    max_memory_per_task: int | None = None  # while it runs one, KiB
    max_restarts: int = 10  # failed starts in a row
    start_timeout: float | None = None  # seconds
    first_start_timeout: float | None = None  # of the first workers, instead of that
    soft_limit: type[BaseException] = SoftTimeLimitExceeded  # what is raised in a task
    accept_delay: float | None = None  # see `StartTimer`

    @property
    def start_method(self) -> str:
        return self.context.get_start_method()

    def for_worker(self) -> WorkerOptions:
        """What the next worker is to know."""
        tasks = self.max_tasks
        if tasks is not None and self.tasks_jitter:
            import random  # has a hook of its own run in each forked child

            tasks -= random.randint(0, self.tasks_jitter)
        return WorkerOptions(self.initializer, tasks, self.max_memory, self.soft_limit)


class FailedStart(NamedTuple):
    """A worker that has ended before it was ready."""

    worker: WorkerHandle
    exitcode: int | None
    stack: str


class _PendingWorker:
    """A worker that is being started."""

    def __init__(self, options: Options, name: str, place: int, generation: int) -> None:
        self._name = name
        self._generation = generation
        self._options = options.for_worker()
        self._channel = Channel()
        self._end = self._channel.take_worker_end()
        try:
            self._child = Child(
                options.process_class,
                options.context,
                name,
                main,
                (self._end, self._options),
                place,
            )
        except BaseException:
            self._close()
            raise

    def start(self) -> None:
        self._child.start(*self._end.fds())

    def worker(self) -> WorkerHandle:
        """It has been started."""
        self._end.close()
        self._child.look_after()
        self._channel.open()
        worker = WorkerHandle(self._channel, self._child, self._name, self._generation)
        if self._options.max_tasks is not None:
            worker.quota = self._options.max_tasks
        return worker

    def discard(self) -> None:
        """It is not to be, or has come too late: the pool did not wait for it."""
        self._end.close()
        if self._child.has_started():
            self._child.look_after()
            self._child.kill()
            if self._child.wait(LATE_SECONDS):
                self._child.collect()
        self._child.close()
        self._close()

    def _close(self) -> None:
        self._end.close()
        self._channel.close()


class _BackgroundStart:
    """One worker's start, on a thread of its own.

    Args:
        spawn: starts the worker.
        done: called on that thread when there is an outcome.
    """

    def __init__(self, spawn: Callable[[], object], done: Callable[[], object]) -> None:
        self.began = time.monotonic()
        self.error: Exception | None = None
        self._spawn, self._done = spawn, done
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="prefork-Start", daemon=True).start()

    def _run(self) -> None:
        try:
            self._spawn()
        except Exception as exc:
            self.error = exc
        finally:
            self._ended.set()
            self._done()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def finish(self, timeout: float | None) -> None:
        """Wait for its end, at most so many seconds.

        Raises:
            TimeoutError: it has not ended.
            Exception: what `spawn` has raised.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"no worker process could be started within {timeout:g} s")
        if self.error is not None:
            raise self.error


class Spawner:
    """
    Args:
        in_background: workers are started on a thread of their own.
        pausing: entered for each start, see `CallbackRunner.pausing`.

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
    ) -> None:
        self.generation = 0
        self._options = options
        self._state = state
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._in_background = in_background
        self._pausing = pausing
        self._spawned = 0  # workers, so far
        self._good_starts = 0
        self._failed_starts = 0  # in a row
        self._said_after = -1  # so many good starts: that the pool cannot start more workers
        self._pause_until = 0.0  # no worker is started before (monotonic)
        self._start: _BackgroundStart | None = None  # that is under way
        self._abandon_at = math.inf  # it is not waited for any longer (monotonic)

    def begin_generation(self) -> None:
        """All workers are to be replaced."""
        self.generation += 1

    # ---- starts

    def spawn(self, count: int = 1) -> None:
        """Start so many more worker processes. One takes milliseconds with fork, more with spawn.

        After a fork, parent and child share all memory; a page that either of them touches is
        copied then. So as much as possible is done before the first fork or after the last one,
        where it is not paid for again after each.

        Raises:
            OSError: the system has no process, memory or descriptor left.
            Exception: the start method's own trouble, such as an initializer that cannot be
                pickled for `spawn`.
        """
        pending: deque[_PendingWorker] = deque()
        try:
            for place in self._free_places(count):
                pending.append(self._prepare(place))
            with self._pausing(QUIET_SECONDS):
                for start in pending:
                    start.start()
            while pending and self._admit(pending):
                pass
        finally:
            for start in pending:
                start.discard()

    def _prepare(self, place: int) -> _PendingWorker:
        self._spawned += 1
        name = f"{self._options.process_class.kind}-{self._spawned}"
        return _PendingWorker(self._options, name, place, self.generation)

    def _admit(self, pending: deque[_PendingWorker]) -> bool:
        """Make the first one of the pool's workers, if that has not ended meanwhile; whether it
        is. Only then it is not pending any more, whatever happens."""
        state = self._state
        worker = pending[0].worker()
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
            state.wake_supervisor()  # its start may have to be watched
            state.log.note(DEBUG, "started worker %d (%s)", worker.pid, worker.name)
        return True

    def spawn_first(self) -> None:
        """Start the first workers; raises what keeps one from it."""
        preload(self._options.context, main.__module__)
        if not self._in_background:
            self.spawn(self._options.processes)
            return
        for _ in range(self._options.processes):
            start = _BackgroundStart(self.spawn, self._state.wake_supervisor)
            start.finish(self._start_limit())

    def _free_places(self, count: int) -> list[int]:
        with self._state.lock:
            staying = [w for w in self._state.workers if w.holds_place]
        taken = {worker.process.index for worker in staying}
        free = (index for index in itertools.count() if index not in taken)
        return list(itertools.islice(free, count))

    def fill_up(self, is_short: Callable[[], bool]) -> None:
        """Start workers while there are too few."""
        self._see_start_end()
        while self._start is None and is_short() and time.monotonic() >= self._pause_until:
            try:
                if self._in_background:
                    self._start = _BackgroundStart(self.spawn, self._state.wake_supervisor)
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

    def _is_overdue(self, start: _BackgroundStart) -> bool:
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
            f"{self._failed_starts}; see its error output\n{stack}".rstrip(),
            cause,
        )

    def _judge_no_process(self, error: Exception) -> None:
        """There is not even a process."""
        self._state.log.note(ERROR, "cannot start a worker process: %s", describe(error))
        # The fork server, or the child, has died: the next start may well succeed.
        if isinstance(error, (EOFError, ConnectionError)):
            self._count_failed_start()
            if self._failed_starts <= self._options.max_restarts:
                return
        self._pause_until = time.monotonic() + LONGEST_PAUSE
        self._give_up(f"the pool cannot start a worker process: {describe(error)}", error)

    def _give_up(self, why: str, cause: BaseException | None) -> None:
        """The pool breaks down, unless workers are left that work: those go on, and now and then
        another start is tried. A job whose worker is ending has an outcome of its own."""
        with self._state.lock:
            workers = self._state.workers
            is_anybody_left = any(w.can_work or (w.ready and w.sent) for w in workers)
        if not is_anybody_left:
            self._lifecycle.break_down(why, cause)
        elif self._said_after != self._state.ready_count:
            self._said_after = self._state.ready_count
            text = "%s; the pool goes on with the workers that it has, and tries again"
            self._state.log.note(ERROR, text, why)

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
    worker.start_failure = error
    return error  # type: ignore[no-any-return]
