"""Jobs on their way to the workers: who gets which, and what if it cannot be sent."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fakes import FakePool, FakeReader
from prefork._engine.state import PoolPhase
from prefork._policy.job import QUEUED, RESOLVED, SENT
from prefork._policy.scheduler import ALONE_SECONDS, MAX_DEPTH, SHORT_SECONDS
from prefork.errors import PoolBrokenError, Terminated

Make = Callable[..., FakePool]


def test_each_idle_worker_gets_one_then_one_behind_it_then_they_queue(pool: FakePool) -> None:
    a, b = pool.start(2)
    jobs = pool.submit(5)
    assert sorted([len(a.waiting), len(b.waiting)]) == [2, 2]
    assert {*a.waiting[:1], *b.waiting[:1]} == {*pool.ids(jobs[:2])}
    assert [job.phase for job in jobs] == [SENT] * 4 + [QUEUED]
    assert pool.told.added == jobs


def test_a_worker_that_has_finished_gets_what_is_queued(pool: FakePool) -> None:
    pool.state.scheduler.mean_seconds = 0.001
    (worker,) = pool.start(1)
    jobs = pool.submit(4)
    worker.run_next("one")
    pool.collect()
    assert pool.told.value(jobs[0]) == "one"
    assert worker.waiting == pool.ids(jobs[1:])


def test_jobs_wait_for_the_first_worker(pool: FakePool) -> None:
    jobs = pool.submit(2)
    (worker,) = pool.start(1, ready=False)
    assert worker.waiting == pool.ids(jobs)


def test_what_waits_behind_a_long_job_goes_to_a_worker_that_idles(pool: FakePool) -> None:
    (busy,) = pool.start(1)
    first, second = pool.submit(2)
    assert busy.begin() == first.id
    (idle,) = pool.start(1)
    assert idle.waiting == [second.id]
    assert busy.waiting == []


def test_what_a_busy_worker_has_read_is_not_stolen(pool: FakePool) -> None:
    (busy,) = pool.start(1)
    first, second = pool.submit(2)
    busy.begin()
    busy.begin()  # it is so fast that the report of the first one is still on its way
    (idle,) = pool.start(1)
    assert idle.waiting == []
    assert (first.phase, second.phase) == (SENT, SENT)


def test_a_worker_that_is_full_gets_the_rest_later(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    worker.channel.pickles = 1
    first, second = pool.submit(2)
    assert worker.waiting == [first.id]
    assert second.phase == QUEUED
    worker.run_next()
    pool.collect()
    assert worker.waiting == [second.id]


def test_a_small_pipe_gets_the_rest_later(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    worker.channel.room = 1
    first, second = pool.submit(2)
    assert (worker.waiting, worker.channel.staged) == ([first.id], {first.id})
    assert second.phase == QUEUED
    worker.run_next()
    pool.collect()
    assert worker.waiting == [second.id]


def test_a_job_that_cannot_be_sent_fails_and_its_worker_gets_the_next(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    worker.channel.trouble = OSError("no descriptor is left")
    (job,) = pool.submit(1)
    assert pool.told.done == {}  # told by the result handler alone
    pool.collect()
    assert str(pool.told.error(job)) == "no descriptor is left"
    worker.channel.trouble = None
    (job,) = pool.submit(1)
    assert worker.waiting == [job.id]


def test_each_of_a_batch_that_cannot_be_sent_to_an_idle_worker_fails(pool: FakePool) -> None:
    jobs = pool.submit(3)
    pool.spawner.spawn(1)
    (worker,) = pool.see_new()
    pool.dispatcher.requeue_unread(worker.handle)
    worker.channel.trouble = OSError("no descriptor is left")
    with pool.state.lock:
        pool.dispatcher.hand_out()
    pool.collect()
    assert {str(pool.told.error(job)) for job in jobs} == {"no descriptor is left"}
    assert not pool.state.open_jobs.by_id


def test_a_job_that_cannot_be_sent_behind_another_one_is_tried_again(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    (first,) = pool.submit(1)
    worker.channel.trouble = OSError("no descriptor is left")
    (second,) = pool.submit(1)
    assert second.phase == QUEUED
    worker.channel.trouble = None
    worker.run_next()
    pool.collect()
    assert worker.waiting == [second.id]
    assert first.phase == RESOLVED


def test_what_cannot_be_pickled_fails_without_a_worker(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    job = pool.job()
    job.pickling_error = TypeError("I stay here")
    pool.dispatcher.submit(job)
    pool.collect()
    assert str(pool.told.error(job)) == "I stay here"
    assert worker.waiting == []


# ---- who may submit when


def test_a_closed_pool_takes_no_jobs_but_reads_its_inputs_to_their_ends(pool: FakePool) -> None:
    pool.start(1)
    pool.lifecycle.close()
    with pytest.raises(ValueError, match="closed"):
        pool.dispatcher.submit(pool.job())
    pool.dispatcher.submit_fed(pool.job())
    assert len(pool.state.open_jobs.by_id) == 1


def test_a_terminated_pool_takes_neither(pool: FakePool) -> None:
    pool.lifecycle.stop(Terminated("over"))
    for submit in (pool.dispatcher.submit, pool.dispatcher.submit_fed):
        with pytest.raises(ValueError, match="terminated"):
            submit(pool.job())


def test_a_broken_pool_says_why_to_each_caller_anew(pool: FakePool) -> None:
    pool.lifecycle.break_down("no workers", KeyError("why"))
    raised = []
    for _ in range(2):
        with pytest.raises(PoolBrokenError, match="no workers") as caught:
            pool.dispatcher.submit(pool.job())
        assert isinstance(caught.value.__cause__, KeyError)
        raised.append(caught.value)
    assert raised[0] is not raised[1]


def test_a_pool_in_a_forked_child_is_the_parents(pool: FakePool) -> None:
    pool.state.close_in_child()
    with pytest.raises(RuntimeError, match="belongs to the process that made it"):
        pool.dispatcher.submit(pool.job())


def test_one_that_waits_for_a_free_worker_is_submitted_when_there_is_one(make: Make) -> None:
    pool = make()
    (worker,) = pool.start(1)
    pool.dispatcher.submit_when_free(pool.job())
    assert len(worker.waiting) == 1
    with pytest.raises(AssertionError, match="would wait"):
        pool.dispatcher.submit_when_free(pool.job())
    pool.lifecycle.close()
    with pytest.raises(ValueError, match="closed"):
        pool.dispatcher.submit_when_free(pool.job())


def test_an_input_keeps_the_pool_from_its_end(pool: FakePool) -> None:
    reader = FakeReader()
    pool.dispatcher.begin_input(reader)
    pool.lifecycle.close()
    assert not pool.state.is_done()
    reader.needed = False
    assert pool.state.is_done()
    reader.needed = True
    pool.dispatcher.read_on()
    assert reader.reads_on
    pool.dispatcher.end_input(reader)
    assert pool.state.is_done()
    with pytest.raises(ValueError, match="closed"):
        pool.dispatcher.begin_input(FakeReader())


# ---- interrupted submissions


class Interrupted(BaseException):
    """What a signal's handler raises."""


