"""The part of `chaos.py storm` that runs in a process of its own, for one pool and start method.

    python storm.py POOL METHOD FAULTS SEED PROCESSES DEADLINE SECONDS FILE

Jobs are handed in, some of which misbehave; meanwhile things are done to the pool from outside.
Then all answers are waited for and booked; and again, until there were so many faults, or the time
is up. FILE tells the state after each round, as JSON.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from ledger import Deeds, Fate, Ledger, Told
from leftovers import Possessions, running, settle
from misdeeds import Log, Task, answer, make_tasks
from rivals import RIVALS, Rival

ROUND = 60  # jobs
LONGEST_STOP = 0.1  # seconds


class Entry(NamedTuple):
    task: Task
    handle: Any


class Storm:
    def __init__(self, name: str, method: str, rng: random.Random, processes: int, log: str):
        self.kind = RIVALS[name]
        self._make = lambda: self.kind(processes, method, log)
        self.rng = rng
        self.few = processes
        self.log = Log(log)
        self.ledger = Ledger(self.kind.strict)
        self.deeds = Deeds()
        self.replaced = 0  # pools that were given up
        self._given_up: list[Rival] = []
        self.callbacks: Counter[int] = Counter()
        self.pool: Rival = self._make()
        self._stopped: list[tuple[float, int]] = []  # until when, pid
        self._numbers = itertools.count(1)

    @property
    def faults(self) -> int:
        return self.ledger.faults.total() + self.deeds.counts.total()

    # ---- one round

    def round(self, deadline: float) -> None:
        entries: list[Entry] = []
        for task in make_tasks(self.rng, self._numbers, ROUND, self.kind.conducts):
            entries.append(Entry(task, self._submit(task)))
            if self.rng.random() < 0.2:
                time.sleep(self.rng.expovariate(1.0) * 0.005)
                self._do_something(entries)
            self._continue(time.monotonic())
        while self._stopped:
            time.sleep(0.01)
            self._continue(time.monotonic())
        told = self._hear(entries, deadline)
        self.ledger.book(told, self.log, self.deeds)
        silent = any(each.fate is Fate.SILENCE for each in told)
        if silent and self.kind.strict:
            faulthandler.dump_traceback(all_threads=True)
        if silent or self.pool.is_broken:
            self._replace()

    def _submit(self, task: Task) -> Any:
        called = lambda _: self.callbacks.update([task.number])  # noqa: E731
        try:
            return self.pool.submit(task, called)
        except Exception:
            if self.kind.strict:
                raise
            self._replace()
            return self.pool.submit(task, called)

    def _hear(self, entries: list[Entry], deadline: float) -> list[Told]:
        ends = time.monotonic() + deadline
        told = [self._ask(entry, ends) for entry in entries]
        for each in told:  # callbacks may come a moment later
            while (
                not self.callbacks[each.task.number]
                and each.fate is not Fate.SILENCE
                and time.monotonic() < ends
            ):
                time.sleep(0.001)
            each.callbacks = self.callbacks[each.task.number]
            if each.fate is Fate.SILENCE:
                each.callbacks = None
        return told

    def _ask(self, entry: Entry, ends: float) -> Told:
        task = entry.task
        try:
            value = self.pool.result(entry.handle, max(0.05, ends - time.monotonic()))
        except self.pool.silence as exc:
            return Told(task, Fate.SILENCE, repr(exc))
        except BaseException as exc:
            return Told(task, self.pool.fate(exc), repr(exc)[:300], _pid_in(exc))
        return Told(task, Fate.VALUE if value == answer(task) else Fate.WRONG, "its value")

    def _replace(self) -> None:
        """Give the pool up, and make another one, as its user would have to."""
        self.replaced += 1
        self._given_up.append(self.pool)  # some hang when they are collected
        for process in running():
            if process.parent == os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        self._stopped.clear()
        self.pool = self._make()

    # ---- what is done from outside

    def _do_something(self, entries: list[Entry]) -> None:
        deed = self.rng.choice(self.kind.deeds)
        done = False
        if deed in ("kill", "stop", "end on"):
            done = self._do_to_worker(deed)
        elif deed == "end":
            entry = self.rng.choice(entries)
            if done := self.pool.end(entry.handle, self.rng):
                self.deeds.ended.add(entry.task.number)
        else:
            with contextlib.suppress(ValueError):  # billiard: all workers are busy
                done = self.pool.manage(deed, self.few)
        self.deeds.counts[deed] += done

    def _do_to_worker(self, deed: str) -> bool:
        pid = self._victim()
        if pid is None:
            return False
        try:
            if deed == "kill":
                os.kill(pid, signal.SIGKILL)
                self.deeds.killed.add(pid)
            elif deed == "stop":
                os.kill(pid, signal.SIGSTOP)
                until = time.monotonic() + self.rng.random() * LONGEST_STOP
                self._stopped.append((until, pid))
            elif self.pool.end_on(pid):  # type: ignore[attr-defined]
                self.deeds.ended_on.add(pid)
            else:
                return False
        except ProcessLookupError:
            return False
        return True

    def _victim(self) -> int | None:
        """A worker: it has run a task or, if that tells this pool's workers, leads a group."""
        self.log.read()
        processes = running()
        families = {os.getpid()} | {p.pid for p in processes if p.parent == os.getpid()}
        workers = [
            p.pid
            for p in processes
            if p.parent in families and p.state not in "ZX"
            if p.pid in self.log.pids or (self.kind.strict and p.group == p.pid)
        ]
        return self.rng.choice(workers) if workers else None

    def _continue(self, now: float) -> None:
        for until, pid in [each for each in self._stopped if each[0] <= now]:
            self._stopped.remove((until, pid))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    # ---- the end

    def close(self, timeout: float) -> bool:
        """Whether the pool ends in order; on a thread, as some know no timeout for that."""
        ended: list[bool] = []
        closer = threading.Thread(
            target=lambda: ended.append(self.pool.close(timeout)), daemon=True
        )
        closer.start()
        closer.join(timeout)
        doubled = sum(count > 1 for count in self.callbacks.values())
        self.ledger.doubled = max(self.ledger.doubled, doubled)
        return ended == [True]

    def summary(self) -> dict[str, Any]:
        ledger = self.ledger
        return {
            "faults": self.faults,
            "kinds": dict(ledger.faults + self.deeds.counts),
            "jobs": ledger.jobs,
            "fates": dict(ledger.fates),
            "innocent": ledger.innocent,
            "silent": ledger.silent,
            "doubled": ledger.doubled,
            "wrong": ledger.wrong,
            "replaced": self.replaced,
            "breaches": ledger.breaches[:20],
        }


