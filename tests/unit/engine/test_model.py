"""All that can happen to jobs and workers, in any order, with nobody to wait for: each job resolves
exactly once, none is started more often than it may be, and only the guilty fail."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fakes import TIMED, Clock, FakePool, FakeWorker, Nursery, fork_options, limits_of
from prefork._engine.worker_handle import Phase
from prefork._ipc.wire import ACCEPT, LEAVE, Kind
from prefork._policy.job import JOB_LIFE, QUEUED, SENT, WAITING, Job
from prefork._policy.limits import NO_TERMS
from prefork._policy.retry import Retry
from prefork._policy.terms import JobOnTerms
from prefork._system.stacks import LAST_WORDS
from prefork.errors import (
    DeadlineExceeded,
    PoolBrokenError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)

numbers = st.integers(0, 1000)
errors = st.sampled_from([(WorkerLostError,), (WorkerLostError, KeyError), (TimeLimitExceeded,)])


def retrying(times: int, on: tuple[type[BaseException], ...], backoff: float) -> Retry:
    return Retry(times, on, backoff)


retries = st.builds(retrying, st.integers(1, 3), errors, st.sampled_from([0.0, 1.0]))


class WatchedJob(JobOnTerms):
    """One that never leaves its table."""

    __slots__ = ("_phase",)

    @property
    def phase(self) -> int:
        return self._phase

    @phase.setter
    def phase(self, phase: int) -> None:
        before = getattr(self, "_phase", None)
        assert before is None or phase in JOB_LIFE[before], f"job {self.id}: {before} to {phase}"
        self._phase = phase


class Model(RuleBasedStateMachine):
    """A pool of two workers on fakes, and all that may be done to it."""

    max_tasks: int | None = None
    accept_delay: float | None = None

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock()
        for name in TIMED:
            self.patch.setattr(f"prefork._engine.{name}.time", self.clock)
        self.nursery = Nursery()
        self.patch.setattr("prefork._engine.starts.Channel", self.nursery.channel)
        self.patch.setattr("prefork._engine.starts.Child", self.nursery.child)
        self.patch.setattr("prefork._engine.state._CHECKS", True)
        options = fork_options(
            2, start_timeout=600.0, max_tasks=self.max_tasks, accept_delay=self.accept_delay
        )
        self.pool = FakePool(self.clock, self.nursery, options)
        self.pool.start(2)
        self.ready = set(self.pool.workers)
        self.jobs: dict[int, Job] = {}
        self.may_start: dict[int, int] = {}  # how often, by job
        self.wished_away: set[int] = set()  # jobs that were to be cancelled or terminated
        self.corrupted: set[int] = set()  # workers whose channel was written into
        self.could_not_send = False

    # ---- what callers do

    @rule(
        count=st.integers(1, 4),
        retries=st.integers(0, 1) | retries,
        priority=st.sampled_from([None, -1, 0, 1]),
        deadline=st.sampled_from([None, 2.0]),
        soft=st.sampled_from([None, 1.0]),
        hard=st.sampled_from([None, 3.0]),
        tells=st.booleans(),
        lost=st.sampled_from([0.0, 5.0]),
    )
    def submit(
        self,
        count: int,
        retries: int | Retry,
        priority: int | None,
        deadline: float | None,
        soft: float | None,
        hard: float | None,
        tells: bool,
        lost: float,
    ) -> None:
        """`tells`: its start is to be told."""
        flags = ACCEPT if tells and self.accept_delay is None else 0
        for _ in range(count):
            limits = limits_of(
                retries,
                priority,
                deadline,
                timeout=hard,
                soft_timeout=soft,
                lost_worker_timeout=lost,
            )
            terms = limits.terms or NO_TERMS
            job = WatchedJob(self.pool.told, "fakes.task", flags, limits, terms)
            job.pickled = b"a call"
            job.start_unreported = tells and self.accept_delay is not None
            self.jobs[job.id] = job
            self.may_start[job.id] = 1 + job.left
            try:
                self.pool.dispatcher.submit(job)
            except PoolBrokenError:
                del self.jobs[job.id]

    @precondition(lambda self: self.jobs)
    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        job = self.pick(list(self.jobs.values()), number)
        has_begun = self.starts(job.id)
        if self.pool.terminator.cancel(job):
            assert not has_begun or job.retried() or job.phase == WAITING
            self.wished_away.add(job.id)

    @precondition(lambda self: self.jobs)
    @rule(number=numbers, signum=st.sampled_from([None, signal.SIGTERM, signal.SIGKILL]))
    def terminate(self, number: int, signum: int | None) -> None:
        job = self.pick(list(self.jobs.values()), number)
        if self.pool.terminator.terminate(job, signum):
            self.wished_away.add(job.id)

    @rule(change=st.sampled_from([-1, 1]))
    def resize(self, change: int) -> None:
        if 1 <= self.pool.supervisor.processes + change <= 4 and self.pool.state.broken is None:
            self.pool.supervisor.resize(change)

    @rule()
    def replace_all(self) -> None:
        if self.pool.state.broken is None:
            self.pool.supervisor.replace_all()

    # ---- what workers do

    def alive(self) -> list[FakeWorker]:
        return [worker for worker in self.pool.workers if worker.child.exitcode is None]

    def running(self) -> list[FakeWorker]:
        """Those that run a job, and can still say something."""
        return [worker for worker in self.alive() if worker.job and not worker.end.closed]

    @precondition(lambda self: self.alive())
    @rule(number=numbers)
    def work(self, number: int) -> None:
        """A worker does what comes next: it is ready, or reads, or finishes."""
        self.do_next(self.pick(self.alive(), number))

    @precondition(lambda self: self.alive())
    @rule(number=numbers, count=st.integers(2, 6))
    def work_on(self, number: int, count: int) -> None:
        """One after another, faster than its reports are read."""
        worker = self.pick(self.alive(), number)
        for _ in range(count):
            if worker.child.exitcode is None:
                self.do_next(worker)

    def do_next(self, worker: FakeWorker) -> None:
        if worker.end.closed:
            worker.child.exit(0)
        elif worker not in self.ready:
            worker.become_ready()
            self.ready.add(worker)
        elif worker.job:
            worker.finish("done")
        elif len(worker.begun) == self.max_tasks:
            worker.child.exit(0)
        elif worker.channel.inbox and worker.channel.inbox[0][-1] & LEAVE:
            worker.leave()
        elif worker.channel.inbox:
            job = worker.begin()
            assert self.starts(job) <= self.may_start[job], f"job {job} is started again"
            if worker.end.channel.staged and self.jobs[job].flags & ACCEPT:
                worker.say(Kind.ACCEPTED, job)

    @precondition(lambda self: self.running())
    @rule(number=numbers)
    def fail(self, number: int) -> None:
        self.pick(self.running(), number).fail(KeyError("own"))

    @precondition(lambda self: self.alive())
    @rule(number=numbers, code=st.sampled_from([-9, -11, 0, 3]), heir=st.booleans())
    def die(self, number: int, code: int, heir: bool) -> None:
        self.pick(self.alive(), number).die(code, heir)

    @precondition(lambda self: self.running())
    @rule(number=numbers)
    def exit_in_a_task(self, number: int) -> None:
        worker = self.pick(self.running(), number)
        worker.say_exit(3, "sys.exit")
        worker.end.close()

    @precondition(lambda self: self.running())
    @rule(number=numbers)
    def write_into_the_channel(self, number: int) -> None:
        """A job that does so fails, and the one that its worker dies with later does, too."""
        worker = self.pick(self.running(), number)
        worker.say(Kind.CORRUPTED)
        self.corrupted.add(worker.handle.pid)

    @precondition(lambda self: self.running())
    @rule(number=numbers)
    def close_the_channel(self, number: int) -> None:
        self.pick(self.running(), number).end.close()

    @precondition(lambda self: self.alive())
    @rule(number=numbers, signals=st.sampled_from([set(), {LAST_WORDS}, {LAST_WORDS, 9}]))
    def survive(self, number: int, signals: set[int]) -> None:
        self.pick(self.alive(), number).child.survives = set(signals)

    def heirs(self) -> list[FakeWorker]:
        """Dead ones whose channel is held by something that they forked."""
        return [
            w
            for w in self.pool.workers
            if w.child.exitcode is not None and not w.end.closed and not w.channel.is_closed
        ]

    @precondition(lambda self: self.heirs())
    @rule(number=numbers, reports=st.booleans())
    def heir_ends(self, number: int, reports: bool) -> None:
        worker = self.pick(self.heirs(), number)
        if reports and worker.job:
            worker.finish("from an heir")
        worker.end.close()

    # ---- what the machine does

    @rule(number=numbers, room=st.sampled_from([1, 3, 100]), pickles=st.sampled_from([1, 3, 100]))
    def make_room(self, number: int, room: int, pickles: int) -> None:
        channel = self.pick(self.pool.workers, number).channel
        channel.room, channel.pickles = room, pickles

    @rule(number=numbers, trouble=st.booleans())
    def lack_descriptors(self, number: int, trouble: bool) -> None:
        channel = self.pick(self.pool.workers, number).channel
        channel.trouble = OSError("no descriptor is left") if trouble else None
        self.could_not_send |= trouble

    @rule(trouble=st.booleans())
    def lack_processes(self, trouble: bool) -> None:
        self.nursery.trouble = OSError("no process is left") if trouble else None

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.0, 2.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.passes(seconds)

    # ---- what the pool does

    @rule()
    def collect(self) -> None:
        self.pool.collect()

    @rule(number=numbers)
    def collect_from_one(self, number: int) -> None:
        self.pool.collector.collect([self.pick(self.pool.workers, number).handle]).deliver()

    @rule()
    def supervise(self) -> None:
        self.pool.supervise()

    @rule()
    def settle(self) -> None:
        self.pool.settle()

    @rule()
    def run_due(self) -> None:
        self.pool.run_due()

    # ---- what must hold

    @staticmethod
    def pick(things: list[Any], number: int) -> Any:
        return things[number % len(things)]

    def starts(self, job: int) -> int:
        return sum(worker.begun.count(job) for worker in self.pool.workers)

    @invariant()
    def a_job_is_in_one_place(self) -> None:
        state = self.pool.state
        queued = [job for job in state.scheduler.queue if job.id in state.open_jobs.by_id]
        assert len(queued) == len(set(queued))
        assert all(job.phase == QUEUED for job in queued)
        sent = [job for worker in state.workers for job in worker.sent.values()]
        assert len(sent) == len(set(sent))
        assert all(job.phase == SENT for job in sent)
        waiting = [job for job in state.open_jobs.by_id.values() if job.phase == WAITING]
        assert len(waiting) == state.open_jobs.waiting
        assert {*queued, *sent, *waiting} == {*state.open_jobs.by_id.values()}
        for job in waiting:
            assert isinstance(job, JobOnTerms)
            assert job.due is not None or state.outcomes, "nobody will run it"

    @invariant()
    def the_most_urgent_is_first(self) -> None:
        queue = self.pool.state.scheduler.queue
        assert not queue or queue[0].priority() == min(job.priority() for job in queue)

    @invariant()
    def what_is_reaped_is_closed(self) -> None:
        for worker in self.pool.workers:
            assert worker.channel.is_closed == (worker.handle.phase is Phase.REAPED)
            assert worker.child.is_closed == (worker.handle.phase is Phase.REAPED)

    def check_outcomes(self) -> None:
        told = self.pool.told
        assert told.done.keys() == self.jobs.keys()
        told_of = [job for job, _, _ in told.started]
        again = any(job.retried() for job in self.jobs.values())
        assert len(told_of) == len(set(told_of)) or again
        lost_by: list[int] = []
        for number, (ok, value) in told.done.items():
            job = self.jobs[number]
            assert self.starts(number) <= self.may_start[number]
            if ok:
                assert value in ("done", "from an heir")
                assert self.starts(number)
            elif isinstance(value, WorkerLostError):
                (worker,) = [w for w in self.pool.workers if w.handle.pid == value.pid]
                assert number in worker.begun, "an innocent job was lost"
                if value.pid not in self.corrupted:
                    lost_by.append(value.pid)
            elif isinstance(value, TimeLimitExceeded):
                assert job.timeout is not None
                assert self.starts(number)
            elif isinstance(value, DeadlineExceeded):
                assert self.clock.now >= value.limit
                assert bool(self.starts(number)) or not value.pid
                assert value.pid or not self.starts(number) or job.retried()
            elif isinstance(value, Terminated):
                assert number in self.wished_away
            elif isinstance(value, OSError):
                assert self.could_not_send
                assert not self.starts(number) or job.retried()
            elif isinstance(value, PoolBrokenError):
                assert self.pool.state.broken is not None
            else:
                assert isinstance(value, KeyError)
        assert len(lost_by) == len(set(lost_by)), "one death has cost two jobs"

    def teardown(self) -> None:
        try:
            self.come_to_an_end()
        finally:
            self.pool.close()
            self.nursery.close()
            self.patch.undo()

    def come_to_an_end(self) -> None:
        """From now on nothing goes wrong, and the pool is closed: it ends, and all is told."""
        pool = self.pool
        self.nursery.trouble = None
        if pool.state.broken is None:
            pool.lifecycle.close()
        for _ in range(500):
            for worker in pool.workers:
                worker.child.survives = set()
                worker.channel.trouble = None
                worker.channel.room = worker.channel.pickles = 100
                if worker.child.exitcode is None:
                    self.do_next(worker)
                elif not worker.channel.is_closed:
                    worker.end.close()
            pool.collect()
            self.clock.passes(0.5)
            pool.run_due()
            pool.supervise()
            self.a_job_is_in_one_place()
            if pool.supervisor.is_over():
                break
        else:
            raise AssertionError(f"it does not end: {pool.state.workers}, {pool.told.done}")
        pool.supervisor.release()
        assert pool.is_released
        self.check_outcomes()
        assert all(child.is_closed for child in self.nursery.children)
        assert all(channel.is_closed for channel in self.nursery.channels)


class RecyclingModel(Model):
    """One whose workers leave after some tasks, and that looks for starts itself."""

    max_tasks = 3
    accept_delay = 0.01


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=50, stateful_step_count=40)
TestRecyclingModel = RecyclingModel.TestCase
TestRecyclingModel.settings = settings(max_examples=50, stateful_step_count=40)
