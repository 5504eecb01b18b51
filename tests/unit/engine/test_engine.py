"""A whole pool whose workers are fakes: what the parts do together, and how it begins and ends."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from fakes import Clock, FakeChild, FakeWorker, Nursery, fork_options
from prefork import Pool
from prefork._engine.callbacks import CallbackRunner
from prefork._engine.engine import Engine, RoleClasses
from prefork._engine.loop_driver import EventLoop
from prefork._engine.state import PoolPhase
from prefork._policy.limits import Limits
from prefork._system.condition import Condition
from prefork.errors import PoolBrokenError, Terminated, WorkerLostError

MakePool = Callable[..., Pool]
CLASSES = RoleClasses(
    Pool.ResultHandler, Pool.TaskHandler, Pool.TimeoutHandler, Pool.Supervisor, CallbackRunner
)


class Sink:
    """A result that nobody looks at."""

    def __init__(self) -> None:
        self.values: list[tuple[bool, Any]] = []

    def job_added(self, job: object) -> None: ...
    def job_started(self, job: object, pid: int, time_accepted: float) -> None: ...
    def limit_passed(self, job: object, soft: bool, timeout: float) -> None: ...
    def waiters(self) -> None: ...

    def job_done(self, job: object, ok: bool, value: Any) -> None:
        self.values.append((ok, value))


class Driven:
    """An engine without threads, and its workers, which a test plays."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self.sink = Sink()
        self._clock = clock
        self._known: dict[int, FakeWorker] = {}

    def workers(self) -> list[FakeWorker]:
        for handle in self.engine.state.workers:
            if handle.pid not in self._known:
                self._known[handle.pid] = FakeWorker(handle, self._clock)
        return [self._known[handle.pid] for handle in self.engine.state.workers]

    def handle(self) -> None:
        assert isinstance(self.engine.driver, EventLoop)
        for _ in range(5):
            self.engine.driver.handle_events(0.0)

    def submit(self, **limits: Any) -> Any:
        limited = self.engine.limits.override(**limits)
        job = self.engine.factory.call(self.sink, len, ("abc",), {}, limited)
        self.engine.dispatcher.submit(job)
        return job

    def end(self) -> None:
        """Terminate it, with workers that do as they are told."""
        self.engine.supervisor.request_termination()
        self.handle()
        for worker in self.workers():
            worker.child.exit(0)
        self.handle()


@pytest.fixture
def make_engine(clock: Clock, nursery: Nursery) -> Iterator[Callable[..., Driven]]:
    made: list[Driven] = []

    def make(processes: int = 2, limits: Limits = Limits(), **options: Any) -> Driven:  # noqa: B008
        engine = Engine(fork_options(processes, **options), limits, CLASSES, threads=False)
        engine.start()
        made.append(Driven(engine, clock))
        for worker in made[-1].workers():
            worker.become_ready()
        made[-1].handle()
        return made[-1]

    yield make
    for driven in made:
        if not driven.engine.supervisor.ended:
            driven.end()
        assert driven.engine.supervisor.ended
        assert driven.engine.join(0.0)


@pytest.fixture
def pool(make_engine: Callable[..., Driven]) -> Driven:
    return make_engine()


def test_a_job_goes_through_all_parts(pool: Driven) -> None:
    job = pool.submit()
    worker = next(worker for worker in pool.workers() if worker.handle is job.slot)
    worker.run_next(3)
    pool.handle()
    assert pool.sink.values == [(True, 3)]


def test_a_death_goes_through_all_parts(pool: Driven) -> None:
    job = pool.submit()
    worker = next(worker for worker in pool.workers() if worker.handle is job.slot)
    worker.begin()
    worker.die()
    pool.handle()
    ((ok, error),) = pool.sink.values
    assert not ok
    assert isinstance(error, WorkerLostError)
    assert len(pool.workers()) == 2


def test_the_limits_of_the_pool_are_those_of_jobs_that_ask_for_none(
    make_engine: Callable[..., Driven], clock: Clock
) -> None:
    pool = make_engine(1, Limits(timeout=5.0))
    job = pool.submit()
    assert job.timeout == 5.0
    (worker,) = pool.workers()
    worker.begin()
    clock.passes(5.0)
    pool.handle()
    ((ok, error),) = pool.sink.values
    assert (ok, error.limit) == (False, 5.0)


