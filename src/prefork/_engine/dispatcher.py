"""The jobs of a running pool, on their way from the callers to the workers.

    submit ─► Scheduler ─► Channel.send ─► worker ─► (what comes back: `exchange.py`)

It carries out what the scheduler decides. `Dispatcher.lock` guards the scheduler, the workers and
their channels; it is never held over a user's code or a call that waits. Whatever is to be told
about a job goes through the news, in the order in which it happened; only the result handler takes
it from there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from prefork._engine.state import Accounts, News, State
from prefork._engine.worker_handle import Worker
from prefork._ipc.channel import MAX_TICKETS
from prefork._ipc.wire import LIMITED, TICKET
from prefork._policy.job import Job, WorkerSlot
from prefork._policy.scheduler import HOLD_SECONDS, Scheduler
from prefork._policy.timers import Deadlines, StartNotices
from prefork._system.condition import Condition
from prefork._system.selector import Selector
from prefork.errors import PoolBrokenError, Terminated

__all__ = ["Dispatcher", "Feeder"]


class Feeder(Protocol):
    """Somebody who reads an input and submits jobs."""

    def handle_event(self) -> None:
        """Submit as many jobs as there is room for."""

    def abort(self, reason: Exception) -> None:
        """Stop at once; does not wait, takes no lock of the pool's."""

    def read_on(self) -> None:
        """Do not wait for room any more."""

    def is_needed(self) -> bool:
        """Whether anybody will take the results."""


class Wait(Protocol):
    """How to wait for a condition that other roles of the pool make true."""

    def __call__(
        self, signal: Condition, /, condition: Callable[[], bool], timeout: float | None = None
    ) -> bool: ...


