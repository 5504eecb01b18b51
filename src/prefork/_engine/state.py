"""Every job that the pool has taken is in the accounts, until its outcome is known; once."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from prefork._engine.worker_handle import Worker
from prefork._ipc.outcome import decode
from prefork._ipc.wire import INLINE, Kind
from prefork._policy.job import NULL_SINK, Job, Wakes
from prefork._policy.timers import Expiry

__all__ = ["ACCEPTED", "ERROR", "EXPIRED", "Accepted", "Accounts", "News", "State"]

MAX_OPEN_PAYLOADS: Final = 128
"""Large jobs whose files are made in advance; more wait in memory, so that descriptors are left."""


class Accounts:
    """To be used with the dispatcher's lock held.

    Args:
        news: where outcomes go.
    """

    def __init__(self, news: News) -> None:
        self.open: dict[int, Job] = {}  # all jobs that are not settled
        self.finished = 0
        self.failed = 0
        self.retried = 0
        self._news = news
        self._open_payloads = 0  # unsettled large jobs that have a file
        self._bare_payloads = 0  # unsettled large jobs that have none yet

    def admit(self, job: Job) -> None:
        self.open[job.id] = job
        if job.payload is not None or len(job.pickled) > INLINE:
            self._count_payload(job, +1)

    def settle(self, job: Job, kind: int, payload: object) -> None:
        """The outcome is known: a report's kind and payload, or ERROR and an exception.

        Does nothing if the job has been settled before.
        """
        if self.open.pop(job.id, None) is None:
            return
        if kind in (ERROR, Kind.FAILED):
            self.failed += 1
        else:
            self.finished += 1
        if job.payload is not None or len(job.pickled) > INLINE:
            self._count_payload(job, -1)
            if job.payload is not None:
                job.payload.close()
                job.payload = None
        job.slot = None
        job.pickled = b""
        job.pickling_error = None
        self._news.add(job, kind, payload)

    def fail(self, job: Job, reason: BaseException) -> None:
        self.settle(job, ERROR, reason)

    def note_retry(self, job: Job) -> None:
        """It will be run again."""
        self.retried += 1
        job.retries -= 1
        job.attempts += 1
        job.pid, job.started, job.seconds = None, 0.0, 0.0

    def tell_start(self, worker: Worker, job: Job, started: float) -> None:
        job.start_unreported = False
        self._news.add(job, ACCEPTED, Accepted(worker.pid, started))

    def may_open_payload(self) -> bool:
        """Whether the file of a large job may be made before a worker is free for it.

        Not if jobs that came before have none: where descriptors are short, those that become
        free are for them.
        """
        return self._bare_payloads == 0 and self._open_payloads < MAX_OPEN_PAYLOADS

    def _count_payload(self, job: Job, change: int) -> None:
        """A large job has come or gone."""
        if job.payload is not None:
            self._open_payloads += change
        else:
            self._bare_payloads += change


class State(enum.Enum):
    """A pool's life: from RUN through CLOSE and TERMINATE to ENDED, skipping some."""

    RUN = "running"
    CLOSE = "closed"  # no new jobs; workers leave when all are done
    TERMINATE = "terminated"  # no jobs at all; workers are being killed
    ENDED = "ended"  # no workers


# What news are about, beside the kinds of reports that end a job.
ERROR: Final = -1  # the job has failed; the detail is the exception
ACCEPTED: Final = -2  # a worker has started it; an `Accepted`
EXPIRED: Final = -3  # a time limit has passed; an `Expiry`


class Accepted(NamedTuple):
    """A worker has started the job."""

    pid: int
    started: float  # monotonic, seconds


class News:
    """
    Args:
        wakeup: rung when there are news that the result handler does not know of.
    """

    def __init__(self, wakeup: Callable[[], object]) -> None:
        self._bell = wakeup
        self._queue: deque[tuple[Job, int, Any]] = deque()
        self.reader_is_here = False  # the result handler is adding them itself

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, job: Job, kind: int, detail: object) -> None:
        """Of a kind of report that ends a job, with its payload; or of a kind of those above."""
        self._queue.append((job, kind, detail))
        if not self.reader_is_here:
            self._bell()

    def tell(self) -> None:
        """Pass all of them on; unpickling happens here. Who waits is woken at the end, and only
        once: a thread that is woken before has to wait for the interpreter."""
        waiting: dict[Wakes, None] = {}
        try:
            while self._queue:
                job, kind, detail = self._queue.popleft()
                signal = _tell_owner(job, kind, detail)
                if signal is not None:
                    waiting[signal] = None
                    if type(detail) is list:
                        signal.notify_all()  # large ones take their time
        finally:
            for signal in waiting:
                signal.notify_all()


def _tell_owner(job: Job, kind: int, detail: Any) -> Wakes | None:
    """Returns what the owner's waiting threads wait for, if this concerns them."""
    owner = job.sink
    if kind == ACCEPTED:
        accepted: Accepted = detail
        owner.job_started(job, accepted.pid, accepted.started)
        return None
    if kind == EXPIRED:
        expiry: Expiry = detail
        owner.limit_passed(job, expiry.soft, expiry.timeout)
        return None
    job.sink = NULL_SINK  # the owner may hold the job: a cycle would keep its result in memory
    try:
        ok, value = (False, detail) if kind == ERROR else decode(kind, detail)
        return owner.job_done(job, ok, value)
    except BaseException as exc:
        owner.job_done(job, False, exc)
        raise
