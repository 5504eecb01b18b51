"""Arguments that make no sense, and objects that do not pickle or unpickle."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.pool
import os
import pickle
import signal
import sys
import threading
import traceback
from queue import SimpleQueue

import pytest

from helpers import DEADLINE, METHODS, eventually, has_ended, log_start
from prefork import (
    MaybeDecodingError,
    MaybeEncodingError,
    Pool,
    PoolBrokenError,
    PreforkError,
    RemoteTraceback,
    WorkerLostError,
)


@pytest.fixture(scope="module", params=METHODS)
def pool(request):
    with Pool(2, context=multiprocessing.get_context(request.param)) as pool:
        yield pool


def square(x):
    return x * x


def works(pool):
    """Nothing else has suffered."""
    assert pool.map_async(square, range(20), 1).get(DEADLINE) == [x * x for x in range(20)]
    return True


# --- arguments of the pool


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("processes", 0, ValueError),
        ("processes", -1, ValueError),
        ("processes", 1.5, TypeError),
        ("processes", "2", TypeError),
        ("processes", True, TypeError),
        ("maxtasksperchild", 0, ValueError),
        ("maxtasksperchild", -1, ValueError),
        ("maxtasksperchild", 1.5, ValueError),
        ("maxtasksperchild", "2", ValueError),
        ("initializer", "x", TypeError),
        ("initializer", 5, TypeError),
        ("initargs", 5, TypeError),
    ],
)
def test_bad_arguments_of_a_pool_are_refused_by_name(name, value, error):
    with pytest.raises(error, match=name):
        Pool(**({"processes": 1} | {name: value}))


@pytest.mark.parametrize(
    "context", [5, object(), multiprocessing], ids=["number", "object", "module"]
)
def test_a_context_that_is_none_is_refused_by_name(context):
    with pytest.raises(TypeError, match="context"):
        Pool(1, context=context)


def test_an_unknown_start_method_is_refused_by_name():
    with pytest.raises(ValueError, match="teleport"):
        Pool(1, context="teleport")


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("1", TypeError), (True, TypeError)],
)
@pytest.mark.parametrize("name", ["chunksize", "buffersize"])
@pytest.mark.parametrize(
    "verb", ["map", "map_async", "starmap", "starmap_async", "imap", "imap_unordered"]
)
def test_bad_sizes_are_refused_by_name(make_pool, verb, name, value, error):
    if name == "buffersize" and "imap" not in verb:
        return
    pool = make_pool(1)
    with pytest.raises(error, match=f"^{name} must be"):
        getattr(pool, verb)(square, [1], **{name: value})
    assert works(pool)


# --- calls that do not pickle


class PicklesNot:
    def __reduce__(self):
        raise LookupError("no pickle of this")


class PicklesNotNorShows(PicklesNot):
    def __repr__(self):
        raise RuntimeError("no repr either")


BAD_ARGUMENTS = {
    "lock": (threading.Lock, TypeError, "cannot pickle"),
    "lambda": (lambda: lambda: 0, Exception, "(pickle|get local object).*<lambda>"),
    "generator": (lambda: (x for x in []), TypeError, "cannot pickle"),
    "own error": (PicklesNot, LookupError, "no pickle of this"),
    "no repr": (PicklesNotNorShows, LookupError, "no pickle of this"),
    "too deep": (lambda: nested(100_000), RecursionError, "recursion|Stack overflow"),
}


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.usefixtures("without_cloudpickle")
@pytest.mark.parametrize("what", BAD_ARGUMENTS)
def test_an_argument_that_does_not_pickle_fails_its_job_alone(pool, what):
    make, error, message = BAD_ARGUMENTS[what]
    before = pool.apply_async(square, (2,))
    failed = SimpleQueue()
    handle = pool.apply_async(abs, (make(),), callback=pytest.fail, error_callback=failed.put)
    after = pool.apply_async(square, (3,))
    with pytest.raises(error, match=message) as caught:
        handle.get(DEADLINE)
    assert any("while pickling the call of builtins.abs" in note for note in caught.value.__notes__)
    assert len(caught.value.__notes__) < 20  # not one for each level
    assert len("".join(traceback.format_exception(caught.value))) < 10_000
    assert failed.get(timeout=DEADLINE) is caught.value
    assert not handle.successful()
    assert not handle.accepted()
    assert (before.get(DEADLINE), after.get(DEADLINE)) == (4, 9)
    assert works(pool)


@pytest.mark.parametrize("kind", ["args", "kwds", "func"])
def test_wherever_it_is(pool, kind):
    call = {
        "args": (square, (PicklesNot(),)),
        "kwds": (square, (), {"x": PicklesNot()}),
        "func": (functools.partial(square, PicklesNot()),),
    }[kind]
    with pytest.raises(LookupError, match="no pickle of this"):
        pool.apply_async(*call).get(DEADLINE)
    assert works(pool)


@pytest.mark.parametrize("verb", ["map", "starmap"])
@pytest.mark.parametrize("chunksize", [None, 1, 3])
def test_an_item_that_does_not_pickle_fails_its_map(pool, verb, chunksize):
    items = [1, 2, PicklesNot(), 4]
    if verb == "starmap":
        items = [(item,) for item in items]
    failed = SimpleQueue()
    handle = getattr(pool, f"{verb}_async")(square, items, chunksize, None, failed.put)
    with pytest.raises(LookupError, match="no pickle of this"):
        handle.get(DEADLINE)
    assert isinstance(failed.get(timeout=DEADLINE), LookupError)
    assert works(pool)


# --- calls that do not unpickle


class UnpicklesNot:
    def __reduce__(self):
        return refuse, ("no unpickling of this",)


def refuse(message):
    raise LookupError(message)


def test_an_argument_that_does_not_unpickle_fails_its_job_alone(pool):
    handle = pool.apply_async(abs, (UnpicklesNot(),))
    with pytest.raises(LookupError, match="no unpickling of this") as caught:
        handle.get(DEADLINE)
    assert any("while unpickling the call" in note for note in caught.value.__notes__)
    assert "in refuse" in str(caught.value.__cause__)
    assert works(pool)


def test_a_pool_is_no_argument(pool):
    with pytest.raises(NotImplementedError, match="cannot be passed between processes"):
        pool.apply(square, (pool,))


# --- results that do not pickle


def returning(make):
    return make()


def lock_in_a_list():
    return [threading.Lock()]


def huge_and_unpicklable():
    return ["x" * 1_000_000, threading.Lock()]


class Anonymous(PicklesNot):
    def __repr__(self):
        return "hello"


def deep():
    return nested(100_000)


RESULTS = {
    lock_in_a_list: ("list", "cannot pickle '_thread.lock'"),
    PicklesNot: ("test_bad_input.PicklesNot", "no pickle of this"),
    PicklesNotNorShows: ("test_bad_input.PicklesNotNorShows", "no pickle of this"),
    Anonymous: ("test_bad_input.Anonymous", "no pickle of this"),
    huge_and_unpicklable: ("list", "cannot pickle '_thread.lock'"),
    deep: ("list", "RecursionError"),
}


@pytest.mark.parametrize("make", RESULTS, ids=lambda make: make.__name__)
def test_a_result_that_does_not_pickle(pool, make):
    type_name, reason = RESULTS[make]
    failed = SimpleQueue()
    handle = pool.apply_async(returning, (make,), callback=pytest.fail, error_callback=failed.put)
    with pytest.raises(MaybeEncodingError) as caught:
        handle.get(DEADLINE)
    message = str(caught.value)
    assert type_name in message
    assert reason in message
    assert len(message) < 2000
    assert isinstance(caught.value, multiprocessing.pool.MaybeEncodingError)
    assert failed.get(timeout=DEADLINE) is caught.value
    assert works(pool)


@pytest.mark.parametrize("chunksize", [None, 1, 3])
def test_such_a_result_in_a_map(pool, chunksize):
    with pytest.raises(MaybeEncodingError, match="cannot pickle"):
        pool.map(returning, [int, lock_in_a_list, int], chunksize)
    results = pool.imap(returning, [int, lock_in_a_list, int], chunksize or 1)
    assert next(results) == 0
    with pytest.raises(MaybeEncodingError, match="cannot pickle"):
        next(results)
    assert list(results) == [0]


# --- exceptions that do not pickle


class WithLock(Exception):
    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()


class Shy(WithLock):
    def __str__(self):
        raise RuntimeError("no str")

    __repr__ = __str__


def raising(cls, *args):
    raise cls(*args)


@pytest.mark.parametrize("cls", [WithLock, Shy])
def test_an_exception_that_does_not_pickle(pool, cls):
    handle = pool.apply_async(raising, (cls, "what the task said"))
    with pytest.raises(MaybeEncodingError) as caught:
        handle.get(DEADLINE)
    message = str(caught.value)
    assert f"test_bad_input.{cls.__name__}" in message
    assert "cannot pickle '_thread.lock'" in message
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in raising" in str(caught.value.__cause__)  # the task's own traceback
    if cls is WithLock:
        assert "what the task said" in str(caught.value.__cause__)
    assert works(pool)


def raising_a_local_class():
    class Local(Exception):
        pass

    raise Local("what the task said")


def test_an_exception_of_a_local_class(pool):
    with pytest.raises(Exception, match="what the task said") as caught:
        pool.apply(raising_a_local_class)
    assert type(caught.value).__name__ == "Local"
    assert "what the task said" in str(caught.value.__cause__)


# --- results and exceptions that do not unpickle


def unpickles_not():
    return UnpicklesNot()


class RaisesUnprintable:
    def __reduce__(self):
        return raise_unprintable, ()


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no str")

    __repr__ = __str__


def raise_unprintable():
    raise Unprintable


class Exits:
    """Its unpickling wants to end the process."""

    def __reduce__(self):
        return sys.exit, (3,)


class Interrupts:
    def __reduce__(self):
        return raising, (KeyboardInterrupt,)


class NeedsTwo(Exception):
    """The usual mistake: `args` has fewer items than the constructor has parameters."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


