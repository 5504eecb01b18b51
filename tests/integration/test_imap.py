"""Lazy iteration: `imap` and `imap_unordered`."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest

from gate import enter
from helpers import DEADLINE, an_unclosed_pool_says_so, eventually
from prefork import Pool, Terminated
from prefork._policy.chunks import MOST_AHEAD, MOST_BYTES

VERBS = ["imap", "imap_unordered"]


def square(x):
    return x * x


def odd_only(x):
    if x % 2 == 0:
        raise LookupError(x)
    return x


def pass_gate(item):
    """An item is (gate or None, value)."""
    gate, value = item
    return gate.enter(value) if gate else value


def enter_with(item):
    gate, data = item
    gate.enter()
    return len(data)


def outcomes(iterator):
    """All that an iterator gives: values, and errors as (type, args)."""
    found = []
    while True:
        try:
            found.append(iterator.next(DEADLINE))
        except StopIteration:
            return found
        except Exception as exc:
            found.append((type(exc), exc.args))


class Input:
    """A generator's life, told to the test."""

    def __init__(self, items):
        self.items = items
        self.read = 0
        self.ended = threading.Event()

    def __iter__(self):
        try:
            for item in self.items:
                self.read += 1
                yield item
        finally:
            self.ended.set()


# --- results


@pytest.mark.parametrize("chunksize", [1, 3, 1000])
def test_results_of_every_start_method(context, make_pool, chunksize):
    pool = make_pool(2, context=context)
    assert list(pool.imap(square, range(100), chunksize)) == [x * x for x in range(100)]
    unordered = list(pool.imap_unordered(square, range(100), chunksize))
    assert sorted(unordered) == [x * x for x in range(100)]


def test_unordered_results_come_as_they_are_ready(make_pool, gate):
    pool = make_pool(2)
    results = pool.imap_unordered(pass_gate, [(gate, "slow"), (None, "quick")])
    visitor = gate.arrival()
    assert results.next(DEADLINE) == "quick"
    visitor.go()
    assert list(results) == ["slow"]


def test_ordered_results_wait_for_the_ones_before(make_pool, gate):
    pool = make_pool(2)
    results = pool.imap(pass_gate, [(gate, "slow"), (None, "quick"), (gate, "last")])
    visitors = {visitor.value: visitor for visitor in (gate.arrival(), gate.arrival())}
    visitors["last"].go()  # it has come, so "quick" is done
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(0.01)
    visitors["slow"].go()
    assert list(results) == ["slow", "quick", "last"]


@pytest.mark.parametrize("verb", VERBS)
def test_next_with_a_timeout_loses_nothing(make_pool, gate, verb):
    pool = make_pool(1)
    results = getattr(pool, verb)(pass_gate, [(gate, 1)])
    visitor = gate.arrival()
    for timeout in (0, -1, 0.01):
        with pytest.raises(multiprocessing.TimeoutError):
            results.next(timeout)
    visitor.go()
    assert results.next(DEADLINE) == 1
    for _ in range(2):
        with pytest.raises(StopIteration):
            results.next(DEADLINE)


@pytest.mark.parametrize("chunksize", [1, 4])
@pytest.mark.parametrize("verb", VERBS)
def test_an_error_takes_the_place_of_its_item_alone(make_pool, verb, chunksize):
    pool = make_pool(2)
    results = outcomes(getattr(pool, verb)(odd_only, range(10), chunksize))
    expected = [x if x % 2 else (LookupError, (x,)) for x in range(10)]
    if verb == "imap":
        assert results == expected
    else:
        assert sorted(map(str, results)) == sorted(map(str, expected))


def test_an_error_comes_with_its_remote_traceback(make_pool):
    pool = make_pool(1)
    for chunksize in (1, 2):
        with pytest.raises(LookupError) as caught:
            list(pool.imap(odd_only, [0, 1], chunksize))
        assert "in odd_only" in str(caught.value.__cause__)


@pytest.mark.parametrize("verb", VERBS)
def test_several_threads_share_an_iterator(make_pool, verb):
    results = getattr(make_pool(2), verb)(square, range(400), buffersize=16)
    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(lambda _: list(results), range(4)))
    assert sorted(itertools.chain(*parts)) == [x * x for x in range(400)]


def test_an_iterator_is_one_and_shows_its_progress(make_pool):
    results = make_pool(1).imap(square, range(3))
    assert iter(results) is results
    assert next(results) == 0
    assert repr(results) == "<IMapIterator of test_imap.square: 1 items taken>"
    assert [*results] == [1, 4]


# --- laziness


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("verb", VERBS)
def test_the_input_is_read_buffersize_items_ahead_and_no_further(make_pool, verb, chunksize):
    pool = make_pool(2)
    asked = 0
    ahead = []

    def items():
        for x in itertools.count(1):
            ahead.append(x - asked)
            yield x

    results = getattr(pool, verb)(square, items(), chunksize, buffersize=9)
    eventually(lambda: len(ahead) == 9, "the buffer is filled")
    for _ in range(200):
        asked += 1
        next(results)
    assert max(ahead) <= 9


