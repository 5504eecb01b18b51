"""What can be seen of a running pool: immutable snapshots."""

# Annotations are evaluated here: as strings, they would be looked up where the names are public.

import enum
from typing import Any, NamedTuple

from prefork._public import public

__all__ = [
    "FailureCounts",
    "Histogram",
    "PoolStatistics",
    "WorkerExit",
    "WorkerState",
    "WorkerStatistics",
]


@public
class WorkerState(enum.StrEnum):
    """Where a worker is in its life.

    STARTING: it has not run its initializer yet.
    IDLE, BUSY: it waits for a job, or runs one.
    RETIRING: it leaves after what it runs, or is being killed.
    """

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    RETIRING = "retiring"


@public
class WorkerStatistics(NamedTuple):
    """One worker, at the moment of asking.

    Attributes:
        pid: its process id.
        name: of its process, as `multiprocessing` has it.
        state: where it is in its life.
        job: the number of the job that it runs, or None.
        function: the qualified name of what that calls, or None.
        since: when it took that job, or began with that item (seconds of `time.monotonic`); or
            None.
        tasks: how many it has finished.
        memory: what it has resident, KiB; None where that cannot be told.
        item: of a chunk whose calls have outcomes of their own (`imap`, `each_async`), which one it
            runs, from 0 on; or None.
        since_time: `since` as the time of day (`time.time`).
    """

    pid: int
    name: str
    state: WorkerState
    job: int | None
    function: str | None
    since: float | None
    tasks: int
    memory: int | None
    item: int | None = None
    since_time: float | None = None


@public
class WorkerExit(NamedTuple):
    """One worker that has ended.

    Attributes:
        pid: its process id.
        name: of its process.
        exitcode: as in `multiprocessing.Process.exitcode`: negative is the number of a signal, None
            is unknown.
        reason: why it ended, in words.
        tasks: how many it had finished.
        time: when that was seen, as the time of day (`time.time`).
    """

    pid: int
    name: str
    exitcode: int | None
    reason: str
    tasks: int
    time: float = 0.0


@public
class FailureCounts(NamedTuple):
    """How many jobs had an error, by what it was.

    Attributes:
        raised: what the function has raised, a soft time limit among it; or what came back could
            not be sent.
        worker_lost: the worker has ended while it ran the job.
        out_of_memory: the same, and the kernel has killed it for lack of memory.
        time_limit, deadline, memory_limit: the job had more than it may have.
        terminated: by the caller, or with the pool.
        cancelled: before it was started.
        other: it could not be sent to a worker, or the pool could start none.
    """

    raised: int = 0
    worker_lost: int = 0
    out_of_memory: int = 0
    time_limit: int = 0
    deadline: int = 0
    memory_limit: int = 0
    terminated: int = 0
    cancelled: int = 0
    other: int = 0


@public
class Histogram(NamedTuple):
    """How long something took, how often.

    Attributes:
        bounds: of the buckets, in seconds: always the same ones.
        counts: one more than those. Each is how many took at most so long, and longer than the
            bound before; the last one, how many took longer than any.
        seconds: all of them together.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    seconds: float = 0.0


@public
class PoolStatistics(NamedTuple):
    """A pool, at the moment of asking. Jobs are counted, not the items of a `map`.

    Attributes:
        processes: how many workers there should be.
        workers: those that there are.
        queued: how many jobs wait: no worker has started them, or they are to be run again.
        running: how many are run now.
        finished: how many had a result.
        failed: how many had an error.
        retried: how many runs have followed one that had failed.
        exits: the last workers that have ended, the newest at the end.
        ended: how many workers have ended until now.
        failures: `failed`, by what it was.
        queue_time: how long jobs have waited for a worker, from when they were handed in, or were
            to be run again, until they were started. Of each run that is over.
        run_time: how long these runs took.
        time: of this snapshot, as the time of day (`time.time`).
        monotonic: the same by `time.monotonic`.
        shared: how many objects this process shares with workers, of any pool; see `share`.
        shared_bytes: so many bytes they are.
    """

    processes: int
    workers: tuple[WorkerStatistics, ...]
    queued: int
    running: int
    finished: int
    failed: int
    retried: int
    exits: tuple[WorkerExit, ...]
    ended: int = 0
    failures: FailureCounts = FailureCounts()
    queue_time: Histogram = Histogram()
    run_time: Histogram = Histogram()
    time: float = 0.0
    monotonic: float = 0.0
    shared: int = 0
    shared_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The same in dicts, lists, numbers and strings: what JSON can say."""
        plain: dict[str, Any] = _plain(self)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if hasattr(value, "_fields"):
        return {name: _plain(each) for name, each in zip(value._fields, value, strict=True)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value
