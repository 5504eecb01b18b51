"""Ends single jobs: those that pass a limit, and those that somebody terminates.

Nobody but the guilty job can be hit. A worker that is to be interrupted or killed for a job is
*isolated* first: it is sent nothing more, its inbox is taken back, its reports are read. If the job
has finished meanwhile, nothing happens. Else the worker has nothing but this job, and gets no
other: after a signal it leaves, if it lives on.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable

from prefork._engine.collector import Exchange
from prefork._engine.state import EXPIRED
from prefork._engine.worker_handle import Sentence, Worker
from prefork._policy.job import Job, ResultSink
from prefork._policy.timers import Expiry
from prefork._system.resources import resident
from prefork._worker.options import SOFT_SIGNAL
from prefork.errors import MemoryLimitExceeded, Terminated, TimeLimitExceeded

__all__ = ["Enforcement"]


class Enforcement:
    """
    Args:
        jobs: of the running pool.
        max_memory: how much a worker may have resident while it runs a task, KiB.
    """

    def __init__(self, jobs: Exchange, max_memory: int | None = None) -> None:
        self._jobs = jobs
        self._max_memory = max_memory

    # ---- limits

    def next_look(self) -> float | None:
        """When the next limit can expire, a start is to be told, or jobs are held for too long
        (monotonic, seconds); None: nothing of that."""
        jobs = self._jobs
        times = (jobs.deadlines.next_look, jobs.start_notices.next_look, jobs.held_until)
        return min((time for time in times if time is not None), default=None)

    def enforce(self, now: float) -> None:
        """See which limits have expired, and do what follows."""
        jobs = self._jobs
        with jobs.lock:
            if jobs.start_notices.next_look is not None and now >= jobs.start_notices.next_look:
                self._tell_starts(now)
            if jobs.held_until is not None and now >= jobs.held_until:
                jobs.release()
            if jobs.deadlines.next_look is None or now < jobs.deadlines.next_look:
                return
            expired, unread = jobs.deadlines.look(jobs.workers, now)
            for slot, job in unread:
                assert isinstance(slot, Worker)
                self._replace_deaf(slot, job)
            for expiry in expired:
                self._expire(expiry)
            if self._max_memory is not None:
                for worker in list(jobs.workers):
                    self._weigh(worker, self._max_memory)

    def _tell_starts(self, now: float) -> None:
        for worker, job in self._jobs.start_notices.look(self._jobs.workers, now):
            assert isinstance(worker, Worker)
            self._jobs.accounts.tell_start(worker, job, worker.accepted())

    def _expire(self, expiry: Expiry) -> None:
        worker, job = expiry.slot, expiry.job
        assert isinstance(worker, Worker)
        if worker.gone or worker.exited or worker.dying or job.id not in worker.sent:
            return
        if expiry.soft:
            if worker.sentence is None:
                self._jobs.news.add(job, EXPIRED, expiry)
                worker.process.signal(SOFT_SIGNAL)
        elif self._isolate(worker, job, expiry.started):
            why = f"job {job.id} ({job.function}) exceeded its time limit of {expiry.timeout:g} s"
            error = functools.partial(
                TimeLimitExceeded, expiry.timeout, job.id, job.function, worker.pid
            )
            self._execute(worker, Sentence(job, error, expiry), why)

    def _weigh(self, worker: Worker, limit: int) -> None:
        job = worker.current_job()
        if job is None or worker.exited or worker.dying:
            return
        kib = resident(worker.pid)
        if kib is not None and kib > limit and self._isolate(worker, job):
            why = f"job {job.id} ({job.function}) had {kib} KiB of memory, more than {limit} KiB"
            error = functools.partial(
                MemoryLimitExceeded, limit, kib, job.id, job.function, worker.pid
            )
            self._execute(worker, Sentence(job, error), why)

    def _execute(self, worker: Worker, sentence: Sentence, why: str) -> None:
        """Kill a worker for its job; unless it has survived a signal, then for what that was."""
        if worker.sentence is None:
            self._condemn(worker, sentence, why)
        worker.kill_after_last_words(why)

    def _replace_deaf(self, worker: Worker, job: Job) -> None:
        """A worker that idles does not read its job: it has been stopped, or has no chance to
        run. Another one shall do it."""
        self._take_all(worker)
        if job.id in worker.sent or worker.exited:  # it reads, after all
            self._reopen(worker)
        else:
            why = f"it did not read job {job.id} ({job.function})"
            self._jobs.dismiss(worker, why)
            worker.kill_after_last_words(why)
            self._jobs.wake_supervisor()

    # ---- by the user

    def cancel(self, job: Job) -> bool:
        """Have a job never run, unless it has been started; whether that is so."""
        with self._jobs.lock:
            worker = self._recall(job)
            cancelled = self._cancel_queued(job)
            if worker is not None:
                self._reopen(worker)
            self._jobs.distribute()
            return cancelled

    def terminate(self, job: Job, signum: int | None = None) -> bool:
        """End a job, wherever it is; whether there was anything to end.

        Args:
            signum: what to send to the worker that runs it, which then leaves; None: kill it.
        """
        with self._jobs.lock:
            worker = self._recall(job)
            ended = self._cancel_queued(job)
            if worker is not None and job.id in worker.sent:
                self._terminate_running(worker, job, signum)
                ended = True
            elif worker is not None:
                self._reopen(worker)
            self._jobs.distribute()
            return ended

    def cancel_all(self, owner: ResultSink) -> None:
        self._for_all(owner, self.cancel)

    def terminate_all(self, owner: ResultSink) -> None:
        self._for_all(owner, self.terminate)

    def _for_all(self, owner: ResultSink, end: Callable[[Job], bool]) -> None:
        with self._jobs.lock:
            for job in list(self._jobs.accounts.open.values()):
                if job.sink is owner:
                    end(job)

    def _recall(self, job: Job) -> Worker | None:
        """Have a job back from its worker, unless that has read it. The worker is isolated then."""
        worker = job.slot
        if job.id not in self._jobs.accounts.open or not isinstance(worker, Worker):
            return None
        self._take_all(worker)
        return worker

    def _cancel_queued(self, job: Job) -> bool:
        if job.slot is not None or job.id not in self._jobs.accounts.open:
            return False
        self._jobs.scheduler.withdraw(job)
        text = f"job {job.id} ({job.function}) was cancelled before it started"
        self._jobs.accounts.fail(job, Terminated(text))
        return True

    def terminate_on(self, pid: int, signum: int | None = None) -> bool:
        """The same for the job that a worker runs now, if any."""
        with self._jobs.lock:
            for worker in self._jobs.workers:
                if worker.pid == pid and (job := worker.current_job()) is not None:
                    return self.terminate(job, signum)
            return False

    def _terminate_running(self, worker: Worker, job: Job, signum: int | None) -> None:
        why = f"job {job.id} ({job.function}) was terminated"
        text = f"{why} while it ran in worker process {worker.pid}"
        self._condemn(worker, Sentence(job, lambda stack: Terminated(text)), why)
        if signum is None or signum == signal.SIGKILL:
            worker.kill(why)
        else:
            worker.process.signal(signum)

    # ---- so that nobody else is hit (with the lock held)

    def _take_all(self, worker: Worker) -> None:
        """Leave a worker with nothing but what it has read, and hear what has become of that."""
        self._jobs.scheduler.shut(worker)
        self._jobs.take_back(worker)
        self._jobs.hear_out(worker)

    def _reopen(self, worker: Worker) -> None:
        if not worker.is_retiring:
            self._jobs.scheduler.reopen(worker)

    def _isolate(self, worker: Worker, job: Job, started: float | None = None) -> bool:
        """False if the job, or the item that started then, has finished meanwhile."""
        self._take_all(worker)
        running, since = worker.running()
        still_runs = job.id in worker.sent and running == job.id and started in (None, since)
        if not still_runs:
            self._reopen(worker)
        self._jobs.distribute()
        return still_runs

    def _condemn(self, worker: Worker, sentence: Sentence, why: str) -> None:
        worker.sentence = sentence
        self._jobs.dismiss(worker, why)
        self._jobs.wake_supervisor()