class BecomesNumber(Exception):
    def __reduce__(self):
        return int, ()


UNDECODABLE = {
    UnpicklesNot: "LookupError: no unpickling of this",
    RaisesUnprintable: "Unprintable",
    Exits: "SystemExit: 3",
    Interrupts: "KeyboardInterrupt",
}


@pytest.mark.parametrize("cls", UNDECODABLE)
def test_a_result_that_does_not_unpickle(pool, cls):
    failed = SimpleQueue()
    handle = pool.apply_async(returning, (cls,), callback=pytest.fail, error_callback=failed.put)
    with pytest.raises(MaybeDecodingError) as caught:
        handle.get(DEADLINE)
    message = str(caught.value)
    assert UNDECODABLE[cls] in message
    assert "unpickling it raised" in message
    assert failed.get(timeout=DEADLINE) is caught.value
    assert works(pool)


def test_its_type_is_named(pool):
    with pytest.raises(MaybeDecodingError) as caught:
        pool.apply(returning_needs_state)
    assert caught.value.type_name == "test_bad_input.NeedsState"
    assert "test_bad_input.NeedsState" in str(caught.value)


class NeedsState:
    def __setstate__(self, state):
        raise LookupError("not this state")


def returning_needs_state():
    value = NeedsState()
    value.x = 1
    return value


