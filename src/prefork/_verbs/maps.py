"""The map family: many calls of one function, whose results are wanted together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Unpack, overload

from prefork._arguments import count
from prefork._compat.habits import check_function
from prefork._describe import function_name
from prefork._ipc.wire import MAP, STARMAP
from prefork._policy.chunks import FIRST_CHUNKS, LEAST_AHEAD, AdaptiveChunks, fixed_chunks
from prefork._policy.limits import Limits
from prefork._results.apply import callbacks_for
from prefork._verbs.family import Family
from prefork._verbs.signatures import (
    A,
    B,
    C,
    Callback,
    MapOptions,
    OfOneType,
    R,
    Ts,
    Unchecked,
    X,
    Y,
    Z,
)
from prefork.results import MapResult

__all__ = ["MapFamily"]


class MapFamily(Family):
    """What `Pool` has of it. All of these take, as keywords:

    timeout, soft_timeout: the time limits of each call, in seconds; None: the pool's; infinity:
        none.
    retries: how often a chunk is run again after its worker was lost; its calls that had
        finished are then run again, too.
    seed: an int of at least 0: the random numbers of each item depend on it and on the item's
        position alone, those of `random`, `numpy.random` and `current_worker().rng`; so they are
        the same whatever the number of workers, the order and the chunks. The formulas are
        in docs/howto/worker-state.md. None: they are different each time.
    progress: shows how far the call is, on a thread of its own. True, or a label: by tqdm, in a
        notebook as there, or by a line of text if that is not installed. Or what shows it: tqdm,
        rich's `Progress`, or a bar that you have made with one of these; a function that is called
        with `total` (int; None if nobody knows) and returns an object with an `update(n)`, and
        perhaps a `close()`. What its making raises, the call raises; what it raises later is
        logged, and then it is not drawn any more. None, False: nothing is shown.
    """

    @overload
    def map(
        self,
        func: Callable[[A], R],
        iterable: Iterable[A],
        chunksize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> list[R]: ...
    @overload
    def map(
        self,
        func: Callable[[A | X], R],
        iterable: Iterable[A | X],
        chunksize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> list[R]: ...
    def map(
        self,
        func: Callable[[Any], R],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> list[R]:
        """`[func(item) for item in iterable]`, in the workers.

        The first error among the items is raised, when all chunks have finished.

        Args:
            func: a callable that takes one item, and can be pickled.
            iterable: the items, which can be pickled; it is read to its end at once.
            chunksize: how many items are one job, an int of at least 1. None: as many as take about
                as long, by their measured run time, as handing them over is worth.
            options: `soft_timeout`, `timeout` (seconds, of each item) and `retries` (of a chunk).

        Returns:
            The results, in the order of the items.

        Raises:
            Exception: what `MapResult.get` raises, and `map_async`.
        """
        limits, seed, progress = self._map_options("map", options)
        given = (func, iterable, chunksize, limits, seed, progress)
        return self._map(MAP, *given, wait=True).get()

    @overload
    def map_async(
        self,
        func: Callable[[A], R],
        iterable: Iterable[A],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[MapOptions],
    ) -> MapResult[R]: ...
    @overload
    def map_async(
        self,
        func: Callable[[A | X], R],
        iterable: Iterable[A | X],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[MapOptions],
    ) -> MapResult[R]: ...
    def map_async(
        self,
        func: Callable[[Any], R],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[MapOptions],
    ) -> MapResult[R]:
        """Like `map`, but returns at once with a handle of the list.

        Args:
            func, iterable, chunksize, options: as in `map`.
            callback: called with the list of results.
            error_callback: called with the first exception, if any item fails for any reason.

        Raises:
            ValueError: the pool is closed or terminated; an option is out of range.
            PoolBrokenError: the pool could not start its workers.
            TypeError: `func` or a callback cannot be called, or an argument is of the wrong type.
            RuntimeError: in a forked child, whose pool this is not.
            Exception: what `iterable` raises.
        """
        limits, seed, progress = self._map_options("map_async", options)
        return self._map(
            MAP, func, iterable, chunksize, limits, seed, progress, callback, error_callback
        )

    @overload
    def starmap(
        self,
        func: Callable[[*Ts], R],
        iterable: Iterable[tuple[*Ts]],
        chunksize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> list[R]: ...
    @overload
    def starmap(
        self,
        func: Callable[[A | X], R],
        iterable: Iterable[tuple[A | X]],
        chunksize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> list[R]: ...
    @overload
    def starmap(
        self,
        func: Callable[[A | X, B | Y], R],
        iterable: Iterable[tuple[A | X, B | Y]],
        chunksize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> list[R]: ...
    @overload
    def starmap(
        self,
        func: Callable[[A | X, B | Y, C | Z], R],
        iterable: Iterable[tuple[A | X, B | Y, C | Z]],
        chunksize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> list[R]: ...
    @overload
    def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Unchecked],
        chunksize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> list[R]: ...
    @overload
    def starmap(
        self,
        func: OfOneType[A, R],
        iterable: Iterable[Iterable[A]],
        chunksize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> list[R]: ...
    def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        **options: Unpack[MapOptions],
    ) -> list[R]:
        """Like `map`, but each item is an iterable of arguments: `(a, b)` becomes `func(a, b)`."""
        limits, seed, progress = self._map_options("starmap", options)
        given = (func, iterable, chunksize, limits, seed, progress)
        return self._map(STARMAP, *given, wait=True).get()

    @overload
    def starmap_async(
        self,
        func: Callable[[*Ts], R],
        iterable: Iterable[tuple[*Ts]],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[MapOptions],
    ) -> MapResult[R]: ...
    @overload
    def starmap_async(
        self,
        func: Callable[[A | X], R],
        iterable: Iterable[tuple[A | X]],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[MapOptions],
    ) -> MapResult[R]: ...
    @overload
    def starmap_async(
        self,
        func: Callable[[A | X, B | Y], R],
        iterable: Iterable[tuple[A | X, B | Y]],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[MapOptions],
    ) -> MapResult[R]: ...
    @overload
    def starmap_async(
        self,
        func: Callable[[A | X, B | Y, C | Z], R],
        iterable: Iterable[tuple[A | X, B | Y, C | Z]],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[MapOptions],
    ) -> MapResult[R]: ...
    @overload
    def starmap_async(
        self,
        func: Callable[..., R],
        iterable: Iterable[Unchecked],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[MapOptions],
    ) -> MapResult[R]: ...
    @overload
    def starmap_async(
        self,
        func: OfOneType[A, R],
        iterable: Iterable[Iterable[A]],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[MapOptions],
    ) -> MapResult[R]: ...
    def starmap_async(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback[list[R]] = None,
        error_callback: Callback[Any] = None,
        **options: Unpack[MapOptions],
    ) -> MapResult[R]:
        """Like `starmap`, but returns at once with a handle of the list; see `map_async`."""
        limits, seed, progress = self._map_options("starmap_async", options)
        return self._map(
            STARMAP, func, iterable, chunksize, limits, seed, progress, callback, error_callback
        )

    # ---- how

    def _map(
        self,
        mode: int,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        limits: Limits,
        seed: int | None,
        progress: object,
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
        result: MapResult[Any] = MapResult(self, engine, name, len(items), callbacks)
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
        latest = limits.latest(time.monotonic())
        jobs = engine.factory.chunks(result, mode, func, chunks, limits, latest, seed)
        with self._drawing(progress, result, len(items), name, until_end=wait):
            try:
                engine.feed(jobs, result, here=wait, at_once=len(items) <= few)
                if wait:
                    result.wait()
            except KeyboardInterrupt:  # nobody will have it
                result.terminate()
                # Also if it is over for the handle, which has heard of the interrupt first.
                engine.terminator.terminate_all(result)
                raise
        return result
