"""A worker's life and a job's are tables: whatever comes in whatever order stays inside of them."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fakes import Clock, FakeChannel, FakeChild, Told
from prefork._engine import worker_handle
from prefork._engine.worker_handle import WORKER_LIFE, Phase, WorkerHandle
from prefork._ipc.wire import CALL
from prefork._policy.job import (
    JOB_LIFE,
    QUEUED,
    RESOLVED,
    SENT,
    WAITING,
    Job,
    WorkerSlot,
)
from prefork._policy.limits import NO_LIMITS, Terms
from prefork._policy.retry import Retry
from prefork._policy.terms import JobOnTerms
from prefork._system.process import Process

Arrow = Callable[[WorkerHandle], object]

ARROWS: dict[Phase, Arrow] = {
    Phase.READY: lambda worker: worker.become_ready(),
    Phase.LEAVING: lambda worker: worker.leave("enough"),
    Phase.CLOSED: lambda worker: worker.close_channel(1.0),
    Phase.KILLING: lambda worker: worker.ask_for_last_words("too long"),
    Phase.KILLED: lambda worker: worker.kill("too long"),
    Phase.EXITED: lambda worker: worker.exit(),
    Phase.REAPED: lambda worker: worker.reap(),
}
"""The methods, by the phase that they lead to."""


def new_worker() -> WorkerHandle:
    channel = FakeChannel()
    channel.open()
    context = multiprocessing.get_context("fork")
    child = FakeChild(Process, context, "w", print, (channel.take_worker_end(),))
    child.survives = set(range(1, 65))  # its end is the test's
    child.start()
    return WorkerHandle(channel, child, "w")


def close(worker: WorkerHandle) -> None:
    worker.channel.close()
    worker.process.close()


def path_to(phase: Phase) -> list[Phase]:
    """The shortest life that gets there."""
    for length in range(len(Phase)):
        for path in itertools.permutations(ARROWS, length):
            steps = [Phase.STARTING, *path]
            if steps[-1] is phase and all(
                b in WORKER_LIFE[a] for a, b in itertools.pairwise(steps)
            ):
                return list(path)
    raise AssertionError(f"nothing leads to {phase}")


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("arrow", ARROWS)
def test_each_arrow_is_one_of_the_table_or_changes_nothing(phase: Phase, arrow: Phase) -> None:
    worker = new_worker()
    for step in path_to(phase):
        ARROWS[step](worker)
    assert worker.phase is phase
    if phase is Phase.REAPED:  # as the supervisor does before
        close(worker)
    ARROWS[arrow](worker)
    assert worker.phase is (arrow if arrow in WORKER_LIFE[phase] else phase)
    close(worker)


def test_what_has_been_is_remembered() -> None:
    worker = new_worker()
    for phase in (Phase.READY, Phase.LEAVING, Phase.KILLED, Phase.EXITED):
        ARROWS[phase](worker)
    assert [phase for phase in Phase if worker.has_been(phase)] == [
        *(Phase.STARTING, Phase.READY, Phase.LEAVING, Phase.KILLED, Phase.EXITED)
    ]
    assert worker.was_killed
    close(worker)


class WorkerLife(RuleBasedStateMachine):
    """Everything may happen to a worker at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock()
        self.patch.setattr(worker_handle, "time", self.clock)
        self.worker = new_worker()
        self.before = Phase.STARTING
        assert isinstance(self.worker.channel, FakeChannel)
        assert isinstance(self.worker.process, FakeChild)
        self.channel, self.child = self.worker.channel, self.worker.process

    @rule(arrow=st.sampled_from(list(ARROWS)))
    def step(self, arrow: Phase) -> None:
        self.before = self.worker.phase
        ARROWS[arrow](self.worker)
        if self.worker.phase is not self.before:
            assert self.worker.phase is arrow
        if self.worker.phase is Phase.REAPED:
            close(self.worker)

    @rule(seconds=st.floats(0.1, 10.0))
    def leave_in_time(self, seconds: float) -> None:
        self.before = self.worker.phase
        self.worker.leave("in time", seconds)

    @rule(seconds=st.floats(0.0, 10.0))
    def time_passes(self, seconds: float) -> None:
        self.before = self.worker.phase
        self.clock.passes(seconds)

    @rule()
    def gets_a_job(self) -> None:
        self.before = self.worker.phase
        if not self.worker.sent:
            Job(Told(), "task").send_to(self.worker)

    @invariant()
    def it_stays_inside_of_the_table(self) -> None:
        phase = self.worker.phase
        assert phase is self.before or phase in WORKER_LIFE[self.before]
        assert self.worker.has_been(phase)

    @invariant()
    def it_is_told_to_leave_once(self) -> None:
        assert len(self.channel.inbox) == self.worker.has_been(Phase.LEAVING)

    @invariant()
    def who_has_ended_is_not_waited_for(self) -> None:
        if self.worker.phase is Phase.EXITED and self.before is not Phase.EXITED:
            assert self.worker.deadline is None
        if self.worker.phase in (Phase.KILLING, Phase.KILLED):
            assert self.worker.deadline is not None

    @invariant()
    def its_properties_say_the_same(self) -> None:
        worker = self.worker
        assert worker.has_exited == (worker.phase in (Phase.EXITED, Phase.REAPED))
        assert not (worker.can_work and worker.has_exited)
        assert worker.is_retiring or worker.phase in (Phase.STARTING, Phase.READY)
        assert not (worker.is_ending and worker.holds_place and worker.has_exited)
        assert not (worker.is_idle and worker.sent)
        assert repr(worker)

    def teardown(self) -> None:
        worker = self.worker
        worker.exit()
        worker.reap()
        assert worker.phase is Phase.REAPED
        close(worker)
        self.patch.undo()


