"""The same pool by other interfaces: an executor's, an event loop's, joblib's."""

from __future__ import annotations

import asyncio
import time
from importlib import import_module
from statistics import median

from benchmarks.side_by_side import tasks
from benchmarks.side_by_side.floors import Metrics
from benchmarks.side_by_side.measures import WARM_UP, Bench
from benchmarks.side_by_side.meters import Cost

IN_TURN = 100  # calls of one kind, and then of the other
JOBLIB_TASK = 50e-6  # seconds of CPU


def futures(bench: Bench) -> Metrics:
    pool = bench.peer(2, "fork")

    def run(calls: int) -> None:
        for future in [pool.future(tasks.noop, i) for i in range(calls)]:
            future.result()

    run(max(WARM_UP, 20))  # executors may start their workers with the first call
    with Cost() as cost:
        run(bench.size)
    return cost.per(bench.size)


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


def gathered(bench: Bench) -> Metrics:
    """All at once, by `asyncio.gather`."""
    pool = bench.pool("call")

    async def run(calls: int) -> None:
        await asyncio.gather(*[pool.awaitable(tasks.noop, i) for i in range(calls)])

    with asyncio.Runner() as runner:
        runner.run(run(WARM_UP))
        with Cost() as cost:
            runner.run(run(bench.size))
    return cost.per(bench.size)


def in_joblib(bench: Bench, again: bool) -> Metrics:
    """By a call of joblib's `Parallel`: a program's first, which starts the workers, or `again`."""
    import_module(bench.peer.joblib_module)
    pool = bench.peer(2, "fork")
    work = [max(1, round(bench.loops * JOBLIB_TASK * 1000))] * bench.size
    if again:
        pool.parallel(tasks.burn, work[:WARM_UP])
    begin = time.perf_counter()
    pool.parallel(tasks.burn, work)
    return {"wall": (time.perf_counter() - begin) / bench.size}
