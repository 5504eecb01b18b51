"""`Pool`: the public verbs. What they do is done by the `Engine`."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, Self, TypeVar

from prefork import errors, handlers, process
from prefork.arguments import Limits, check_callables, check_count, check_iterable
from prefork.chunks import FIRST_CHUNKS, AdaptiveChunks, fixed_chunks
from prefork.cpus import available_cpus
from prefork.drivers import EventLoop, Loop
from prefork.engine import Engine, RoleClasses
from prefork.iterators import IMapIterator, IMapUnorderedIterator
from prefork.messages import ACCEPT, MAP, STARMAP, Outcome, function_name
from prefork.results import ApplyResult, Callback, MapResult, Signal
from prefork.staff import Options
from prefork.worker import Initializer, WorkerOptions

__all__ = ["Pool"]

Items = TypeVar("Items", bound=IMapIterator)

BUFFERED_PER_WORKER = 32
"""Items that `imap` reads ahead, per worker: enough for batches of short tasks."""


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
        context: a start method's context, as from `multiprocessing.get_context("spawn")`, or just
            its name. None: the default one.
        threads: False: the pool has no threads; it is driven by an event loop (`attach`) or by
            hand (`handle_events`).

    Raises:
        ValueError: `processes`, `maxtasksperchild` or a limit is out of range.
        TypeError: an argument is of the wrong type.

    The seed of the interface is `multiprocessing.Pool`, whose documentation applies.
    """

    ResultHandler = handlers.ResultHandler
    TaskHandler = handlers.TaskHandler
    TimeoutHandler = handlers.TimeoutHandler
    Supervisor = handlers.Supervisor
    CallbackRunner = handlers.CallbackRunner
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
        context: BaseContext | str | None = None,
        threads: bool = True,
    ) -> None:
        if processes is None:
            processes = available_cpus()
        check_count("processes", processes)
        if maxtasksperchild is not None:
            check_count("maxtasksperchild", maxtasksperchild)
        check_callables(initializer=initializer)
        initargs = check_iterable("initargs", initargs)
        if context is None or isinstance(context, str):
            context = multiprocessing.get_context(context)
        elif not isinstance(context, BaseContext):
            raise TypeError(f"context must be one of multiprocessing's, not {context!r}")
        self._engine = engine = Engine(
            Options(
                processes,
                WorkerOptions(
                    Initializer(initializer, initargs) if initializer else None, maxtasksperchild
                ),
                context,
                self.Process,
            ),
            Limits().override(timeout, soft_timeout, lost_worker_timeout),
            RoleClasses(
                self.ResultHandler,
                self.TaskHandler,
                self.TimeoutHandler,
                self.Supervisor,
                self.CallbackRunner,
            ),
            threads,
        )
        self._jobs, self._staff = engine.jobs, engine.staff

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
        self._jobs.check_running()
        check_callables(
            callback=callback,
            error_callback=error_callback,
            accept_callback=accept_callback,
            timeout_callback=timeout_callback,
        )
        result: ApplyResult[Any] = ApplyResult(
            self,
            self._engine.callbacks,
            callback,
            error_callback,
            accept_callback,
            timeout_callback,
        )
        limits = self._engine.limits.override(timeout, soft_timeout, lost_worker_timeout)
        job = self._engine.make.call(result, func, args, kwds, limits)
        if accept_callback is not None:
            job.flags = ACCEPT
        self._engine.submit(job, when_free=waitforslot)
        return result

    def each_async(
        self,
        func: Callable[[Any], Any],
        items: Iterable[Any],
        callback: Callback = None,
        error_callback: Callback = None,
        *,
        soft_timeout: float | None = None,
        timeout: float | None = None,
    ) -> ApplyResult[list[Outcome]]:
        """Call `func` with one item after another, in one worker, as one job.

        The result is a list with an `Outcome` for each item: `ok`, and as `value` the result or
        the exception. The time limits are each item's. If the worker is lost or killed on the
        way, the job fails as a whole.
        """
        self._jobs.check_running()
        check_callables(callback=callback, error_callback=error_callback)
        result: ApplyResult[list[Outcome]] = ApplyResult(
            self, self._engine.callbacks, callback, error_callback
        )
        limits = self._engine.limits.override(timeout, soft_timeout)
        self._jobs.submit(self._engine.make.each(result, func, list(items), limits))
        return result

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
        self._jobs.check_running()
        check_callables(callback=callback, error_callback=error_callback)
        if chunksize is not None:
            check_count("chunksize", chunksize)
        items = list(iterable)
        result = MapResult(
            self, self._engine.callbacks, function_name(func), len(items), callback, error_callback
        )
        if not items:
            return result
        workers = self._staff.processes
        chunks: Iterable[list[Any]]
        if chunksize is None:
            chunks = adaptive = AdaptiveChunks(items, workers)
            result.limit(FIRST_CHUNKS * workers, adaptive.measured)
        else:
            chunks = fixed_chunks(items, chunksize)
            result.limit(BUFFERED_PER_WORKER * workers)
        jobs = self._engine.make.chunks(result, mode, func, chunks, self._engine.limits)
        self._engine.feed(jobs, result, here=wait or len(items) <= FIRST_CHUNKS * workers)
        return result

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
        self._jobs.check_running()
        check_count("chunksize", chunksize)
        if buffersize is None:
            buffersize = BUFFERED_PER_WORKER * self._staff.processes * chunksize
        check_count("buffersize", buffersize)
        limits = self._engine.limits.override(lost_worker_timeout=lost_timeout)
        result = iterator_class(self, function_name(func), max(buffersize, chunksize), chunksize)
        result.items.on_cancel = self._jobs.check_done
        jobs = self._engine.make.items(result.items, func, iter(iterable), chunksize, limits)
        self._engine.feed(jobs, result.items)
        return result

    # ---- the pool itself

    @property
    def processes(self) -> int:
        """How many workers there should be."""
        return self._staff.processes

    def grow(self, n: int = 1) -> None:
        """Add `n` workers."""
        check_count("n", n)
        self._staff.resize(+n)

    def shrink(self, n: int = 1) -> None:
        """Take `n` workers away; busy ones finish their task first.

        Raises:
            ValueError: fewer than one worker would be left.
        """
        check_count("n", n)
        self._staff.resize(-n)

    def restart(self) -> None:
        """Replace all workers; busy ones finish their task first."""
        self._staff.replace_all()

    def close(self) -> None:
        """Take no more jobs. The workers leave when all are done."""
        self._jobs.close()

    def terminate(self) -> None:
        """Kill the workers with all that their tasks started; jobs that have not finished fail
        with `Terminated`."""
        self._engine.terminate()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all jobs are done, all callbacks have run and all workers have left.

        Inputs of `imap` that are still being read are read to their end, without waiting for
        their results to be taken.

        Args:
            timeout: at most so many seconds; None: for ever.

        Returns:
            Whether that is so.

        Raises:
            ValueError: neither `close` nor `terminate` was called before.
        """
        return self._engine.join(timeout)

    def wait_for(
        self, signal: Signal, condition: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """For the results: wait until `condition()`, at most `timeout` seconds.

        Raises:
            RuntimeError: in a forked child, where this pool is the parent's; or when called by
                the pool itself, while it reads a result.
        """
        self._jobs.check_owner()
        return self._jobs.wait_for(signal, condition, timeout)

    # ---- without threads

    def attach(self, loop: Loop) -> None:
        """Have an event loop drive this pool, which was made with `threads=False`.

        Args:
            loop: has `add_reader(fd, callback)`, `remove_reader(fd)` and `call_later(seconds,
                callback)`, as asyncio's loops and kombu's hub have. Everything happens in its
                thread, the callbacks included, and so must all calls of this pool. Attach it
                again when the loop has forgotten its readers.

        Raises:
            RuntimeError: the pool has threads of its own.
        """
        self._event_loop().attach(loop)

    def detach(self) -> None:
        """Leave the loop; nothing happens until `handle_events` or another `attach`."""
        self._event_loop().detach()

    def handle_events(self, timeout: float | None = None) -> None:
        """Drive this pool, which was made with `threads=False`, by one step: wait at most so many
        seconds (None: as long as it takes) for something to happen, and handle it. Calls that
        wait, such as `get()` and `join()`, do so by themselves."""
        self._event_loop().handle_events(timeout)

    def _event_loop(self) -> EventLoop:
        if not isinstance(self._engine.driver, EventLoop):
            raise RuntimeError("this pool has threads of its own: make it with threads=False")
        return self._engine.driver

    def __enter__(self) -> Self:
        self._jobs.check_running()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.terminate()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.drop()

    def __reduce__(self) -> tuple[Any, ...]:
        raise NotImplementedError("a pool cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        state = self._jobs.state.value
        return f"<{type(self).__name__}: {state}, {self.processes} processes>"
