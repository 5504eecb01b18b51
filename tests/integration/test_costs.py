"""What a call costs, in counts: they are the same on a slow machine, unlike times.

System calls and bytes are those of `read`, `write` and their kin, which the kernel counts for each
process. The bounds leave room for what depends on timing (how many reports a read finds), not for
another message, copy or wake-up per task. Times are measured in `benchmarks/`.
"""

from __future__ import annotations

import functools
import gc
import os
import pickle
import resource
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import pytest

from gate import enter
from helpers import constant_files, eventually
from prefork import Pool, Shared, build_info, share
from prefork._policy import scheduler

CALLS = 500
FEW = 20
"""System calls that belong to no task: looking at the counters, whatever the test run does."""
COMPILED = scheduler.__file__.endswith(".so")
BUFFERED = 100
"""Tickets that may be in an inbox: so many jobs are sent at once even if none is finished."""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/io").exists(), reason="the kernel does not count system calls"
)


class Count(NamedTuple):
    """Of one process."""

    rchar: int  # bytes
    wchar: int
    syscr: int  # system calls
    syscw: int

    def __sub__(self, other: Count) -> Count:
        return Count(*(a - b for a, b in zip(self, other, strict=True)))


def count(pid: int) -> Count:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    fields = dict(line.split(": ") for line in lines)
    return Count(*(int(fields[name]) for name in Count._fields))


class Meter:
    """Counts what a pool's process and its one worker do in a `with` block. Other pools may have
    workers that are still leaving."""

    pool: Count
    worker: Count

    def __init__(self, pool: Pool) -> None:
        (worker,) = pool.statistics().workers
        self.pid = worker.pid

    def __enter__(self) -> Meter:
        self._before = count(os.getpid()), count(self.pid)
        return self

    def __exit__(self, *_: object) -> None:
        before_pool, before_worker = self._before
        self.pool = count(os.getpid()) - before_pool
        self.worker = count(self.pid) - before_worker


def noop(_: object = None) -> None:
    pass


def same(value: object) -> object:
    return value


@pytest.fixture
def pool(make_pool):
    """One worker, so that all the work is its own; it has run a task."""
    pool = make_pool(1)
    pool.apply(noop)
    return pool


# --- one call after another: what a round trip costs


def test_a_call_takes_one_message_each_way(pool):
    with Meter(pool) as meter:
        for i in range(CALLS):
            pool.apply(noop, (i,))
    # The worker finds its inbox empty, waits, reads the ticket, and reports.
    assert meter.worker.syscr <= 2 * CALLS + FEW
    assert meter.worker.syscw <= CALLS + FEW
    # The pool writes the ticket, reads the report, and wakes its result handler at most once more.
    assert meter.pool.syscr <= 3 * CALLS + FEW
    assert meter.pool.syscw <= 2 * CALLS + FEW


def test_a_call_sends_few_bytes(pool):
    with Meter(pool) as meter:
        for i in range(CALLS):
            pool.apply(noop, (i,))
    sent = meter.pool.wchar + meter.worker.wchar
    assert sent <= 200 * CALLS + 10_000  # a ticket of 32 bytes, a report of 42, small change


