"""What comes back from the workers, and the end of a pool: the other half of the dispatcher.

    owners ◄─ News.tell ◄─ collect ◄─ Channel.receive ◄─ worker

Everything is accounted for in the order in which it happened. What a worker says is not trusted
further than its own job: a task may have written into the channel.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from typing import Final

from prefork._describe import describe
from prefork._engine.dispatcher import Dispatcher
from prefork._engine.state import EXPIRED, News, State
from prefork._engine.worker_handle import Worker
from prefork._ipc.outcome import decode, decode_exit, decode_reason
from prefork._ipc.wire import Kind
from prefork._policy.job import Job
from prefork._system.log import CRITICAL, ERROR, log
from prefork.errors import PoolBrokenError, WorkerLostError

__all__ = ["Exchange"]

NO_STACK: Final = "(no stack could be had: the process took no signals)"


class Exchange(Dispatcher):
    """Has workers run jobs, and collects what they report."""

    # ---- from the workers

    def collect(self, workers: Iterable[Worker]) -> News:
        """Read what these workers have reported, and send them more; for the result handler."""
        with self.lock:
            self.news.reader_is_here = True
            try:
                spoke = [worker for worker in workers if not worker.gone and self.listen(worker)]
                self.distribute(spoke)
            finally:
                self.news.reader_is_here = False
        return self.news

    def listen(self, worker: Worker) -> bool:
        """Account for what a worker says; False if it says nothing now. With the lock held."""
        reports = worker.channel.receive()
        if reports is None:
            if worker.channel.eof:
                self.outboxes.discard(worker.channel)
                self.wake_supervisor()
            return False
        count, seconds = 0, 0.0
        for kind, job_id, started, duration, payload in reports:
            if Kind.DONE <= kind <= Kind.OUTCOMES:
                count += 1
                seconds += duration
                if (job := worker.sent.pop(job_id, None)) is not None:
                    job.started, job.seconds = started, duration
                    self._finish(worker, job, kind, payload)
                elif worker.lost is None or worker.lost.id != job_id:
                    self._distrust(worker, "it reported a job that it was not sent")
            else:
                self.scheduler.note_finished(worker, count, seconds)
                count, seconds = 0, 0.0
                try:
                    self._heed(worker, kind, job_id, started, payload)
                except ValueError as exc:
                    self._distrust(worker, str(exc))
        self.scheduler.note_finished(worker, count, seconds)
        return True

    def hear_out(self, worker: Worker) -> None:
        """Account for all that a worker has said. With the lock held."""
        while self.listen(worker):
            pass

    def _finish(self, worker: Worker, job: Job, kind: int, payload: object) -> None:
        worker.channel.forget(job.id)
        worker.tasks += 1
        worker.sentence = None  # if it was for this job, it came too late
        job.pid = worker.pid
        self.accounts.settle(job, kind, payload)
        if worker.sent and self.start_notices.delay is not None:
            self.expect_start(worker)

    def _heed(
        self, worker: Worker, kind: int, job_id: int, started: float, payload: object
    ) -> None:
        """What a worker says about something else than a result."""
        if kind == Kind.ACCEPTED:
            if job := self.accounts.open.get(job_id):
                self.accounts.tell_start(worker, job, started)
        elif kind == Kind.READY and worker.start_error is None:
            if not worker.dying:  # else that is waited for
                worker.patience_ends = None
            self.scheduler.mark_ready(worker)
            self.expect_start(worker)
            self.starts += 1
            self.wake_supervisor()
        elif kind == Kind.EXITING:
            if job := worker.sent.get(job_id):
                code, why = decode_exit(payload)
                self.lose(worker, job, code, note=why)
        elif kind == Kind.BROKEN:
            _, worker.start_error = decode(kind, payload)
            self.wake_supervisor()
        elif kind == Kind.LEAVING:
            self.dismiss(worker, decode_reason(payload))
            self.wake_supervisor()
        elif kind == Kind.CORRUPTED:
            self._distrust(worker, "it sent bytes that are no report")

    def _distrust(self, worker: Worker, why: str) -> None:
        """A task has written into its worker's channel. It is the oldest that is not reported,
        since jobs run and are reported in the order of sending: it fails, and the worker goes.

        If the worker has started others meanwhile, it finishes them first: they are innocent.
        """
        if worker.distrusted or worker.dying:
            return
        worker.distrusted = True
        why = f"its channel was corrupted: {why}"
        if not worker.ready:  # it was the initializer
            worker.start_error = RuntimeError(why)
            worker.kill(why)
            self.wake_supervisor()
            return
        self.scheduler.shut(worker)
        self.take_back(worker)
        guilty, *innocent = worker.sent.values() or [None]
        if innocent:
            self.dismiss(worker, why)
        else:
            worker.kill(why)
        if guilty is not None:
            self.lose(worker, guilty, None if innocent else -signal.SIGKILL, note=why)
        self.wake_supervisor()
        self.distribute()

    def lose(
        self, worker: Worker, job: Job, exitcode: int | None, stack: str = "", note: str = ""
    ) -> None:
        """A worker has died, or is about to, while it ran this job: fail the job, or have it run
        again. With the lock held."""
        self._note_start(worker, job)
        if job.start_unreported and job.started:
            self.accounts.tell_start(worker, job, job.started)
        worker.sent.pop(job.id, None)
        worker.lost = job
        self.scheduler.shut(worker)
        sentence = worker.sentence
        if sentence is not None and sentence.job is job:
            if sentence.expiry is not None:
                self.news.add(job, EXPIRED, sentence.expiry)
            job.pid = worker.pid
            self.accounts.fail(job, sentence.error(stack or NO_STACK))
        elif job.retries and job.id in self.accounts.open:
            self._retry(job)
        else:
            job.pid = worker.pid
            lost = WorkerLostError(job.id, job.function, worker.pid, exitcode, stack, note)
            self.accounts.fail(job, lost)

    def _retry(self, job: Job) -> None:
        self.accounts.note_retry(job)
        self.scheduler.put_back(job)
        self.distribute()

    def _note_start(self, worker: Worker, job: Job) -> None:
        """What is known of a job that will not be reported."""
        running, _ = worker.running()
        if running == job.id:
            started = worker.accepted()
            job.pid, job.started, job.seconds = worker.pid, started, time.monotonic() - started

    # ---- the end

    def close(self) -> None:
        """Take no more jobs."""
        with self.lock:
            if self.state is State.RUN:
                self.state = State.CLOSE
        self.slot_free.notify_all()
        self.wake_supervisor()

    def stop(self, reason: Exception) -> None:
        """Fail all jobs, take no more, kill the workers."""
        with self.lock:
            if self.state in (State.TERMINATE, State.ENDED):
                return
            self.state = State.TERMINATE
            for worker in self.workers:
                self.take_back(worker)
                self.hear_out(worker)  # what is done is done
                for job in worker.sent.values():
                    self._note_start(worker, job)
            self.scheduler.clear()
            # Each gets an error of its own: who raises it adds a traceback to it, and keeps with it
            # what that refers to.
            for job in list(self.accounts.open.values()):
                self.accounts.fail(job, _another(reason))
            for feeder in self.feeders:
                feeder.abort(_another(reason))
            for worker in self.workers:
                if not worker.exited:
                    worker.kill("the pool was terminated")
        self.slot_free.notify_all()
        self.wake_supervisor()

    def break_down(self, why: str, cause: BaseException | None = None) -> None:
        """Fail all jobs, now and later: the pool cannot go on."""
        with self.lock:
            if self.broken is None and self.state in (State.RUN, State.CLOSE):
                self.broken = PoolBrokenError(why)
                self.broken.__cause__ = cause
                log(ERROR, "%s", self.broken)
                self.stop(self.broken)
                self.on_broken(self.broken)

    def crash(self, reason: BaseException) -> None:
        """A thread of the pool has failed, so the pool cannot go on."""
        log(CRITICAL, "a thread of the pool failed", error=reason)
        self.break_down(f"a thread of the pool failed: {describe(reason)}", reason)

    def crash_and_tell(self, reason: BaseException) -> None:
        """The result handler has failed, so the news must be told here, now."""
        self.crash(reason)
        self.news.tell()


def _another(error: Exception) -> Exception:
    """The same error as an object of its own."""
    another = type(error)(*error.args)
    another.__cause__ = error.__cause__
    return another
