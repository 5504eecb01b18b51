"""Idle workers that somebody has stopped (SIGSTOP) and never continues."""

from __future__ import annotations

import pytest

from helpers import DEADLINE, METHODS, eventually, stop


def double(x):
    return 2 * x


@pytest.fixture(params=METHODS)
def pool(request, make_pool):
    """One whose workers have nothing to do."""
    pool = make_pool(2, context=request.param)
    pool.map(double, range(10))
    # One may have done all that, while the other one was still starting.
    eventually(lambda: {w.state for w in pool.statistics().workers} == {"idle"}, "all are ready")
    return pool


def test_a_closed_pool_ends_though_a_worker_is_stopped(pool):
    stop(pool.statistics().workers[-1].pid)
    pool.close()
    assert pool.join(DEADLINE)


def test_a_pool_shrinks_though_its_workers_are_stopped(pool):
    pids = [worker.pid for worker in pool.statistics().workers]
    for pid in pids:
        stop(pid)
    pool.shrink()
    eventually(lambda: pool.statistics().exits, "one of them leaves")
    pool.restart()
    eventually(lambda: {left.pid for left in pool.statistics().exits} >= {*pids}, "both leave")
    assert pool.apply_async(double, (4,)).get(DEADLINE) == 8
