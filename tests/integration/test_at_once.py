"""What does not wait: each asynchronous call returns at once, whatever the workers do."""

from __future__ import annotations

import itertools
import os
import signal
import threading

import pytest

from helpers import DEADLINE, eventually, stop
from prefork._policy.chunks import FIRST_CHUNKS, LEAST_AHEAD

WORKERS = 2


def same(x):
    return x


@pytest.fixture(params=["stopped", "killed first"])
def stuck(request, make_pool):
    """A pool whose workers do nothing."""
    pool = make_pool(WORKERS)
    pool.map(same, range(10 * WORKERS), 1)
    pids = [worker.pid for worker in pool.statistics().workers]
    if request.param == "killed first":
        os.kill(pids[0], signal.SIGKILL)
        eventually(lambda: pool.statistics().exits, "it is replaced")
        eventually(lambda: len(pool.statistics().workers) == WORKERS, "it is replaced")
        pids = [worker.pid for worker in pool.statistics().workers]
    for pid in pids:
        stop(pid)
    yield pool
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


BOUNDARY = FIRST_CHUNKS * WORKERS
COUNTS = [0, 1, 2, BOUNDARY - 1, BOUNDARY, BOUNDARY + 1, LEAST_AHEAD * WORKERS + 1]


@pytest.mark.parametrize("count", COUNTS)
def test_asynchronous_calls(stuck, count):
    calls = {
        "map_async": stuck.map_async(same, range(count)),
        "map_async in chunks": stuck.map_async(same, range(count), 1),
        "starmap_async": stuck.starmap_async(same, [(x,) for x in range(count)]),
        "each_async": stuck.each_async(same, range(count)),
        "large": stuck.map_async(len, [bytes(1 << 20)] * min(count, 5), 1),
    }
    for _ in range(count):
        stuck.apply_async(same, (1,))
    assert not calls["each_async"].ready()
    assert all(handle.ready() == (count == 0) for name, handle in calls.items() if "map" in name)


def test_lazy_calls(stuck):
    iterators = [
        stuck.imap(same, itertools.count()),
        stuck.imap_unordered(same, itertools.count(), 3),
        stuck.imap(len, itertools.repeat(bytes(1 << 20))),
    ]
    for iterator in iterators:
        iterator.close()


def test_an_input_that_waits_is_not_read_by_the_caller(make_pool):
    go = threading.Event()

    def items():
        go.wait(DEADLINE)
        yield 1

    iterator = make_pool(1).imap(same, items())
    go.set()
    assert list(iterator) == [1]
