"""Each item is sent, and comes to one outcome, whatever nodes say of it and in whatever order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork import DeadlineExceeded, Outcome, Retry, Terminated
from prefork._engine.job_factory import make_job
from prefork._ipc.wire import CALL, EACH, MAP
from prefork._policy.job import NULL_SINK
from prefork._policy.limits import Limits, Terms
from prefork.cluster.backlog import FEW_DEADLINES, MOST_BYTES, Backlog
from prefork.cluster.calls import Call, Kind
from prefork.cluster.sizes import Sizes

KIND = Kind("work:f", "one", "", None, None, None)


@pytest.fixture
def sizes():
    return Sizes()


@pytest.fixture
def backlog(sizes):
    return Backlog(sizes, lambda: 0.0)


def job_of(texts, mode=EACH, terms=None, kind=KIND):
    limits = Limits(terms=terms)
    job = make_job(NULL_SINK, "work.f", mode, limits, len(texts))
    job.set_payload(Call(kind, list(texts), 0), 0)
    return job


def add(backlog, texts, **options):
    job = job_of(texts, **options)
    backlog.add(job, 0.0)
    return job


def settle(backlog, chunk, errors=(), not_run=(), now=0.0):
    failures = {at: ValueError(at) for at in errors}
    return backlog.settle(chunk, chunk.texts(), failures, set(not_run), now)


def test_the_first_chunk_is_one_item_and_then_they_grow(backlog, sizes):
    add(backlog, "abcdefghijklmnopqrstuvwxyz" * 10)
    assert backlog.take(1).size == 1
    sizes.measured("work:f", 1, 0.00001)
    assert backlog.take(1).size == 8
    sizes.measured("work:f", 8, 0.00008)
    assert backlog.take(1).size == 64


def test_a_whole_job(backlog):
    job = add(backlog, "a", mode=CALL)
    chunk = backlog.take(1)
    assert backlog.take(1) is None
    assert settle(backlog, chunk) == [(job, True, "a")]
    assert (backlog.jobs, backlog.waiting) == ({}, 0)


def test_a_map_fails_with_its_first_error(backlog, sizes):
    sizes.measured("work:f", 100, 0.001)
    add(backlog, "abcd", mode=MAP)
    ((_, ok, error),) = settle(backlog, backlog.take(1), errors=[3, 1])
    assert not ok
    assert error.args == (1,)


def test_what_was_not_begun_is_taken_again_first(backlog, sizes):
    sizes.measured("work:f", 1000, 0.0001)
    job = add(backlog, "abcd")
    add(backlog, "x")
    chunk = backlog.take(1)
    assert chunk.texts() == ["a", "b", "c", "d", "x"]
    assert len(settle(backlog, chunk, not_run=[1, 2])) == 1
    again = backlog.take(1)
    assert again.texts() == ["b", "c"]
    ((found, ok, outcomes),) = settle(backlog, again)
    assert (found, ok) == (job, True)
    assert outcomes == [Outcome(True, each) for each in "abcd"]


def test_a_chunk_that_is_put_back(backlog):
    add(backlog, "abc")
    chunk = backlog.take(1)
    backlog.put_back(chunk)
    assert backlog.waiting == 3
    assert backlog.take(1).texts() == ["a"]
    assert backlog.take(1).texts() == ["b"]


def test_unlike_calls_go_apart(backlog, sizes):
    sizes.measured("work:f", 1000, 0.0001)
    add(backlog, "a")
    add(backlog, "b", kind=KIND._replace(timeout=1.0))
    assert backlog.take(1).texts() == ["a"]
    assert backlog.take(1).texts() == ["b"]


def test_large_ones_go_alone(backlog, sizes):
    sizes.measured("work:f", 1000, 0.0001)
    large = "x" * (MOST_BYTES - 1)
    add(backlog, [large, large, "y", "z"])
    assert backlog.take(1).texts() == [large]
    assert backlog.take(1).size == 2
    assert backlog.take(1).texts() == ["z"]
    assert backlog.take(1) is None


def test_priorities(backlog):
    add(backlog, "a")
    add(backlog, "b", terms=Terms(priority=-1))
    assert backlog.take(1).texts() == ["b"]
    assert backlog.take(1).texts() == ["a"]


def test_retries_of_the_items_that_have_failed(backlog, sizes):
    sizes.measured("work:f", 1000, 0.0001)
    terms = Terms(retries=Retry(1, on=ValueError, backoff=5.0, jitter=0.0))
    job = add(backlog, "abc", terms=terms)
    assert settle(backlog, backlog.take(1), errors=[1]) == []
    assert backlog.take(1) is None
    assert backlog.next_due() == 5.0
    assert backlog.run_due(5.0) == []
    chunk = backlog.take(1)
    assert chunk.texts() == ["b"]
    ((found, ok, outcomes),) = settle(backlog, chunk, errors=[0])
    assert (found, ok) == (job, True)
    assert [outcome.ok for outcome in outcomes] == [True, False, True]
    assert (job.retried(), backlog.retried) == (1, 1)


def test_a_deadline(backlog):
    job = add(backlog, "a", mode=CALL, terms=Terms(deadline=3.0))
    chunk = backlog.take(1)
    assert backlog.next_due() == 3.0
    assert backlog.run_due(2.9) == []
    ((found, ok, error),) = backlog.run_due(3.0)
    assert (found, ok, type(error)) == (job, False, DeadlineExceeded)
    assert not chunk.is_wanted()
    assert settle(backlog, chunk) == []


def test_a_job_that_is_ended_is_not_sent(backlog):
    job, other = add(backlog, "abc"), add(backlog, "x")
    assert backlog.is_unsent(job)
    first = backlog.take(1)
    assert not backlog.is_unsent(job)
    assert len(backlog.fail(job, Terminated())) == 1
    assert backlog.fail(job, Terminated()) == []
    backlog.put_back(first)
    assert backlog.take(1).texts() == ["x"]
    assert backlog.take(1) is None
    assert list(backlog.jobs.values()) == [other]
    assert backlog.waiting == 0


def test_a_job_whose_submission_was_interrupted_anywhere(backlog):
    add(backlog, "abc")
    first = backlog.take(1)
    backlog.put_back(first)
    for half in range(3):
        job = job_of("xyz")
        if half > 0:
            backlog.jobs[job.id] = job
        if half > 1:
            backlog._fresh[0].append(job)
        ((found, ok, error),) = backlog.withdraw(job, Terminated())
        assert (found, ok, type(error)) == (job, False, Terminated)
        assert backlog.waiting == 3
    assert backlog.take(1).texts() == ["a"]
    assert len(backlog.jobs) == 1


def test_deadlines_of_jobs_that_are_over_are_not_kept(backlog):
    for _ in range(3 * FEW_DEADLINES):
        job = add(backlog, "a", mode=CALL, terms=Terms(deadline=3600.0))
        backlog.fail(job, Terminated())
    last = add(backlog, "a", mode=CALL, terms=Terms(deadline=7200.0))
    assert len(backlog._deadlines) <= 2 * FEW_DEADLINES
    backlog.run_due(3601.0)
    assert backlog.next_due() == last.latest


@given(st.lists(st.integers(1, 40), max_size=8), st.randoms(use_true_random=False))
def test_each_item_has_one_outcome(jobs, chance: random.Random):
    sizes = Sizes()
    sizes.measured("work:f", 10, 0.001)
    backlog = Backlog(sizes, lambda: 0.0)
    resolved, count = {}, 0
    for number, size in enumerate(jobs):
        add(backlog, [f"{number}.{item}" for item in range(size)])
        count += size
    out = []
    while backlog.jobs:
        if (chunk := backlog.take(2)) is not None:
            out.append(chunk)
        if out and (chunk is None or chance.random() < 0.5):
            chunk = out.pop(chance.randrange(len(out)))
            if chance.random() < 0.2:
                backlog.put_back(chunk)
                continue
            sizes.measured("work:f", chunk.size, chunk.size * 0.0001)
            at = range(chunk.size)
            not_run = [n for n in at if chance.random() < 0.3]
            errors = [n for n in at if n not in not_run and chance.random() < 0.3]
            for job, ok, value in settle(backlog, chunk, errors, not_run):
                assert ok
                assert job.id not in resolved
                resolved[job.id] = value
    assert not out
    assert backlog.waiting == 0
    outcomes = [outcome for job in sorted(resolved) for outcome in resolved[job]]
    assert len(outcomes) == count
    expected = [f"{number}.{item}" for number, size in enumerate(jobs) for item in range(size)]
    assert all(o.value == text for o, text in zip(outcomes, expected, strict=True) if o.ok)
