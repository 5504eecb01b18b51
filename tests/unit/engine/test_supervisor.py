"""How many workers there are: watched, replaced, dismissed, reaped; and the pool's end."""

from __future__ import annotations

import select
import signal
from collections.abc import Callable

import pytest

from fakes import STACK, FakePool, FakeReader
from prefork._engine.state import PoolPhase
from prefork._engine.supervisor import EXIT_SECONDS
from prefork._engine.worker_handle import CLOSED_SECONDS, GIVE_UP_SECONDS, Phase
from prefork._ipc.wire import Kind
from prefork._policy.job import QUEUED
from prefork._system.log import CRITICAL, DEBUG, WARNING
from prefork._system.stacks import LAST_WORDS
from prefork.errors import PoolBrokenError, Terminated, WorkerLostError

Make = Callable[..., FakePool]


@pytest.fixture
def pool(make: Make) -> FakePool:
    """Two workers, ready."""
    pool = make(2)
    pool.start(2)
    return pool


def names(pool: FakePool) -> list[str]:
    return [worker.name for worker in pool.state.workers]


# ---- how many


def test_a_pool_that_has_what_it_wants_waits_until_it_is_woken(pool: FakePool) -> None:
    assert pool.supervise() is None
    assert len(pool.workers) == 2


def test_who_has_died_is_replaced_and_its_place_is_used_again(pool: FakePool) -> None:
    first, second = pool.workers
    first.die()
    pool.supervise()
    assert names(pool) == [second.handle.name, "PreforkWorker-3"]
    assert pool.workers[-1].child.index == first.child.index
    assert first.channel.is_closed
    assert first.child.is_collected
    assert first.child.is_closed


