"""A pool of worker processes that never hangs, never loses a job, and keeps its time limits.

    from prefork import Pool

Layout, from the top; a module imports only from those below it:

    cli, __main__     `prefork map`: a function over many inputs, from the command line
    celery            celery's worker pool
    taskpool          `TaskPool`: calls with callbacks, for task workers
    tasks             one call in it
    initializer       what its processes do first
    pool              `Pool`: the public verbs
    mapping           those of them that call a function many times
    engine            a running pool: its workers, its jobs, its roles, what drives them
    drivers           threads, or an event loop, that have the roles do their work
    handlers          the roles
    observation       statistics, and the stacks of the workers
    staff             the workers of a running pool: hired, watched, replaced, buried
    starts            the start of a worker, where it may take for ever
    enforcement       what ends single jobs: limits, `terminate`, `cancel`
    recruiter         starts workers, and judges starts that fail
    exchange          what the workers report; the end of a pool
    dispatcher        the jobs of a running pool, on their way to the workers
    accounts          every job that was taken, until its outcome is known
    news              what is to be told about jobs, and to whom
    crew              one worker as the pool knows it
    jobs              makes jobs of calls
    worker            what runs in the child process
    handles           what callers hold: the classes of the two below that are not compiled
    iterators         lazy iterators over results
    contexts          contexts whose pools are ours; how programs that cannot be changed get them
    _compat           what programs expect because `multiprocessing` has it; hints
    results           result handles
    owners            what a result asks of its pool (types)
    waiting           where threads wait for one another
    scheduler         who gets which task        (policy, no I/O)
    deadlines         what expires when          (policy, no I/O)
    start_notices             whose start is still to be told (policy, no I/O)
    chunks            how `map` divides input    (policy, no I/O)
    process           one child process to the operating system
    channel           one channel to a child, refereed by the kernel
    payloads           large objects on their way to or from a child
    files             anonymous files of memory, and their use again
    stacks            the Python stack of a worker, whatever it is doing
    watch             waiting for many descriptors
    cpus, memory      how many CPUs may be used; how much memory is used
    cgroups           the control groups that limit both
    forks             what a forked child must not keep
    calls             how a call is pickled
    journal           the pool's log
    signals           functions of `signal` as they are in C
    arguments         checks of what users pass in
    statistics        what can be seen, as immutable snapshots
    messages          what travels
    encoding          the error that is also the standard library's
    errors            all exceptions
    compiler          words to the compiler
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing import TimeoutError

    from prefork._ipc.encoding_error import MaybeEncodingError
    from prefork._ipc.outcome import Outcome
    from prefork.contexts import get_context, install, uninstall
    from prefork.errors import (
        MaybeDecodingError,
        MemoryLimitExceeded,
        PoolBrokenError,
        PreforkError,
        RemoteTraceback,
        SoftTimeLimitExceeded,
        Terminated,
        TimeLimitExceeded,
        WorkerLostError,
    )
    from prefork.pool import Pool
    from prefork.results import ApplyResult, IMapIterator, IMapUnorderedIterator, MapResult
    from prefork.statistics import PoolStatistics, WorkerExit, WorkerState, WorkerStatistics
    from prefork.taskpool.pool import TaskPool

__version__ = "0.1.0"

__all__ = [
    "ApplyResult",
    "IMapIterator",
    "IMapUnorderedIterator",
    "MapResult",
    "MaybeDecodingError",
    "MaybeEncodingError",
    "MemoryLimitExceeded",
    "Outcome",
    "Pool",
    "PoolBrokenError",
    "PoolStatistics",
    "PreforkError",
    "RemoteTraceback",
    "SoftTimeLimitExceeded",
    "TaskPool",
    "Terminated",
    "TimeLimitExceeded",
    "TimeoutError",
    "WorkerExit",
    "WorkerLostError",
    "WorkerState",
    "WorkerStatistics",
    "get_context",
    "install",
    "uninstall",
]

_HOMES = {
    "prefork.contexts": ["get_context", "install", "uninstall"],
    "prefork._ipc.encoding_error": ["MaybeEncodingError"],
    "prefork.results": ["ApplyResult", "IMapIterator", "IMapUnorderedIterator", "MapResult"],
    "prefork._ipc.outcome": ["Outcome"],
    "prefork.pool": ["Pool"],
    "prefork.statistics": ["PoolStatistics", "WorkerExit", "WorkerState", "WorkerStatistics"],
    "prefork.taskpool": ["TaskPool"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import what is asked for, and only that: a worker process needs a third of it (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF.get(name, "prefork.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
