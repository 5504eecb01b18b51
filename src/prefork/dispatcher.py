"""The running pool: carries out what the scheduler decides, and accounts for every job.

    submit ─► Scheduler ─► Channel.send ─► worker
                                             │
    settle ◄─ news ◄─ collect ◄─ Channel.receive
                ▲
                └─ bury: a worker has died: drain its outbox, take back its inbox,
                         fail the one job that is left, hire a successor

`Dispatcher.lock` guards the scheduler, the workers and their channels. It is never held over a
user's code or a call that waits. Whatever is to be told about a job goes through `news`, in the
order in which it happened; only the result handler takes it from there.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import selectors
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple, Protocol

from prefork import worker as child
from prefork.channel import MAX_TICKETS, Channel
from prefork.deadlines import Deadlines, Expiry
from prefork.errors import (
    PoolBrokenError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
    describe_exit,
)
from prefork.messages import Failure, Kind, Outcome, Report, decode, decode_failure, load
from prefork.process import Child, Lifeline, Process
from prefork.results import Signal
from prefork.scheduler import Job, Scheduler, Seat

__all__ = ["Bell", "Dispatcher", "Options", "State", "Watch", "Worker", "tell_owner"]

logger = logging.getLogger("prefork")

MAX_FAILED_STARTS = 10
"""So many workers in a row may be killed before they are ready; then the pool gives up."""


class State(enum.Enum):
    """A pool's life: RUN to CLOSE to TERMINATE to ENDED, skipping some."""

    RUN = "running"
    CLOSE = "closed"  # no new jobs; workers leave when all are done
    TERMINATE = "terminated"  # no jobs at all; workers are being killed
    ENDED = "ended"  # no workers


class Options(NamedTuple):
    """What a pool is made with."""

    processes: int
    worker: child.WorkerOptions
    context: BaseContext
    process_class: type[Process] = Process


class Bell:
    """Wakes a thread that waits in a selector."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._rung = False

    def fileno(self) -> int:
        return self._reader

    def ring(self) -> None:
        """Safe from any thread and from finalizers; does nothing once closed."""
        if not self._rung:
            self._rung = True
            with contextlib.suppress(OSError):
                os.write(self._writer, b"!")

    def silence(self) -> None:
        """To be called before looking at what the bell was rung for."""
        if self._rung:
            os.read(self._reader, 16)
            self._rung = False

    def close(self) -> None:
        reader, writer = self._reader, self._writer
        self._reader = self._writer = -1
        os.close(reader)
        os.close(writer)


class Watch:
    """Waits for any of many descriptors, and for a bell."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.bell = Bell()
        self._selector.register(self.bell, selectors.EVENT_READ)

    def fileno(self) -> int:
        """Readable when `ready(0)` would return something: the set is itself a descriptor."""
        return self._selector.fileno()

    def add(self, fileobj: Any, worker: Worker) -> None:
        self._selector.register(fileobj, selectors.EVENT_READ, worker)

    def discard(self, fileobj: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fileobj)

    def ready(self, timeout: float | None = None) -> list[Worker]:
        """Wait (seconds; None for ever) and return the workers with events; none for the bell."""
        events = self._selector.select(timeout)
        workers = [key.data for key, _ in events if key.data is not None]
        if len(workers) < len(events):
            self.bell.silence()
        return workers

    def close(self) -> None:
        self._selector.close()
        self.bell.close()


class Worker(Seat):
    """A worker process: its seat at the scheduler, its channel, its process."""

    def __init__(self, channel: Channel, process: Child, name: str) -> None:
        super().__init__()
        self.channel = channel
        self.process = process
        self.pid = process.pid
        self.name = name
        self.ready = False  # it has run its initializer
        self.dismissed = False  # it was told to leave
        self.exited = False  # its process has ended
        self.exitcode: int | None = None
        self.gone = False  # accounted for; its channel is closed
        self.note = ""  # what the task said about its exit
        self.verdicts: dict[int, Exception] = {}  # why it was killed: for which job which error
        self.wait_until: float | None = None  # for a result that may still come (monotonic)

    def running(self) -> tuple[int, float]:
        return (0, 0.0) if self.gone else self.channel.running()

    def __repr__(self) -> str:
        return f"<{self.name} {self.pid}: {len(self.sent)} jobs>"


