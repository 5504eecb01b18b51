"""Tasks that are shorter than it takes to wake a worker wait for those that are at work; but never
behind a long one while others idle."""

from __future__ import annotations

import pytest

import inside
from gate import Gate, enter
from helpers import DEADLINE
from prefork._engine.roles import TimeoutHandler
from prefork._policy.scheduler import SHORT_SECONDS
from prefork._system.resources import available_cpus

WORKERS = max(2, available_cpus()) + 4


def noop(x):
    return x


def warm(pool):
    """Have the pool learn that its tasks are short."""
    while (seconds := inside.mean_seconds(pool)) is None or seconds > SHORT_SECONDS / 2:
        handles = [pool.apply_async(noop, (x,)) for x in range(200)]
        assert [handle.get(DEADLINE) for handle in handles] == list(range(200))


def let_go(gate, count):
    visitors = [gate.arrival() for _ in range(count)]
    assert sorted(visitor.value for visitor in visitors) == list(range(count))
    for visitor in visitors:
        visitor.go()


@pytest.mark.parametrize("threads", [True, False])
@pytest.mark.parametrize("blocked", range(1, WORKERS))
def test_short_tasks_pass_long_ones(make_pool, threads, blocked):
    pool = make_pool(WORKERS, threads=threads)
    warm(pool)
    with Gate() as gate:
        long = [pool.apply_async(enter, (gate, x)) for x in range(blocked)]
        short = [pool.apply_async(noop, (x,)) for x in range(300)]
        assert [handle.get(DEADLINE) for handle in short] == list(range(300))
        let_go(gate, blocked)
        assert [handle.get(DEADLINE) for handle in long] == list(range(blocked))


def test_without_a_thread_to_look_nothing_is_held(make_pool, monkeypatch):
    def no_thread(self, on_crash, threads=None):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(TimeoutHandler, "start", no_thread)
    pool = make_pool(WORKERS)
    warm(pool)
    with Gate() as gate:
        for x in range(WORKERS - 1):
            pool.apply_async(enter, (gate, x))
        handles = [pool.apply_async(noop, (x,)) for x in range(300)]
        assert [handle.get(DEADLINE) for handle in handles] == list(range(300))
        let_go(gate, WORKERS - 1)


def test_long_tasks_among_short_ones_run_at_the_same_time(make_pool):
    pool = make_pool(WORKERS)
    warm(pool)
    with Gate() as gate:
        handles = []
        for x in range(WORKERS):
            handles += [pool.apply_async(noop, (x,)) for _ in range(20)]
            handles.append(pool.apply_async(enter, (gate, x)))
        let_go(gate, WORKERS)
        results = [handle.get(DEADLINE) for handle in handles]
    assert results == [x for x in range(WORKERS) for _ in range(21)]
