"""What is to be told about jobs: noted with the pool's lock held, and told without it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from prefork._engine.witness import Witness, Witnesses
from prefork._ipc.outcome import Large, decode
from prefork._policy.job import Job, Wakes
from prefork._policy.terms import JobOnTerms
from prefork._policy.timers import Expiry
from prefork._system.uninterrupted import uninterrupted

__all__ = [
    "ACCEPTED",
    "ERROR",
    "EXPIRED",
    "UNDECIDED",
    "Accepted",
    "OutcomeQueue",
    "Undecided",
]

# What an outcome may be, beside the kinds of reports that end a job.
ERROR: Final = -1  # the job has failed; the detail is the exception
ACCEPTED: Final = -2  # a worker has started it; an `Accepted`
EXPIRED: Final = -3  # a time limit has passed; an `Expiry`
UNDECIDED: Final = -4  # it may be run again, once it is known what it has raised; an `Undecided`


class Accepted(NamedTuple):
    """A worker has started the job."""

    pid: int
    started: float  # monotonic, seconds


class Judge(Protocol):
    def __call__(self, job: JobOnTerms, ok: bool, value: Any) -> bool:
        """Whether this is the job's outcome; else it is run again, or has another one."""


class Undecided(NamedTuple):
    """A report that may be the job's outcome. What is in it can only be seen without the lock."""

    kind: int
    payload: Any
    judge: Judge


class OutcomeQueue:
    """What is to be told about jobs, in the order in which it happened.

    Args:
        wake: called when there is something that the result handler does not know of.
        witnesses: are told of each.
    """

    def __init__(self, wake: Callable[[], object], witnesses: Witnesses) -> None:
        self._wake = wake
        self._witnesses = witnesses
        self._queue: deque[tuple[Job, int, Any]] = deque()
        self.is_reader_adding = False  # the result handler is adding, and will look by itself

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, job: Job, kind: int, detail: object) -> None:
        """Of a kind of report that ends a job, with its payload; or of a kind of those above."""
        self._queue.append((job, kind, detail))
        if not self.is_reader_adding:
            self._wake()

    def deliver(self) -> None:
        """Pass all of them on; unpickling happens here, without the lock. Who waits is woken at the
        end, and only once: a thread that is woken before has to wait for the interpreter."""
        waiting: dict[Wakes, None] = {}
        try:
            while self._queue:
                job, kind, detail = self._queue.popleft()
                condition = _deliver(job, kind, detail, self._witnesses.all)
                if condition is not None:
                    waiting[condition] = None
                    if type(detail) is Large:
                        condition.notify_all()  # large ones take their time
        finally:
            for condition in waiting:
                condition.notify_all()


def _deliver(job: Job, kind: int, detail: Any, witnesses: tuple[Witness, ...]) -> Wakes | None:
    """Returns what threads wait for that this concerns."""
    sink = job.sink
    if kind == ACCEPTED:
        accepted: Accepted = detail
        sink.job_started(job, accepted.pid, accepted.started)
        return None
    if kind == EXPIRED:
        expiry: Expiry = detail
        sink.limit_passed(job, expiry.soft, expiry.timeout)
        return None
    if kind == UNDECIDED:
        assert isinstance(job, JobOnTerms)
        return _decide(job, detail, witnesses)
    job.leave_sink()
    try:
        ok, value = (False, detail) if kind == ERROR else decode(kind, detail)
        for witness in witnesses:
            witness.outcome(job, ok, value)
        return sink.job_done(job, ok, value)
    except BaseException as exc:
        sink.job_done(job, False, exc)
        raise


def _decide(job: JobOnTerms, report: Undecided, witnesses: tuple[Witness, ...]) -> Wakes | None:
    """The same with what may be followed by another run of the job. Without threads a signal's
    handler may raise in here: then that is what the job fails with, and it goes on its way."""
    interruption: BaseException | None = None
    try:
        ok, value = decode(report.kind, report.payload)
    except BaseException as exc:
        ok, value, interruption = False, exc, exc
    condition = uninterrupted(lambda: _tell_if_final(job, report.judge, ok, value, witnesses))
    if interruption is not None:
        raise interruption
    return condition


def _tell_if_final(
    job: JobOnTerms, judge: Judge, ok: bool, value: Any, witnesses: tuple[Witness, ...]
) -> Wakes | None:
    if not judge(job, ok, value):
        return None
    for witness in witnesses:
        witness.outcome(job, ok, value)
    sink = job.sink
    job.leave_sink()
    return sink.job_done(job, ok, value)
