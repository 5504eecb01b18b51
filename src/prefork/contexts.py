"""Contexts as `multiprocessing` has them, whose pools are ours; and how programs that cannot be
changed get them."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable, Iterable
from multiprocessing import context as mp_context
from typing import Any, Final

from prefork import pool
from prefork._compat.classes import adopt_bases
from prefork._public import public
from prefork._system.locks import Lock

__all__ = ["get_context", "install", "uninstall"]

_lock: Final = Lock()
std_pool: Any = importlib.import_module("multiprocessing.pool")  # (to set its attributes)
StdPool = std_pool.Pool
adopt_bases()


@public
def get_context(method: str | None = None) -> Context:
    """Like `multiprocessing.get_context`: everything is the standard library's, but `Pool`.

    Args:
        method: "fork", "forkserver" or "spawn"; None: the default one.

    Raises:
        ValueError: there is no such method here.
    """
    return Context(multiprocessing.get_context(method))


class Context:
    """A start method's context: that of `multiprocessing`, but `Pool` is `prefork.Pool`."""

    def __init__(self, context: mp_context.BaseContext) -> None:
        self._context = context

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        **options: Any,
    ) -> pool.Pool:
        """A `prefork.Pool` whose workers are started by this context's method.

        Args:
            options: the others of `prefork.Pool`.
        """
        return pool.Pool(
            processes, initializer, initargs, maxtasksperchild, context=self._context, **options
        )

    def get_context(self, method: str | None = None) -> Context:
        """As that of `multiprocessing`: this one, if `method` is None."""
        return self if method is None else get_context(method)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return get_context, (self._context.get_start_method(),)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._context.get_start_method()}>"


class Pool(pool.Pool):
    """A `prefork.Pool` in the place of `multiprocessing.pool.Pool`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if isinstance(self, std_pool.ThreadPool):  # it calls this by the name that was its base's
            StdPool.__init__(self, *args, **kwargs)
        else:
            super().__init__(*args, **kwargs)


@public
def install() -> None:
    """Have every pool that `multiprocessing` makes from now on in this process be a `prefork.Pool`:
    by `multiprocessing.Pool`, a context's `Pool`, or the class `multiprocessing.pool.Pool`.

    For programs that cannot be changed; one that can be imports `Pool` from here. Whoever has
    imported that class by its name before keeps the standard library's. Thread pools stay as they
    are. May be called again, and from any thread.
    """
    with _lock:
        # `multiprocessing.context` looks it up for each pool, so nothing else is to be replaced.
        if std_pool.Pool is StdPool:
            std_pool.Pool = Pool
            _say_where_it_is(__name__, "StdPool")


@public
def uninstall() -> None:
    """Undo `install`. Pools that there are go on."""
    with _lock:
        if std_pool.Pool is Pool:
            std_pool.Pool = StdPool
            _say_where_it_is(std_pool.__name__, "Pool")


def _say_where_it_is(module: str, name: str) -> None:
    """The standard library's class is pickled by its name: managers do so when they start."""
    StdPool.__module__, StdPool.__qualname__ = module, name
