"""What is due when. The time is an argument, and nothing here looks at a clock.

    LimitTimer     the time limits of jobs that were sent
    MemoryTimer    looks at the memory of busy workers
    StartTimer     starts of jobs that are still to be reported
    HoldTimer      short jobs that wait for workers which are at work
    JobTimer       single jobs, each at a time of its own: deadlines, retries

Each knows when it is due next (`next_due`, monotonic seconds; None: there is nothing to wait for),
and is told what happens. Whoever waits, waits for the earliest of all (`Timers.next_due`).

A limit counts from the moment that the worker starts the task, which the worker notes on its
board. Nobody is told of that moment: a task that was sent at `t` cannot expire before `t` plus its
limit, so that is when to look. What has not started then cannot expire before a whole limit later.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable
from typing import Final, NamedTuple

from prefork._policy.job import Job, WorkerSlot

__all__ = [
    "MEMORY_SECONDS",
    "Expiry",
    "Findings",
    "HoldTimer",
    "JobTimer",
    "LimitTimer",
    "MemoryTimer",
    "StartTimer",
    "Timers",
]

UNREAD_SECONDS: Final = 2.0
"""A job that its idle worker has not read by so long after its limit was sent to a process that
does not run: one that was stopped, for instance."""
REMIND_SECONDS: Final = 0.1
"""So long after a soft limit, and then ever more rarely, a worker that has not raised it is told
again."""
MEMORY_SECONDS: Final = 0.1
"""How often the memory of busy workers is measured, if it is limited while they run."""
HOLD_SECONDS: Final = 0.001
"""A worker that runs one job for so long has a long one: nothing waits for it, after all."""


class Expiry(NamedTuple):
    """A time limit that has passed."""

    slot: WorkerSlot
    job: Job
    soft: bool
    timeout: float  # the limit, seconds
    started: float  # of the job, or of the chunk's item, that has passed it (monotonic)


class Findings(NamedTuple):
    """What a look at the limits has shown."""

    expired: list[Expiry]
    unread: list[tuple[WorkerSlot, Job]]  # its worker does not even read it
    unheeded: list[WorkerSlot]  # it was told of a soft limit, and has not raised it


class Interruption(NamedTuple):
    """A worker was told that the soft limit of what it runs has passed."""

    job: int
    started: float
    at: float
    pause: float  # seconds until it is reminded, if it still runs that


class LimitTimer:
    """The time limits of jobs that were sent."""

    def __init__(self) -> None:
        self.next_due: float | None = None
        self._interrupted: dict[WorkerSlot, Interruption] = {}

    def sent(self, job: Job, now: float) -> bool:
        """A job was sent; True if this is due earlier now."""
        job.note_sent(now)
        limit = _first_limit(job)
        if limit is None or (self.next_due is not None and self.next_due <= now + limit):
            return False
        self.next_due = now + limit
        return True

    def look(self, slots: Iterable[WorkerSlot], now: float) -> Findings:
        """What has expired; sets `next_due`."""
        findings = Findings([], [], [])
        looks: list[float] = []
        for slot in slots:
            if not slot.sent:
                continue
            running, started = slot.running()
            if running not in slot.sent and slot.ready:
                self._look_at_unread(slot, now, findings, looks)
            for job in slot.sent.values():
                if job.id == running:
                    self._look_at(slot, job, started, now, findings, looks)
                elif (limit := _first_limit(job)) is not None:
                    looks.append(now + limit)
        self.next_due = min(looks, default=None)
        return findings

    def _look_at_unread(
        self, slot: WorkerSlot, now: float, findings: Findings, looks: list[float]
    ) -> None:
        job = slot.first()
        if job is None or (limit := _first_limit(job)) is None:
            return
        if now >= (latest := job.sent_at + limit + UNREAD_SECONDS):
            findings.unread.append((slot, job))
        else:
            looks.append(latest)

    def _look_at(
        self,
        slot: WorkerSlot,
        job: Job,
        started: float,
        now: float,
        findings: Findings,
        looks: list[float],
    ) -> None:
        if (job.size > 1 or started > now) and (limit := _first_limit(job)) is not None:
            # For the chunk's next item, or for what is still being unpickled: either may begin any
            # moment.
            looks.append(now + limit)
        if job.timeout:
            if now >= started + job.timeout:
                findings.expired.append(Expiry(slot, job, False, job.timeout, started))
                return
            looks.append(started + job.timeout)
        if job.soft_timeout:
            before = self._interrupted.get(slot)
            if before is not None and (before.job, before.started) == (job.id, started):
                self._look_again(slot, before, now, findings, looks)
            elif now < started + job.soft_timeout:
                looks.append(started + job.soft_timeout)
            elif slot.accepted() == started:
                # It still loads the call, which may import much: there is nothing to raise in. The
                # task's own time begins later, so that its limit passes after this look.
                looks.append(now + job.soft_timeout)
            else:
                self._interrupted[slot] = Interruption(job.id, started, now, REMIND_SECONDS)
                looks.append(now + REMIND_SECONDS)
                findings.expired.append(Expiry(slot, job, True, job.soft_timeout, started))

    def _look_again(
        self,
        slot: WorkerSlot,
        last: Interruption,
        now: float,
        findings: Findings,
        looks: list[float],
    ) -> None:
        """A signal can be lost: one that comes just before the task begins to sleep wakes nobody,
        and what is raised in a destructor goes no further."""
        if now >= last.at + last.pause:
            last = last._replace(at=now, pause=last.pause * 4)
            self._interrupted[slot] = last
            if slot.heeded() != last.started:
                findings.unheeded.append(slot)
        looks.append(last.at + last.pause)

    def forget(self, slot: WorkerSlot) -> None:
        self._interrupted.pop(slot, None)


def _first_limit(job: Job) -> float | None:
    return min(filter(None, (job.timeout, job.soft_timeout)), default=None)


class MemoryTimer:
    """Looks at the memory of workers, again and again while any is busy.

    Args:
        interval: seconds; None: there is no limit, so it is never due.
    """

    def __init__(self, interval: float | None = None) -> None:
        self.next_due: float | None = None
        self.interval = interval

    def sent(self, now: float) -> bool:
        """A job was sent; True if this is due earlier now."""
        if self.interval is None or self.next_due is not None:
            return False
        self.next_due = now + self.interval
        return True

    def looked(self, slots: Iterable[WorkerSlot], now: float) -> None:
        is_busy = self.interval is not None and any(slot.sent for slot in slots)
        self.next_due = now + self.interval if is_busy and self.interval is not None else None


LONGEST_PAUSE: Final = 0.5
"""Seconds between two looks at a worker that does not start its job: one that was stopped."""


class StartTimer:
    """Starts of jobs that are still to be reported.

    A worker can report each start (`ACCEPT`), or leave it at the note on its board. Then the pool
    looks there a moment after a job may have started. Most short tasks are done by then, and their
    result says when they started: one message and one wake-up less for each.

    Args:
        delay: how many seconds after its start a job is reported at the latest; None: workers
            report the start of each job that wants it.
    """

    def __init__(self, delay: float | None = None) -> None:
        self.delay = delay
        self.next_due: float | None = None
        self._pause = 0.0

    def expect(self, slot: WorkerSlot, now: float) -> bool:
        """The first job of this slot may start now; True if this is due earlier now."""
        if self.delay is None or not slot.ready:
            return False
        if self.next_due is not None and self.next_due <= now + self.delay:
            return False
        first = slot.first()
        if first is None or not first.start_unreported:
            return False
        self._pause = self.delay
        self.next_due = now + self.delay
        return True

    def look(self, slots: Iterable[WorkerSlot], now: float) -> list[tuple[WorkerSlot, Job]]:
        """The jobs that have started and are to be reported; sets `next_due`."""
        started = []
        self.next_due = None
        for slot in slots:
            first = slot.first()
            if first is None:
                continue
            job = slot.sent.get(slot.running()[0])
            if job is not None and job.start_unreported:
                started.append((slot, job))
            elif job is None and slot.ready and first.start_unreported:
                self.next_due = now + self._pause
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        return started


class HoldTimer:
    """Short jobs wait for workers that are at work: a moment later it is seen whether that pays."""

    def __init__(self) -> None:
        self.next_due: float | None = None

    def begin(self, now: float) -> None:
        self.next_due = now + HOLD_SECONDS

    def end(self) -> None:
        self.next_due = None


FEW: Final = 64


class JobTimer:
    """Single jobs, each due at a time of its own.

    It knows their numbers only, and so keeps nothing of those that are resolved before their time.
    Even their numbers are dropped before they are more than those of jobs which are open.
    """

    def __init__(self) -> None:
        self.next_due: float | None = None
        self._heap: list[tuple[float, int]] = []
        self._most = FEW

    def add(self, due: float, job_id: int, open_jobs: Container[int]) -> bool:
        """This job is due then; True if this is due earlier now."""
        if len(self._heap) >= self._most:
            self._heap = [entry for entry in self._heap if entry[1] in open_jobs]
            heapq.heapify(self._heap)
            self._most = max(FEW, 2 * len(self._heap))
        heapq.heappush(self._heap, (due, job_id))
        if self.next_due is not None and self.next_due <= due:
            return False
        self.next_due = due
        return True

    def take_due(self, now: float) -> list[int]:
        """The jobs that are due by now, the earliest first; sets `next_due`."""
        due: list[int] = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[1])
        self.next_due = self._heap[0][0] if self._heap else None
        return due


class Timers:
    """All that one pool waits for.

    Args:
        memory_interval: see `MemoryTimer`.
        accept_delay: see `StartTimer`.
    """

    def __init__(
        self, memory_interval: float | None = None, accept_delay: float | None = None
    ) -> None:
        self.limits = LimitTimer()
        self.memory = MemoryTimer(memory_interval)
        self.starts = StartTimer(accept_delay)
        self.hold = HoldTimer()
        self.retries = JobTimer()
        self.deadlines = JobTimer()

    def next_due(self) -> float | None:
        """The earliest of all (monotonic seconds); None: there is nothing to wait for."""
        times = (
            self.limits.next_due,
            self.memory.next_due,
            self.starts.next_due,
            self.hold.next_due,
            self.retries.next_due,
            self.deadlines.next_due,
        )
        earliest: float | None = None
        for due in times:
            if due is not None and (earliest is None or due < earliest):
                earliest = due
        return earliest
