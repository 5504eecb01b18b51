"""Single jobs that are ended: cancelled, terminated, or killed for a limit. Nobody else is hit."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from fakes import STACK, FakePool, FakeWorker, Told
from prefork._engine.worker_handle import LAST_WORDS_SECONDS, STARVED_SECONDS, Phase
from prefork._policy.job import QUEUED, Job
from prefork._system.stacks import LAST_WORDS
from prefork._worker.options import SOFT_SIGNAL
from prefork.errors import MemoryLimitExceeded, Terminated, TimeLimitExceeded, WorkerLostError
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


# ---- cancel


def test_a_queued_job_can_be_cancelled(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    assert pool.terminator.cancel(job)
    pool.collect()
    assert "was cancelled before it started" in str(pool.told.error(job))
    assert not pool.terminator.cancel(job)
    assert not pool.state.scheduler.queue


def test_one_in_the_middle_of_the_queue_too_and_the_others_are_run(pool: FakePool) -> None:
    jobs = pool.submit(5)
    assert pool.terminator.cancel(jobs[2])
    (worker,) = pool.start(1)
    while worker.waiting:
        worker.run_next()
        pool.collect()
    assert worker.begun == pool.ids([job for job in jobs if job is not jobs[2]])
    assert not pool.state.open_jobs.by_id


def test_a_job_that_was_sent_and_not_read_can_be_cancelled(pool: FakePool) -> None:
    worker, (_, second, third) = one_running(pool, 3)
    assert pool.terminator.cancel(second)
    assert worker.waiting == [third.id]  # it stays the one that is at hand
    pool.collect()
    assert isinstance(pool.told.error(second), Terminated)
    assert worker.child.signals == []


def test_a_running_job_cannot_be_cancelled(pool: FakePool) -> None:
    worker, (first, second) = one_running(pool, 2)
    assert not pool.terminator.cancel(first)
    assert worker.waiting == [second.id]
    worker.finish("done")
    pool.collect()
    assert pool.told.value(first) == "done"


def test_a_job_that_has_just_finished_cannot_be_cancelled_and_its_worker_goes_on(
    pool: FakePool,
) -> None:
    worker, (job,) = one_running(pool)
    worker.finish("in time")
    assert not pool.terminator.cancel(job)
    pool.collect()
    assert pool.told.value(job) == "in time"
    (job,) = pool.submit(1)
    assert worker.waiting == [job.id]


def test_a_worker_that_leaves_gets_no_more_after_a_job_of_its_was_to_be_cancelled(
    pool: FakePool,
) -> None:
    worker, (job,) = one_running(pool)
    with pool.state.lock:
        pool.dispatcher.dismiss(worker.handle, "enough")
    assert not pool.terminator.cancel(job)
    pool.submit(1)
    assert worker.waiting == []


# ---- terminate


def test_a_job_that_nobody_has_started_just_fails(pool: FakePool) -> None:
    worker, (_, second) = one_running(pool, 2)
    (third,) = pool.submit(1)
    for job in (second, third):
        assert pool.terminator.terminate(job)
    pool.collect()
    assert {*pool.told.done} == {second.id, third.id}
    assert worker.child.signals == []


def test_a_running_job_is_killed_with_its_worker_the_others_go_elsewhere(pool: FakePool) -> None:
    worker, (first, second) = one_running(pool, 2)
    assert pool.terminator.terminate(first)
    assert worker.child.signals == [signal.SIGKILL]
    assert second.phase == QUEUED
    pool.supervise()
    assert "was terminated while it ran in worker process" in str(pool.told.error(first))
    assert pool.workers[-1].waiting == [second.id]


def test_terminating_is_no_loss_to_be_retried(pool: FakePool) -> None:
    _, (job,) = one_running(pool, retries=3)
    pool.terminator.terminate(job)
    pool.supervise()
    assert isinstance(pool.told.error(job), Terminated)


def test_a_job_that_has_finished_meanwhile_is_not_ended(pool: FakePool) -> None:
    worker, (job,) = one_running(pool)
    worker.finish("in time")
    assert not pool.terminator.terminate(job)
    pool.collect()
    assert pool.told.value(job) == "in time"
    assert worker.child.signals == []
    (job,) = pool.submit(1)
    assert worker.waiting == [job.id]


def test_after_a_signal_that_the_task_survives_its_result_counts_and_the_worker_leaves(
    pool: FakePool,
) -> None:
    worker, (job,) = one_running(pool)
    assert pool.terminator.terminate(job, signal.SIGTERM)
    assert worker.child.signals == [signal.SIGTERM]
    assert worker.told_to_leave
    worker.finish("survived")
    pool.collect()
    assert pool.told.value(job) == "survived"
    assert worker.handle.kill_reason is None
    (other,) = pool.submit(1)
    assert worker.waiting == []
    worker.leave()
    pool.supervise()
    assert pool.workers[-1].waiting == [other.id]


def test_killed_while_its_last_words_are_waited_for(pool: FakePool) -> None:
    """The kill has a time of its own; nobody is buried before they are dead."""
    worker, (job,) = one_running(pool)
    worker.child.survives = {LAST_WORDS, signal.SIGKILL}  # that one for a moment
    worker.handle.ask_for_last_words("for a test")
    pool.clock.passes(LAST_WORDS_SECONDS + 0.1)
    assert pool.terminator.terminate_on(worker.handle.pid)
    pool.supervise()
    assert worker.handle.phase is Phase.KILLED
    assert worker.handle in pool.state.workers
    worker.die(-signal.SIGKILL)
    pool.supervise()
    assert isinstance(pool.told.error(job), Terminated)
    (end,) = pool.observer.statistics().exits
    assert end.exitcode == -signal.SIGKILL


def test_who_has_no_chance_to_say_its_last_words_is_given_more_time(pool: FakePool) -> None:
    worker, (job,) = one_running(pool)
    worker.child.survives, worker.child.starves = {LAST_WORDS}, True
    worker.handle.ask_for_last_words("for a test")
    for _ in range(3):
        pool.clock.passes(1.5 * LAST_WORDS_SECONDS)
        pool.supervise()
        assert worker.handle.phase is Phase.KILLING
    worker.child.survives = set()
    worker.child.signal(LAST_WORDS)  # now it does
    pool.supervise()
    assert STACK in str(pool.told.error(job))


@pytest.mark.parametrize("starves", [False, True])
def test_but_not_if_it_is_deaf_and_not_for_ever(pool: FakePool, starves: bool) -> None:
    worker, (job,) = one_running(pool)
    worker.child.survives, worker.child.starves = {LAST_WORDS}, starves
    worker.handle.ask_for_last_words("for a test")
    pool.clock.passes(STARVED_SECONDS if starves else LAST_WORDS_SECONDS)
    pool.supervise()
    assert worker.child.exitcode == -signal.SIGKILL
    pool.supervise()
    assert isinstance(pool.told.error(job), WorkerLostError)


def test_what_is_no_number_ends_nothing(pool: FakePool) -> None:
    worker, (job,) = one_running(pool)
    nonsense: Any = "TERM"
    with pytest.raises(TypeError):
        pool.terminator.terminate(job, nonsense)
    with pytest.raises(TypeError):
        pool.terminator.terminate_on(worker.handle.pid, nonsense)
    with pytest.raises(TypeError):
        pool.terminator.terminate_on(nonsense)
    assert worker.child.signals == []
    assert not worker.told_to_leave


def test_a_signal_that_ends_the_worker_ends_the_job(pool: FakePool) -> None:
    worker, (job,) = one_running(pool)
    pool.terminator.terminate(job, signal.SIGTERM)
    worker.die(-signal.SIGTERM)
    pool.supervise()
    assert isinstance(pool.told.error(job), Terminated)


def test_what_a_worker_runs_is_ended_by_its_process_id(pool: FakePool) -> None:
    worker, (job,) = one_running(pool)
    assert not pool.terminator.terminate_on(worker.handle.pid + 1)
    assert pool.terminator.terminate_on(worker.handle.pid)
    pool.supervise()
    assert isinstance(pool.told.error(job), Terminated)
    assert not pool.terminator.terminate_on(pool.workers[-1].handle.pid)


def test_all_jobs_of_one_result_are_ended_and_no_others(pool: FakePool) -> None:
    worker, (running, sent) = one_running(pool, 2)
    others = Told()
    foreign = Job(others, "fakes.task")
    pool.dispatcher.submit(foreign)
    (queued,) = pool.submit(1)
    pool.terminator.cancel_all(pool.told)
    pool.collect()
    assert {*pool.told.done} == {sent.id, queued.id}
    pool.terminator.terminate_all(pool.told)
    pool.supervise()
    assert isinstance(pool.told.error(running), Terminated)
    assert others.done == {}
    assert pool.workers[-1].waiting == [foreign.id]
    assert worker.handle.phase is Phase.REAPED


# ---- time limits


def test_a_hard_limit_asks_for_the_stack_and_the_job_fails_with_it(pool: FakePool) -> None:
    worker, (job, other) = one_running(pool, 2, timeout=5.0)
    pool.clock.passes(4.9)
    pool.run_due()
    assert worker.child.signals == []
    pool.clock.passes(0.2)
    pool.run_due()
    assert worker.child.signals == [LAST_WORDS, signal.SIGCONT]
    pool.supervise()
    error = pool.told.error(job)
    assert isinstance(error, TimeLimitExceeded)
    assert (error.limit, error.job, error.pid) == (5.0, job.id, worker.handle.pid)
    assert error.stack == STACK
    assert pool.told.limits == [(job.id, False, 5.0)]
    assert pool.workers[-1].waiting == [other.id]


def test_a_worker_that_says_no_last_words_is_killed(pool: FakePool) -> None:
    worker, (job,) = one_running(pool, timeout=5.0)
    worker.child.survives = {LAST_WORDS}
    pool.clock.passes(5.0)
    pool.run_due()
    wait = pool.supervise()
    assert wait is not None
    assert signal.SIGKILL not in worker.child.signals
    pool.clock.passes(wait)
    pool.supervise()
    assert worker.child.signals[-1] == signal.SIGKILL
    pool.supervise()
    assert "no stack could be had" in pool.told.error(job).stack


def test_a_worker_that_is_being_killed_gets_no_more_time_for_its_last_words(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    job = pool.job(size=2, timeout=0.01)
    pool.dispatcher.submit(job)
    worker.begin()
    worker.child.survives = {LAST_WORDS}
    pool.clock.passes(0.01)
    pool.run_due()
    deadline = worker.handle.deadline
    pool.clock.passes(0.01)
    pool.run_due()
    assert worker.handle.deadline == deadline
    assert worker.child.signals == [LAST_WORDS, signal.SIGCONT]


def test_who_was_killed_for_a_limit_is_not_waited_for(pool: FakePool) -> None:
    """What it forked might still report a result; too late."""
    worker, (job,) = one_running(pool, timeout=5.0, lost_worker_timeout=10.0)
    worker.child.survives = {LAST_WORDS}
    pool.clock.passes(5.0)
    pool.run_due()
    worker.die(-signal.SIGKILL, heir=True)
    pool.supervise()
    assert isinstance(pool.told.error(job), TimeLimitExceeded)


def test_a_job_that_has_finished_meanwhile_keeps_its_result_and_its_worker(pool: FakePool) -> None:
    worker, (job, other) = one_running(pool, 2, timeout=5.0)
    pool.clock.passes(5.0)
    worker.finish("in time")  # that is still to be read
    pool.run_due()
    assert pool.told.value(job) == "in time"
    assert worker.child.signals == []
    assert worker.waiting == [other.id]
    assert worker.handle.state is not WorkerState.RETIRING


def test_the_next_item_of_a_chunk_has_a_whole_limit_of_its_own(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    job = pool.job(size=2, timeout=5.0)
    pool.dispatcher.submit(job)
    worker.begin()
    pool.clock.passes(4.0)
    worker.next_item()
    pool.clock.passes(1.0)
    pool.run_due()
    assert worker.child.signals == []
    pool.clock.passes(4.0)
    pool.run_due()
    assert worker.child.signals == [LAST_WORDS, signal.SIGCONT]


def test_an_item_that_begins_while_the_one_before_is_to_be_killed_is_still_limited(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker goes on until it is isolated, and after: each look may see another item."""
    (worker,) = pool.start(1)
    job = pool.job(size=2, timeout=5.0)
    pool.dispatcher.submit(job)
    worker.begin()
    pool.clock.passes(5.0)
    isolate = pool.collector.isolate

    def isolate_late(handle: object) -> None:
        worker.next_item()
        isolate(worker.handle)

    with monkeypatch.context() as patched:
        patched.setattr(pool.collector, "isolate", isolate_late)
        pool.run_due()
    assert worker.child.signals == []
    assert pool.timers.next_due() == pool.clock.now + 5.0
    pool.clock.passes(5.0)
    pool.run_due()
    assert worker.child.signals == [LAST_WORDS, signal.SIGCONT]


