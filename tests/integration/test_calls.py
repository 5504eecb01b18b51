"""The calls that run functions, and the handles that they return, with every start method."""

from __future__ import annotations

import functools
import multiprocessing
import operator
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest

from gate import enter
from helpers import DEADLINE, METHODS, NEVER
from prefork import Pool, RemoteTraceback


@pytest.fixture(scope="module", params=METHODS)
def pool(request):
    with Pool(2, context=multiprocessing.get_context(request.param)) as pool:
        yield pool


def arguments(*args, **kwargs):
    return args, kwargs


def square(x):
    return x * x


def ten_divided_by(x):
    return 10 / x


def outer(x):
    return ten_divided_by(x)


class Account:
    def __init__(self, balance):
        self.balance = balance

    def __call__(self, amount):
        return self.balance + amount

    def plus(self, amount):
        return self.balance + amount

    @classmethod
    def named(cls, name):
        return cls.__name__, name

    @staticmethod
    def twice(x):
        return 2 * x

    class Nested:
        def __init__(self, x):
            self.x = x


# --- one call


def test_apply_calls_with_arguments_and_returns_the_result(pool):
    assert pool.apply(arguments, (1, "b"), {"c": [3]}) == ((1, "b"), {"c": [3]})
    assert pool.apply(arguments) == ((), {})
    assert pool.apply(arguments, [1, 2]) == ((1, 2), {})
    assert pool.apply(func=arguments, kwds={"func": 1, "args": 2}) == ((), {"func": 1, "args": 2})


def test_apply_runs_in_another_process(pool):
    assert pool.apply(os.getpid) != os.getpid()


@pytest.mark.parametrize("value", [None, False, 0, "", [], NotImplemented, ...])
def test_a_result_that_looks_like_nothing_is_a_result(pool, value):
    handle = pool.apply_async(arguments, (value,))
    assert handle.get(DEADLINE) == ((value,), {})
    assert handle.successful()


def test_apply_raises_what_the_function_raises(pool):
    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        pool.apply(outer, (0,))
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    remote = str(cause)
    assert "in outer" in remote
    assert "in ten_divided_by" in remote
    assert "ZeroDivisionError: division by zero" in remote
    assert __file__ in remote


def test_the_remote_traceback_begins_with_the_function(pool):
    with pytest.raises(ZeroDivisionError) as caught:
        pool.apply(outer, (0,))
    frames = [line for line in str(caught.value.__cause__).splitlines() if "File " in line]
    assert ["outer" in frames[0], "ten_divided_by" in frames[1], len(frames)] == [True, True, 2]


def test_apply_async_takes_the_callbacks_by_position(pool):
    log = SimpleQueue()
    handle = pool.apply_async(
        ten_divided_by,
        (5,),
        {},
        lambda value: log.put(("callback", value)),
        lambda error: log.put(("error_callback", error)),
        lambda pid, time_accepted: log.put(("accept_callback", pid)),
        None,
        True,
        NEVER,
        NEVER,
        NEVER,
    )
    assert handle.get(DEADLINE) == 2
    assert log.get(timeout=DEADLINE) == ("accept_callback", handle.pid)
    assert log.get(timeout=DEADLINE) == ("callback", 2)


def test_waitforslot_waits_until_a_worker_has_nothing_to_do(make_pool, gate):
    pool = make_pool(1)
    first = pool.apply_async(enter, (gate, "first"))
    visitor = gate.arrival()
    submitted = []
    submit = threading.Thread(
        target=lambda: submitted.append(pool.apply_async(square, (3,), waitforslot=True))
    )
    submit.start()
    submit.join(0.05)
    assert not submitted
    visitor.go()
    submit.join(DEADLINE)
    assert submitted[0].get(DEADLINE) == 9
    assert first.ready()


def test_waitforslot_of_a_terminated_pool_raises(make_pool, gate):
    pool = make_pool(1)
    pool.apply_async(enter, (gate,))
    gate.arrival()
    errors = []

    def submit():
        try:
            pool.apply_async(square, (3,), waitforslot=True)
        except ValueError as exc:
            errors.append(exc)

    thread = threading.Thread(target=submit)
    thread.start()
    pool.terminate()
    thread.join(DEADLINE)
    assert len(errors) == 1


# --- what can be called


@pytest.mark.parametrize(
    ("func", "argument", "result"),
    [
        (square, 3, 9),
        (abs, -3, 3),
        (str.upper, "a", "A"),
        ("a-b".split, "-", ["a", "b"]),
        (functools.partial(operator.sub, 10), 3, 7),
        (functools.partial(functools.partial(arguments, 1), k=2), 3, ((1, 3), {"k": 2})),
        (operator.itemgetter(1), "abc", "b"),
        (Account(5).plus, 3, 8),
        (Account(5), 3, 8),
        (Account.named, "n", ("Account", "n")),
        (Account.twice, 4, 8),
        (int, "12", 12),
    ],
    ids=str.split(
        "function builtin unbound bound partial nested-partial getter method object classmethod "
        "staticmethod class"
    ),
)
def test_callables_of_every_kind(pool, func, argument, result):
    assert pool.apply(func, (argument,)) == result
    assert pool.map(func, [argument] * 3) == [result] * 3


