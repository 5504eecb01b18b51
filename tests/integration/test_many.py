"""Very many jobs, and very many workers."""

from __future__ import annotations

import multiprocessing
import os
import resource
import threading

import pytest

from gate import enter
from helpers import DEADLINE, eventually
from prefork import Pool, Terminated

pytestmark = [pytest.mark.serial, pytest.mark.timeout(300)]

MIB = 1 << 20


def memory():
    """Of this process, resident, bytes."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def square(x):
    return x * x


def test_a_million_queued_jobs(make_pool, gate, record_property):
    pool = make_pool(2)
    blockers = [pool.apply_async(enter, (gate,)) for _ in range(2)]
    visitors = [gate.arrival() for _ in range(2)]
    before = memory()
    handles = [pool.apply_async(square, (x,)) for x in range(1_000_000)]
    used = memory() - before
    record_property("bytes per queued job", used // len(handles))
    assert used < 800 * MIB  # an object each for the job, its handle and its pickle
    for visitor in visitors:
        visitor.go()
    for x, handle in enumerate(handles):
        assert handle.get(DEADLINE) == x * x
    for blocker in blockers:
        blocker.get(DEADLINE)
    pool.close()
    assert pool.join(DEADLINE)


def test_a_million_queued_jobs_are_terminated(make_pool, gate):
    pool = make_pool(1)
    pool.apply_async(enter, (gate,))
    gate.arrival()
    handles = [pool.apply_async(square, (x,)) for x in range(1_000_000)]
    pool.terminate()
    assert pool.join(DEADLINE)
    for handle in handles:
        with pytest.raises(Terminated):
            handle.get(0)


@pytest.mark.parametrize("verb", ["map", "starmap", "imap", "imap_unordered"])
def test_a_million_items(make_pool, verb):
    pool = make_pool(2)
    items = [(x,) for x in range(1_000_000)] if verb == "starmap" else range(1_000_000)
    chunksize = {"chunksize": 1000} if "imap" in verb else {}
    results = getattr(pool, verb)(square, items, **chunksize)
    assert sum(results) == sum(x * x for x in range(1_000_000))


def test_imap_does_not_collect_a_million_items(make_pool):
    pool = make_pool(2)
    assert sum(1 for _ in pool.imap(bytes, (1000 for _ in range(100_000)), 10)) == 100_000
    before = memory()
    assert sum(1 for _ in pool.imap(bytes, (10_000 for _ in range(100_000)), 10)) == 100_000
    assert memory() - before < 500 * MIB  # all results would be 1 GB


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} descriptors (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_500_workers(gate):
    with Pool(500, context=multiprocessing.get_context("fork")) as pool:
        handles = [pool.apply_async(enter, (gate, number)) for number in range(500)]
        visitors = [gate.arrival() for _ in range(500)]  # all at the same time
        assert len({visitor.pid for visitor in visitors}) == 500
        for visitor in visitors:
            visitor.go()
        assert [handle.get(DEADLINE) for handle in handles] == list(range(500))
        assert pool.map(square, range(10_000), 3) == [x * x for x in range(10_000)]
        doomed = [pool.apply_async(os._exit, (3,)) for _ in range(10)]
        others = [pool.apply_async(square, (x,)) for x in range(500)]
        for handle in doomed:
            handle.wait(DEADLINE)
            assert not handle.successful()
        assert [handle.get(DEADLINE) for handle in others] == [x * x for x in range(500)]
        pool.close()
        assert pool.join(DEADLINE)


def test_many_pools_one_after_another():
    threads = set(threading.enumerate())
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        with Pool(1) as pool:
            assert pool.apply_async(abs, (-1,), timeout=100, callback=print).get(DEADLINE) == 1
    assert pool.join(DEADLINE)
    eventually(lambda: len(set(threading.enumerate()) - threads) <= 1, "threads end")
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= files + 1, "descriptors are closed")
