"""Who gets which task, and when: policy without I/O. The dispatcher's lock guards it.

A job is *queued* here, or *sent* to one worker; a sent job can come back (reclaimed) until the
worker reads it. It leaves when its report arrives, or with the worker that died running it.

    submit ──► queue ──► worker.sent ──► finished
                 ▲            │
                 └─reclaimed──┘

A job goes straight to a worker that has no or only one other job (so that it never waits for a
round trip). The rest queues here, and is handed out in batches that hold about
`BATCH_SECONDS` of work, by the running mean of how long jobs take.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from prefork._policy.job import Job, Seat

__all__ = ["Scheduler"]

BATCH_SECONDS: Final = 0.01
"""Work to keep in each inbox: more than the 5 ms that a busy thread may keep the interpreter lock
(`sys.getswitchinterval`), so that a worker does not run dry before the pool's threads get it."""
SHORT_SECONDS: Final = 0.00005
"""To wake a worker takes about as much of a CPU. So jobs that are shorter wait for one that is at
work, if as many are as there are CPUs."""
HOLD_SECONDS: Final = 0.001
"""A worker that runs one job for so long has a long one: nothing waits for it, after all."""
MAX_DEPTH: Final = 100  # jobs in one inbox, the running one included
MIN_DEPTH: Final = 2
_SMOOTHING: Final = 0.1  # weight of the newest job in the running mean
_SURPRISE: Final = 8.0
"""It counts as at most so many times the mean: the first job that a worker runs may take a hundred
times as long as the next ones, while the worker touches memory for the first time."""


