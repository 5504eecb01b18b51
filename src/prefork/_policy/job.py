"""A job, what its result is for, and a worker as the scheduler sees it."""

from __future__ import annotations

import itertools
from typing import Any, Final, Protocol

from prefork._compiler import mypyc_attr
from prefork._ipc.wire import ACCEPT, CALL, LIMITED
from prefork._policy.limits import NO_LIMITS, Limits
from prefork._policy.retry import Attempt
from prefork.errors import Cancelled

__all__ = [
    "JOB_LIFE",
    "NULL_SINK",
    "QUEUED",
    "RESOLVED",
    "SENT",
    "WAITING",
    "Job",
    "ResultSink",
    "Wakes",
    "WorkerSlot",
]


class Wakes(Protocol):
    """What threads, and tasks of event loops, wait for."""

    def notify_all(self) -> None: ...

    def wake_threads(self) -> None: ...


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
"""The sink of a job that is resolved."""

_next_id: Final = itertools.count(1).__next__

# A job's life.
#
#     QUEUED ─► SENT ─► RESOLVED
#      ▲ ▲ │      │ │       ▲ ▲
#      │ │ └──────┼─┼───────┘ │   cancelled, or the pool ends, or its deadline has passed
#      │ └────────┘ ▼         │   taken back unread
#      └──────── WAITING ─────┘   it has failed and may be retried: then it is, after a pause
QUEUED: Final = 0  # the scheduler has it
SENT: Final = 1  # a worker has it: it runs there, or waits there unread
RESOLVED: Final = 2  # its outcome is known
WAITING: Final = 3  # a run has failed, and it waits for the next one, or for that to be decided

JOB_LIFE: Final[dict[int, frozenset[int]]] = {
    QUEUED: frozenset({SENT, RESOLVED}),
    SENT: frozenset({QUEUED, WAITING, RESOLVED}),
    WAITING: frozenset({QUEUED, RESOLVED}),
    RESOLVED: frozenset(),
}
"""Which phase may follow which."""


