"""The roles, without a pool and without their threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest

from fakes import Clock, FakePool, Told
from prefork._engine import roles
from prefork._engine.callbacks import CallbackRunner
from prefork._engine.dispatcher import Wait
from prefork._engine.roles import ResultHandler, Role, Supervisor, TaskHandler, TimeoutHandler
from prefork._policy.job import Job
from prefork._system.condition import Condition
from prefork._system.log import Log
from prefork.errors import Terminated


class Thread:
    """One that a test runs, or that cannot be had."""

    made: list[Thread]
    trouble: BaseException | None
    is_current = False

    def __init__(self, body: Callable[[], None], name: str) -> None:
        self.body, self.name = body, name
        self.is_started = self.is_running = False
        self.made.append(self)

    def start(self) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.is_started = self.is_running = True

    def join(self, timeout: float | None = None) -> bool:
        if timeout is None:
            self.run()
        return not self.is_running

    def run(self) -> None:
        self.body()
        self.is_running = False


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[Thread]:
    """What the roles' threads are made of."""
    Thread.made, Thread.trouble = [], None
    monkeypatch.setattr(roles, "BackgroundThread", Thread)
    return Thread.made


class Counting(Role):
    def __init__(self) -> None:
        super().__init__()
        self.bodies = 0
        self.error: Exception | None = None
        self.on_body: Callable[[], object] = lambda: None

    def body(self) -> None:
        self.bodies += 1
        self.on_body()
        if self.error is not None:
            raise self.error


def test_a_role_runs_its_body_on_a_daemon_thread(threads: list[Thread]) -> None:
    role = Counting()
    crashes: list[BaseException] = []
    assert not role.is_started
    assert role.join(0.0)  # it never was
    role.start(crashes.append)
    (thread,) = threads
    assert thread.name == "prefork-Counting"
    assert role.is_started
    assert role.is_running
    assert not role.join(0.0)
    assert role.join()
    assert (role.bodies, crashes) == (1, [])


def test_it_is_known_by_its_thread_as_long_as_that_runs(threads: list[Thread]) -> None:
    known: set[int] = set()
    seen: list[set[int]] = []
    role = Counting()
    role.on_body = lambda: seen.append(set(known))
    role.error = KeyError("a bug")
    role.start(lambda exc: seen.append(set(known)), known)
    threads[0].run()
    assert seen == [{threading.get_ident()}, {threading.get_ident()}]
    assert known == set()


def test_what_its_body_raises_is_a_crash(threads: list[Thread]) -> None:
    role = Counting()
    role.error = KeyError("a bug")
    crashes: list[BaseException] = []
    role.start(crashes.append)
    threads[0].run()
    assert crashes == [role.error]


def test_a_role_without_a_thread_is_not_started(threads: list[Thread]) -> None:
    role = Counting()
    Thread.trouble = RuntimeError("can't start new thread")
    with pytest.raises(RuntimeError, match="new thread"):
        role.start(print)
    assert not role.is_started
    assert role.timeout() is None
    for method in (Role.handle_event, Role.body):
        with pytest.raises(NotImplementedError):
            method(role)


# ---- results