def test_a_soft_limit_signals_once_and_the_hard_one_follows(pool: FakePool) -> None:
    worker, (job,) = one_running(pool, soft_timeout=2.0, timeout=5.0)
    pool.clock.passes(2.0)
    pool.run_due()
    pool.run_due()
    assert worker.child.signals == [SOFT_SIGNAL]
    assert pool.told.limits == [(job.id, True, 2.0)]
    pool.clock.passes(3.0)
    pool.run_due()
    pool.supervise()
    assert isinstance(pool.told.error(job), TimeLimitExceeded)
    assert pool.told.limits == [(job.id, True, 2.0), (job.id, False, 5.0)]


def test_after_a_soft_limit_the_task_may_still_end_well(pool: FakePool) -> None:
    worker, (job,) = one_running(pool, soft_timeout=2.0)
    pool.clock.passes(2.0)
    pool.run_due()
    worker.finish("tidied up")
    pool.collect()
    assert pool.told.value(job) == "tidied up"
    pool.clock.passes(1.0)
    pool.run_due()
    assert worker.child.signals == [SOFT_SIGNAL]
    assert pool.timers.next_due() is None


def test_a_worker_that_has_not_heeded_is_told_again(pool: FakePool) -> None:
    worker, (job,) = one_running(pool, soft_timeout=2.0)
    for passed in (2.0, 1.0, 1.0):
        pool.clock.passes(passed)
        pool.run_due()
    assert worker.child.signals == [SOFT_SIGNAL] * 3
    assert pool.told.limits == [(job.id, True, 2.0)]
    worker.channel.noted_heeded = worker.handle.running()[1]
    pool.clock.passes(100.0)
    pool.run_due()
    assert worker.child.signals == [SOFT_SIGNAL] * 3


