"""Kill things at random moments, and check the promises.

    python benchmarks/chaos.py kills     1,000 SIGKILLs to workers under load, for each start method
    python benchmarks/chaos.py storm     10,000 faults of all kinds, with each start method
    python benchmarks/chaos.py recycling 10,000 jobs with 8 MiB each, and as many workers
    python benchmarks/chaos.py owners    SIGKILL to the process that owns a pool
    python benchmarks/chaos.py leaks     1,000 pools, made and closed, terminated or dropped

*kills*: no hang, no lost and no doubled job; of each victim exactly the job that it ran fails.
What a victim was doing when it was hit is told by the log that the tasks write, see `accounts.py`:

    idle       no job failed because of it
    receiving  the job that failed had not started
    running    the job that failed had started and not ended
    sending    the job that failed had ended: its result was on the way

*storm*: tasks that raise, exit, crash, kill or stop themselves, pass their limits, ignore signals
or keep memory (`misdeeds.py`); SIGKILL and SIGSTOP from outside, jobs that are cancelled or
terminated, grow, shrink and restart meanwhile; workers replaced after 50 tasks and above a size.
Each job gets the one outcome that its history allows (`ledger.py`):

    innocent   lost, though nothing had happened to its worker
    silent     no answer within the deadline
    doubled    started or reported twice
    wrong      another value or error than it deserves
    replaced   pools that had to be given up, since they were broken or hung

With `--peer`, the same is done to other pools, without what they have no call for: `--peer all`.

*recycling*: all jobs complete, though each worker takes only one.
*owners*: all workers, and whatever their tasks have started, are gone within a second.
*leaks*: no thread, descriptor, process (zombies included) or name in /dev/shm is left.

Exits with 1 and says why when a promise is broken. A hang prints the stacks of all threads.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import itertools
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from accounts import Accounts, Batch, BrokenPromise, Log, make_tasks, open_log, run
from leftovers import Possessions, kill_owner, leak, worker_pids
from rivals import RIVALS
from trials import Trial, recycle, storm

from prefork import Pool, TimeoutError, WorkerLostError

HANG = 60.0
"""Seconds without an answer that count as a hang. No task here runs longer than milliseconds."""
NEVER = 3600.0
"""For `lost_worker_timeout`: no task here leaves a process that could still answer, so that a
wait for one would be a bug, and shall be seen as a hang."""

# --- kills -------------------------------------------------------------------------------------


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

    def __init__(self, rng: random.Random, kills: int, pause: float) -> None:
        super().__init__(name="killer", daemon=True)
        self.killed: list[int] = []
        self._rng = rng
        self._kills = kills
        self._pause = pause

    def run(self) -> None:
        while len(self.killed) < self._kills:
            pause = self._rng.choice([0.0, 1.0, 2.0]) * self._pause
            time.sleep(self._rng.expovariate(1.0) * pause)
            victims = list(worker_pids() - set(self.killed[-100:]))
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


def bombard(args: argparse.Namespace, method: str, log: str) -> Bombardment:
    """Load a pool until so many of its workers have been killed. Nothing is judged here, except
    that every call returns."""
    rng = random.Random(f"{args.seed} {method}")
    pause = start_seconds(method)
    killer = Killer(random.Random(rng.random()), args.number, pause)
    numbers = itertools.count()
    batches: list[Batch] = []
    slowest, started = 0.0, time.monotonic()
    pool = Pool(
        args.processes,
        open_log,
        (log,),
        lost_worker_timeout=NEVER,
        maxtasksperchild=200 if args.turmoil else None,
        context=multiprocessing.get_context(method),
    )
    manager = Manager(random.Random(rng.random()), pool, pause * args.processes)
    if args.turmoil:
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
    if args.turmoil:
        manager.stop()
    pool.close()
    if not pool.join(HANG):
        raise TimeoutError("the closed pool does not end")
    faulthandler.cancel_dump_traceback_later()
    return Bombardment(batches, killer.killed, slowest, time.monotonic() - started)


PHASES = ["idle", "receiving", "running", "sending"]


def kills(args: argparse.Namespace) -> list[str]:
    breaches: list[str] = []
    say_row("start method", "kills", "jobs", "failed", *PHASES, "slowest batch", "all")
    for method in args.methods:
        with tempfile.NamedTemporaryFile(prefix="prefork-chaos-") as log:
            done = bombard(args, method, log.name)
            accounts = Accounts(done.batches, done.killed, Log(log.name))
        breaches += [f"{method}: {breach}" for breach in accounts.breaches]
        say_row(
            method,
            len(done.killed),
            accounts.jobs,
            accounts.failed,
            *(accounts.phases[phase] for phase in PHASES),
            f"{done.slowest:.2f} s",
            f"{done.seconds:.1f} s",
        )
    return breaches


# --- storm and recycling -------------------------------------------------------------------------

WRONGS = ["innocent", "silent", "doubled", "wrong", "replaced"]


def run_storms(args: argparse.Namespace) -> list[str]:
    breaches = []
    trial = Trial(args.number, args.seed, args.processes, args.deadline, args.seconds)
    say_row("pool", "start method", "faults", "jobs", *WRONGS, "left", "all")
    for name in args.peers:
        for method in args.methods if name != "loky" else ["loky"]:
            found = storm(name, method, trial)
            counts = [found.get(what, "?") for what in ("faults", "jobs", *WRONGS)]
            end = f"{found['seconds']:.0f} s" if found["ended"] else "hangs at its end"
            say_row(name, method, *counts, found["left"], end)
            if args.details:
                print({what: found.get(what) for what in ("kinds", "fates", "breaches")})
            if name == "prefork":
                breaches += [f"{method}: {breach}" for breach in judge(found)]
    return breaches


def judge(found: dict[str, Any]) -> list[str]:
    breaches: list[str] = found.get("breaches", [])
    if any(found.get(what, 1) for what in ("exitcode", "left", *WRONGS)) or not found["ended"]:
        breaches = breaches or ["it did not end in order"]
    return breaches + [f"possessions: {what}" for what in (found.get("possessions") or {}).items()]


def recycling(args: argparse.Namespace) -> list[str]:
    say_row("start method", "jobs", "all")
    for method in args.methods:
        faulthandler.dump_traceback_later(HANG + args.number, exit=True)
        seconds = recycle(method, args.number, 8 << 20, args.processes, HANG)
        faulthandler.cancel_dump_traceback_later()
        say_row(method, args.number, f"{seconds:.0f} s")
    return []


# --- owners and leaks ---------------------------------------------------------------------------


def owners(args: argparse.Namespace) -> list[str]:
    rng = random.Random(args.seed)
    say_row("start method", "killed", "last gone after")
    for method in args.methods:
        # Every second one at a random moment of its start; the others when all their tasks run.
        delays = [None if n % 2 else rng.uniform(0.05, 0.5) for n in range(args.number)]
        seconds = [kill_owner(method, args.processes, delay) for delay in delays]
        say_row(method, len(seconds), f"{max(seconds):.3f} s")
    return []


def leaks(args: argparse.Namespace) -> list[str]:
    breaches = []
    say_row("start method", "pools", *Possessions._fields, "all")
    for method in args.methods:
        started = time.monotonic()
        faulthandler.dump_traceback_later(HANG + args.number, exit=True)
        before, after = leak(method, args.number, args.processes)
        faulthandler.cancel_dump_traceback_later()
        changes = [f"{a} -> {b}" for a, b in zip(before, after, strict=True)]
        say_row(method, args.number, *changes, f"{time.monotonic() - started:.1f} s")
        for name, had, has in zip(Possessions._fields, before, after, strict=True):
            if has > had:
                breaches.append(f"{method}: {has - had} {name} left")
    return breaches


# --- the command -------------------------------------------------------------------------------


def say_row(*cells: object) -> None:
    print("".join(f"{cell!s:<12} " for cell in cells).rstrip(), flush=True)


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], list[str]], int, str]] = {
    "kills": (kills, 1000, "workers to kill"),
    "storm": (run_storms, 10_000, "faults"),
    "recycling": (recycling, 10_000, "jobs"),
    "owners": (owners, 20, "pools' processes to kill"),
    "leaks": (leaks, 1000, "pools to make"),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("-n", "--number", type=int, help="how many, for each start method")
    parser.add_argument("--seed", type=int, help="of the random choices (default: a new one)")
    parser.add_argument(
        "--methods",
        type=lambda text: text.split(","),
        default=["fork", "forkserver"],
        help="start methods, with commas (fork,forkserver; there is spawn, too)",
    )
    parser.add_argument(
        "--turmoil",
        action="store_true",
        help="kills: with restart, grow, shrink and maxtasksperchild at the same time",
    )
    parser.add_argument(
        "--peer",
        dest="peers",
        type=lambda text: list(RIVALS) if text == "all" else text.split(","),
        default=["prefork"],
        help=f"storm: which pools, with commas ({', '.join(RIVALS)}, or all)",
    )
    parser.add_argument(
        "--deadline", type=float, default=HANG, help="storm: what counts as a hang (60 seconds)"
    )
    parser.add_argument(
        "--seconds", type=float, default=7200, help="storm: over after so many, in any case"
    )
    parser.add_argument("--details", action="store_true", help="storm: counts by kind")
    parser.add_argument("--processes", type=int, default=4, help="of each pool (4)")
    args = parser.parse_args(argv)
    args.number = args.number or COMMANDS[args.command][1]
    args.seed = random.randrange(10**6) if args.seed is None else args.seed
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    command, _, what = COMMANDS[args.command]
    logging.getLogger("prefork").setLevel(logging.ERROR)  # each death is a warning
    print(f"{args.number} {what}, with each start method; seed {args.seed}", flush=True)
    try:
        breaches = command(args)
    except TimeoutError:
        faulthandler.dump_traceback(all_threads=True)
        raise
    except BrokenPromise as exc:
        breaches = [str(exc)]
    for breach in breaches:
        print(f"BROKEN: {breach}", flush=True)
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
