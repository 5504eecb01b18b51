"""A pool of worker processes that never hangs, never loses a job, and keeps its time limits.

    from prefork import Pool

The rooms, from the top; a module imports only from its own room and those below:

    cli, __main__         `prefork map`, `prefork run`: a function, or a command, over many inputs;
                          `prefork ps`, `top` and `stacks`: what pools do
    celery                celery's worker pool; and a pool whose processes are its workers'
    joblib                the backend for joblib, and so for scikit-learn
    metrics               a pool's figures for Prometheus and OpenTelemetry
    cluster               calls that run on other machines, whatever takes them there
    taskpool              `TaskPool`: calls with callbacks, for task workers
    contexts              this pool in the place of `multiprocessing`'s
    executor              `ProcessPoolExecutor`: the interface of `concurrent.futures`
    adapters              the `Pool` of those who make another interface of it
    pool                  `Pool`: the public verbs
    _verbs                the calls that a pool has, and a view of it with other limits
    results               what users hold: handles and iterators
    _compat               what programs expect because `multiprocessing` has it; hints
    _results              the same, as the pool fills them
    _engine               one running pool: `engine` makes the parts, `drivers` have them work
    _policy, _worker      what decides; what runs in a worker process
    _ipc                  what travels between them, and the channel that it goes through
    _observe              what is seen of tasks while they run: progress, log records, output
    _inspection           how pools are asked from outside what they do
    _report               what is kept of what was recorded, and the page that is made of it
    _system               all that touches the operating system
    errors, statistics    what goes wrong; what can be seen
    buildinfo             whether this is compiled

A job, from `apply_async` to `get()` (each name is a method, in the module of its class):

    the caller          Pool.apply_async
                          JobFactory.call            pickles the call
                          Dispatcher.submit          into the open jobs; which worker gets it?
                            Scheduler.submit           one that has nothing or little to do; else
                                                       the queue, until `Dispatcher.hand_out`
                            Channel.stage, send        the pickle, then the ticket
    the worker          WorkerEnd.receive            who reads the ticket owns the job
                          Worker._run_task           unpickle, call, pickle
                          WorkerEnd.report
    the pool's thread   ResultHandler                its outbox is readable
                          Collector.collect          reads reports; sends more
                          OutcomeQueue.deliver       unpickles, tells the result, wakes who waits
    the caller          ApplyResult.get

A worker's death, from the signal to the error:

    the pool's thread   Supervisor                   its process has ended (a pidfd is readable)
                          WorkerSupervisor.supervise
                            Collector.isolate          sends it nothing more, takes back what it
                                                       has not read, reads its last reports
                            Collector.lose_job         what is left was running; of a chunk, the
                                                       items that were done are on its page
                              Retrier.fail               it fails, or is run again, now or later
                            Dispatcher.hand_out        what it had not read goes to other workers
                            Spawner.fill_up            starts a successor

A time limit: `Timers` know when to look, `TimeLimits` look at the worker's board, `Terminator`
isolates the worker, looks again, and kills it; from there on it is a death like any other.

The lives of workers and jobs are tables: `WORKER_LIFE` (`_engine/worker_handle.py`), `JOB_LIFE`
(`_policy/job.py`). All that one lock guards is in `_engine/state.py`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing import TimeoutError

    from prefork._compat.broken import BrokenProcessPool
    from prefork._engine.recording import Recording
    from prefork._ipc.encoding_error import MaybeEncodingError
    from prefork._ipc.outcome import Outcome
    from prefork._ipc.shared import Shared, share
    from prefork._observe.lines import OutputLine
    from prefork._policy.retry import Attempt, Retry
    from prefork._verbs.executors import PoolExecutor
    from prefork._verbs.futures import Future
    from prefork._verbs.view import PoolView
    from prefork._worker.current import CurrentJob, CurrentWorker, current_worker
    from prefork.buildinfo import BuildInfo, build_info
    from prefork.contexts import get_context, install, uninstall
    from prefork.errors import (
        Cancelled,
        DeadlineExceeded,
        LimitExceeded,
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
    from prefork.executor import ProcessPoolExecutor
    from prefork.pool import Pool
    from prefork.results import ApplyResult, IMapIterator, IMapUnorderedIterator, MapResult
    from prefork.statistics import (
        FailureCounts,
        Histogram,
        PoolStatistics,
        WorkerExit,
        WorkerState,
        WorkerStatistics,
    )
    from prefork.taskpool.pool import TaskPool

__version__ = "0.2.0"

__all__ = [
    "ApplyResult",
    "Attempt",
    "BrokenProcessPool",
    "BuildInfo",
    "Cancelled",
    "CurrentJob",
    "CurrentWorker",
    "DeadlineExceeded",
    "FailureCounts",
    "Future",
    "Histogram",
    "IMapIterator",
    "IMapUnorderedIterator",
    "LimitExceeded",
    "MapResult",
    "MaybeDecodingError",
    "MaybeEncodingError",
    "MemoryLimitExceeded",
    "Outcome",
    "OutputLine",
    "Pool",
    "PoolBrokenError",
    "PoolExecutor",
    "PoolStatistics",
    "PoolView",
    "PreforkError",
    "ProcessPoolExecutor",
    "Recording",
    "RemoteTraceback",
    "Retry",
    "Shared",
    "SoftTimeLimitExceeded",
    "TaskPool",
    "Terminated",
    "TimeLimitExceeded",
    "TimeoutError",
    "WorkerExit",
    "WorkerLostError",
    "WorkerState",
    "WorkerStatistics",
    "build_info",
    "current_worker",
    "get_context",
    "install",
    "share",
    "uninstall",
]

_HOMES = {
    "prefork._compat.broken": ["BrokenProcessPool"],
    "prefork.contexts": ["get_context", "install", "uninstall"],
    "prefork.executor": ["ProcessPoolExecutor"],
    "prefork._ipc.encoding_error": ["MaybeEncodingError"],
    "prefork.results": ["ApplyResult", "IMapIterator", "IMapUnorderedIterator", "MapResult"],
    "prefork._ipc.outcome": ["Outcome"],
    "prefork._ipc.shared": ["Shared", "share"],
    "prefork._observe.lines": ["OutputLine"],
    "prefork._policy.retry": ["Attempt", "Retry"],
    "prefork.buildinfo": ["BuildInfo", "build_info"],
    "prefork.pool": ["Pool"],
    "prefork.statistics": [
        "FailureCounts",
        "Histogram",
        "PoolStatistics",
        "WorkerExit",
        "WorkerState",
        "WorkerStatistics",
    ],
    "prefork.taskpool": ["TaskPool"],
    "prefork._engine.recording": ["Recording"],
    "prefork._verbs.executors": ["PoolExecutor"],
    "prefork._verbs.futures": ["Future"],
    "prefork._verbs.view": ["PoolView"],
    "prefork._worker.current": ["CurrentJob", "CurrentWorker", "current_worker"],
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