def _pid_in(error: BaseException) -> int | None:
    """Which worker an error names."""
    if hasattr(error, "pid"):
        return int(error.pid)
    found = re.search(r"worker process (\d+)", str(error))
    return int(found[1]) if found else None


def main(argv: list[str]) -> None:
    name, method, *numbers, path = argv
    faults, seed, processes = map(int, numbers[:3])
    deadline, seconds = map(float, numbers[3:])
    logging.disable()
    multiprocessing.set_forkserver_preload(["storm", "prefork.pool", "prefork._worker.main"])
    began = time.monotonic()
    before = Possessions.now()
    with tempfile.NamedTemporaryFile(prefix="prefork-storm-") as log:
        storm = Storm(name, method, random.Random(f"{seed} {method}"), processes, log.name)
        while storm.faults < faults and time.monotonic() < began + seconds:
            storm.round(deadline)
            write(path, storm.summary() | {"seconds": time.monotonic() - began})
        ended = storm.close(deadline)
    left = None
    if storm.kind.strict:
        after = settle(before)
        # A fork server and its resource tracker stay, with their descriptors.
        spare = 0 if method == "fork" else 2
        left = {
            what: f"{had} -> {has}"
            for what, had, has in zip(Possessions._fields, before, after, strict=True)
            if has > had + spare * (2 if what == "descriptors" else 1)
        }
    end = {"ended": ended, "possessions": left, "seconds": time.monotonic() - began}
    write(path, storm.summary() | end)
    if not ended:
        os._exit(1)


def write(path: str, summary: dict[str, Any]) -> None:
    new = Path(f"{path}.new")
    new.write_text(json.dumps(summary))
    new.rename(path)


if __name__ == "__main__":
    main(sys.argv[1:])