def test_callbacks_are_called_when_events_are_handled(pool: Driven) -> None:
    called: list[int] = []
    pool.engine.call_soon(called.append, 1)
    assert called == []
    pool.handle()
    assert called == [1]


def test_it_waits_only_where_that_makes_sense(pool: Driven) -> None:
    engine = pool.engine
    assert engine.wait_for(engine.state.slot_free, lambda: True)
    assert not engine.is_busy_here()
    with engine.state.lock:
        assert engine.is_busy_here()
    with pytest.raises(ValueError, match="still running"):
        engine.join()
    assert engine.reports_starts


def test_a_closed_pool_is_joined_when_its_workers_have_left(pool: Driven) -> None:
    pool.engine.lifecycle.close()
    assert not pool.engine.join(0.0)
    pool.handle()
    for worker in pool.workers():
        worker.leave()
    pool.handle()
    assert pool.engine.join(0.0)
    assert pool.engine.state.phase is PoolPhase.ENDED


def test_a_pool_that_has_said_that_it_gives_up_can_be_joined_at_once(pool: Driven) -> None:
    state = pool.engine.state
    with state.lock:
        state.give_up(PoolBrokenError("no database"))
    assert state.phase is PoolPhase.RUN  # it is about to stop
    assert not pool.engine.join(0.0)


