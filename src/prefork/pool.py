"""`Pool`: the public verbs. What they do is done by the roles in `prefork.handlers`."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import util
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, Self, TypeVar

from prefork import errors, handlers, process
from prefork.channel import INLINE, Parcel
from prefork.chunks import FIRST_CHUNKS, AdaptiveChunks, fixed_chunks
from prefork.cpus import available_cpus
from prefork.dispatcher import Dispatcher, Options, State
from prefork.messages import ACCEPT, CALL, EACH, MAP, STARMAP, dumps, function_name, pack
from prefork.results import (
    ApplyResult,
    Callback,
    IMapIterator,
    IMapUnorderedIterator,
    MapResult,
)
from prefork.scheduler import Job, JobOwner
from prefork.worker import WorkerOptions

__all__ = ["Pool"]

Items = TypeVar("Items", bound=IMapIterator)

BUFFERED_PER_WORKER = 32
"""Items that `imap` reads ahead, per worker: enough for batches of short tasks."""

MAX_OPEN_PARCELS = 128
"""Large tasks whose files are made at once; more wait in memory, so that descriptors are left."""


class Pool:
    """A pool of worker processes that run functions.

    Args:
        processes: the number of workers. None: as many as this process may use CPUs, by its
            affinity and its control group's quota.
        initializer: called in each worker as `initializer(*initargs)` when it starts. If it
            raises, the pool fails with `PoolBrokenError`.
        initargs: its arguments.
        maxtasksperchild: a worker is replaced after so many tasks; None: never.
        timeout: the hard time limit of each task, in seconds from its start; its worker is
            killed and the job fails with `TimeLimitExceeded`. None: no limit.
        soft_timeout: the soft limit, likewise: `SoftTimeLimitExceeded` is raised in the task.
        lost_worker_timeout: when a worker has died but a process that it forked could still
            send the result, how many seconds to wait for that.
        context: a start method's context, as from `multiprocessing.get_context("spawn")`. None:
            the default one.

    Raises:
        ValueError: `processes`, `maxtasksperchild` or a limit is out of range.
        TypeError: an argument is of the wrong type.

    The seed of the interface is `multiprocessing.Pool`, whose documentation applies.
    """

    ResultHandler = handlers.ResultHandler
    TaskHandler = handlers.TaskHandler
    TimeoutHandler = handlers.TimeoutHandler
    Supervisor = handlers.Supervisor
    Process = process.Process
    SoftTimeLimitExceeded = errors.SoftTimeLimitExceeded

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        lost_worker_timeout: float = 10.0,
        *,
        context: BaseContext | None = None,
    ) -> None:
        if processes is None:
            processes = available_cpus()
        _check_count("processes", processes)
        if maxtasksperchild is not None:
            _check_count("maxtasksperchild", maxtasksperchild)
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, not {initializer!r}")
        _check_seconds(timeout=timeout, soft_timeout=soft_timeout)
        _check_seconds(zero=True, lost_worker_timeout=lost_worker_timeout)
        options = Options(
            processes,
            WorkerOptions(initializer, tuple(initargs), maxtasksperchild),
            context or multiprocessing.get_context(),
            self.Process,
        )
        self._lost_worker_timeout = lost_worker_timeout
        self._dispatcher = dispatcher = Dispatcher(options)
        self._run_callback = handlers.CallbackRunner()
        self._result_handler = self.ResultHandler(
            dispatcher.outboxes,
            dispatcher.collect,
            dispatcher.cache,
            dispatcher.outboxes.ready,
            dispatcher.check_done,
            dispatcher.slot_free,
        )
        self._timeout_handler = self.TimeoutHandler(
            dispatcher, dispatcher.cache, soft_timeout, timeout
        )
        self._supervisor = self.Supervisor(dispatcher)
        dispatcher.own_threads = (self._result_handler, self._supervisor, self._timeout_handler)
        dispatcher.on_deadline = self._timeout_handler.rearm
        dispatcher.at_end += [
            self._result_handler.stop,
            self._result_handler.join,
            self._timeout_handler.stop,
            self._timeout_handler.join,
            self._run_callback.stop,
        ]
        # At the interpreter's exit, before multiprocessing waits for its children.
        finalizer = util.Finalize(None, dispatcher.terminate, exitpriority=15)
        dispatcher.at_end.append(finalizer.cancel)
        try:
            for _ in range(processes):
                dispatcher.hire()
        except BaseException:
            dispatcher.request_termination("the pool could not be started")
            raise
        finally:
            self._result_handler.start(dispatcher.crash)
            self._supervisor.start(dispatcher.crash)

    # ---- one call

    def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
    ) -> Any:
        """Call `func(*args, **kwds)` in a worker and return its result."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callback = None,
        error_callback: Callback = None,
        accept_callback: Callback = None,
        timeout_callback: Callback = None,
        waitforslot: bool = False,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        lost_worker_timeout: float | None = None,
    ) -> ApplyResult[Any]:
        """Call `func(*args, **kwds)` in a worker; returns at once with a handle of the result.

        Args:
            callback: called with the result.
            error_callback: called with the exception, if the call fails for any reason.
            accept_callback: called with the worker's pid and `time.monotonic()` at the start.
            timeout_callback: called as `timeout_callback(soft=…, timeout=…)` when a limit passes.
            waitforslot: wait until a worker has nothing to do before the job is handed in.
            soft_timeout, timeout, lost_worker_timeout: instead of the pool's, for this job.

        Callbacks run one after another on a thread of the pool; each is called at most once.

        Raises:
            ValueError: the pool is closed or terminated.
            PoolBrokenError: the pool could not start its workers.
        """
        dispatcher = self._dispatcher
        dispatcher.check_running()
        for name, function in (
            ("callback", callback),
            ("error_callback", error_callback),
            ("accept_callback", accept_callback),
            ("timeout_callback", timeout_callback),
        ):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable, not {function!r}")
        result: ApplyResult[Any] = ApplyResult(
            self, self._run_callback, callback, error_callback, accept_callback, timeout_callback
        )
        message = (CALL, func, args, kwds) if kwds else (CALL, func, args)
        job = self._new_job(result, func, timeout, soft_timeout, lost_worker_timeout)
        if accept_callback is not None:
            job.flags = ACCEPT
        if self._load(job, message):
            if waitforslot:
                dispatcher.submit_when_free(job)
            else:
                dispatcher.submit(job)
        return result

    def _new_job(
        self,
        owner: JobOwner,
        func: Callable[..., Any],
        timeout: float | None = None,
        soft_timeout: float | None = None,
        lost_timeout: float | None = None,
    ) -> Job:
        if timeout is not None or soft_timeout is not None or lost_timeout is not None:
            _check_seconds(timeout=timeout, soft_timeout=soft_timeout)
            _check_seconds(zero=True, lost_worker_timeout=lost_timeout)
        limits = self._timeout_handler
        job = Job(
            owner,
            func,
            limits.t_hard if timeout is None else timeout,
            limits.t_soft if soft_timeout is None else soft_timeout,
            self._lost_worker_timeout if lost_timeout is None else lost_timeout,
        )
        if job.timeout or job.soft_timeout:
            limits.ensure_started()
        owner.bind(job)
        return job

    def _load(self, job: Job, message: tuple[Any, ...]) -> bool:
        """Pickle the message into the job; if that fails, the job has failed: False."""
        try:
            self._pack(job, message)
        except Exception as exc:
            exc.add_note(f"while pickling the call of {job.function} for a worker process")
            self._dispatcher.reject(job, exc)
            return False
        return True

    def _pack(self, job: Job, message: tuple[Any, ...]) -> None:
        job.pickled, buffers = pack(message)
        if not buffers and len(job.pickled) <= INLINE:
            return
        if self._dispatcher.open_parcels < MAX_OPEN_PARCELS:
            try:
                job.parcel = Parcel(job.pickled, buffers)
            except OSError:
                pass  # no descriptor left now; it will be tried again when a worker is free
            else:
                job.pickled = b""
                return
        if buffers:
            job.pickled = dumps(message)

    # ---- many calls at once

    def map(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
    ) -> list[Any]:
        """`[func(item) for item in iterable]`, in the workers.

        Without `chunksize`, items are handed over in chunks that are sized by their measured run
        time. The first error among the items is raised, when all chunks have finished.
        """
        return self._map_async(MAP, func, iterable, chunksize, wait=True).get()

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> MapResult:
        """Like `map`, but returns at once with a handle of the list."""
        return self._map_async(MAP, func, iterable, chunksize, callback, error_callback)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[Any]:
        """Like `map`, but each item is unpacked: `(a, b)` becomes `func(a, b)`."""
        return self._map_async(STARMAP, func, iterable, chunksize, wait=True).get()

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> MapResult:
        """Like `starmap`, but returns at once with a handle of the list."""
        return self._map_async(STARMAP, func, iterable, chunksize, callback, error_callback)

    def _map_async(
        self,
        mode: int,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callback = None,
        error_callback: Callback = None,
        wait: bool = False,
    ) -> MapResult:
        self._dispatcher.check_running()
        if chunksize is not None:
            _check_count("chunksize", chunksize)
        items = list(iterable)
        result = MapResult(
            self, self._run_callback, function_name(func), len(items), callback, error_callback
        )
        if not items:
            return result
        workers = self._dispatcher.processes
        chunks: Iterable[list[Any]]
        if chunksize is None:
            chunks = adaptive = AdaptiveChunks(items, workers)
            result.limit(FIRST_CHUNKS * workers, adaptive.measured)
        else:
            chunks = fixed_chunks(items, chunksize)
            result.limit(BUFFERED_PER_WORKER * workers)
        jobs = self._map_jobs(result, mode, func, chunks)
        self._feed(jobs, result, inline=wait or len(items) <= FIRST_CHUNKS * workers)
        return result

    def _map_jobs(
        self,
        result: MapResult,
        mode: int,
        func: Callable[..., Any],
        chunks: Iterable[list[Any]],
    ) -> Iterator[Job]:
        position = 0
        for chunk in chunks:
            job = self._new_job(result, func)
            job.index, job.size = position, len(chunk)
            position += len(chunk)
            self._pack(job, (mode, func, chunk))
            yield job

    def _feed(self, jobs: Iterator[Job], result: handlers.Output, inline: bool = False) -> None:
        """Have the jobs of an input made and submitted as there is room: by this thread, if it
        will wait for the result in any case."""
        feeder = self.TaskHandler(jobs, self._submit_fed, result, self._dispatcher)
        self._dispatcher.begin_feed(feeder)
        if inline:
            feeder.body()
        else:
            feeder.start(self._dispatcher.crash)

    def _submit_fed(self, job: Job) -> None:
        self._dispatcher.submit(job, feeding=True)

    # ---- many calls, lazily

    def imap(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
    ) -> IMapIterator:
        """Like `map`, but lazy: an iterator over the results, in the order of the input.

        Args:
            chunksize: how many items are handed to a worker at once.
            lost_worker_timeout: instead of the pool's.
            buffersize: how many items the input is read ahead of the results that were taken;
                None: 32 chunks per worker.
        """
        return self._imap(IMapIterator, func, iterable, chunksize, lost_worker_timeout, buffersize)

    def imap_unordered(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
    ) -> IMapUnorderedIterator:
        """Like `imap`, but the results come as they become ready."""
        return self._imap(
            IMapUnorderedIterator, func, iterable, chunksize, lost_worker_timeout, buffersize
        )

    def _imap(
        self,
        iterator_class: type[Items],
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int,
        lost_timeout: float | None,
        buffersize: int | None,
    ) -> Items:
        self._dispatcher.check_running()
        _check_count("chunksize", chunksize)
        if buffersize is None:
            buffersize = BUFFERED_PER_WORKER * self._dispatcher.processes * chunksize
        _check_count("buffersize", buffersize)
        _check_seconds(zero=True, lost_worker_timeout=lost_timeout)
        result = iterator_class(self, function_name(func), max(buffersize, chunksize), chunksize)
        jobs = self._imap_jobs(result.items, func, iter(iterable), chunksize, lost_timeout)
        self._feed(jobs, result.items)
        return result

    def _imap_jobs(
        self,
        owner: JobOwner,
        func: Callable[[Any], Any],
        iterator: Iterator[Any],
        chunksize: int,
        lost_timeout: float | None,
    ) -> Iterator[Job]:
        for index, chunk in enumerate(fixed_chunks(iterator, chunksize)):
            job = self._new_job(owner, func, lost_timeout=lost_timeout)
            job.index, job.size = index, len(chunk)
            if self._load(job, (CALL if chunksize == 1 else EACH, func, chunk)):
                yield job

    # ---- the pool itself

    @property
    def processes(self) -> int:
        """How many workers there should be."""
        return self._dispatcher.processes

    def grow(self, n: int = 1) -> None:
        """Add `n` workers."""
        _check_count("n", n)
        self._dispatcher.resize(+n)

    def shrink(self, n: int = 1) -> None:
        """Take `n` workers away; busy ones finish their task first.

        Raises:
            ValueError: fewer than one worker would be left.
        """
        _check_count("n", n)
        self._dispatcher.resize(-n)

    def restart(self) -> None:
        """Replace all workers; busy ones finish their task first."""
        self._dispatcher.replace_all()

    def close(self) -> None:
        """Take no more jobs. The workers leave when all are done."""
        self._dispatcher.close()

    def terminate(self) -> None:
        """Kill the workers with all that their tasks started; jobs that have not finished fail
        with `Terminated`."""
        self._dispatcher.terminate()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all jobs are done, all callbacks have run and all workers have left.

        Args:
            timeout: at most so many seconds; None: for ever.

        Returns:
            Whether that is so.

        Raises:
            ValueError: neither `close` nor `terminate` was called before.
        """
        if self._dispatcher.state is State.RUN:
            self._dispatcher.check_owner()
            raise ValueError("the pool is still running: call close() or terminate() before join()")
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._dispatcher.wait_until_ended(timeout):
            return False
        self._supervisor.join(_left(deadline))
        return self._run_callback.join(_left(deadline))

    def check_owner(self) -> None:
        """Raise RuntimeError in a forked child: this pool is its parent's."""
        self._dispatcher.check_owner()

    def __enter__(self) -> Self:
        self._dispatcher.check_running()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.terminate()

    def __del__(self) -> None:
        if hasattr(self, "_dispatcher"):
            self._dispatcher.abandon()

    def __reduce__(self) -> tuple[Any, ...]:
        raise NotImplementedError("a pool cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        state = self._dispatcher.state.value
        return f"<{type(self).__name__}: {state}, {self.processes} processes>"


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def _check_seconds(zero: bool = False, **limits: object) -> None:
    for name, value in limits.items():
        if value is None:
            continue
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number of seconds, not {value!r}")
        if not (value > 0 or (zero and value == 0)):
            raise ValueError(f"{name} must be more than 0 seconds, not {value}")


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