@pytest.mark.parametrize("chunksize", [1, 3])
def test_among_many_results_it_fails_alone(pool, chunksize):
    results = pool.imap(returning, [int, UnpicklesNot, int], chunksize)
    assert next(results) == 0
    with pytest.raises(MaybeDecodingError):
        next(results)
    assert list(results) == [0]
    with pytest.raises(MaybeDecodingError):
        pool.map(returning, [int, UnpicklesNot, int], chunksize)


@pytest.mark.parametrize(
    ("cls", "args", "reason"),
    [
        (NeedsTwo, (1, 2), "missing 1 required positional argument: 'b'"),
        (BecomesNumber, ("a",), "no exception"),
    ],
)
def test_an_exception_that_does_not_unpickle(pool, cls, args, reason):
    with pytest.raises(MaybeDecodingError) as caught:
        pool.apply(raising, (cls, *args))
    assert caught.value.type_name == f"test_bad_input.{cls.__name__}"
    message = str(caught.value)
    assert f"test_bad_input.{cls.__name__}" in message
    assert reason in message
    assert "in raising" in message  # the task's own traceback
    assert works(pool)


def test_errors_survive_another_pickling(pool):
    """So that a pool in a task of a pool reports them unchanged."""
    for call in [(returning, (lock_in_a_list,)), (raising, (NeedsTwo, 1, 2)), (os._exit, (3,))]:
        with pytest.raises(PreforkError) as caught:
            pool.apply(*call)
        copy = pickle.loads(pickle.dumps(caught.value))
        assert type(copy) is type(caught.value)
        assert str(copy) == str(caught.value)


# --- initializers


def failing_initializer(path, how):
    log_start(path, os.getpid())
    match how:
        case "raise":
            raise LookupError("no database")
        case "raise with lock":
            raise WithLock("no database")
        case "raise at length":
            raise LookupError("no database " * 100_000)
        case "sys.exit":
            sys.exit("no database")
        case "os._exit":
            os._exit(5)
        case "KeyboardInterrupt":
            raise KeyboardInterrupt
        case "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)


