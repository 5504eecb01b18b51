"""The part of `chaos.py storm` that runs in a process of its own, for one pool and start method.

    python storm.py KIND POOL METHOD FAULTS SEED PROCESSES DEADLINE SECONDS FILE

Jobs are handed in, some of which misbehave; meanwhile things are done to the pool from outside, in
the surroundings that belong to the kind of storm (`settings.py`). Then all answers are waited for
and booked; and again, until there were so many faults, or the time is up. FILE tells the state
after each round, as JSON. The kind "interrupts" is of its own: `interrupts.py`.
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

from interrupts import Interrupts
from ledger import Deeds, Fate, Ledger, Told
from leftovers import Possessions, running, settle, still_ours
from misdeeds import ORDINARY, Log, Task, answer, make_tasks
from rivals import RIVALS, Rival
from settings import SETTINGS, Setting, remove_files

ROUND = 60  # jobs
LONGEST_STOP = 0.1  # seconds
MOST_REPLACED = 3  # pools, of those that should never have to be


class Entry(NamedTuple):
    task: Task
    handle: Any


class NotTaken:
    """A job that the pool did not take: it has raised an error instead of returning a handle."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Storm:
    def __init__(
        self,
        setting: Setting,
        kind: type[Rival],
        method: str,
        rng: random.Random,
        processes: int,
        log: str,
    ) -> None:
        self.setting = setting
        self.kind = kind
        self._make = lambda: self.kind(processes, method, log)
        self.rng = rng
        self.few = processes
        self.log = Log(log)
        self.ledger = Ledger(self.kind.strict)
        self.deeds = Deeds()
        self.replaced = 0  # pools that were given up
        self._late = 0  # results that came before their callbacks had run
        self._given_up: list[Rival] = []
        self.callbacks: Counter[int] = Counter()
        setting.prepare()
        self.pool: Rival = self._make()
        setting.begin(self.pool)
        self._stopped: list[tuple[float, int]] = []  # until when, pid
        self._numbers = itertools.count(1)

    @property
    def faults(self) -> int:
        return self.ledger.faults.total() + self.deeds.counts.total()

    @property
    def is_lost(self) -> bool:
        """Whether more would only take time: its pools hang, one after another."""
        return self.kind.strict and self.replaced >= MOST_REPLACED

    # ---- one round

    def round(self, deadline: float, progress: float) -> None:
        """`progress`: which part of the storm is over."""
        entries: list[Entry] = []
        handles: dict[int, Any] = {}
        self.setting.begin_round(progress)
        conducts = self.setting.conducts - (ORDINARY - set(self.kind.conducts))
        for task in make_tasks(self.rng, self._numbers, ROUND, conducts):
            handles[task.number] = handle = self._submit(task, handles)
            entries.append(Entry(task, handle))
            if self.rng.random() < 0.2:
                time.sleep(self.rng.expovariate(1.0) * 0.005)
                self._do_something(entries)
            self._undo()
        while self._undo():
            time.sleep(0.01)
        told = self._hear(entries, deadline)
        self.ledger.book(told, self.log, self.deeds)
        silent = any(each.fate is Fate.SILENCE for each in told)
        if silent and self.kind.strict:
            faulthandler.dump_traceback(all_threads=True)
        if silent or self.pool.is_broken:
            self._replace()
        self.setting.end_round()

    def _submit(self, task: Task, handles: dict[int, Any]) -> Any:
        called = self.setting.callback(task, handles, self.callbacks)
        try:
            return self.pool.submit(task, called)
        except Exception as exc:
            if self.kind.strict and not self.pool.is_broken:
                return NotTaken(exc)
            self._replace()
            return self.pool.submit(task, called)

    def _hear(self, entries: list[Entry], deadline: float) -> list[Told]:
        ends = time.monotonic() + deadline
        told = [self._ask(entry, ends) for entry in entries]
        for entry, each in zip(entries, told, strict=True):
            if each.fate is Fate.SILENCE or isinstance(entry.handle, NotTaken):
                continue
            # Where the setting does not ask for more, callbacks may come a moment later.
            while not self.callbacks[each.task.number] and time.monotonic() < ends:
                time.sleep(0.001)
            each.callbacks = self.callbacks[each.task.number]
        return told

    def _ask(self, entry: Entry, ends: float) -> Told:
        task = entry.task
        if isinstance(entry.handle, NotTaken):
            return Told(task, Fate.WRONG, f"it was not taken: {entry.handle.error!r}")
        try:
            value = self.pool.result(entry.handle, max(0.05, ends - time.monotonic()))
        except self.pool.silence as exc:
            return Told(task, Fate.SILENCE, repr(exc))
        except BaseException as exc:
            return Told(task, self.pool.fate(exc), repr(exc)[:300], _pid_in(exc))
        finally:
            late = self.setting.has_prompt_callbacks and not self.callbacks[task.number]
            self._late += late
        self.setting.keep(value)
        return Told(task, Fate.VALUE if value == answer(task) else Fate.WRONG, "its value")

    def _replace(self) -> None:
        """Give the pool up, and make another one, as its user would have to."""
        self.replaced += 1
        self._given_up.append(self.pool)  # some hang when they are collected
        self.setting.suspend()  # it may hold all descriptors that there are
        for process in running():
            if process.parent == os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        self._stopped.clear()
        self.pool = self._make()
        self.setting.begin(self.pool)

    # ---- what is done from outside

    def _do_something(self, entries: list[Entry]) -> None:
        own = self.setting.deeds if self.kind.strict else ()
        deed = self.rng.choice([*self.kind.deeds, *own])
        done = False
        if deed in own:
            with contextlib.suppress(ProcessLookupError):
                done = self.setting.do(deed, self)
        elif not self.setting.may_do(deed):
            pass
        elif deed in ("kill", "stop", "end on"):
            done = self._do_to_worker(deed)
        elif deed == "kill template":
            with contextlib.suppress(ProcessLookupError):
                done = self._kill_template()
        elif deed == "end":
            entry = self.rng.choice(entries)
            if done := self.pool.end(entry.handle, self.rng):
                self.deeds.ended.add(entry.task.number)
        else:
            with contextlib.suppress(ValueError):  # billiard: all workers are busy
                done = self.pool.manage(deed, self.few)
        self.deeds.counts[deed] += done

    def _do_to_worker(self, deed: str) -> bool:
        pid = self.victim()
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
            elif self.pool.end_on(pid):
                self.deeds.ended_on.add(pid)
            else:
                return False
        except ProcessLookupError:
            return False
        return True

    def victim(self) -> int | None:
        """A worker."""
        workers = sorted(still_ours(self.pool.workers()))
        if not self.kind.strict:  # who has run a task
            self.log.read()
            processes = running()
            families = {os.getpid()} | {p.pid for p in processes if p.parent == os.getpid()}
            alive = [p.pid for p in processes if p.parent in families and p.state not in "ZX"]
            workers = [pid for pid in alive if pid in self.log.pids]
        return self.rng.choice(workers) if workers else None

    def _kill_template(self) -> bool:
        """The process that forks later workers, if there is one. Workers that are stopped may die
        with it: their process groups are orphaned then, so the kernel sends them SIGHUP. So it is
        stopped first: then it forks no more, and all that may die are seen alive."""
        workers = set(self.pool.workers())
        for process in running():
            is_ours = process.parent == os.getpid() and process.group == process.pid
            if is_ours and process.pid not in workers and process.state not in "ZX":
                os.kill(process.pid, signal.SIGSTOP)
                children = {p.pid for p in running() if p.parent == process.pid}
                os.kill(process.pid, signal.SIGKILL)
                self.deeds.killed |= {process.pid} | children
                return True
        return False

    def _undo(self) -> bool:
        """Undo what was done for a while, and is over; whether there is more that will be."""
        now = time.monotonic()
        for until, pid in [each for each in self._stopped if each[0] <= now]:
            self._stopped.remove((until, pid))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return self.setting.tick(self) or bool(self._stopped)

    # ---- the end

    def close(self, timeout: float) -> bool:
        """Whether the pool ends in order; on a thread, as some know no timeout for that."""
        ended: list[bool] = []
        self.setting.before_close(self)
        closer = threading.Thread(
            target=lambda: ended.append(self.pool.close(timeout)), daemon=True
        )
        closer.start()
        closer.join(timeout)
        self.setting.end()
        doubled = sum(count > 1 for count in self.callbacks.values())
        self.ledger.doubled = max(self.ledger.doubled, doubled)
        return ended == [True]

    def summary(self) -> dict[str, Any]:
        ledger = self.ledger
        breaches = ledger.breaches + self.setting.breaches
        if self._late:
            breaches = [f"{self._late} results came before their callbacks had run", *breaches]
        return {
            "faults": self.faults,
            "kinds": dict(ledger.faults + self.deeds.counts),
            "jobs": ledger.jobs,
            "fates": dict(ledger.fates),
            "innocent": ledger.innocent,
            "silent": ledger.silent,
            "doubled": ledger.doubled,
            "wrong": ledger.wrong + self._late + len(self.setting.breaches),
            "replaced": self.replaced,
            "breaches": breaches[:20],
        }


