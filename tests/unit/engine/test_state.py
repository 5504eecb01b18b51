"""What the lock guards: open jobs, outcomes to be delivered, the pool's phase."""

from __future__ import annotations

from typing import Any

import pytest

from fakes import FakePool, Told
from prefork._engine.outcomes import ACCEPTED, ERROR, EXPIRED, Accepted, OutcomeQueue
from prefork._engine.state import MAX_OPEN_FILES, OpenJobs
from prefork._engine.witness import Witnesses
from prefork._ipc.outcome import Large, Outcome, Part, encode_result
from prefork._ipc.pickling import dumps
from prefork._ipc.wire import Kind
from prefork._policy.job import NULL_SINK, RESOLVED, Job, WorkerSlot
from prefork._policy.timers import Expiry


class Queue(OutcomeQueue):
    """Counts how often the result handler was woken."""

    def __init__(self) -> None:
        self.woken = 0
        super().__init__(self._wake_up, Witnesses())

    def _wake_up(self) -> None:
        self.woken += 1


class Bell:
    """What threads wait for."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def notify_all(self) -> None:
        self.log.append("notified")

    def wake_threads(self) -> None:
        self.log.append("threads notified")


class Payload:
    """A large call's file."""

    is_file = True
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def open_jobs(queue: Queue) -> OpenJobs:
    return OpenJobs(queue, Witnesses())


def done(value: object) -> tuple[int, bytes]:
    kind, pickled, _ = encode_result(value)
    return kind, pickled


# ---- outcomes


def test_all_is_delivered_in_its_order(queue: Queue, told: Told) -> None:
    job = Job(told, "task")
    queue.add(job, ACCEPTED, Accepted(42, 1.0))
    queue.add(job, EXPIRED, Expiry(WorkerSlot(), job, True, 2.0, 1.0))
    queue.add(job, *done("value"))
    assert (queue.woken, len(queue)) == (3, 3)
    queue.deliver()
    assert told.started == [(job.id, 42, 1.0)]
    assert told.limits == [(job.id, True, 2.0)]
    assert told.value(job) == "value"
    assert job.sink is NULL_SINK
    assert len(queue) == 0


def test_the_result_handler_is_not_woken_for_what_it_adds_itself(queue: Queue, told: Told) -> None:
    queue.is_reader_adding = True
    queue.add(Job(told, "task"), *done(1))
    assert queue.woken == 0


def test_who_waits_for_several_is_woken_once_at_the_end(queue: Queue) -> None:
    log: list[str] = []

    class Logging(Told):
        def job_done(self, job: Job, ok: bool, value: Any) -> Bell:
            log.append("done")
            return bell

    bell = Bell(log)
    sink = Logging()
    for _ in range(3):
        queue.add(Job(sink, "task"), *done(1))
    queue.deliver()
    assert log == ["done"] * 3 + ["notified"]


def test_for_a_large_result_at_once(queue: Queue) -> None:
    log: list[str] = []

    class Logging(Told):
        def job_done(self, job: Job, ok: bool, value: Any) -> Bell:
            log.append("done")
            return bell

    bell = Bell(log)
    _, pickled = done("large")
    queue.add(Job(Logging(), "task"), Kind.DONE, Large([memoryview(pickled)]))
    queue.add(Job(Logging(), "task"), *done(1))
    queue.deliver()
    assert log == ["done", "notified", "done", "notified"]


def test_a_chunks_outcomes_are_told_one_by_one(queue: Queue, told: Told) -> None:
    job = Job(told, "task")
    queue.add(job, Kind.OUTCOMES, dumps([(True, dumps(1)), (True, dumps(2))]))
    queue.deliver()
    assert told.value(job) == [Outcome(True, 1), Outcome(True, 2)]


def test_a_part_of_a_resolved_job_is_too_late(open_jobs: OpenJobs, told: Told) -> None:
    """Else it would be kept for ever: nobody comes for it any more."""
    early, late = Job(told, "task", size=5), Job(told, "task", size=5)
    for job in (early, late):
        open_jobs.add(job)
    open_jobs.add_part(early, Part(2, dumps([])))
    open_jobs.fail(late, ValueError("too late"))
    open_jobs.add_part(late, Part(2, dumps([])))
    assert (early.first, late.first) == (2, 0)


def test_a_sink_that_raises_hears_of_it_and_does_not_keep_the_others_from_theirs(
    queue: Queue, told: Told
) -> None:
    class Raising(Told):
        def job_done(self, job: Job, ok: bool, value: Any) -> None:
            super().job_done(job, ok, value)
            self.done_again = self.done.pop(job.id)
            if ok:
                raise KeyboardInterrupt

    bad, good = Raising(), Job(told, "task")
    queue.add(Job(bad, "task"), *done(1))
    queue.add(good, *done(2))
    with pytest.raises(KeyboardInterrupt):
        queue.deliver()
    ok, error = bad.done_again
    assert not ok
    assert isinstance(error, KeyboardInterrupt)
    queue.deliver()
    assert told.value(good) == 2


# ---- open jobs


def test_a_job_is_resolved_once(open_jobs: OpenJobs, queue: Queue, told: Told) -> None:
    job = Job(told, "task")
    open_jobs.add(job)
    open_jobs.resolve(job, *done(1))
    open_jobs.fail(job, KeyError("late"))
    queue.deliver()
    assert told.value(job) == 1
    assert job.phase == RESOLVED
    assert (open_jobs.finished, open_jobs.failed) == (1, 0)


def test_errors_are_counted_as_such(open_jobs: OpenJobs, told: Told) -> None:
    for kind in (ERROR, Kind.FAILED, Kind.DONE, Kind.OUTCOMES):
        job = Job(told, "task")
        open_jobs.add(job)
        open_jobs.resolve(job, kind, None)
    assert (open_jobs.finished, open_jobs.failed) == (2, 2)


def test_only_so_many_large_jobs_have_files_in_advance(open_jobs: OpenJobs, told: Told) -> None:
    large = []
    for _ in range(MAX_OPEN_FILES):
        assert open_jobs.may_open_file()
        job = Job(told, "task")
        job.payload = Payload()
        open_jobs.add(job)
        large.append(job)
    assert not open_jobs.may_open_file()
    payload = large[0].payload
    open_jobs.resolve(large[0], *done(1))
    assert payload.is_closed
    assert open_jobs.may_open_file()


# ---- the pool


def test_the_lock_is_whose_thread_has_it(pool: FakePool) -> None:
    assert not pool.state.is_lock_held()
    with pool.state.lock:
        assert pool.state.is_lock_held()


def test_a_pool_that_has_jobs_is_not_done(pool: FakePool) -> None:
    pool.submit(1)
    pool.lifecycle.close()
    pool.state.exits.ready(0)
    pool.state.check_done()
    assert not pool.state.is_done()
    (worker,) = pool.start(1)
    worker.run_next()
    pool.collect()
    pool.state.exits.ready(0)
    pool.state.check_done()
    assert pool.state.is_done()
    poller = pool.state.exits.ready
    assert poller(0) == []  # woken, by nobody's end
