"""The accounts of `chaos.py storm`: what each job deserves, and what its caller was told."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from misdeeds import Conduct, Log, Task


class Fate(enum.StrEnum):
    """What becomes of a job."""

    VALUE = "value"
    RAISED = "raised"  # its own exception
    LOST = "lost"  # with its worker
    SOFT = "soft"  # the soft limit
    LIMIT = "limit"  # the hard limit
    ENDED = "ended"  # terminated or cancelled
    WRONG = "wrong"  # a wrong value, or an error that says nothing of the kind
    SILENCE = "silence"  # no answer within the deadline


DESERVED = dict.fromkeys(Conduct, Fate.VALUE) | {
    Conduct.RAISE: Fate.RAISED,
    Conduct.EXIT: Fate.LOST,
    Conduct.SUICIDE: Fate.LOST,
    Conduct.CRASH: Fate.LOST,
    Conduct.LATE: Fate.SOFT,
    Conduct.ENDLESS: Fate.LIMIT,
    Conduct.DEAF: Fate.LIMIT,
    Conduct.FROZEN: Fate.LIMIT,
}


@dataclass
class Deeds:
    """What was done from outside, and how often."""

    counts: Counter[str] = field(default_factory=Counter)
    killed: set[int] = field(default_factory=set)  # pids
    ended_on: set[int] = field(default_factory=set)  # pids whose job was terminated
    ended: set[int] = field(default_factory=set)  # tasks that were cancelled or terminated


@dataclass
class Told:
    """What the caller of one task was told."""

    task: Task
    fate: Fate
    text: str = ""  # of an error
    pid: int | None = None  # of the worker, if an error names it
    callbacks: int | None = None  # None: this pool has none


class Ledger:
    """Args:
    strict: a pool that says whose death cost which job: each may cost one.
    """

    def __init__(self, strict: bool) -> None:
        self.jobs = 0
        self.faults: Counter[str] = Counter()  # what tasks did themselves
        self.fates: Counter[Fate] = Counter()
        self.innocent = self.silent = self.doubled = self.wrong = 0
        self.breaches: list[str] = []
        self._strict = strict
        self._cost: dict[int, int] = {}  # pid: the task that its death cost

    def book(self, told: Iterable[Told], log: Log, deeds: Deeds) -> None:
        """All jobs of a round, whose deeds are done: process ids may be used again after it."""
        log.read()
        for each in told:
            self._book(each, log, deeds)
        self._cost.clear()
        deeds.killed.clear()
        deeds.ended_on.clear()

    def _book(self, told: Told, log: Log, deeds: Deeds) -> None:
        task, started = told.task, log.started.pop(told.task.number, [])
        ended = log.ended.pop(told.task.number, [])
        self.jobs += 1
        self.fates[told.fate] += 1
        if started and task.conduct.is_fault:
            self.faults[task.conduct] += 1
        may = self._may_have(told, started, deeds)
        what = f"task {task.number} ({task.conduct}), started by {started}, ended by {ended}"
        if told.fate is Fate.SILENCE:
            self.silent += 1
            self.breaches.append(f"{what}: no answer")
        elif told.fate not in may:
            if told.fate is Fate.LOST:
                self.innocent += 1
            else:
                self.wrong += 1
            self.breaches.append(f"{what}: {told.fate} instead of {sorted(may)}: {told.text}")
        elif told.fate is Fate.VALUE and not self._has_run_to_its_end(started, ended, deeds):
            self.wrong += 1
            self.breaches.append(f"{what}: has a value, but did not run to its end once")
        elif told.fate is Fate.LOST and (other := self._charge(told)) != task.number:
            self.innocent += 1
            self.breaches.append(f"{what}: worker {told.pid} had lost task {other} already")
        allowed = 1 + task.retries if self._strict else 1
        if len(started) > allowed or told.callbacks not in (None, 1):
            self.doubled += 1
            self.breaches.append(f"{what}: {told.callbacks} callbacks, {allowed} starts allowed")
        elif told.fate is Fate.RAISED and allowed - len(started) > len(deeds.killed - {*started}):
            self.wrong += 1  # a run that is missing was lost with a worker that had not begun it
            self.breaches.append(f"{what}: it was to be run {allowed} times")
        elif (
            DESERVED[task.conduct] is not Fate.LOST
            and not task.conduct.is_retried
            and not deeds.killed.issuperset(started[:-1])
        ):
            self.doubled += 1
            self.breaches.append(f"{what}: again, though nobody had killed its worker")

    def _has_run_to_its_end(self, started: list[int], ended: list[int], deeds: Deeds) -> bool:
        """Once, in the worker that was the last to start it. It may have done so before in workers
        that were killed between its last line and their report, and so be run again."""
        *unreported, last = ended or [0]
        return started[-1:] == [last] and deeds.killed.issuperset(unreported)

    def _charge(self, told: Told) -> int:
        """The task that this one's worker has cost."""
        if told.pid is None or not self._strict:
            return told.task.number
        return self._cost.setdefault(told.pid, told.task.number)

    def _may_have(self, told: Told, started: list[int], deeds: Deeds) -> set[Fate]:
        task = told.task
        may = {DESERVED[task.conduct]}
        victims: set[int | None] = set(started)
        if len(started) <= task.retries:  # another worker may have taken it, and not begun
            victims.add(told.pid)
        if victims & deeds.killed:
            may.add(Fate.LOST)
        if task.number in deeds.ended or victims & deeds.ended_on:
            may.add(Fate.ENDED)
        if task.conduct.needs_limit and not self._strict:
            may.add(Fate.LOST)  # billiard tells so of what it killed
        return may
