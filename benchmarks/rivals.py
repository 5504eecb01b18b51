"""The pools that `chaos.py storm` can drive, behind one small interface; each with its own calls.

What a pool has no call for is left out of its storm: a pool without time limits gets no task that
needs one, one that cannot end a job is not asked to.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import multiprocessing
import random
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import process as cf_process
from typing import Any, ClassVar

import misdeeds
from ledger import Fate
from misdeeds import AMPLE, HARD_LIMIT, RESTING_MEMORY, SOFT_LIMIT, Conduct, Mischief, Task, run
from trials import KINDS

import prefork
from prefork.adapters import AdapterPool

RECYCLED_AFTER = 50  # tasks

_UNLIMITED = frozenset(c for c in Conduct if not c.needs_limit and c is not Conduct.LATE)


class Rival:
    """One pool. `kinds`: of storms; `conducts`: what its tasks may do; `deeds`: what may be done to
    it; `strict`: it is one of ours."""

    kinds: ClassVar[Collection[str]] = ("tasks",)  # the others are made for ours
    conducts: ClassVar[Collection[Conduct]] = _UNLIMITED
    deeds: ClassVar[tuple[str, ...]] = ("kill", "stop")
    strict: ClassVar[bool] = False
    fates: ClassVar[dict[type[BaseException], Fate]] = {}
    silence: ClassVar[tuple[type[BaseException], ...]] = (
        TimeoutError,
        multiprocessing.TimeoutError,
    )

    def __init__(self, processes: int, method: str, log: str) -> None:
        raise NotImplementedError

    def submit(self, task: Task, called: Callable[[object], None]) -> Any:
        raise NotImplementedError

    def result(self, handle: Any, timeout: float) -> Any:
        return handle.result(timeout)

    def fate(self, error: BaseException) -> Fate:
        if isinstance(error, Mischief):
            return Fate.RAISED
        return next((f for kind, f in self.fates.items() if isinstance(error, kind)), Fate.WRONG)

    @property
    def is_broken(self) -> bool:
        """Whether it takes no more jobs, so that its user has to make another one."""
        return False

    def workers(self) -> Iterable[int]:
        """Their process ids, if it tells them."""
        return ()

    def end(self, handle: Any, rng: random.Random) -> bool:
        """Cancel or terminate a job; whether that may have had an effect."""
        raise NotImplementedError

    def end_on(self, pid: int) -> bool:
        """Terminate the job that this worker runs; whether it was running any."""
        raise NotImplementedError

    def manage(self, deed: str, few: int) -> bool:
        """`grow`, `shrink` or `restart`."""
        raise NotImplementedError

    def close(self, timeout: float) -> bool:
        """End it in good order; whether it has ended in time."""
        raise NotImplementedError


def limits(task: Task) -> dict[str, float]:
    if task.conduct is Conduct.LATE:
        return {"soft_timeout": SOFT_LIMIT, "timeout": AMPLE}
    if task.conduct.needs_limit:
        return {"timeout": HARD_LIMIT}
    return {"soft_timeout": AMPLE, "timeout": AMPLE} if task.limited else {}


class Prefork(Rival):
    kinds = KINDS
    conducts = frozenset(Conduct)
    deeds = ("kill", "stop", "end", "end on", "grow", "shrink", "restart", "kill template")
    strict = True
    fates: ClassVar[dict[type[BaseException], Fate]] = {
        prefork.WorkerLostError: Fate.LOST,
        prefork.TimeLimitExceeded: Fate.LIMIT,
        prefork.SoftTimeLimitExceeded: Fate.SOFT,
        prefork.Terminated: Fate.ENDED,
    }

    def __init__(self, processes: int, method: str, log: str) -> None:
        self.pool = AdapterPool(
            processes,
            misdeeds.open_log,
            (log,),
            maxtasksperchild=RECYCLED_AFTER,
            maxtasksperchild_jitter=10,
            max_memory_per_child=RESTING_MEMORY,
            lost_worker_timeout=3600.0,  # no task leaves a process that could still answer
            context=method,
            max_restarts=1000,  # random kills hit workers that are starting, too
        )

    @property
    def is_broken(self) -> bool:
        return bool(self.pool.is_broken)

    def submit(self, task: Task, called: Callable[[object], None]) -> Any:
        return self.pool.apply_async(
            run,
            (task,),
            callback=called,
            error_callback=called,
            retries=self._retry(task),
            **limits(task),  # type: ignore[arg-type]
        )

    @staticmethod
    def _retry(task: Task) -> Any:
        """Every second one of those that raise waits for its next run."""
        from prefork import Retry, WorkerLostError

        if not task.retries or not task.conduct.is_retried:
            return task.retries
        return Retry(task.retries, (WorkerLostError, Mischief), backoff=0.01 * (task.number % 2))

    def result(self, handle: Any, timeout: float) -> Any:
        return handle.get(timeout)

    def end(self, handle: Any, rng: random.Random) -> bool:
        return bool(handle.cancel() if rng.random() < 0.5 else handle.terminate())

    def workers(self) -> Iterable[int]:
        return [worker.pid for worker in self.pool.statistics().workers]

    def end_on(self, pid: int) -> bool:
        return self.pool.terminate_job(pid)

    def manage(self, deed: str, few: int) -> bool:
        if deed == "restart":
            self.pool.restart()
        elif deed == "grow" and self.pool.processes < few + 2:
            self.pool.grow()
        elif deed == "shrink" and self.pool.processes > few:
            self.pool.shrink()
        else:
            return False
        return True

    def close(self, timeout: float) -> bool:
        self.pool.close()
        return self.pool.join(timeout)


class PreforkExecutor(Prefork):
    """The same pool, by the interface of `concurrent.futures`."""

    kinds = ("tasks", "threads", "logging", "large", "descriptors", "stopped")
    deeds = ("kill", "stop", "end", "grow", "shrink", "restart", "kill template")
    fates: ClassVar[dict[type[BaseException], Fate]] = Prefork.fates | {
        concurrent.futures.CancelledError: Fate.ENDED
    }
    is_broken = False

    def __init__(self, processes: int, method: str, log: str) -> None:
        self.executor = prefork.ProcessPoolExecutor(
            processes,
            method,
            misdeeds.open_log,
            (log,),
            max_tasks_per_child=RECYCLED_AFTER,
            max_tasks_per_child_jitter=10,
            max_memory_per_child=RESTING_MEMORY,
            lost_worker_timeout=3600.0,
            max_restarts=1000,
        )
        self.pool: Any = self.executor.pool

    def submit(self, task: Task, called: Callable[[object], None]) -> Any:
        view = self.executor.options(retries=task.retries, **limits(task))
        future = view.submit(run, task)
        future.add_done_callback(called)
        return future

    def result(self, handle: Any, timeout: float) -> Any:
        return handle.result(timeout)

    def close(self, timeout: float) -> bool:
        self.executor.shutdown()
        return True


class Multiprocessing(Rival):
    def __init__(self, processes: int, method: str, log: str) -> None:
        context = multiprocessing.get_context(method)
        self.pool: Any = context.Pool(processes, misdeeds.open_log, (log,), RECYCLED_AFTER)

    def submit(self, task: Task, called: Callable[[object], None]) -> Any:
        return self.pool.apply_async(run, (task,), callback=called, error_callback=called)

    def result(self, handle: Any, timeout: float) -> Any:
        return handle.get(timeout)

    def close(self, timeout: float) -> bool:
        self.pool.close()
        self.pool.join()
        return True


class Billiard(Multiprocessing):
    conducts = frozenset(Conduct)
    deeds = ("kill", "stop", "grow", "shrink")

    def __init__(self, processes: int, method: str, log: str) -> None:
        billiard = importlib.import_module("billiard")
        pools = importlib.import_module("billiard.pool")
        errors = importlib.import_module("billiard.exceptions")
        self.fates = {
            errors.WorkerLostError: Fate.LOST,
            errors.SoftTimeLimitExceeded: Fate.SOFT,
            errors.TimeLimitExceeded: Fate.LIMIT,
            errors.Terminated: Fate.ENDED,
        }
        self.silence = (*Rival.silence, errors.TimeoutError)
        self.pool = pools.Pool(
            processes,
            misdeeds.open_log,
            (log,),
            maxtasksperchild=RECYCLED_AFTER,
            max_memory_per_child=RESTING_MEMORY,
            enable_timeouts=True,
            context=billiard.get_context(method),
        )

    def submit(self, task: Task, called: Callable[[object], None]) -> Any:
        return self.pool.apply_async(
            run, (task,), callback=called, error_callback=called, **limits(task)
        )

    def fate(self, error: BaseException) -> Fate:
        return super().fate(getattr(error, "exc", error))  # its own errors come wrapped

    def manage(self, deed: str, few: int) -> bool:
        size = self.pool._processes
        if deed == "grow" and size < few + 2:
            self.pool.grow()
        elif deed == "shrink" and size > few:
            self.pool.shrink()
        else:
            return False
        return True


class Executor(Rival):
    """A `concurrent.futures` executor breaks as a whole when a worker dies; then its user makes
    another one."""

    fates: ClassVar[dict[type[BaseException], Fate]] = {
        cf_process.BrokenProcessPool: Fate.LOST,
        concurrent.futures.CancelledError: Fate.ENDED,
    }
    deeds = ("kill", "stop", "end")

    def __init__(self, processes: int, method: str, log: str) -> None:
        context = multiprocessing.get_context(method)
        self.pool: Any = concurrent.futures.ProcessPoolExecutor(
            processes, context, misdeeds.open_log, (log,)
        )

    def submit(self, task: Task, called: Callable[[object], None]) -> Any:
        future = self.pool.submit(run, task)
        future.add_done_callback(called)
        return future

    @property
    def is_broken(self) -> bool:
        return bool(self.pool._broken)

    def end(self, handle: Any, rng: random.Random) -> bool:
        return bool(handle.cancel())

    def close(self, timeout: float) -> bool:
        self.pool.shutdown()
        return True


class Loky(Executor):
    def __init__(self, processes: int, method: str, log: str) -> None:
        loky = importlib.import_module("loky")
        self.pool = loky.ProcessPoolExecutor(
            processes, initializer=misdeeds.open_log, initargs=(log,)
        )

    @property
    def is_broken(self) -> bool:
        return bool(self.pool._flags.broken)


class Pebble(Executor):
    conducts = frozenset(set(Conduct) - {Conduct.LATE})
    deeds = ("kill", "stop", "end")

    def __init__(self, processes: int, method: str, log: str) -> None:
        pebble = importlib.import_module("pebble")
        self.fates = {
            pebble.ProcessExpired: Fate.LOST,
            concurrent.futures.CancelledError: Fate.ENDED,
        }
        self.pool = pebble.ProcessPool(
            processes,
            max_tasks=RECYCLED_AFTER,
            initializer=misdeeds.open_log,
            initargs=[log],
            context=multiprocessing.get_context(method),
        )

    def submit(self, task: Task, called: Callable[[object], None]) -> Any:
        future = self.pool.schedule(run, args=[task], timeout=limits(task).get("timeout"))
        future.add_done_callback(called)
        return future

    def result(self, handle: Any, timeout: float) -> Any:
        """Its time limit and a wait that was too long are told by the same exception."""
        if not concurrent.futures.wait([handle], timeout).done:
            raise _Silence
        return handle.result()

    silence = ()

    def fate(self, error: BaseException) -> Fate:
        if isinstance(error, _Silence):
            return Fate.SILENCE
        return Fate.LIMIT if isinstance(error, TimeoutError) else super().fate(error)

    @property
    def is_broken(self) -> bool:
        return not self.pool.active

    def close(self, timeout: float) -> bool:
        self.pool.close()
        try:
            self.pool.join(timeout)
        except TimeoutError:
            return False
        return True


class Deadpool(Pebble):
    """It limits memory, the number of tasks and, by job, the time; the limit kills the worker."""

    conducts = frozenset(set(Conduct) - {Conduct.LATE})

    def __init__(self, processes: int, method: str, log: str) -> None:
        deadpool = importlib.import_module("deadpool")
        self.fates = {
            deadpool.ProcessError: Fate.LOST,
            concurrent.futures.CancelledError: Fate.ENDED,
        }
        self.pool = deadpool.Deadpool(
            processes,
            max_tasks_per_child=RECYCLED_AFTER,
            max_worker_memory_bytes=RESTING_MEMORY << 10,
            initializer=misdeeds.open_log,
            initargs=(log,),
            mp_context=multiprocessing.get_context(method),
        )

    def submit(self, task: Task, called: Callable[[object], None]) -> Any:
        timeout = limits(task).get("timeout")
        future = self.pool.submit(run, task, deadpool_timeout=timeout)
        future.add_done_callback(called)
        return future

    @property
    def is_broken(self) -> bool:
        return bool(self.pool.closed)

    def close(self, timeout: float) -> bool:
        self.pool.shutdown()
        return True


class _Silence(Exception):
    pass


RIVALS: dict[str, type[Rival]] = {
    "prefork": Prefork,
    "prefork-executor": PreforkExecutor,
    "multiprocessing": Multiprocessing,
    "billiard": Billiard,
    "executor": Executor,
    "pebble": Pebble,
    "deadpool": Deadpool,
    "loky": Loky,
}
