"""All that one lock guards: the pool's phase, its workers, its open jobs and their outcomes.

The lock is re-entrant, since a finalizer or a signal handler may call the pool in the middle of it.
It is never held over a user's code or a call that waits: what a job has come to is queued as an
outcome, and passed on by the result handler alone, so that each result hears of its jobs from one
thread, one thing after another; log messages are queued, too (`log.py`).
"""

from __future__ import annotations

import enum
import os
import sys
import time
from typing import TYPE_CHECKING, Final, Protocol

from prefork._engine.failure_kinds import KINDS, RAISED, failure_kind
from prefork._engine.outcomes import ACCEPTED, ERROR, Accepted, OutcomeQueue
from prefork._engine.witness import Witnesses
from prefork._engine.worker_handle import WorkerHandle
from prefork._ipc.outcome import Part, Whole
from prefork._ipc.page import NotedOutcome
from prefork._ipc.wire import Kind
from prefork._policy.durations import Durations
from prefork._policy.job import WAITING, Job
from prefork._policy.scheduler import Scheduler
from prefork._policy.terms import JobOnTerms
from prefork._system.condition import Condition
from prefork._system.locks import RLock
from prefork._system.log import Log
from prefork._system.selector import Selector
from prefork.errors import PoolBrokenError

if TYPE_CHECKING:
    from prefork._inspection.endpoint import Endpoint

__all__ = [
    "InputReader",
    "OpenJobs",
    "PoolPhase",
    "PoolState",
    "in_child",
    "takes_no_jobs",
]

_monotonic: Final = time.monotonic  # a name that is final is found faster
MAX_OPEN_FILES: Final = 128
"""Large jobs that wait in files; more wait in memory, so that descriptors are left."""


class OpenJobs:
    """Every job that the pool has taken, until its outcome is known; once.

    Args:
        outcomes: where outcomes go.
        witnesses: are told of each run.

    Attributes:
        failures: how many have failed, by kinds of failures.
        queue_time, run_time: of each run that is over.
    """

    def __init__(self, outcomes: OutcomeQueue, witnesses: Witnesses) -> None:
        self._witnesses = witnesses
        self.by_id: dict[int, Job] = {}
        self.finished = 0
        self.failures: dict[str, int] = dict.fromkeys(KINDS, 0)
        self.queue_time = Durations()
        self.run_time = Durations()
        self.retried = 0
        self.waiting = 0  # open jobs that neither run nor are queued
        self._outcomes = outcomes
        self._parts: dict[int, list[Part | NotedOutcome]] = {}  # of jobs that go on behind these
        self._files = 0  # open jobs that have one

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def add(self, job: Job) -> None:
        """Once more does nothing."""
        if job.id in self.by_id:
            return
        self.by_id[job.id] = job
        job.handed_in = _monotonic()
        if job.payload is not None and job.payload.is_file:
            self._files += 1

    def resolve(self, job: Job, kind: int, payload: object) -> None:
        """The outcome is known: a report's kind and payload, or ERROR and an exception.

        Does nothing if the job has been resolved before.
        """
        if job.id in self.by_id:
            kind, payload = self.whole(job, kind, payload)
            failure = ""
            if kind == ERROR:
                failure = failure_kind(payload)
            elif kind == Kind.FAILED:
                failure = RAISED
            self.remove(job, failure)
            self._outcomes.add(job, kind, payload)

    def add_part(self, job: Job, part: Part | NotedOutcome) -> None:
        """The next items of this job have come to this; it goes on behind them. Does nothing if it
        has been resolved."""
        if job.id not in self.by_id:
            return
        self._parts.setdefault(job.id, []).append(part)
        job.skip_to(job.first + (part.items if isinstance(part, Part) else 1))

    def whole(self, job: Job, kind: int, payload: object) -> tuple[int, object]:
        """An outcome of a job, with that of the parts that came before."""
        if not job.first:
            return kind, payload
        return Kind.OUTCOMES, Whole(self._parts[job.id], job.size, kind, payload)

    def note_run(self, job: Job, started: float, seconds: float) -> None:
        """A run of it is over, whatever has come of it; times as in reports."""
        self.queue_time.add(started - job.handed_in)
        self.run_time.add(seconds)
        for witness in self._witnesses.all:
            witness.run_over(job, started, seconds)

    def remove(self, job: Job, failure: str = "") -> bool:
        """The same as `resolve`, for who tells the outcome itself; whether the job was open.

        Args:
            failure: what kind of one the outcome is; "": none.
        """
        if job.id not in self.by_id:
            return False
        del self.by_id[job.id]
        if job.first:
            del self._parts[job.id]
        if failure:
            self.failures[failure] += 1
        else:
            self.finished += 1
        if job.payload is not None and job.payload.is_file:
            self._files -= 1
        if job.phase == WAITING:
            self.waiting -= 1
        job.resolve()
        return True

    def fail(self, job: Job, reason: BaseException) -> None:
        self.resolve(job, ERROR, reason)

    def suspend(self, job: JobOnTerms) -> None:
        """A run of it has failed, or may have, and another one may follow."""
        self.waiting += 1
        job.suspend()

    def resume(self, job: JobOnTerms) -> None:
        """It is to be run again now."""
        self.waiting -= 1
        self.retried += 1
        job.resume()
        job.handed_in = time.monotonic()

    def go_on(self, job: Job) -> None:
        """No worker has it any more, and its next items are to be run."""
        if job.phase == WAITING:
            self.waiting -= 1
        job.take_back()
        job.forget_run()
        job.handed_in = time.monotonic()

    def report_start(self, job: Job, pid: int, started: float) -> None:
        job.note_start_told()
        self._outcomes.add(job, ACCEPTED, Accepted(pid, started))

    def may_open_file(self) -> bool:
        """Whether one more large job may wait in a file."""
        return self._files < MAX_OPEN_FILES


