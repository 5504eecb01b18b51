"""What is to be told about jobs, in the order in which it happened.

Whoever accounts for jobs adds news; only the result handler passes them on, so that each owner
hears of its jobs from one thread, one thing after another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from prefork.deadlines import Expiry
from prefork.messages import decode
from prefork.scheduler import NOBODY, Job, Wakes

__all__ = ["ACCEPTED", "ERROR", "EXPIRED", "Accepted", "News"]

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
        bell: rung when there are news that the result handler does not know of.
    """

    def __init__(self, bell: Callable[[], object]) -> None:
        self._bell = bell
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
                        signal.notify()  # large ones take their time
        finally:
            for signal in waiting:
                signal.notify()


def _tell_owner(job: Job, kind: int, detail: Any) -> Wakes | None:
    """Returns what the owner's waiting threads wait for, if this concerns them."""
    owner = job.owner
    if kind == ACCEPTED:
        accepted: Accepted = detail
        owner.accept(job, accepted.pid, accepted.started)
        return None
    if kind == EXPIRED:
        expiry: Expiry = detail
        owner.expire(job, expiry.soft, expiry.timeout)
        return None
    job.owner = NOBODY  # the owner may hold the job: a cycle would keep its result in memory
    try:
        ok, value = (False, detail) if kind == ERROR else decode(kind, detail)
        return owner.settle(job, ok, value)
    except BaseException as exc:
        owner.settle(job, False, exc)
        raise
