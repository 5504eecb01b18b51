"""Jobs are made of calls; those that cannot be pickled say why."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from fakes import Told
from prefork._engine import job_factory
from prefork._engine.job_factory import JobFactory
from prefork._ipc.memfd import MemfdCache
from prefork._ipc.wire import CALL, EACH, INLINE, KEYWORDS, LIMITED, MAP
from prefork._policy.limits import NO_LIMITS, Limits


class NoPickle:
    def __reduce__(self) -> Any:
        raise TypeError("I stay here")


class Factory(JobFactory):
    def __init__(self) -> None:
        self.may_open = True
        super().__init__(lambda: self.may_open, MemfdCache())


@pytest.fixture
def factory() -> Factory:
    return Factory()


def test_a_call_with_keywords_says_so(factory: Factory) -> None:
    told = Told()
    plain = factory.call(told, int, ("7",), {}, NO_LIMITS)
    with_keywords = factory.call(told, int, ("7",), {"base": 8}, Limits(timeout=5.0))
    assert (plain.flags, plain.size, plain.function) == (CALL, 1, "builtins.int")
    assert with_keywords.flags == CALL | KEYWORDS | LIMITED
    assert pickle.loads(plain.pickled[plain.function_length :])
    assert plain.nbytes == len(plain.pickled)


def test_several_calls_are_one_job(factory: Factory) -> None:
    job = factory.each(Told(), int, ["7", "8"], NO_LIMITS)
    assert (job.flags, job.size) == (EACH, 2)


def test_a_map_is_one_job_for_each_chunk(factory: Factory) -> None:
    jobs = list(factory.chunks(Told(), MAP, int, [["1", "2"], ["3"]], NO_LIMITS))
    assert [(job.flags, job.size, job.index) for job in jobs] == [(MAP, 2, 0), (MAP, 1, 2)]


def test_a_map_ends_with_the_first_chunk_that_cannot_be_pickled(factory: Factory) -> None:
    jobs = factory.chunks(Told(), MAP, int, [["1"], [NoPickle()], ["3"]], NO_LIMITS)
    assert next(jobs).index == 0
    with pytest.raises(TypeError, match="I stay here"):
        next(jobs)


@pytest.mark.parametrize(
    ("chunksize", "expected"),
    [(1, [(CALL, 1, 0), (CALL, 1, 1), (CALL, 1, 2)]), (2, [(EACH, 2, 0), (EACH, 1, 1)])],
)
def test_an_imap_is_one_job_for_each_item_or_chunk(
    factory: Factory, chunksize: int, expected: list[tuple[int, int, int]]
) -> None:
    jobs = factory.items(Told(), int, iter("123"), chunksize, NO_LIMITS)
    assert [(job.flags, job.size, job.index) for job in jobs] == expected


def test_one_that_cannot_be_pickled_fails_with_the_reason(factory: Factory) -> None:
    job = factory.call(Told(), int, (NoPickle(),), {}, NO_LIMITS)
    error = job.pickling_error
    assert isinstance(error, TypeError)
    # Newer versions of Python note in which item of what, too.
    assert error.__notes__[-1] == "while pickling the call of builtins.int for a worker process"
    assert error.__traceback__ is None
    assert "in __reduce__" in str(error.__cause__)


LARGE = bytes(2 * INLINE)


@pytest.fixture
def large(factory: Factory) -> Iterator[list[Any]]:
    jobs: list[Any] = []
    yield jobs
    for job in jobs:
        job.resolve()


def test_a_large_call_gets_a_file(factory: Factory, large: list[Any]) -> None:
    job = factory.call(Told(), len, (LARGE,), {}, NO_LIMITS)
    large.append(job)
    assert job.payload is not None
    assert job.pickled == b""
    assert job.nbytes > len(LARGE)


def test_or_waits_in_memory_if_there_are_enough_of_them(factory: Factory) -> None:
    factory.may_open = False
    job = factory.call(Told(), len, (LARGE,), {}, NO_LIMITS)
    assert not job.payload.is_file
    assert job.payload.nbytes > len(LARGE)


def test_or_if_no_descriptor_is_left(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError("no descriptor is left")

    monkeypatch.setattr(job_factory, "FilePayload", refuse)
    job = factory.call(Told(), len, (bytearray(LARGE),), {}, NO_LIMITS)
    assert not job.payload.is_file
    assert job.payload.nbytes > len(LARGE)