def _pid_in(error: BaseException) -> int | None:
    """Which worker an error names."""
    if hasattr(error, "pid"):
        return int(error.pid)
    found = re.search(r"(?:worker |Sub)process (\d+)", str(error))
    return int(found[1]) if found else None


def main(argv: list[str]) -> None:
    kind, name, method, *numbers, path = argv
    faults, seed, processes = map(int, numbers[:3])
    deadline, seconds = map(float, numbers[3:])
    multiprocessing.set_forkserver_preload(["storm", "prefork.pool", "prefork._worker.main"])
    began = time.monotonic()
    before = have_a_pool(RIVALS[name], method) if RIVALS[name].strict else Possessions.now()
    rng = random.Random(f"{seed} {kind} {method}")
    with tempfile.NamedTemporaryFile(prefix="prefork-storm-") as log:
        storm: Storm | Interrupts
        if kind == "interrupts":
            storm = Interrupts(method, rng, processes, log.name, deadline)
        else:
            setting = SETTINGS[kind](log.name)
            storm = Storm(setting, RIVALS[name], method, rng, processes, log.name)
        logging.getLogger("prefork").addHandler(logging.NullHandler())
        logging.getLogger("prefork").propagate = False
        logging.getLogger("concurrent.futures").disabled = True
        try:
            while (
                storm.faults < faults and time.monotonic() < began + seconds and not storm.is_lost
            ):
                storm.round(deadline, storm.faults / faults)
                write(path, storm.summary() | {"seconds": time.monotonic() - began})
            ended = storm.close(deadline)
        finally:
            remove_files(log.name)
            storm.log.close()
    left = None
    if RIVALS[name].strict:
        after = settle(before)
        left = {
            what: f"{had} -> {has}"
            for what, had, has in zip(Possessions._fields, before, after, strict=True)
            if has > had and what != "shm"  # which is the whole machine's
        }
    end = {"ended": ended, "possessions": left, "seconds": time.monotonic() - began}
    write(path, storm.summary() | end)
    if not ended:
        os._exit(1)


def have_a_pool(kind: type[Rival], method: str) -> Possessions:
    """What there is after a first pool, which may start a fork server and the like, which stays."""
    with tempfile.NamedTemporaryFile(prefix="prefork-storm-") as log:
        kind(1, method, log.name).close(60.0)
    return settle(None)


def write(path: str, summary: dict[str, Any]) -> None:
    new = Path(f"{path}.new")
    new.write_text(json.dumps(summary))
    new.rename(path)


if __name__ == "__main__":
    main(sys.argv[1:])
