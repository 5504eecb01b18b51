"""What a pool is to the benchmarks: one small interface, and the two shapes that most pools have.

Each is used as its own documentation has it, with its defaults. A pool that lacks a call does not
override it here, and is left out where the call is needed. None is ended: all processes of a sample
are, by who started it.
"""

from __future__ import annotations

import asyncio
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
    joblib_module: ClassVar[str] = "joblib"
    """The same for a start by joblib."""
    distribution: ClassVar[str | None] = None  # that it comes with; None: the standard library
    home: ClassVar[str | None] = None  # a folder of the checkout that it is imported from
    default_chunk_is_one: ClassVar[bool] = False
    """Whether `map` hands over items one by one by default: slow, so it is given fewer."""
    heavy: ClassVar[bool] = False
    """Whether it takes seconds to start: measured in the first round of full mode only."""
    one_task: ClassVar[str] = ""
    """The option by which each worker is replaced after a task, if it has that with `fork`."""

    def __init__(self, workers: int, method: str, **options: Any) -> None:
        raise NotImplementedError

    @classmethod
    def unavailable(cls) -> str | None:
        """Why it cannot be measured here; None: it can."""
        if cls.distribution is not None and version(cls.distribution) is None:
            return "not installed"
        return None

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

    def parallel(self, func: Func, items: list[Any]) -> list[Any]:
        """Through joblib's `Parallel`."""
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


class PoolPeer(Peer):
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


class FuturesPeer(Peer):
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


def version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
