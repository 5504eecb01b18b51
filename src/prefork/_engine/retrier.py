"""Has jobs run again that have failed.

    a run has failed ─► WAITING ─► next_run: never ─► the job fails
                           ▲          │
                           │          └─ when it is due ─► queued, before the others
    a report that says so ─┘

What the pool finds out itself (a lost worker, a limit) is decided at once. What a task has raised
comes as a report, and to unpickle it runs code of the user's: so the result handler decides, when
it comes to that report, without the lock. Until then the job waits, as it does during the pause
before its next run: no worker is kept for it, and it is cancelled and terminated as if it was
queued.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from prefork._engine.failure_kinds import RAISED
from prefork._engine.outcomes import UNDECIDED, Undecided
from prefork._engine.state import PoolState
from prefork._ipc.outcome import Part
from prefork._ipc.wire import EACH, MODE, Kind
from prefork._policy.job import WAITING, Job
from prefork._policy.terms import JobOnTerms

if TYPE_CHECKING:
    from prefork._engine.dispatcher import Dispatcher
    from prefork._ipc.outcome import Outcome
    from prefork._policy.timers import Timers

__all__ = ["Retrier"]


class Retrier:
    def __init__(self, state: PoolState, timers: Timers, dispatcher: Dispatcher) -> None:
        self._state = state
        self._open_jobs = state.open_jobs
        self._scheduler = state.scheduler
        self._timer = timers.retries
        self._dispatcher = dispatcher

    # ---- with the lock held

    def may_retry(self, job: JobOnTerms) -> bool:
        return job.left > 0 and job.id in self._open_jobs.by_id

    def fail(self, job: Job, error: BaseException, items: int = 0) -> None:
        """A run of this job has failed: so does the job, or it is run again.

        Args:
            items: so many of its items have, and no other one was begun: those go on; 0: all that
                are left.
        """
        self._state.assert_locked()
        if isinstance(job, JobOnTerms) and self.may_retry(job):
            self._open_jobs.suspend(job)
            if self._run_again(job, error):
                self._state.slot_free.notify_all()
                return
        if not items or job.first + items >= job.size:
            self._open_jobs.fail(job, error)
            return
        self._open_jobs.add_part(job, Part(items, error))
        self.go_on(job)

    def go_on(self, job: Job) -> None:
        """Have those items run that no worker has begun."""
        if job.id not in self._open_jobs.by_id:
            return
        if job.first >= job.size:
            self._open_jobs.resolve(job, Kind.OUTCOMES, b"")
            return
        self._open_jobs.go_on(job)
        self._scheduler.put_first(job)
        self._dispatcher.hand_out()
        self._state.slot_free.notify_all()

    def report(self, job: JobOnTerms, kind: int, payload: object) -> None:
        """The same, if what it has raised is in this report, or may be."""
        self._open_jobs.suspend(job)
        kind, payload = self._open_jobs.whole(job, kind, payload)
        self._state.outcomes.add(job, UNDECIDED, Undecided(kind, payload, self._is_final))

    def run_due(self, now: float) -> None:
        """The pauses of some jobs are over."""
        for job_id in reversed(self._timer.take_due(now)):
            job = self._open_jobs.by_id.get(job_id)
            if isinstance(job, JobOnTerms) and job.is_due(now):
                self._queue(job)
        self._dispatcher.hand_out()

    def _run_again(self, job: JobOnTerms, error: BaseException) -> bool:
        """Whether the job, whose run has failed with this, will be run again."""
        now = time.monotonic()
        due = job.next_run(error, now, _chance())
        if due is None:
            return False
        job.note_failure(error)
        if due <= now or not self._wait(job, due):
            self._queue(job)
            self._dispatcher.hand_out()
        return True

    def _wait(self, job: JobOnTerms, due: float) -> bool:
        """Whether there will be anybody to see when it is due."""
        if self._timer.add(due, job.id, self._open_jobs.by_id):
            try:
                self._dispatcher.rearm()
            except RuntimeError:  # it needs a thread, and the system has none left
                return False
        job.wait_until(due)
        return True

    def _queue(self, job: JobOnTerms) -> None:
        self._open_jobs.resume(job)
        self._scheduler.put_first(job)

    # ---- by the result handler, without the lock

    def _is_final(self, job: JobOnTerms, ok: bool, value: Any) -> bool:
        """See `Judge`."""
        error = _error(job, ok, value)
        with self._state.lock:
            if job.phase != WAITING:
                return False  # it was cancelled meanwhile, or the pool has ended
            if error is not None and self._run_again(job, error):
                return False
            return self._open_jobs.remove(job, "" if ok else RAISED)


def _error(job: JobOnTerms, ok: bool, value: Any) -> BaseException | None:
    """What a run has failed with: of several calls that have outcomes of their own, the first error
    after which the job is to be run again."""
    if not ok:
        error: BaseException = value
        return error
    retries = job.terms.retries
    if job.flags & MODE != EACH or retries is None:
        return None
    outcomes: list[Outcome] = value
    errors = (outcome.value for outcome in outcomes[job.first :] if not outcome.ok)
    return next((error for error in errors if retries.covers(error)), None)


def _chance() -> float:
    """From 0 to 1. Not by the module `random`: a program that has seeded that gets the numbers that
    it expects, and forked processes do not get the same ones."""
    return int.from_bytes(os.urandom(4)) / 0xFFFFFFFF
