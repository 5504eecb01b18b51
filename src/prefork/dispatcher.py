"""The jobs of a running pool, between the callers and the workers; every one is accounted for.

    submit ─► Scheduler ─► Channel.send ─► worker
                                             │
    owners ◄─ tell ◄─ news ◄─ collect ◄─ Channel.receive

It carries out what the scheduler decides. `Dispatcher.lock` guards the scheduler, the workers and
their channels; it is never held over a user's code or a call that waits. Whatever is to be told
about a job goes through the news, in the order in which it happened; only the result handler takes
it from there.
"""

from __future__ import annotations

import enum
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from prefork import forks
from prefork.begun import Starts
from prefork.channel import INLINE, MAX_TICKETS
from prefork.crew import Worker
from prefork.deadlines import Deadlines
from prefork.errors import PoolBrokenError, Terminated, WorkerLostError
from prefork.messages import (
    LIMITED,
    TICKET,
    Kind,
    Outcome,
    Report,
    decode,
    decode_exit,
    decode_reason,
    describe,
)
from prefork.news import Accepted, News
from prefork.results import Signal
from prefork.scheduler import Job, Scheduler, Seat
from prefork.watch import Watch

__all__ = ["Dispatcher", "Feeder", "State"]

logger = logging.getLogger("prefork")


RESULTS = frozenset(map(int, (Kind.DONE, Kind.FAILED, Kind.OUTCOMES)))
"""Kinds of reports that end a job."""

MAX_OPEN_PARCELS = 128
"""Large jobs whose files are made in advance; more wait in memory, so that descriptors are left."""

NO_STACK = "(no stack could be had: the process took no signals)"


class State(enum.Enum):
    """A pool's life: from RUN through CLOSE and TERMINATE to ENDED, skipping some."""

    RUN = "running"
    CLOSE = "closed"  # no new jobs; workers leave when all are done
    TERMINATE = "terminated"  # no jobs at all; workers are being killed
    ENDED = "ended"  # no workers


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
        self, signal: Signal, /, condition: Callable[[], bool], timeout: float | None = None
    ) -> bool: ...


