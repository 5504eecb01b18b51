"""Who gets which task, and when: policy without I/O. The dispatcher's lock guards it.

A job is *queued* here, or *sent* to one worker; a sent job can come back (reclaimed) until the
worker reads it. It leaves when its report arrives, or with the worker that died running it.

    submit ──► queue ──► worker.sent ──► finished
                 ▲            │
                 └─reclaimed──┘

A job goes straight to a worker that has no other one, ready or just starting; a short one also to
a worker that runs one (so that it never waits for a round trip). The rest queues here, and is
handed out in batches that hold about `BATCH_SECONDS` of work, by the running mean of how long jobs
take.

What waits behind another job may be overtaken by jobs that came later. So only short ones do: long
ones, and those of which nothing is known yet, start in the order in which they came, as programs
whose jobs wait for one another rely on.

From the first job on that has a priority, no worker gets more than `BATCH_SECONDS` of work, and
nothing before it is ready: what another job might have to wait for waits here.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from prefork._policy.job import RESOLVED, WAITING, Job, WorkerSlot
from prefork._policy.priorities import JobQueue, PriorityQueue

__all__ = ["Scheduler"]

BATCH_SECONDS: Final = 0.01
"""Work to keep in each inbox: more than the 5 ms that a busy thread may keep the interpreter lock
(`sys.getswitchinterval`), so that a worker does not run dry before the pool's threads get it."""
SHORT_SECONDS: Final = 0.00005
"""To wake a worker takes about as much of a CPU. So jobs that are shorter wait for one that is at
work, if as many are as there are CPUs."""
MAX_DEPTH: Final = 100  # jobs in one inbox, the running one included
MIN_DEPTH: Final = 2
ALONE_SECONDS: Final = 0.1
"""Behind jobs that take so long none waits. To save it the round trip, some 0.1 ms, or 5 ms if the
interpreter is busy, gains next to nothing; and it might wait long."""
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
        self.queue: JobQueue = deque()
        self.has_priorities = False  # then the queue is a `PriorityQueue`
        self.slots: list[WorkerSlot] = []
        self.mean_seconds: float | None = None
        # Seats by how many jobs they have; each slot is in one of them, or in none.
        self._idle: dict[WorkerSlot, None] = {}  # none, and may be sent some
        self._new: dict[WorkerSlot, None] = {}  # none, as the worker is not ready, may be sent some
        self._low: dict[WorkerSlot, None] = {}  # one, may be sent more
        self._deep: dict[WorkerSlot, None] = {}  # more than one (or not ready), may be taken back
        self._heads: dict[WorkerSlot, int] = {}  # what busy slots ran at the last look

    # ---- slots

    def add(self, slot: WorkerSlot) -> None:
        self.slots.append(slot)
        self._classify(slot)

    def remove(self, slot: WorkerSlot) -> None:
        slot.shut()
        self._classify(slot)
        if slot in self.slots:  # else it was interrupted that it came
            self.slots.remove(slot)

    def shut(self, slot: WorkerSlot) -> None:
        """Send this slot no more."""
        slot.shut()
        self._classify(slot)

    def reopen(self, slot: WorkerSlot) -> None:
        slot.reopen()
        self._classify(slot)

    def mark_ready(self, slot: WorkerSlot) -> None:
        slot.ready = True
        self._classify(slot)

    def _classify(self, slot: WorkerSlot) -> None:
        count = len(slot.sent)
        slot.slow = slot.slow and count > 0
        group: dict[WorkerSlot, None] | None = None
        if count > 1 or (count and not slot.ready):
            group = self._deep
        elif slot.open and count < slot.quota and not slot.slow:
            group = self._low if count else self._idle if slot.ready else self._new
        if group is not slot.group:
            if slot.group is not None:
                del slot.group[slot]
            if group is not None:
                group[slot] = None
            slot.group = group

    # ---- jobs

    def submit(self, job: Job) -> WorkerSlot | None:
        """Take a new job: the slot to send it to now, or None if it is queued."""
        if not self.queue:
            if self._idle and not self.is_holding():
                slot = next(reversed(self._idle))
            elif self._new and not self.has_priorities and self._may_queue_behind(job):
                slot = next(iter(self._new))  # it was started first, and will be ready first
            elif self._low and self._may_queue_behind(job) and self.depth() > 1:
                slot = next(reversed(self._low))
            else:
                self.queue.append(job)
                return None
            job.send_to(slot)
            self._classify(slot)
            return slot
        self.queue.append(job)
        return None

    def is_holding(self) -> bool:
        """Whether jobs are to wait for workers that are at work, though others idle."""
        return (
            bool(self._idle)
            and self.mean_seconds is not None
            and self.mean_seconds < SHORT_SECONDS
            and len(self._low) + len(self._deep) >= self._cpus
        )

    def holds_back(self) -> bool:
        """The same, and there are such jobs now."""
        return bool(self._idle and (self.queue or self._deep)) and self.is_holding()

    def has_waiting(self) -> bool:
        """Whether there are jobs that others may have to wait for."""
        return bool(self.queue or self._deep)

    def hold_no_more(self) -> None:
        """There is nobody who could look whether it pays, or that would cost too much."""
        self._cpus = sys.maxsize

    def remember_heads(self) -> None:
        """Note what each busy slot runs, for `find_slow` to be called `HOLD_SECONDS` later."""
        busy = (*self._low, *self._deep)
        self._heads = {slot: next(iter(slot.sent)) for slot in busy if slot.sent}

    def find_slow(self) -> list[WorkerSlot]:
        """Seats that run the same job still get no more until that has finished. Returns those of
        them that have others waiting, to be taken back."""
        slow = [slot for slot, head in self._heads.items() if next(iter(slot.sent), 0) == head]
        self._heads.clear()
        for slot in slow:
            self.note_slow(slot)
        return [slot for slot in slow if slot.group is self._deep]

    def deep_slots(self) -> list[WorkerSlot]:
        """Those that have jobs waiting, behind another one or for their worker to be ready."""
        return list(self._deep)

    def note_slow(self, slot: WorkerSlot) -> None:
        """What it runs takes long: it gets no more until that has finished."""
        slot.slow = True
        self._classify(slot)

    def _may_queue_behind(self, job: Job) -> bool:
        """A large task waits here for an idle worker: taking it back from one would be dear."""
        return job.payload is None or not job.payload.is_file

    def begin_priorities(self, job: Job) -> bool:
        """This job has a priority. If it is the first, it is queued, and True returned: then what
        workers have not read is to be taken back, since it may be less urgent."""
        if self.has_priorities:
            return False
        self.queue = PriorityQueue(self.queue)
        self.has_priorities = True
        self.queue.append(job)
        return True

    def batches(
        self, slots: Iterable[WorkerSlot] | None = None
    ) -> Iterator[tuple[WorkerSlot, list[Job]]]:
        """Batches to send now: to each of these slots (all) that runs low, its share."""
        if not self.queue:
            return
        depth = self.depth()
        for slot in list(self.slots if slots is None else slots):
            if not slot.sent and self.is_holding():
                continue
            if self.has_priorities and not slot.ready:
                continue
            if slot.open and not slot.slow and len(slot.sent) <= depth // 2:
                batch = self._batch(slot, depth)
                if batch:
                    yield slot, batch

    def _batch(self, slot: WorkerSlot, depth: int) -> list[Job]:
        share = -(-len(self.queue) // (self._cpus if self.is_holding() else len(self.slots)))
        room = int(min(depth - len(slot.sent), max(share, 1), slot.quota - len(slot.sent)))
        batch: list[Job] = []
        while self.queue and len(batch) < room:
            job = self.queue[0]
            if slot.sent and not self._may_queue_behind(job):
                break
            self.queue.popleft()
            self.drop_resolved()
            job.send_to(slot)
            batch.append(job)
        self._classify(slot)
        return batch

    def depth(self) -> int:
        """How many jobs to keep in an inbox."""
        if self.mean_seconds is None or self.mean_seconds > ALONE_SECONDS:
            return 1
        least = 1 if self.has_priorities else MIN_DEPTH
        return int(min(MAX_DEPTH, max(least, BATCH_SECONDS / (self.mean_seconds + 1e-6))))

    def note_finished(self, slot: WorkerSlot, count: int, seconds: float) -> None:
        """So many jobs that this slot had were reported; together they took so long."""
        if not count:
            return
        slot.quota -= count
        slot.slow = False
        self._classify(slot)
        mean = seconds / count
        if self.mean_seconds is not None:
            old = (1.0 - _SMOOTHING) ** count
            mean = min(mean, _SURPRISE * (self.mean_seconds + 1e-6))
            mean = old * self.mean_seconds + (1.0 - old) * mean
        self.mean_seconds = mean

    def drop(self, slot: WorkerSlot, job_id: int) -> None:
        """This job could not be sent to its slot, and is given up."""
        del slot.sent[job_id]
        self._classify(slot)

    def return_jobs(self, slot: WorkerSlot, job_ids: Iterable[int]) -> None:
        """These were taken back unread: they go to the front of the queue, in their order."""
        jobs = [slot.sent[job_id] for job_id in job_ids if job_id in slot.sent]
        for job in jobs:
            job.take_back()
        self.queue.extendleft(reversed(jobs))
        self._classify(slot)

    def steal(self) -> tuple[WorkerSlot, int] | None:
        """A worker idles and nothing is queued: from whom to take back how many tasks."""
        if self.queue or not self._idle or not self._deep or self.is_holding():
            return None
        victim = max(self._deep, key=lambda slot: len(slot.sent))
        return victim, len(victim.sent) // 2 if victim.ready else len(victim.sent)

    def idle_slots(self) -> list[WorkerSlot]:
        return list(reversed(self._idle))

    def put_first(self, job: Job) -> None:
        """Run this one before all others of its priority."""
        self.queue.appendleft(job)

    def drop_resolved(self) -> None:
        """Forget queued jobs that are resolved. Only those at the front, so that it costs little;
        so the first one in the queue is always to be run."""
        while self.queue and self.queue[0].phase == RESOLVED:
            self.queue.popleft()

    def mend(self, unresolved: Iterable[Job]) -> None:
        """A signal handler has raised in the midst of `submit`: put in order what it left half
        done. A job that is neither queued nor sent is queued again, before all others."""
        for group in (self._idle, self._new, self._low, self._deep):
            group.clear()
        for slot in self.slots:
            slot.group = None
            self._classify(slot)
        if self.has_priorities:
            self.queue = PriorityQueue(self.queue)
        queued = {job.id for job in self.queue}
        astray = []
        for job in unresolved:
            if job.phase != WAITING and (job.slot is None or job.id not in job.slot.sent):
                job.take_back()
                if job.id not in queued:
                    astray.append(job)
        self.queue.extendleft(reversed(astray))

    def clear(self) -> list[Job]:
        """Forget all jobs."""
        jobs = list(self.queue)
        self.queue.clear()
        for slot in self.slots:
            jobs.extend(slot.sent.values())
            slot.sent.clear()
            self._classify(slot)
        return jobs

    @property
    def unfinished(self) -> int:
        return len(self.queue) + sum(len(slot.sent) for slot in self.slots)