def test_who_leaves_is_replaced_at_once(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    leaving = pool.worker_of(job)
    leaving.begin()
    with pool.state.lock:
        pool.dispatcher.dismiss(leaving.handle, "enough")
    pool.supervise()
    assert len(pool.workers) == 3
    assert pool.workers[-1].child.index == leaving.child.index  # its place goes over


def test_nobody_is_started_while_a_killed_one_is_waited_for(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    worker = pool.worker_of(job)
    worker.child.survives = {signal.SIGKILL}
    worker.begin()
    pool.terminator.terminate(job)
    assert pool.supervise() == GIVE_UP_SECONDS
    assert len(pool.workers) == 2
    worker.die()
    pool.supervise()
    assert len(pool.workers) == 3


def test_a_pool_can_grow_and_shrink(pool: FakePool) -> None:
    pool.supervisor.resize(+2)
    pool.supervise()
    assert len(pool.state.workers) == 4
    pool.supervisor.resize(-3)
    pool.supervise()
    assert sum(worker.told_to_leave for worker in pool.workers) == 3
    with pytest.raises(ValueError, match="one must be left"):
        pool.supervisor.resize(-1)
    pool.lifecycle.close()
    with pytest.raises(ValueError, match="closed"):
        pool.supervisor.resize(1)


def test_who_has_nothing_to_do_goes_first(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    busy = pool.worker_of(job)
    busy.begin()
    pool.supervisor.resize(-1)
    pool.supervise()
    assert [worker.told_to_leave for worker in pool.workers] == [
        worker is not busy for worker in pool.workers
    ]


def test_one_that_is_stopped_while_it_starts_can_leave_all_the_same(pool: FakePool) -> None:
    pool.submit(2)
    (new,) = pool.start(1, ready=False)
    pool.supervisor.resize(-1)
    pool.supervise()
    assert new.told_to_leave
    assert new.child.signals == [signal.SIGCONT]


def test_all_are_replaced_one_after_another_when_the_next_one_is_ready(pool: FakePool) -> None:
    old = list(pool.workers)
    pool.supervisor.replace_all()
    pool.supervise()
    assert len(pool.workers) == 3
    assert not any(worker.told_to_leave for worker in old)
    pool.workers[-1].become_ready()
    pool.settle()
    assert [worker.told_to_leave for worker in old].count(True) == 1
    next(worker for worker in old if worker.told_to_leave).leave()
    pool.settle()
    assert len(pool.workers) == 4
    pool.workers[-1].become_ready()
    pool.settle()
    for worker in old:
        if worker.told_to_leave and worker.child.exitcode is None:
            worker.leave()
    pool.settle()
    assert len(pool.state.workers) == 2
    assert len(pool.workers) == 4


# ---- ends of workers


def test_a_worker_that_leaves_in_order_is_no_news(pool: FakePool) -> None:
    worker = pool.workers[0]
    with pool.state.lock:
        pool.dispatcher.dismiss(worker.handle, "enough")
    worker.leave()
    pool.supervise()
    assert pool.log.texts(WARNING) == []
    assert any("exited with code 0: enough" in text for text in pool.log.texts(DEBUG))
    (end,) = pool.supervisor.history
    assert (end.pid, end.exitcode, end.reason) == (worker.handle.pid, 0, "enough")


def test_one_that_dies_is(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    worker = pool.worker_of(job)
    worker.begin()
    worker.die(-signal.SIGSEGV)
    pool.supervise()
    (text,) = pool.log.texts(WARNING)
    assert f"was killed by SIGSEGV: it ran job {job.id} (fakes.task)" in text


def test_a_worker_that_has_done_its_share_says_so(make: Make) -> None:
    pool = make(1, max_tasks=1)
    (worker,) = pool.start(1)
    pool.submit(1)
    worker.run_next()
    worker.child.exit(0)
    pool.supervise()
    assert pool.supervisor.history[-1].reason == "it has run 1 tasks"


def test_a_kill_for_lack_of_memory_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    class Kills:
        def any_new(self) -> bool:
            return True

    monkeypatch.setattr("prefork._engine.supervisor.OutOfMemoryKills", Kills)
    pool = make(1)
    (worker,) = pool.start(1)
    (job,) = pool.submit(1)
    worker.begin()
    worker.die(-signal.SIGKILL)
    pool.supervise()
    assert pool.told.error(job).note == "the kernel was out of memory"


def test_a_task_that_closed_the_channel_is_killed_a_moment_later(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    worker = pool.worker_of(job)
    worker.begin()
    worker.end.close()
    pool.collect()
    wait = pool.supervise()
    assert wait is not None
    assert wait == pytest.approx(CLOSED_SECONDS)
    assert worker.handle.phase is Phase.CLOSED
    pool.clock.passes(wait)
    pool.settle()
    error = pool.told.error(job)
    assert isinstance(error, WorkerLostError)
    assert "its task has closed the channel" in pool.supervisor.history[-1].reason


def test_it_is_sent_nothing_more_and_what_it_had_not_read_waits_for_others(make: Make) -> None:
    pool = make(1)
    (worker,) = pool.start(1)
    _, unread = pool.submit(2)
    worker.begin()
    worker.end.close()
    pool.collect()
    pool.supervise()
    (new,) = pool.submit(1)
    assert (unread.phase, new.phase) == (QUEUED, QUEUED)
    assert worker.waiting == []


def test_one_that_has_said_goodbye_has_a_while_for_its_exit(pool: FakePool) -> None:
    worker = pool.workers[0]
    with pool.state.lock:
        pool.dispatcher.dismiss(worker.handle, "enough")
    worker.end.close()
    pool.collect()
    assert pool.supervise() == EXIT_SECONDS
    assert len(pool.workers) == 3  # its successor does not wait for that
    pool.clock.passes(EXIT_SECONDS)
    pool.settle()
    assert "has not ended 10 s after its last task" in pool.supervisor.history[-1].reason
    assert worker.handle.phase is Phase.REAPED


def test_one_that_not_even_the_kernel_ends_is_given_up(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    worker = pool.worker_of(job)
    worker.begin()
    worker.child.survives = {signal.SIGKILL}
    pool.terminator.terminate(job)
    pool.supervise()
    pool.clock.passes(GIVE_UP_SECONDS)
    pool.supervise()
    assert worker.handle.phase is Phase.REAPED
    assert isinstance(pool.told.error(job), Terminated)
    assert len(pool.state.workers) == 2


def test_nobody_looks_again_and_again_at_one_that_is_killed_and_has_closed_its_channel(
    pool: FakePool,
) -> None:
    (job,) = pool.submit(1, timeout=5.0)
    worker = pool.worker_of(job)
    worker.begin()
    worker.child.survives = {LAST_WORDS, signal.SIGKILL}
    pool.clock.passes(5.0)
    pool.run_due()
    worker.end.close()
    pool.collect()
    waits = [pool.supervise() for _ in range(3)]
    wait = waits[-1]
    assert wait is not None
    assert wait > 0.0
    poll = select.poll()
    poll.register(pool.state.exits.fileno(), select.POLLIN)
    assert poll.poll(0) == []
    pool.clock.passes(wait)
    pool.supervise()
    assert worker.child.signals[-1] == signal.SIGKILL


def test_the_end_of_one_that_was_given_up_harms_nothing(pool: FakePool) -> None:
    worker = pool.workers[0]
    exited = [worker.handle]
    worker.die()
    pool.supervise()
    before = list(pool.state.workers)
    pool.supervisor.supervise(exited)
    assert pool.state.workers == before


# ---- starts


def test_a_start_that_takes_too_long_is_ended_with_its_stack(make: Make) -> None:
    pool = make(1, start_timeout=60.0)
    (worker,) = pool.start(1, ready=False)
    assert pool.supervise() == 60.0
    pool.clock.passes(60.0)
    pool.supervise()
    assert worker.child.signals == [LAST_WORDS, signal.SIGCONT]
    pool.supervise()
    assert pool.state.broken is not None
    assert "not ready within 60 s" in str(pool.state.broken)
    assert STACK.splitlines()[0] in str(pool.state.broken)


def test_one_that_is_ready_in_time_is_not_waited_for_any_more(make: Make) -> None:
    pool = make(1, start_timeout=60.0)
    (worker,) = pool.start(1)
    assert pool.supervise() is None
    assert worker.handle.deadline is None


def test_one_that_was_late_is_not_ready_any_more(make: Make) -> None:
    """It may say so, if it was stopped: it is continued to say its last words."""
    pool = make(1, start_timeout=60.0)
    (late,) = pool.start(1, ready=False)
    late.child.survives = {LAST_WORDS}  # for a moment
    pool.clock.passes(60.0)
    pool.supervise()
    late.become_ready()
    pool.collect()
    assert pool.state.ready_count == 0
    assert late.waiting == []


def test_jobs_that_wait_for_a_late_worker_go_to_another_one(make: Make) -> None:
    pool = make(2, start_timeout=60.0)
    late, good = pool.start(2, ready=False)
    good.become_ready()
    pool.collect()
    jobs = pool.submit(4)
    pool.clock.passes(60.0)
    pool.supervise()
    assert late.waiting == []
    assert {*good.waiting} <= {*pool.ids(jobs)}
    pool.supervise()
    assert pool.told.done == {}
    assert pool.state.broken is None


# ---- the end


def test_a_closed_pool_ends_when_all_is_done(pool: FakePool) -> None:
    jobs = pool.submit(2)
    pool.lifecycle.close()
    pool.supervise()
    assert not any(worker.told_to_leave for worker in pool.workers)
    for worker in pool.workers:
        worker.run_next()
    pool.collect()
    pool.state.check_done()
    pool.supervise()
    assert {*pool.told.done} == {*pool.ids(jobs)}
    for worker in pool.workers:
        worker.leave()
    pool.supervise()
    assert pool.supervisor.is_over()
    pool.supervisor.release()
    assert pool.is_released
    assert pool.supervisor.wait_until_ended()
    assert len(pool.workers) == 2  # nobody was replaced


def test_a_closed_pool_replaces_who_dies_before_all_is_done(pool: FakePool) -> None:
    jobs = pool.submit(3)
    pool.lifecycle.close()
    for worker in pool.workers:
        worker.begin()
        worker.die()
    pool.supervise()
    assert not pool.supervisor.is_over()
    assert len(pool.told.done) == 2
    last = next(job for job in jobs if job.id not in pool.told.done)
    pool.worker_of(last).run_next("done")
    pool.collect()
    assert pool.told.value(last) == "done"


def test_a_closed_pool_waits_for_its_inputs(pool: FakePool) -> None:
    reader = FakeReader()
    pool.dispatcher.begin_input(reader)
    pool.lifecycle.close()
    pool.supervise()
    assert not any(worker.told_to_leave for worker in pool.workers)
    pool.dispatcher.end_input(reader)
    pool.supervise()
    assert all(worker.told_to_leave for worker in pool.workers)


def test_termination_is_asked_for_without_a_lock_and_done_by_the_supervisor(
    pool: FakePool,
) -> None:
    running, *others = pool.submit(3)
    busy = pool.worker_of(running)
    busy.begin()
    pool.supervisor.request_termination("it was enough")
    assert pool.told.done == {}
    pool.supervise()
    for job in (running, *others):
        assert str(pool.told.error(job)) == "it was enough before this job had finished"
    assert signal.SIGKILL in busy.child.signals
    for worker in pool.workers:
        if worker.told_to_leave:
            worker.leave()
    pool.supervise()
    assert pool.supervisor.is_over()


def test_a_supervisor_that_has_failed_leaves_nothing(pool: FakePool) -> None:
    (job,) = pool.submit(1)
    pool.supervisor.crash(KeyError("a bug"))
    pool.state.outcomes.deliver()
    assert isinstance(pool.told.error(job), PoolBrokenError)
    assert all(worker.child.is_closed for worker in pool.workers)
    assert pool.is_released
    assert pool.log.texts(CRITICAL) == ["a thread of the pool failed"]
    assert pool.state.phase is PoolPhase.ENDED


def test_the_newest_worker_does_not_end_a_pool_that_was_terminated_before_it_came(
    make: Make,
) -> None:
    pool = make(1)
    pool.lifecycle.stop(Terminated("over"))
    (worker,) = pool.start(1, ready=False)
    assert worker.child.signals == [signal.SIGKILL]
    pool.supervise()
    assert pool.supervisor.is_over()


def test_after_the_end_a_worker_that_comes_is_not_taken(make: Make) -> None:
    pool = make(1)
    pool.state.phase = PoolPhase.ENDED
    pool.spawner.spawn(1)
    assert pool.state.workers == []
    (child,) = pool.nursery.children
    assert child.signals == [signal.SIGKILL]
    assert child.is_collected
    assert child.is_closed
    assert pool.nursery.channels[0].is_closed


def test_what_is_queued_waits_for_the_successor(make: Make) -> None:
    pool = make(1)
    (worker,) = pool.start(1)
    first, second, third = pool.submit(3)
    worker.begin()
    worker.say(Kind.LEAVING, payload=b"")
    pool.collect()
    assert (second.phase, third.phase) == (QUEUED, QUEUED)
    pool.supervise()
    assert pool.workers[-1].waiting == [second.id]  # its share, while the other one is there
    assert first.slot is worker.handle
