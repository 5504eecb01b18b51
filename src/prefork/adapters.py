"""What those need who make another interface of a pool, as `prefork.taskpool` and `prefork.celery`
do: a `Pool` that has more to ask, and more to replace.

Programs that just have functions called need none of it, so `Pool` itself does not show it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefork._engine import callbacks
from prefork._engine.engine import Engine, RoleClasses
from prefork._engine.options import Options
from prefork._policy.limits import Limits
from prefork._policy.retry import Retry
from prefork._results.apply import callbacks_for
from prefork.errors import PoolBrokenError
from prefork.pool import Pool
from prefork.results import ApplyResult

__all__ = ["AdapterPool"]


class AdapterPool(Pool):
    """A `Pool` for an adapter. It is made in the same way.

    A subclass may replace, beside the classes that `Pool` has as attributes:

    CallbackRunner: calls what users want to have called.
    first_start_timeout: what the first workers have instead of `start_timeout`, in seconds; None:
        the same. All of them start at once, and what they load is not in the system's caches yet.
    load_seconds: how long a call may take to be unpickled until its time limits begin to count, in
        seconds (float). A new worker imports then what the task needs.
    """

    CallbackRunner: type[callbacks.CallbackRunner] = callbacks.CallbackRunner
    first_start_timeout: float | None = None
    load_seconds: float = 0.0
    _bounds_inner_threads = False  # what runs in its workers is the adapter's affair

    def _make_engine(
        self, options: Options, limits: Limits, classes: RoleClasses, threads: bool
    ) -> Engine:
        options = options._replace(
            first_start_timeout=self.first_start_timeout, load_seconds=self.load_seconds
        )
        classes = classes._replace(callbacks=self.CallbackRunner)
        return super()._make_engine(options, limits, classes, threads)

    def apply_noted(
        self,
        note: Callable[[ApplyResult[Any]], object],
        func: Callable[[], Any],
        callback: Callable[[Any], object],
        error_callback: Callable[[BaseException], object],
        timeout: float | None = None,
        soft_timeout: float | None = None,
        retries: int | Retry | None = None,
    ) -> None:
        """Like `apply_async(func)`, for who is to end the job whatever happens.

        Args:
            note: called with the handle just before the job is handed in. If a signal's handler
                raises from then on, there is somebody who can terminate it.
            callback, error_callback, timeout, soft_timeout, retries: as there, and so is what this
                raises.
        """
        engine = self._engine
        result: ApplyResult[Any] = ApplyResult(
            self, engine, callbacks_for(engine.callbacks, callback, error_callback)
        )
        limits = self._defaults.override(timeout, soft_timeout, None, retries)
        job = engine.factory.call(result, func, (), {}, limits)
        note(result)
        engine.dispatcher.submit(job)

    def call_soon(self, call: Callable[..., object], *args: object) -> None:
        """Have `call(*args)` called like the callbacks of jobs, after those that are waiting. Safe
        from any thread, and from signal handlers."""
        self._engine.call_soon(call, *args)

    def when_broken(self, call: Callable[[PoolBrokenError], object]) -> None:
        """Have `call(error)` called, like the callbacks of jobs, if the pool gives up since its
        workers cannot start; at once if it has."""
        self._engine.lifecycle.when_broken(call)

    @property
    def is_broken(self) -> bool:
        """Whether the pool has given up, since its workers cannot start."""
        return self._engine.is_broken

    def is_busy_here(self) -> bool:
        """Whether this is called by the pool's own work, as from a signal handler that has
        interrupted it: then nothing may be waited for, and `call_soon` is the way to change
        something."""
        return self._engine.is_busy_here()