@mypyc_attr(acyclic=True)
class Job:
    """One task on its way. Times are seconds.

    Compiled, Python's garbage collector does not know of it, so that it need not look at a million
    of them again and again. So a job refers to nothing that could refer to it, once it is resolved,
    and until then the pool holds it anyway.
    """

    __slots__ = (
        "constants",
        "first",
        "flags",
        "function",
        "function_length",
        "handed_in",
        "id",
        "index",
        "lost_timeout",
        "nbytes",
        "payload",
        "phase",
        "pickled",
        "pickling_error",
        "pid",
        "result_bytes",
        "seconds",
        "sent_at",
        "sink",
        "size",
        "slot",
        "soft_timeout",
        "start_unreported",
        "started",
        "timeout",
    )

    def __init__(
        self,
        sink: ResultSink,
        function: str,
        mode: int = CALL,
        limits: Limits = NO_LIMITS,
        size: int = 1,
        index: int = 0,
    ) -> None:
        self.id = _next_id()
        self.sink = sink
        self.function = function  # its name, for messages
        self.timeout, self.soft_timeout, self.lost_timeout, _ = limits
        self.flags = mode  # of its ticket
        if self.timeout is not None or self.soft_timeout is not None:
            self.flags |= LIMITED
        self.pickled = b""  # the call
        self.function_length = 0  # bytes of it
        self.nbytes = 0  # of it, with its buffers
        self.pickling_error: BaseException | None = None  # why it could not be pickled
        self.payload: Any = None  # the call and its buffers, if they are large
        self.constants: Any = None  # what it has in common with other jobs, until it is resolved
        self.index = index  # of its first item in the result
        self.size = size  # how many items it is for
        self.first = 0  # of them that is to be run; those before have their outcomes
        self.phase = QUEUED
        self.slot: WorkerSlot | None = None  # of the worker that has it
        self.sent_at = 0.0  # when (monotonic), if it has a time limit
        self.handed_in = 0.0  # when (monotonic), or when it was to be run again
        self.start_unreported = False  # its start is to be told, and has not been
        self.pid: int | None = None  # of the worker that ran it, once reported
        self.started = 0.0
        self.seconds = 0.0
        self.result_bytes = 0  # of a large one

    # ---- before it is submitted

    def set_call(self, pickled: bytes, function_length: int) -> None:
        """What it consists of; the pickled function, as far as that is a part of its own, is so
        many bytes of it."""
        self.pickled = pickled
        self.function_length = function_length
        self.nbytes = len(pickled)

    def set_payload(self, payload: Any, function_length: int) -> None:
        """The same, if it is large, has buffers, or descriptors go along."""
        self.payload = payload
        self.function_length = function_length
        self.nbytes = payload.nbytes

    def set_constants(self, constants: Any) -> None:
        """What goes along with it, if anything: `Constant`s."""
        self.constants = constants

    def refuse(self, error: BaseException) -> None:
        """It shall not run, but fail with this, unless it was refused before."""
        if self.pickling_error is None:
            self.pickling_error = error

    def report_start(self, by_worker: bool) -> None:
        """Its start is to be told: the worker reports it, or somebody has to look for it."""
        if by_worker:
            self.flags |= ACCEPT
        else:
            self.start_unreported = True

    # ---- its life

    def send_to(self, slot: WorkerSlot) -> None:
        """This worker gets it: QUEUED to SENT."""
        self.phase = SENT
        self.slot = slot
        slot.sent[self.id] = self

    def take_back(self) -> None:
        """No worker has it any more: SENT to QUEUED."""
        self.phase = QUEUED
        self._leave_slot()

    def _leave_slot(self) -> None:
        if self.slot is not None:
            self.slot.sent.pop(self.id, None)
            self.slot = None

    def resolve(self) -> None:
        """Its outcome is known: to RESOLVED. What its call consisted of is let go."""
        self.phase = RESOLVED
        self.slot = None
        self.pickled = b""
        self.pickling_error = None
        self.constants = None
        payload, self.payload = self.payload, None
        if payload is not None:
            payload.close()

    def leave_sink(self) -> None:
        """It will be told no more. It may hold the job: a cycle would keep its result in memory."""
        self.sink = NULL_SINK

    def note_result(self, nbytes: int) -> None:
        """It is a large one, of so many bytes."""
        self.result_bytes = nbytes

    def note_run(self, pid: int, started: float, seconds: float) -> None:
        """A worker has run it; times as in reports."""
        self.pid, self.started, self.seconds = pid, started, seconds

    def skip_to(self, item: int) -> None:
        """Those before have their outcomes."""
        self.first = item

    def note_pid(self, pid: int) -> None:
        """This worker ran it, or was about to; nobody knows since when."""
        self.pid = pid

    def note_sent(self, now: float) -> None:
        """It has a time limit, and is sent at this time."""
        self.sent_at = now

    def note_start_told(self) -> None:
        self.start_unreported = False

    def forget_run(self) -> None:
        """It runs nowhere, and its last run does not count."""
        self.pid, self.started, self.seconds = None, 0.0, 0.0

    # ---- what is known of it

    def running_pid(self) -> int | None:
        """The process id of the worker that runs or ran it, or None."""
        if self.pid is None and (slot := self.slot) is not None and slot.running()[0] == self.id:
            return slot.pid
        return self.pid

    def running_since(self) -> float | None:
        if self.started == 0.0 and (slot := self.slot) is not None:
            return slot.accepted() if slot.running()[0] == self.id else None
        return self.started or None

    def priority(self) -> int:
        """Those with a lower number are run first."""
        return 0

    def retried(self) -> int:
        """How often it was run again."""
        return 0

    def attempts(self) -> tuple[Attempt, ...]:
        """Its runs that have failed and were followed by another one."""
        return ()

    def cancellation(self) -> Cancelled:
        """What it fails with, if it never runs from now on."""
        when = "it was run again" if self.retried() else "it started"
        return Cancelled(f"job {self.id} ({self.function}) was cancelled before {when}")

    def __repr__(self) -> str:
        where = ("queued", f"sent to {self.slot!r}", "resolved", "waiting")[self.phase]
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

    def shut(self) -> None:
        """It may be sent no more."""
        self.open = False

    def reopen(self) -> None:
        self.open = True

    def first(self) -> Job | None:
        """What it runs, or will run next: the oldest job that it has not reported."""
        return next(iter(self.sent.values()), None)

    def running(self) -> tuple[int, float]:
        """The id of the job that the worker runs (0: none yet), and when its clock started."""
        return 0, 0.0

    def accepted(self) -> float:
        """When the worker took that job."""
        return 0.0

    def heeded(self) -> float:
        """When the clock was started of what the soft limit was raised in last."""
        return 0.0
