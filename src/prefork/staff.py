"""The workers of a running pool: hired, watched, replaced, dismissed, buried.

    hire ─► starting ─► ready ─► leaving ─► exited ─► gone
                │          └───── killed ──────┘
                └─ failed: again, after a pause; or the pool breaks down

The end of a worker is seen twice: its outbox ends, and its process ends. In between it may still
be busy with its own exit, or something that it forked may hold the outbox open; both are waited
for, but not for ever.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from multiprocessing.context import BaseContext
from typing import NamedTuple

from prefork.channel import Channel
from prefork.crew import Worker
from prefork.dispatcher import Dispatcher, State
from prefork.errors import Terminated, describe_exit
from prefork.messages import describe
from prefork.process import Child, Process
from prefork.results import Signal
from prefork.watch import Watch
from prefork.worker import WorkerOptions, main

__all__ = ["Options", "Staff"]

logger = logging.getLogger("prefork")

MAX_FAILED_STARTS = 10
"""So many workers in a row may be killed before they are ready; then the pool gives up. From the
third on it waits before the next try: `FIRST_PAUSE` seconds, then twice as long each time."""
FIRST_PAUSE = 0.05

EXIT_SECONDS = 10.0
"""A worker that has said goodbye has so long for its own exit: threads and processes that its
tasks left behind are waited for there. Then it is killed."""


class Options(NamedTuple):
    """What a pool's workers are made with."""

    processes: int
    worker: WorkerOptions
    context: BaseContext
    process_class: type[Process] = Process


class Staff:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.processes = options.processes  # how many workers there should be
        self.exits: Watch[Worker] = Watch()
        self.jobs = Dispatcher(self.exits.bell.ring)
        self.at_end: list[Callable[[], object]] = []
        self.ended = False  # all is over, and nothing is left
        self._ended = Signal()
        self._termination = ""  # has been asked for, and why
        self._hired = 0
        self._good_starts = 0
        self._failed_starts = 0  # in a row
        self._pause_until = 0.0  # no worker is started before (monotonic)

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
        self._hired += 1
        name = f"PreforkWorker-{self._hired}"
        channel = Channel()
        end = channel.take_worker_end()
        try:
            with end.handing_over():
                process = Child(
                    self.options.process_class,
                    self.options.context,
                    name,
                    main,
                    (end, self.options.worker),
                )
        except BaseException:
            channel.close()
            raise
        worker = Worker(channel, process, name)
        if self.options.worker.maxtasksperchild is not None:
            worker.quota = self.options.worker.maxtasksperchild
        with self.jobs.lock:
            self.exits.add(process, worker)
            self.jobs.join(worker)
            if self.state is State.TERMINATE:
                process.kill()
        logger.debug("started worker %d (%s)", worker.pid, name)

    def _fill_up(self) -> None:
        """Start the workers that are missing."""
        while self._is_short_of_workers() and time.monotonic() >= self._pause_until:
            try:
                self.hire()
            except Exception as exc:
                logger.error("cannot start a worker process: %s", describe(exc))
                self._pause_until = time.monotonic() + 1.0
                if not self.jobs.workers:
                    why = f"the pool cannot start a worker process: {describe(exc)}"
                    self.jobs.break_down(why, exc)
                return

    def _is_short_of_workers(self) -> bool:
        with self.jobs.lock:
            wanted = self.state in (State.RUN, State.CLOSE) and not self.jobs.is_done()
            return wanted and len(self._present()) < self.processes

    def _present(self) -> list[Worker]:
        return [w for w in self.jobs.workers if not (w.leaving or w.exited or w.quota <= 0)]

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
            for worker in list(self.jobs.workers):
                self._review(worker)
        self._fill_up()
        with self.jobs.lock:
            self._let_go()
            if self.state is not State.RUN and not self.jobs.workers:
                self.jobs.state = State.ENDED
            return self._next_time()

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
        elif worker.channel.eof:
            self._see_out(worker, now)

    def _has_had_its_say(self, worker: Worker, now: float) -> bool:
        """Whether a dead worker's last result has come, or is not waited for any more."""
        if worker.channel.eof or not worker.sent or worker.verdicts:
            return True
        if worker.patience_ends is None:  # something that it forked can still send the result
            job = next(iter(worker.sent.values()))
            worker.patience_ends = now + (
                math.inf if job.lost_timeout is None else job.lost_timeout
            )
        return now >= worker.patience_ends

    def _see_out(self, worker: Worker, now: float) -> None:
        """A worker has closed its channel, and its process goes on."""
        worker.leaving = True
        self.jobs.scheduler.shut(worker)
        if worker.patience_ends is None:
            self.jobs.take_back(worker)
            self.jobs.distribute()
            worker.patience_ends = now + EXIT_SECONDS
            if worker.sent:  # then it was the task that closed it
                worker.process.kill()
        elif now >= worker.patience_ends:
            logger.warning(
                "killing worker %d: it has not ended %g s after its last task; something that a "
                "task started may still run",
                *(worker.pid, EXIT_SECONDS),
            )
            worker.process.kill()
            worker.patience_ends = now + EXIT_SECONDS

    def _bury(self, worker: Worker) -> None:
        """All that a dead worker will ever say has been heard: account for the rest."""
        self.jobs.take_back(worker)
        stack = worker.channel.stack()
        exitcode = worker.process.collect()
        for job in list(worker.sent.values()):
            self.jobs.lose(worker, job, exitcode, stack)
        self.jobs.leave(worker)
        worker.channel.close()
        worker.process.close()
        expected = worker.leaving or worker.quota <= 0 or self.state is State.TERMINATE
        level = logging.DEBUG if expected else logging.WARNING
        logger.log(level, "worker %d %s", worker.pid, describe_exit(exitcode))
        if not worker.ready and worker.start_error is None:
            self._judge_failed_start(exitcode, stack)

    def _judge_failed_start(self, exitcode: int | None, stack: str) -> None:
        """A worker ended before it was ready: its successor would probably, too."""
        if self.jobs.starts != self._good_starts:
            self._good_starts, self._failed_starts = self.jobs.starts, 0
        self._failed_starts += 1
        if (exitcode is not None and exitcode >= 0) or self._failed_starts >= MAX_FAILED_STARTS:
            self.jobs.break_down(
                f"a worker process {describe_exit(exitcode)} before it was ready; failed starts "
                f"in a row: {self._failed_starts}; see its error output\n{stack}".rstrip()
            )
        elif self._failed_starts > 2:
            pause = FIRST_PAUSE * 2 ** (self._failed_starts - 3)
            self._pause_until = time.monotonic() + pause

    def _next_time(self) -> float | None:
        times = [w.patience_ends for w in self.jobs.workers if w.patience_ends is not None]
        if self._is_short_of_workers():
            times.append(self._pause_until)
        return max(0.0, min(times) - time.monotonic()) if times else None

    # ---- letting go

    def _let_go(self) -> None:
        """Dismiss those who are too many: all of them, once the pool is done."""
        present = self._present()
        surplus = len(present) if self.jobs.is_done() else len(present) - self.processes
        for worker in sorted(present, key=lambda w: len(w.sent))[: max(0, surplus)]:
            self.jobs.dismiss(worker)

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
        """Have all workers leave after the tasks that they run; successors are hired."""
        with self.jobs.lock:
            self.jobs.check_running()
            for worker in self._present():
                if worker.ready:  # else it is new already
                    self.jobs.dismiss(worker)
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
                worker.process.kill()
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
