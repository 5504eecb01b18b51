"""How it is measured: each workload is a function of a `Bench`, which opens pools, to metrics.

Metrics are for one task (or one transfer, start, worker): `wall` and `cpu` are seconds, the latter
of all processes; others are named where they are made.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.side_by_side import floors, tasks
from benchmarks.side_by_side.floors import Metrics
from benchmarks.side_by_side.memory import PeakMemory
from benchmarks.side_by_side.meters import Cost, descendants, memory_of, resident, wake_ups
from benchmarks.side_by_side.peers import Peer

WARM_UP = 200  # calls before anything is measured
IN_TURN = 100  # calls of one kind, and then of the other
ARRAY = 64 << 20  # bytes
LONG, SHORT = 0.1, 0.001  # seconds
UNEVEN = [LONG if i % 20 == 0 else SHORT for i in range(200)]
IDEAL = sum(UNEVEN) / 2  # seconds, on two workers
FEW_QUEUED = 10_000


@dataclass(frozen=True)
class Bench:
    """What a workload measures with."""

    peer: type[Peer]
    size: int
    loops: int  # of `burn`, for 1 ms

    def pool(self, call: str = "run_all", workers: int = 2, method: str = "fork") -> Peer:
        """A pool whose workers all run; they have been used by the call that will be measured."""
        pool = self.peer(workers, method)
        for _ in getattr(pool, call)(tasks.noop, list(range(max(WARM_UP, 10 * workers)))) or ():
            pass
        return pool

    @property
    def map_size(self) -> int:
        """Fewer items for a pool that would hand them over one by one."""
        return self.size // 10 if self.peer.default_chunk_is_one else self.size


# --- short calls


def apply_async(bench: Bench) -> Metrics:
    pool = bench.pool()
    with Cost() as cost:
        pool.run_all(tasks.noop, range(bench.size))
    return cost.per(bench.size)


def futures(bench: Bench) -> Metrics:
    pool = bench.peer(2, "fork")

    def run(calls: int) -> None:
        for future in [pool.future(tasks.noop, i) for i in range(calls)]:
            future.result()

    run(max(WARM_UP, 20))  # executors may start their workers with the first call
    with Cost() as cost:
        run(bench.size)
    return cost.per(bench.size)


def apply(bench: Bench) -> Metrics:
    seconds = []
    pool = bench.pool()
    with Cost() as cost:
        for i in range(bench.size):
            begin = time.perf_counter()
            pool.call(tasks.noop, i)
            seconds.append(time.perf_counter() - begin)
    return {**cost.per(bench.size), "p50": median(seconds)}


def awaited(bench: Bench) -> Metrics:
    """One `await` after another (`p50`, seconds); and divided by one call that is waited for, in
    turns with it (`call`)."""
    pool = bench.pool("call")
    awaits: list[float] = []
    calls: list[float] = []

    async def wait(count: int) -> None:
        for i in range(count):
            begin = time.perf_counter()
            await pool.awaitable(tasks.noop, i)
            awaits.append(time.perf_counter() - begin)

    with asyncio.Runner() as runner:
        for _ in range(bench.size // IN_TURN):
            runner.run(wait(IN_TURN))
            for i in range(IN_TURN):
                begin = time.perf_counter()
                pool.call(tasks.noop, i)
                calls.append(time.perf_counter() - begin)
    return {"p50": median(awaits), "call": median(awaits) / median(calls)}


def map_default(bench: Bench) -> Metrics:
    items = list(range(bench.map_size))
    pool = bench.pool("map")
    with Cost() as cost:
        pool.map(tasks.noop, items)
    return cost.per(len(items))


def imap(bench: Bench, call: str = "imap") -> Metrics:
    items = list(range(bench.size))
    pool = bench.pool(call)
    with Cost() as cost:
        for _ in getattr(pool, call)(tasks.noop, items):
            pass
    return cost.per(bench.size)


# --- tasks that take time


def uneven_map(bench: Bench) -> Metrics:
    pool = bench.pool("map")
    with Cost() as cost:
        pool.map(tasks.nap, UNEVEN)
    return {"ideal": cost.wall / IDEAL, "wall": cost.wall}


def uneven_calls(bench: Bench) -> Metrics:
    pool = bench.pool()
    with Cost() as cost:
        pool.run_all(tasks.nap, UNEVEN)
    return {"ideal": cost.wall / IDEAL, "wall": cost.wall}


def bare_uneven(_: Bench) -> Metrics:
    seconds = floors.two_processes(tasks.nap, sorted(UNEVEN)[::2])
    return {"ideal": seconds / IDEAL, "wall": seconds}


def cpu_bound(bench: Bench) -> Metrics:
    pool = bench.pool()
    with Cost() as cost:
        pool.run_all(tasks.burn, [bench.loops] * bench.size)
    return cost.per(bench.size)


def bare_cpu_bound(bench: Bench) -> Metrics:
    share = [bench.loops] * (bench.size // floors.PROCESSES)
    return {"wall": floors.two_processes(tasks.burn, share) / bench.size}


# --- large objects


def new_array() -> Any:
    import numpy as np

    return np.arange(ARRAY // 8, dtype=np.float64)


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
    array = new_array()
    numbers = list(range(bench.size))
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


# --- the pool's own


def start_up(bench: Bench, workers: int, method: str) -> Metrics:
    """From the constructor to the first result."""
    import_module(bench.peer.module)
    begin = time.perf_counter()
    pool = bench.peer(workers, method)
    pool.call(tasks.noop)
    return {"wall": time.perf_counter() - begin}


def worker_memory(bench: Bench, method: str) -> Metrics:
    """`bytes` of an idle worker, pages that are shared divided among those who share them."""
    pool = bench.pool(method=method)
    handles = [pool.submit(tasks.own_pid, 0.02) for _ in range(20)]
    workers = {pool.result(handle) for handle in handles}
    size = mean(memory_of(pid).total for pid in workers)
    return {"bytes": size}


def many_workers(bench: Bench, workers: int) -> Metrics:
    pool = bench.pool(workers=workers)
    with Cost() as cost:
        pool.run_all(tasks.noop, range(bench.size))
    return cost.per(bench.size)


def queued(bench: Bench) -> Metrics:
    """Jobs that pile up, since no worker gets to them: seconds for one of few (`few`) and of many
    (`wall`), the ratio of these (`growth`), and the `bytes` of one, without its pickle."""
    fifo = Path(tempfile.mkdtemp()) / "never"
    os.mkfifo(fifo)
    pool = bench.peer(2, "fork")
    stuck = [pool.submit(tasks.stay, str(fifo)) for _ in range(2)]
    few = _submit_seconds(pool, FEW_QUEUED)[0]
    before = resident()
    many, handles = _submit_seconds(pool, bench.size)
    grown = (resident() - before) / bench.size - len(pickle.dumps((tasks.noop, (bench.size,))))
    del stuck, handles
    fifo.unlink()
    fifo.parent.rmdir()
    return {"few": few, "wall": many, "growth": many / few, "bytes": grown}


def _submit_seconds(pool: Peer, count: int) -> tuple[float, list[Any]]:
    begin = time.perf_counter()
    handles = [pool.submit(tasks.noop, i) for i in range(count)]
    return (time.perf_counter() - begin) / count, handles


def idle(bench: Bench) -> Metrics:
    """`wakeups` of all threads and processes of a pool in a second with nothing to do."""
    pool = bench.pool()
    assert descendants()
    time.sleep(0.5)  # until what has been done is cleaned up
    before = wake_ups()
    time.sleep(1.0)
    count = wake_ups() - before
    del pool  # only now
    return {"wakeups": count}
