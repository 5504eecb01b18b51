"""Starts of workers: those that work, those that fail, and when a pool gives up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fakes import FakeChild, FakePool, Nursery
from prefork._engine.spawner import FIRST_PAUSE, LONGEST_PAUSE
from prefork._engine.worker_handle import GIVE_UP_SECONDS, WorkerHandle
from prefork._ipc.outcome import encode_failure
from prefork._ipc.pickling import dumps
from prefork._ipc.wire import Kind
from prefork._system.log import ERROR
from prefork.errors import Terminated

Make = Callable[..., FakePool]


# ---- starts


def test_all_are_prepared_before_the_first_fork_and_looked_after_after_the_last(
    make: Make, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    @contextlib.contextmanager
    def pausing(seconds: float) -> Iterator[None]:
        steps.append("quiet")
        yield
        steps.append("over")

    pool = make(2, pausing=pausing)
    add = pool.dispatcher.add_worker

    def noted(worker: WorkerHandle) -> None:
        steps.append(worker.name)
        add(worker)

    monkeypatch.setattr(pool.dispatcher, "add_worker", noted)
    pool.spawner.spawn(2)
    assert steps[:2] == ["quiet", "over"]
    assert sorted(steps[2:]) == ["PreforkWorker-1", "PreforkWorker-2"]
    assert [child.index for child in nursery.children] == [0, 1]
    assert all(channel.is_open for channel in nursery.channels)
    assert [len(channel.ends) for channel in nursery.channels] == [1, 1]  # the child's alone


def test_each_worker_knows_what_it_may_do(make: Make, nursery: Nursery) -> None:
    pool = make(1, max_tasks=7, max_memory=1000, tasks_jitter=3)
    pool.spawner.spawn(20)
    quotas = {worker.quota for worker in pool.state.workers}
    assert quotas <= {4, 5, 6, 7}
    for worker in pool.state.workers:
        assert isinstance(worker.process, FakeChild)
        assert worker.process.args[1] == worker.quota


def test_the_first_ones_raise_what_keeps_one_from_it(make: Make, nursery: Nursery) -> None:
    pool = make(2)
    nursery.trouble = OSError("no process is left")
    with pytest.raises(OSError, match="no process is left"):
        pool.spawner.spawn_first()
    assert pool.state.workers == []
    assert all(child.is_closed for child in nursery.children)
    assert all(channel.is_closed for channel in nursery.channels)


def test_of_several_those_that_cannot_be_started_leave_nothing(
    make: Make, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(3)
    children = iter([None, OSError("no process is left"), None])
    make_child = nursery.child

    def child(*args: object) -> object:
        nursery.trouble = next(children)
        return make_child(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("prefork._engine.starts.Child", child)
    with pytest.raises(OSError, match="no process is left"):
        pool.spawner.spawn(3)
    assert pool.state.workers == []
    assert all(child.is_closed for child in nursery.children)
    assert nursery.children[0].exitcode is not None  # had been started


def test_a_channel_for_which_no_child_can_be_made_is_closed(
    make: Make, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(1)

    def child(*args: object) -> None:
        raise OSError("no descriptor is left")

    monkeypatch.setattr("prefork._engine.starts.Child", child)
    with pytest.raises(OSError, match="no descriptor is left"):
        pool.spawner.spawn(1)
    (channel,) = nursery.channels
    assert channel.is_closed
    assert channel.ends == []


def test_an_interrupted_start_is_the_pools_or_leaves_nothing(
    make: Make, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(1)

    def interrupt(worker: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pool.dispatcher, "add_worker", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pool.spawner.spawn(1)
    assert pool.state.workers == []
    (child,) = nursery.children
    assert child.is_closed
    monkeypatch.undo()


# ---- none can be started


def test_a_pool_that_cannot_replace_workers_goes_on_with_those_that_work(
    make: Make, nursery: Nursery
) -> None:
    pool = make(2, max_restarts=0)
    one, two = pool.start(2)
    nursery.trouble = OSError("no process is left")
    one.die()
    assert pool.supervise() == LONGEST_PAUSE
    assert pool.state.broken is None
    assert any("goes on with the workers that it has" in text for text in pool.log.texts(ERROR))
    (job,) = pool.submit(1)
    two.run_next("done")
    pool.collect()
    assert pool.told.value(job) == "done"
    nursery.trouble = None
    pool.supervise()
    assert len(pool.state.workers) == 1  # not before the pause is over
    pool.clock.passes(LONGEST_PAUSE)
    pool.supervise()
    assert len(pool.state.workers) == 2


def test_one_that_has_none_left_gives_up(make: Make, nursery: Nursery) -> None:
    pool = make(1, max_restarts=0)
    (worker,) = pool.start(1)
    nursery.trouble = OSError("no process is left")
    pool.submit(1)
    worker.die()
    pool.supervise()
    assert "cannot start a worker process: OSError: no process is left" in str(pool.state.broken)


def test_what_the_system_lacks_for_a_moment_breaks_no_pool_that_has_worked(
    make: Make, nursery: Nursery
) -> None:
    pool = make(1, max_restarts=4)
    (worker,) = pool.start(1)
    (job,) = pool.submit(1)
    nursery.trouble = OSError("no descriptor is left")
    worker.die()
    for pause in (FIRST_PAUSE, 2 * FIRST_PAUSE):
        assert pool.supervise() == pytest.approx(pause)
        assert pool.state.broken is None
        pool.clock.passes(pause)
    nursery.trouble = None
    pool.supervise()
    successor = pool.workers[-1]
    successor.become_ready()
    successor.run_next("done")
    pool.collect()
    assert pool.told.value(job) == "done"


def test_one_whose_next_worker_is_just_starting_waits_for_that(
    make: Make, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(2, max_restarts=0)
    for worker in pool.start(2):
        worker.die()
    (job,) = pool.submit(1)
    make_child = nursery.child

    def one_child(*args: Any) -> object:
        child = make_child(*args)
        nursery.trouble = OSError("no process is left")
        return child

    monkeypatch.setattr("prefork._engine.starts.Child", one_child)
    assert pool.supervise() == LONGEST_PAUSE
    assert pool.state.broken is None
    starting = pool.workers[-1]
    starting.become_ready()
    starting.run_next("done")
    pool.collect()
    assert pool.told.value(job) == "done"
    starting.die()
    pool.supervise()
    pool.clock.passes(LONGEST_PAUSE)
    pool.supervise()
    assert "no process is left" in str(pool.state.broken)


def test_a_fork_server_that_has_died_is_tried_again(make: Make, nursery: Nursery) -> None:
    pool = make(1, max_restarts=3)
    nursery.trouble = EOFError()
    wait = pool.supervise()
    assert wait is not None
    assert wait == pytest.approx(FIRST_PAUSE)
    assert (len(nursery.children), pool.state.broken) == (3, None)
    pool.clock.passes(wait)
    pool.supervise()
    assert len(nursery.children) == 4
    assert "cannot start a worker process: EOFError" in str(pool.state.broken)


# ---- starts that fail


def broken_start(pool: FakePool, error: BaseException) -> None:
    """The newest worker reports that its initializer has failed, and ends."""
    worker = pool.workers[-1]
    worker.say(Kind.BROKEN, payload=dumps(encode_failure(error)))
    pool.collect()


def test_an_initializer_that_never_worked_breaks_the_pool_at_once(make: Make) -> None:
    pool = make(2)
    pool.start(2, ready=False)
    (job,) = pool.submit(1)
    broken_start(pool, KeyError("no such table"))
    pool.supervise()
    assert "the initializer failed in a worker: KeyError: 'no such table'" in str(pool.state.broken)
    assert isinstance(pool.told.error(job).__cause__, KeyError)


def test_one_that_has_worked_before_is_tried_again(make: Make) -> None:
    pool = make(1, max_restarts=1)
    (worker,) = pool.start(1)
    worker.die()
    pool.supervise()
    for attempt in (1, 2):
        assert pool.state.broken is None
        broken_start(pool, KeyError(attempt))
        pool.workers[-1].die(1)
        pool.supervise()
    assert "failed starts in a row: 2" in str(pool.state.broken)
    assert "the initializer failed: KeyError: 2" in str(pool.state.broken)


@pytest.mark.parametrize(
    ("code", "how"),
    [(0, "exited with code 0 before it was ready"), (7, "exited with code 7 before it was ready")],
)
def test_an_initializer_that_exits_breaks_the_pool_if_none_has_ever_worked(
    make: Make, code: int, how: str
) -> None:
    pool = make(1)
    (worker,) = pool.start(1, ready=False)
    worker.die(code)
    pool.supervise()
    assert how in str(pool.state.broken)


def test_a_start_that_was_killed_is_tried_again_with_growing_pauses(make: Make) -> None:
    pool = make(1, max_restarts=5)
    pool.start(1, ready=False)
    pauses = []
    for _ in range(5):
        pool.workers[-1].die()
        wait = pool.supervise()
        assert pool.state.broken is None
        if wait is not None:
            pauses.append(wait)
            pool.clock.passes(wait)
            pool.supervise()
    assert pauses == [pytest.approx(FIRST_PAUSE * 2**n) for n in range(3)]
    pool.workers[-1].die()
    pool.supervise()
    assert "was killed by SIGKILL before it was ready; failed starts in a row: 6" in str(
        pool.state.broken
    )


def test_a_good_start_forgives_those_before(make: Make) -> None:
    pool = make(1, max_restarts=1)
    pool.start(1)
    for _ in range(5):
        pool.workers[-1].die()
        pool.supervise()
        pool.workers[-1].die()  # before it was ready
        pool.supervise()
        assert pool.state.broken is None
        pool.workers[-1].become_ready()
        pool.collect()


def test_a_failed_start_does_not_harm_those_that_work(make: Make) -> None:
    pool = make(2, max_restarts=0)
    _, two = pool.start(2)
    two.die()
    pool.supervise()
    pool.workers[-1].die(1)
    pool.supervise()
    assert pool.state.broken is None
    assert "goes on with the workers that it has" in pool.log.texts(ERROR)[-1]


# ---- in the background, as with `spawn`


class LaterThread:
    """A thread that runs when a test says so."""

    pending: list[LaterThread]

    def __init__(self, body: Callable[[], None], name: str) -> None:
        self.run = body

    def start(self) -> None:
        self.pending.append(self)


class LaterCondition:
    """Who waits for it runs what is pending."""

    def wait(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        while LaterThread.pending and not predicate():
            LaterThread.pending.pop().run()
        return predicate()

    def notify_all(self) -> None:
        pass


@pytest.fixture
def pending(monkeypatch: pytest.MonkeyPatch) -> list[LaterThread]:
    """The starts that are under way, to be run."""
    LaterThread.pending = []
    monkeypatch.setattr("prefork._engine.starts.BackgroundThread", LaterThread)
    monkeypatch.setattr("prefork._engine.starts.Condition", LaterCondition)
    return LaterThread.pending


def test_a_start_in_the_background_is_not_waited_for(
    make: Make, pending: list[LaterThread]
) -> None:
    pool = make(2, in_background=True, start_timeout=60.0)
    pool.spawner.spawn_first()
    for worker in pool.see_new():
        worker.become_ready()
    pool.collect()
    pool.workers[0].die()
    assert pool.supervise() == 60.0
    assert len(pool.state.workers) == 1
    assert len(pending) == 1
    pool.supervise()
    assert len(pending) == 1  # one at a time
    pending.pop().run()
    pool.supervise()
    assert len(pool.state.workers) == 2


def test_the_first_ones_are_waited_for_at_most_so_long(
    make: Make, pending: list[LaterThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(2, in_background=True, start_timeout=60.0)
    monkeypatch.setattr(LaterCondition, "wait", lambda self, predicate, timeout: predicate())
    with pytest.raises(TimeoutError, match="could be started within 60 s"):
        pool.spawner.spawn_first()


def test_what_a_start_in_the_background_raises_is_judged(
    make: Make, nursery: Nursery, pending: list[LaterThread]
) -> None:
    pool = make(1, in_background=True)
    nursery.trouble = OSError("no process is left")
    with pytest.raises(OSError, match="no process is left"):
        pool.spawner.spawn_first()
    pool.supervise()
    pending.pop().run()
    pool.supervise()
    assert "no process is left" in str(pool.state.broken)


def test_a_start_that_hangs_breaks_a_pool_that_has_no_workers(
    make: Make, pending: list[LaterThread]
) -> None:
    pool = make(1, in_background=True, start_timeout=60.0)
    pool.supervise()
    assert len(pending) == 1
    pool.clock.passes(59.0)
    pool.supervise()
    assert pool.state.broken is None
    pool.clock.passes(1.0)
    pool.supervise()
    assert "no worker process could be started within 60 s" in str(pool.state.broken)


def test_the_end_waits_for_a_start_but_not_for_ever(make: Make, pending: list[LaterThread]) -> None:
    pool = make(1, in_background=True, start_timeout=60.0)
    pool.supervise()
    pool.lifecycle.stop(Terminated("over"))
    pool.supervise()
    assert not pool.supervisor.is_over()
    assert pool.supervise() == GIVE_UP_SECONDS
    pool.clock.passes(GIVE_UP_SECONDS)
    pool.supervise()
    assert pool.supervisor.is_over()
    pending.pop().run()  # it comes too late
    assert pool.state.workers == []
    (child,) = pool.nursery.children
    assert child.is_closed
