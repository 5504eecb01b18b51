"""What can be seen of a running pool: immutable snapshots."""

# Annotations are evaluated here: as strings, they would be looked up where the names are public.

import enum
from typing import NamedTuple

from prefork._public import public

__all__ = ["PoolStatistics", "WorkerExit", "WorkerState", "WorkerStatistics"]


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
    """

    pid: int
    name: str
    exitcode: int | None
    reason: str
    tasks: int


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
    """

    processes: int
    workers: tuple[WorkerStatistics, ...]
    queued: int
    running: int
    finished: int
    failed: int
    retried: int
    exits: tuple[WorkerExit, ...]