def interrupt(*args: object) -> None:
    raise Interrupted


def test_a_submission_that_is_interrupted_before_it_is_sent_fails_the_job(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = pool.job()
    with monkeypatch.context() as patched:
        patched.setattr(pool.told, "job_added", interrupt)
        with pytest.raises(Interrupted):
            pool.dispatcher.submit(job)
    pool.collect()
    assert isinstance(pool.told.error(job), Terminated)
    assert not pool.state.scheduler.queue


def test_one_that_is_interrupted_while_it_is_sent_is_run_when_its_worker_has_left(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, other = pool.start(2)
    job = pool.job()
    with monkeypatch.context() as patched:
        patched.setattr(type(worker.channel), "send", interrupt)
        with pytest.raises(Interrupted):
            pool.dispatcher.submit(job)
    uncertain = pool.worker_of(job)
    assert uncertain.told_to_leave
    uncertain.leave()
    pool.supervise()
    # It was not begun there, so another one has it now.
    assert job.id in {*worker.waiting, *other.waiting, *pool.workers[-1].waiting}


# ---- timers


def test_a_limit_is_armed_when_its_job_is_sent(pool: FakePool) -> None:
    pool.start(1)
    pool.submit(1, timeout=5.0)
    assert pool.timers.next_due() == pool.clock.now + 5.0
    assert pool.rearmed == 1
    pool.submit(1, timeout=9.0)
    assert pool.rearmed == 1  # it was early enough


def test_short_jobs_wait_for_those_at_work_until_one_turns_out_to_be_long(make: Make) -> None:
    pool = make(3, cpus=1)
    busy, idle = pool.start(2)
    if pool.submit(1)[0].slot is idle.handle:
        busy, idle = idle, busy
    pool.state.scheduler.mean_seconds = SHORT_SECONDS / 2
    busy.begin()
    jobs = pool.submit(3)
    assert idle.waiting == []
    assert pool.timers.hold.next_due is not None
    pool.clock.passes(1.0)
    pool.run_due()
    assert idle.waiting == pool.ids(jobs[:2])  # its share
    assert jobs[2].phase == QUEUED
    assert busy.waiting == []
    assert pool.timers.hold.next_due is None


def test_without_a_thread_that_looks_short_jobs_do_not_wait(make: Make) -> None:
    pool = make(3, cpus=1)
    busy, idle = pool.start(2)
    if pool.submit(1)[0].slot is idle.handle:
        busy, idle = idle, busy
    pool.state.scheduler.mean_seconds = SHORT_SECONDS / 2
    busy.begin()
    pool.rearm_trouble = RuntimeError("can't start new thread")
    (job,) = pool.submit(1)
    assert idle.waiting == [job.id]
    assert pool.timers.hold.next_due is None


def test_what_waits_behind_a_long_job_is_run_before_what_came_later(pool: FakePool) -> None:
    long, brisk = pool.start(2)
    pool.submit(4)  # each runs one, with another one behind
    queued = pool.submit(3)
    long.begin()
    (behind,) = long.waiting
    pool.clock.passes(2 * ALONE_SECONDS)
    brisk.run_next()
    brisk.run_next()
    pool.collect()
    assert long.waiting == []
    assert brisk.waiting == [behind, queued[0].id]
    long.finish()
    pool.collect()
    assert long.waiting == [queued[1].id]


def test_who_was_held_back_is_needed_once_all_that_are_at_work_have_long_jobs(make: Make) -> None:
    pool = make(2, cpus=1)
    busy, idle = pool.start(2)
    if pool.submit(1)[0].slot is idle.handle:
        busy, idle = idle, busy
    pool.state.scheduler.mean_seconds = SHORT_SECONDS / 2
    waiting = pool.submit(2 * MAX_DEPTH)  # so that some are queued
    busy.run_next()  # this one was short
    pool.collect()
    busy.begin()
    assert idle.waiting == []
    pool.clock.passes(2 * ALONE_SECONDS)
    pool.run_due()
    assert waiting[1].id in idle.waiting
    assert busy.waiting == []


# ---- workers come and go


def test_a_worker_that_is_dismissed_leaves_after_what_it_runs(pool: FakePool) -> None:
    (worker,) = pool.start(1)
    first, second = pool.submit(2)
    worker.begin()
    with pool.state.lock:
        pool.dispatcher.dismiss(worker.handle, "enough")
    assert worker.told_to_leave
    assert (worker.waiting, second.phase) == ([], QUEUED)
    (other,) = pool.start(1)
    assert other.waiting == [second.id]
    worker.finish("done")
    pool.collect()
    assert pool.told.value(first) == "done"
    assert worker.waiting == []


def test_whoever_needs_the_lock_says_so(pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    (worker,) = pool.start(1)
    monkeypatch.setattr("prefork._engine.state._CHECKS", True)
    calls: list[Callable[[], object]] = [
        pool.dispatcher.hand_out,
        lambda: pool.dispatcher.dismiss(worker.handle, "enough"),
        lambda: pool.dispatcher.requeue_unread(worker.handle),
        lambda: pool.dispatcher.remove_worker(worker.handle),
        lambda: pool.collector.isolate(worker.handle),
    ]
    for call in calls:
        with pytest.raises(AssertionError, match="lock is needed"):
            call()
    with pool.state.lock:
        pool.dispatcher.hand_out()
    assert pool.state.phase is PoolPhase.RUN
