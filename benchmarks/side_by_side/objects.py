"""Large objects, and many of them: to the workers and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import tasks
from benchmarks.side_by_side.floors import Metrics
from benchmarks.side_by_side.measures import Bench
from benchmarks.side_by_side.memory import PeakMemory, family_memory
from benchmarks.side_by_side.meters import Cost, available, descendants

ARRAY = 64 << 20  # bytes
KEPT = 128 << 10
ROWS = 1000


def new_array(size: int = ARRAY) -> Any:
    import numpy as np

    return np.arange(size // 8, dtype=np.float64)


def array_there(bench: Bench) -> Metrics:
    pool = bench.pool()
    array = new_array()
    pool.call(tasks.touch, array)
    with Cost() as cost:
        for _ in range(bench.size):
            pool.call(tasks.touch, array)
    return cost.per(bench.size)


def array_there_and_back(bench: Bench) -> Metrics:
    pool = bench.pool()
    array = new_array()
    tasks.touch(pool.call(tasks.identity, array))
    with Cost() as cost:
        for _ in range(bench.size):
            tasks.touch(pool.call(tasks.identity, array))
    return cost.per(bench.size)


def constant(bench: Bench, call: str) -> Metrics:
    """`wall` and `cpu` are those of all tasks together."""
    pool = bench.pool("map")
    numbers = list(range(bench.size))
    list(getattr(pool, call)(tasks.part, new_array(1 << 20), numbers))
    array = new_array()
    expected = [tasks.part(array, number) for number in numbers]
    with Cost() as cost:
        found = list(getattr(pool, call)(tasks.part, array, numbers))
    assert found == expected
    return cost.per(1)


def array_memory(bench: Bench, func: Callable[[Any], Any], exist: int) -> Metrics:
    """`peak`: the most memory at a time, in units of the arrays that must exist at that time."""
    import numpy as np  # noqa: F401 (before the memory is looked at first)

    pool = bench.pool()
    with PeakMemory() as memory:
        array = new_array()
        for _ in range(bench.size):
            result = pool.call(func, array)
            if func is tasks.identity:
                tasks.touch(result)
            del result
    return {"peak": memory.peak / (ARRAY * exist), "bytes": memory.peak}


def bytes_there_and_back(bench: Bench) -> Metrics:
    data = os.urandom(1 << 20)
    pool = bench.pool()
    pool.call(tasks.identity, data)
    with Cost() as cost:
        for _ in range(bench.size):
            pool.call(tasks.identity, data)
    return cost.per(bench.size)


def shared_memory(bench: Bench, workers: int) -> Metrics:
    """`peak`: the most memory at a time that an array which all workers read takes beside the
    caller's own, and beside the idle pool, in units of the array. It has `size` MiB, or a quarter
    of the memory that is free."""
    pool = bench.pool("map", workers)
    numbers = list(range(4 * workers))
    list(pool.with_shared(tasks.touch_at_leisure, new_array(1 << 20), numbers))
    array = new_array(min(bench.size << 20, available() // 4))
    expected = [tasks.touch_at_leisure(array, number) for number in numbers]
    with PeakMemory() as memory:
        found = list(pool.with_shared(tasks.touch_at_leisure, array, numbers))
    assert found == expected
    return {"peak": memory.peak / array.nbytes, "bytes": memory.peak}


def kept_arrays(bench: Bench) -> Metrics:
    """Results that the caller keeps: `wall` and `cpu` for one; what they take in all processes
    beyond what they must (`peak`), and in descriptors of the caller (`descriptors`)."""
    import numpy as np  # noqa: F401 (before the memory is looked at first)

    pool = bench.pool("imap")
    list(pool.imap(tasks.array_of, [KEPT] * 10))
    memory, descriptors = _memory(), _descriptors()
    with Cost() as cost:
        kept = list(pool.imap(tasks.array_of, [KEPT] * bench.size))
    grown = _memory() - memory
    assert all(array.nbytes == KEPT for array in kept)
    return {
        **cost.per(bench.size),
        "peak": grown / (KEPT * bench.size),
        "descriptors": _descriptors() - descriptors,
    }


def _memory() -> int:
    return family_memory([os.getpid(), *descendants()])


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def frames(bench: Bench) -> Metrics:
    """Each result is a DataFrame of 1,000 rows."""
    import pandas  # noqa: F401 (workers inherit it, where they can)

    pool = bench.pool("imap")
    first = next(iter(pool.imap(tasks.frame, [ROWS])))
    with Cost() as cost:
        count = _consume(pool.imap(tasks.frame, [ROWS] * bench.size), first)
    assert count == bench.size
    return cost.per(bench.size)


def _consume(frames: Iterable[Any], like: Any) -> int:
    count = 0
    for frame in frames:
        assert frame.shape == like.shape
        count += 1
    return count


def dicts(bench: Bench) -> Metrics:
    """Small dicts to the workers and back, with the chunks that `map` makes by default."""
    items = [{"id": i, "name": f"item {i}", "price": i / 7} for i in range(bench.map_size)]
    pool = bench.pool("map")
    with Cost() as cost:
        found = list(pool.map(tasks.identity, items))
    assert found == items
    return cost.per(len(items))