def test_without_a_buffersize_the_input_is_not_read_without_limit(make_pool):
    numbers = Input(itertools.count())
    results = make_pool(2).imap(square, numbers)
    assert [next(results) for _ in range(1000)] == [x * x for x in range(1000)]
    assert numbers.read < 1000 + 2 * MOST_AHEAD + 10


@pytest.mark.parametrize("verb", VERBS)
def test_large_items_are_read_no_further_ahead_than_memory_allows(make_pool, gate, verb):
    items = Input((gate, bytes(MOST_BYTES // 8)) for _ in range(20))
    results = getattr(make_pool(2), verb)(enter_with, items)
    visitors = [gate.arrival() for _ in range(2)]
    eventually(lambda: items.read == 8, "it is read as far as there is room")
    for visitor in visitors:
        visitor.go()
    for _ in range(18):
        gate.arrival().go()
    assert list(results) == [MOST_BYTES // 8] * 20
    assert items.read == 20


def test_a_map_of_large_items_takes_its_time(make_pool, gate):
    pool = make_pool(2)
    size = MOST_BYTES // 4
    result = pool.map_async(enter_with, [(gate, bytes(size))] * 9, 1)
    visitors = [gate.arrival() for _ in range(2)]
    eventually(lambda: pool.statistics().queued + 2 == 4, "four are on their way")
    for visitor in visitors:
        visitor.go()
    for _ in range(7):
        gate.arrival().go()
    assert result.get(DEADLINE) == [size] * 9


def test_a_buffer_smaller_than_a_chunk_holds_one_chunk(make_pool):
    results = make_pool(1).imap(square, range(20), 7, buffersize=1)
    assert list(results) == [x * x for x in range(20)]


@pytest.mark.parametrize("verb", VERBS)
def test_a_slow_input_holds_no_result_back(make_pool, verb):
    go = threading.Event()

    def items():
        yield 1
        yield 2
        go.wait(DEADLINE)
        yield 3

    results = getattr(make_pool(1), verb)(square, items())
    assert [results.next(DEADLINE), results.next(DEADLINE)] == [1, 4]
    assert not go.is_set()
    go.set()
    assert list(results) == [9]


@pytest.mark.parametrize("verb", VERBS)
def test_a_dropped_iterator_stops_reading(make_pool, verb):
    pool = make_pool(2)
    numbers = Input(itertools.count())
    results = getattr(pool, verb)(square, numbers)
    assert next(results) == 0 or verb == "imap_unordered"
    del results
    assert numbers.ended.wait(DEADLINE)
    assert pool.apply(square, (5,)) == 25
    pool.close()
    assert pool.join(DEADLINE)


def test_breaking_out_of_a_loop_stops_reading(make_pool):
    numbers = Input(itertools.count())
    for value in make_pool(2).imap(square, numbers):
        if value > 100:
            break
    assert numbers.ended.wait(DEADLINE)


def test_a_closed_iterator_stops_reading_and_ends(make_pool):
    numbers = Input(itertools.count())
    results = make_pool(2).imap(square, numbers)
    assert next(results) == 0
    results.close()
    assert numbers.ended.wait(DEADLINE)
    left = list(results)
    assert left == [x * x for x in range(1, 1 + len(left))]


# --- inputs that misbehave


class Falsy(Exception):
    """An exception with a length, as some validation libraries have them."""

    def __len__(self):
        return 0


@pytest.mark.parametrize(
    "error",
    [KeyError("input"), Falsy("input"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("chunksize", [1, 2])
@pytest.mark.parametrize("verb", VERBS)
def test_an_input_that_raises_ends_the_iteration(make_pool, verb, chunksize, error):
    class Items:
        left = 4

        def __iter__(self):
            return self

        def __next__(self):
            if self.left == 0:
                raise error
            self.left -= 1
            return self.left

    pool = make_pool(2)
    results = getattr(pool, verb)(square, Items(), chunksize)
    assert sorted(results.next(DEADLINE) for _ in range(4)) == [0, 1, 4, 9]
    with pytest.raises(type(error)) as caught:
        results.next(DEADLINE)
    assert caught.value is error
    with pytest.raises(StopIteration):
        results.next(DEADLINE)
    assert pool.apply(square, (5,)) == 25


def test_an_input_that_is_not_iterable_is_refused_at_once(make_pool):
    pool = make_pool(1)
    with pytest.raises(TypeError, match="not iterable"):
        pool.imap(square, 5)
    pool.close()
    assert pool.join(DEADLINE)


class UnwillingIterable:
    def __iter__(self):
        raise KeyError


@pytest.mark.parametrize("threads", [True, False])
def test_an_iterable_that_refuses_to_begin_is_told_to_who_takes_the_results(make_pool, threads):
    results = make_pool(1, threads=threads).imap(square, UnwillingIterable())
    with pytest.raises(KeyError):
        results.next(DEADLINE)
    with pytest.raises(StopIteration):
        results.next(DEADLINE)


@pytest.mark.parametrize("verb", VERBS)
def test_items_that_do_not_pickle_fail_alone(make_pool, verb):
    items = [1, threading.Lock(), 3]
    results = outcomes(getattr(make_pool(1), verb)(square, items))
    assert sorted(x for x in results if isinstance(x, int)) == [1, 9]
    [(error, args)] = [x for x in results if not isinstance(x, int)]
    assert error is TypeError
    assert "cannot pickle" in args[0]


@pytest.mark.parametrize("chunksize", [1, 2])
def test_items_that_do_not_pickle_are_read_no_further_ahead(make_pool, chunksize):
    locks = Input(threading.Lock() for _ in itertools.count())
    results = make_pool(1).imap(square, locks, chunksize, buffersize=4)
    for taken in range(50):
        with pytest.raises(TypeError, match="cannot pickle"):
            results.next(DEADLINE)
        assert locks.read <= taken + 1 + 4


# --- pipelines


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("verb", VERBS)
def test_an_iterator_feeds_another_of_the_same_pool(make_pool, verb, processes):
    pool = make_pool(processes)
    imap = getattr(pool, verb)
    first = imap(square, range(300), buffersize=3)
    second = imap(square, first, 2, buffersize=5)
    third = imap(abs, second, buffersize=2)
    assert sorted(third) == [x**4 for x in range(300)]


def test_an_error_in_one_stage_ends_the_next(make_pool):
    pool = make_pool(2)
    first = pool.imap(odd_only, [1, 3, 4, 5])
    second = pool.imap(square, first)
    assert [next(second), next(second)] == [1, 9]
    with pytest.raises(LookupError):
        next(second)
    with pytest.raises(StopIteration):
        next(second)


# --- the end of the pool


@pytest.mark.parametrize("verb", VERBS)
def test_a_closed_pool_finishes_its_iterators(make_pool, verb):
    pool = make_pool(2)
    results = getattr(pool, verb)(square, range(1000))
    pool.close()
    assert sorted(results) == [x * x for x in range(1000)]
    assert pool.join(DEADLINE)


@pytest.mark.parametrize("verb", VERBS)
def test_results_may_be_taken_after_join(make_pool, verb):
    pool = make_pool(2)
    results = getattr(pool, verb)(square, range(1000))
    pool.close()
    assert pool.join(DEADLINE)
    assert sorted(results) == [x * x for x in range(1000)]


def test_join_does_not_wait_for_an_input_that_nobody_needs(make_pool):
    items = SimpleQueue()
    items.put(2)
    pool = make_pool(1)
    results = pool.imap(square, iter(items.get, None))
    assert next(results) == 4
    del results
    pool.close()
    ended = pool.join(DEADLINE)
    items.put(None)
    assert ended


@pytest.mark.promise(number=1)
@pytest.mark.parametrize("chunksize", [1, 2])
@pytest.mark.parametrize("verb", VERBS)
def test_a_terminated_pool_ends_its_iterators(make_pool, verb, chunksize):
    pool = make_pool(1)
    results = getattr(pool, verb)(square, itertools.count(), chunksize, buffersize=4)
    next(results)
    pool.terminate()
    found = outcomes(results)
    assert found[-1][0] is Terminated
    assert len(found) <= 10


@pytest.mark.promise(number=1)
@pytest.mark.parametrize("verb", VERBS)
def test_a_terminated_pool_wakes_who_waits_for_a_result(make_pool, gate, verb):
    pool = make_pool(1)
    results = getattr(pool, verb)(enter, [gate])
    gate.arrival()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(outcomes, results)
        pool.terminate()
        assert [error for error, _ in waiting.result(DEADLINE)] == [Terminated]


def test_a_terminated_pool_wakes_who_waits_for_an_input(make_pool):
    items = SimpleQueue()
    pool = make_pool(1)
    results = pool.imap(square, iter(items.get, None))
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(outcomes, results)
        pool.terminate()
        try:
            assert [error for error, _ in waiting.result(DEADLINE)] == [Terminated]
        finally:
            items.put(None)


@pytest.mark.parametrize("verb", VERBS)
def test_a_pool_may_end_while_items_are_rejected(make_pool, verb):
    pool = make_pool(1)
    locks = Input(threading.Lock() for _ in itertools.count())
    results = getattr(pool, verb)(square, locks, buffersize=100)
    with pytest.raises(TypeError):
        next(results)
    pool.terminate()
    found = outcomes(results)
    assert found[-1][0] is Terminated
    assert locks.ended.wait(DEADLINE)


def test_an_iterator_lives_without_other_references_to_its_pool():
    with an_unclosed_pool_says_so():
        assert list(Pool(1).imap(square, range(100))) == [x * x for x in range(100)]
