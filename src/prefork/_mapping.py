"""The map family: many calls of one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from prefork._arguments import check_can_iterate, count, some_count
from prefork._compat.habits import check_function
from prefork._describe import function_name
from prefork._engine.engine import Engine
from prefork._ipc.wire import MAP, STARMAP
from prefork._policy.chunks import FIRST_CHUNKS, LEAST_AHEAD, AdaptiveChunks, fixed_chunks
from prefork._policy.limits import Limits
from prefork._results.apply import callbacks_for
from prefork._results.imap import Items
from prefork._results.protocols import Callback, PoolRef
from prefork.results import IMapIterator, IMapUnorderedIterator, MapResult

__all__ = ["MapFamily"]

Iterator = TypeVar("Iterator", bound=IMapIterator)


class MapFamily(PoolRef):
    """What `Pool` has of it. All of these take, as keywords:

    timeout, soft_timeout: the time limits of each call, in seconds; None: the pool's.
    retries: how often a chunk is run again after its worker was lost; its calls that had
        finished are then run again, too.
    """

    _engine: Engine

    def map(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        *,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> list[Any]:
        """`[func(item) for item in iterable]`, in the workers.

        Without `chunksize`, items are handed over in chunks that are sized by their measured run
        time. The first error among the items is raised, when all chunks have finished.
        """
        limits = self._limits(timeout, soft_timeout, retries=retries)
        return self._map(MAP, func, iterable, chunksize, limits, wait=True).get()

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
        *,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> MapResult:
        """Like `map`, but returns at once with a handle of the list."""
        limits = self._limits(timeout, soft_timeout, retries=retries)
        return self._map(MAP, func, iterable, chunksize, limits, callback, error_callback)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> list[Any]:
        """Like `map`, but each item is unpacked: `(a, b)` becomes `func(a, b)`."""
        limits = self._limits(timeout, soft_timeout, retries=retries)
        return self._map(STARMAP, func, iterable, chunksize, limits, wait=True).get()

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
        *,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> MapResult:
        """Like `starmap`, but returns at once with a handle of the list."""
        limits = self._limits(timeout, soft_timeout, retries=retries)
        return self._map(STARMAP, func, iterable, chunksize, limits, callback, error_callback)

    def imap(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> IMapIterator:
        """Like `map`, but lazy: an iterator over the results, in the order of the input.

        Args:
            chunksize: how many items are handed to a worker at once.
            lost_worker_timeout: instead of the pool's.
            buffersize: how many items the input is read ahead of the results that were taken;
                None: 20 ms of work per worker, but at least 128 chunks and at most 1,024. In any
                case it is not read on while 256 MiB of calls are on their way.
        """
        limits = self._limits(timeout, soft_timeout, lost_worker_timeout, retries)
        return self._imap(IMapIterator, func, iterable, chunksize, buffersize, limits)

    def imap_unordered(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> IMapUnorderedIterator:
        """Like `imap`, but the results come as they become ready."""
        limits = self._limits(timeout, soft_timeout, lost_worker_timeout, retries)
        return self._imap(IMapUnorderedIterator, func, iterable, chunksize, buffersize, limits)

    # ---- how

    def _limits(
        self,
        timeout: float | None,
        soft_timeout: float | None,
        lost_worker_timeout: float | None = None,
        retries: int = 0,
    ) -> Limits:
        self._engine.state.check_running()
        return self._engine.limits.override(timeout, soft_timeout, lost_worker_timeout, retries)

    def _map(
        self,
        mode: int,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        limits: Limits,
        callback: Callback = None,
        error_callback: Callback = None,
        wait: bool = False,
    ) -> MapResult:
        check_function(func)
        callbacks = callbacks_for(self._engine.callbacks, callback, error_callback)
        if chunksize is not None:
            chunksize = count("chunksize", chunksize)
        engine, items = self._engine, list(iterable)
        name = function_name(func)
        result = MapResult(self, name, len(items), callbacks)
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