class Scheduler:
    """
    Args:
        cpus: how many workers are enough for jobs that are shorter than `SHORT_SECONDS`.
    """

    def __init__(self, cpus: int = 2) -> None:
        self._cpus = cpus
        self.queue: deque[Job] = deque()
        self.seats: list[Seat] = []
        self.mean_seconds: float | None = None
        # Seats by how many jobs they have; each seat is in one of them, or in none.
        self._idle: dict[Seat, None] = {}  # none, and may be sent some
        self._new: dict[Seat, None] = {}  # none, as the worker is not ready, may be sent some
        self._low: dict[Seat, None] = {}  # one, may be sent more
        self._deep: dict[Seat, None] = {}  # more than one (or not ready), may be taken back
        self._heads: dict[Seat, int] = {}  # what busy seats ran at the last look

    # ---- seats

    def add(self, seat: Seat) -> None:
        self.seats.append(seat)
        self._classify(seat)

    def remove(self, seat: Seat) -> None:
        seat.open = False
        self._classify(seat)
        if seat in self.seats:  # else it was interrupted that it came
            self.seats.remove(seat)

    def shut(self, seat: Seat) -> None:
        """Send this seat no more."""
        seat.open = False
        self._classify(seat)

    def reopen(self, seat: Seat) -> None:
        seat.open = True
        self._classify(seat)

    def mark_ready(self, seat: Seat) -> None:
        seat.ready = True
        self._classify(seat)

    def _classify(self, seat: Seat) -> None:
        count = len(seat.sent)
        seat.slow = seat.slow and count > 0
        group: dict[Seat, None] | None = None
        if count > 1 or (count and not seat.ready):
            group = self._deep
        elif seat.open and count < seat.quota and not seat.slow:
            group = self._low if count else self._idle if seat.ready else self._new
        if group is not seat.group:
            if seat.group is not None:
                del seat.group[seat]
            if group is not None:
                group[seat] = None
            seat.group = group

    # ---- jobs

    def submit(self, job: Job) -> Seat | None:
        """Take a new job: the seat to send it to now, or None if it is queued."""
        if not self.queue:
            if self._idle and not self.is_holding():
                seat = next(reversed(self._idle))
            elif self._low and self._may_queue_behind(job):
                seat = next(reversed(self._low))
            elif self._new and self._may_queue_behind(job):
                seat = next(iter(self._new))  # it was started first, and will be ready first
            else:
                self.queue.append(job)
                return None
            job.seat = seat
            seat.sent[job.id] = job
            self._classify(seat)
            return seat
        self.queue.append(job)
        return None

    def is_holding(self) -> bool:
        """Whether jobs wait for workers that are at work, though others idle."""
        return (
            bool(self._idle)
            and self.mean_seconds is not None
            and self.mean_seconds < SHORT_SECONDS
            and len(self._low) + len(self._deep) >= self._cpus
        )

    def has_waiting(self) -> bool:
        """Whether there are jobs that others may have to wait for."""
        return bool(self.queue or self._deep)

    def hold_no_more(self) -> None:
        """There is nobody who could look whether it pays, or that would cost too much."""
        self._cpus = sys.maxsize

    def remember_heads(self) -> None:
        """Note what each busy seat runs, for `find_slow` to be called `HOLD_SECONDS` later."""
        busy = (*self._low, *self._deep)
        self._heads = {seat: next(iter(seat.sent)) for seat in busy if seat.sent}

    def find_slow(self) -> list[Seat]:
        """Seats that run the same job still get no more until that has finished. Returns those of
        them that have others waiting, to be taken back."""
        slow = [seat for seat, head in self._heads.items() if next(iter(seat.sent), 0) == head]
        self._heads.clear()
        for seat in slow:
            seat.slow = True
            self._classify(seat)
        return [seat for seat in slow if seat.group is self._deep]

    def _may_queue_behind(self, job: Job) -> bool:
        """A large task waits here for an idle worker: taking it back from one would be dear."""
        return job.parcel is None

    def hand_out(self, seats: Iterable[Seat] | None = None) -> Iterator[tuple[Seat, list[Job]]]:
        """Batches to send now: to each of these seats (all) that runs low, its share."""
        if not self.queue:
            return
        depth = self.depth()
        for seat in list(self.seats if seats is None else seats):
            if not seat.sent and self.is_holding():
                continue
            if seat.open and not seat.slow and len(seat.sent) <= depth // 2:
                batch = self._batch(seat, depth)
                if batch:
                    yield seat, batch

    def _batch(self, seat: Seat, depth: int) -> list[Job]:
        share = -(-len(self.queue) // (self._cpus if self.is_holding() else len(self.seats)))
        room = int(min(depth - len(seat.sent), max(share, 1), seat.quota - len(seat.sent)))
        batch: list[Job] = []
        while self.queue and len(batch) < room:
            job = self.queue[0]
            if seat.sent and not self._may_queue_behind(job):
                break
            self.queue.popleft()
            self._drop_withdrawn()
            job.seat = seat
            seat.sent[job.id] = job
            batch.append(job)
        self._classify(seat)
        return batch

    def depth(self) -> int:
        """How many jobs to keep in an inbox."""
        if self.mean_seconds is None:
            return MIN_DEPTH
        return int(min(MAX_DEPTH, max(MIN_DEPTH, BATCH_SECONDS / (self.mean_seconds + 1e-6))))

    def note_finished(self, seat: Seat, count: int, seconds: float) -> None:
        """So many jobs that this seat had were reported; together they took so long."""
        if not count:
            return
        seat.quota -= count
        seat.slow = False
        self._classify(seat)
        mean = seconds / count
        if self.mean_seconds is not None:
            old = (1.0 - _SMOOTHING) ** count
            mean = min(mean, _SURPRISE * (self.mean_seconds + 1e-6))
            mean = old * self.mean_seconds + (1.0 - old) * mean
        self.mean_seconds = mean

    def drop(self, seat: Seat, job_id: int) -> None:
        """This job could not be sent to its seat, and is given up."""
        del seat.sent[job_id]
        self._classify(seat)

    def return_jobs(self, seat: Seat, job_ids: Iterable[int]) -> None:
        """These were taken back unread: they go to the front of the queue, in their order."""
        jobs = [seat.sent.pop(job_id) for job_id in job_ids if job_id in seat.sent]
        for job in jobs:
            job.seat = None
        self.queue.extendleft(reversed(jobs))
        self._classify(seat)

    def steal(self) -> tuple[Seat, int] | None:
        """A worker idles and nothing is queued: from whom to take back how many tasks."""
        if self.queue or not self._idle or not self._deep or self.is_holding():
            return None
        victim = max(self._deep, key=lambda seat: len(seat.sent))
        return victim, len(victim.sent) // 2 if victim.ready else len(victim.sent)

    def idle_seats(self) -> list[Seat]:
        return list(reversed(self._idle))

    def put_back(self, job: Job) -> None:
        """Run this one again, before all others; no seat has it any more."""
        job.seat = None
        self.queue.appendleft(job)

    def withdraw(self, job: Job) -> None:
        """Forget a queued job."""
        job.withdrawn = True
        self._drop_withdrawn()

    def _drop_withdrawn(self) -> None:
        """Only from the front, so that it costs little; the first one is always to be run."""
        while self.queue and self.queue[0].withdrawn:
            self.queue.popleft()

    def clear(self) -> list[Job]:
        """Forget all jobs."""
        jobs = list(self.queue)
        self.queue.clear()
        for seat in self.seats:
            jobs.extend(seat.sent.values())
            seat.sent.clear()
            self._classify(seat)
        return jobs

    @property
    def unfinished(self) -> int:
        return len(self.queue) + sum(len(seat.sent) for seat in self.seats)
