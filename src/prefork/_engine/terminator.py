"""Ends single jobs: those that have passed a limit, and those that somebody cancels or terminates.

Nobody but the guilty job can be hit. A worker that is to be interrupted or killed for a job is
*isolated* first: it is sent nothing more, its inbox is taken back, its reports are read. If the job
has finished meanwhile, nothing happens. Else the worker has nothing but this job, and gets no
other: after a signal it leaves, if it lives on.

What users call is done as a whole: a signal handler that raises, as that of Ctrl-C does, must not
come between what was taken back from a worker, or read, and its account.
"""

from __future__ import annotations

import functools
import operator
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from prefork._engine.worker_handle import KillReason, WorkerHandle
from prefork._policy.job import QUEUED, WAITING, Job, ResultSink
from prefork._policy.terms import JobOnTerms
from prefork._policy.timers import Expiry
from prefork._system.uninterrupted import uninterrupted
from prefork.errors import DeadlineExceeded, Terminated

if TYPE_CHECKING:
    from prefork._engine.collector import Collector
    from prefork._engine.dispatcher import Dispatcher
    from prefork._engine.state import PoolState

__all__ = ["Terminator"]


class Terminator:
    def __init__(self, state: PoolState, dispatcher: Dispatcher, collector: Collector) -> None:
        self._state = state
        self._open_jobs = state.open_jobs
        self._scheduler = state.scheduler
        self._dispatcher = dispatcher
        self._collector = collector

    # ---- by the user

    def cancel(self, job: Job) -> bool:
        """Have a job never run, unless it has been started; whether that is so."""
        self._state.check_owner()
        return uninterrupted(lambda: self._cancel(job))

    def terminate(self, job: Job, signum: int | None = None) -> bool:
        """End a job, wherever it is; whether there was anything to end.

        Args:
            signum: what to send to the worker that runs it, which then leaves; None: kill it.

        Raises:
            TypeError: it is no number.
        """
        self._state.check_owner()
        signum = None if signum is None else operator.index(signum)
        return uninterrupted(lambda: self._terminate(job, signum))

    def terminate_on(self, pid: int, signum: int | None = None) -> bool:
        """The same for the job that the worker of this process id runs now, if any."""
        self._state.check_owner()
        pid = operator.index(pid)
        signum = None if signum is None else operator.index(signum)
        return uninterrupted(lambda: self._terminate_on(pid, signum))

    def cancel_all(self, sink: ResultSink) -> None:
        self.cancel_where(lambda job: job.sink is sink)

    def terminate_all(self, sink: ResultSink) -> None:
        self.terminate_where(lambda job: job.sink is sink)

    def cancel_where(self, is_meant: Callable[[Job], bool]) -> None:
        """Cancel all jobs that are meant, unless they have been started. It is called with the
        lock held."""
        self._state.check_owner()
        uninterrupted(lambda: self._cancel_where(is_meant))

    def terminate_where(self, is_meant: Callable[[Job], bool], signum: int | None = None) -> None:
        """Terminate all jobs that are meant; likewise."""
        self._state.check_owner()
        uninterrupted(lambda: self._terminate_where(is_meant, signum))

    def _cancel(self, job: Job) -> bool:
        with self._state.lock:
            worker = self._recall(job)
            cancelled = self._cancel_queued(job)
            if worker is not None:
                self._collector.reopen(worker)
            self._dispatcher.hand_out()
            return cancelled

    def _terminate(self, job: Job, signum: int | None = None) -> bool:
        with self._state.lock:
            worker = self._recall(job)
            ended = self._cancel_queued(job)
            if worker is not None and job.id in worker.sent:
                self._terminate_running(worker, job, signum)
                ended = True
            elif worker is not None:
                self._collector.reopen(worker)
            self._dispatcher.hand_out()
            return ended

    def _terminate_on(self, pid: int, signum: int | None = None) -> bool:
        with self._state.lock:
            for worker in self._state.workers:
                if worker.pid == pid and (job := worker.current_job()) is not None:
                    return self._terminate(job, signum)
            return False

    def _cancel_where(self, is_meant: Callable[[Job], bool]) -> None:
        """One after another, each worker would be sent more after each job that is taken back."""
        with self._state.lock:
            meant = [job for job in self._open_jobs.by_id.values() if is_meant(job)]
            holders = {job.slot: None for job in meant if isinstance(job.slot, WorkerHandle)}
            for worker in holders:
                self._collector.isolate(worker)
            for job in meant:
                self._cancel_queued(job)
            for worker in holders:
                self._collector.reopen(worker)
            self._dispatcher.hand_out()

    def _terminate_where(self, is_meant: Callable[[Job], bool], signum: int | None) -> None:
        with self._state.lock:
            self._cancel_where(is_meant)
            for job in list(self._open_jobs.by_id.values()):
                if is_meant(job):
                    self._terminate(job, signum)

    def _recall(self, job: Job) -> WorkerHandle | None:
        """Have a job back from its worker, unless that has read it. The worker is isolated then."""
        worker = job.slot
        if job.id not in self._open_jobs.by_id or not isinstance(worker, WorkerHandle):
            return None
        self._collector.isolate(worker)
        return worker

    def _cancel_queued(self, job: Job) -> bool:
        if job.phase not in (QUEUED, WAITING) or job.id not in self._open_jobs.by_id:
            return False
        job.forget_run()
        self._open_jobs.fail(job, job.cancellation())
        self._scheduler.drop_resolved()
        return True

    def _terminate_running(self, worker: WorkerHandle, job: Job, signum: int | None) -> None:
        why = f"job {job.id} ({job.function}) was terminated"
        text = f"{why} while it ran in worker process {worker.pid}"
        reason = KillReason(job, lambda stack: Terminated(text), is_final=True, is_wanted=True)
        self._condemn(worker, reason, why)
        if signum is None or signum == signal.SIGKILL:
            worker.kill(why)
        else:
            worker.process.signal(signum)

    # ---- for a limit (with the lock held)

    def kill_for(
        self, worker: WorkerHandle, reason: KillReason, why: str, started: float | None = None
    ) -> None:
        """Kill a worker for its job, unless that has finished meanwhile; or for what it was
        signalled for before, if it has survived that.

        Args:
            reason: the job, and what it fails with.
            why: in words.
            started: when the job, or its item that has passed a limit, had started; None: whichever
                item runs now.
        """
        self._collector.isolate(worker)
        running, since = worker.running()
        job = reason.job
        still_runs = job.id in worker.sent and running == job.id and started in (None, since)
        if not still_runs:
            self._collector.reopen(worker)
        elif worker.kill_reason is None:
            self._condemn(worker, reason, why)
        self._dispatcher.hand_out()
        if still_runs:
            worker.ask_for_last_words(why)

    def end_late(self, jobs: list[JobOnTerms]) -> list[JobOnTerms]:
        """The deadlines of these have passed: those that run are killed, the others never run.

        Returns:
            Those that must be looked at again: they were started this very moment.
        """
        holders = {job.slot: None for job in jobs if isinstance(job.slot, WorkerHandle)}
        for worker in holders:
            self._collector.isolate(worker)
        for job in jobs:  # all of them, before anything is handed out
            if job.is_idle():
                self._dispatcher.fail_late(job)
        self._scheduler.drop_resolved()
        late = {job.id for job in jobs}
        for worker in holders:
            running = worker.first()
            if isinstance(running, JobOnTerms) and running.id in late:
                self._end_running_late(worker, running)
            else:
                self._collector.reopen(worker)
        self._dispatcher.hand_out()
        return [
            job for job in jobs if isinstance(job.slot, WorkerHandle) and job.slot not in holders
        ]

    def _end_running_late(self, worker: WorkerHandle, job: JobOnTerms) -> None:
        deadline = job.terms.deadline or 0.0
        why = f"job {job.id} ({job.function}) had not ended by its deadline of {deadline:g} s"
        error = functools.partial(DeadlineExceeded, deadline, job.id, job.function, worker.pid)
        expiry = Expiry(worker, job, False, deadline, worker.accepted())
        if worker.kill_reason is None:
            self._condemn(worker, KillReason(job, error, expiry, is_final=True), why)
        worker.ask_for_last_words(why)

    def replace_unresponsive(self, worker: WorkerHandle, job: Job) -> None:
        """A worker that idles does not read its job: it has been stopped, or has no chance to
        run. Another one shall do it."""
        self._collector.isolate(worker)
        if job.id in worker.sent or worker.has_exited:  # it reads, after all
            self._collector.reopen(worker)
            self._dispatcher.hand_out()
            return
        why = f"it did not read job {job.id} ({job.function})"
        worker.leave(why)
        self._dispatcher.hand_out()
        worker.ask_for_last_words(why)
        self._state.wake_supervisor()

    def _condemn(self, worker: WorkerHandle, reason: KillReason, why: str) -> None:
        """Have a worker leave that has been isolated, for this. Whoever says so hands out what it
        had not read."""
        worker.condemn(reason)
        worker.leave(why)
        self._state.wake_supervisor()