def test_a_task_that_survives_its_termination_is_killed_at_its_limit(pool: FakePool) -> None:
    worker, (job,) = one_running(pool, soft_timeout=1.0, timeout=5.0)
    pool.terminator.terminate(job, signal.SIGTERM)
    pool.clock.passes(1.0)
    pool.run_due()  # a soft limit would be in the way of the other signal
    assert worker.child.signals == [signal.SIGTERM]
    pool.clock.passes(4.0)
    pool.run_due()
    assert LAST_WORDS in worker.child.signals
    pool.supervise()
    assert isinstance(pool.told.error(job), Terminated)


def test_a_limit_does_not_hit_what_was_killed_or_has_ended_already(pool: FakePool) -> None:
    worker, (job,) = one_running(pool, timeout=5.0)
    worker.die()
    pool.clock.passes(5.0)
    pool.run_due()  # it sees the board of a process that has gone
    pool.supervise()
    pool.run_due()
    error = pool.told.error(job)
    assert isinstance(error, (TimeLimitExceeded, WorkerLostError))
    assert pool.state.open_jobs.failed == 1


# ---- workers that do not read


def test_a_worker_that_does_not_read_its_job_is_replaced_and_the_job_is_run(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    (job,) = pool.submit(1, timeout=5.0)
    for _ in range(10):
        if worker.child.signals:
            break
        due = pool.timers.next_due()
        assert due is not None
        pool.clock.now = due
        pool.run_due()
    assert worker.child.signals == [LAST_WORDS, signal.SIGCONT]
    pool.supervise()
    assert pool.workers[-1].waiting == [job.id]
    assert pool.told.done == {}
    assert "did not read job" in pool.supervisor.history[-1].reason


def test_one_that_reads_it_at_the_last_moment_keeps_it_and_others_get_what_it_had_not_read(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (worker,) = pool.start(1)
    job, other = pool.submit(2, timeout=5.0)
    isolate = pool.collector.isolate

    def isolate_late(handle: object) -> None:
        worker.begin()
        isolate(worker.handle)

    monkeypatch.setattr(pool.collector, "isolate", isolate_late)
    pool.clock.passes(1000.0)
    pool.run_due()
    assert worker.child.signals == []
    assert worker.job == job.id
    assert worker.waiting == [other.id]
    assert worker.handle.state is WorkerState.BUSY


# ---- memory


def test_a_task_with_too_much_memory_is_killed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make(1, max_memory_per_task=1000, memory_interval=0.1)
    used = {"KiB": 900}
    monkeypatch.setattr("prefork._engine.time_limits.resident", lambda pid: used["KiB"])
    worker, (job,) = one_running(pool)
    assert pool.timers.next_due() == pool.clock.now + 0.1
    pool.clock.passes(0.1)
    pool.run_due()
    assert worker.child.signals == []
    used["KiB"] = 1001
    pool.clock.passes(0.1)
    pool.run_due()
    pool.supervise()
    error = pool.told.error(job)
    assert isinstance(error, MemoryLimitExceeded)
    assert (error.limit, error.resident, error.stack) == (1000, 1001, STACK)
    assert pool.told.limits == []  # it is no time limit


def test_memory_is_not_measured_while_nobody_is_busy(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(1, max_memory_per_task=1000, memory_interval=0.1)
    measured: list[int] = []
    monkeypatch.setattr("prefork._engine.time_limits.resident", measured.append)
    worker, _ = one_running(pool)
    worker.finish()
    pool.collect()
    pool.clock.passes(0.1)
    pool.run_due()
    assert measured == []
    assert pool.timers.next_due() is None


# ---- starts


def test_a_start_that_was_not_reported_is_found_on_the_board(make: Make) -> None:
    pool = make(1, accept_delay=0.01)
    (worker,) = pool.start(1)
    job = pool.job()
    job.start_unreported = True
    pool.dispatcher.submit(job)
    began = pool.clock.now
    worker.begin()
    pool.clock.passes(0.01)
    pool.run_due()
    ((told, pid, started),) = pool.told.started
    assert (told, pid) == (job.id, worker.handle.pid)
    assert started == pytest.approx(began)
    assert pool.timers.next_due() is None


def test_the_next_start_is_looked_for_when_the_one_before_has_finished(make: Make) -> None:
    pool = make(1, accept_delay=0.01)
    (worker,) = pool.start(1)
    for _ in range(2):
        job = pool.job()
        job.start_unreported = True
        pool.dispatcher.submit(job)
    worker.run_next()
    pool.clock.passes(0.5)
    pool.run_due()
    pool.collect()
    assert pool.timers.starts.next_due == pool.clock.now + 0.01
