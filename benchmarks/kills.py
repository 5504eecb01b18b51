"""SIGKILL to workers under load: `chaos.py kills`.

The pool is loaded by every way to hand in jobs while its workers are killed, one after another and
in bursts; nothing is judged here, that is for `accounts.py`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import itertools
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from accounts import Batch, BrokenPromise, make_tasks, open_log, run
from leftovers import HANG, still_ours

from prefork import Pool, TimeoutError, WorkerLostError, WorkerState

NEVER = 3600.0
"""For `lost_worker_timeout`: no task here leaves a process that could still answer, so that a
wait for one would be a bug, and shall be seen as a hang."""


def load_by_apply(pool: Pool, batch: Batch) -> None:
    """One `apply_async` each; each has exactly one of two callbacks called."""
    results = []
    for task in batch.tasks:
        called = functools.partial(batch.called, task.number)
        results.append(pool.apply_async(run, (task,), callback=called, error_callback=called))
    for task, result in zip(batch.tasks, results, strict=True):
        try:
            batch.take(result.get(HANG))
        except WorkerLostError as exc:
            batch.fail(exc, task)


def load_by_map(pool: Pool, batch: Batch) -> None:
    try:
        values = pool.map_async(run, batch.tasks, batch.chunk).get(HANG)
    except WorkerLostError as exc:
        batch.fail(exc)
    else:
        for value in values:
            batch.take(value)


def load_by_imap(pool: Pool, batch: Batch) -> None:
    results = pool.imap(run, batch.tasks, batch.chunk)
    for task in batch.tasks:
        try:
            batch.take(results.next(HANG))
        except WorkerLostError as exc:
            batch.fail(exc, task)
    if next(results, None) is not None:
        raise BrokenPromise("imap: more results than tasks")


def load_by_imap_unordered(pool: Pool, batch: Batch) -> None:
    results = pool.imap_unordered(run, batch.tasks, batch.chunk)
    while True:
        try:
            batch.take(results.next(HANG))
        except StopIteration:
            return
        except WorkerLostError as exc:
            batch.fail(exc)


LOADS: list[Callable[[Pool, Batch], None]] = [
    load_by_apply,
    load_by_map,
    load_by_imap,
    load_by_imap_unordered,
]


class Killer(threading.Thread):
    """Sends SIGKILL to one worker after another, in bursts too: several victims within the time
    that it takes to replace one.

    Args:
        pause: the seconds between two kills, on average.
    """

    def __init__(self, rng: random.Random, pool: Pool, kills: int, pause: float) -> None:
        super().__init__(name="killer", daemon=True)
        self.killed: list[int] = []
        self._pool = pool
        self._rng = rng
        self._kills = kills
        self._pause = pause

    def run(self) -> None:
        while len(self.killed) < self._kills:
            pause = self._rng.choice([0.0, 1.0, 2.0]) * self._pause
            time.sleep(self._rng.expovariate(1.0) * pause)
            workers = self._pool.statistics().workers
            if all(worker.state is WorkerState.STARTING for worker in workers):
                continue  # on a busy machine there would never be one that works
            known = still_ours(worker.pid for worker in workers)
            victims = sorted(known - set(self.killed[-100:]))
            multiprocessing.active_children()  # polls all children, as user code may at any time
            if victims:
                victim = self._rng.choice(victims)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    self.killed.append(victim)


class Manager(threading.Thread):
    """Has the pool come and go with its workers meanwhile: `restart`, `grow` and `shrink`."""

    def __init__(self, rng: random.Random, pool: Pool, pause: float) -> None:
        super().__init__(name="manager", daemon=True)
        self._rng = rng
        self._pool = pool
        self._pause = pause
        self._stopped = threading.Event()

    def run(self) -> None:
        few = self._pool.processes
        while not self._stopped.wait(self._rng.expovariate(1.0) * self._pause):
            match self._rng.randrange(3):
                case 0:
                    self._pool.restart()
                case 1 if self._pool.processes < few + 2:
                    self._pool.grow()
                case 2 if self._pool.processes > few:
                    self._pool.shrink()

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def start_seconds(method: str) -> float:
    """How long it takes to replace a worker."""
    with Pool(1, context=multiprocessing.get_context(method)) as pool:
        pool.apply_async(abs, (1,)).get(HANG)
        pool.restart()
        started = time.monotonic()
        pool.apply_async(abs, (1,)).get(HANG)
        return time.monotonic() - started


class Bombardment(NamedTuple):
    batches: list[Batch]
    killed: list[int]
    slowest: float  # batch, seconds
    seconds: float


def bombard(
    method: str, kills: int, seed: int, processes: int, turmoil: bool, log: str
) -> Bombardment:
    """Load a pool until so many of its workers have been killed. Nothing is judged here, except
    that every call returns.

    Args:
        turmoil: with `restart`, `grow`, `shrink` and `maxtasksperchild` at the same time.
        log: the file that tasks write to.
    """
    rng = random.Random(f"{seed} {method}")
    pause = start_seconds(method)
    killer_rng = random.Random(rng.random())
    numbers = itertools.count()
    batches: list[Batch] = []
    slowest, started = 0.0, time.monotonic()
    pool = Pool(
        processes,
        open_log,
        (log,),
        lost_worker_timeout=NEVER,
        maxtasksperchild=200 if turmoil else None,
        max_restarts=kills,  # those that are starting are hit, too, on a busy machine most of them
        context=multiprocessing.get_context(method),
    )
    killer = Killer(killer_rng, pool, kills, pause)
    manager = Manager(random.Random(rng.random()), pool, pause * processes)
    if turmoil:
        manager.start()
    killer.start()
    while killer.is_alive():
        faulthandler.dump_traceback_later(3 * HANG, exit=True)  # for the calls without a timeout
        load = rng.choice(LOADS)
        chunk = 1 if load is load_by_apply else rng.choice([1, 1, 3, 10])
        tasks = make_tasks(rng, numbers, rng.choice([1, 10, 100, 300]))
        batch = Batch(load.__name__.removeprefix("load_by_"), tasks, chunk)
        batches.append(batch)
        began = time.monotonic()
        load(pool, batch)
        slowest = max(slowest, time.monotonic() - began)
        if rng.random() < 0.3:
            time.sleep(rng.random() * 0.02)  # a time for victims that are idle
    if turmoil:
        manager.stop()
    pool.close()
    if not pool.join(HANG):
        raise TimeoutError("the closed pool does not end")
    faulthandler.cancel_dump_traceback_later()
    return Bombardment(batches, killer.killed, slowest, time.monotonic() - started)