def test_a_class_is_called_in_the_worker(pool):
    assert pool.apply(Account, (5,)).balance == 5
    assert pool.apply(Account.Nested, (6,)).x == 6


def test_a_method_works_on_a_copy_of_its_object(pool):
    values = [1]
    assert pool.apply(values.append, (2,)) is None
    assert values == [1]


def local_function():
    def inner(x):
        return x

    return inner


@pytest.mark.usefixtures("without_cloudpickle")
@pytest.mark.parametrize("func", [lambda x: x, local_function()], ids=["lambda", "local"])
@pytest.mark.parametrize("verb", ["apply", "map", "starmap", "imap", "imap_unordered"])
def test_what_cannot_be_found_by_name_is_refused_with_its_name(pool, verb, func):
    with pytest.raises(Exception, match=r"(pickle|get local object).*<l(ambda|ocals)>") as caught:
        list(getattr(pool, verb)(func, [(1,)]) or ())
    assert "pip install prefork[notebook]" in str(caught.value).splitlines()[0]
    assert not isinstance(caught.value, multiprocessing.TimeoutError)
    assert pool.apply(square, (4,)) == 16


def test_what_is_not_callable_is_refused(pool):
    with pytest.raises(TypeError, match="must be callable, not 'square'"):
        pool.apply_async("square", (1,))


def test_wrong_arguments_fail_their_job(pool):
    with pytest.raises(TypeError, match="positional argument"):
        pool.apply(square, (1, 2))
    with pytest.raises(TypeError, match="keyword"):
        pool.apply(square, (1,), {"y": 2})
    with pytest.raises(TypeError):
        pool.apply(square, 5)


# --- many calls


@pytest.mark.parametrize("chunksize", [None, 1, 3, 100])
def test_map_keeps_the_order(pool, chunksize):
    assert pool.map(square, range(50), chunksize) == [x * x for x in range(50)]


@pytest.mark.parametrize("chunksize", [None, 1, 3, 100])
def test_starmap_unpacks(pool, chunksize):
    pairs = [(x, x + 1) for x in range(50)]
    assert pool.starmap(operator.mul, pairs, chunksize) == [x * (x + 1) for x in range(50)]


@pytest.mark.parametrize("verb", ["map", "starmap", "imap", "imap_unordered"])
def test_no_items_give_no_results(pool, verb):
    assert list(getattr(pool, verb)(square, [])) == []
    assert list(getattr(pool, verb)(square, iter(()))) == []


def test_map_takes_any_iterable(pool):
    assert pool.map(square, (x for x in [1, 2])) == [1, 4]
    assert sorted(pool.map(str.upper, {"a": 1, "b": 2})) == ["A", "B"]
    assert pool.map(ord, "ab") == [97, 98]
    with pytest.raises(TypeError, match="not iterable"):
        pool.map(square, 5)


def test_items_of_starmap_are_any_iterables(pool):
    assert pool.starmap(arguments, ["ab", [1], range(2), ()]) == [
        (("a", "b"), {}),
        ((1,), {}),
        ((0, 1), {}),
        ((), {}),
    ]


def test_map_passes_a_tuple_as_one_argument(pool):
    assert pool.map(arguments, [(1, 2)]) == [(((1, 2),), {})]


@pytest.mark.parametrize("chunksize", [None, 1, 4])
@pytest.mark.parametrize("verb", ["map", "starmap"])
def test_map_raises_an_error_of_an_item(pool, verb, chunksize):
    items = [5, 2, 0, 1] if verb == "map" else [(5,), (2,), (0,), (1,)]
    with pytest.raises(ZeroDivisionError) as caught:
        getattr(pool, verb)(ten_divided_by, items, chunksize)
    assert "in ten_divided_by" in str(caught.value.__cause__)
    assert pool.map(square, [1, 2]) == [1, 4]


def test_map_raises_what_the_iterable_raises(pool):
    def items():
        yield 1
        raise KeyError("input")

    with pytest.raises(KeyError, match="input"):
        pool.map(square, items())


def test_map_async_returns_at_once_and_is_ready_once(make_pool, gate):
    pool = make_pool(2)
    handle = pool.map_async(gate_or_fail, [(gate, 1), (gate, 2)], chunksize=1)
    visitors = [gate.arrival(), gate.arrival()]
    assert not handle.ready()
    assert "0 of 2 items" in repr(handle)
    with pytest.raises(ValueError, match="not ready"):
        handle.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        handle.get(0.01)
    for visitor in visitors:
        visitor.go()
    assert handle.get(DEADLINE) == [1, 2]
    assert handle.ready()
    assert handle.successful()
    assert "2 of 2 items, successful" in repr(handle)


