"""Asynchronous calls return at once, whatever the workers do: here they have been stopped."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers import DEADLINE, stop
from prefork import Terminated, TimeoutError
from prefork._policy.chunks import FIRST_CHUNKS, LEAST_AHEAD
from prefork._results import map as map_results

WORKERS = 2
FEW = FIRST_CHUNKS * WORKERS  # items that are handed over by the caller
AHEAD = LEAST_AHEAD * WORKERS  # chunks that are handed over ahead of results
COMPILED = map_results.__file__.endswith(".so")


def identity(*args):
    return args


def returned(call):
    """What the call returns, which it does though no worker does anything."""
    got = []
    caller = threading.Thread(target=lambda: got.append(call()), daemon=True)
    caller.start()
    caller.join(DEADLINE)
    assert got, "it waits for the workers"
    return got[0]


@pytest.fixture
def stopped(make_pool, context):
    """A pool whose workers are there, but do nothing."""
    pool = make_pool(WORKERS, context=context)
    pool.map(time.sleep, [0] * 100, 1)
    for worker in pool.statistics().workers:
        stop(worker.pid)
    return pool


CALLS = {
    "map_async": lambda pool, n, chunksize: pool.map_async(identity, range(n), chunksize),
    "starmap_async": lambda pool, n, chunksize: pool.starmap_async(
        identity, [(i, i) for i in range(n)], chunksize
    ),
    "each_async": lambda pool, n, _: pool.each_async(identity, range(n)),
    "apply_async": lambda pool, n, _: pool.apply_async(identity, range(n)),
    "imap": lambda pool, n, chunksize: pool.imap(identity, range(n), chunksize or 1),
    "imap_unordered": lambda pool, n, chunksize: pool.imap_unordered(
        identity, range(n), chunksize or 1
    ),
}

BOUNDARIES = sorted(
    {max(0, n + d) for n in (0, 1, WORKERS, FEW, 2 * FEW, AHEAD, 2 * AHEAD) for d in (-1, 0, 1)}
)


@pytest.mark.parametrize("verb", CALLS)
def test_with_so_many_items(stopped, verb):
    for n in BOUNDARIES:
        for chunksize in (None, 1, 2, n or 1):
            returned(lambda n=n, chunksize=chunksize: CALLS[verb](stopped, n, chunksize))


def test_with_any_number_of_items(make_pool):
    pool = make_pool(WORKERS)
    for worker in pool.statistics().workers:
        stop(worker.pid)

    @settings(max_examples=60)
    @given(
        st.sampled_from(sorted(CALLS)), st.integers(0, 2 * AHEAD), st.none() | st.integers(1, AHEAD)
    )
    @example("map_async", FEW, None)
    def calls(verb, n, chunksize):
        returned(lambda: CALLS[verb](pool, n, chunksize))

    calls()


@pytest.mark.skipif(COMPILED, reason="the limit is compiled in")
@pytest.mark.parametrize("n", [1, FEW - 1, FEW, FEW + 1])
@pytest.mark.parametrize("limit", [0, 1, 100])
def test_with_so_many_bytes(make_pool, monkeypatch, n, limit):
    monkeypatch.setattr(map_results, "MOST_BYTES", limit)
    pool = make_pool(WORKERS)
    for worker in pool.statistics().workers:
        stop(worker.pid)
    result = returned(lambda: pool.map_async(identity, range(n)))
    pool.terminate()
    with pytest.raises(Terminated):
        result.get(DEADLINE)


class SlowInput:
    """It does not even begin before its test says so."""

    def __init__(self):
        self.go = threading.Event()

    def __iter__(self):
        self.go.wait(DEADLINE)
        return iter(range(3))


@pytest.mark.parametrize("verb", ["imap", "imap_unordered"])
@pytest.mark.parametrize("chunksize", [1, 2])
def test_with_an_input_that_is_slow(make_pool, verb, chunksize):
    pool, items = make_pool(1), SlowInput()
    results = returned(lambda: getattr(pool, verb)(identity, items, chunksize))
    items.go.set()
    assert sorted(results) == [(0,), (1,), (2,)]


@pytest.mark.parametrize("verb", ["imap", "imap_unordered"])
def test_without_threads_a_slow_input_is_read_by_who_takes_the_results(make_pool, verb):
    pool, items = make_pool(1, threads=False), SlowInput()
    results = returned(lambda: getattr(pool, verb)(identity, items))
    items.go.set()
    assert sorted(results) == [(0,), (1,), (2,)]


@pytest.mark.parametrize("verb", ["imap", "imap_unordered"])
def test_with_an_endless_input(stopped, verb):
    results = returned(lambda: getattr(stopped, verb)(identity, itertools.count()))
    results.close()


def test_a_timeout_of_get_counts_with_stopped_workers(stopped):
    result = returned(lambda: stopped.map_async(identity, range(FEW)))
    with pytest.raises(TimeoutError):
        result.get(0.01)
