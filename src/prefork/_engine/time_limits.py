"""What is due now, and what follows: time limits, memory limits, start notices, held jobs,
deadlines, retries.

`timers.py` says when; here it is done. Who ends a job for it is the `Terminator`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from prefork._engine.outcomes import EXPIRED
from prefork._engine.state import PoolState
from prefork._engine.worker_handle import KillReason, WorkerHandle
from prefork._policy.terms import JobOnTerms
from prefork._system.resources import resident
from prefork._worker.options import SOFT_SIGNAL
from prefork.errors import MemoryLimitExceeded, TimeLimitExceeded

if TYPE_CHECKING:
    from prefork._engine.dispatcher import Dispatcher
    from prefork._engine.retrier import Retrier
    from prefork._engine.terminator import Terminator
    from prefork._policy.timers import Expiry, Timers

__all__ = ["TimeLimits"]

MOMENT = 0.001
"""Seconds until another look at a job that was started at the very moment of its deadline."""


class TimeLimits:
    """
    Args:
        max_memory: how much a worker may have resident while it runs a task, KiB; None: no limit.

    Attributes:
        next_due: tells when something is due next (monotonic seconds), or None.
    """

    def __init__(
        self,
        state: PoolState,
        timers: Timers,
        dispatcher: Dispatcher,
        terminator: Terminator,
        retrier: Retrier,
        max_memory: int | None = None,
    ) -> None:
        self._state = state
        self._open_jobs = state.open_jobs
        self._outcomes = state.outcomes
        self._timers = timers
        self.next_due = timers.next_due
        self._dispatcher = dispatcher
        self._terminator = terminator
        self._max_memory = max_memory
        self._duties = (
            (timers.starts, self._report_starts),
            (timers.hold, self._end_hold),
            (timers.deadlines, self._enforce_deadlines),  # first, so that nothing late is sent
            (timers.retries, retrier.run_due),
            (timers.limits, self._enforce_limits),
            (timers.memory, self._measure),
        )

    def run_due(self, now: float) -> None:
        """Do what is due."""
        with self._state.lock:
            for timer, do in self._duties:
                if timer.next_due is not None and now >= timer.next_due:
                    do(now)

    def _report_starts(self, now: float) -> None:
        for worker, job in self._timers.starts.look(self._state.workers, now):
            self._open_jobs.report_start(job, worker.pid, worker.accepted())

    def _end_hold(self, now: float) -> None:
        self._dispatcher.end_hold()

    def _enforce_deadlines(self, now: float) -> None:
        open_jobs, timer = self._open_jobs.by_id, self._timers.deadlines
        due = [open_jobs.get(job_id) for job_id in timer.take_due(now)]
        late = [job for job in due if isinstance(job, JobOnTerms) and job.is_late(now)]
        for job in self._terminator.end_late(late):
            timer.add(now + MOMENT, job.id, open_jobs)

    def _enforce_limits(self, now: float) -> None:
        expired, unread, unheeded = self._timers.limits.look(self._state.workers, now)
        for slot, job in unread:
            assert isinstance(slot, WorkerHandle)
            self._terminator.replace_unresponsive(slot, job)
        for expiry in expired:
            self._expire(expiry)
        for slot in unheeded:
            assert isinstance(slot, WorkerHandle)
            if not (slot.has_exited or slot.was_killed):
                slot.process.signal(SOFT_SIGNAL)

    def _expire(self, expiry: Expiry) -> None:
        worker, job = expiry.slot, expiry.job
        assert isinstance(worker, WorkerHandle)
        if worker.has_exited or worker.was_killed or job.id not in worker.sent:
            return
        if expiry.soft:
            if worker.kill_reason is None:
                self._outcomes.add(job, EXPIRED, expiry)
                worker.process.signal(SOFT_SIGNAL)
            return
        error = functools.partial(
            TimeLimitExceeded, expiry.timeout, job.id, job.function, worker.pid
        )
        why = f"job {job.id} ({job.function}) exceeded its time limit of {expiry.timeout:g} s"
        self._terminator.kill_for(worker, KillReason(job, error, expiry), why, expiry.started)

    def _measure(self, now: float) -> None:
        for worker in list(self._state.workers):
            self._check_memory(worker)
        self._timers.memory.looked(self._state.workers, now)

    def _check_memory(self, worker: WorkerHandle) -> None:
        limit, job = self._max_memory, worker.current_job()
        if limit is None or job is None or worker.has_exited or worker.was_killed:
            return
        kib = resident(worker.pid)
        if kib is None or kib <= limit:
            return
        error = functools.partial(MemoryLimitExceeded, limit, kib, job.id, job.function, worker.pid)
        why = f"job {job.id} ({job.function}) had {kib} KiB of memory, more than {limit} KiB"
        self._terminator.kill_for(worker, KillReason(job, error), why)
