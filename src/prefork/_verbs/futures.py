"""Results as futures, as `concurrent.futures` has them.

Importing that module takes a while, and a pool does without: so this one is imported when somebody
asks for a future.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from prefork._compat.habits import check_function
from prefork._public import public
from prefork._results.future import FutureHandle
from prefork.results import ApplyResult

if TYPE_CHECKING:
    from prefork._engine.engine import Engine
    from prefork._policy.limits import Limits
    from prefork.errors import PoolBrokenError

__all__ = ["Future", "as_broken", "submit"]

T = TypeVar("T")


@public
class Future(FutureHandle, ApplyResult[T], concurrent.futures.Future[T]):  # type: ignore[override]
    """The result of one call, by `submit`: a `concurrent.futures.Future` that is a handle, too.

    Functions that are left by `add_done_callback` are called like other callbacks, on a thread of
    the pool, so that they may wait for other results; or at once, if it is done.
    """

    if TYPE_CHECKING:

        def result(self, timeout: float | None = None) -> T: ...

        def exception(self, timeout: float | None = None) -> BaseException | None: ...

    def _call_all(self) -> None:
        self._invoke_callbacks()  # type: ignore[attr-defined]

    def _broken(self, error: PoolBrokenError) -> BaseException:
        return as_broken(error)

    # ---- for who runs calls of its own: a pool does that here

    def set_running_or_notify_cancel(self) -> bool:
        raise self._refusal()

    def set_result(self, result: T) -> None:
        raise self._refusal()

    def set_exception(self, exception: BaseException | None) -> None:
        raise self._refusal()

    def _refusal(self) -> Exception:
        return concurrent.futures.InvalidStateError(f"{self!r} gets its outcome from its pool")


def as_broken(error: PoolBrokenError) -> PoolBrokenError:
    """The same error, as users of `concurrent.futures` expect it."""
    try:
        from prefork._compat.broken import BrokenProcessPool
    except RuntimeError:  # it cannot be imported any more, at the very end of the interpreter
        return error
    broken = BrokenProcessPool(*error.args)
    broken.__cause__ = error.__cause__
    return broken


def submit(
    future: Future[T],
    engine: Engine,
    func: Callable[..., T],
    args: Iterable[Any],
    kwargs: Mapping[str, Any],
    limits: Limits,
) -> Future[T]:
    """Have `func(*args, **kwargs)` called in a worker, for this future."""
    check_function(func)
    engine.dispatcher.submit(engine.factory.call(future, func, args, kwargs, limits))
    return future
