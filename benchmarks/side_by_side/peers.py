"""The pools that are measured, each behind the interface of `Peer`."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Awaitable, Iterable, Iterator
from functools import partial
from typing import Any

from benchmarks.side_by_side.frameworks import Dask, Joblib, Ray, in_parallel
from benchmarks.side_by_side.peer import Func, FuturesPeer, Peer, PoolPeer, version


class Prefork(PoolPeer):
    module = "prefork.pool"
    distribution = "prefork"
    home = "build/compiled"
    joblib_module = "prefork.joblib"
    one_task = "maxtasksperchild"

    def __init__(self, workers: int, method: str, **options: Any) -> None:
        from prefork import Pool

        self._pool = Pool(workers, context=method, **options)
        self._executor: Any = None
        self._made_with = workers, method

    @classmethod
    def unavailable(cls) -> str | None:
        return None

    def with_shared(self, func: Func, constant: Any, items: list[Any]) -> Iterable[Any]:
        from prefork import share

        with share(constant) as shared:
            call = partial(_with_shared, func, shared)
            return self._pool.map(call, items, 1)  # type: ignore[no-any-return]

    def future(self, func: Func, *args: Any) -> Any:
        if self._executor is None:
            from prefork import ProcessPoolExecutor

            self._executor = ProcessPoolExecutor(*self._made_with)
        return self._executor.submit(func, *args)

    def awaitable(self, func: Func, *args: Any) -> Awaitable[Any]:
        return self._pool.submit(func, *args)  # type: ignore[no-any-return]

    def parallel(self, func: Func, items: list[Any]) -> list[Any]:
        from joblib import parallel_config

        import prefork.joblib  # noqa: F401 (registers it)

        with parallel_config(backend="prefork"):
            return in_parallel(func, items, self._made_with[0])  # type: ignore[no-any-return]


class PreforkInterpreted(Prefork):
    """The same source, as plain Python."""

    home = "src"


class Multiprocessing(PoolPeer):
    module = "multiprocessing.pool"
    one_task = "maxtasksperchild"

    def __init__(self, workers: int, method: str, **options: Any) -> None:
        self._pool = multiprocessing.get_context(method).Pool(workers, **options)


class Billiard(PoolPeer):
    module = "billiard.pool"
    distribution = "billiard"
    one_task = "maxtasksperchild"

    def __init__(self, workers: int, method: str, **options: Any) -> None:
        import billiard

        self._pool = billiard.get_context(method).Pool(workers, **options)


class ConcurrentFutures(FuturesPeer):
    module = "concurrent.futures.process"

    def __init__(self, workers: int, method: str, **options: Any) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context(method))


class Interpreters(FuturesPeer):
    """Threads, each with an interpreter of its own."""

    module = "concurrent.futures"
    start_methods = ()

    def __init__(self, workers: int, method: str, **options: Any) -> None:
        from concurrent import futures

        self._pool = futures.InterpreterPoolExecutor(workers)  # type: ignore[attr-defined]

    @classmethod
    def unavailable(cls) -> str | None:
        return None if sys.version_info >= (3, 14) else "Python has it from 3.14 on"


class Threads(FuturesPeer):
    """Where they run at the same time."""

    module = "concurrent.futures.thread"
    start_methods = ()

    def __init__(self, workers: int, method: str, **options: Any) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._pool = ThreadPoolExecutor(workers)

    @classmethod
    def unavailable(cls) -> str | None:
        locked = getattr(sys, "_is_gil_enabled", lambda: True)()
        return "this is no free-threaded build of Python" if locked else None


class Loky(FuturesPeer):
    module = "loky"
    start_methods = ()  # its own, with an exec
    distribution = "loky"

    def __init__(self, workers: int, method: str, **options: Any) -> None:
        import loky

        self._pool = loky.ProcessPoolExecutor(workers)


class Deadpool(FuturesPeer):
    module = "deadpool"
    distribution = "deadpool-executor"
    one_task = "max_tasks_per_child"

    def __init__(self, workers: int, method: str, **options: Any) -> None:
        import deadpool

        context: Any = multiprocessing.get_context(method)
        self._pool = deadpool.Deadpool(workers, mp_context=context, **options)


class Pebble(Peer):
    module = "pebble"
    distribution = "pebble"
    default_chunk_is_one = True
    one_task = "max_tasks"

    def __init__(self, workers: int, method: str, **options: Any) -> None:
        import pebble

        context: Any = multiprocessing.get_context(method)
        self._pool: Any = pebble.ProcessPool(workers, context=context, **options)

    def submit(self, func: Func, *args: Any) -> Any:
        return self._pool.schedule(func, args=args)

    def result(self, handle: Any) -> Any:
        return handle.result()

    def map(self, func: Func, items: list[Any]) -> Iterable[Any]:
        return list(self._pool.map(func, items).result())

    def imap(self, func: Func, items: list[Any]) -> Iterator[Any]:
        return iter(self._pool.map(func, items).result())


class Mpire(Peer):
    module = "mpire"
    distribution = "mpire"

    def __init__(self, workers: int, method: str, **options: Any) -> None:
        import mpire

        self._pool: Any = mpire.WorkerPool(workers, start_method=method, keep_alive=True)
        self._made_with = workers, method

    def submit(self, func: Func, *args: Any) -> Any:
        return self._pool.apply_async(func, args)

    def result(self, handle: Any) -> Any:
        return handle.get()

    def map(self, func: Func, items: list[Any]) -> Iterable[Any]:
        from mpire.utils import make_single_arguments

        if isinstance(items[0], dict):  # else their keys would be the names of arguments
            items = list(make_single_arguments(items, generator=False))
        return self._pool.map(func, items)  # type: ignore[no-any-return]

    def with_constant(self, func: Func, constant: Any, items: list[Any]) -> Iterable[Any]:
        """Only a new pool can be given an object; its workers inherit it."""
        import mpire

        workers, method = self._made_with
        pool: Any = mpire.WorkerPool(workers, shared_objects=constant, start_method=method)
        return pool.map(func, items, chunk_size=1)  # type: ignore[no-any-return]

    def imap(self, func: Func, items: list[Any]) -> Iterator[Any]:
        return self._pool.imap(func, items, chunk_size=1)  # type: ignore[no-any-return]

    def imap_unordered(self, func: Func, items: list[Any]) -> Iterator[Any]:
        return self._pool.imap_unordered(func, items, chunk_size=1)  # type: ignore[no-any-return]


def _with_shared(func: Func, shared: Any, item: Any) -> Any:
    return func(shared.get(), item)


PEERS: dict[str, type[Peer]] = {
    "prefork": Prefork,
    "not compiled": PreforkInterpreted,
    "multiprocessing": Multiprocessing,
    "concurrent.futures": ConcurrentFutures,
    "interpreters": Interpreters,
    "threads": Threads,
    "billiard": Billiard,
    "loky": Loky,
    "deadpool": Deadpool,
    "pebble": Pebble,
    "mpire": Mpire,
    "joblib": Joblib,
    "ray": Ray,
    "dask": Dask,
}

REFERENCE = "prefork"
OTHERS = [name for name, peer in PEERS.items() if not issubclass(peer, Prefork)]


def versions() -> dict[str, str]:
    """Of those that are no part of Python; what is not installed is missing."""
    names = dict.fromkeys(peer.distribution for peer in PEERS.values() if peer.distribution)
    return {name: found for name in names if (found := version(name)) is not None}
