"""The lazy ones of the map family: many calls of one function, whose results come one by one."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Sized
from typing import Any, TypeVar, Unpack, overload

from prefork._arguments import check_can_iterate, count, some_count
from prefork._compat.habits import check_function
from prefork._describe import function_name
from prefork._policy.limits import Limits
from prefork._results.imap import Items
from prefork._verbs.family import Family
from prefork._verbs.signatures import A, AnyIterable, MapOptions, R, X
from prefork.results import IMapIterator, IMapUnorderedIterator

__all__ = ["LazyMapFamily"]

Iterator = TypeVar("Iterator", bound=IMapIterator[Any])


class LazyMapFamily(Family):
    """What `Pool` has of it; options are as in `MapFamily`."""

    @overload
    def imap(
        self,
        func: Callable[[A], R],
        iterable: AnyIterable[A],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> IMapIterator[R]: ...
    @overload
    def imap(
        self,
        func: Callable[[A | X], R],
        iterable: AnyIterable[A | X],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> IMapIterator[R]: ...
    def imap(
        self,
        func: Callable[[Any], R],
        iterable: AnyIterable[Any],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> IMapIterator[R]:
        """Like `map`, but lazy: an iterator over the results, in the order of the input.

        The input is read in the background, as results are taken. What it raises, the iterator
        raises, after the results of what came before it. In an event loop, `async for` takes the
        results, and lets other tasks run meanwhile.

        Args:
            func, options: as in `map`.
            iterable: the items; it may be endless. An async iterable is read by the event loop of
                asyncio that runs in this thread.
            chunksize: how many items are handed to a worker at once, an int of at least 1. Each
                has an outcome of its own; if the worker dies, another one goes on with the next.
            lost_worker_timeout: seconds (int or float) instead of the pool's.
            buffersize: how many items the input is read ahead of the results that were taken, an
                int; None: 20 ms of work per worker, but at least 128 chunks and at most 1,024. In
                any case it is not read on while 256 MiB of calls are on their way.

        Raises:
            ValueError: the pool is closed or terminated; an option is out of range.
            PoolBrokenError: the pool could not start its workers.
            TypeError: `func` cannot be called, or an argument is of the wrong type.
            RuntimeError: in a forked child, whose pool this is not; or an async iterable is given
                where no event loop of asyncio runs.
        """
        limits, seed, progress = self._map_options("imap", options, lost_worker_timeout)
        return self._imap(
            IMapIterator, func, iterable, chunksize, buffersize, limits, seed, progress
        )

    @overload
    def imap_unordered(
        self,
        func: Callable[[A], R],
        iterable: AnyIterable[A],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> IMapUnorderedIterator[R]: ...
    @overload
    def imap_unordered(
        self,
        func: Callable[[A | X], R],
        iterable: AnyIterable[A | X],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> IMapUnorderedIterator[R]: ...
    def imap_unordered(
        self,
        func: Callable[[Any], R],
        iterable: AnyIterable[Any],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> IMapUnorderedIterator[R]:
        """Like `imap`, but the results come as they become ready, in any order."""
        limits, seed, progress = self._map_options("imap_unordered", options, lost_worker_timeout)
        return self._imap(
            IMapUnorderedIterator, func, iterable, chunksize, buffersize, limits, seed, progress
        )

    # ---- how

    def _imap(
        self,
        iterator_class: type[Iterator],
        func: Callable[[Any], Any],
        iterable: AnyIterable[Any],
        chunksize: int,
        buffersize: int | None,
        limits: Limits,
        seed: int | None,
        progress: object,
    ) -> Iterator:
        engine = self._engine
        check_function(func)
        chunksize = count("chunksize", chunksize)
        buffersize = some_count("buffersize", buffersize)
        name, workers = function_name(func), engine.supervisor.processes
        ordered = iterator_class is not IMapUnorderedIterator
        done = engine.state.check_done
        items = Items(self, engine, name, buffersize, chunksize, workers, ordered, done)
        result = iterator_class(items)  # which cancels them if this is interrupted
        total = len(iterable) if isinstance(iterable, Sized) else None
        with self._drawing(progress, items, total, name):
            if isinstance(iterable, Iterable) or not isinstance(iterable, AsyncIterable):
                check_can_iterate(iterable)  # only that: to begin may already take long
                jobs = engine.factory.items(items, func, iterable, chunksize, limits, seed)
                engine.feed(jobs, items)
            else:
                from prefork._verbs.async_inputs import AsyncInput, Handed

                handed = Handed()
                jobs = engine.factory.items(items, func, handed, chunksize, limits, seed)
                AsyncInput(iterable, handed, jobs, items, engine.dispatcher)
        return result
