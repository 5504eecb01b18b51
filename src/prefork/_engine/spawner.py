"""Starts the workers of a running pool, and judges starts that fail.

                 ┌─ failed: again, after a pause; or the pool breaks down
    hire ─► starting ─► ready (from here on: `staff.py`)

With fork a start is one call. With the other start methods it is a conversation that may take for
ever; then it is had aside, on a thread of its own (`starts.py`).
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.context import BaseContext
from typing import NamedTuple

from prefork._describe import describe, describe_exit
from prefork._engine.collector import Exchange
from prefork._engine.state import State
from prefork._engine.worker_handle import GIVE_UP_SECONDS, Worker
from prefork._ipc.channel import Channel
from prefork._system.log import DEBUG, ERROR, log
from prefork._system.process import Child, Process, preload
from prefork._system.selector import Selector
from prefork._worker.main import main
from prefork._worker.options import Initializer, WorkerOptions
from prefork.errors import SoftTimeLimitExceeded

__all__ = ["Options", "Recruiter", "Start", "is_passing"]

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
    soft_limit: type[BaseException] = SoftTimeLimitExceeded  # what is raised in a task
    accept_delay: float | None = None  # see `StartNotices`

    def for_worker(self) -> WorkerOptions:
        """What the next worker is to know."""
        tasks = self.max_tasks
        if tasks is not None and self.tasks_jitter:
            import random  # has a hook of its own run in each forked child

            tasks -= random.randint(0, self.tasks_jitter)
        return WorkerOptions(self.initializer, tasks, self.max_memory, self.soft_limit)


class _Draft:
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

    def worker(self) -> Worker:
        """It has been started."""
        self._end.close()
        self._child.look_after()
        self._channel.open()
        worker = Worker(self._channel, self._child, self._name)
        worker.generation = self._generation
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


class Recruiter:
    def __init__(self, options: Options, jobs: Exchange, exits: Selector[Worker]) -> None:
        self.starts_aside = False  # workers are started on a thread of their own
        self.generation = 0  # of the next worker
        self.pausing: Callable[[float], AbstractContextManager[object]] = nullcontext
        self._options = options
        self._jobs = jobs
        self._exits = exits
        self._hired = 0
        self._good_starts = 0
        self._failed_starts = 0  # in a row
        self._pause_until = 0.0  # no worker is started before (monotonic)
        self._start: Start | None = None  # that is under way aside
        self._abandon_at = math.inf  # it is not waited for any longer (monotonic)

    def hire(self, count: int = 1) -> None:
        """Start so many more worker processes. One takes milliseconds with fork, more with spawn.

        After a fork, parent and child share all memory; a page that either of them touches is
        copied then. So as much as possible is done before the first fork or after the last one,
        where it is not paid for again after each.

        Raises:
            OSError: the system has no process, memory or descriptor left.
            Exception: the start method's own trouble, such as an initializer that cannot be
                pickled for `spawn`.
        """
        drafts: deque[_Draft] = deque()
        try:
            for place in self._free_places(count):
                drafts.append(self._draft(place))
            with self.pausing(QUIET_SECONDS):
                for draft in drafts:
                    draft.start()
            while drafts and self._admit(drafts):
                pass
        finally:
            for draft in drafts:
                draft.discard()

    def _draft(self, place: int) -> _Draft:
        self._hired += 1
        name = f"{self._options.process_class.kind}-{self._hired}"
        return _Draft(self._options, name, place, self.generation)

    def _admit(self, drafts: deque[_Draft]) -> bool:
        """Make the first one of the pool's workers, if that has not ended meanwhile; whether it
        is. Only then it is no draft any more, whatever happens."""
        worker = drafts[0].worker()
        if self._options.start_timeout is not None:
            worker.patience_ends = time.monotonic() + self._options.start_timeout
        with self._jobs.lock:
            if self._jobs.state is State.ENDED:
                return False
            self._exits.add(worker.process, worker)
            try:
                self._jobs.join(worker)
            finally:
                if worker in self._jobs.workers:
                    drafts.popleft()
                else:
                    self._exits.discard(worker.process)
            if self._jobs.state is State.TERMINATE:
                worker.kill("the pool was terminated")
            self._exits.wakeup.set()  # its start may have to be watched
            log(DEBUG, "started worker %d (%s)", worker.pid, worker.name)
        return True

    def hire_first(self) -> None:
        """Start the first workers; raises what keeps one from it."""
        preload(self._options.context, main.__module__)
        if not self.starts_aside:
            self.hire(self._options.processes)
            return
        for _ in range(self._options.processes):
            Start(self.hire, self._exits.wakeup.set).finish(self._options.start_timeout)

    def _free_places(self, count: int) -> list[int]:
        with self._jobs.lock:
            staying = [w for w in self._jobs.workers if not (w.exited or w.farewell)]
        taken = {worker.process.index for worker in staying}
        free = (index for index in itertools.count() if index not in taken)
        return list(itertools.islice(free, count))

    def fill_up(self, is_short: Callable[[], bool]) -> None:
        """Start workers while there are too few."""
        self._see_start_end()
        while self._start is None and is_short() and time.monotonic() >= self._pause_until:
            try:
                if self.starts_aside:
                    self._start = Start(self.hire, self._exits.wakeup.set)
                else:
                    self.hire()
            except Exception as exc:
                self._judge_no_start(exc)

    def _see_start_end(self) -> None:
        start = self._start
        if start is None:
            return
        if start.ended:
            self._start = None
            if start.error is not None:
                self._judge_no_start(start.error)
        elif self._is_overdue(start) and not self._jobs.workers:
            limit = self._options.start_timeout
            self._jobs.break_down(f"no worker process could be started within {limit:g} s")

    def _is_overdue(self, start: Start) -> bool:
        limit = self._options.start_timeout
        return limit is not None and time.monotonic() >= start.began + limit

    def _judge_no_start(self, exc: Exception) -> None:
        """There is not even a process."""
        log(ERROR, "cannot start a worker process: %s", describe(exc))
        if is_passing(exc):
            self._count_failed_start()
            if self._failed_starts <= self._options.max_restarts:
                return
        self._pause_until = time.monotonic() + 1.0
        if not self._jobs.workers:
            why = f"the pool cannot start a worker process: {describe(exc)}"
            self._jobs.break_down(why, exc)

    def has_ended(self) -> bool:
        """Whether the pool can end: a start that is under way is waited for, but not for ever."""
        if self._start is None or self._start.ended:
            return True
        now = time.monotonic()
        self._abandon_at = min(self._abandon_at, now + GIVE_UP_SECONDS)
        return now >= self._abandon_at

    def judge_failed_start(self, worker: Worker, exitcode: int | None, stack: str) -> None:
        """A worker ended before it was ready: its successor would probably, too."""
        self._count_failed_start()
        cause = worker.start_error
        on_purpose = cause is not None or worker.late or (exitcode is not None and exitcode >= 0)
        are_all_so = on_purpose and not self._jobs.starts
        if are_all_so or self._failed_starts > self._options.max_restarts:
            how = worker.reason or f"{describe_exit(exitcode)} before it was ready"
            if cause is not None:
                how = f"the initializer failed: {describe(cause)}"
            self._jobs.break_down(
                f"worker process {worker.pid} could not start: {how}; failed starts in a row: "
                f"{self._failed_starts}; see its error output{self._hint(exitcode)}\n"
                f"{stack}".rstrip(),
                cause,
            )

    def _hint(self, exitcode: int | None) -> str:
        """A program that starts its work when it is imported would start it in each worker, too:
        the standard library refuses that there."""
        if exitcode != 1 or self._options.context.get_start_method() == "fork":
            return ""
        return (
            ". A worker that is not forked imports the program's file: what the program does when "
            'it is run belongs under `if __name__ == "__main__":`'
        )

    def _count_failed_start(self) -> None:
        if self._jobs.starts != self._good_starts:
            self._good_starts, self._failed_starts = self._jobs.starts, 0
        self._failed_starts += 1
        if self._failed_starts > 2:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._failed_starts - 3))
            self._pause_until = time.monotonic() + pause

    def next_times(self, is_short: Callable[[], bool]) -> list[float]:
        """When `fill_up` wants to be called again (monotonic)."""
        times = []
        if self._start is not None:
            times.append(self._abandon_at)
            if self._options.start_timeout is not None and not self._is_overdue(self._start):
                times.append(self._start.began + self._options.start_timeout)
        elif is_short():
            times.append(self._pause_until)
        return times


class Start:
    """One worker's start, on a thread of its own.

    Args:
        hire: starts the worker.
        done: called on that thread when there is an outcome.
    """

    def __init__(self, hire: Callable[[], object], done: Callable[[], object]) -> None:
        self.began = time.monotonic()
        self.error: Exception | None = None
        self._hire, self._done = hire, done
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="prefork-Start", daemon=True).start()

    def _run(self) -> None:
        try:
            self._hire()
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
            Exception: what `hire` has raised.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"no worker process could be started within {timeout:g} s")
        if self.error is not None:
            raise self.error


def is_passing(error: Exception) -> bool:
    """Whether the next start may well succeed: the fork server, or the child, has died."""
    return isinstance(error, (EOFError, ConnectionError))