TestWorkerLife = WorkerLife.TestCase
TestWorkerLife.settings = settings(max_examples=60, stateful_step_count=30)


# ---- a job


class JobLife(RuleBasedStateMachine):
    """A job through all that may happen to it, as its table allows."""

    def __init__(self) -> None:
        super().__init__()
        self.job = JobOnTerms(Told(), "task", CALL, NO_LIMITS, Terms(Retry(100, on=KeyError)))
        self.slots = [WorkerSlot(), WorkerSlot()]
        self.before = QUEUED

    def step(self, phase: int, method: Callable[..., None], *args: object) -> None:
        self.before = self.job.phase
        assert phase in JOB_LIFE[self.before]
        method(*args)
        assert self.job.phase == phase

    @precondition(lambda self: SENT in JOB_LIFE[self.job.phase])
    @rule(number=st.integers(0, 1))
    def is_sent(self, number: int) -> None:
        self.step(SENT, self.job.send_to, self.slots[number])

    @precondition(lambda self: self.job.phase == SENT)
    @rule()
    def comes_back(self) -> None:
        self.step(QUEUED, self.job.take_back)

    @precondition(lambda self: self.job.phase == SENT)
    @rule()
    def fails(self) -> None:
        self.job.note_run(42, 1.0, 2.0)
        self.step(WAITING, self.job.suspend)

    @precondition(lambda self: self.job.phase == WAITING)
    @rule()
    def is_retried(self) -> None:
        retried, error = self.job.retried(), KeyError("own")
        self.job.note_failure(error)
        assert self.job.retried() == retried + 1
        assert self.job.attempts()[-1].error is error
        assert (self.job.pid, self.job.started, self.job.seconds) == (None, 0.0, 0.0)
        self.step(QUEUED, self.job.resume)

    @precondition(lambda self: RESOLVED in JOB_LIFE[self.job.phase])
    @rule()
    def is_resolved(self) -> None:
        if self.job.slot is not None:
            self.job.slot.sent.clear()  # as its report is taken
        self.step(RESOLVED, self.job.resolve)
        assert (self.job.pickled, self.job.payload) == (b"", None)

    @rule()
    def nobody_does_anything(self) -> None:
        self.before = self.job.phase

    @invariant()
    def a_worker_has_it_while_it_is_sent(self) -> None:
        having = [slot for slot in self.slots if self.job.id in slot.sent]
        assert having == ([self.job.slot] if self.job.phase == SENT else [])
        assert (self.job.slot is None) == (self.job.phase != SENT)

    @invariant()
    def its_repr_says_where_it_is(self) -> None:
        where = ("queued", "sent to", "resolved", "waiting")[self.job.phase]
        assert where in repr(self.job)


TestJobLife = JobLife.TestCase
TestJobLife.settings = settings(max_examples=30, stateful_step_count=20)
