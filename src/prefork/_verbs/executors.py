"""The calls of a pool as a `concurrent.futures.Executor`."""

from __future__ import annotations

import concurrent.futures
import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from prefork._arguments import some_count
from prefork._compat.habits import check_function
from prefork._engine.state import PoolPhase
from prefork._ipc.once import once
from prefork._policy.chunks import fixed_chunks
from prefork._public import public
from prefork._system.condition import Condition
from prefork._verbs.futures import Future, as_broken
from prefork._verbs.signatures import P, R
from prefork.errors import PoolBrokenError

if TYPE_CHECKING:
    from prefork._engine.engine import Engine
    from prefork._ipc.outcome import Outcome
    from prefork._policy.job import Job
    from prefork._policy.limits import Limits
    from prefork._policy.retry import Retry

__all__ = ["BaseExecutor", "PoolExecutor"]

T = TypeVar("T")

AFTER_SHUTDOWN: Final = "cannot schedule new futures after shutdown"


class BaseExecutor(concurrent.futures.Executor):
    """What executors have in common, wherever their pool comes from."""

    _defaults: Limits  # of calls

    def _engine_to_use(self) -> Engine:
        """What runs the pool; made now, if need be.

        Raises:
            RuntimeError: there is none any more.
        """
        raise NotImplementedError

    def _new_future(self, engine: Engine) -> Future[Any]:
        """Of a call that is about to be handed in."""
        raise NotImplementedError

    # ---- calls

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call `fn(*args, **kwargs)` in a worker; returns at once with a future of the result.

        Raises:
            RuntimeError: the executor has been shut down, or this is a forked child, where it is
                the parent's.
            BrokenProcessPool: its workers cannot start.
            TypeError: `fn` cannot be called.
        """
        check_function(fn)
        engine = self._engine_to_use()
        future = self._new_future(engine)
        _hand_in(engine, engine.factory.call(future, fn, args, kwargs, self._defaults))
        return future

    def _submit_one(self, fn: Callable[..., Any], args: Any) -> Future[Any]:
        return self.submit(fn, *args)

    def _submit_each(self, fn: Callable[[Any], Any], items: list[Any]) -> Future[list[Outcome]]:
        """Call `fn` with each of these items, as one job."""
        engine = self._engine_to_use()
        future = self._new_future(engine)
        _hand_in(engine, engine.factory.each(future, fn, items, self._defaults))
        return future

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """`map(fn, *iterables)`, in the workers: an iterator over the results, in their order.

        All calls are handed in at once, also if nobody takes the results. Who stops taking them, or
        meets an error, cancels those that have not been started.

        Args:
            timeout: how many seconds after this call the last result must have been taken.
            chunksize: how many calls are handed to a worker at once. Each has an outcome of its
                own; if the worker dies, another one goes on with the next call.
            buffersize: at most so many chunks are handed in whose results have not been taken; the
                iterables are read no further. None: there is no limit.

        Raises:
            TimeoutError: when a result is to be taken and is not here in time.
            TypeError, ValueError: `chunksize` or `buffersize` is no number, or less than 1.
            RuntimeError, BrokenProcessPool: as `submit` does.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        check_function(fn)
        _check_sizes(chunksize, buffersize)
        engine = self._engine_to_use()
        calls = zip(*iterables)  # noqa: B905  # as `map` does: up to the end of the shortest
        pieces: Iterator[Any]
        submit: Submit = type(self)._submit_each
        if chunksize == 1:
            pieces, submit = calls, type(self)._submit_one
        elif len(iterables) == 1:
            pieces = fixed_chunks((item for (item,) in calls), chunksize)
        else:
            pieces = fixed_chunks(calls, chunksize)
            fn = _Unpacking(fn)
        fn = once(fn)
        first = pieces if buffersize is None else itertools.islice(pieces, buffersize)
        futures = deque([submit(self, fn, piece) for piece in first])
        rest = None if buffersize is None else _Rest(self, fn, pieces, submit)
        results = _take_results(engine, futures, deadline, rest)
        return results if chunksize == 1 else _take_items(results)

    def options(
        self,
        *,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        retries: int | Retry | None = None,
        priority: int | None = None,
        deadline: float | None = None,
    ) -> PoolExecutor:
        """The same executor, with other options for the calls that it is given by this view, as
        `Pool.options`: `executor.options(timeout=5).submit(f, x)`. To shut it down ends nothing
        but the view."""
        limits = self._defaults.override(timeout, soft_timeout, lost_worker_timeout, retries)
        return self._view(limits.with_terms(priority, deadline))

    def _view(self, limits: Limits) -> PoolExecutor:
        raise NotImplementedError