def gate_or_fail(item):
    gate, value = item
    if gate is None:
        raise LookupError(value)
    return gate.enter(value)


def test_a_failed_map_is_ready_when_all_its_items_are_done(make_pool, gate):
    pool = make_pool(2)
    errors = SimpleQueue()
    handle = pool.map_async(gate_or_fail, [(None, "bad"), (gate, 2)], 1, None, errors.put)
    visitor = gate.arrival()
    # The failed item's worker has nothing to do, so this comes back after that item's report.
    assert pool.apply(square, (2,)) == 4
    assert not handle.ready()
    visitor.go()
    with pytest.raises(LookupError, match="bad"):
        handle.get(DEADLINE)
    assert not handle.successful()
    assert isinstance(errors.get(timeout=DEADLINE), LookupError)
    assert errors.empty()


def test_starmap_async_returns_a_handle(pool):
    handle = pool.starmap_async(operator.add, [(1, 2), (3, 4)])
    assert handle.get(DEADLINE) == [3, 7]
    assert handle.successful()


# --- handles


def test_a_handle_from_submission_to_result(make_pool, gate):
    pool = make_pool(1)
    before = time.monotonic()
    running = pool.apply_async(enter, (gate, "one"))
    queued = pool.apply_async(enter, (gate, "two"))
    visitor = gate.arrival()

    assert running.accepted()
    assert running.pid == visitor.pid
    assert before <= running.time_accepted <= time.monotonic()
    assert running.seconds is None
    assert repr(running) == (
        f"<ApplyResult of job {running.job} gate.enter: running in process {visitor.pid}>"
    )

    assert queued.job > running.job
    assert not queued.accepted()
    assert queued.pid is None
    assert queued.time_accepted is None
    assert repr(queued) == f"<ApplyResult of job {queued.job} gate.enter: pending>"

    for handle in (running, queued):
        assert not handle.ready()
        with pytest.raises(ValueError, match="not ready"):
            handle.successful()
        with pytest.raises(multiprocessing.TimeoutError, match=r"gate\.enter.*0\.01 s"):
            handle.get(0.01)
        assert handle.wait(0) is None

    started = running.time_accepted
    visitor.go()
    assert running.get(DEADLINE) == "one"
    assert running.ready()
    assert running.successful()
    assert running.pid == visitor.pid
    assert running.time_accepted == started
    assert running.seconds is not None
    assert 0 <= running.seconds <= time.monotonic() - started
    assert repr(running) == f"<ApplyResult of job {running.job} gate.enter: successful>"

    gate.arrival().go()
    assert queued.get(DEADLINE) == "two"
    assert queued.time_accepted > started


def test_a_failed_handle(pool):
    handle = pool.apply_async(ten_divided_by, (0,))
    handle.wait(DEADLINE)
    assert handle.ready()
    assert not handle.successful()
    assert "failed: ZeroDivisionError" in repr(handle)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            handle.get()
    assert handle.accepted()
    assert handle.seconds >= 0


def test_a_timed_out_get_does_not_disturb_the_job(make_pool, gate):
    pool = make_pool(1)
    handle = pool.apply_async(enter, (gate, 7))
    visitor = gate.arrival()
    for timeout in (0, -1, 1e-9, 0.001):
        with pytest.raises(multiprocessing.TimeoutError):
            handle.get(timeout)
    visitor.go()
    assert handle.get(DEADLINE) == 7


def test_many_threads_wait_for_one_result(make_pool, gate):
    pool = make_pool(1)
    handle = pool.apply_async(enter, (gate, 7))
    visitor = gate.arrival()
    with ThreadPoolExecutor(8) as threads:
        results = threads.map(handle.get, [DEADLINE] * 8)
        visitor.go()
        assert list(results) == [7] * 8


@pytest.mark.filterwarnings("ignore:unclosed running:ResourceWarning")
def test_results_keep_their_pool_alive():
    handle = Pool(1).apply_async(square, (3,))
    assert handle.get(DEADLINE) == 9
    assert sum(Pool(1).imap(square, range(200))) == sum(x * x for x in range(200))


@pytest.mark.parametrize("method", METHODS)
def test_a_start_method_may_be_given_by_its_name(method):
    with Pool(1, context=method) as pool:
        assert pool.apply(default_start_method) == method


def default_start_method():
    """In a worker, it is its own."""
    return multiprocessing.get_start_method()


def draw(x):
    import numpy

    return float(numpy.random.random())


def test_forked_workers_draw_different_random_numbers(make_pool):
    pytest.importorskip("numpy.random")
    pool = make_pool(2, context="fork", maxtasksperchild=1)
    drawn = [pool.apply(draw, (x,)) for x in range(4)]
    assert len(set(drawn)) == 4
