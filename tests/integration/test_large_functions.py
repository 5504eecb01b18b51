"""Functions of maps that are large: what they consist of travels once; each chunk has its own."""

from __future__ import annotations

import functools
import os
import signal

import numpy as np
import pytest

from gate import enter
from helpers import DEADLINE, constant_files, eventually, mark, marked
from prefork import Pool, Retry

SIZE = 1 << 22  # bytes, of what is large


@pytest.fixture
def pool(make_pool, context):
    return make_pool(2, context=context)


def item(array, index):
    return int(array[index])


def change(array, _):
    array[0] += 1
    return int(array[0])


class Part:
    pass


class Counter:
    def __init__(self):
        self.data = np.zeros(SIZE, np.uint8)
        self.count = 0
        self.parts = [Part() for _ in range(6)]

    def add(self, _):
        self.count += 1
        return self.count

    def has(self, part):
        return any(part is each for each in self.parts)

    def random(self, _):
        return float(np.random.random())


def array():
    return np.arange(SIZE, dtype=np.uint8)


CALLS = {
    "map": lambda pool, func, items: pool.map(func, items, 2),
    "map_async": lambda pool, func, items: pool.map_async(func, items, 2).get(DEADLINE),
    "starmap": lambda pool, func, items: pool.starmap(func, [(i,) for i in items], 2),
    "imap": lambda pool, func, items: list(pool.imap(func, items)),
    "imap, chunks": lambda pool, func, items: list(pool.imap(func, items, 2)),
    "imap_unordered": lambda pool, func, items: sorted(pool.imap_unordered(func, items, 2)),
    "options": lambda pool, func, items: pool.options(timeout=DEADLINE).map(func, items, 2),
    "executor": lambda pool, func, items: list(pool.executor().map(func, items)),
    "executor, chunks": lambda pool, func, items: list(
        pool.executor().map(func, items, chunksize=2)
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_each_call_of_the_family(pool, call):
    assert CALLS[call](pool, functools.partial(item, array()), range(50)) == list(range(50))


def test_what_a_task_writes_stays_its_own(pool):
    mine = array()
    assert pool.map(functools.partial(change, mine), range(6), 2) == [1, 2] * 3
    assert pool.map(Counter().add, range(6), 2) == [1, 2] * 3
    assert mine[0] == 0


@pytest.mark.parametrize("call", CALLS)
def test_items_that_are_parts_of_the_function_are_so_in_the_worker(pool, call):
    counter = Counter()
    assert CALLS[call](pool, counter.has, counter.parts) == [True] * 6


def test_random_numbers_with_a_seed_are_the_same(pool):
    small = Counter()
    small.data = np.zeros(1, np.uint8)
    expected = pool.map(small.random, range(6), 2, seed=5)
    assert pool.map(Counter().random, range(6), 3, seed=5) == expected
    assert list(pool.imap(Counter().random, range(6), seed=5)) == expected


def test_a_small_function_goes_as_it_always_went(make_pool):
    pool = make_pool(1)
    assert pool.map(functools.partial(item, array()[:100]), range(9), 1) == list(range(9))
    assert pool.map(functools.partial(files_of, array()[:100]), range(3), 1) == [(0, 0)] * 3


def files_of(_, __):
    return constant_files()


def kill_once(array, path, index):
    if index == 5 and not path.exists():
        mark(path)
        os.kill(os.getpid(), signal.SIGKILL)
    return int(array[index])


def test_a_chunk_whose_worker_was_killed_is_run_again(pool, tmp_path):
    func = functools.partial(kill_once, array(), tmp_path / "killed")
    assert pool.map(func, range(20), 2, retries=2) == list(range(20))
    assert list(pool.imap(func, range(20), 3)) == list(range(20))


def test_replaced_workers_have_it_too(make_pool, context):
    pool = make_pool(2, context=context, maxtasksperchild=1)
    assert pool.map(functools.partial(item, array()), range(10), 1) == list(range(10))


def test_what_cannot_be_pickled_says_so(pool):
    func = functools.partial(item, np.array([open(os.devnull)] * SIZE))  # noqa: SIM115
    with pytest.raises(TypeError, match="cannot pickle"):
        pool.map(func, range(4), 1)
    func.args[0][0].close()


def test_maps_that_are_cancelled_let_it_go(make_pool, gate):
    pool = make_pool(1)
    blocker = pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    result = pool.map_async(functools.partial(item, array()), range(100), 1)
    eventually(lambda: constant_files()[1] == 1, "it is in a file")
    result.terminate()
    visitor.go()
    assert blocker.get(DEADLINE) is None
    del result
    eventually(lambda: constant_files() == (0, 0), "it is dropped")


def test_more_maps_at_once_than_there_may_be_files(make_pool, gate):
    pool = make_pool(1)
    blocker = pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    results = [
        pool.map_async(functools.partial(item, np.full(1 << 19, n, np.uint8)), range(2), 1)
        for n in range(150)
    ]
    visitor.go()
    assert [result.get(DEADLINE) for result in results] == [[n, n] for n in range(150)]
    assert blocker.get(DEADLINE) is None


def raise_for(array, index):
    if index == 3:
        raise LookupError(index)
    return int(array[index])


def test_errors_and_other_retries(pool):
    func = functools.partial(raise_for, array())
    with pytest.raises(LookupError):
        pool.map(func, range(6), 1, retries=Retry(1, on=LookupError))
    assert [i for i in range(6) if i != 3] == pool.map(func, [0, 1, 2, 4, 5], 1)


def mark_and_wait(path, array, index):
    mark(path, os.getpid())
    signal.pause()


def test_a_worker_that_is_killed_from_outside(make_pool, tmp_path):
    pool = make_pool(1)
    func = functools.partial(mark_and_wait, tmp_path / "pid", array())
    result = pool.map_async(func, [1], 1)
    os.kill(int(marked(tmp_path / "pid")), signal.SIGKILL)
    result.wait(DEADLINE)
    assert not result.successful()
    assert pool.map(functools.partial(item, array()), range(4), 1) == [0, 1, 2, 3]


LIMITED = """
import functools, os, resource
from prefork import Pool

def item(data, index):
    return data[index]

if __name__ == "__main__":
    pool = Pool(2)
    small = functools.partial(item, bytearray(range(4)))
    assert pool.map(small, range(4), 1) == list(range(4))  # imports what it takes
    spare = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare[0] + 1, spare[0] + 1))
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass
    func = functools.partial(item, bytearray(range(256)) * 4096)
    assert pool.map(func, range(50), 1) == list(range(50))
    assert list(pool.imap(func, range(50))) == list(range(50))
    print("done")
"""


def test_without_a_descriptor_it_goes_the_slower_way(script):
    code, out, err = script(LIMITED).finish()
    assert (code, out) == (0, "done\n"), err


def test_a_pool_without_threads():
    func = functools.partial(item, array())
    with Pool(1, threads=False) as pool:
        assert pool.map(func, range(10), 3) == list(range(10))
