"""Single calls, and several calls as one job: what `Pool` has of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Unpack, overload

from prefork._compat.habits import check_function, check_keywords
from prefork._ipc.outcome import Outcome
from prefork._policy.retry import Retry
from prefork._results.apply import callbacks_for
from prefork._verbs.family import Family
from prefork._verbs.signatures import (
    A,
    B,
    C,
    Callback,
    CallOptions,
    OfOneType,
    P,
    R,
    TaskLimits,
    Ts,
    Unchecked,
    X,
    Y,
    Z,
)
from prefork.results import ApplyResult

if TYPE_CHECKING:
    from prefork._verbs.futures import Future

__all__ = ["CallFamily"]


class CallFamily(Family):
    """`apply`, `apply_async`, `submit` and `each_async`."""

    @overload
    def apply(self, func: Callable[[], R], **options: Unpack[TaskLimits]) -> R: ...
    @overload
    def apply(
        self,
        func: Callable[[*Ts], R],
        args: tuple[*Ts],
        **options: Unpack[TaskLimits],
    ) -> R: ...
    @overload
    def apply(
        self, func: Callable[[A | X], R], args: tuple[A | X], **options: Unpack[TaskLimits]
    ) -> R: ...
    @overload
    def apply(
        self,
        func: Callable[[A | X, B | Y], R],
        args: tuple[A | X, B | Y],
        **options: Unpack[TaskLimits],
    ) -> R: ...
    @overload
    def apply(
        self,
        func: Callable[[A | X, B | Y, C | Z], R],
        args: tuple[A | X, B | Y, C | Z],
        **options: Unpack[TaskLimits],
    ) -> R: ...
    @overload
    def apply(
        self, func: Callable[..., R], args: Unchecked, **options: Unpack[TaskLimits]
    ) -> R: ...
    @overload
    def apply(
        self, func: OfOneType[A, R], args: Iterable[A], **options: Unpack[TaskLimits]
    ) -> R: ...
    @overload
    def apply(
        self,
        func: Callable[..., R],
        args: Iterable[Any] = ...,
        *,
        kwds: Mapping[str, Any],
        **options: Unpack[TaskLimits],
    ) -> R: ...
    @overload
    def apply(
        self,
        func: Callable[..., R],
        args: Iterable[Any],
        kwds: Mapping[str, Any],
        **options: Unpack[TaskLimits],
    ) -> R: ...
    def apply(
        self,
        func: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        **options: Unpack[TaskLimits],
    ) -> R:
        """Call `func(*args, **kwds)` in a worker and return its result.

        Args:
            func: a callable that can be pickled.
            args: its positional arguments, an iterable that can be pickled.
            kwds: its keyword arguments, a mapping with strings as keys, likewise.
            options: `soft_timeout`, `timeout` (seconds) and `retries`, as in `apply_async`.

        Returns:
            What `func` returns.

        Raises:
            Exception: what `ApplyResult.get` raises, and `apply_async`.
        """
        check_keywords("apply", options, TaskLimits.__optional_keys__)
        check_function(func)
        engine = self._engine
        limits = self._defaults.override(**options)
        result: ApplyResult[R] = ApplyResult(self, engine)
        # The handle is nobody's: whoever interrupts this has the call ended, which would otherwise
        # keep a worker from any other. It is made first, so there is no moment without one.
        try:
            engine.dispatcher.submit(engine.factory.call(result, func, args, kwds, limits))
            return result.get()
        except KeyboardInterrupt:
            result.terminate()
            raise
        finally:
            del result  # else a traceback, by this frame, would hold it, and it that

    @overload
    def apply_async(
        self, func: Callable[[], R], **options: Unpack[CallOptions[R]]
    ) -> ApplyResult[R]: ...
    @overload
    def apply_async(
        self,
        func: Callable[[*Ts], R],
        args: tuple[*Ts],
        **options: Unpack[CallOptions[R]],
    ) -> ApplyResult[R]: ...
    @overload
    def apply_async(
        self, func: Callable[[A | X], R], args: tuple[A | X], **options: Unpack[CallOptions[R]]
    ) -> ApplyResult[R]: ...
    @overload
    def apply_async(
        self,
        func: Callable[[A | X, B | Y], R],
        args: tuple[A | X, B | Y],
        **options: Unpack[CallOptions[R]],
    ) -> ApplyResult[R]: ...
    @overload
    def apply_async(
        self,
        func: Callable[[A | X, B | Y, C | Z], R],
        args: tuple[A | X, B | Y, C | Z],
        **options: Unpack[CallOptions[R]],
    ) -> ApplyResult[R]: ...
    @overload
    def apply_async(
        self, func: Callable[..., R], args: Unchecked, **options: Unpack[CallOptions[R]]
    ) -> ApplyResult[R]: ...
    @overload
    def apply_async(
        self, func: OfOneType[A, R], args: Iterable[A], **options: Unpack[CallOptions[R]]
    ) -> ApplyResult[R]: ...
    @overload
    def apply_async(
        self,
        func: Callable[..., R],
        args: Iterable[Any] = ...,
        *,
        kwds: Mapping[str, Any],
        **options: Unpack[CallOptions[R]],
    ) -> ApplyResult[R]: ...
    @overload
    def apply_async(
        self,
        func: Callable[..., R],
        args: Iterable[Any],
        kwds: Mapping[str, Any],
        callback: Callback[R] = None,
        error_callback: Callback[Any] = None,
        accept_callback: Callable[[int, float], object] | None = None,
        timeout_callback: Callable[..., object] | None = None,
        waitforslot: bool = False,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        *,
        retries: int | Retry = 0,
    ) -> ApplyResult[R]: ...
    def apply_async(
        self,
        func: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callback[R] = None,
        error_callback: Callback[Any] = None,
        accept_callback: Callable[[int, float], object] | None = None,
        timeout_callback: Callable[..., object] | None = None,
        waitforslot: bool = False,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        *,
        retries: int | Retry | None = None,
    ) -> ApplyResult[R]:
        """Call `func(*args, **kwds)` in a worker; returns at once with a handle of the result.

        Args:
            func, args, kwds: as in `apply`. They are pickled now; what goes wrong with that is the
                job's error.
            callback: called with the result.
            error_callback: called with the exception, if the call fails for any reason.
            accept_callback: called with the worker's process id (int) and the time of the start
                (float, seconds of `time.monotonic`).
            timeout_callback: called as `timeout_callback(soft=…, timeout=…)` when a limit passes:
                whether it was the soft one (bool), and the limit in seconds.
            waitforslot: True: wait until a worker has nothing to do before the job is handed in.
            soft_timeout, timeout, lost_worker_timeout: seconds (int or float) instead of the
                pool's, for this job; infinity: no limit.
            retries: how often to run it again after its worker was lost, an int; or a `Retry`.

        Callbacks run one after another on a thread of the pool; each is called at most once. As in
        `multiprocessing`, the result is ready (for `ready`, `wait` and `get`) when they have run;
        only inside of a callback every result is ready as soon as it is here, so that callbacks may
        wait for any job. They should be short: those that follow wait for them.

        Raises:
            ValueError: the pool is closed or terminated; a limit is out of range.
            PoolBrokenError: the pool could not start its workers.
            TypeError: `func` or a callback cannot be called, or an argument is of the wrong type.
            RuntimeError: in a forked child, whose pool this is not.
        """
        check_function(func)
        engine = self._engine
        told = callbacks_for(
            engine.callbacks, callback, error_callback, accept_callback, timeout_callback
        )
        result: ApplyResult[R] = ApplyResult(self, engine, told)
        limits = self._defaults.override(timeout, soft_timeout, lost_worker_timeout, retries)
        job = engine.factory.call(result, func, args, kwds, limits)
        if accept_callback is not None:
            job.report_start(by_worker=engine.reports_starts)
        try:
            if waitforslot:
                engine.dispatcher.submit_when_free(job)
            else:
                engine.dispatcher.submit(job)
        except KeyboardInterrupt:
            engine.terminator.terminate(job)  # nobody will have it
            raise
        return result

    def submit(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call `func(*args, **kwargs)` in a worker; returns at once with a future of the result,
        for `concurrent.futures.wait`, `asyncio.wrap_future` and the like.

        All keywords are the function's: limits are given by `options`.

        Raises:
            ValueError, PoolBrokenError, TypeError, RuntimeError: as `apply_async` does.
        """
        from prefork._verbs import futures  # by now its import is worth the time

        future: Future[R] = futures.Future(self, self._engine)
        return futures.submit(future, self._engine, func, args, kwargs, self._defaults)

    @overload
    def each_async(
        self,
        func: Callable[[A], object],
        items: Iterable[A],
        callback: Callback[list[Outcome]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[TaskLimits],
    ) -> ApplyResult[list[Outcome]]: ...
    @overload
    def each_async(
        self,
        func: Callable[[A | X], object],
        items: Iterable[A | X],
        callback: Callback[list[Outcome]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[TaskLimits],
    ) -> ApplyResult[list[Outcome]]: ...
    def each_async(
        self,
        func: Callable[[Any], object],
        items: Iterable[Any],
        callback: Callback[list[Outcome]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[TaskLimits],
    ) -> ApplyResult[list[Outcome]]:
        """Call `func` with one item after another, in one worker, as one job.

        The result is a list with an `Outcome` for each item: `ok`, and as `value` the result or
        the exception. If the worker is lost or killed on the way, the item that ran fails alone,
        or is run again; another worker goes on with the next one.

        Args:
            func: a callable that takes one item.
            items: an iterable; it is read to its end at once.
            callback, error_callback: as in `apply_async`.
            options: `soft_timeout`, `timeout` (seconds, of each item) and `retries` (of all).

        Raises:
            Exception: what `apply_async` raises; what `items` raises.
        """
        engine = self._engine
        limits = self._limits("each_async", options)
        check_function(func)
        told = callbacks_for(engine.callbacks, callback, error_callback)
        result: ApplyResult[list[Outcome]] = ApplyResult(self, engine, told)
        engine.dispatcher.submit(engine.factory.each(result, func, list(items), limits))
        return result
