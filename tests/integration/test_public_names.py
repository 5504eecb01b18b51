"""The public face: what there is, what it is called, and that pickles find it there."""

from __future__ import annotations

import pickle
import subprocess
import sys
import traceback
import typing

import pytest

import prefork
from helpers import DEADLINE
from prefork.adapters import AdapterPool

OF_THE_STANDARD_LIBRARY = {"RemoteTraceback", "TimeoutError"}
OURS = sorted(set(prefork.__all__) - OF_THE_STANDARD_LIBRARY)

ERRORS = [
    prefork.MaybeDecodingError("thing.Thing", "it is broken", "its traceback"),
    prefork.MemoryLimitExceeded(100, 200, 3, "f", 4711, "its stack"),
    prefork.PoolBrokenError("no workers"),
    prefork.SoftTimeLimitExceeded(),
    prefork.Terminated("it was terminated"),
    prefork.TimeLimitExceeded(1.5, 3, "f", 4711, "its stack"),
    prefork.WorkerLostError(3, "f", 4711, -9, "its stack", "a note"),
]

VERBS = """
apply apply_async submit options executor each_async
map map_async starmap starmap_async imap imap_unordered
processes grow shrink restart terminate_job statistics dump_stacks record share
close aclose terminate join attach detach handle_events
"""
PARTS = """
Process ResultHandler TaskHandler TimeoutHandler Supervisor SoftTimeLimitExceeded
"""
FOR_ADAPTERS = """apply_noted
CallbackRunner first_start_timeout load_seconds call_soon when_broken is_broken is_busy_here
"""


def public_members(cls):
    return {name for name in dir(cls) if not name.startswith("_")}


def test_a_pool_has_what_its_users_need():
    assert public_members(prefork.Pool) == {*VERBS.split(), *PARTS.split()}


def test_a_pool_for_adapters_has_what_they_need_besides():
    more = public_members(AdapterPool) - public_members(prefork.Pool)
    assert more == set(FOR_ADAPTERS.split())


@pytest.mark.parametrize("name", OURS)
def test_names_are_called_as_they_are_imported(name):
    thing = getattr(prefork, name)
    assert thing.__module__ == "prefork"
    assert thing.__qualname__ == name
    assert f"prefork.{name}" in repr(thing) or not isinstance(thing, type) or name == "WorkerState"
    assert pickle.loads(pickle.dumps(thing)) is thing


def test_a_fresh_process_unpickles_an_error():
    """It has imported nothing of the package."""
    code = "import pickle, sys; print(repr(pickle.load(sys.stdin.buffer).function))"
    error = pickle.dumps(prefork.WorkerLostError(3, "f", 4711, -9))
    assert subprocess.check_output([sys.executable, "-c", code], input=error) == b"'f'\n"


def raise_it(error):
    raise error


def test_errors_go_to_workers_and_come_back(make_pool, context):
    pool = make_pool(1, context=context)
    for error in ERRORS:
        with pytest.raises(type(error)) as caught:
            pool.apply_async(raise_it, (error,)).get(DEADLINE)
        assert vars(caught.value) | {"__notes__": None} == vars(error) | {"__notes__": None}
        assert caught.value.args == error.args
        assert str(caught.value) == str(error)


def test_an_encoding_error_comes_back(make_pool, context):
    with pytest.raises(prefork.MaybeEncodingError, match="generator"):
        make_pool(1, context=context).apply(eval, ("(i for i in ())",))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_traceback_shows_the_public_name(error):
    lines = traceback.format_exception_only(error)
    assert lines[0].startswith(f"prefork.{type(error).__name__}")


def test_one_base_for_both_limits():
    time, memory = prefork.TimeLimitExceeded(1.5, 3, "f", 9), ERRORS[1]
    for error in (time, memory):
        assert isinstance(error, prefork.LimitExceeded)
        assert isinstance(error, prefork.PreforkError)
        assert (error.job, error.function) == (3, "f")
    assert (
        str(time) == "job 3 (f) exceeded its time limit of 1.5 s; its worker process 9 was killed"
    )
    assert str(memory) == (
        "job 3 (f) had 200 KiB of memory resident, more than the 100 KiB allowed; "
        "its worker process 4711 was killed\nits stack"
    )


@pytest.mark.parametrize(
    "name", ["ApplyResult", "MapResult", "IMapIterator", "IMapUnorderedIterator"]
)
def test_results_name_their_type(name):
    cls = getattr(prefork, name)
    assert typing.get_origin(cls[int]) is cls
    assert typing.get_args(cls[int]) == (int,)
    assert repr(cls[int]) == f"prefork.{name}[int]"


@pytest.mark.parametrize("name", ["Outcome", "PoolStatistics", "WorkerExit", "WorkerStatistics"])
def test_the_fields_of_tuples_have_types(name):
    cls = getattr(prefork, name)
    assert list(typing.get_type_hints(cls)) == list(cls._fields)


@pytest.mark.parametrize("call", ["apply", "map", "map_async", "starmap", "imap", "each_async"])
def test_an_unknown_option_is_refused(make_pool, call):
    with pytest.raises(TypeError, match=rf"{call}\(\) got an unexpected keyword argument 'n_jobs'"):
        getattr(make_pool(1), call)(abs, [1], n_jobs=3)
