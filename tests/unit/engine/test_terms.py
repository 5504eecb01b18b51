"""Retries, priorities and deadlines, with nobody to wait for: what may come at a bad moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fakes import Clock, FakePool, FakeWorker
from prefork._engine import outcomes
from prefork._engine.worker_handle import Phase
from prefork._policy.job import QUEUED, SENT, WAITING, Job
from prefork._policy.retry import Retry
from prefork._policy.terms import JobOnTerms
from prefork.errors import Cancelled, DeadlineExceeded, Terminated, WorkerLostError

Make = Callable[..., FakePool]

LATER = Retry(2, on=(KeyError, WorkerLostError), backoff=10.0, jitter=0)


@pytest.fixture
def pool(make: Make) -> FakePool:
    return make(1)


def one_running(pool: FakePool, count: int = 1, **terms: Any) -> tuple[FakeWorker, list[Job]]:
    """A worker that runs the first of so many jobs."""
    (worker,) = pool.start(1)
    jobs = pool.submit(count, **terms)
    assert worker.begin() == jobs[0].id
    return worker, jobs


# ---- retries


def test_a_job_that_has_failed_waits_and_its_worker_goes_on(pool: FakePool, clock: Clock) -> None:
    worker, (job, other) = one_running(pool, 2, retries=LATER)
    worker.fail(KeyError("own"))
    pool.collect()
    assert (job.phase, job.slot, pool.state.open_jobs.waiting) == (WAITING, None, 1)
    assert worker.waiting == [other.id]
    assert pool.timers.retries.next_due == clock.now + 10.0
    assert pool.rearmed
    clock.passes(9.9)
    pool.run_due()
    assert job.phase == WAITING
    clock.passes(0.1)
    worker.run_next()
    pool.run_due()
    pool.collect()
    assert worker.waiting == [job.id]
    assert (pool.state.open_jobs.waiting, pool.state.open_jobs.retried) == (0, 1)
    worker.run_next("at last")
    pool.collect()
    assert pool.told.value(job) == "at last"


def test_until_its_report_is_looked_at_a_job_may_be_cancelled(pool: FakePool) -> None:
    worker, (job,) = one_running(pool, retries=LATER)
    worker.fail(KeyError("own"))
    pool.collector.collect([worker.handle])  # which is not delivered yet
    assert job.phase == WAITING
    assert pool.terminator.cancel(job)
    pool.collect()
    assert isinstance(pool.told.error(job), Cancelled)
    assert (pool.state.open_jobs.waiting, pool.timers.retries.next_due) == (0, None)


def test_until_then_the_pool_may_be_terminated(pool: FakePool) -> None:
    worker, (job,) = one_running(pool, retries=LATER)
    worker.fail(KeyError("own"))
    pool.collector.collect([worker.handle])
    pool.lifecycle.stop(Terminated("the end"))
    pool.state.outcomes.deliver()
    assert isinstance(pool.told.error(job), Terminated)


def test_other_errors_are_final(pool: FakePool) -> None:
    worker, (job,) = one_running(pool, retries=LATER)
    worker.fail(ValueError("own"))
    pool.collect()
    assert isinstance(pool.told.error(job), ValueError)
    assert job.pid == worker.handle.pid
    assert (pool.state.open_jobs.failed, pool.state.open_jobs.waiting) == (1, 0)


def test_an_interrupted_look_at_the_report_fails_the_job(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(kind: int, payload: object) -> None:
        raise KeyboardInterrupt

    worker, (job,) = one_running(pool, retries=LATER)
    worker.fail(KeyError("own"))
    monkeypatch.setattr(outcomes, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.collect()
    assert isinstance(pool.told.error(job), KeyboardInterrupt)
    assert not pool.state.open_jobs.by_id


def test_without_anybody_to_wait_a_job_is_run_again_at_once(pool: FakePool) -> None:
    worker, (job,) = one_running(pool, retries=LATER)
    pool.rearm_trouble = RuntimeError("can't start new thread")
    worker.fail(KeyError("own"))
    pool.collect()
    assert worker.waiting == [job.id]
    worker.begin()
    pool.clock.passes(20.0)
    pool.run_due()  # what was noted before does no harm
    assert (job.phase, pool.state.open_jobs.waiting) == (SENT, 0)


def test_an_interrupted_submission_leaves_those_that_wait_alone(pool: FakePool) -> None:
    worker, (job,) = one_running(pool, retries=LATER)
    worker.fail(KeyError("own"))
    pool.collect()
    pool.state.scheduler.mend(pool.state.open_jobs.by_id.values())
    assert job.phase == WAITING
    assert not pool.state.scheduler.queue


# ---- priorities


def test_the_first_priority_takes_back_what_has_not_been_read(pool: FakePool) -> None:
    worker, jobs = one_running(pool, 2)
    assert worker.waiting == [jobs[1].id]
    (urgent,) = pool.submit(1, priority=-1)
    assert worker.waiting in ([], [urgent.id])
    worker.finish()
    pool.collect()
    while worker.waiting:
        worker.run_next()
        pool.collect()
    assert worker.begun == pool.ids([jobs[0], urgent, jobs[1]])


def test_idle_workers_get_what_was_taken_back(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    (job,) = pool.submit(1)
    assert worker.waiting == [job.id]  # it is about to read it
    (other,) = pool.submit(1, priority=1)
    assert worker.waiting == [job.id]
    worker.run_next()
    pool.collect()
    assert worker.waiting == [other.id]


# ---- deadlines


def test_what_is_late_when_it_would_be_handed_out_is_not(pool: FakePool, clock: Clock) -> None:
    """Though nobody has been told that the deadline has passed."""
    worker, _ = one_running(pool)
    late = pool.submit(3, deadline=5.0, priority=1)
    (other,) = pool.submit(1, priority=2)
    clock.passes(5.0)
    worker.finish()
    pool.collect()
    assert worker.waiting == [other.id]
    for each in late:
        assert isinstance(pool.told.error(each), DeadlineExceeded)
        assert pool.told.error(each).pid == 0


def test_nothing_that_is_late_is_started_while_others_are_ended(
    pool: FakePool, clock: Clock
) -> None:
    worker, (running,) = one_running(pool, deadline=5.0)
    late = pool.submit(20, deadline=5.0)
    clock.passes(5.0)
    pool.run_due()
    assert worker.handle.phase is Phase.KILLING
    pool.settle()
    assert all(pool.told.error(job).pid == 0 for job in late)
    assert pool.told.error(running).pid == worker.handle.pid
    assert pool.told.limits == [(running.id, False, 5.0)]
    assert not any(each.begun for each in pool.workers if each is not worker)


def test_one_that_finishes_at_the_moment_of_its_deadline_has_finished(
    pool: FakePool, clock: Clock
) -> None:
    worker, (job,) = one_running(pool, deadline=5.0)
    clock.passes(5.0)
    worker.finish("in time")
    pool.run_due()
    assert pool.told.value(job) == "in time"
    assert worker.handle.phase is Phase.READY
    assert worker.handle.open


def test_one_that_fails_at_that_moment_is_not_run_again(pool: FakePool, clock: Clock) -> None:
    worker, (job,) = one_running(pool, deadline=5.0, retries=Retry(5, on=KeyError))
    clock.passes(5.0)
    worker.fail(KeyError("own"))
    pool.run_due()
    pool.collect()
    assert isinstance(pool.told.error(job), KeyError)


def test_the_deadline_of_one_that_waits_comes_first(pool: FakePool, clock: Clock) -> None:
    """If nobody has looked for a while, the pause is over, too, and it is too late."""
    worker, (job,) = one_running(pool, deadline=15.0, retries=LATER)
    worker.fail(KeyError("own"))
    pool.collect()
    assert isinstance(job, JobOnTerms)
    assert job.due is not None
    (other,) = pool.submit(1)
    worker.begin()
    pool.state.scheduler.mean_seconds = 1.0  # nothing is handed out before that has ended
    clock.passes(20.0)
    pool.run_due()
    error = pool.told.error(job)
    assert isinstance(error, DeadlineExceeded)
    assert isinstance(error.__cause__, KeyError)
    assert worker.begun == [job.id, other.id]


def test_who_does_not_read_is_left_with_nothing(pool: FakePool, clock: Clock) -> None:
    (worker,) = pool.start(1)
    (job,) = pool.submit(1, deadline=5.0)
    assert worker.waiting == [job.id]
    clock.passes(5.0)
    pool.run_due()
    assert worker.waiting == []
    assert pool.told.error(job).pid == 0
    (other,) = pool.submit(1)
    assert worker.waiting == [other.id]
    assert other.phase != QUEUED