class Dispatcher:
    """Takes jobs, has workers run them, collects what they report.

    Args:
        staff_bell: rung when the staff has something to look at: a worker that has said goodbye,
            an initializer that failed, the last job done.
        look_interval: see `Deadlines`.
        accept_delay: see `Starts`.
    """

    def __init__(
        self,
        staff_bell: Callable[[], object],
        look_interval: float | None = None,
        accept_delay: float | None = None,
    ) -> None:
        self.lock = threading.RLock()  # re-entrant, as a finalizer may run inside
        self.state = State.RUN
        self.cache: dict[int, Job] = {}  # all jobs that are not settled
        self.workers: list[Worker] = []
        self.feeders: set[Feeder] = set()  # inputs that are still being read
        self.outboxes: Watch[Worker] = Watch()
        self.scheduler = Scheduler()
        self.deadlines = Deadlines(look_interval)
        self._looks_always = look_interval is not None
        self.begun = Starts(accept_delay)
        self.limit_sent: Callable[[], object] = lambda: None  # the next look is earlier now
        self.wait_for: Wait = Signal.wait
        self.slot_free = Signal()
        self._open_parcels = 0  # unsettled large jobs that have a file
        self._has_vacated = False  # a seat, since its only job could not be sent
        self._bare_parcels = 0  # unsettled large jobs that have none yet
        self.starts = 0  # workers that have become ready
        self.finished = self.failed = self.retried = 0  # jobs
        self.broken: PoolBrokenError | None = None  # why there are no workers
        self.on_broken: Callable[[PoolBrokenError], object] = lambda why: None
        self.forked = False  # we are a copy in a child process
        self.ring_staff = staff_bell
        self.news = News(self.outboxes.bell.ring)
        forks.own(self)

    def abandon(self) -> None:
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
            raise PoolBrokenError(*self.broken.args) from self.broken.__cause__
        raise ValueError(f"the pool is {self.state.value}: it takes no more jobs")

    def submit(self, job: Job, feeding: bool = False) -> None:
        """Take a job: from now on it will be settled exactly once."""
        with self.lock:
            if not (feeding and self.state is State.CLOSE):
                self.check_running()
            try:
                self._admit(job)
            except BaseException:  # a signal handler's, such as KeyboardInterrupt
                self._give_up(job)
                raise

    def _admit(self, job: Job) -> None:
        self.cache[job.id] = job
        if job.parcel is not None or len(job.pickled) > INLINE:
            self._count_parcel(job, +1)
        job.owner.bind(job)
        if job.flaw is not None:
            self.fail(job, job.flaw)
        elif (seat := self.scheduler.submit(job)) is not None:
            self._transmit(seat, [job])

    def _give_up(self, job: Job) -> None:
        """A submission was interrupted, nobody knows where; the job must not stay behind."""
        worker = job.seat
        if worker is None:
            self.scheduler.withdraw(job)
            self.fail(job, Terminated("the submission of this job was interrupted"))
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
        return self.state is not State.RUN or len(self.cache) < len(self.workers)

    def _count_parcel(self, job: Job, change: int) -> None:
        """A large job has come or gone."""
        if job.parcel is not None:
            self._open_parcels += change
        else:
            self._bare_parcels += change

    def may_open_parcel(self) -> bool:
        """Whether the file of a large job may be made before a worker is free for it.

        Not if jobs that came before have none: where descriptors are short, those that become
        free are for them.
        """
        return self._bare_parcels == 0 and self._open_parcels < MAX_OPEN_PARCELS

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
            and not self.cache
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
            self.ring_staff()

    # ---- to the workers (with the lock held)

    def _transmit(self, seat: Seat, batch: list[Job]) -> None:
        assert isinstance(seat, Worker)
        tickets: list[bytes] = []
        for position, job in enumerate(batch):
            try:
                ticket = seat.channel.stage(
                    job.id,
                    job.soft_timeout or 0.0,
                    job.flags,
                    job.pickled,
                    job.parcel,
                    job.function_length,
                )
            except OSError as exc:
                ticket = None
                if next(iter(seat.sent)) == job.id:
                    # Nothing is running here whose end would be the time to try again.
                    self.scheduler.drop(seat, job.id)
                    self._has_vacated = True
                    self.fail(job, exc)
                    continue
            if ticket is None:
                self.scheduler.return_jobs(seat, [job.id for job in batch[position:]])
                break
            tickets.append(ticket)
            if job.flags & LIMITED or self._looks_always:
                self._watch(job)
        if tickets and not seat.channel.send(tickets):
            # The kernel gives small pipes to users with many. This one holds unread tickets, so
            # there will be a report, and then another try.
            jobs = [TICKET.unpack(ticket)[0] for ticket in tickets]
            for job_id in jobs:
                seat.channel.forget(job_id)
            self.scheduler.return_jobs(seat, jobs)
        elif self.begun.delay is not None:
            self._expect_start(seat)

    def _expect_start(self, worker: Worker) -> None:
        if self.begun.expect(worker, time.monotonic()):
            self.limit_sent()

    def _watch(self, job: Job) -> None:
        if self.deadlines.watch(job, time.monotonic()):
            self.limit_sent()

    def distribute(self, seats: Iterable[Seat] | None = None) -> None:
        """Give the workers (all) what they have room for."""
        scheduler = self.scheduler
        self._hand_out(seats)
        while plan := scheduler.steal():
            victim, count = plan
            assert isinstance(victim, Worker)
            jobs = victim.channel.reclaim(count)
            if not jobs:
                break  # it has read them meanwhile
            scheduler.return_jobs(victim, jobs)
            self._hand_out(scheduler.idle_seats())

    def _hand_out(self, seats: Iterable[Seat] | None) -> None:
        """Again, if a job could not be sent and failed, so that its worker still has nothing."""
        self._has_vacated = True
        while self._has_vacated:
            self._has_vacated = False
            for seat, batch in self.scheduler.hand_out(seats):
                self._transmit(seat, batch)

    def take_back(self, worker: Worker) -> None:
        """Queue again what a worker has not read."""
        while jobs := worker.channel.reclaim(MAX_TICKETS):
            self.scheduler.return_jobs(worker, jobs)

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
                self.ring_staff()
            return False
        count, seconds = 0, 0.0
        for report in reports:
            if report.kind in RESULTS:
                count += 1
                seconds += report.seconds
                if (job := worker.sent.pop(report.job, None)) is not None:
                    self._finish(worker, job, report)
                elif worker.lost is None or worker.lost.id != report.job:
                    self._distrust(worker, "it reported a job that it was not sent")
            else:
                self.scheduler.note_finished(worker, count, seconds)
                count, seconds = 0, 0.0
                try:
                    self._heed(worker, report)
                except ValueError as exc:
                    self._distrust(worker, str(exc))
        self.scheduler.note_finished(worker, count, seconds)
        return True

    def hear_out(self, worker: Worker) -> None:
        """Account for all that a worker has said. With the lock held."""
        while self.listen(worker):
            pass

    def _finish(self, worker: Worker, job: Job, report: Report) -> None:
        worker.channel.forget(job.id)
        worker.tasks += 1
        worker.sentence = None  # if it was for this job, it came too late
        job.pid, job.started, job.seconds = worker.pid, report.started, report.seconds
        if job.untold:
            self.tell_start(worker, job, report.started)
        self._settle(job, report, report.kind != Kind.FAILED)
        if worker.sent and self.begun.delay is not None:
            self._expect_start(worker)

    def _heed(self, worker: Worker, report: Report) -> None:
        """What a worker says about something else than a result."""
        kind = report.kind
        if kind == Kind.ACCEPTED:
            if job := self.cache.get(report.job):
                self.tell_start(worker, job, report.started)
        elif kind == Kind.READY:
            if not worker.dying:  # else that is waited for
                worker.patience_ends = None
            self.scheduler.mark_ready(worker)
            self._expect_start(worker)
            self.starts += 1
            self.ring_staff()
        elif kind == Kind.EXITING:
            if job := worker.sent.get(report.job):
                code, why = decode_exit(report)
                self.lose(worker, job, code, note=why)
        elif kind == Kind.BROKEN:
            worker.start_error = decode(report).value
            self.ring_staff()
        elif kind == Kind.LEAVING:
            self.dismiss(worker, decode_reason(report))
            self.ring_staff()
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
            self.ring_staff()
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
        self.ring_staff()
        self.distribute()

    def lose(
        self, worker: Worker, job: Job, exitcode: int | None, stack: str = "", note: str = ""
    ) -> None:
        """A worker has died, or is about to, while it ran this job: fail the job, or have it run
        again. With the lock held."""
        self._note_start(worker, job)
        if job.untold and job.started:
            self.tell_start(worker, job, job.started)
        worker.sent.pop(job.id, None)
        worker.lost = job
        self.scheduler.shut(worker)
        sentence = worker.sentence
        if sentence is not None and sentence.job is job:
            if sentence.expiry is not None:
                self.news.add(job, sentence.expiry)
            job.pid = worker.pid
            self.fail(job, sentence.error(stack or NO_STACK))
        elif job.retries and job.id in self.cache:
            self._retry(job)
        else:
            job.pid = worker.pid
            lost = WorkerLostError(job.id, job.function, worker.pid, exitcode, stack, note)
            self.fail(job, lost)

    def _retry(self, job: Job) -> None:
        job.retries -= 1
        job.attempts += 1
        self.retried += 1
        job.pid, job.started, job.seconds = None, 0.0, 0.0
        self.scheduler.put_back(job)
        self.distribute()

    def _note_start(self, worker: Worker, job: Job) -> None:
        """What is known of a job that will not be reported."""
        running, _ = worker.running()
        if running == job.id:
            started = worker.accepted()
            job.pid, job.started, job.seconds = worker.pid, started, time.monotonic() - started

    def fail(self, job: Job, reason: BaseException) -> None:
        self._settle(job, Outcome(False, reason), False)

    def _settle(self, job: Job, news: Report | Outcome, well: bool) -> None:
        if self.cache.pop(job.id, None) is None:
            return
        if well:
            self.finished += 1
        else:
            self.failed += 1
        if job.parcel is not None or len(job.pickled) > INLINE:
            self._count_parcel(job, -1)
            if job.parcel is not None:
                job.parcel.close()
                job.parcel = None
        job.seat = None
        job.pickled = b""
        self.news.add(job, news)

    def tell_start(self, worker: Worker, job: Job, started: float) -> None:
        """With the lock held."""
        job.untold = False
        self.news.add(job, Accepted(worker.pid, started))

    # ---- workers come and go (with the lock held)

    def join(self, worker: Worker) -> None:
        self.workers.append(worker)
        self.scheduler.add(worker)
        self.outboxes.add(worker.channel, worker)
        self.slot_free.notify()
        self.distribute([worker])

    def dismiss(self, worker: Worker, why: str) -> None:
        """Have a worker leave after the task that it runs."""
        worker.reason = worker.reason or why
        self.scheduler.shut(worker)
        self.take_back(worker)
        if not worker.leaving:
            worker.leaving = True
            worker.channel.dismiss()
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

    # ---- the end

    def close(self) -> None:
        """Take no more jobs."""
        with self.lock:
            if self.state is State.RUN:
                self.state = State.CLOSE
        self.slot_free.notify()
        self.ring_staff()

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
            for job in list(self.cache.values()):
                self.fail(job, reason)
            for feeder in self.feeders:
                feeder.abort(reason)
            for worker in self.workers:
                if not worker.exited:
                    worker.kill("the pool was terminated")
        self.slot_free.notify()
        self.ring_staff()

    def break_down(self, why: str, cause: BaseException | None = None) -> None:
        """Fail all jobs, now and later: the pool cannot go on."""
        with self.lock:
            if self.broken is None and self.state in (State.RUN, State.CLOSE):
                self.broken = PoolBrokenError(why)
                self.broken.__cause__ = cause
                logger.error("%s", self.broken)
                self.stop(self.broken)
                self.on_broken(self.broken)

    def crash(self, reason: BaseException) -> None:
        """A thread of the pool has failed, so the pool cannot go on."""
        logger.critical("a thread of the pool failed", exc_info=reason)
        self.break_down(f"a thread of the pool failed: {describe(reason)}", reason)

    def crash_and_tell(self, reason: BaseException) -> None:
        """The result handler has failed, so the news must be told here, now."""
        self.crash(reason)
        self.news.tell()
