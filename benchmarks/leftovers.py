"""What a pool leaves behind: the parts of `chaos.py owners` and `chaos.py leaks`."""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from accounts import BrokenPromise

from prefork import Pool

GONE_WITHIN = 1.0  # seconds
HANG = 60.0
"""Seconds without an answer that count as a hang. No task here runs longer than milliseconds."""
TOKEN = "PREFORK_CHAOS"
"""A variable in the environment of all that belongs to one run, by which survivors are found."""

# --- what runs -----------------------------------------------------------------------------------


class Running(NamedTuple):
    pid: int
    state: str  # as in ps: R, S, Z (a zombie), ...
    parent: int
    group: int
    session: int


def running() -> list[Running]:
    """All processes, zombies included."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has gone
            with open(f"/proc/{name}/stat") as stat:
                state, *numbers = stat.read().rpartition(") ")[2].split()
            found.append(Running(int(name), state, *map(int, numbers[:3])))
    return found


def still_ours(pids: Iterable[int]) -> set[int]:
    """Of these workers, those that are still there. One that is not a child of this process may be
    reaped before its pool knows of its end, and its number be another process's; but hardly one
    that leads a group in this session."""
    own = os.getsid(0)
    leaders = {p.pid for p in running() if p.group == p.pid and p.session == own}
    return leaders & set(pids)


# --- owners --------------------------------------------------------------------------------------


def have_children() -> None:
    """A task that starts processes in several ways, and waits."""
    subprocess.Popen(["sleep", "1000"])
    os.system("sleep 1000 &")
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,)).start()
    inner = Pool(2)
    inner.apply_async(time.sleep, (1000,))
    inner.apply(abs, (1,))
    print("ready", flush=True)
    for _ in range(50):  # the end comes in the midst of this
        if os.fork() == 0:
            time.sleep(1000)
    time.sleep(1000)


def own_a_pool(method: str, processes: int) -> None:
    """What the process does that is going to be killed."""
    pool = Pool(processes + 1, context=multiprocessing.get_context(method))
    for _ in range(processes):
        pool.apply_async(have_children)
    while True:
        pool.map(abs, range(100))


def kill_owner(method: str, processes: int, delay: float | None) -> float:
    """Kill a process that owns a pool, so many seconds after its start, or, with None, when all
    its tasks run. Returns how many seconds the last survivor lived on."""
    token = f"{os.getpid()}-{time.monotonic_ns()}"
    owner = subprocess.Popen(
        [sys.executable, "-c", f"import leftovers as l; l.own_a_pool({method!r}, {processes})"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, TOKEN: token, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert owner.stdout is not None
    if delay is None:
        for _ in range(processes):
            owner.stdout.readline()
    else:
        time.sleep(delay)
    owner.kill()
    killed = time.monotonic()
    owner.wait()
    owner.stdout.close()
    while left := survivors(token):
        if time.monotonic() > killed + GONE_WITHIN:
            raise BrokenPromise(f"{method}: left after {GONE_WITHIN:g} s: {left}")
    return time.monotonic() - killed


def survivors(token: str) -> dict[int, str]:
    """The command lines of the processes that have this token in their environment."""
    found = {}
    mark = f"{TOKEN}={token}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has gone, or is somebody else's
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    return found


# --- leaks ---------------------------------------------------------------------------------------


class Possessions(NamedTuple):
    """What this process has."""

    threads: int
    descriptors: int
    processes: int  # children, zombies included
    shm: int  # names in /dev/shm

    @classmethod
    def now(cls) -> Possessions:
        shm = len(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else 0
        threads, descriptors = os.listdir("/proc/self/task"), os.listdir("/proc/self/fd")
        children = [process for process in running() if process.parent == os.getpid()]
        return cls(len(threads), len(descriptors), len(children), shm)


def leak(method: str, pools: int, processes: int) -> tuple[Possessions, Possessions]:
    """Make pools, use them, end them in turn in different ways: what we had before and after."""
    use_pools(method, 3, processes)  # these may start a fork server and the like, which stays
    before = settle(None)
    use_pools(method, pools, processes)
    return before, settle(before)


def use_pools(method: str, pools: int, processes: int) -> None:
    context = multiprocessing.get_context(method)
    ways = itertools.cycle(["close", "terminate", "drop"])
    for number, how in zip(range(pools), ways, strict=False):
        pool = Pool(processes, context=context)
        results = [pool.apply_async(abs, (-n,)) for n in range(10)]
        results.append(pool.apply_async(bytes, (300_000,)))
        if number % 2:
            for result in results:
                result.get(HANG)
        end_pool(pool, how)


def end_pool(pool: Pool, how: str) -> None:
    if how == "close":
        pool.close()
    elif how == "terminate":
        pool.terminate()
    else:
        return  # it is dropped, with its results
    if not pool.join(HANG):
        raise BrokenPromise(f"after {how}(), the pool does not end")


def settle(wanted: Possessions | None) -> Possessions:
    """What we have when the dropped pools have ended: until it is as wanted, or stays as it is."""
    gc.collect()
    deadline = time.monotonic() + HANG / 6
    last, same = Possessions.now(), 0
    while last != wanted and same < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
        now = Possessions.now()
        same = same + 1 if wanted is None and now == last else 0
        last = now
    return last
