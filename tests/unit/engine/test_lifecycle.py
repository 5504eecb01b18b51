"""The life of a pool: closed, terminated, broken."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from fakes import FakePool, FakeReader
from prefork._engine.lifecycle import TERMINATE_SECONDS
from prefork._engine.state import PoolPhase
from prefork._engine.worker_handle import Phase
from prefork._system.log import CRITICAL, ERROR
from prefork.errors import PoolBrokenError, Terminated

Make = Callable[..., FakePool]


@pytest.fixture
def pool(make: Make) -> FakePool:
    """Two workers, ready."""
    pool = make(2)
    pool.start(2)
    return pool


def test_closing_lets_all_finish(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    pool.lifecycle.close()
    assert pool.state.phase is PoolPhase.CLOSE
    pool.worker_of(job).run_next("done")
    pool.collect()
    assert pool.told.value(job) == "done"


def test_stopping_fails_all_jobs_wherever_they_are(pool: FakePool) -> None:
    jobs = pool.submit(6)
    pool.worker_of(jobs[0]).begin()
    pool.lifecycle.stop(Terminated("over"))
    pool.state.outcomes.deliver()
    errors = [pool.told.error(job) for job in jobs]
    assert [str(error) for error in errors] == ["over"] * 6
    assert len(set(map(id, errors))) == 6
    assert not pool.state.open_jobs.by_id
    assert not pool.state.scheduler.queue


def test_what_is_done_is_done(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    pool.worker_of(job).run_next("in time")
    pool.lifecycle.stop(Terminated("over"))
    pool.state.outcomes.deliver()
    assert pool.told.value(job) == "in time"


def test_who_runs_something_is_killed_the_others_end_in_order(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    busy = pool.worker_of(job)
    (idle,) = [worker for worker in pool.workers if worker is not busy]
    busy.begin()
    pool.lifecycle.stop(Terminated("over"))
    assert busy.child.signals == [signal.SIGKILL]
    assert idle.child.signals == [signal.SIGCONT]  # one that was stopped could not leave
    assert idle.told_to_leave
    pool.supervise()
    pool.clock.passes(TERMINATE_SECONDS)
    pool.supervise()  # it has not left in time
    assert idle.child.signals[-1] == signal.SIGKILL
    pool.supervise()
    assert pool.supervisor.is_over()


def test_where_a_lost_job_ran_is_known(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    worker = pool.worker_of(job)
    began = pool.clock.now
    worker.begin()
    pool.clock.passes(1.5)
    pool.lifecycle.stop(Terminated("over"))
    assert job.pid == worker.handle.pid
    assert (job.started, job.seconds) == pytest.approx((began, 1.5))


def test_a_worker_that_is_starting_is_killed(pool: FakePool) -> None:
    (new,) = pool.start(1, ready=False)
    pool.lifecycle.stop(Terminated("over"))
    assert new.handle.phase is Phase.KILLED


def test_inputs_end_with_the_reason(pool: FakePool) -> None:
    reader = FakeReader()
    pool.dispatcher.begin_input(reader)
    pool.lifecycle.stop(Terminated("over"))
    assert isinstance(reader.reason, Terminated)
    assert str(reader.reason) == "over"


def test_it_is_stopped_once(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    pool.lifecycle.stop(Terminated("first"))
    pool.lifecycle.stop(Terminated("second"))
    pool.lifecycle.close()
    pool.state.outcomes.deliver()
    assert str(pool.told.error(job)) == "first"
    assert pool.state.phase is PoolPhase.TERMINATE


# ---- broken


def test_a_pool_that_breaks_down_tells_its_jobs_and_whoever_wants_to_know(pool: FakePool) -> None:
    told: list[PoolBrokenError] = []
    pool.lifecycle.when_broken(told.append)
    pool.lifecycle.when_broken(told.append)
    (job,) = pool.submit(1)
    pool.lifecycle.break_down("there is no way", KeyError("why"))
    pool.lifecycle.break_down("a second reason")
    pool.state.outcomes.deliver()
    error = pool.told.error(job)
    assert isinstance(error, PoolBrokenError)
    assert isinstance(error.__cause__, KeyError)
    assert pool.log.texts(ERROR) == ["there is no way"]
    assert told == []  # not here: like the callbacks of jobs
    for call, args in pool.soon:
        call(*args)
    assert [str(each) for each in told] == [str(error)] * 2
    pool.lifecycle.when_broken(told.append)
    assert [str(each) for each in told] == [str(error)] * 3


def test_who_sees_that_a_pool_is_broken_can_hand_in_no_more(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(reason: Exception) -> None:  # which what is logged before may keep waiting
        assert pool.state.phase is PoolPhase.RUN
        with pytest.raises(PoolBrokenError, match="no workers"):
            pool.state.check_running()

    monkeypatch.setattr(pool.lifecycle, "stop", stop)
    pool.lifecycle.break_down("no workers")
    assert pool.state.broken is not None


def test_a_pool_that_was_terminated_does_not_break_down(pool: FakePool) -> None:
    pool.lifecycle.stop(Terminated("over"))
    pool.lifecycle.break_down("no workers")
    assert pool.state.broken is None


def test_a_bug_in_a_role_breaks_the_pool_and_the_jobs_hear_of_it_at_once(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    bug = ZeroDivisionError("a bug")
    pool.lifecycle.crash_and_deliver(bug)
    assert pool.told.error(job).__cause__ is bug
    assert pool.log.texts(CRITICAL) == ["a thread of the pool failed"]
