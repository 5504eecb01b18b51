"""What can be seen of a running pool: immutable snapshots."""

import enum
from typing import NamedTuple

from prefork._public import public

__all__ = ["PoolStatistics", "WorkerExit", "WorkerState", "WorkerStatistics"]


@public
class WorkerState(enum.StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"  # it has not run its initializer yet
    IDLE = "idle"
    BUSY = "busy"
    RETIRING = "retiring"  # it leaves after what it runs, or is being killed


@public
class WorkerStatistics(NamedTuple):
    """One worker, at the moment of asking."""

    pid: int
    name: str
    state: WorkerState
    job: int | None  # that it runs
    function: str | None  # of that job
    since: float | None  # when it took that job (`time.monotonic`, seconds)
    tasks: int  # that it has finished
    memory: int | None  # resident, KiB; None where that cannot be told


@public
class WorkerExit(NamedTuple):
    """One worker that has ended."""

    pid: int
    name: str
    exitcode: int | None  # as in `multiprocessing.Process.exitcode`
    reason: str  # in words
    tasks: int  # that it had finished


@public
class PoolStatistics(NamedTuple):
    """A pool, at the moment of asking. Jobs are counted, not the items of a `map`."""

    processes: int  # how many workers there should be
    workers: tuple[WorkerStatistics, ...]
    queued: int  # jobs that no worker has started
    running: int
    finished: int  # with a result
    failed: int  # with an error
    retried: int  # runs that were repeated because their worker was lost
    exits: tuple[WorkerExit, ...]  # the last ones, the newest at the end