class Dispatcher:
    """Takes jobs, has workers run them, collects what they report.

    Args:
        wake_supervisor: called when there is something to look at: a worker that has said goodbye,
            an initializer that failed, the last job done.
        look_interval: see `Deadlines`.
        accept_delay: see `StartNotices`.
        cpus: see `Scheduler`.
    """

    def __init__(
        self,
        wake_supervisor: Callable[[], object],
        look_interval: float | None = None,
        accept_delay: float | None = None,
        cpus: int = 2,
    ) -> None:
        self.lock = threading.RLock()  # re-entrant, as a finalizer may run inside
        self.state = State.RUN
        self.workers: list[Worker] = []
        self.feeders: set[Feeder] = set()  # inputs that are still being read
        self.outboxes: Selector[Worker] = Selector()
        self.scheduler = Scheduler(cpus)
        self.deadlines = Deadlines(look_interval)
        self._looks_always = look_interval is not None
        self.start_notices = StartNotices(accept_delay)
        self.held_until: float | None = None  # monotonic; then it is seen whether that pays
        self.limit_sent: Callable[[], object] = lambda: None  # the next look is earlier now
        self.wait_for: Wait = Condition.wait
        self.slot_free = Condition()
        self._has_vacated = False  # a slot, since its only job could not be sent
        self.starts = 0  # workers that have become ready
        self.broken: PoolBrokenError | None = None  # why there are no workers
        self.on_broken: Callable[[PoolBrokenError], object] = lambda why: None
        self.forked = False  # we are a copy in a child process
        self.wake_supervisor = wake_supervisor
        self.news = News(self.outboxes.wakeup.set)
        self.accounts = Accounts(self.news)

    def close_in_child(self) -> None:
        """In a forked child: the pool is the parent's."""
        self.forked = True
        self.state = State.ENDED
        self.lock = threading.RLock()

    # ---- from the callers

    def check_owner(self) -> None:
        """Raise RuntimeError in a forked child."""
        if self.forked:
            raise RuntimeError(
                "this pool belongs to the process that made it; make another one in the "
                "forked child"
            )

    def check_running(self) -> None:
        """Raise unless new jobs are taken: ValueError, PoolBrokenError or RuntimeError."""
        if self.state is State.RUN:
            return
        self.check_owner()
        if self.broken is not None:
            error = PoolBrokenError(*self.broken.args)
            error.__cause__ = self.broken.__cause__
            raise error
        raise ValueError(f"the pool is {self.state.value}: it takes no more jobs")

    def submit(self, job: Job) -> None:
        """Take a job: from now on it will be settled exactly once."""
        with self.lock:
            self.check_running()
            self._admit(job)

    def submit_fed(self, job: Job) -> None:
        """The same with a job of an input; those are read to their ends when the pool is closed."""
        with self.lock:
            if self.state is not State.CLOSE:
                self.check_running()
            self._admit(job)

    def _admit(self, job: Job) -> None:
        try:
            self._take(job)
        except BaseException:  # a signal handler's, such as KeyboardInterrupt
            self._give_up(job)
            raise

    def _take(self, job: Job) -> None:
        self.accounts.admit(job)
        job.sink.job_added(job)
        if job.pickling_error is not None:
            self.accounts.fail(job, job.pickling_error)
            return
        slot = self.scheduler.submit(job)
        if slot is not None:
            self._transmit(slot, [job])
        if self.held_until is None:
            self._hold()

    def _give_up(self, job: Job) -> None:
        """A submission was interrupted, nobody knows where; the job must not stay behind."""
        worker = job.slot
        if worker is None:
            self.scheduler.withdraw(job)
            self.accounts.fail(job, Terminated("the submission of this job was interrupted"))
        else:
            # It may have been sent, or not. When that worker has left, it will be known.
            assert isinstance(worker, Worker)
            self.dismiss(worker, "its inbox is uncertain after an interrupted submission")

    def submit_when_free(self, job: Job) -> None:
        """The same, once a worker has nothing to do."""
        while True:
            self.wait_for(self.slot_free, self._has_slot)
            with self.lock:
                if self._has_slot():
                    self.submit(job)
                    return

    def _has_slot(self) -> bool:
        self.check_owner()
        return self.state is not State.RUN or len(self.accounts.open) < len(self.workers)

    def begin_feed(self, feeder: Feeder) -> None:
        """An input is being read from now on; until it ends, the pool is not done."""
        with self.lock:
            self.check_running()
            self.feeders.add(feeder)

    def end_feed(self, feeder: Feeder) -> None:
        with self.lock:
            self.feeders.discard(feeder)
        self.check_done()

    def is_done(self) -> bool:
        """Whether the pool is closed and has nothing left to do."""
        return (
            self.state is State.CLOSE
            and not self.accounts.open
            and not any(feeder.is_needed() for feeder in list(self.feeders))
        )

    def read_on(self) -> None:
        """Nobody takes results before the end: have the inputs read without waiting for room."""
        with self.lock:
            for feeder in self.feeders:
                feeder.read_on()

    def check_done(self) -> None:
        """Jobs have finished: tell the staff if they were the last."""
        if self.is_done():
            self.wake_supervisor()

    # ---- to the workers (with the lock held)

    def _transmit(self, slot: WorkerSlot, batch: list[Job]) -> None:
        assert isinstance(slot, Worker)
        tickets: list[bytes] = []
        for position, job in enumerate(batch):
            try:
                ticket = slot.channel.stage(
                    job.id,
                    job.soft_timeout or 0.0,
                    job.flags,
                    job.pickled,
                    job.payload,
                    job.function_length,
                )
            except OSError as exc:
                ticket = None
                if next(iter(slot.sent)) == job.id:
                    # Nothing is running here whose end would be the time to try again.
                    self.scheduler.drop(slot, job.id)
                    self._has_vacated = True
                    self.accounts.fail(job, exc)
                    continue
            if ticket is None:
                self.scheduler.return_jobs(slot, [job.id for job in batch[position:]])
                break
            tickets.append(ticket)
            if job.flags & LIMITED or self._looks_always:
                self._watch(job)
        if tickets and not slot.channel.send(tickets):
            # The kernel gives small pipes to users with many. This one holds unread tickets, so
            # there will be a report, and then another try.
            jobs = [TICKET.unpack(ticket)[0] for ticket in tickets]
            for job_id in jobs:
                slot.channel.forget(job_id)
            self.scheduler.return_jobs(slot, jobs)
        elif self.start_notices.delay is not None:
            self.expect_start(slot)

    def expect_start(self, worker: Worker) -> None:
        if self.start_notices.expect(worker, time.monotonic()):
            self.limit_sent()

    def _watch(self, job: Job) -> None:
        if self.deadlines.watch(job, time.monotonic()):
            self.limit_sent()

    def distribute(self, slots: Iterable[WorkerSlot] | None = None) -> None:
        """Give the workers (all) what they have room for."""
        scheduler = self.scheduler
        if not scheduler.has_waiting():
            return
        self._hand_out(slots)
        while plan := scheduler.steal():
            victim, count = plan
            assert isinstance(victim, Worker)
            jobs = victim.channel.reclaim(count)
            if not jobs:
                break  # it has read them meanwhile
            scheduler.return_jobs(victim, jobs)
            self._hand_out(scheduler.idle_slots())
        if self.held_until is None:
            self._hold()

    def _hold(self) -> None:
        """Short jobs may be waiting for workers that are at work, while others idle: look later
        whether one of those has a long job."""
        if not (self.scheduler.is_holding() and self.scheduler.has_waiting()):
            return
        self.held_until = time.monotonic() + HOLD_SECONDS
        self.scheduler.remember_heads()
        try:
            self.limit_sent()
        except RuntimeError:  # it needs a thread, and the system has none left
            self.held_until = None
            self.scheduler.hold_no_more()
            self.distribute()

    def release(self) -> None:
        """Take back what waits for a long job. With the lock held."""
        self.held_until = None
        for slot in self.scheduler.find_slow():
            assert isinstance(slot, Worker)
            self.take_back(slot)
        self.distribute(() if self.scheduler.is_holding() else None)

    def _hand_out(self, slots: Iterable[WorkerSlot] | None) -> None:
        """Again, if a job could not be sent and failed, so that its worker still has nothing."""
        self._has_vacated = True
        while self._has_vacated:
            self._has_vacated = False
            for slot, batch in self.scheduler.batches(slots):
                self._transmit(slot, batch)

    def take_back(self, worker: Worker) -> None:
        """Queue again what a worker has not read."""
        while jobs := worker.channel.reclaim(MAX_TICKETS):
            self.scheduler.return_jobs(worker, jobs)

    # ---- workers come and go (with the lock held)

    def join(self, worker: Worker) -> None:
        self.outboxes.add(worker.channel, worker)
        self.workers.append(worker)  # from here on it is the pool's
        self.scheduler.add(worker)
        self.slot_free.notify_all()
        self.distribute([worker])

    def dismiss(self, worker: Worker, why: str) -> None:
        """Have a worker leave after the task that it runs."""
        worker.reason = worker.reason or why
        self.scheduler.shut(worker)
        self.take_back(worker)
        if not worker.leaving:
            worker.leaving = True
            worker.channel.send_leave()
        self.distribute()

    def leave(self, worker: Worker) -> None:
        """The worker has died and said all; what it had not started goes to others."""
        self.take_back(worker)
        self.scheduler.remove(worker)
        self.deadlines.forget(worker)
        self.outboxes.discard(worker.channel)
        self.workers.remove(worker)
        worker.gone = True
        self.distribute()
