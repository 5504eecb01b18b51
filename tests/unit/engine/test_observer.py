"""What can be seen of a running pool."""

from __future__ import annotations

import signal

import pytest

from fakes import STACK, FakePool
from prefork._engine import observer
from prefork._system.stacks import LAST_WORDS, LOOK
from prefork.statistics import WorkerState


def test_statistics_count_jobs_and_tell_of_each_worker(pool: FakePool) -> None:
    a, b = pool.start(2)
    jobs = pool.submit(5)
    began = pool.clock.now
    worker = pool.worker_of(jobs[0])
    other = b if worker is a else a
    running = worker.begin()
    other.run_next()
    pool.collect()
    seen = pool.observer.statistics()
    assert (seen.processes, seen.queued, seen.running) == (2, 3, 1)
    assert (seen.finished, seen.failed, seen.retried) == (1, 0, 0)
    (busy,) = [one for one in seen.workers if one.pid == worker.handle.pid]
    assert (busy.state, busy.job, busy.function) == (WorkerState.BUSY, running, "fakes.task")
    assert busy.since == pytest.approx(began)
    assert (busy.tasks, busy.memory) == (0, None)
    (idle,) = [one for one in seen.workers if one.pid == other.handle.pid]
    assert (idle.state, idle.job, idle.since, idle.tasks) == (WorkerState.IDLE, None, None, 1)


def test_a_worker_shows_what_it_does(pool: FakePool) -> None:
    (worker,) = pool.start(1, ready=False)
    name = f"{worker.handle.name} {worker.handle.pid}"
    assert repr(worker.handle) == f"<{name}: starting>"
    worker.become_ready()
    pool.collect()
    assert repr(worker.handle) == f"<{name}: idle>"
    pool.submit(1)
    job = worker.begin()
    assert repr(worker.handle) == f"<{name}: busy, runs job {job} (fakes.task)>"


def test_statistics_tell_of_those_that_have_ended(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    worker.die(7)
    pool.supervise()
    (end,) = pool.observer.statistics().exits
    assert (end.pid, end.exitcode) == (worker.handle.pid, 7)


def test_a_worker_says_in_its_repr_what_it_does(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    pid = worker.handle.pid
    assert repr(worker.handle) == f"<PreforkWorker-1 {pid}: idle>"
    (job,) = pool.submit(1)
    worker.begin()
    assert repr(worker.handle) == f"<PreforkWorker-1 {pid}: busy, runs job {job.id} (fakes.task)>"


def test_each_worker_tells_its_stack_or_why_not(pool: FakePool) -> None:
    running, starting, stopped, dead, deaf = pool.start(5)
    starting.child.catches = lambda signum: False  # type: ignore[method-assign]
    starting.handle.ready = False
    stopped.child.stopped = True
    dead.handle.exit()
    assert LOOK is not None
    deaf.child.survives = {LOOK}
    seen = pool.observer.stacks()
    assert seen == {
        running.handle.pid: STACK,
        starting.handle.pid: "(it is starting)",
        stopped.handle.pid: "(it is stopped)",
        dead.handle.pid: "(it has ended)",
        deaf.handle.pid: "(it does not take signals)",
    }
    assert running.child.signals == [LOOK]
    assert LAST_WORDS not in running.child.signals


def test_one_that_is_reaped_meanwhile_has_ended(pool: FakePool) -> None:
    (worker,) = pool.start(1)

    def handled(signum: int) -> bool:
        worker.die(-signal.SIGKILL)
        pool.supervise()
        return True

    worker.child.has_handled = handled  # type: ignore[method-assign]
    assert pool.observer.stacks() == {worker.handle.pid: "(it has ended)"}


def test_where_there_is_no_signal_for_it(pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    (worker,) = pool.start(1)
    monkeypatch.setattr(observer, "LOOK", None)
    assert pool.observer.stacks() == {
        worker.handle.pid: "(this system has no signal for it)",
    }
