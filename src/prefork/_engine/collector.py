"""What the workers report, on its way to the results.

    results ◄─ OutcomeQueue.deliver ◄─ collect ◄─ Channel.receive ◄─ worker

Everything is accounted for in the order in which it happened. What a worker says is not trusted
further than its own job: a task may have written into the channel.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from prefork._engine.outcomes import EXPIRED, OutcomeQueue
from prefork._engine.state import PoolState
from prefork._engine.worker_handle import Phase, WorkerHandle
from prefork._ipc.outcome import Large, Part, decode_exit, decode_reason
from prefork._ipc.wire import EACH, MODE, Kind
from prefork._policy.job import Job
from prefork._policy.terms import JobOnTerms
from prefork._policy.timers import Timers
from prefork._system.log import ERROR
from prefork.errors import LimitExceeded, WorkerLostError

if TYPE_CHECKING:
    from prefork._engine.dispatcher import Dispatcher
    from prefork._engine.retrier import Retrier

__all__ = ["Collector"]

NO_STACK: Final = "(no stack could be had: the process took no signals)"


class Collector:
    def __init__(
        self, state: PoolState, timers: Timers, dispatcher: Dispatcher, retrier: Retrier
    ) -> None:
        self._state = state
        self._outboxes = state.outboxes
        self._outcomes = state.outcomes
        self._scheduler = state.scheduler
        self._open_jobs = state.open_jobs
        self._timers = timers
        self._dispatcher = dispatcher
        self._retrier = retrier

    def collect(self, workers: Iterable[WorkerHandle]) -> OutcomeQueue:
        """Read what these workers have reported, and send them more; for the result handler."""
        outcomes = self._state.outcomes
        with self._state.lock:
            outcomes.is_reader_adding = True
            try:
                spoke = [
                    worker
                    for worker in workers
                    if worker.phase is not Phase.REAPED and self._read_reports(worker)
                ]
                self._dispatcher.hand_out(spoke)
            finally:
                outcomes.is_reader_adding = False
        return outcomes

    # ---- all of the following with the lock held

    def isolate(self, worker: WorkerHandle) -> None:
        """Leave a worker with nothing but what it has read, and hear what has become of that.

        It is sent nothing more. Whoever isolates it hands out afterwards what it has not read.
        """
        self._state.assert_locked()
        self._scheduler.shut(worker)
        self._dispatcher.requeue_unread(worker)
        self._drain(worker)

    def reopen(self, worker: WorkerHandle) -> None:
        """It may be sent jobs again, unless it leaves."""
        if not worker.is_retiring:
            self._scheduler.reopen(worker)

    def _drain(self, worker: WorkerHandle) -> None:
        """Account for all that a worker has said. If that is being done, further up the stack, it
        goes on there: reports are read in their order."""
        if not worker.is_being_read:
            while self._read_reports(worker):
                pass

    def _read_reports(self, worker: WorkerHandle) -> bool:
        """Account for what a worker says; False if it says nothing now."""
        had_ended = worker.channel.eof
        reports = worker.channel.receive()
        if reports is None:
            if worker.channel.eof and not had_ended:  # once: the supervisor looks here, too
                self._outboxes.discard(worker.channel)
                self._state.wake_supervisor()
            return False
        sent, count, seconds = worker.sent, 0, 0.0
        if worker.phase is Phase.EXITED:
            self._state.wake_supervisor()  # which waits for what something that it forked reports
        worker.is_being_read = True
        try:
            for kind, job_id, started, duration, payload in reports:
                if Kind.DONE <= kind <= Kind.OUTCOMES:
                    count += 1
                    seconds += duration
                    if (job := sent.get(job_id)) is not None:
                        del sent[job_id]
                        job.note_run(worker.pid, started, duration)
                        self._open_jobs.note_run(job, started, duration)
                        self._finish(worker, job, kind, payload)
                    elif worker.lost_job is None or worker.lost_job.id != job_id:
                        self._quarantine(worker, "it reported a job that it was not sent")
                else:
                    self._scheduler.note_finished(worker, count, seconds)
                    count, seconds = 0, 0.0
                    try:
                        self._take_notice(worker, kind, job_id, started, duration, payload)
                    except ValueError as exc:
                        self._quarantine(worker, str(exc))
        finally:
            worker.is_being_read = False
        self._scheduler.note_finished(worker, count, seconds)
        return True

    def _finish(self, worker: WorkerHandle, job: Job, kind: int, payload: object) -> None:
        worker.channel.forget(job.id)
        worker.note_finished_job()
        if type(payload) is Large:
            job.note_result(job.result_bytes + payload.nbytes)
        if kind != Kind.DONE and isinstance(job, JobOnTerms) and self._retrier.may_retry(job):
            self._retrier.report(job, kind, payload)
        else:
            self._open_jobs.resolve(job, kind, payload)
        if worker.sent and self._timers.starts.delay is not None:
            self._dispatcher.expect_start(worker)

    def _take_notice(
        self,
        worker: WorkerHandle,
        kind: int,
        job_id: int,
        started: float,
        seconds: float,
        payload: object,
    ) -> None:
        """What a worker says about something else than a result.

        Raises:
            ValueError: it makes no sense.
        """
        if kind == Kind.ACCEPTED:
            if job := self._open_jobs.by_id.get(job_id):
                self._open_jobs.report_start(job, worker.pid, started)
        elif kind == Kind.READY and worker.start_failure is None and not worker.was_killed:
            # (One that was late and stopped is continued to say its last words, and may be faster.)
            self._state.note_ready(worker.become_ready())
            self._scheduler.mark_ready(worker)
            self._dispatcher.expect_start(worker)
            self._state.wake_supervisor()
        elif kind == Kind.EXITING:
            if job := worker.sent.get(job_id):
                code, why = decode_exit(payload)
                self._scheduler.shut(worker)
                self.lose_job(worker, job, code, note=why, is_over=True)
        elif kind == Kind.PART:
            self._take_part(worker, job_id, started, seconds, payload)
        elif kind == Kind.BROKEN:
            worker.fail_to_start(payload)  # it is unpickled without the lock
            self._state.wake_supervisor()
        elif kind == Kind.LEAVING:
            self._dispatcher.dismiss(worker, decode_reason(payload))
            self._state.wake_supervisor()
        elif kind == Kind.FINALIZER_FAILED:
            text = "the finalizer failed in worker %d (%s): %s"
            self._state.log.note(ERROR, text, worker.pid, worker.name, decode_reason(payload))
        elif kind == Kind.CORRUPTED:
            self._quarantine(worker, "it sent bytes that are no report")

    def _quarantine(self, worker: WorkerHandle, why: str) -> None:
        """A task has written into its worker's channel. It is the oldest that is not reported,
        since jobs run and are reported in the order of sending: it fails, and the worker goes.

        If the worker has started others meanwhile, it finishes them first: they are innocent.
        """
        if worker.is_quarantined or worker.was_killed:
            return
        worker.quarantine()
        why = f"its channel was corrupted: {why}"
        if not worker.ready:  # it was the initializer
            worker.fail_to_start(RuntimeError(why))
            worker.kill(why)
            self._state.wake_supervisor()
            return
        self.isolate(worker)
        guilty, *innocent = worker.sent.values() or [None]
        if innocent:
            self._dispatcher.dismiss(worker, why)
        else:
            worker.kill(why)
        if guilty is not None:
            exitcode = None if innocent else -signal.SIGKILL
            self.lose_job(worker, guilty, exitcode, note=why)
        self._state.wake_supervisor()
        self._dispatcher.hand_out()

    def lose_job(
        self,
        worker: WorkerHandle,
        job: Job,
        exitcode: int | None,
        stack: str = "",
        note: str = "",
        is_over: bool = False,
    ) -> None:
        """A worker has died, or is about to, while it ran this job: the job fails with that, or is
        run again. Of several calls that have outcomes of their own the one that ran fails, and the
        others go on. The worker has been sent nothing more before.

        Args:
            is_over: nothing of the job runs there any more.
        """
        self._state.assert_locked()
        self.note_run(worker, job)
        if job.start_unreported and job.started:
            self._open_jobs.report_start(job, worker.pid, job.started)
        worker.lose(job)
        job.note_pid(worker.pid)
        reason = worker.kill_reason
        if reason is not None and reason.job is not job:
            reason = None
        seconds = self._seconds_of(worker, job)
        begun = self.note_items(worker, job) if is_over else None
        if begun == 0 and (reason is None or not reason.is_final):  # it was between two of them
            self._retrier.go_on(job)
            return
        if reason is None:
            lost = WorkerLostError(job.id, job.function, worker.pid, exitcode, stack, note)
            lost.seconds = seconds
            self._retrier.fail(job, lost, begun or 0)
            return
        if reason.expiry is not None:
            self._outcomes.add(job, EXPIRED, reason.expiry)
        error = reason.error(stack or NO_STACK)
        if isinstance(error, LimitExceeded):
            error.seconds = seconds
        if reason.is_final:
            self._open_jobs.fail(job, error)
        else:
            self._retrier.fail(job, error, begun or 0)

    def note_items(self, worker: WorkerHandle, job: Job) -> int | None:
        """Account for the items of a job that are done; how many others have been begun. None:
        there are none, or nothing is known of them."""
        if job.flags & MODE != EACH or worker.running()[0] != job.id:
            return None
        page = worker.channel.page()
        begun = min(page.begun, job.size)
        if not begun or begun < job.first:
            return None
        for number, outcome in enumerate(page.outcomes, page.base):
            if job.first == number < begun:
                self._open_jobs.add_part(job, outcome)
        return begun - job.first

    def _take_part(
        self, worker: WorkerHandle, job_id: int, count: float, first: float, payload: object
    ) -> None:
        """
        Raises:
            ValueError: it makes no sense.
        """
        job = worker.sent.get(job_id)
        if job is None or job.flags & MODE != EACH:
            raise ValueError("it reported a part of a job that has none")
        if first != job.first or not 0 < count <= job.size - job.first:
            raise ValueError("it reported a part of a job that does not come next")
        if type(payload) is Large:
            job.note_result(job.result_bytes + payload.nbytes)
        self._open_jobs.add_part(job, Part(int(count), payload))

    def _seconds_of(self, worker: WorkerHandle, job: Job) -> float | None:
        """How long what was lost had run: the job, or one item of it."""
        if worker.running()[0] != job.id:
            return None
        _, since = worker.item() or (0, worker.accepted())
        return time.monotonic() - since

    def note_run(self, worker: WorkerHandle, job: Job) -> None:
        """What is known of a job that will not be reported."""
        running, _ = worker.running()
        if running == job.id:
            started = worker.accepted()
            seconds = time.monotonic() - started
            job.note_run(worker.pid, started, seconds)
            self._open_jobs.note_run(job, started, seconds)