class OwnThread(Protocol):
    """A thread of the pool."""

    @property
    def is_current(self) -> bool: ...


class Feeder(Protocol):
    """Somebody who reads an input and submits jobs."""

    def abort(self, reason: Exception) -> None:
        """Stop at once; does not wait, takes no lock of the pool's."""


class Accepted(NamedTuple):
    """News: a worker has started the job."""

    pid: int
    started: float


News = Report | Outcome | Accepted | Expiry


class Dispatcher:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.lock = threading.RLock()
        self.state = State.RUN
        self.processes = options.processes  # how many workers there should be
        self.cache: dict[int, Job] = {}  # all jobs that are not settled
        self.feeders: set[Feeder] = set()  # inputs that are still being read
        self.workers: list[Worker] = []
        self.outboxes = Watch()
        self.exits = Watch()
        self.at_end: list[Callable[[], object]] = []
        self.on_deadline: Callable[[], object] = lambda: None  # the next look is earlier now
        self.scheduler = Scheduler()
        self.deadlines = Deadlines()
        self.slot_free = Signal()
        self.ended = Signal()
        self.abandoned = False  # the pool object was dropped
        self.released = False  # all is over
        self.broken: PoolBrokenError | None = None
        self.forked = False  # we are a copy in a child process
        self.open_parcels = 0  # files of large tasks that are made and not settled
        self.own_threads: tuple[OwnThread, ...] = ()
        self._termination_requested = ""  # why
        self._news: deque[tuple[Job, News]] = deque()
        self._lifeline = Lifeline()
        self._names = 0
        self._failed_starts = 0
        self._waiting: list[Worker] = []  # dead ones whose last result may still come
        _dispatchers.add(self)

    # ---- jobs: from the callers

    def check_running(self) -> None:
        """Raise unless new jobs are taken."""
        if self.state is State.RUN and not self.abandoned:
            return
        self.check_owner()
        if self.broken is not None:
            raise PoolBrokenError(*self.broken.args) from self.broken.__cause__
        raise ValueError(f"the pool is {self.state.value}: it takes no more jobs")

    def check_owner(self) -> None:
        if self.forked:
            raise RuntimeError(
                "this pool belongs to the process that made it; make a pool of its own in the "
                "forked child"
            )

    def submit(self, job: Job, feeding: bool = False) -> None:
        """Take a job: from now on it will be settled exactly once.

        Raises:
            ValueError: the pool takes no more jobs.
        """
        with self.lock:
            if not feeding or self.state is not State.CLOSE:
                self.check_running()
            self._submit(job)

    def submit_when_free(self, job: Job) -> None:
        """The same, once a worker has nothing to do."""
        while True:
            self.slot_free.wait(self._has_slot)
            with self.lock:
                self.check_running()
                if not self._has_slot():
                    continue
                self._submit(job)
                return

    def _submit(self, job: Job) -> None:
        self.cache[job.id] = job
        if job.parcel is not None:
            self.open_parcels += 1
        seat = self.scheduler.submit(job)
        if seat is not None:
            self._transmit(seat, [job])

    def _has_slot(self) -> bool:
        return self.state is not State.RUN or len(self.cache) < self.processes

    def reject(self, job: Job, reason: BaseException) -> None:
        """Settle a job that could not even be sent."""
        with self.lock:
            self.cache[job.id] = job
            self._fail(job, reason)

    def begin_feed(self, feeder: Feeder) -> None:
        """An input is being read from now on; until it ends, the pool is not done."""
        with self.lock:
            self.check_running()
            self.feeders.add(feeder)

    def end_feed(self, feeder: Feeder) -> None:
        with self.lock:
            self.feeders.discard(feeder)
        self.check_done()

    # ---- jobs: to and from the workers (all with the lock held)

    def _transmit(self, seat: Seat, batch: list[Job]) -> None:
        assert isinstance(seat, Worker)
        tickets: list[bytes] = []
        for position, job in enumerate(batch):
            try:
                ticket = seat.channel.stage(
                    job.id, job.soft_timeout or 0.0, job.flags, job.pickled, job.parcel
                )
            except OSError as exc:
                ticket = None
                if next(iter(seat.sent)) == job.id:
                    # Nothing is running here whose end would be the time to try again.
                    del seat.sent[job.id]
                    self._fail(job, exc)
                    continue
            if ticket is None:
                self.scheduler.return_jobs(seat, [job.id for job in batch[position:]])
                break
            tickets.append(ticket)
            if job.timeout or job.soft_timeout:
                self._watch_deadline(job)
        if tickets:
            seat.channel.send(tickets)

    def _watch_deadline(self, job: Job) -> None:
        if self.deadlines.watch(job, time.monotonic()):
            self.on_deadline()

    def _distribute(self, seats: Iterable[Seat] | None = None) -> None:
        """Give the workers (all) what they have room for."""
        scheduler = self.scheduler
        for seat, batch in scheduler.hand_out(seats):
            self._transmit(seat, batch)
        while plan := scheduler.steal():
            victim, count = plan
            assert isinstance(victim, Worker)
            jobs = victim.channel.reclaim(count)
            if not jobs:
                break  # it has read them meanwhile
            scheduler.return_jobs(victim, jobs)
            for seat, batch in scheduler.hand_out(scheduler.idle_seats()):
                self._transmit(seat, batch)

    def _take_reports(self, worker: Worker) -> bool:
        """Account for what a worker says; False if it says nothing now."""
        reports = worker.channel.receive()
        if reports is None:
            if worker.channel.eof:
                self.outboxes.discard(worker.channel)
                if worker.exited:
                    self.exits.bell.ring()
            return False
        for report in reports:
            self._account(worker, report)
        return True

    def _account(self, worker: Worker, report: Report) -> None:
        kind = report.kind
        if kind in (Kind.DONE, Kind.FAILED, Kind.OUTCOMES):
            worker.channel.forget(report.job)
            job = self.scheduler.finish(worker, report.job, report.seconds)
            if job is not None:
                job.pid, job.started, job.seconds = worker.pid, report.started, report.seconds
                self._settle_later(job, report)
        elif kind == Kind.ACCEPTED:
            if job := self.cache.get(report.job):
                self._tell(job, Accepted(worker.pid, report.started))
        elif kind == Kind.READY:
            worker.ready = True
            self._failed_starts = 0
        elif kind == Kind.EXITING:
            worker.note = bytes(report.payload).decode("utf-8", "replace")
        elif kind == Kind.BROKEN:
            cause = decode_failure(Failure(*load(report.payload))).value
            self._break(f"the initializer raised {type(cause).__name__}: {cause}", cause)

    def _settle_later(self, job: Job, news: Report | Outcome) -> None:
        if self.cache.pop(job.id, None) is None:
            return
        job.seat = None
        if job.parcel is not None:
            job.parcel.close()
            self.open_parcels -= 1
        job.pickled, job.parcel = b"", None
        self._tell(job, news)

    def _tell(self, job: Job, news: News) -> None:
        self._news.append((job, news))
        self.outboxes.bell.ring()

    def _fail(self, job: Job, reason: BaseException) -> None:
        self._settle_later(job, Outcome(False, reason))

    # ---- the result handler's work

    def collect(self, workers: Iterable[Worker]) -> list[tuple[Job, News]]:
        """Read what these workers have reported, and send them more; all news since last time."""
        with self.lock:
            spoke = [worker for worker in workers if not worker.gone and self._take_reports(worker)]
            self._distribute(spoke)
        news: list[tuple[Job, News]] = []
        while self._news:
            news.append(self._news.popleft())
        return news

    def check_done(self) -> None:
        if self.state is not State.RUN and not self.cache and not self.feeders:
            self.exits.bell.ring()

    # ---- the timeout handler's work

    def next_look(self) -> float | None:
        """When the next limit can expire (monotonic, seconds); None: no limit runs."""
        return self.deadlines.next_look

    def expired(self, now: float) -> list[Expiry]:
        with self.lock:
            return self.deadlines.look(self.workers, now)

    def enforce(self, expiry: Expiry) -> None:
        """Interrupt or kill the worker that runs this job, unless the job has just finished."""
        worker, job = expiry.seat, expiry.job
        assert isinstance(worker, Worker)
        with self.lock:
            if worker.gone or worker.exited or job.id not in worker.sent:
                return
            if expiry.soft:
                self._tell(job, expiry)
                worker.process.signal(child.SOFT_SIGNAL)
                return
            if not self._isolate(worker, job):
                return
            logger.warning(
                "killing worker %d: job %d (%s) exceeded its time limit of %g s",
                worker.pid, job.id, job.function, expiry.timeout,
            )  # fmt: skip
            worker.verdicts[job.id] = TimeLimitExceeded(
                expiry.timeout, job.id, job.function, worker.pid
            )
            self._tell(job, expiry)
            worker.process.kill()

    def _isolate(self, worker: Worker, job: Job) -> bool:
        """Leave a worker with nothing but this job; False if the job turns out to be finished.

        After this the worker can be killed without hitting another job: it has nothing to read.
        """
        self.scheduler.shut(worker)
        self._take_back(worker)
        while self._take_reports(worker):
            pass
        finished = job.id not in worker.sent
        if finished and not worker.dismissed:
            self.scheduler.reopen(worker)
        self._distribute()
        return not finished

    def _take_back(self, worker: Worker) -> None:
        while jobs := worker.channel.reclaim(MAX_TICKETS):
            self.scheduler.return_jobs(worker, jobs)

    # ---- the supervisor's work: workers come and go

    def hire(self) -> Worker:
        """Start one more worker process. Takes milliseconds with fork, more with spawn.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        self._names += 1
        name = f"PreforkWorker-{self._names}"
        channel = Channel()
        lifeline = self._lifeline.end()
        end = channel.take_worker_end()
        try:
            with end.handing_over():
                process = self.options.process_class(
                    target=child.main,
                    name=name,
                    args=(end, lifeline, self.options.worker),
                    context=self.options.context,
                )
                started = Child(process)
        except BaseException:
            channel.close()
            raise
        finally:
            lifeline.close()
        worker = Worker(channel, started, name)
        if self.options.worker.maxtasksperchild is not None:
            worker.quota = self.options.worker.maxtasksperchild
        with self.lock:
            self.workers.append(worker)
            self.scheduler.add(worker)
            self.outboxes.add(channel, worker)
            self.exits.add(started, worker)
            if self.state is State.TERMINATE:
                started.kill()
            self._distribute([worker])
        logger.debug("started worker %d (%s)", worker.pid, name)
        return worker

    def tend(self, exited: Iterable[Worker]) -> float | None:
        """Account for dead workers, replace them, carry out a close, terminate, grow or shrink.

        Returns the seconds until it wants to be called again without being rung for, or None.
        """
        if self._termination_requested:
            with self.lock:
                self._stop(
                    Terminated(f"{self._termination_requested} before this job had finished")
                )
        for worker in exited:
            self._note_exit(worker)
        now = time.monotonic()
        with self.lock:
            for worker in list(self._waiting):
                if worker.channel.eof or now >= (worker.wait_until or 0.0):
                    self._waiting.remove(worker)
                    self._bury(worker)
        self._adjust()
        with self.lock:
            if self.state is not State.RUN and not self.workers:
                self._end()
                return None
        waits = [worker.wait_until - now for worker in self._waiting if worker.wait_until]
        return max(0.0, min(waits)) if waits else None

    def _note_exit(self, worker: Worker) -> None:
        with self.lock:
            if worker.exited:
                return
            worker.exited = True
            worker.exitcode = worker.process.poll()
            self.exits.discard(worker.process)
            while self._take_reports(worker):
                pass
            self._take_back(worker)
            if worker.sent and not worker.channel.eof and not worker.verdicts:
                # Something that it forked can still send the result.
                job = next(iter(worker.sent.values()))
                if job.lost_timeout > 0 and self.state is not State.TERMINATE:
                    self.scheduler.shut(worker)
                    worker.wait_until = time.monotonic() + job.lost_timeout
                    self._waiting.append(worker)
                    return
            self._bury(worker)

    def _bury(self, worker: Worker) -> None:
        """All that a dead worker will ever say has been heard: account for the rest."""
        while self._take_reports(worker):
            pass
        stack = worker.channel.stack()
        worker.process.kill_group()
        self.scheduler.remove(worker)
        self.deadlines.forget(worker)
        self.workers.remove(worker)
        for job in list(worker.sent.values()):
            job.pid = worker.pid
            error = worker.verdicts.get(job.id) or WorkerLostError(
                job.id, job.function, worker.pid, worker.exitcode, stack, worker.note
            )
            self._fail(job, error)
        self.outboxes.discard(worker.channel)
        worker.gone = True
        worker.channel.close()
        worker.process.close()
        if not worker.ready and self.state in (State.RUN, State.CLOSE):
            self._judge_failed_start(worker, stack)
        expected = worker.dismissed or worker.quota <= 0 or self.state is State.TERMINATE
        level = logging.DEBUG if expected else logging.WARNING
        logger.log(level, "worker %d %s", worker.pid, describe_exit(worker.exitcode))
        self._distribute()

    def _judge_failed_start(self, worker: Worker, stack: str) -> None:
        """A worker ended before it was ready: its successor would probably, too."""
        self._failed_starts += 1
        how = describe_exit(worker.exitcode)
        killed = worker.exitcode is not None and worker.exitcode < 0
        if killed and self._failed_starts < MAX_FAILED_STARTS:
            return
        self._break(
            f"a worker process {how} before it was ready (the {self._failed_starts}. in a row); "
            f"see its error output\n{stack}".rstrip()
        )

    def _break(self, why: str, cause: BaseException | None = None) -> None:
        if self.broken is not None:
            return
        self.broken = PoolBrokenError(f"the pool cannot start its workers: {why}")
        self.broken.__cause__ = cause
        logger.error("%s", self.broken)
        self._stop(self.broken)

    def _adjust(self) -> None:
        """Bring the number of workers to what it should be."""
        while self._lacks_workers():
            try:
                self.hire()
            except OSError as exc:
                with self.lock:
                    if not self.workers:
                        self._break(f"starting a process failed: {exc}", exc)
                logger.error("cannot start a worker process: %s", exc)
                return
        with self.lock:
            if self._is_done():
                for worker in self.workers:
                    self._dismiss(worker)
            for _ in range(self._staff() - self.processes):
                self._dismiss(min(self._hired(), key=lambda worker: len(worker.sent)))

    def _lacks_workers(self) -> bool:
        with self.lock:
            wanted = self.state in (State.RUN, State.CLOSE) and not self._is_done()
            return wanted and self._staff() < self.processes

    def _is_done(self) -> bool:
        return self.state is State.CLOSE and not self.cache and not self.feeders

    def _hired(self) -> list[Worker]:
        return [worker for worker in self.workers if not worker.dismissed and not worker.exited]

    def _staff(self) -> int:
        return len(self._hired())

    def _dismiss(self, worker: Worker) -> None:
        """Have a worker leave after the task that it runs."""
        if worker.dismissed or worker.exited:
            return
        worker.dismissed = True
        self.scheduler.shut(worker)
        self._take_back(worker)
        worker.channel.dismiss()
        self._distribute()

    def resize(self, change: int) -> None:
        with self.lock:
            self.check_running()
            if self.processes + change < 1:
                raise ValueError(
                    f"cannot shrink {self.processes} processes by {-change}: one must be left"
                )
            self.processes += change
        self.slot_free.notify()
        self.exits.bell.ring()

    def replace_all(self) -> None:
        """Have all workers leave after the tasks that they run; successors are hired."""
        with self.lock:
            self.check_running()
            for worker in list(self.workers):
                self._dismiss(worker)
        self.exits.bell.ring()

    # ---- the end

    def close(self) -> None:
        """Take no more jobs; end when all are done."""
        with self.lock:
            if self.state is State.RUN:
                self.state = State.CLOSE
        self.slot_free.notify()
        self.exits.bell.ring()

    def request_termination(self, why: str = "the pool was terminated") -> None:
        """Have the supervisor fail all jobs and kill all workers. Safe in a finalizer: no lock."""
        self._termination_requested = why
        self.exits.bell.ring()

    def terminate(self) -> None:
        """The same, and wait for the end; unless the pool's own threads, or a finalizer that
        interrupted them, ask for it: they would wait for themselves."""
        self.request_termination()
        own = any(thread.is_current for thread in self.own_threads)
        if not own and not self.lock._is_owned():  # type: ignore[attr-defined]
            self.wait_until_ended()

    def wait_until_ended(self, timeout: float | None = None) -> bool:
        return self.ended.wait(lambda: self.released, timeout)

    def _stop(self, reason: Exception) -> None:
        if self.state in (State.TERMINATE, State.ENDED):
            return
        self.state = State.TERMINATE
        self.scheduler.clear()
        for job in list(self.cache.values()):
            self._fail(job, reason)
        for feeder in self.feeders:
            feeder.abort(reason)
        for worker in self.workers:
            if not worker.exited:
                worker.process.kill()
        self.slot_free.notify()
        self.exits.bell.ring()

    def _end(self) -> None:
        if self.state is not State.ENDED:
            self.state = State.ENDED
            self._lifeline.close()

    def release(self) -> None:
        """Free the descriptors; no role uses them any more."""
        self.outboxes.close()
        self.exits.close()
        self.released = True
        self.ended.notify()

    def crash(self, reason: BaseException) -> None:
        """A role has failed, so the pool cannot go on: fail all jobs, here and now."""
        logger.critical("a thread of the pool failed", exc_info=reason)
        with self.lock:
            self._break(
                f"a thread of the pool failed with {type(reason).__name__}: {reason}", reason
            )
        for job, news in self.collect(()):
            tell_owner(job, news)

    def abandon(self) -> None:
        """The pool object was dropped. Called by its finalizer."""
        if self.state is not State.ENDED:
            self.abandoned = True
            self.request_termination("the pool object was dropped")


def tell_owner(job: Job, news: News) -> None:
    """Pass news on to whom they concern; each job has one outcome among its news."""
    if isinstance(news, Report):
        job.owner.settle(job, decode(news))
    elif isinstance(news, Outcome):
        job.owner.settle(job, news)
    elif isinstance(news, Accepted):
        job.owner.accept(job, news.pid, news.started)
    else:
        job.owner.expire(job, news.soft, news.timeout)


_dispatchers: weakref.WeakSet[Dispatcher] = weakref.WeakSet()


def _mark_copies() -> None:
    for dispatcher in list(_dispatchers):
        dispatcher.forked = True
        dispatcher.state = State.ENDED
        dispatcher.lock = threading.RLock()


os.register_at_fork(after_in_child=_mark_copies)
