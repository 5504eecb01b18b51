"""Idle workers that somebody has stopped (SIGSTOP) and never continues."""

from __future__ import annotations

import pytest

from helpers import DEADLINE, METHODS, eventually, stop


def double(x):
    return 2 * x


def stop_one(pool):
    """Stop a worker that has nothing to do; returns its process id."""
    pool.map(double, range(10))
    pid = pool.statistics().workers[-1].pid
    stop(pid)
    return pid


@pytest.fixture(params=METHODS)
def pool(request, make_pool):
    return make_pool(2, context=request.param)


def test_a_closed_pool_ends_though_a_worker_is_stopped(pool):
    stop_one(pool)
    pool.close()
    assert pool.join(DEADLINE)


def test_a_pool_shrinks_though_its_workers_are_stopped(pool):
    pool.map(double, range(10))
    pids = [worker.pid for worker in pool.statistics().workers]
    for pid in pids:
        stop(pid)
    pool.shrink()
    eventually(lambda: pool.statistics().exits, "one of them leaves")
    pool.restart()
    eventually(lambda: {left.pid for left in pool.statistics().exits} >= {*pids}, "both leave")
    assert pool.apply_async(double, (4,)).get(DEADLINE) == 8
