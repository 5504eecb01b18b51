"""What becomes of each task of `chaos.py kills`, by a log that the tasks write themselves.

The accounts do not rely on the pool: each task appends a line of its own to a log file when it
starts and when it ends, so that a second start would be seen.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from prefork import WorkerLostError


class BrokenPromise(Exception):
    pass


# --- the tasks -----------------------------------------------------------------------------------


class Task(NamedTuple):
    number: int  # unique in the run
    seconds: float  # to run
    argument: bytes  # to carry there
    size: int  # bytes to bring back


Answer = tuple[int, int, bytes]

_log = -1  # in a worker: the descriptor of the log


def open_log(path: str) -> None:
    """The initializer of the workers."""
    global _log  # noqa: PLW0603 (a task's only way to what the initializer made)
    _log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


def run(task: Task) -> Answer:
    os.write(_log, b"start %d %d\n" % (task.number, os.getpid()))
    if task.seconds:
        time.sleep(task.seconds)
    value = answer(task)
    os.write(_log, b"end %d %d\n" % (task.number, os.getpid()))
    return value


def answer(task: Task) -> Answer:
    return task.number, zlib.crc32(task.argument), bytes([task.number & 0xFF]) * task.size


def make_tasks(rng: random.Random, numbers: Iterator[int], count: int) -> list[Task]:
    """Mostly tiny ones, some that take milliseconds, some with large arguments or results."""
    tasks = []
    for number in itertools.islice(numbers, count):
        style = rng.random()
        argument = rng.randbytes(rng.randrange(200_000)) if style < 0.04 else b""
        size = rng.randrange(300_000) if 0.04 <= style < 0.10 else 0
        seconds = rng.uniform(0.0, 0.004) if style > 0.7 else 0.0
        tasks.append(Task(number, seconds, argument, size))
    return tasks


@dataclass
class Batch:
    """Tasks that were handed in together, and what the caller was told of them."""

    kind: str  # by which call
    tasks: list[Task]
    chunk: int = 1  # how many tasks are one job of the pool
    good: set[int] = field(default_factory=set)  # tasks whose right value has come
    errors: list[BaseException] = field(default_factory=list)
    blamed: dict[int, int] = field(default_factory=dict)  # failed task: pid of its worker
    calls: Counter[int] = field(default_factory=Counter)  # callbacks, by task

    def take(self, value: Answer) -> None:
        task = self.tasks[value[0] - self.tasks[0].number]
        if value != answer(task) or task.number in self.good:
            raise BrokenPromise(f"{self.kind}: a wrong or doubled result for task {task.number}")
        self.good.add(task.number)

    def fail(self, error: WorkerLostError, task: Task | None = None) -> None:
        self.errors.append(error)
        if task is not None:
            self.blamed[task.number] = error.pid

    def called(self, number: int, _: object) -> None:
        self.calls[number] += 1

    @property
    def numbers(self) -> list[int]:
        return [task.number for task in self.tasks]

    @property
    def jobs(self) -> Iterator[list[int]]:
        return (self.numbers[i : i + self.chunk] for i in range(0, len(self.tasks), self.chunk))


# --- the accounts --------------------------------------------------------------------------------


class Log:
    """Who started and ended which task."""

    def __init__(self, path: str) -> None:
        self.started: defaultdict[int, list[int]] = defaultdict(list)  # task: pids
        self.ended: defaultdict[int, list[int]] = defaultdict(list)
        self.last: dict[int, int] = {}  # pid: the task that it started last
        for line in Path(path).read_text().splitlines():
            what, number, pid = line.split()
            (self.started if what == "start" else self.ended)[int(number)].append(int(pid))
            if what == "start":
                self.last[int(pid)] = int(number)

    def is_complete(self, number: int) -> bool:
        """Whether the task was started once, and has ended."""
        return self.started[number] == self.ended[number] and len(self.started[number]) == 1


class Accounts:
    """Compares what the caller was told with what the log says."""

    def __init__(self, batches: Iterable[Batch], killed: Iterable[int], log: Log) -> None:
        self.log = log
        self.killed = set(killed)
        self.breaches: list[str] = []
        self.jobs = 0
        self.costs: dict[int, list[int]] = {}  # pid of a victim: the job that its death cost
        self.unassigned = 0  # jobs that failed before they started, nobody says in which worker
        for batch in batches:
            self._check_outcomes(batch)
            self._check_jobs(batch)
        for number, pids in log.started.items():
            if len(pids) > 1:
                self.breaches.append(f"task {number} was started {len(pids)} times, by {pids}")
        if self.failed > len(self.killed):
            self.breaches.append(f"{self.failed} jobs failed after {len(self.killed)} kills")
        self.phases = Counter(map(self._phase, self.costs.values()))
        self.phases["receiving"] += self.unassigned
        self.phases["idle"] = len(self.killed) - self.failed

    @property
    def failed(self) -> int:
        """How many jobs have failed."""
        return len(self.costs) + self.unassigned

    def _check_outcomes(self, batch: Batch) -> None:
        breach = self.breaches.append
        for error in batch.errors:
            if not isinstance(error, WorkerLostError) or error.pid not in self.killed:
                breach(f"{batch.kind}: {error!r}")
            elif error.exitcode != -signal.SIGKILL:
                breach(f"{batch.kind}: exit code {error.exitcode}: {error}")
        for number in batch.good:
            if not self.log.is_complete(number):
                breach(f"{batch.kind}: task {number} has a result, but did not run once")
        expected = 1 if self._is_silent(batch) else len(batch.tasks) - len(batch.good)
        if len(batch.errors) != expected:
            breach(f"{batch.kind}: {len(batch.errors)} errors instead of {expected}")
        if batch.kind == "apply" and any(batch.calls[number] != 1 for number in batch.numbers):
            breach(f"apply: not every task had one callback: {batch.calls}")

    def _is_silent(self, batch: Batch) -> bool:
        """A map that has failed tells one error, and nothing of its other jobs."""
        return batch.kind == "map" and bool(batch.errors)

    def _check_jobs(self, batch: Batch) -> None:
        good = batch.good
        if self._is_silent(batch):
            good = set(filter(self.log.is_complete, batch.numbers))
        for job in batch.jobs:
            self.jobs += 1
            lost = [number for number in job if number not in good]
            if lost and batch.kind.startswith("imap"):
                self._charge_items(batch, lost)
            elif lost:
                self._charge(batch, job)

    def _charge_items(self, batch: Batch, lost: list[int]) -> None:
        """A death costs the item that ran; or all that had not been started, if they were just
        being received."""
        unstarted = [number for number in lost if not self.log.started[number]]
        for number in lost:
            if number not in unstarted:
                self._charge(batch, [number])
        if unstarted:
            self._charge(batch, unstarted)

    def _charge(self, batch: Batch, job: list[int]) -> None:
        """Find out whose death cost this job, or this part of one: each may cost one."""
        breach = self.breaches.append
        suspects = {pid for number in job for pid in self.log.started[number]}
        suspects |= {batch.blamed[number] for number in job if number in batch.blamed}
        if not suspects:
            self.unassigned += 1
            return
        victim = next(iter(suspects))
        if len(suspects) > 1 or victim not in self.killed:
            breach(f"{batch.kind}: job {job} was lost by {suspects}; not all of them were killed")
        elif victim in self.costs:
            breach(f"{batch.kind}: worker {victim} lost two jobs: {self.costs[victim]} and {job}")
        elif self.log.started[job[0]] and self.log.last[victim] not in job:
            breach(f"{batch.kind}: worker {victim} lost {job}, but ran {self.log.last[victim]}")
        self.costs[victim] = job

    def _phase(self, job: list[int]) -> str:
        if not any(self.log.started[number] for number in job):
            return "receiving"
        return "sending" if all(map(self.log.is_complete, job)) else "running"
