"""Pools leave nothing behind: no thread, no descriptor, no process, no name in /dev/shm."""

from __future__ import annotations

import gc
import os
import threading

import pytest

from helpers import DEADLINE, children, eventually
from prefork import Pool

POOLS = {"fork": 50, "forkserver": 10, "spawn": 8}


def possessions():
    """Our threads, descriptors, children (zombies, too) and names in /dev/shm."""
    shm = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    return {
        *threading.enumerate(),
        *(f"descriptor {fd}" for fd in os.listdir("/proc/self/fd")),
        *(f"child {child.pid}" for child in children()),
        *(f"/dev/shm/{name}" for name in shm),
    }


def close(pool):
    pool.close()
    assert pool.join(DEADLINE)


def terminate(pool):
    pool.terminate()
    assert pool.join(DEADLINE)


def leave(pool):
    with pool:
        pass


def drop(pool):
    pass


def die(pool):
    pool.apply_async(os._exit, (1,)).wait(DEADLINE)
    close(pool)


def use(context, end, jobs):
    pool = Pool(2, context=context)
    results = [pool.apply_async(abs, (-n,)) for n in range(jobs)]
    results += [pool.apply_async(bytes, (n,)) for n in range(0, jobs * 100_000, 100_000)]
    results += [pool.apply_async(len, (bytes(n),)) for n in range(0, jobs * 100_000, 100_000)]
    end(pool)


@pytest.mark.serial  # what others in this process start would count
@pytest.mark.parametrize("end", [close, terminate, leave, drop, die])
def test_nothing_is_left(context, end):
    use(context, terminate, 1)  # this may start a fork server and the like, which stay
    gc.collect()
    before = possessions()
    for number in range(POOLS[context.get_start_method()]):
        use(context, end, jobs=4 * (number % 2))
    gc.collect()
    try:
        eventually(lambda: possessions() <= before, "")
    except AssertionError:
        assert possessions() - before == set()
