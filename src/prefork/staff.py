"""The workers of a running pool: hired, watched, replaced, dismissed, buried.

    hire ─► starting ─► ready ─► leaving ─► exited ─► gone
                │          └───── killed ──────┘
                └─ failed: again, after a pause; or the pool breaks down

The end of a worker is seen twice: its outbox ends, and its process ends. In between it may still
be busy with its own exit, or something that it forked may hold the outbox open; both are waited
for, but not for ever.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.context import BaseContext
from typing import NamedTuple

from prefork.channel import Channel
from prefork.crew import GIVE_UP_SECONDS, Worker
from prefork.deadlines import MEMORY_SECONDS
from prefork.dispatcher import State
from prefork.errors import SoftTimeLimitExceeded, Terminated, describe_exit
from prefork.exchange import Exchange
from prefork.memory import OutOfMemoryKills
from prefork.messages import describe
from prefork.process import Child, Process, preload
from prefork.results import Signal
from prefork.starts import Start, is_passing
from prefork.statistics import WorkerExit
from prefork.watch import Watch
from prefork.worker import Initializer, WorkerOptions, main

__all__ = ["Options", "Staff"]

logger = logging.getLogger("prefork")

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""From the third failed start in a row on, so many seconds pass before the next one: twice as many
each time, up to the longest."""

EXIT_SECONDS = 10.0
"""A worker that has said goodbye has so long for its own exit: threads and processes that its
tasks left behind are waited for there. Then it is killed."""

CLOSED_SECONDS = 0.1
"""A process that dies closes its channel first, some moments before. After so long, it was the task
that closed it, and the worker is killed."""

KEPT_EXITS = 100
"""How many ended workers are remembered."""


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
    accept_delay: float | None = None  # see `Starts`

    def for_worker(self) -> WorkerOptions:
        """What the next worker is to know."""
        tasks = self.max_tasks
        if tasks is not None:
            tasks -= random.randint(0, self.tasks_jitter)
        return WorkerOptions(self.initializer, tasks, self.max_memory, self.soft_limit)