INITIALIZERS = {
    "raise": "initializer .*LookupError: no database",
    "raise with lock": r"initializer .*test_bad_input\.WithLock.*no database",
    "raise at length": "initializer .*LookupError: no database",
    "sys.exit": "initializer .*SystemExit: no database",
    "KeyboardInterrupt": "initializer .*KeyboardInterrupt",
    "os._exit": "exited with code 5 before it was ready",
    "SIGKILL": "SIGKILL before it was ready",
}


@pytest.mark.parametrize("how", [how for how in INITIALIZERS if how != "SIGKILL"])
def test_an_initializer_that_fails_breaks_the_pool_with_the_cause(
    make_pool, context, tmp_path, how
):
    starts = tmp_path / "starts"
    pool = make_pool(2, failing_initializer, (starts, how), context=context)
    breaks_with_the_cause(pool, starts, how)


def test_an_initializer_that_is_killed_is_tried_again_a_few_times(make_pool, tmp_path):
    starts = tmp_path / "starts"
    pool = make_pool(2, failing_initializer, (starts, "SIGKILL"))
    breaks_with_the_cause(pool, starts, "SIGKILL")
    assert len(starts.read_text().split()) > 2


def breaks_with_the_cause(pool, starts, how):
    failed = SimpleQueue()
    handle = try_to_submit(pool, failed)
    error = handle or failed.get(timeout=DEADLINE)
    assert isinstance(error, PoolBrokenError)
    assert failed.empty()
    with pytest.raises(PoolBrokenError, match=INITIALIZERS[how]) as caught:
        pool.apply_async(square, (1,))
    assert len(str(caught.value)) < 4000
    if how == "raise":
        assert isinstance(caught.value.__cause__, LookupError)
        assert "in failing_initializer" in str(caught.value.__cause__.__cause__)
    with pytest.raises(PoolBrokenError):
        pool.map(square, [1])
    with pytest.raises(PoolBrokenError):
        pool.imap(square, [1])
    assert pool.join(DEADLINE)
    pids = [int(line) for line in starts.read_text().split()]
    assert len(set(pids)) == len(pids) <= 20  # no restart storm
    eventually(lambda: all(map(has_ended, pids)), "the workers leave")


def try_to_submit(pool, failed):
    """The error, if the pool is broken already."""
    try:
        pool.apply_async(square, (1,), callback=pytest.fail, error_callback=failed.put)
    except PoolBrokenError as exc:
        return exc
    return None


def test_what_was_submitted_to_a_broken_pool_fails(make_pool, tmp_path):
    pool = make_pool(2, failing_initializer, (tmp_path / "starts", "raise"))
    handles = []

    def submit_for_ever():
        while True:
            handles.append(pool.apply_async(square, (1,)))

    with pytest.raises(PoolBrokenError, match="no database"):
        submit_for_ever()
    for handle in handles:
        with pytest.raises(PoolBrokenError, match="no database"):
            handle.get(DEADLINE)


@pytest.mark.usefixtures("without_cloudpickle")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_initializer_that_does_not_pickle_fails_the_constructor(method):
    context = multiprocessing.get_context(method)
    with pytest.raises(Exception, match=r"(pickle|get local object).*<lambda>"):
        Pool(2, lambda: None, context=context)
    with pytest.raises(LookupError, match="no pickle of this"):
        Pool(2, square, (PicklesNot(),), context=context)


def test_with_fork_an_initializer_need_not_pickle(make_pool):
    lock = threading.Lock()
    pool = make_pool(1, lambda x: x.acquire(), (lock,), context="fork")
    assert works(pool)
    assert not lock.locked()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_initializer_that_does_not_unpickle_breaks_the_pool(make_pool, method):
    pool = make_pool(2, square, (UnpicklesNot(),), context=multiprocessing.get_context(method))
    try:
        error = pool.apply_async(square, (1,)).get(DEADLINE)
    except PoolBrokenError as exc:
        error = exc
    assert isinstance(error, PoolBrokenError)
    assert "before it was ready" in str(error) or "no unpickling of this" in str(error)
    assert pool.join(DEADLINE)


def test_a_lost_worker_is_no_failed_start(make_pool):
    """However many tasks end their processes, the pool goes on."""
    pool = make_pool(1, os.getpid)
    for _ in range(15):
        with pytest.raises(WorkerLostError):
            pool.apply(os._exit, (3,))
    assert works(pool)
