"""How it is measured: each workload is a function of a `Bench`, which opens pools, to metrics.

Metrics are for one task (or one transfer, start, worker): `wall` and `cpu` are seconds, the latter
of all processes; others are named where they are made.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.side_by_side import floors, tasks
from benchmarks.side_by_side.floors import Metrics
from benchmarks.side_by_side.meters import Cost, available, memory_of, resident, waits, wake_ups
from benchmarks.side_by_side.peer import Peer

WARM_UP = 200  # calls before anything is measured
LONG, SHORT = 0.1, 0.001  # seconds
UNEVEN = [LONG if i % 20 == 0 else SHORT for i in range(200)]
IDEAL = sum(UNEVEN) / 2  # seconds, on two workers
FEW_QUEUED = 10_000
THREADS = 16


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
        if not self.peer.default_chunk_is_one:
            return self.size
        return self.size // (100 if self.peer.heavy else 10)


# --- short calls


def apply_async(bench: Bench) -> Metrics:
    pool = bench.pool()
    with Cost() as cost:
        pool.run_all(tasks.noop, range(bench.size))
    return cost.per(bench.size)


def apply(bench: Bench) -> Metrics:
    seconds = []
    pool = bench.pool()
    before = waits()
    with Cost() as cost:
        for i in range(bench.size):
            begin = time.perf_counter()
            pool.call(tasks.noop, i)
            seconds.append(time.perf_counter() - begin)
    switches = (waits() - before) / bench.size
    return {**cost.per(bench.size), "p50": median(seconds), "switches": switches}


def from_threads(bench: Bench) -> Metrics:
    """As many calls from each of several threads, which then wait for their results."""
    pool = bench.pool()
    share = range(bench.size // THREADS)
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda _: pool.run_all(tasks.noop, range(1)), range(THREADS)))
        with Cost() as cost:
            list(threads.map(lambda _: pool.run_all(tasks.noop, share), range(THREADS)))
    return cost.per(THREADS * len(share))


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


# --- the pool's own


def start_up(bench: Bench, workers: int, method: str) -> Metrics:
    """From the constructor to the first result."""
    import_module(bench.peer.module)
    begin = time.perf_counter()
    pool = bench.peer(workers, method)
    pool.call(tasks.noop)
    return {"wall": time.perf_counter() - begin}


def start_in_large(bench: Bench, workers: int) -> Metrics:
    """The same in a process that has `size` MiB in small pages, as many small objects have, or a
    quarter of the memory that is free (`resident`: bytes)."""
    size = min(bench.size << 20, available() // 4)
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.madvise(mmap.MADV_NOHUGEPAGE)
        for at in range(0, size, mmap.PAGESIZE):
            held[at] = 1
        return {**start_up(bench, workers, "fork"), "resident": size}


def one_task_each(bench: Bench) -> Metrics:
    """Seconds until a task is done by a worker of its own, of two at a time."""
    pool = bench.peer(2, "fork", **{bench.peer.one_task: 1})
    pool.result(pool.submit(tasks.own_pid))
    begin = time.perf_counter()
    handles = [pool.submit(tasks.own_pid) for _ in range(bench.size)]
    workers = {pool.result(handle) for handle in handles}
    seconds = time.perf_counter() - begin
    assert len(workers) == bench.size, f"{bench.size} tasks in {len(workers)} workers"
    return {"wall": seconds / bench.size}


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
    time.sleep(0.5)  # until what has been done is cleaned up
    before = wake_ups()
    time.sleep(1.0)
    count = wake_ups() - before
    del pool  # only now
    return {"wakeups": count}
