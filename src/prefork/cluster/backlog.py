"""The jobs that are open: what of them is to be sent, what has been, and what they have come to.

    add ─► take ─► (a node) ─► settle ─┬► the job is resolved
             ▲                         ├► an item that was not begun: it is taken again
             └────── put_back ◄────────┘  one that is to be tried again, now or later

It knows no node, no clock and no thread: the time is an argument. Each call is made with the
engine's lock held; what it returns is to be told without it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from prefork._policy.job import RESOLVED, Job, ResultSink
from prefork._policy.terms import JobOnTerms
from prefork.cluster.calls import Call, Kind, mode_of
from prefork.cluster.sizes import SHORT, Sizes
from prefork.errors import DeadlineExceeded

__all__ = ["Backlog", "Chunk", "Resolved"]

MOST_BYTES: Final = 1 << 20  # of a chunk, unless a single item has more
FEW_DEADLINES: Final = 1000  # of jobs that are over, beside as many as there are open ones


class Resolved(NamedTuple):
    """What a job has come to."""

    job: Job
    ok: bool
    value: Any


class Part(NamedTuple):
    """Some items of one job, one after another."""

    job: Job
    call: Call
    first: int
    stop: int


class Chunk:
    """What is sent to a node at once."""

    __slots__ = ("id", "kind", "parts", "size")

    def __init__(self, number: int, kind: Kind) -> None:
        self.id = number
        self.kind = kind
        self.parts: list[Part] = []
        self.size = 0

    def add(self, part: Part) -> None:
        self.parts.append(part)
        self.size += part.stop - part.first

    def texts(self) -> list[str]:
        return [text for _, call, first, stop in self.parts for text in call.texts[first:stop]]

    def is_wanted(self) -> bool:
        """Whether anybody waits for anything of it."""
        return any(part.job.phase != RESOLVED for part in self.parts)


class Backlog:
    def __init__(self, sizes: Sizes, chance: Callable[[], float]) -> None:
        self._sizes = sizes
        self._chance = chance
        self._numbers = itertools.count(1)
        self._chunk_numbers = itertools.count(1)
        self.jobs: dict[int, Job] = {}  # that are open
        self.finished = self.failed = self.retried = 0
        self._again: deque[Part] = deque()
        self._fresh: dict[int, deque[Job]] = {}  # that have items to be sent, by priority
        self.waiting = 0  # items that are to be sent
        self._later: list[tuple[float, int, Job, list[int]]] = []
        self._deadlines: list[tuple[float, int, JobOnTerms]] = []

    # ---- in

    def add(self, job: Job, now: float) -> None:
        """A new job, which is not refused."""
        self.jobs[job.id] = job
        self._fresh.setdefault(job.priority(), deque()).append(job)
        self.waiting += job.size
        if isinstance(job, JobOnTerms):
            if job.terms.deadline is not None:
                job.end_by(now + job.terms.deadline)
            if job.latest is not None:
                heapq.heappush(self._deadlines, (job.latest, job.id, job))
                if len(self._deadlines) > 2 * len(self.jobs) + FEW_DEADLINES:
                    self._deadlines = [due for due in self._deadlines if due[1] in self.jobs]
                    heapq.heapify(self._deadlines)

    def withdraw(self, job: Job, error: BaseException) -> list[Resolved]:
        """Resolve a job whose `add` was interrupted, nobody knows where."""
        self.jobs.setdefault(job.id, job)
        resolved = [] if job.phase == RESOLVED else self.fail(job, error)
        self.jobs.pop(job.id, None)
        self.waiting = sum(part.stop - part.first for part in self._again)
        for other in self.jobs.values():
            self.waiting += other.size - other.payload.sent
        return resolved

    # ---- out

    def take(self, processes: int) -> Chunk | None:
        """The next items for a node; None: there are none.

        Args:
            processes: of all nodes.
        """
        chunk: Chunk | None = None
        left, room = 1, MOST_BYTES
        sinks: ResultSink | None = None
        is_shared = False
        for job in self._next_jobs():
            call: Call = job.payload
            if chunk is None:
                chunk = Chunk(next(self._chunk_numbers), call.kind)
                name = call.kind.name
                left = self._sizes.size(name, self.waiting, processes)
                is_shared = (self._sizes.mean(name) or 1.0) < SHORT
                sinks = job.sink
            elif call.kind != chunk.kind or not (is_shared or job.sink is sinks):
                break
            part = self._part(job, call, left, room, chunk.size == 0)
            if part is None:
                break
            chunk.add(part)
            left -= part.stop - part.first
            room -= sum(map(len, call.texts[part.first : part.stop]))
            if left <= 0 or room <= 0:
                break
        if chunk is not None:
            self.waiting -= chunk.size
        return chunk

    def _next_jobs(self) -> Iterator[Job]:
        """Of each job, as long as it has items to be sent."""
        while True:
            while self._again and self._again[0].job.phase == RESOLVED:
                part = self._again.popleft()
                self.waiting -= part.stop - part.first
            if self._again:
                yield self._again[0].job
                continue
            job = self._next_fresh()
            if job is None:
                return
            yield job

    def _next_fresh(self) -> Job | None:
        for priority in sorted(self._fresh):
            queue = self._fresh[priority]
            while queue:
                job = queue[0]
                if job.phase != RESOLVED:
                    return job
                queue.popleft()
            del self._fresh[priority]
        return None

    def _part(self, job: Job, call: Call, left: int, room: int, is_first: bool) -> Part | None:
        """Take some items of this job, which is the next one."""
        again = self._again
        if again and again[0].job is job:
            _, _, first, end = again[0]
        else:
            first, end = call.sent, job.size
        stop = min(end, first + left)
        if call.nbytes > room:
            stop = _fitting(call.texts, first, stop, room, is_first)
        if stop == first:
            return None
        if again and again[0].job is job:
            again.popleft()
            if stop < end:
                again.appendleft(Part(job, call, stop, end))
        else:
            call.sent = stop
            if stop == job.size:
                self._fresh[job.priority()].popleft()
        return Part(job, call, first, stop)

    # ---- back

    def put_back(self, chunk: Chunk) -> None:
        """None of it was begun, nor will be: it is taken again, before all else."""
        for part in reversed(chunk.parts):
            self._put_back(part)

    def _put_back(self, part: Part) -> None:
        if part.job.phase != RESOLVED:
            self._again.appendleft(part)
            self.waiting += part.stop - part.first

    def settle(
        self,
        chunk: Chunk,
        values: Sequence[Any],
        errors: dict[int, BaseException],
        not_run: set[int],
        now: float,
    ) -> list[Resolved]:
        """What a chunk has come to.

        Args:
            values: by the position of each item in the chunk; of others than these: anything.
            errors: the errors of some.
            not_run: those that were not begun, nor will be.
        """
        resolved: list[Resolved] = []
        at = 0
        for part in chunk.parts:
            job, call, first, stop = part
            size = stop - first
            if job.phase != RESOLVED:
                call.values[first:stop] = values[at : at + size]
                call.left -= size
                if errors or not_run:
                    for item in range(size):
                        if at + item in errors:
                            call.errors[first + item] = errors[at + item]
                    for item in reversed(range(size)):
                        if at + item in not_run:
                            call.left += 1
                            self._put_back(Part(job, call, first + item, first + item + 1))
                if call.left == 0:
                    resolved += self._complete(job, call, now)
            at += size
        return resolved

    def _complete(self, job: Job, call: Call, now: float) -> list[Resolved]:
        if call.errors and isinstance(job, JobOnTerms) and self._try_again(job, call, now):
            return []
        return [self._resolved(job, *call.outcome(mode_of(job)))]

    def _try_again(self, job: JobOnTerms, call: Call, now: float) -> bool:
        retries = job.terms.retries
        if retries is None:
            return False
        items = [item for item, error in sorted(call.errors.items()) if retries.covers(error)]
        if not items:
            return False
        error = call.errors[items[0]]
        due = job.next_run(error, now, self._chance())
        if due is None:
            return False
        job.note_failure(error)
        self.retried += 1
        call.begin_again(items)
        if due <= now:
            self._run_again(job, items)
        else:
            heapq.heappush(self._later, (due, next(self._numbers), job, items))
        return True

    def _run_again(self, job: Job, items: list[int]) -> None:
        for item in reversed(items):
            self._put_back(Part(job, job.payload, item, item + 1))

    def _resolved(self, job: Job, ok: bool, value: Any) -> Resolved:
        self.jobs.pop(job.id, None)
        if ok:
            self.finished += 1
        else:
            self.failed += 1
        if job.phase != RESOLVED:
            if job.payload is not None:
                self._forget(job)
            job.resolve()
        return Resolved(job, ok, value)

    def _forget(self, job: Job) -> None:
        """Its items that were never sent are not waiting any more. (Those that are to be sent again
        are found to be resolved when their turn comes.)"""
        self.waiting -= job.size - job.payload.sent

    # ---- an end from elsewhere

    def fail(self, job: Job, error: BaseException) -> list[Resolved]:
        """Resolve a job, wherever it is; nothing, if it is resolved."""
        if job.id not in self.jobs:
            return []
        return [self._resolved(job, False, error)]

    def is_unsent(self, job: Job) -> bool:
        """Whether nothing of it was ever sent."""
        return job.id in self.jobs and job.payload.sent == 0

    # ---- what is due

    def next_due(self) -> float | None:
        due = [heap[0][0] for heap in (self._later, self._deadlines) if heap]
        return min(due, default=None)

    def run_due(self, now: float) -> list[Resolved]:
        """Have those run again whose pause is over, and those fail whose deadline is."""
        while self._later and self._later[0][0] <= now:
            _, _, job, items = heapq.heappop(self._later)
            if job.phase != RESOLVED:
                self._run_again(job, items)
        resolved: list[Resolved] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, late = heapq.heappop(self._deadlines)
            if late.id in self.jobs:
                error = DeadlineExceeded(late.terms.deadline or 0.0, late.id, late.function)
                if attempts := late.attempts():
                    error.__cause__ = attempts[-1].error
                resolved += self.fail(late, error)
        return resolved


def _fitting(texts: list[str], first: int, stop: int, room: int, is_first: bool) -> int:
    """How far the items go that have so many bytes at most."""
    for item in range(first, stop):
        room -= len(texts[item])
        if room < 0 and not (is_first and item == first):
            return item
    return stop
