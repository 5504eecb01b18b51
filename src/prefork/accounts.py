"""Every job that the pool has taken is in the accounts, until its outcome is known; once."""

from __future__ import annotations

from typing import Final

from prefork.channel import INLINE
from prefork.crew import Worker
from prefork.messages import Kind
from prefork.news import ACCEPTED, ERROR, Accepted, News
from prefork.scheduler import Job

__all__ = ["Accounts"]

MAX_OPEN_PARCELS: Final = 128
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
        self._open_parcels = 0  # unsettled large jobs that have a file
        self._bare_parcels = 0  # unsettled large jobs that have none yet

    def admit(self, job: Job) -> None:
        self.open[job.id] = job
        if job.parcel is not None or len(job.pickled) > INLINE:
            self._count_parcel(job, +1)

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
        if job.parcel is not None or len(job.pickled) > INLINE:
            self._count_parcel(job, -1)
            if job.parcel is not None:
                job.parcel.close()
                job.parcel = None
        job.seat = None
        job.pickled = b""
        job.flaw = None
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
        job.untold = False
        self._news.add(job, ACCEPTED, Accepted(worker.pid, started))

    def may_open_parcel(self) -> bool:
        """Whether the file of a large job may be made before a worker is free for it.

        Not if jobs that came before have none: where descriptors are short, those that become
        free are for them.
        """
        return self._bare_parcels == 0 and self._open_parcels < MAX_OPEN_PARCELS

    def _count_parcel(self, job: Job, change: int) -> None:
        """A large job has come or gone."""
        if job.parcel is not None:
            self._open_parcels += change
        else:
            self._bare_parcels += change