def switches(pids: list[int]) -> int:
    """How often the threads of these processes have gone to sleep until now."""
    statuses = [path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(
        int(line.split()[1])
        for status in statuses
        for line in status.read_text(errors="replace").splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def test_a_call_wakes_each_side_once(pool):
    pids = [os.getpid(), *(worker.pid for worker in pool.statistics().workers)]
    before = switches(pids)
    for i in range(CALLS):
        pool.apply(noop, (i,))
    # The worker, the result handler and the caller: each once. What else there may be comes of
    # two threads that hand the interpreter lock to each other.
    assert switches(pids) - before <= 6 * CALLS


# --- many calls: what queueing and batches save


def test_calls_that_queue_up_cost_no_system_calls(pool, gate):
    blocker = pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    with Meter(pool) as meter:
        results = [pool.apply_async(noop, (i,)) for i in range(5_000)]
    assert meter.pool.syscw <= BUFFERED + FEW
    assert meter.worker.syscr <= FEW
    visitor.go()
    assert blocker.get() is None
    assert [result.get() for result in results] == [None] * 5_000


def test_many_calls_take_no_more_than_a_read_and_a_write_each(pool, gate):
    pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    results = [pool.apply_async(noop, (i,)) for i in range(CALLS)]
    with Meter(pool) as meter:
        visitor.go()
        for result in results:
            result.get()
    # The worker always has something to read; the pool sends in batches.
    assert meter.worker.syscr <= 2 * CALLS + FEW
    assert meter.worker.syscw <= CALLS + FEW
    assert meter.pool.syscw <= 2 * CALLS + FEW
    assert meter.pool.syscr <= 3 * CALLS + FEW


def test_a_chunk_is_one_message(pool):
    items, chunks = 100_000, 100
    with Meter(pool) as meter:
        pool.map(noop, range(items), chunksize=items // chunks)
    assert meter.worker.syscr <= 2 * chunks + FEW
    assert meter.worker.syscw <= chunks + FEW
    assert meter.pool.syscw <= 2 * chunks + FEW
    # A byte for each None, and nothing else for each item: the integers go through shared memory.
    assert meter.worker.wchar + meter.pool.wchar <= 2 * items + 10_000


# --- large objects: how often they are copied


@pytest.mark.parametrize("kind", ["array", "bytes"])
def test_a_large_object_is_written_once_each_way(pool, kind):
    size = 16 << 20
    if kind == "array":
        numpy = pytest.importorskip("numpy")
        value = numpy.zeros(size, dtype=numpy.uint8)
    else:
        value = bytes(size)
    pool.apply(same, (value[:10],))  # whatever is to be imported
    with Meter(pool) as meter:
        assert len(pool.apply(same, (value,))) == size
    # Written into a memory file, which the other side maps: nothing is read.
    slack = 1 << 20
    assert meter.pool.wchar <= size + slack
    assert meter.worker.wchar <= size + slack
    assert meter.pool.rchar <= slack
    assert meter.worker.rchar <= slack


def item(data: bytearray, index: int) -> int:
    return data[index]


def shared_item(shared: Shared[pickle.PickleBuffer], index: int) -> int:
    return memoryview(shared.get())[index]


@pytest.mark.parametrize("how", ["function", "shared"])
def test_what_many_tasks_need_is_written_once(pool, how):
    data = bytearray(range(256)) * (1 << 14)
    numbers = list(range(50))
    with Meter(pool) as meter:
        if how == "function":
            assert pool.map(functools.partial(item, data), numbers, 1) == numbers
        else:
            with share(pickle.PickleBuffer(data)) as shared:
                calls = [pool.apply_async(shared_item, (shared, number)) for number in numbers]
                assert [call.get() for call in calls] == numbers
                assert constant_files(meter.pid) == (1, 0)
    slack = 1 << 18
    assert len(data) <= meter.pool.wchar <= len(data) + slack
    assert meter.worker.rchar <= slack
    eventually(lambda: constant_files() == constant_files(meter.pid) == (0, 0), "it is dropped")


# --- the pool's own work, in calls of Python functions and bytes


def python_calls(run) -> int:
    """How many functions this thread calls, of Python and of C."""
    calls = 0

    def profile(frame, event, arg) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer makes calls of its own")
@pytest.mark.parametrize("workers", [1, 8])
def test_queueing_a_call_takes_few_calls_however_many_workers(
    make_pool, gate, monkeypatch, workers
):
    monkeypatch.delitem(sys.modules, "opentelemetry.context", raising=False)  # other tests' traces
    pool = make_pool(workers)
    blockers = [pool.apply_async(enter, (gate,)) for _ in range(workers)]
    visitors = [gate.arrival() for _ in blockers]
    for _ in range(BUFFERED * workers):
        pool.apply_async(noop)  # the inboxes are full
    jobs = 1_000
    calls = python_calls(lambda: [pool.apply_async(noop, (i,)) for i in range(jobs)])
    # On 3.14 locks are the pool's own, in Python; from 3.15 on entering one is seen as a call.
    assert calls <= (44 if sys.version_info >= (3, 14) else 40) * jobs
    for visitor in visitors:
        visitor.go()


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer makes calls of its own")
def test_waiting_for_a_call_takes_few_calls(pool, monkeypatch):
    monkeypatch.delitem(sys.modules, "opentelemetry.context", raising=False)  # other tests' traces
    pool.apply(noop, (0,))
    jobs = 300
    calls = python_calls(lambda: [pool.apply(noop, (i,)) for i in range(jobs)])
    # Who looks a second time, since it was woken for nothing, takes some more.
    assert calls <= (24 if build_info().compiled else 110) * jobs


def test_a_queued_job_is_small(pool, gate):
    pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    jobs = 10_000
    tracemalloc.start()
    try:
        results = [pool.apply_async(noop, (i,)) for i in range(jobs)]
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size <= 600 * jobs  # its pickle included
    visitor.go()
    results[-1].get()


def test_the_garbage_collector_sees_little_of_a_queued_job(pool, gate):
    pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    jobs = 10_000
    gc.collect()
    before = len(gc.get_objects())
    results = [pool.apply_async(noop, (i,)) for i in range(jobs)]
    gc.collect()
    seen = len(gc.get_objects()) - before
    assert seen <= (1 if COMPILED else 2) * jobs + 100  # the handle; the job, where it is no C
    visitor.go()
    results[-1].get()


def test_a_pool_has_few_threads(make_pool):
    before = set(threading.enumerate())
    pool = make_pool(2)
    pool.map(noop, range(10))
    # Results and workers are waited for; no time limit, no lazy input, no callback: no thread.
    assert len(set(threading.enumerate()) - before) <= 2


# --- what a start costs


def test_little_is_imported():
    """Each page of the pool's process is copied or shared by each worker, and some modules have
    hooks that run at each fork."""
    code = "import sys, prefork.pool; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    large = {"logging", "multiprocessing.pool", "multiprocessing.forkserver", "pickletools"}
    large |= {"random", "tempfile"}
    assert not large & set(run.stdout.split())


def modules() -> set[str]:
    return set(sys.modules)


def test_a_forked_worker_imports_nothing_to_start(make_pool):
    pool = make_pool(1, context="fork")
    assert not pool.apply(modules) - modules()


def pages_of_a_collection() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    gc.collect()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_a_forked_worker_does_not_copy_the_parents_objects_to_collect_garbage(make_pool):
    objects = [[] for _ in range(500_000)]
    assert make_pool(1, context="fork").apply(pages_of_a_collection) < len(objects) / 500


def own_files(_: object = None) -> list[str]:
    names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    files = [os.readlink(name) for name in names if os.path.lexists(name)]
    return sorted(file.partition(":")[0] for file in files if "memfd" in file or "socket" in file)


def test_a_worker_keeps_nothing_of_its_siblings(make_pool):
    """Sockets and memory files, which are the pool's only."""
    alone = make_pool(1, context="fork").apply(own_files)
    found = make_pool(8, context="fork").map(own_files, range(100), 1)
    assert {tuple(files) for files in found} == {tuple(alone)}


WORKERS_DESCRIPTORS = """
import os, sys
from helpers import eventually
from prefork import Pool

def descriptors():
    names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    # (A newer libffi, once ctypes is there, holds its own file open: one, in some processes.)
    return sum("libffi" not in os.path.realpath(name) for name in names)

def count(workers, options):
    "With so many workers: those of this process, and of one of them."
    with Pool(workers, context="fork", **options) as pool:
        theirs = pool.apply(descriptors)
        eventually(lambda: len(pool.statistics().workers) == workers, "they have been started")
        return descriptors(), theirs

ours, theirs = int(sys.argv[1]), count(1, {})[1]
for options, here, there in [
    ({}, ours, theirs),
    ({"forward_logs": True}, ours + 1, theirs + 1),
    ({"capture_output": print}, ours + 2, theirs),
]:
    def grows_so():  # a pool that has just started may still hold its new workers' ends
        small, large = count(1, options), count(5, options)
        return large[0] - small[0] == 4 * here and small[1] == large[1] == there
    eventually(grows_so, f"a worker costs {here} descriptors here, and has {there}: {options}")
"""


def test_the_descriptors_that_a_worker_costs(script):
    """For log records there is one more on either side; for what is printed, two here."""
    bare = 5 if sys.version_info >= (3, 13) else 6
    code, _, err = script(WORKERS_DESCRIPTORS, bare).finish()
    assert code == 0, err


def made_between_forks(workers: int) -> float:
    """How many descriptors a new pool makes between two forks."""
    made: list[int] = []

    def note() -> None:
        made.append(len(os.listdir("/proc/self/fd")))

    noting = [True]
    os.register_at_fork(before=lambda: note() if noting[0] else None)
    with Pool(workers, context="fork"):
        noting[0] = False
    return (made[-1] - made[0]) / (workers - 1)


def test_between_forks_only_the_next_one_is_made():
    """What the pool touches between two forks is copied after each of them."""
    assert made_between_forks(5) == 0
