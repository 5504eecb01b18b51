"""A queue of jobs by their priorities; and what a queue of jobs is."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from prefork._policy.job import Job

__all__ = ["JobQueue", "PriorityQueue"]


class JobQueue(Protocol):
    """Jobs in the order in which they are to be run. A deque is one, and the cheapest: it is used
    as long as no job has a priority."""

    def append(self, job: Job, /) -> None: ...

    def appendleft(self, job: Job, /) -> None: ...

    def extendleft(self, jobs: Iterable[Job], /) -> None: ...

    def popleft(self) -> Job: ...

    def clear(self) -> None: ...

    def __getitem__(self, index: int, /) -> Job: ...

    def __iter__(self) -> Iterator[Job]: ...

    def __len__(self) -> int: ...


class PriorityQueue:
    """A `JobQueue` with the lowest numbers first. Jobs of the same priority have a queue of their
    own: *left* is its front, and they keep their order. What it costs depends on how many different
    priorities there are (its logarithm), and not on the number of jobs."""

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self._queues: dict[int, deque[Job]] = {}  # by priority; none is empty
        self._order: list[int] = []  # a heap of these priorities
        self._length = 0
        for job in jobs:
            self.append(job)

    def append(self, job: Job, /) -> None:
        self._queue_of(job).append(job)
        self._length += 1

    def appendleft(self, job: Job, /) -> None:
        self._queue_of(job).appendleft(job)
        self._length += 1

    def extendleft(self, jobs: Iterable[Job], /) -> None:
        for job in jobs:
            self.appendleft(job)

    def _queue_of(self, job: Job) -> deque[Job]:
        priority = job.priority()
        queue = self._queues.get(priority)
        if queue is None:
            queue = self._queues[priority] = deque()
            heapq.heappush(self._order, priority)
        return queue

    def popleft(self) -> Job:
        queue = self._queues[self._order[0]]
        job = queue.popleft()
        self._length -= 1
        if not queue:
            del self._queues[heapq.heappop(self._order)]
        return job

    def clear(self) -> None:
        self._queues.clear()
        self._order.clear()
        self._length = 0

    def __getitem__(self, index: int, /) -> Job:
        """The first one, which is the only one that can be had so."""
        assert index == 0
        return self._queues[self._order[0]][0]

    def __iter__(self) -> Iterator[Job]:
        for _, queue in sorted(self._queues.items()):
            yield from queue

    def __len__(self) -> int:
        return self._length
