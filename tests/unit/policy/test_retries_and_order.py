"""When a job is run again, and which one is next: no processes, no clock."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork._engine.job_factory import make_job
from prefork._ipc.wire import CALL
from prefork._policy.job import NULL_SINK, Job, WorkerSlot
from prefork._policy.limits import NO_LIMITS, Limits
from prefork._policy.priorities import PriorityQueue
from prefork._policy.retry import Retry
from prefork._policy.scheduler import BATCH_SECONDS, Scheduler
from prefork._policy.terms import JobOnTerms
from prefork._policy.timers import FEW, JobTimer
from prefork.errors import WorkerLostError

LOST = WorkerLostError(1, "print", 2, -9)


def job_of(priority: int | None = None, retries: Any = None) -> Job:
    limits = NO_LIMITS.override(retries=retries).with_terms(priority)
    return make_job(NULL_SINK, "print", CALL, limits)


def job_on_terms(priority: int | None = None, retries: Any = None) -> JobOnTerms:
    job = job_of(priority, retries)
    assert isinstance(job, JobOnTerms)
    return job


def priority_of(job: Job) -> int:
    return job.priority()


# --- retries


@pytest.mark.parametrize(
    ("chance", "pauses"), [(0.0, [1.0, 3.0, 5.0, 5.0]), (1.0, [0.75, 2.25, 3.75, 3.75])]
)
def test_pauses_grow_up_to_the_longest_and_a_part_is_left_to_chance(chance, pauses):
    retry = Retry(4, backoff=1, factor=3, max_backoff=5, jitter=0.25)
    assert [retry.pause(number, chance) for number in (1, 2, 3, 4)] == pauses


def test_no_number_is_too_large():
    assert Retry(backoff=1, max_backoff=math.inf).pause(5000, 0.0) == math.inf
    assert Retry(backoff=1).pause(5000, 0.0) == 60.0
    assert Retry(backoff=0).pause(5000, 0.5) == 0.0


class Sly(type):
    """A class of exceptions that says whatever suits it."""

    def __instancecheck__(cls, instance):
        raise AssertionError("a user's code was run")

    __subclasscheck__ = __instancecheck__

    def __eq__(cls, other):
        raise AssertionError("a user's code was run")

    __hash__ = type.__hash__


class SlyError(Exception, metaclass=Sly):
    pass


class SlierError(SlyError):
    pass


def test_an_error_is_judged_without_code_of_its_class():
    retry = Retry(1, on=(SlyError, KeyError))
    assert retry.covers(SlierError())
    assert retry.covers(KeyError())
    assert not retry.covers(LookupError())


def test_a_job_has_as_many_retries_as_it_asks_for():
    job = job_on_terms(retries=2)
    for now in (1.0, 2.0):
        assert job.next_run(KeyError(), now, 0.5) is None
        assert job.next_run(LOST, now, 0.5) == now
        job.note_failure(LOST)
    assert job.next_run(LOST, 3.0, 0.5) is None
    assert [attempt.number for attempt in job.attempts()] == [1, 2]


def test_a_job_is_not_run_again_after_its_deadline():
    job = job_on_terms(retries=Retry(2, backoff=1, jitter=0))
    job.end_by(5.0)
    job.end_by(9.0)  # the first counts
    assert job.next_run(LOST, 3.9, 0.0) == 4.9
    assert job.next_run(LOST, 4.0, 0.0) is None


# --- what is asked for


def test_who_asks_for_nothing_gets_a_plain_job():
    assert type(job_of()) is Job
    assert type(job_of(priority=0)) is Job
    assert type(job_of(retries=0)) is Job
    limits = Limits().override(retries=3).with_terms(-1, 4)
    assert type(make_job(NULL_SINK, "print", CALL, limits)) is JobOnTerms
    none = limits.override(retries=0).with_terms(0, math.inf)
    assert none == Limits()
    assert (limits.latest(10.0), none.latest(10.0)) == (14.0, None)


# --- the order


@given(st.lists(st.integers(-3, 3) | st.sampled_from(["pop", "return"])))
def test_a_queue_by_priorities_is_as_one_that_is_sorted(steps):
    queue, model, taken = PriorityQueue(), [], []
    for step in steps:
        if step == "pop":
            if model:
                assert queue[0] is model[0]
                taken.append(queue.popleft())
                assert taken[-1] is model.pop(0)
        elif step == "return":
            queue.extendleft(reversed(taken))
            model = sorted(taken + model, key=priority_of)
            taken.clear()
        else:
            job = job_of(step)
            queue.append(job)
            model = sorted([*model, job], key=priority_of)  # it is stable
        assert list(queue) == model
        assert len(queue) == len(model)
    assert list(PriorityQueue(queue)) == model


def test_workers_get_less_ahead_once_there_are_priorities():
    scheduler, slot = Scheduler(), WorkerSlot()
    scheduler.add(slot)
    scheduler.mean_seconds = 5 * BATCH_SECONDS
    plain = [job_of() for _ in range(4)]
    assert [scheduler.submit(job) for job in plain] == [slot, slot, None, None]
    urgent = job_of(-1)
    assert scheduler.begin_priorities(urgent)
    assert not scheduler.begin_priorities(job_of(-2))
    scheduler.return_jobs(slot, [plain[1].id])
    assert list(scheduler.queue) == [urgent, *plain[1:]]
    assert list(scheduler.batches()) == []  # it is at work
    slot.sent.clear()
    scheduler.note_finished(slot, 1, 5 * BATCH_SECONDS)
    assert list(scheduler.batches()) == [(slot, [urgent])]
    starting = WorkerSlot()
    starting.ready = False
    scheduler.add(starting)
    assert list(scheduler.batches()) == []
    scheduler.mark_ready(starting)
    assert list(scheduler.batches()) == [(starting, [plain[1]])]


# --- when


def test_a_job_timer_tells_what_is_due_the_earliest_first():
    timer, jobs = JobTimer(), {1, 2, 3}
    assert timer.next_due is None
    assert timer.add(5.0, 1, jobs)
    assert not timer.add(6.0, 2, jobs)
    assert timer.add(4.0, 3, jobs)
    assert timer.next_due == 4.0
    assert timer.take_due(3.0) == []
    assert timer.take_due(5.0) == [3, 1]
    assert timer.next_due == 6.0
    assert timer.take_due(6.0) == [2]
    assert timer.next_due is None


def test_a_job_timer_forgets_those_that_are_over():
    timer, jobs = JobTimer(), {*range(10)}
    for number in range(10_000):
        timer.add(1e9 + number, number, jobs)
    assert len(timer.take_due(1e10)) <= 10 + FEW
