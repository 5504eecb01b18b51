"""What is to be told about jobs, in the order in which it happened.

Whoever accounts for jobs adds news; only the result handler passes them on, so that each owner
hears of its jobs from one thread, one thing after another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from prefork.deadlines import Expiry
from prefork.messages import Outcome, Report, decode
from prefork.scheduler import NOBODY, Job, Wakes

__all__ = ["Accepted", "Item", "News"]


class Accepted(NamedTuple):
    """A worker has started the job."""

    pid: int
    started: float  # monotonic, seconds


Item = Report | Outcome | Accepted | Expiry


class News:
    """
    Args:
        bell: rung when there are news that the result handler does not know of.
    """

    def __init__(self, bell: Callable[[], object]) -> None:
        self._bell = bell
        self._queue: deque[tuple[Job, Item]] = deque()
        self.reader_is_here = False  # the result handler is adding them itself

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, job: Job, item: Item) -> None:
        self._queue.append((job, item))
        if not self.reader_is_here:
            self._bell()

    def tell(self) -> None:
        """Pass all of them on; unpickling happens here. Who waits is woken at the end, and only
        once: a thread that is woken before has to wait for the interpreter."""
        waiting: dict[Wakes, None] = {}
        try:
            while self._queue:
                job, item = self._queue.popleft()
                signal = _tell_owner(job, item)
                if signal is not None:
                    waiting[signal] = None
                    if type(item) is Report and type(item.payload) is list:
                        signal.notify()  # large ones take their time
        finally:
            for signal in waiting:
                signal.notify()


def _tell_owner(job: Job, item: Item) -> Wakes | None:
    """Returns what the owner's waiting threads wait for, if this concerns them."""
    owner = job.owner
    if type(item) is Accepted:
        owner.accept(job, item.pid, item.started)
        return None
    if type(item) is Expiry:
        owner.expire(job, item.soft, item.timeout)
        return None
    job.owner = NOBODY  # the owner may hold the job: a cycle would keep its result in memory
    try:
        return owner.settle(job, decode(item) if type(item) is Report else item)  # type: ignore[arg-type]
    except BaseException as exc:
        owner.settle(job, Outcome(False, exc))
        raise
