"""A job, what its result is for, and a worker as the scheduler sees it."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, Final, Protocol

from prefork._compiler import mypyc_attr
from prefork._ipc.wire import CALL, LIMITED
from prefork._policy.limits import NO_LIMITS, Limits

__all__ = ["NULL_SINK", "Job", "ResultSink", "Wakes", "WorkerSlot"]


class Wakes(Protocol):
    """What threads wait for."""

    def notify_all(self) -> None: ...


class ResultSink(Protocol):
    """What a job's result is for: a result handle, or a collection of results."""

    def job_added(self, job: Job) -> None: ...

    def job_started(self, job: Job, pid: int, time_accepted: float) -> None: ...

    def job_done(self, job: Job, ok: bool, value: Any) -> Wakes | None:
        """`value` is the result, or the exception if not `ok`; returns what is to be notified,
        soon."""

    def limit_passed(self, job: Job, soft: bool, timeout: float) -> None: ...

    def waiters(self) -> Wakes | None:
        """What is notified when threads wait for its jobs, if any do."""


class _NullSink:
    def job_added(self, job: Job) -> None:
        pass

    def job_started(self, job: Job, pid: int, time_accepted: float) -> None:
        pass

    def job_done(self, job: Job, ok: bool, value: Any) -> None:
        pass

    def limit_passed(self, job: Job, soft: bool, timeout: float) -> None:
        pass

    def waiters(self) -> None:
        pass


NULL_SINK: Final = _NullSink()
"""The owner of a job that is settled."""


@mypyc_attr(acyclic=True)
class Job:
    """One task on its way. Times are seconds.

    Compiled, Python's garbage collector does not know of it, so that it need not look at a million
    of them again and again. So a job refers to nothing that could refer to it, once it is settled,
    and until then the pool holds it anyway.
    """

    __slots__ = (
        "attempts",
        "flags",
        "function",
        "function_length",
        "id",
        "index",
        "lost_timeout",
        "nbytes",
        "payload",
        "pickled",
        "pickling_error",
        "pid",
        "retries",
        "seconds",
        "sent_at",
        "sink",
        "size",
        "slot",
        "soft_timeout",
        "start_unreported",
        "started",
        "timeout",
        "withdrawn",
    )

    _ids: ClassVar[itertools.count[int]] = itertools.count(1)

    def __init__(
        self,
        sink: ResultSink,
        function: str,
        mode: int = CALL,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self.id = next(Job._ids)
        self.sink = sink
        self.function = function  # its name, for messages
        self.timeout, self.soft_timeout, self.lost_timeout, self.retries = limits
        self.flags = mode  # of its ticket
        if self.timeout is not None or self.soft_timeout is not None:
            self.flags |= LIMITED
        self.pickled = b""  # the call
        self.function_length = 0  # bytes of it
        self.nbytes = 0  # of it, with its buffers
        self.pickling_error: BaseException | None = None  # why it could not be pickled
        self.payload: Any = None  # the call and its buffers, if they are large
        self.index = 0  # of its first item in the result
        self.size = 1  # how many items it is for
        self.attempts = 0  # that ended with the loss of a worker
        self.slot: WorkerSlot | None = None  # where it was sent; None while queued
        self.sent_at = 0.0  # when (monotonic), if it has a time limit
        self.withdrawn = False  # not to be run any more
        self.start_unreported = False  # its start is to be told, and has not been
        self.pid: int | None = None  # of the worker that ran it, once reported
        self.started = 0.0
        self.seconds = 0.0

    def running_pid(self) -> int | None:
        """The process id of the worker that runs or ran it, or None."""
        if self.pid is None and (slot := self.slot) is not None and slot.running()[0] == self.id:
            return slot.pid
        return self.pid

    def running_since(self) -> float | None:
        if self.started == 0.0 and (slot := self.slot) is not None:
            return slot.accepted() if slot.running()[0] == self.id else None
        return self.started or None

    def __repr__(self) -> str:
        where = f"sent to {self.slot!r}" if self.slot else "queued"
        return f"<Job {self.id} {self.function} {where}>"


class WorkerSlot:
    """A worker as the scheduler sees it."""

    pid = 0

    def __init__(self) -> None:
        self.sent: dict[int, Job] = {}  # by id, in the order of sending: the first is running
        self.open = True  # may be sent more
        self.ready = True  # has been initialised, as far as is known
        self.quota: float = float("inf")  # how many more jobs it may finish
        self.slow = False  # it was found to run something long
        self.group: dict[WorkerSlot, None] | None = None  # the scheduler's

    def running(self) -> tuple[int, float]:
        """The id of the job that the worker runs (0: none yet), and when its clock started."""
        return 0, 0.0

    def accepted(self) -> float:
        """When the worker took that job."""
        return 0.0
