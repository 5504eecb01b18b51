"""The map family: many calls of one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, Unpack, overload

from prefork._arguments import check_can_iterate, count, some_count
from prefork._compat.habits import check_function, check_keywords
from prefork._describe import function_name
from prefork._engine.engine import Engine
from prefork._ipc.wire import MAP, STARMAP
from prefork._policy.chunks import FIRST_CHUNKS, LEAST_AHEAD, AdaptiveChunks, fixed_chunks
from prefork._policy.limits import Limits
from prefork._results.apply import callbacks_for
from prefork._results.imap import Items
from prefork._signatures import A, B, C, Callback, OfOneType, R, TaskLimits, Ts, Unchecked, X, Y, Z
from prefork.results import IMapIterator, IMapUnorderedIterator, MapResult

__all__ = ["MapFamily"]

Iterator = TypeVar("Iterator", bound=IMapIterator[Any])


class MapFamily:
    """What `Pool` has of it. The overloads are explained in `_signatures`. All of these take, as
    keywords:

    timeout, soft_timeout: the time limits of each call, in seconds; None: the pool's; infinity:
        none.
    retries: how often a chunk is run again after its worker was lost; its calls that had
        finished are then run again, too.
    """

    _engine: Engine
    _limits: Limits  # of jobs that ask for none

    @overload
    def map(
        self,
        func: Callable[[A], R],
        iterable: Iterable[A],
        chunksize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> list[R]: ...
    @overload
    def map(
        self,
        func: Callable[[A | X], R],
        iterable: Iterable[A | X],
        chunksize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> list[R]: ...
    def map(
        self,
        func: Callable[[Any], R],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> list[R]:
        """`[func(item) for item in iterable]`, in the workers.

        The first error among the items is raised, when all chunks have finished.

        Args:
            iterable: is read to its end at once.
            chunksize: how many items are one job. None: as many as take about as long, by the
                measured run time, as handing them over is worth.
            options: `soft_timeout`, `timeout` (seconds, of each item) and `retries`.

        Raises:
            Exception: what `MapResult.get` raises, and `map_async`.
        """
        limits = self._limits_of("map", options)
        return self._map(MAP, func, iterable, chunksize, limits, wait=True).get()

    @overload
    def map_async(
        self,
        func: Callable[[A], R],
        iterable: Iterable[A],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[TaskLimits],
    ) -> MapResult[R]: ...
    @overload
    def map_async(
        self,
        func: Callable[[A | X], R],
        iterable: Iterable[A | X],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[TaskLimits],
    ) -> MapResult[R]: ...
    def map_async(
        self,
        func: Callable[[Any], R],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[TaskLimits],
    ) -> MapResult[R]:
        """Like `map`, but returns at once with a handle of the list.

        Args:
            callback: called with the list of results.
            error_callback: called with the exception, if any item fails for any reason.

        Raises:
            ValueError: the pool is closed or terminated; an option is out of range.
            PoolBrokenError: the pool could not start its workers.
            TypeError: an argument is of the wrong type.
            Exception: what `iterable` raises.
        """
        limits = self._limits_of("map_async", options)
        return self._map(MAP, func, iterable, chunksize, limits, callback, error_callback)

    @overload
    def starmap(
        self,
        func: Callable[[*Ts], R],
        iterable: Iterable[tuple[*Ts]],
        chunksize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> list[R]: ...
    @overload
    def starmap(
        self,
        func: Callable[[A | X], R],
        iterable: Iterable[tuple[A | X]],
        chunksize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> list[R]: ...
    @overload
    def starmap(
        self,
        func: Callable[[A | X, B | Y], R],
        iterable: Iterable[tuple[A | X, B | Y]],
        chunksize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> list[R]: ...
    @overload
    def starmap(
        self,
        func: Callable[[A | X, B | Y, C | Z], R],
        iterable: Iterable[tuple[A | X, B | Y, C | Z]],
        chunksize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> list[R]: ...
    @overload
    def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Unchecked],
        chunksize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> list[R]: ...
    @overload
    def starmap(
        self,
        func: OfOneType[A, R],
        iterable: Iterable[Iterable[A]],
        chunksize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> list[R]: ...
    def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> list[R]:
        """Like `map`, but each item is unpacked: `(a, b)` becomes `func(a, b)`."""
        limits = self._limits_of("starmap", options)
        return self._map(STARMAP, func, iterable, chunksize, limits, wait=True).get()

    @overload
    def starmap_async(
        self,
        func: Callable[[*Ts], R],
        iterable: Iterable[tuple[*Ts]],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[TaskLimits],
    ) -> MapResult[R]: ...
    @overload
    def starmap_async(
        self,
        func: Callable[[A | X], R],
        iterable: Iterable[tuple[A | X]],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[TaskLimits],
    ) -> MapResult[R]: ...
    @overload
    def starmap_async(
        self,
        func: Callable[[A | X, B | Y], R],
        iterable: Iterable[tuple[A | X, B | Y]],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[TaskLimits],
    ) -> MapResult[R]: ...
    @overload
    def starmap_async(
        self,
        func: Callable[[A | X, B | Y, C | Z], R],
        iterable: Iterable[tuple[A | X, B | Y, C | Z]],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[TaskLimits],
    ) -> MapResult[R]: ...
    @overload
    def starmap_async(
        self,
        func: Callable[..., R],
        iterable: Iterable[Unchecked],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[TaskLimits],
    ) -> MapResult[R]: ...
    @overload
    def starmap_async(
        self,
        func: OfOneType[A, R],
        iterable: Iterable[Iterable[A]],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[TaskLimits],
    ) -> MapResult[R]: ...
    def starmap_async(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[TaskLimits],
    ) -> MapResult[R]:
        """Like `starmap`, but returns at once with a handle of the list; see `map_async`."""
        limits = self._limits_of("starmap_async", options)
        return self._map(STARMAP, func, iterable, chunksize, limits, callback, error_callback)

    @overload
    def imap(
        self,
        func: Callable[[A], R],
        iterable: Iterable[A],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> IMapIterator[R]: ...
    @overload
    def imap(
        self,
        func: Callable[[A | X], R],
        iterable: Iterable[A | X],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> IMapIterator[R]: ...
    def imap(
        self,
        func: Callable[[Any], R],
        iterable: Iterable[Any],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> IMapIterator[R]:
        """Like `map`, but lazy: an iterator over the results, in the order of the input.

        Args:
            chunksize: how many items are handed to a worker at once.
            lost_worker_timeout: instead of the pool's.
            buffersize: how many items the input is read ahead of the results that were taken;
                None: 20 ms of work per worker, but at least 128 chunks and at most 1,024. In any
                case it is not read on while 256 MiB of calls are on their way.
        """
        limits = self._limits_of("imap", options, lost_worker_timeout)
        return self._imap(IMapIterator, func, iterable, chunksize, buffersize, limits)

    @overload
    def imap_unordered(
        self,
        func: Callable[[A], R],
        iterable: Iterable[A],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> IMapUnorderedIterator[R]: ...
    @overload
    def imap_unordered(
        self,
        func: Callable[[A | X], R],
        iterable: Iterable[A | X],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> IMapUnorderedIterator[R]: ...
    def imap_unordered(
        self,
        func: Callable[[Any], R],
        iterable: Iterable[Any],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        **options: Unpack[TaskLimits],
    ) -> IMapUnorderedIterator[R]:
        """Like `imap`, but the results come as they become ready."""
        limits = self._limits_of("imap_unordered", options, lost_worker_timeout)
        return self._imap(IMapUnorderedIterator, func, iterable, chunksize, buffersize, limits)

    # ---- how

    def _limits_of(
        self, name: str, options: TaskLimits, lost_worker_timeout: float | None = None
    ) -> Limits:
        check_keywords(name, options, TaskLimits.__optional_keys__)
        self._engine.state.check_running()
        return self._limits.override(lost_worker_timeout=lost_worker_timeout, **options)

    def _map(
        self,
        mode: int,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        limits: Limits,
        callback: Callback[Any] = None,
        error_callback: Callback[Any] = None,
        wait: bool = False,
    ) -> MapResult[Any]:
        check_function(func)
        callbacks = callbacks_for(self._engine.callbacks, callback, error_callback)
        if chunksize is not None:
            chunksize = count("chunksize", chunksize)
        engine, items = self._engine, list(iterable)
        name = function_name(func)
        result: MapResult[Any] = MapResult(self, name, len(items), callbacks)
        if not items:
            return result
        workers = engine.supervisor.processes
        few = FIRST_CHUNKS * workers  # they are handed over at once
        chunks: Iterable[list[Any]]
        if chunksize is None:
            chunks = adaptive = AdaptiveChunks(items, workers)
            # One more than few: after them there is still room, and so the end is found at once.
            result.limit(few + (len(items) == few), adaptive.measured)
        else:
            chunks = fixed_chunks(items, chunksize)
            result.limit(LEAST_AHEAD * workers)
        jobs = engine.factory.chunks(result, mode, func, chunks, limits)
        engine.feed(jobs, result, here=wait, at_once=len(items) <= few)
        return result

    def _imap(
        self,
        iterator_class: type[Iterator],
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        limits: Limits,
    ) -> Iterator:
        engine = self._engine
        check_function(func)
        chunksize = count("chunksize", chunksize)
        buffersize = some_count("buffersize", buffersize)
        name, workers = function_name(func), engine.supervisor.processes
        ordered = iterator_class is not IMapUnorderedIterator
        items = Items(self, name, buffersize, chunksize, workers, ordered)
        items.on_cancel = engine.state.check_done
        result = iterator_class(items)  # which cancels them if this is interrupted
        check_can_iterate(iterable)  # only that: to begin may already take long
        jobs = engine.factory.items(items, func, iterable, chunksize, limits)
        engine.feed(jobs, items)
        return result