class PoolPhase(enum.Enum):
    """A pool's life: from RUN through CLOSE and TERMINATE to ENDED, skipping some."""

    RUN = "running"
    CLOSE = "closed"  # no new jobs; workers leave when all are done
    TERMINATE = "terminated"  # no jobs at all; workers are being killed
    ENDED = "ended"  # no workers


def in_child() -> RuntimeError:
    """What is raised in a forked child."""
    return RuntimeError(
        "this pool belongs to the process that made it; make another one in the forked child"
    )


def takes_no_jobs(phase: PoolPhase, broken: PoolBrokenError | None) -> Exception:
    """What is raised by who hands in a job to a pool that takes none."""
    if broken is None:
        return ValueError(f"the pool is {phase.value}: it takes no more jobs")
    error = PoolBrokenError(*broken.args)
    error.__cause__ = broken.__cause__
    return error


class InputReader(Protocol):
    """Somebody who reads an input and submits jobs."""

    def handle_event(self) -> None:
        """Submit as many jobs as there is room for."""

    def abort(self, reason: Exception) -> None:
        """Stop at once; does not wait, takes no lock of the pool's."""

    def read_on(self) -> None:
        """Do not wait for room any more."""

    def is_needed(self) -> bool:
        """Whether anybody will take the results."""


_CHECKS: Final = bool(os.environ.get("PREFORK_DEBUG")) or sys.flags.dev_mode


class PoolState:
    """
    Args:
        log: where all parts note what they have to say.
        cpus: see `Scheduler`.

    Attributes:
        exits: workers, by what becomes readable when their processes end, and where the pool is
            asked from outside; the supervisor waits there.
        outboxes: workers, by what becomes readable when they report; the result handler waits
            there.
        slot_free: notified when a worker may have become free.
        ready_count: how many workers have ever become ready.
        slowest_start: how long one of them took for that, at most; seconds.
        witnesses: are told of runs and outcomes.
        broken: why there are no workers, if the pool has given up.
        is_forked: this is a copy in a child process; the pool is the parent's.
    """

    def __init__(self, log: Log, cpus: int = 2) -> None:
        self.log = log
        self.lock = RLock()
        self.phase = PoolPhase.RUN
        self.workers: list[WorkerHandle] = []
        self.inputs: set[InputReader] = set()  # that are still being read
        self.exits: Selector[WorkerHandle | Endpoint] = Selector()
        self.outboxes: Selector[WorkerHandle] = Selector()
        self.scheduler = Scheduler(cpus)
        self.witnesses = Witnesses()
        self.outcomes = OutcomeQueue(self.outboxes.wakeup.set, self.witnesses)
        self.open_jobs = OpenJobs(self.outcomes, self.witnesses)
        self.slot_free = Condition()
        self.ready_count = 0
        self.slowest_start = 0.0
        self.broken: PoolBrokenError | None = None
        self.is_forked = False

    def close_in_child(self) -> None:
        """In a forked child: the pool is the parent's."""
        self.is_forked = True
        self.phase = PoolPhase.ENDED
        self.lock = RLock()

    def is_lock_held(self) -> bool:
        """Whether the caller's thread has the lock."""
        return self.lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    def assert_locked(self) -> None:
        """Said by whoever needs the lock; checked where PREFORK_DEBUG is set, and in Python's
        development mode.

        Raises:
            AssertionError: the caller's thread does not have it.
        """
        if _CHECKS and not self.is_lock_held():
            raise AssertionError("the pool's lock is needed here, and is not held")

    def wake_supervisor(self) -> None:
        """There is something for the supervisor to look at."""
        self.exits.wakeup.set()

    # ---- its life, with the lock held

    def move_to(self, phase: PoolPhase) -> None:
        self.assert_locked()
        self.phase = phase

    def give_up(self, error: PoolBrokenError) -> None:
        """There will be no workers; this says why."""
        self.assert_locked()
        self.broken = error

    def note_ready(self, seconds: float) -> None:
        """One more worker has become ready, after so long."""
        self.slowest_start = max(self.slowest_start, seconds)
        self.ready_count += 1

    def oldest_generation(self) -> int:
        """Of the workers that there are, see `Spawner.generation`; 0, if there are none."""
        return min((worker.generation for worker in list(self.workers)), default=0)

    # ---- what the phase allows

    def check_owner(self) -> None:
        """Raise RuntimeError in a forked child."""
        if self.is_forked:
            raise in_child()

    def check_running(self) -> None:
        """Raise unless new jobs are taken: ValueError, PoolBrokenError or RuntimeError."""
        # A pool that has given up says so before it stops: `is_broken`, and what is logged. Who has
        # seen that must not hand in one more job.
        if self.phase is PoolPhase.RUN and self.broken is None:
            return
        self.check_owner()
        raise takes_no_jobs(self.phase, self.broken)

    def is_done(self) -> bool:
        """Whether the pool is closed and has nothing left to do."""
        return (
            self.phase is PoolPhase.CLOSE
            and not self.open_jobs.by_id
            and not any(reader.is_needed() for reader in list(self.inputs))
        )

    def check_done(self) -> None:
        """Jobs have finished: have the supervisor look if they were the last."""
        if self.is_done():
            self.wake_supervisor()
