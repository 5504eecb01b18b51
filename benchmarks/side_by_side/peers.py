"""The pools, behind one small interface.

Each is used as its own documentation has it, with its defaults. A pool that lacks a call does not
override it here, and is left out where the call is needed. None is ended: all processes of a sample
are, by who started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from importlib import metadata
from typing import Any, ClassVar

Func = Callable[..., Any]


class Peer:
    """One pool with so many workers."""

    start_methods: ClassVar[tuple[str, ...]] = ("fork", "forkserver")
    module: ClassVar[str]
    """To be imported before a start is timed."""
    distribution: ClassVar[str | None] = None  # that it comes with; None: the standard library
    home: ClassVar[str | None] = None  # a folder of the checkout that it is imported from
    default_chunk_is_one: ClassVar[bool] = False
    """Whether `map` hands over items one by one by default: slow, so it is given fewer."""

    def __init__(self, workers: int, method: str) -> None:
        raise NotImplementedError

    def submit(self, func: Func, *args: Any) -> Any:
        """Hand in one call; returns a handle at once."""
        raise NotImplementedError

    def result(self, handle: Any) -> Any:
        raise NotImplementedError

    def future(self, func: Func, *args: Any) -> Any:
        """The same by a `concurrent.futures.Executor`; returns a future."""
        raise NotImplementedError

    def awaitable(self, func: Func, *args: Any) -> Awaitable[Any]:
        """Hand in one call, in an event loop of asyncio; returns what is to be awaited."""
        raise NotImplementedError

    def call(self, func: Func, *args: Any) -> Any:
        """One call: hand it in, and wait for its result."""
        return self.result(self.submit(func, *args))

    def map(self, func: Func, items: list[Any]) -> Iterable[Any]:
        """With the chunks that it makes by default."""
        raise NotImplementedError

    def imap(self, func: Func, items: list[Any]) -> Iterator[Any]:
        """Lazily, in order, item by item."""
        raise NotImplementedError

    def imap_unordered(self, func: Func, items: list[Any]) -> Iterator[Any]:
        raise NotImplementedError

    def with_constant(self, func: Func, constant: Any, items: list[Any]) -> Iterable[Any]:
        """`[func(constant, item) for item in items]`, each item as a task of its own: what the pool
        offers for an object that all of them need."""
        raise NotImplementedError

    def with_shared(self, func: Func, constant: Any, items: list[Any]) -> Iterable[Any]:
        """The same, by what the pool has for objects that several calls need."""
        raise NotImplementedError

    def run_all(self, func: Func, arguments: Iterable[Any]) -> None:
        """Hand in a call for each, then wait for all."""
        handles = [self.submit(func, argument) for argument in arguments]
        for handle in handles:
            self.result(handle)

    @classmethod
    def has(cls, call: str) -> bool:
        """Whether this pool has the call, or one that serves for it."""
        serve = {call, "submit"} if call in ("call", "run_all") else {call}
        return any(getattr(cls, name) is not getattr(Peer, name) for name in serve)


class _PoolPeer(Peer):
    """What has the interface of `multiprocessing.Pool`."""

    _pool: Any

    def submit(self, func: Func, *args: Any) -> Any:
        return self._pool.apply_async(func, args)

    def result(self, handle: Any) -> Any:
        return handle.get()

    def call(self, func: Func, *args: Any) -> Any:
        return self._pool.apply(func, args)

    def map(self, func: Func, items: list[Any]) -> Iterable[Any]:
        return self._pool.map(func, items)  # type: ignore[no-any-return]

    def with_constant(self, func: Func, constant: Any, items: list[Any]) -> Iterable[Any]:
        return self._pool.map(partial(func, constant), items, 1)  # type: ignore[no-any-return]

    def imap(self, func: Func, items: list[Any]) -> Iterator[Any]:
        return self._pool.imap(func, items)  # type: ignore[no-any-return]

    def imap_unordered(self, func: Func, items: list[Any]) -> Iterator[Any]:
        return self._pool.imap_unordered(func, items)  # type: ignore[no-any-return]


class Prefork(_PoolPeer):
    module = "prefork.pool"
    distribution = "prefork"
    home = "build/compiled"

    def __init__(self, workers: int, method: str) -> None:
        from prefork import Pool

        self._pool = Pool(workers, context=method)
        self._executor: Any = None
        self._made_with = workers, method

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


class PreforkInterpreted(Prefork):
    """The same source, as plain Python."""

    home = "src"


class Multiprocessing(_PoolPeer):
    module = "multiprocessing.pool"

    def __init__(self, workers: int, method: str) -> None:
        self._pool = multiprocessing.get_context(method).Pool(workers)


class Billiard(_PoolPeer):
    module = "billiard.pool"
    distribution = "billiard"

    def __init__(self, workers: int, method: str) -> None:
        import billiard

        self._pool = billiard.get_context(method).Pool(workers)


class _FuturesPeer(Peer):
    """What has the interface of `concurrent.futures.Executor`."""

    default_chunk_is_one = True
    _pool: Any

    def submit(self, func: Func, *args: Any) -> Any:
        return self._pool.submit(func, *args)

    def future(self, func: Func, *args: Any) -> Any:
        return self._pool.submit(func, *args)

    def awaitable(self, func: Func, *args: Any) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(self._pool, func, *args)

    def result(self, handle: Any) -> Any:
        return handle.result()

    def map(self, func: Func, items: list[Any]) -> Iterable[Any]:
        return list(self._pool.map(func, items))

    def with_constant(self, func: Func, constant: Any, items: list[Any]) -> Iterable[Any]:
        return list(self._pool.map(partial(func, constant), items))

    def imap(self, func: Func, items: list[Any]) -> Iterator[Any]:
        return self._pool.map(func, items)  # type: ignore[no-any-return]


class ConcurrentFutures(_FuturesPeer):
    module = "concurrent.futures.process"

    def __init__(self, workers: int, method: str) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context(method))


class Loky(_FuturesPeer):
    module = "loky"
    start_methods = ()  # its own, with an exec
    distribution = "loky"

    def __init__(self, workers: int, method: str) -> None:
        import loky

        self._pool = loky.ProcessPoolExecutor(workers)


class Deadpool(_FuturesPeer):
    module = "deadpool"
    distribution = "deadpool-executor"

    def __init__(self, workers: int, method: str) -> None:
        import deadpool

        context: Any = multiprocessing.get_context(method)
        self._pool = deadpool.Deadpool(workers, mp_context=context)


class Pebble(Peer):
    module = "pebble"
    distribution = "pebble"
    default_chunk_is_one = True

    def __init__(self, workers: int, method: str) -> None:
        import pebble

        context: Any = multiprocessing.get_context(method)
        self._pool: Any = pebble.ProcessPool(workers, context=context)

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

    def __init__(self, workers: int, method: str) -> None:
        import mpire

        self._pool: Any = mpire.WorkerPool(workers, start_method=method, keep_alive=True)

    def submit(self, func: Func, *args: Any) -> Any:
        return self._pool.apply_async(func, args)

    def result(self, handle: Any) -> Any:
        return handle.get()

    def map(self, func: Func, items: list[Any]) -> Iterable[Any]:
        return self._pool.map(func, items)  # type: ignore[no-any-return]

    def imap(self, func: Func, items: list[Any]) -> Iterator[Any]:
        return self._pool.imap(func, items, chunk_size=1)  # type: ignore[no-any-return]

    def imap_unordered(self, func: Func, items: list[Any]) -> Iterator[Any]:
        return self._pool.imap_unordered(func, items, chunk_size=1)  # type: ignore[no-any-return]


class Joblib(Peer):
    """It has no call that hands in one task and returns; a large object is a task of one."""

    module = "joblib"
    start_methods = ()  # loky's
    distribution = "joblib"

    def __init__(self, workers: int, method: str) -> None:
        self._workers = workers

    def _run(self, func: Func, items: Iterable[Any], **options: Any) -> Any:
        from joblib import Parallel, delayed

        return Parallel(self._workers, **options)(delayed(func)(item) for item in items)

    def with_constant(self, func: Func, constant: Any, items: list[Any]) -> Iterable[Any]:
        """It maps large arrays from a file, which it writes once."""
        from joblib import Parallel, delayed

        call = delayed(func)
        return Parallel(self._workers)(call(constant, item) for item in items)  # type: ignore[no-any-return]

    with_shared = with_constant

    def call(self, func: Func, *args: Any) -> Any:
        return self._run(func, args)[0]

    def map(self, func: Func, items: list[Any]) -> Iterable[Any]:
        return self._run(func, items)  # type: ignore[no-any-return]

    def imap(self, func: Func, items: list[Any]) -> Iterator[Any]:
        return iter(self._run(func, items, return_as="generator", batch_size=1))

    def imap_unordered(self, func: Func, items: list[Any]) -> Iterator[Any]:
        return iter(self._run(func, items, return_as="generator_unordered", batch_size=1))

    def run_all(self, func: Func, arguments: Iterable[Any]) -> None:
        self._run(func, arguments)


def _with_shared(func: Func, shared: Any, item: Any) -> Any:
    return func(shared.get(), item)


PEERS: dict[str, type[Peer]] = {
    "prefork": Prefork,
    "not compiled": PreforkInterpreted,
    "multiprocessing": Multiprocessing,
    "concurrent.futures": ConcurrentFutures,
    "billiard": Billiard,
    "loky": Loky,
    "deadpool": Deadpool,
    "pebble": Pebble,
    "mpire": Mpire,
    "joblib": Joblib,
}

REFERENCE = "prefork"
OTHERS = [name for name, peer in PEERS.items() if not issubclass(peer, Prefork)]


def versions() -> dict[str, str]:
    """Of those that are no part of Python; what is not installed is missing."""
    found = {}
    for peer in PEERS.values():
        if peer.distribution is not None:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[peer.distribution] = metadata.version(peer.distribution)
    return found
