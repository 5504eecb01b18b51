"""What workers report, and what becomes of a job whose worker is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from fakes import STACK, FakePool, FakeWorker
from prefork._engine.worker_handle import Phase
from prefork._ipc.outcome import encode_reason, encode_result
from prefork._ipc.page import Page
from prefork._ipc.pickling import dumps
from prefork._ipc.wire import EACH, Kind
from prefork._policy.job import QUEUED, RESOLVED, Job
from prefork.errors import MaybeDecodingError, Terminated, WorkerLostError
from prefork.statistics import WorkerState

Make = Callable[..., FakePool]


@pytest.fixture
def pool(make: Make) -> FakePool:
    """One that wants one worker, so that a dead one has one successor."""
    return make(1)


def one_running(pool: FakePool, count: int = 1, **limits: object) -> tuple[FakeWorker, list[Job]]:
    """A worker that runs the first of so many jobs."""
    (worker,) = pool.start(1)
    jobs = pool.submit(count, **limits)
    assert worker.begin() == jobs[0].id
    return worker, jobs


# ---- outcomes


def test_a_result_is_told_and_what_its_job_consisted_of_is_let_go(pool: FakePool) -> None:
    worker, (job,) = one_running(pool)
    began = pool.clock.now
    pool.clock.passes(0.5)
    worker.finish("value", seconds=0.5)
    pool.collect()
    assert pool.told.value(job) == "value"
    assert (job.phase, job.pickled, job.slot) == (RESOLVED, b"", None)
    assert (job.pid, job.started, job.seconds) == (worker.handle.pid, began, 0.5)
    assert not worker.channel.staged
    assert worker.handle.tasks == 1
    assert (pool.state.open_jobs.finished, pool.state.open_jobs.failed) == (1, 0)


def test_an_exception_is_told_and_counts_as_failed(pool: FakePool) -> None:
    worker, (job,) = one_running(pool)
    worker.fail(KeyError("k"))
    pool.collect()
    assert isinstance(pool.told.error(job), KeyError)
    assert (pool.state.open_jobs.finished, pool.state.open_jobs.failed) == (0, 1)


def test_a_result_that_cannot_be_read_fails_its_job_alone(pool: FakePool) -> None:
    worker, (job,) = one_running(pool)
    worker.say(Kind.DONE, job.id, b"no pickle")
    pool.collect()
    assert isinstance(pool.told.error(job), MaybeDecodingError)
    assert worker.handle.state is WorkerState.IDLE


def test_results_are_told_in_the_order_of_what_happened(pool: FakePool) -> None:
    a, b = pool.start(2)
    jobs = pool.submit(2)
    for worker in (a, b):
        worker.run_next()
    with pool.state.lock:
        pool.collector.collect([b.handle])
        pool.collector.collect([a.handle])
    pool.state.outcomes.deliver()
    assert list(pool.told.done) == [*b.begun, *a.begun]
    assert {*pool.told.done} == {*pool.ids(jobs)}


def test_a_start_is_told_before_the_result(pool: FakePool) -> None:
    worker, (job,) = one_running(pool)
    worker.say(Kind.ACCEPTED, job.id)
    pool.collect()
    assert pool.told.started == [(job.id, worker.handle.pid, pool.clock.now)]


def test_the_result_handler_is_woken_only_by_others(pool: FakePool) -> None:
    worker, _ = one_running(pool)
    worker.finish()
    readable = pool.state.outboxes.ready(0)
    assert pool.collector.collect(readable) is pool.state.outcomes
    assert len(pool.state.outcomes) == 1
    assert pool.state.outboxes.ready(0) == []
    pool.state.outcomes.deliver()
    assert len(pool.state.outcomes) == 0


# ---- a worker's own life


def test_a_worker_is_ready_when_it_says_so(pool: FakePool) -> None:
    (worker,) = pool.start(1, ready=False)
    states = [worker.handle.state]
    worker.become_ready()
    pool.collect()
    states.append(worker.handle.state)
    assert states == [WorkerState.STARTING, WorkerState.IDLE]
    assert pool.state.ready_count == 1


def test_a_worker_whose_initializer_failed_is_never_ready(pool: FakePool) -> None:
    (worker,) = pool.start(1, ready=False)
    worker.say(Kind.BROKEN, payload=b"why")
    worker.become_ready()
    pool.collect()
    assert worker.handle.start_failure == b"why"
    assert worker.handle.phase is Phase.STARTING
    assert pool.state.ready_count == 0


def test_a_worker_that_leaves_of_itself_gets_no_more(pool: FakePool) -> None:
    worker, (job, other) = one_running(pool, 2)
    worker.finish()
    worker.say(Kind.LEAVING, payload=encode_reason("it has too much memory"))
    pool.collect()
    assert pool.told.value(job) is None
    assert other.phase == QUEUED
    assert worker.handle.reason == "it has too much memory"
    assert worker.told_to_leave


def test_a_worker_gets_no_more_than_its_quota(make: Make) -> None:
    pool = make(1, max_tasks=2)
    (worker,) = pool.start(1)
    jobs = pool.submit(5)
    worker.run_next()
    worker.run_next()
    pool.collect()
    assert worker.waiting == []
    assert worker.handle.state is WorkerState.RETIRING
    assert {*pool.told.done} == {*pool.ids(jobs[:2])}


# ---- losses


def test_the_running_job_is_lost_with_its_worker_the_others_go_back_in_their_order(
    pool: FakePool,
) -> None:
    (worker,) = pool.start(1)
    pool.state.scheduler.mean_seconds = 0.001
    jobs = pool.submit(6)
    worker.run_next()
    pool.collect()
    assert len(worker.waiting) > 2
    running = worker.begin()
    assert running == jobs[1].id
    worker.die(-signal.SIGSEGV)
    worker.channel.box.written = STACK
    pool.supervise()
    error = pool.told.error(jobs[1])
    assert isinstance(error, WorkerLostError)
    assert (error.job, error.pid, error.exitcode) == (running, worker.handle.pid, -11)
    assert error.stack == STACK
    successor = pool.workers[-1]
    queued = [job.id for job in pool.state.scheduler.queue]
    assert successor.waiting + queued == pool.ids(jobs[2:])
    assert worker.handle.phase is Phase.REAPED


def test_a_result_that_was_reported_before_the_death_counts(pool: FakePool) -> None:
    worker, (job, other) = one_running(pool, 2)
    worker.finish("in time")
    worker.die()
    pool.supervise()
    assert pool.told.value(job) == "in time"
    assert pool.workers[-1].waiting == [other.id]
    assert worker.handle.lost_job is None


def test_a_job_that_may_be_retried_is_run_again_before_all_others(pool: FakePool) -> None:
    worker, (job, other) = one_running(pool, 2, retries=1)
    worker.die()
    pool.supervise()
    assert (job.retried(), job.pid) == (1, None)
    assert pool.state.open_jobs.retried == 1
    successor = pool.workers[-1]
    assert successor.waiting == pool.ids([job, other])
    successor.begin()
    successor.die()
    pool.supervise()
    assert isinstance(pool.told.error(job), WorkerLostError)


def test_one_whose_task_has_the_process_exit_is_retried_by_whoever_idles(pool: FakePool) -> None:
    worker, other = pool.start(2)
    (job,) = pool.submit(1, retries=1)
    if job.slot is other.handle:
        worker, other = other, worker
    worker.begin()
    worker.say_exit(3)
    pool.collect()
    assert other.waiting == [job.id]


def test_a_task_that_has_the_process_exit_is_lost_with_its_code_and_its_start_is_told(
    pool: FakePool,
) -> None:
    worker, (job,) = one_running(pool)
    job.start_unreported = True
    worker.say_exit(3, "sys.exit was called")
    pool.collect()
    error = pool.told.error(job)
    assert (error.exitcode, error.note) == (3, "sys.exit was called")
    assert [(number, pid) for number, pid, _ in pool.told.started] == [(job.id, worker.handle.pid)]
    assert worker.handle.state is WorkerState.RETIRING
    worker.die(3)
    pool.supervise()  # nothing is lost twice
    assert pool.state.open_jobs.failed == 1


def test_a_worker_whose_job_was_lost_gets_no_other(pool: FakePool) -> None:
    worker, _ = one_running(pool)
    worker.say_exit(0)
    pool.collect()
    (job,) = pool.submit(1)
    assert job.phase == QUEUED


# ---- foreign bytes


def test_a_task_that_wrote_into_the_channel_fails_and_its_worker_is_killed(pool: FakePool) -> None:
    worker, (guilty, innocent) = one_running(pool, 2)
    worker.say(Kind.CORRUPTED)
    pool.collect()
    error = pool.told.error(guilty)
    assert isinstance(error, WorkerLostError)
    assert "its channel was corrupted: it sent bytes that are no report" in str(error)
    assert error.exitcode == -signal.SIGKILL
    assert worker.child.signals == [signal.SIGKILL]
    assert innocent.phase == QUEUED
    pool.supervise()
    assert pool.workers[-1].waiting == [innocent.id]
    assert pool.state.open_jobs.failed == 1


def test_jobs_that_it_has_read_meanwhile_are_finished_first(pool: FakePool) -> None:
    worker, (guilty, innocent) = one_running(pool, 2)
    worker.say(Kind.CORRUPTED)
    worker.begin()
    pool.collect()
    assert pool.told.error(guilty).exitcode is None
    assert worker.child.signals == []
    assert worker.told_to_leave
    worker.finish("fine")
    pool.collect()
    assert pool.told.value(innocent) == "fine"
    worker.leave()
    pool.supervise()
    assert pool.supervisor.history[-1].reason.startswith("its channel was corrupted")


def test_a_report_of_a_job_that_it_was_not_sent_is_foreign_too(pool: FakePool) -> None:
    worker, (job,) = one_running(pool)
    worker.say(Kind.DONE, 10**6)
    worker.say(Kind.DONE, 10**6)  # once is enough
    pool.collect()
    assert "it reported a job that it was not sent" in str(pool.told.error(job))


def test_the_late_result_of_the_job_that_it_lost_is_not(pool: FakePool) -> None:
    worker, (job,) = one_running(pool)
    worker.say_exit(1)
    worker.say(Kind.DONE, job.id, dumps("late"))
    pool.collect()
    assert not worker.handle.is_quarantined
    assert isinstance(pool.told.error(job), WorkerLostError)


def test_notices_that_make_no_sense_are_foreign(pool: FakePool) -> None:
    worker, (job,) = one_running(pool)
    worker.say(Kind.EXITING, job.id, b"no pickle")
    pool.collect()
    assert "a report cannot be read" in str(pool.told.error(job))


def test_an_initializer_that_writes_there_fails_the_start(pool: FakePool) -> None:
    (worker,) = pool.start(1, ready=False)
    worker.say(Kind.CORRUPTED)
    pool.collect()
    assert isinstance(worker.handle.start_failure, RuntimeError)
    assert worker.handle.phase is Phase.KILLED


# ---- what it forked


def test_the_last_result_may_come_from_what_a_dead_worker_forked(pool: FakePool) -> None:
    worker, (job,) = one_running(pool, lost_worker_timeout=10.0)
    worker.die(0, heir=True)
    assert pool.supervise() == 10.0
    assert pool.told.done == {}
    pool.clock.passes(9.0)
    worker.finish("from a grandchild")
    pool.collect()
    assert pool.told.value(job) == "from a grandchild"
    pool.supervise()
    assert worker.handle.phase is Phase.REAPED


def test_but_not_later_than_its_timeout(pool: FakePool) -> None:
    worker, (job,) = one_running(pool, lost_worker_timeout=10.0)
    worker.die(0, heir=True)
    pool.supervise()
    pool.clock.passes(10.0)
    pool.supervise()
    assert isinstance(pool.told.error(job), WorkerLostError)
    assert worker.handle.phase is Phase.REAPED
    assert worker.channel.is_closed


def test_without_a_timeout_it_is_waited_for_as_long_as_that_takes(pool: FakePool) -> None:
    worker, (job,) = one_running(pool)
    worker.die(0, heir=True)
    pool.supervise()
    pool.clock.passes(1e9)
    pool.supervise()
    assert pool.told.done == {}
    worker.end.close()  # nobody is left who could report it
    pool.settle()
    assert isinstance(pool.told.error(job), WorkerLostError)


# ---- items with outcomes of their own


def result(value: object) -> tuple[bool, list[Any]]:
    _, pickled, buffers = encode_result(value)
    return True, [pickled, *buffers]


def chunk(pool: FakePool, size: int = 5, retries: int | None = None) -> Job:
    job = pool.job(size=size, mode=EACH, retries=retries)
    pool.dispatcher.submit(job)
    return job


def lose(pool: FakePool, worker: FakeWorker, page: Page) -> FakeWorker:
    """It dies, having noted this; returns its successor."""
    worker.begin()
    worker.channel.noted_page = page
    worker.die()
    pool.supervise()
    return pool.workers[-1]


def test_a_job_goes_on_behind_the_item_that_was_lost(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    job = chunk(pool)
    successor = lose(pool, worker, Page(0, [result("a"), result("b")], 3))
    assert (job.first, successor.channel.inbox[0][:3]) == (3, (job.id, 0.0, 3))
    last = lose(pool, successor, Page(3, [], 4))
    last.begin()
    last.say(Kind.OUTCOMES, job.id, dumps([result("e")]))
    pool.collect()
    outcomes = pool.told.value(job)
    assert [each.value for each in outcomes if each.ok] == ["a", "b", "e"]
    assert [type(each.value) for each in outcomes if not each.ok] == [WorkerLostError] * 2
    assert [each.ok for each in outcomes] == [True, True, False, False, True]
    assert pool.state.open_jobs.by_id == {}


def test_between_two_items_nobody_is_lost(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    job = chunk(pool)
    lose(pool, worker, Page(0, [result("a"), result("b")], 2))
    assert job.first == 2
    assert pool.told.done == {}


def test_if_all_is_done_the_job_is_too(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    job = chunk(pool, 2)
    lose(pool, worker, Page(0, [result("a"), result("b")], 2))
    assert [each.value for each in pool.told.value(job)] == ["a", "b"]


def test_if_no_item_was_begun_all_that_are_left_are_lost(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    job = chunk(pool)
    successor = lose(pool, worker, Page(0, [result("a")], 1))
    lose(pool, successor, Page(0, [], 0))
    outcomes = pool.told.value(job)
    assert [each.ok for each in outcomes] == [True, False, False, False, False]


def test_parts_that_were_reported_count_once(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    job = chunk(pool)
    worker.begin()
    parts = dumps([result("a"), result("b")])
    worker.end.report(Kind.PART, job.id, 2.0, 0.0, parts)
    pool.collect()
    worker.channel.noted_page = Page(1, [result("b"), result("c")], 4)  # not begun anew yet
    worker.die()
    pool.supervise()
    assert job.first == 4
    pool.workers[-1].begin()
    pool.workers[-1].say(Kind.OUTCOMES, job.id, dumps([result("e")]))
    pool.collect()
    found = [each.value if each.ok else None for each in pool.told.value(job)]
    assert found == ["a", "b", "c", None, "e"]


@pytest.mark.parametrize(
    ("count", "first"), [(-1.0, 0.0), (0.0, 0.0), (6.0, 0.0), (float("nan"), 0.0), (1.0, 1.0)]
)
def test_a_part_that_makes_no_sense_is_foreign(pool: FakePool, count: float, first: float) -> None:
    (worker,) = pool.start(1)
    job = chunk(pool)
    worker.begin()
    worker.end.report(Kind.PART, job.id, count, first, dumps([]))
    pool.collect()
    assert worker.handle.is_quarantined
    outcome = pool.told.error(job)
    assert "reported a part of a job that does not come next" in str(outcome)


def test_a_part_of_what_has_none_is_foreign(pool: FakePool) -> None:
    worker, (job,) = one_running(pool)
    worker.end.report(Kind.PART, job.id, 1.0, 0.0, dumps([]))
    pool.collect()
    assert "reported a part of a job that has none" in str(pool.told.error(job))


def test_a_death_right_after_a_part_loses_nobody(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    job = chunk(pool)
    worker.begin()
    worker.end.report(Kind.PART, job.id, 2.0, 0.0, dumps([result("a"), result("b")]))
    worker.channel.noted_page = Page(2, [], 2)
    worker.die()
    pool.supervise()
    assert job.first == 2
    assert pool.told.done == {}


def test_a_task_that_has_the_process_exit_is_one_item_too(pool: FakePool) -> None:
    worker, other = pool.start(2)
    job = chunk(pool)
    if job.slot is other.handle:
        worker, other = other, worker
    worker.begin()
    worker.channel.noted_page = Page(0, [result("a")], 2)
    worker.say_exit(3)
    pool.collect()
    assert other.waiting == [job.id]
    assert job.first == 2


def test_a_retry_begins_with_the_item_that_was_lost(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    job = chunk(pool, retries=1)
    successor = lose(pool, worker, Page(0, [result("a")], 2))
    assert (job.first, job.retried()) == (1, 1)
    lose(pool, successor, Page(1, [], 2))
    assert (job.first, job.retried()) == (2, 1)


def test_the_end_of_the_pool_keeps_what_is_done(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    job = chunk(pool)
    worker.begin()
    worker.channel.noted_page = Page(0, [result("a")], 2)
    pool.lifecycle.stop(Terminated("the pool was terminated"))
    pool.state.outcomes.deliver()
    outcomes = pool.told.value(job)
    assert [each.ok for each in outcomes] == [True, False, False, False, False]
    assert isinstance(outcomes[-1].value, Terminated)


@pytest.mark.parametrize(("size", "begun"), [(5, 3), (5, 5), (3, 3)])
def test_what_its_dead_worker_has_noted_since_then_is_too_late(
    pool: FakePool, size: int, begun: int
) -> None:
    (worker,) = pool.start(1)
    job = chunk(pool, size)
    worker.begin()
    worker.child.survives = {signal.SIGKILL}  # for a moment
    worker.channel.noted_page = Page(0, [result("a")], 2)
    pool.lifecycle.stop(Terminated("the pool was terminated"))
    worker.channel.noted_page = Page(0, [result("a")] * (begun - 1), begun)
    worker.die()
    pool.supervise()
    assert [each.ok for each in pool.told.value(job)] == [True, *[False] * (size - 1)]
    assert job.first == 1  # what was told stays as it was
    assert worker.handle.phase is Phase.REAPED