def test_terminating_waits_for_the_end(pool: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    job = pool.submit()
    (worker,) = [worker for worker in pool.workers() if worker.handle is job.slot]
    worker.begin()
    for other in pool.workers():
        if other is not worker:
            other.child.exit(0)
    pool.engine.terminate()
    assert pool.engine.supervisor.ended
    ((_, error),) = pool.sink.values
    assert isinstance(error, Terminated)
    pool.engine.drop()  # there is nothing left to be done


def test_a_pool_that_nobody_holds_is_terminated(pool: Driven) -> None:
    for worker in pool.workers():
        worker.child.exit(0)
    pool.engine.drop()
    assert pool.engine.supervisor.ended


def test_one_that_was_left_behind_ends_at_the_interpreters_exit(pool: Driven) -> None:
    for worker in pool.workers():
        worker.child.exit(0)
    pool.engine._at_exit()
    assert pool.engine.supervisor.ended


def test_in_a_forked_child_it_is_the_parents(pool: Driven) -> None:
    state = pool.engine.state
    phase, lock = state.phase, state.lock
    pool.engine.close_in_child()
    with pytest.raises(RuntimeError, match="belongs to the process that made it"):
        pool.engine.wait_for(state.slot_free, lambda: True)
    with pytest.raises(RuntimeError, match="belongs to the process that made it"):
        state.check_running()
    state.is_forked, state.phase, state.lock = False, phase, lock  # for what comes after the test


def test_an_input_is_read_as_there_is_room(pool: Driven) -> None:
    class Output:
        cancelled = False
        ended = False
        room = pool.engine.state.slot_free

        def has_room(self) -> bool:
            return True

        def end(self, error: BaseException | None = None) -> None:
            self.ended = True

    output = Output()
    engine = pool.engine
    items = engine.factory.items(pool.sink, len, iter(["a", "bc"]), 1, engine.limits)
    engine.feed(items, output, at_once=True)
    assert output.ended
    assert len(engine.state.open_jobs.by_id) == 2
    assert not engine.state.inputs


def test_an_input_that_cannot_be_read_is_none(pool: Driven) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    pool.engine.driver.feed = interrupt  # type: ignore[method-assign, assignment]
    items = pool.engine.factory.items(pool.sink, len, iter("a"), 1, pool.engine.limits)
    output: Any = SimpleNamespace(room=Condition())
    with pytest.raises(KeyboardInterrupt):
        pool.engine.feed(items, output)
    assert not pool.engine.state.inputs


# ---- a start that fails


class HereAndNow:
    """In the place of the thread that undoes a start."""

    def __init__(self, body: Callable[[], object], name: str) -> None:
        self.starts = 0
        self._body = body

    @property
    def is_started(self) -> bool:
        return self.starts > 0

    def start(self) -> None:
        self.starts += 1
        self._body()

    def join(self) -> bool:
        return True


@pytest.fixture
def engine(clock: Clock, nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """One that is not started."""
    monkeypatch.setattr("prefork._engine.engine.BackgroundThread", HereAndNow)
    return Engine(fork_options(2), Limits(), CLASSES, threads=False)


def test_a_start_that_fails_leaves_nothing(engine: Engine, nursery: Nursery) -> None:
    nursery.trouble = OSError("no process is left")
    with pytest.raises(OSError, match="no process is left"):
        engine.start()
    assert engine.supervisor.ended
    assert engine.state.phase is PoolPhase.ENDED
    assert all(child.is_closed for child in nursery.children)


def test_one_that_is_interrupted_when_there_are_workers_kills_them(
    engine: Engine, nursery: Nursery
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    engine.driver.start = interrupt  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        engine.start()
    assert [{*child.signals} for child in nursery.children] == [{signal.SIGKILL}] * 2
    assert all(child.is_closed for child in nursery.children)
    assert engine.supervisor.ended


def test_one_whose_undoing_is_interrupted_too_is_undone_when_it_is_dropped(
    engine: Engine, nursery: Nursery
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    engine.driver.start = interrupt  # type: ignore[method-assign, assignment]
    supervises, engine.driver.supervises = engine.driver.supervises, interrupt  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.start()
    assert not engine.supervisor.ended
    engine.driver.supervises = supervises  # type: ignore[method-assign]
    engine.drop()
    engine.drop()  # the pool has two owners
    assert engine.supervisor.ended
    assert all(child.is_closed for child in nursery.children)
    assert engine._undoing.starts == 1


def test_one_whose_undoing_gets_no_thread_is_undone_all_the_same(
    engine: Engine, nursery: Nursery
) -> None:
    def refuse() -> None:
        raise RuntimeError("can't start new thread")

    nursery.trouble = OSError("no process is left")
    engine._undoing.start = refuse  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no process is left"):
        engine.start()
    assert engine.supervisor.ended


def test_one_that_is_interrupted_at_its_very_end_is_ended_by_its_supervisor(
    engine: Engine, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = engine.driver.start

    def interrupt(roles: Any) -> None:
        start(roles)
        for child in nursery.children:
            child.exit(0)
        raise KeyboardInterrupt

    engine.driver.start = interrupt  # type: ignore[method-assign]
    engine.driver.supervises = lambda: True  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.start()
    assert engine.supervisor.ended


def test_with_threads_a_fork_waits_for_a_quiet_moment_and_other_starts_are_aside(
    clock: Clock,
) -> None:
    forking = Engine(fork_options(1), Limits(), CLASSES, threads=True)
    assert forking._pausing(threads=True) == forking.callbacks.pausing
    spawn = fork_options(1)._replace(context=multiprocessing.get_context("spawn"))
    spawning = Engine(spawn, Limits(), CLASSES, threads=True)
    assert spawning._pausing(threads=True) is nullcontext
    for engine in (forking, spawning):
        engine.supervisor.release()


# ---- the public pool


def test_a_pool_of_fakes_calls_back(clock: Clock, nursery: Nursery) -> None:
    pool = Pool(1, threads=False)
    (child,) = nursery.children
    worker = played(pool, child, clock)
    got: list[object] = []
    result = pool.apply_async(len, ("abc",), callback=got.append)
    worker.become_ready()
    worker.run_next(3)
    assert result.get(1.0) == 3
    pool.handle_events(0.0)
    assert got == [3]
    child.exit(0)
    pool.terminate()


def test_one_that_breaks_down_says_so_to_whoever_waits(clock: Clock, nursery: Nursery) -> None:
    pool = Pool(1, threads=False)
    result = pool.apply_async(len, ("abc",))
    nursery.children[0].exit(7)  # before it was ready
    with pytest.raises(PoolBrokenError, match="exited with code 7 before it was ready"):
        result.get(1.0)
    with pytest.raises(PoolBrokenError):
        pool.apply_async(len, ("abc",))
    pool.terminate()


def played(pool: Pool, child: FakeChild, clock: Clock) -> FakeWorker:
    (handle,) = [worker for worker in pool._engine.state.workers if worker.process is child]
    return FakeWorker(handle, clock)