@public
class PoolExecutor(BaseExecutor):
    """A `concurrent.futures.Executor` whose calls run in a pool that somebody else has: what
    `Pool.executor()` returns."""

    def __init__(self, pool: object, engine: Engine, limits: Limits) -> None:
        self._pool = pool
        self._engine = engine
        self._defaults = limits
        self._is_shut = False
        self._pending: set[Future[Any]] = set()
        self._done = Condition()

    @property
    def _max_workers(self) -> int:
        """Dask asks for it."""
        return self._engine.supervisor.processes

    def _engine_to_use(self) -> Engine:
        if self._is_shut:
            raise RuntimeError(AFTER_SHUTDOWN)
        return self._engine

    def _new_future(self, engine: Engine) -> CountedFuture[Any]:
        return CountedFuture(self, engine)

    def _view(self, limits: Limits) -> PoolExecutor:
        return PoolExecutor(self, self._engine_to_use(), limits)

    def note_added(self, future: Future[Any]) -> None:
        """There is a job for it."""
        self._pending.add(future)

    def note_done(self, future: Future[Any]) -> None:
        """Its job has ended."""
        self._pending.discard(future)
        if self._is_shut:
            self._done.notify_all()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls by this executor. The pool goes on.

        Args:
            wait: return when the calls that it was given have ended.
            cancel_futures: cancel those that have not been started.
        """
        self._is_shut = True
        if self._engine.state.is_forked:
            return
        pending = self._pending
        if cancel_futures:
            self._engine.terminator.cancel_where(lambda job: job.sink in pending)
        if wait:
            self._engine.wait_for(self._done, lambda: not pending)

    def __repr__(self) -> str:
        state = "shut down" if self._is_shut else f"{len(self._pending)} calls unfinished"
        return f"<{type(self).__name__}: {state}, of {self._pool!r}>"


class CountedFuture(Future[T]):
    """One whose executor waits for it when it is shut down."""

    def __init__(self, executor: PoolExecutor, engine: Engine) -> None:
        super().__init__(executor, engine)
        self._executor: PoolExecutor | None = executor  # until its job has ended

    def job_added(self, job: Job) -> None:
        super().job_added(job)
        if self._executor is not None:
            self._executor.note_added(self)

    def job_done(self, job: Job, ok: bool, value: Any) -> Condition | None:
        executor, self._executor = self._executor, None
        try:
            return super().job_done(job, ok, value)
        finally:
            if executor is not None:
                executor.note_done(self)


def _hand_in(engine: Engine, job: Job) -> None:
    """Submit it; what that raises is what the standard library's executors raise."""
    try:
        engine.dispatcher.submit(job)
    except PoolBrokenError as exc:
        raise as_broken(exc) from exc.__cause__
    except ValueError as exc:
        if engine.state.phase is PoolPhase.RUN:
            raise
        raise RuntimeError(f"{AFTER_SHUTDOWN}: {exc}") from None


# ---- the parts of `map`


def _check_sizes(chunksize: int, buffersize: int | None) -> None:
    if not isinstance(buffersize, int | None):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")
    if some_count("chunksize", chunksize) is None:
        raise TypeError("chunksize must be an int, not None")


Submit = Callable[[Any, Callable[..., Any], Any], Future[Any]]


class _Unpacking(Generic[R]):
    """Calls a function with the arguments that it gets as one."""

    def __init__(self, func: Callable[..., R]) -> None:
        self.func = func

    def __call__(self, args: tuple[Any, ...]) -> R:
        return self.func(*args)


class _Rest:
    """What of an input has not been handed in yet. It does not keep the executor."""

    def __init__(
        self,
        executor: BaseExecutor,
        fn: Callable[..., Any],
        pieces: Iterator[Any],
        submit: Submit,
    ) -> None:
        self._executor = weakref.ref(executor)
        self._fn = fn
        self._pieces = pieces
        self._submit = submit

    def hand_in(self, futures: deque[Future[Any]]) -> None:
        """One more, if there is one."""
        executor = self._executor()
        if executor is not None and (piece := next(self._pieces, None)) is not None:
            futures.append(self._submit(executor, self._fn, piece))


def _take_results(
    engine: Engine, futures: deque[Future[Any]], deadline: float | None, rest: _Rest | None
) -> Iterator[Any]:
    """The results of these, one after another; none is kept here."""
    try:
        while futures:
            if rest is not None:
                rest.hand_in(futures)
            futures[0].exception(None if deadline is None else deadline - time.monotonic())
            yield futures.popleft().result()
    finally:
        if futures:
            _cancel(engine, set(futures))


def _take_items(chunks: Iterator[list[Outcome]]) -> Iterator[Any]:
    """The same, of chunks."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield _unpack(chunk.pop())


def _unpack(outcome: Outcome) -> Any:
    if outcome.ok:
        return outcome.value
    raise outcome.value


def _cancel(engine: Engine, futures: set[Future[Any]]) -> None:
    """Cancel those that have not been started; maybe called by a finalizer."""

    def cancel() -> None:
        engine.terminator.cancel_where(lambda job: job.sink in futures)

    if engine.state.is_forked:
        return
    if engine.is_busy_here():
        engine.call_soon(cancel)
    else:
        cancel()
