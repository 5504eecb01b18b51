"""What is measured, with whom: the list of all workloads, their sizes and their floors."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from benchmarks.side_by_side import faces, floors, measures, objects, observing, tasks
from benchmarks.side_by_side.floors import Metrics
from benchmarks.side_by_side.measures import Bench
from benchmarks.side_by_side.peer import Peer

FULL, QUICK = "full", "quick"

CORE = ("prefork", "not compiled", "multiprocessing", "concurrent.futures", "billiard")

Measure = Callable[[Bench], Metrics]


@dataclass(frozen=True, kw_only=True)
class Workload:
    title: str
    measure: Measure
    needs: str = "submit"  # the call that a pool must have
    full: int = 1  # the size, as `measure` takes it, in full mode
    quick: int = 1  # and in quick mode; 0: not measured there
    method: str | None = None  # only for pools that have this start method
    only: tuple[str, ...] = ()  # the pools that are measured; none: all that can
    steady: bool = False  # does not depend on the time of measuring: once is enough
    floors: dict[str, Measure] = field(default_factory=dict)

    def size(self, mode: str) -> int:
        return self.full if mode == FULL else self.quick

    def suits(self, name: str, peer: type[Peer]) -> bool:
        """Whether this pool can be measured with it."""
        return (
            (not self.only or name in self.only)
            and (self.method is None or self.method in peer.start_methods)
            and peer.has(self.needs)
        )


_BATCHED: dict[str, Measure] = {
    "floor: sockets, 100 calls a message": lambda bench: floors.batched_calls(bench.size)
}
_EACH: dict[str, Measure] = {
    **_BATCHED,
    "floor: pipes, each call by itself": lambda bench: floors.each_by_itself(bench.size),
}

_CALLS = {
    "apply_async": Workload(
        title="no-op `apply_async`, then gather",
        measure=measures.apply_async,
        full=20_000,
        quick=5_000,
        floors=_BATCHED,
    ),
    "apply": Workload(
        title="one `apply` after another",
        measure=measures.apply,
        full=2_000,
        quick=1_000,
        floors={
            "floor: socket ping-pong": lambda bench: floors.socket_ping_pong(bench.size),
            "floor: pipe ping-pong": lambda bench: floors.pipe_ping_pong(bench.size),
            "floor: a thread reads": lambda bench: floors.threaded_ping_pong(bench.size),
        },
    ),
    "threads": Workload(
        title="no-op `apply_async` from 16 threads at once",
        measure=measures.from_threads,
        full=20_000,
        quick=0,
    ),
    "map": Workload(
        title="`map` of a no-op over ints, default chunks",
        measure=measures.map_default,
        needs="map",
        full=200_000,
        quick=50_000,
        floors={"floor: a loop in one process": lambda bench: floors.in_one_process(bench.size)},
    ),
    "imap": Workload(
        title="`imap`, chunksize 1",
        measure=measures.imap,
        needs="imap",
        full=10_000,
        quick=3_000,
        floors=_EACH,
    ),
    "imap_unordered": Workload(
        title="`imap_unordered`, chunksize 1",
        measure=partial(measures.imap, call="imap_unordered"),
        needs="imap_unordered",
        full=10_000,
        quick=0,
        floors=_EACH,
    ),
}

_FACES = {
    "futures": Workload(
        title="no-op `executor.submit`, then gather",
        measure=faces.futures,
        needs="future",
        full=20_000,
        quick=5_000,
        floors=_BATCHED,
    ),
    "awaited": Workload(
        title="one `await pool.submit` after another",
        measure=faces.awaited,
        needs="awaitable",
        full=2_000,
        quick=1_000,
        only=("prefork", "not compiled", "concurrent.futures"),
    ),
    "gathered": Workload(
        title="no-op `await pool.submit`, 20,000 at once by `asyncio.gather`",
        measure=faces.gathered,
        needs="awaitable",
        full=20_000,
        quick=0,
    ),
    **{
        name: Workload(
            title=f"50 µs of CPU, 10,000 times by joblib's `Parallel`, {which} call",
            measure=partial(faces.in_joblib, again=again),
            needs="parallel",
            full=10_000,
            quick=0 if again else 2_000,
        )
        for name, which, again in (("joblib", "first", False), ("joblib_again", "second", True))
    },
}

_TASKS = {
    "uneven_map": Workload(
        title="200 tasks, each 20th 100 ms, others 1 ms: `map`",
        measure=measures.uneven_map,
        needs="map",
        floors={"floor: two bare processes": measures.bare_uneven},
        quick=0,
    ),
    "uneven_calls": Workload(
        title="the same tasks by `apply_async`",
        measure=measures.uneven_calls,
        floors={"floor: two bare processes": measures.bare_uneven},
    ),
    "cpu_bound": Workload(
        title="tasks of 1 ms of CPU by `apply_async`",
        measure=measures.cpu_bound,
        needs="run_all",
        full=2_000,
        quick=500,
        floors={"floor: two bare processes": measures.bare_cpu_bound},
    ),
}

_OBJECTS = {
    "array_there": Workload(
        title="64 MiB array to a worker",
        measure=objects.array_there,
        needs="call",
        full=10,
        quick=2,
        floors={
            "floor: one copy": lambda bench: floors.copies(objects.new_array(), 1, bench.size),
            "floor: a memory file": lambda bench: floors.through_memory_files(
                objects.new_array(), bench.size, back=False
            ),
        },
    ),
    "array_back": Workload(
        title="64 MiB array to a worker and back",
        measure=objects.array_there_and_back,
        needs="call",
        full=10,
        quick=1,
        floors={
            "floor: two copies": lambda bench: floors.copies(objects.new_array(), 2, bench.size),
            "floor: two memory files": lambda bench: floors.through_memory_files(
                objects.new_array(), bench.size, back=True
            ),
        },
    ),
    "array_there_memory": Workload(
        title="peak memory, array to a worker",
        measure=partial(objects.array_memory, func=tasks.touch, exist=2),
        needs="call",
        full=6,
        quick=0,
    ),
    "array_back_memory": Workload(
        title="peak memory, array to a worker and back",
        measure=partial(objects.array_memory, func=tasks.identity, exist=3),
        needs="call",
        full=6,
        quick=0,
    ),
    "constant": Workload(
        title="50 tasks that need one 64 MiB array: `map` of a `partial`",
        measure=partial(objects.constant, call="with_constant"),
        needs="with_constant",
        full=50,
        quick=10,
        floors={
            "floor: one copy": lambda _: floors.copies(objects.new_array(), 1, 1),
        },
    ),
    "shared": Workload(
        title="50 tasks that need one 64 MiB array: shared for any calls (`share`)",
        measure=partial(objects.constant, call="with_shared"),
        needs="with_shared",
        full=50,
        quick=10,
    ),
    "shared_memory": Workload(
        title="memory for an array of 1 GiB that 16 workers read",
        measure=partial(objects.shared_memory, workers=16),
        needs="with_shared",
        only=("prefork", "not compiled", "joblib", "ray"),  # dask has a copy for each worker
        full=1024,
        quick=0,
    ),
    "kept": Workload(
        title="results that are kept: 10,000 arrays of 128 KiB",
        measure=objects.kept_arrays,
        needs="imap",
        full=10_000,
        quick=0,
    ),
    "frames": Workload(
        title="results that are DataFrames of 1,000 rows, by `imap`",
        measure=objects.frames,
        needs="imap",
        full=1_000,
        quick=0,
    ),
    "dicts": Workload(
        title="1,000,000 small dicts to a worker and back, by `map`",
        measure=objects.dicts,
        needs="map",
        full=1_000_000,
        quick=0,
    ),
    "bytes_back": Workload(
        title="1 MiB of bytes to a worker and back",
        measure=objects.bytes_there_and_back,
        needs="call",
        full=200,
        quick=50,
        floors={
            "floor: two copies": lambda bench: floors.bytes_copies(os.urandom(1 << 20), bench.size)
        },
    ),
}


def _start(workers: int, method: str) -> Workload:
    forks: dict[str, Measure] = {
        f"floor: {workers} forks": lambda _: floors.forks(workers),
        f"floor: {workers} processes with channels": lambda _: floors.processes_with_channels(
            workers
        ),
    }
    return Workload(
        title=f"start with {workers} workers, {method}",
        measure=partial(measures.start_up, workers=workers, method=method),
        quick=int(method == "fork" and workers == 2),
        method=method,
        floors=forks if method == "fork" else {},
    )


def _start_in_large(workers: int) -> Workload:
    return Workload(
        title=f"start with {workers} workers, fork, in a process of 4 GiB",
        measure=partial(measures.start_in_large, workers=workers),
        full=4096,
        quick=0,
        method="fork",
    )


def _idle_memory(method: str) -> Workload:
    bare_fork: dict[str, Measure] = {
        "floor: a bare fork": lambda _: floors.forked_memory(),
        "floor: a process with a channel": lambda _: floors.channel_memory(),
    }
    return Workload(
        title=f"idle worker, {method}",
        measure=partial(measures.worker_memory, method=method),
        quick=int(method == "fork"),
        method=method,
        steady=True,
        floors=bare_fork if method == "fork" else {},
    )


def _many_workers(workers: int) -> Workload:
    return Workload(
        title=f"no-op `apply_async` on {workers} workers",
        measure=partial(measures.many_workers, workers=workers),
        full=20_000,
        quick=0 if workers == 256 else 5_000,
        only=("prefork", "not compiled", "multiprocessing", "billiard"),
    )


_POOLS = {
    **{
        f"start_{workers}_{method}": _start(workers, method)
        for method in ("fork", "forkserver")
        for workers in (2, 16)
    },
    **{f"start_{workers}_large": _start_in_large(workers) for workers in (2, 16)},
    "one_task": Workload(
        title="each worker replaced after one task, fork",
        measure=measures.one_task_each,
        needs="one_task",
        full=1_000,
        quick=0,
        method="fork",
    ),
    **{f"idle_memory_{method}": _idle_memory(method) for method in ("fork", "forkserver")},
    **{f"workers_{workers}": _many_workers(workers) for workers in (64, 256)},
    "queued": Workload(
        title="job that queues up",
        measure=measures.queued,
        full=1_000_000,
        quick=50_000,
        only=CORE,
        floors={
            "floor: pickles in a list": lambda bench: floors.pickled_and_kept(bench.size),
            "floor: with two objects each": lambda bench: floors.objects_and_kept(
                measures.FEW_QUEUED, bench.size
            ),
        },
    ),
    "idle": Workload(title="a second of idleness", measure=measures.idle, steady=True),
}

_OURS = ("prefork", "not compiled")
_WATCHED = {
    "progress": Workload(
        title="`map` with a progress bar / without",
        measure=observing.progress,
        full=100_000,
        quick=20_000,
        only=_OURS,
    ),
    "logs": Workload(
        title="10,000 log records forwarded / to the worker's own standard error",
        measure=observing.logs,
        full=10_000,
        quick=1_000,
        only=_OURS,
    ),
}

TOPICS: dict[str, dict[str, Workload]] = {
    "Short calls": _CALLS,
    "By other interfaces": _FACES,
    "Tasks that take time": _TASKS,
    "Large objects, and many": _OBJECTS,
    "The pool's own costs": _POOLS,
    "Watched": _WATCHED,
}

WORKLOADS: dict[str, Workload] = {
    name: workload for topic in TOPICS.values() for name, workload in topic.items()
}