class Staff:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.processes = options.processes  # how many workers there should be
        self.exits: Watch[Worker] = Watch()
        look_interval = MEMORY_SECONDS if options.max_memory_per_task is not None else None
        self.jobs = Exchange(self.exits.bell.ring, look_interval, options.accept_delay)
        self.at_end: list[Callable[[], object]] = []
        self.ended = False  # all is over, and nothing is left
        self.history: deque[WorkerExit] = deque(maxlen=KEPT_EXITS)
        self._ended = Signal()
        self._termination = ""  # has been asked for, and why
        self._hired = 0
        self._good_starts = 0
        self._failed_starts = 0  # in a row
        self._pause_until = 0.0  # no worker is started before (monotonic)
        self._outdated: deque[Worker] = deque()  # to be replaced, one after another
        self._memory_kills = OutOfMemoryKills()
        preload(options.context, main.__module__)
        self.starts_aside = False  # workers are started on a thread of their own
        self._start: Start | None = None  # that is under way there
        self._abandon_at = math.inf  # it is not waited for any longer (monotonic)

    @property
    def state(self) -> State:
        return self.jobs.state

    # ---- starting

    def hire(self) -> None:
        """Start one more worker process. Takes milliseconds with fork, more with spawn.

        Raises:
            OSError: the system has no process, memory or descriptor left.
            Exception: the start method's own trouble, such as an initializer that cannot be
                pickled for `spawn`.
        """
        worker = self._make_worker()
        with self.jobs.lock:
            if self.state is not State.ENDED:
                self.exits.add(worker.process, worker)
                self.jobs.join(worker)
                if self.state is State.TERMINATE:
                    worker.kill("the pool was terminated")
                self.exits.bell.ring()  # its start may have to be watched
                logger.debug("started worker %d (%s)", worker.pid, worker.name)
                return
        worker.kill()  # it has come too late: the pool did not wait for it
        if worker.process.wait(EXIT_SECONDS):
            worker.process.collect()
            worker.process.close()
        worker.channel.close()

    def hire_first(self) -> None:
        """Start the first workers; raises what keeps one from it."""
        for _ in range(self.processes):
            if self.starts_aside:
                Start(self.hire, self.exits.bell.ring).finish(self.options.start_timeout)
            else:
                self.hire()

    def _make_worker(self) -> Worker:
        self._hired += 1
        name = f"{self.options.process_class.kind}-{self._hired}"
        options = self.options.for_worker()
        channel = Channel()
        end = channel.take_worker_end()
        try:
            with end.handing_over():
                process = Child(
                    self.options.process_class,
                    self.options.context,
                    name,
                    main,
                    (end, options),
                    self._free_place(),
                )
        except BaseException:
            channel.close()
            raise
        worker = Worker(channel, process, name)
        if options.max_tasks is not None:
            worker.quota = options.max_tasks
        if self.options.start_timeout is not None:
            worker.patience_ends = time.monotonic() + self.options.start_timeout
        return worker

    def _free_place(self) -> int:
        with self.jobs.lock:
            staying = [w for w in self.jobs.workers if not (w.exited or w.farewell)]
        taken = {worker.process.index for worker in staying}
        return next(index for index in itertools.count() if index not in taken)

    def _fill_up(self) -> None:
        """Start the workers that are missing."""
        self._see_start_end()
        while (
            self._start is None
            and self._is_short_of_workers()
            and time.monotonic() >= self._pause_until
        ):
            try:
                if self.starts_aside:
                    self._start = Start(self.hire, self.exits.bell.ring)
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
        elif self._is_overdue(start) and not self.jobs.workers:
            limit = self.options.start_timeout
            self.jobs.break_down(f"no worker process could be started within {limit:g} s")

    def _is_overdue(self, start: Start) -> bool:
        limit = self.options.start_timeout
        return limit is not None and time.monotonic() >= start.began + limit

    def _judge_no_start(self, exc: Exception) -> None:
        """There is not even a process."""
        logger.error("cannot start a worker process: %s", describe(exc))
        if is_passing(exc):
            self._count_failed_start()
            if self._failed_starts <= self.options.max_restarts:
                return
        self._pause_until = time.monotonic() + 1.0
        if not self.jobs.workers:
            why = f"the pool cannot start a worker process: {describe(exc)}"
            self.jobs.break_down(why, exc)

    def _is_short_of_workers(self) -> bool:
        with self.jobs.lock:
            wanted = self.state in (State.RUN, State.CLOSE) and not self.jobs.is_done()
            # First those who end are buried: their jobs' errors are waited for, a fork takes long,
            # and they may be the reason not to start another one.
            ending = sum(worker.is_ending for worker in self.jobs.workers)
            return wanted and len(self._present()) + ending < self._wanted()

    def _present(self) -> list[Worker]:
        return [w for w in self.jobs.workers if not w.is_retiring]

    def _wanted(self) -> int:
        """One more while workers are replaced: the next one goes when its successor is ready."""
        return self.processes + bool(self._outdated)

    # ---- watching

    def tend(self, exited: Iterable[Worker]) -> float | None:
        """See to everything that has happened since the last time.

        Args:
            exited: workers whose processes have ended.

        Returns:
            When it wants to be called again, in seconds; None: when the bell rings, or a worker
            ends.
        """
        if self._termination:
            self.jobs.stop(Terminated(f"{self._termination} before this job had finished"))
        with self.jobs.lock:
            for worker in exited:
                self._note_exit(worker)
            before = len(self.jobs.workers)
            for worker in list(self.jobs.workers):
                self._review(worker)
            buried = before > len(self.jobs.workers)
        if buried:
            time.sleep(0.0)  # a fork holds the interpreter for long: first the errors are told
        self._fill_up()
        with self.jobs.lock:
            self._let_go()
            # A closed pool may have no worker for a moment, and jobs that the next one will run.
            is_over = self.state is State.TERMINATE or self.jobs.is_done()
            if is_over and not self.jobs.workers and self._starts_no_more():
                self.jobs.state = State.ENDED
            return self._next_time()

    def _starts_no_more(self) -> bool:
        """Whether the pool can end: a start that is under way is waited for, but not for ever."""
        if self._start is None or self._start.ended:
            return True
        now = time.monotonic()
        self._abandon_at = min(self._abandon_at, now + GIVE_UP_SECONDS)
        return now >= self._abandon_at

    def _note_exit(self, worker: Worker) -> None:
        worker.exited = True
        worker.patience_ends = None
        self.exits.discard(worker.process)
        self.jobs.scheduler.shut(worker)
        self.jobs.hear_out(worker)
        self.jobs.take_back(worker)
        self.jobs.distribute()

    def _review(self, worker: Worker) -> None:
        """See whether this worker's story is over; with the lock held."""
        now = time.monotonic()
        if worker.start_error is not None:
            exc = worker.start_error
            self.jobs.break_down(f"the initializer failed in a worker: {describe(exc)}", exc)
        if worker.exited:
            self.jobs.hear_out(worker)
            if self._has_had_its_say(worker, now):
                self._bury(worker)
            return
        if worker.channel.eof and not worker.farewell:
            self._see_out(worker, now)
        if worker.patience_ends is not None and now >= worker.patience_ends:
            self._end_by_force(worker)

    def _has_had_its_say(self, worker: Worker, now: float) -> bool:
        """Whether a dead worker's last result has come, or is not waited for any more."""
        if worker.channel.eof or not worker.sent or worker.sentence:
            return True
        if worker.patience_ends is None:  # something that it forked can still send the result
            job = next(iter(worker.sent.values()))
            worker.patience_ends = now + (
                math.inf if job.lost_timeout is None else job.lost_timeout
            )
        return now >= worker.patience_ends

    def _see_out(self, worker: Worker, now: float) -> None:
        """A worker has closed its channel, and its process goes on, for a moment at least."""
        worker.farewell = True
        self.jobs.scheduler.shut(worker)
        self.jobs.take_back(worker)
        self.jobs.distribute()
        if not worker.dying:
            worker.patience_ends = now + (CLOSED_SECONDS if worker.sent else EXIT_SECONDS)

    def _end_by_force(self, worker: Worker) -> None:
        """A worker has not done in time what it was waited for."""
        if worker.killed:
            self._bury(worker)
            return
        if worker.dying:
            worker.kill()
        elif worker.farewell and worker.sent:
            worker.kill("its task has closed the channel to the pool")
        elif worker.farewell:
            worker.kill(f"it has not ended {EXIT_SECONDS:g} s after its last task")
        else:
            worker.late = True
            self.jobs.scheduler.shut(worker)
            self.jobs.take_back(worker)
            self.jobs.distribute()
            worker.kill_after_last_words(f"not ready within {self.options.start_timeout:g} s")

    def _bury(self, worker: Worker) -> None:
        """All that a dead worker will ever say has been heard: account for the rest."""
        self.jobs.take_back(worker)
        stack = worker.channel.black_box.text()
        exitcode = worker.process.collect()
        note = self._note(worker, exitcode)
        for job in list(worker.sent.values()):
            self.jobs.lose(worker, job, exitcode, stack, note)
        self.jobs.leave(worker)
        self.exits.discard(worker.process)
        worker.channel.close()
        worker.process.close()
        self._record(worker, exitcode, note)
        if not worker.ready and worker.start_error is None:
            self._judge_failed_start(worker, exitcode, stack)

    def _note(self, worker: Worker, exitcode: int | None) -> str:
        if exitcode == -signal.SIGKILL and not worker.killed and self._memory_kills.any_new():
            return "the kernel was out of memory"
        return ""

    def _record(self, worker: Worker, exitcode: int | None, note: str) -> None:
        """Say once how and why a worker has ended."""
        how = "was killed" if worker.dying else describe_exit(exitcode)
        why = worker.reason or note
        if worker.lost is not None and not worker.is_doomed:
            why = note or f"it ran job {worker.lost.id} ({worker.lost.function})"
        elif not why and worker.quota <= 0:
            why = f"it has run {worker.tasks} tasks"
        self.history.append(WorkerExit(worker.pid, worker.name, exitcode, why or how, worker.tasks))
        left = worker.leaving or worker.quota <= 0
        expected = left and (exitcode == 0 or worker.lost is None)
        level = logging.DEBUG if expected or self.state is State.TERMINATE else logging.WARNING
        text = f"{how}: {why}" if why else how
        logger.log(level, "worker %d (%s) %s", worker.pid, worker.name, text)

    def _judge_failed_start(self, worker: Worker, exitcode: int | None, stack: str) -> None:
        """A worker ended before it was ready: its successor would probably, too."""
        self._count_failed_start()
        left_of_itself = exitcode is not None and exitcode >= 0
        are_all_late = worker.late and not self.jobs.starts
        if left_of_itself or are_all_late or self._failed_starts > self.options.max_restarts:
            how = worker.reason or f"{describe_exit(exitcode)} before it was ready"
            self.jobs.break_down(
                f"worker process {worker.pid} could not start: {how}; failed starts in a row: "
                f"{self._failed_starts}; see its error output\n{stack}".rstrip()
            )

    def _count_failed_start(self) -> None:
        if self.jobs.starts != self._good_starts:
            self._good_starts, self._failed_starts = self.jobs.starts, 0
        self._failed_starts += 1
        if self._failed_starts > 2:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._failed_starts - 3))
            self._pause_until = time.monotonic() + pause

    def _next_time(self) -> float | None:
        times = [w.patience_ends for w in self.jobs.workers if w.patience_ends is not None]
        if self._start is not None:
            times.append(self._abandon_at)
            if self.options.start_timeout is not None and not self._is_overdue(self._start):
                times.append(self._start.began + self.options.start_timeout)
        elif self._is_short_of_workers():
            times.append(self._pause_until)
        return max(0.0, min(times) - time.monotonic()) if times else None

    # ---- letting go

    def _let_go(self) -> None:
        """Dismiss those who are too many: all of them, once the pool is done."""
        if self.jobs.is_done():
            self._outdated.clear()
            for worker in self._present():
                self.jobs.dismiss(worker, "the pool is closed, and all is done")
            return
        self._replace_next()
        present = self._present()
        surplus = len(present) - self._wanted()
        for worker in sorted(present, key=lambda w: len(w.sent))[: max(0, surplus)]:
            self.jobs.dismiss(worker, "fewer workers are wanted")

    def _replace_next(self) -> None:
        """Dismiss an outdated worker, if there is a new one to take its place."""
        present = self._present()
        while self._outdated and self._outdated[0] not in present:
            self._outdated.popleft()
        if self._outdated and len(present) > self.processes and all(w.ready for w in present):
            self.jobs.dismiss(self._outdated.popleft(), "the workers are replaced")

    def resize(self, change: int) -> None:
        with self.jobs.lock:
            self.jobs.check_running()
            if self.processes + change < 1:
                raise ValueError(
                    f"cannot shrink {self.processes} processes by {-change}: one must be left"
                )
            self.processes += change
        self.exits.bell.ring()

    def replace_all(self) -> None:
        """Replace all workers, one after another, after the tasks that they run."""
        with self.jobs.lock:
            self.jobs.check_running()
            # Those that are starting are new already.
            self._outdated = deque(worker for worker in self._present() if worker.ready)
        self.exits.bell.ring()

    # ---- the end

    def request_termination(self, why: str = "the pool was terminated") -> None:
        """Have the supervisor fail all jobs and kill all workers. Safe in a finalizer: no lock."""
        self._termination = why
        self.exits.bell.ring()

    def crash(self, reason: BaseException) -> None:
        """The supervisor has failed: end the pool without it."""
        self.jobs.crash(reason)
        self.kill_all()
        self.release()

    def kill_all(self) -> None:
        """Kill the workers and account for them, here and now."""
        with self.jobs.lock:
            for worker in list(self.jobs.workers):
                worker.kill("the pool could not go on")
                worker.process.wait(EXIT_SECONDS)
                worker.exited = True
                self.exits.discard(worker.process)
                self._bury(worker)
            self.jobs.state = State.ENDED

    def release(self) -> None:
        """There are no workers any more: stop the other roles, free the descriptors."""
        for stop in self.at_end:
            stop()
        self.jobs.outboxes.close()
        self.exits.close()
        self.ended = True
        self._ended.notify()

    def wait_until_ended(self, timeout: float | None = None) -> bool:
        return self.jobs.wait_for(self._ended, lambda: self.ended or self.jobs.forked, timeout)