class Waited:
    """The sink of jobs that a thread waits for."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def waiters(self) -> Waited:
        return self

    def wake_threads(self) -> None:
        self.log.append("woken")


@pytest.mark.parametrize(("jobs", "expected"), [(1, ["woken", "read"]), (2, ["read"])])
def test_who_waits_for_the_only_job_is_woken_before_its_result_is_read(
    jobs: int, expected: list[str]
) -> None:
    log: list[str] = []
    sink: Any = Waited(log)
    workers: Any = ["a worker"]
    nothing: Any = None
    handler = ResultHandler(
        outqueue=nothing,
        get=lambda workers: log.append("read"),  # type: ignore[arg-type, return-value]
        cache={number: Job(sink, "print") for number in range(jobs)},
        poll=lambda timeout: workers,
        join_exited_workers=nothing,
        putlock=nothing,
    )
    handler.handle_event()
    assert log == expected


def results_of(pool: FakePool, told: list[str]) -> ResultHandler:
    return ResultHandler(
        pool.state.outboxes,
        pool.collector.collect,
        pool.state.open_jobs.by_id,
        pool.state.outboxes.ready,
        lambda: told.append("jobs have ended"),
        pool.state.slot_free,
    )


def test_results_are_read_and_delivered_and_then_it_is_told_that_jobs_have_ended(
    pool: FakePool,
) -> None:
    (worker,) = pool.start(1)
    told: list[str] = []
    handler = results_of(pool, told)
    (job,) = pool.submit(1)
    handler.handle_event()
    assert told == []
    worker.run_next("value")
    handler.handle_event()
    assert pool.told.value(job) == "value"
    assert told == ["jobs have ended"]


def test_its_thread_ends_after_what_is_left(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    handler = results_of(pool, [])
    assert handler.fileno() == pool.state.outboxes.fileno()
    (job,) = pool.submit(1)
    worker.run_next("value")
    handler.stop()
    handler.body()
    assert pool.told.value(job) == "value"


# ---- inputs


class Output:
    """Where the results of an input go."""

    def __init__(self, space: int) -> None:
        self.room = Condition()
        self.cancelled = False
        self.space = space
        self.ended: list[BaseException | None] = []

    def has_room(self) -> bool:
        return self.space > 0

    def end(self, error: BaseException | None = None) -> None:
        self.ended.append(error)


class Inputs:
    """The pool as a reader sees it: each wait gives room for one more."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.over: list[TaskHandler] = []
        self.taken: list[Job] = []
        self.wait_for: Wait = self._wait

    def _wait(
        self, condition: Condition, /, predicate: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        self.output.space += not predicate()
        assert predicate()
        return True

    def end_input(self, reader: TaskHandler, /) -> None:
        self.over.append(reader)

    def put(self, job: Job) -> None:
        self.output.space -= 1
        self.taken.append(job)


def jobs(count: int, error: BaseException | None = None) -> Generator[Job, None, None]:
    for _ in range(count):
        yield Job(Told(), "task")
    if error is not None:
        raise error


def reader(space: int, source: Generator[Job, None, None]) -> tuple[TaskHandler, Inputs]:
    output = Output(space)
    inputs = Inputs(output)
    return TaskHandler(source, inputs.put, output, inputs), inputs


def test_an_input_is_read_no_further_than_there_is_room() -> None:
    handler, inputs = reader(2, jobs(5))
    handler.handle_event()
    assert len(inputs.taken) == 2
    handler.handle_event()
    assert len(inputs.taken) == 2
    handler.body()
    assert len(inputs.taken) == 5
    assert inputs.output.ended == [None]
    assert inputs.over == [handler]
    handler.handle_event()  # it is over
    assert inputs.over == [handler]


def test_it_is_read_on_when_nobody_will_make_room() -> None:
    handler, inputs = reader(1, jobs(5))
    handler.read_on()
    handler.handle_event()
    assert len(inputs.taken) == 5


def test_what_the_input_raises_goes_to_who_reads_the_results() -> None:
    error = KeyError("the input's own")
    handler, inputs = reader(9, jobs(2, error))
    handler.handle_event()
    assert len(inputs.taken) == 2
    assert inputs.output.ended == [error]
    assert handler.error is error
    assert inputs.over == [handler]


def test_nobody_is_left_who_wants_the_results() -> None:
    handler, inputs = reader(9, jobs(5))
    assert handler.is_needed()
    inputs.output.cancelled = True
    assert not handler.is_needed()
    handler.handle_event()
    assert inputs.taken == []
    assert inputs.over == [handler]


def test_an_input_is_aborted_even_while_it_keeps_its_reader_waiting() -> None:
    handler, inputs = reader(9, jobs(5))
    reason = Terminated("over")
    handler.abort(reason)
    assert inputs.output.ended == [reason]
    handler.body()
    assert inputs.taken == []


def test_an_input_that_has_the_pool_handle_events_is_not_read_twice_at_once() -> None:
    def source() -> Generator[Job, None, None]:
        handler.handle_event()
        yield from jobs(2)

    handler, inputs = reader(9, source())
    handler.handle_event()
    assert len(inputs.taken) == 2


# ---- limits


class Due:
    """What is due when."""

    def __init__(self) -> None:
        self.due: float | None = None
        self.runs: list[float] = []

    def next_due(self) -> float | None:
        return self.due

    def run_due(self, now: float) -> None:
        self.runs.append(now)
        self.due = None


def test_it_is_called_when_something_is_due_and_not_before(clock: Clock) -> None:
    due = Due()
    handler = TimeoutHandler(due, {}, None, None)
    assert handler.timeout() is None
    handler.handle_event()
    due.due = clock.now + 2.0
    assert handler.timeout() == 2.0
    handler.handle_event()
    assert due.runs == []
    clock.passes(3.0)
    assert handler.timeout() == 0.0
    handler.handle_event()
    assert due.runs == [clock.now]


def test_its_thread_looks_again_when_that_has_changed(clock: Clock) -> None:
    due = Due()
    handler = TimeoutHandler(due, {}, None, None)

    class Rearmed:
        """Each time that the thread waits, something happens."""

        waits: list[float | None] = []  # noqa: RUF012

        def wait(self, predicate: Callable[[], bool], timeout: float | None) -> bool:
            self.waits.append(timeout)
            assert not predicate()
            if len(self.waits) == 1:
                due.due = clock.now + 1.0
                assert predicate()
            elif len(self.waits) == 2:
                clock.passes(1.0)
            else:
                handler.stop()
                assert predicate()
            return True

        def notify_all(self) -> None:
            pass

    rearmed: Any = Rearmed()
    handler._rearmed = rearmed
    handler.rearm()
    handler.body()
    assert rearmed.waits == [None, 1.0, None]
    assert due.runs == [clock.now]


# ---- workers


def test_the_supervisor_goes_on_until_all_is_over(pool: FakePool) -> None:
    role = Supervisor(pool.supervisor)
    assert role.fileno() == pool.state.exits.fileno()
    role.handle_event()
    pool.see_new()
    assert len(pool.workers) == 2
    assert role.timeout() is None
    pool.supervisor.request_termination()
    role.handle_event()
    role.body()
    assert pool.is_released
    role.handle_event()  # there is nothing left


# ---- callbacks


class Notes(Log):
    def __init__(self) -> None:
        super().__init__(in_background=False)
        self.errors: list[BaseException | None] = []

    def note(
        self, level: int, text: str, *args: object, error: BaseException | None = None
    ) -> None:
        self.errors.append(error)


def run_all(runner: CallbackRunner, how: str) -> None:
    if how == "thread":
        runner.stop()
        runner.body()
    else:
        runner.handle_event()


@pytest.mark.parametrize("how", ["thread", "loop"])
def test_callbacks_run_one_after_another_and_harm_nothing(how: str) -> None:
    called: list[Any] = []
    log = Notes()

    def on_call() -> bool:
        called.append("on call")
        return True

    runner = CallbackRunner(on_call, log)
    error = KeyError("a user's")

    def bad() -> None:
        raise error

    runner(called.append, 1)
    runner(bad)
    runner(lambda **kwargs: called.append(kwargs), soft=True)
    assert called == ["on call"] * 3
    run_all(runner, how)
    assert called[3:] == [1, {"soft": True}]
    assert log.errors == [error]


def test_when_its_thread_has_ended_who_comes_later_runs_what_it_brings() -> None:
    """As when a map of nothing is made in the moment in which the pool ends."""
    runner = CallbackRunner(lambda: True, Notes())
    run_all(runner, "thread")
    called: list[int] = []
    assert runner(called.append, 1)
    assert called == [1]


def test_a_fork_waits_for_the_callback_that_is_running() -> None:
    order: list[str] = []
    runner = CallbackRunner(lambda: True, Notes())

    def callback() -> None:
        with runner.pausing(0.0):  # nobody waits longer than that
            order.append("a fork, though it runs")

    runner(callback)
    run_all(runner, "thread")
    with runner.pausing(0.0):
        order.append("a fork in between")
    assert order == ["a fork, though it runs", "a fork in between"]
