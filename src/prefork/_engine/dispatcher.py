"""Jobs on their way from the callers to the workers.

    submit ─► Scheduler ─► Channel.send ─► worker ─► (what comes back: `collector.py`)

It carries out what the scheduler decides.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from prefork._engine.state import InputReader, PoolPhase, PoolState
from prefork._engine.worker_handle import WorkerHandle
from prefork._ipc.channel import MAX_TICKETS
from prefork._ipc.wire import LIMITED, TICKET
from prefork._policy.job import Job, WorkerSlot
from prefork._policy.scheduler import ALONE_SECONDS
from prefork._policy.terms import JobOnTerms
from prefork._policy.timers import Timers
from prefork._system.condition import Condition
from prefork._system.uninterrupted import uninterrupted
from prefork.errors import DeadlineExceeded, Terminated

__all__ = ["Dispatcher", "Wait"]


class Wait(Protocol):
    """How to wait for what other roles of the pool make true."""

    def __call__(
        self,
        condition: Condition,
        /,
        predicate: Callable[[], bool],
        timeout: float | None = None,
    ) -> bool: ...


class Dispatcher:
    """
    Args:
        timers: told of what is sent.
        rearm: called when one of them is due earlier than it was.
        wait: see `Wait`.
        call_soon: has something called like the callbacks of jobs.
    """

    def __init__(
        self,
        state: PoolState,
        timers: Timers,
        rearm: Callable[[], object],
        wait: Wait,
        call_soon: Callable[..., object],
    ) -> None:
        self._state = state
        self._open_jobs = state.open_jobs
        self._outboxes = state.outboxes
        self._inputs = state.inputs
        self._workers = state.workers
        self._scheduler = state.scheduler
        self._timers = timers
        self._hold_timer = timers.hold
        self._limit_timer = timers.limits
        self._is_memory_limited = timers.memory.interval is not None
        self.rearm = rearm
        self.wait_for = wait
        self._call_soon = call_soon
        self._relieved = 0.0  # when it was last looked for long jobs (monotonic)
        self._has_vacated = False  # a worker's only job could not be sent, so it has nothing
        self._target: WorkerSlot | None = None  # a submitted job is on its way there, just now

    # ---- from the callers

    def submit(self, job: Job) -> None:
        """Take a job: from now on it will be resolved exactly once.

        A signal handler that submits may have interrupted whoever has the lock, in the middle of
        something. Then the job is sent a moment later.
        """
        if self._state.is_lock_held():
            self._submit_late(job)
            return
        with self._state.lock:
            self._state.check_running()
            self._admit(job)

    def _submit_late(self, job: Job) -> None:
        self._state.check_running()
        try:
            self._open_jobs.add(job)
            self._call_soon(self._send_late, job)
        except BaseException:
            self._undo_submission(job)
            raise

    def _send_late(self, job: Job) -> None:
        with self._state.lock:
            if job.id in self._open_jobs.by_id:  # else the pool was terminated meanwhile
                self._admit(job)

    def submit_fed(self, job: Job) -> None:
        """The same with a job of an input; those are read to their ends when the pool is closed."""
        with self._state.lock:
            if self._state.phase is not PoolPhase.CLOSE:
                self._state.check_running()
            self._admit(job)

    def _admit(self, job: Job) -> None:
        try:
            self._open_jobs.add(job)
            self._send(job)
        except BaseException:  # a signal handler's, such as KeyboardInterrupt
            self._undo_submission(job)
            raise

    def _undo_submission(self, job: Job) -> None:
        uninterrupted(lambda: self._give_up(job))

    def _send(self, job: Job) -> None:
        job.sink.job_added(job)
        if job.pickling_error is not None:
            self._open_jobs.fail(job, job.pickling_error)
            return
        if isinstance(job, JobOnTerms):
            if not self._may_begin(job):
                return
            if job.terms.priority and self._scheduler.begin_priorities(job):
                for worker in self._workers:
                    self.requeue_unread(worker)
                self.hand_out()
                return
        slot = self._scheduler.submit(job)
        if slot is not None:
            self._target = slot
            self._transmit(slot, [job])
            self._target = None
        if self._hold_timer.next_due is None and self._scheduler.holds_back():
            self._hold()

    def _may_begin(self, job: JobOnTerms) -> bool:
        """Note the deadline of a new job; False if it has passed already."""
        now = time.monotonic()
        if job.terms.deadline is not None:
            job.end_by(now + job.terms.deadline)
        if (latest := job.latest) is None:
            return True
        if now >= latest:
            self.fail_late(job)
            return False
        if self._timers.deadlines.add(latest, job.id, self._open_jobs.by_id):
            self.rearm()
        return True

    def _give_up(self, job: Job) -> None:
        """A submission was interrupted, nobody knows where; the job must not stay behind, and
        nobody else may be left waiting for what would have come next."""
        self._scheduler.mend(self._open_jobs.by_id.values())
        uncertain = (self._target, job.slot)
        self._target = None
        if job.slot is None:
            error = Terminated("the submission of this job was interrupted")
            self._open_jobs.fail(job, error)
            self._scheduler.drop_resolved()
        for worker in uncertain:
            # It may have been sent the job, or not. When it has left, that will be known.
            if isinstance(worker, WorkerHandle) and not worker.has_exited:
                self.dismiss(worker, "its inbox is uncertain after an interrupted submission")
        self.hand_out()
        self._outboxes.wakeup.set()
        self._state.wake_supervisor()
        if self._timers.next_due() is not None:
            with contextlib.suppress(RuntimeError):  # it needs a thread, and there is none left
                self.rearm()

    def submit_when_free(self, job: Job) -> None:
        """The same, once a worker has nothing to do."""
        while True:
            self.wait_for(self._state.slot_free, self._has_free_slot)
            with self._state.lock:
                if self._has_free_slot():
                    self._state.check_running()
                    self._admit(job)
                    return

    def _has_free_slot(self) -> bool:
        state = self._state
        state.check_owner()
        if state.phase is not PoolPhase.RUN:
            return True
        return len(state.open_jobs.by_id) - state.open_jobs.waiting < len(state.workers)

    def begin_input(self, reader: InputReader) -> None:
        """An input is being read from now on; until it ends, the pool is not done."""
        with self._state.lock:
            self._state.check_running()
            self._inputs.add(reader)

    def end_input(self, reader: InputReader) -> None:
        uninterrupted(lambda: self._end_input(reader))

    def _end_input(self, reader: InputReader) -> None:
        with self._state.lock:
            self._inputs.discard(reader)
        self._state.check_done()

    def read_on(self) -> None:
        """Nobody takes results before the end: have the inputs read without waiting for room."""
        with self._state.lock:
            readers = list(self._state.inputs)
        for reader in readers:  # without the lock: one may wake somebody's event loop
            reader.read_on()

    # ---- to the workers (all of this with the lock held)

    def _transmit(self, slot: WorkerSlot, batch: list[Job]) -> None:
        assert isinstance(slot, WorkerHandle)
        tickets: list[bytes] = []
        for position, job in enumerate(batch):
            if isinstance(job, JobOnTerms) and job.is_late(time.monotonic()):
                self._scheduler.drop(slot, job.id)
                self._has_vacated = True
                self.fail_late(job)
                continue
            try:
                ticket = slot.channel.stage(
                    job.id,
                    job.soft_timeout or 0.0,
                    job.flags,
                    job.pickled,
                    job.payload,
                    job.function_length,
                    job.first,
                    job.constants,
                )
            except OSError as exc:
                ticket = None
                if slot.first() is job:
                    # Nothing is running here whose end would be the time to try again.
                    self._scheduler.drop(slot, job.id)
                    self._has_vacated = True
                    self._open_jobs.fail(job, exc)
                    continue
            if ticket is None:
                self._scheduler.return_jobs(slot, [job.id for job in batch[position:]])
                break
            tickets.append(ticket)
            if self._is_memory_limited or job.flags & LIMITED:
                self._watch(job)
        if tickets and not slot.channel.send(tickets):
            # The kernel gives small pipes to users with many. This one holds unread tickets, so
            # there will be a report, and then another try.
            jobs = [TICKET.unpack(ticket)[0] for ticket in tickets]
            for job_id in jobs:
                slot.channel.forget(job_id)
            self._scheduler.return_jobs(slot, jobs)
        elif self._timers.starts.delay is not None:
            self.expect_start(slot)

    def fail_late(self, job: JobOnTerms) -> None:
        """Its deadline has passed, and no worker has it."""
        error = DeadlineExceeded(job.terms.deadline or 0.0, job.id, job.function)
        if attempts := job.attempts():
            error.__cause__ = attempts[-1].error
        self._open_jobs.fail(job, error)

    def _watch(self, job: Job) -> None:
        """The job is being sent: something may become due for that."""
        now = time.monotonic()
        is_earlier = bool(job.flags & LIMITED) and self._limit_timer.sent(job, now)
        if self._timers.memory.sent(now) or is_earlier:
            self.rearm()

    def expect_start(self, worker: WorkerSlot) -> None:
        """This worker may be starting a job now that is to be reported."""
        if self._timers.starts.expect(worker, time.monotonic()):
            self.rearm()

    def hand_out(self, slots: Iterable[WorkerSlot] | None = None) -> None:
        """Give the workers (all) what they have room for."""
        self._state.assert_locked()
        scheduler = self._scheduler
        if not scheduler.has_waiting():
            return
        if scheduler.queue and self._relieve():
            slots = None  # those that were held back may be needed now
        self._send_batches(slots)
        while plan := scheduler.steal():
            victim, count = plan
            assert isinstance(victim, WorkerHandle)
            jobs = victim.channel.reclaim(count)
            if not jobs:
                break  # it has read them meanwhile
            scheduler.return_jobs(victim, jobs)
            self._send_batches(scheduler.idle_slots())
        if self._hold_timer.next_due is None and scheduler.holds_back():
            self._hold()

    def _relieve(self) -> bool:
        """Take back what waits behind jobs that have turned out to be long: it is handed out before
        what came later. (If nothing is queued, idle workers take it.) Whether there are such."""
        now = time.monotonic()
        if now < self._relieved + ALONE_SECONDS:
            return False
        self._relieved = now
        has_found = False
        for slot in self._scheduler.deep_slots():
            assert isinstance(slot, WorkerHandle)
            job, since = slot.running()
            if job and now > since + ALONE_SECONDS:
                self._scheduler.note_slow(slot)
                self.requeue_unread(slot)
                has_found = True
        return has_found

    def _send_batches(self, slots: Iterable[WorkerSlot] | None) -> None:
        """Again, if a job could not be sent and failed, so that its worker still has nothing."""
        self._has_vacated = True
        while self._has_vacated:
            self._has_vacated = False
            for slot, batch in self._scheduler.batches(slots):
                self._transmit(slot, batch)

    def _hold(self) -> None:
        """Short jobs may be waiting for workers that are at work, while others idle: look later
        whether one of those has a long job."""
        self._hold_timer.begin(time.monotonic())
        self._scheduler.remember_heads()
        try:
            self.rearm()
        except RuntimeError:  # it needs a thread, and the system has none left
            self._hold_timer.end()
            self._scheduler.hold_no_more()
            self.hand_out()

    def end_hold(self) -> None:
        """Take back what waits for a long job."""
        self._hold_timer.end()
        for slot in self._scheduler.find_slow():
            assert isinstance(slot, WorkerHandle)
            self.requeue_unread(slot)
        self.hand_out(() if self._scheduler.is_holding() else None)

    def requeue_unread(self, worker: WorkerHandle) -> None:
        """Queue again what a worker has not read."""
        self._state.assert_locked()
        while jobs := worker.channel.reclaim(MAX_TICKETS):
            self._scheduler.return_jobs(worker, jobs)

    # ---- workers come and go (with the lock held)

    def add_worker(self, worker: WorkerHandle) -> None:
        self._state.assert_locked()
        self._outboxes.add(worker.channel, worker)
        self._workers.append(worker)  # from here on it is the pool's
        self._scheduler.add(worker)
        self._state.slot_free.notify_all()
        self.hand_out([worker])

    def dismiss(self, worker: WorkerHandle, why: str) -> None:
        """Have a worker leave after the task that it runs."""
        self._state.assert_locked()
        self._scheduler.shut(worker)
        self.requeue_unread(worker)
        worker.leave(why)
        self.hand_out()

    def remove_worker(self, worker: WorkerHandle) -> None:
        """The worker has ended and said all. Whoever has it removed hands out what it had."""
        self._state.assert_locked()
        self._scheduler.remove(worker)
        self._limit_timer.forget(worker)
        self._outboxes.discard(worker.channel)
        self._workers.remove(worker)
        worker.reap()
