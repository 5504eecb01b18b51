"""`ProcessPoolExecutor`: the interface of `concurrent.futures`, on a pool of its own.

    submit, map ──► the pool's dispatcher ──► … ──► Future.job_done, on the pool's thread

It has no thread, no queue and no policy of its own: a future is itself what the engine tells of its
job's outcome. The pool is made when the first call comes. So a module that makes an executor can be
imported in workers, too, which costs nothing there.

At the interpreter's exit, what executors have been given is finished, as in the standard library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from multiprocessing import util
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any, Final, Literal

from prefork._arguments import check_callables, count, some_count
from prefork._compat.names import ExecutorNames
from prefork._engine.engine import Engine
from prefork._engine.places import Affinity, Environment
from prefork._policy.limits import Limits
from prefork._public import public
from prefork._system import std_internals
from prefork._system.locks import RLock
from prefork._verbs.executors import AFTER_SHUTDOWN, BaseExecutor, PoolExecutor
from prefork._verbs.futures import Future
from prefork._verbs.pool_options import make_options, observing
from prefork.pool import Pool, make_pool

if TYPE_CHECKING:
    from prefork._observe.lines import OutputLine

__all__ = ["ProcessPoolExecutor"]

EXIT_PRIORITY: Final = 20
"""Of what finishes the calls at the end of a child of `multiprocessing`: before the pools end."""


@public
class ProcessPoolExecutor(BaseExecutor, ExecutorNames):
    """A `concurrent.futures.Executor` that runs calls in worker processes.

    It never breaks: a worker that dies fails the future of the call that it was running.

    Args:
        max_workers: the number of workers. None: as many as this process may use CPUs.
        mp_context: a start method's context, as from `multiprocessing.get_context("spawn")`, or
            just its name. None: the default one.
        initializer: called in each worker as `initializer(*initargs)` when it starts. If it
            raises, the calls fail with `BrokenProcessPool`.
        initargs: its arguments.
        max_tasks_per_child: a worker is replaced after so many calls (with `map`: chunks of them);
            None: never. Any start method will do.
        max_tasks_per_child_jitter: as `maxtasksperchild_jitter` of `Pool`.
        timeout, soft_timeout, lost_worker_timeout: as those of `Pool`; all that follow, too.
        max_memory_per_child, max_memory_per_task: …
        max_restarts, start_timeout, finalizer, env, cpu_affinity: …
        inner_max_num_threads, forward_logs, context_vars, capture_output, observable: …

    Raises:
        ValueError: a number is out of range.
        TypeError: an argument is of the wrong type, or unknown.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        lost_worker_timeout: float = 10.0,
        max_tasks_per_child_jitter: int = 0,
        max_memory_per_child: int | None = None,
        max_memory_per_task: int | None = None,
        max_restarts: int = 10,
        start_timeout: float | None = 600.0,
        finalizer: Callable[[Any], object] | None = None,
        env: Environment | None = None,
        cpu_affinity: Affinity | None = None,
        inner_max_num_threads: float | None = None,
        forward_logs: bool | str = False,
        context_vars: Iterable[ContextVar[Any]] = (),
        capture_output: Literal["prefix"] | Callable[[OutputLine], object] | None = None,
        observable: bool | Literal["control"] = True,
    ) -> None:
        check_callables(initializer=initializer)
        if max_workers is not None:
            max_workers = count("max_workers", max_workers)
        self._defaults = Limits().override(timeout, soft_timeout, lost_worker_timeout)
        options = make_options(
            max_workers,
            initializer,
            initargs,
            some_count("max_tasks_per_child", max_tasks_per_child),
            mp_context,
            max_tasks_per_child_jitter,
            max_memory_per_child,
            max_memory_per_task,
            max_restarts,
            start_timeout,
            finalizer=finalizer,
            env=env,
            cpu_affinity=cpu_affinity,
            inner_max_num_threads=inner_max_num_threads,
            observable=observable,
        )
        self._options = observing(options, forward_logs, capture_output, context_vars)
        self._pool: Pool | None = None
        self._engine: Engine | None = None  # the pool's
        self._is_shut = False

    @property
    def pool(self) -> Pool:
        """The pool that runs the calls; made now, if there has been none. It ends with the
        executor.

        Raises:
            RuntimeError: the executor has been shut down before it had one.
        """
        self._engine_to_use()
        assert self._pool is not None
        return self._pool

    def _engine_to_use(self) -> Engine:
        return self._engine or self._make_pool()

    def _new_future(self, engine: Engine) -> Future[Any]:
        return Future(self._pool, engine)

    def _view(self, limits: Limits) -> PoolExecutor:
        engine = self._engine_to_use()
        return PoolExecutor(self._pool, engine, limits)

    def _make_pool(self) -> Engine:
        with _making:
            if self._engine is None:
                if self._is_shut:
                    raise RuntimeError(AFTER_SHUTDOWN)
                pool, engine = make_pool(self._options, self._defaults)
                _finish_at_exit(engine)
                self._pool, self._engine = pool, engine
            return self._engine

    # ---- the end

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; the workers leave when all are done. May be called again.

        Args:
            wait: return when all calls have ended, what was left by `add_done_callback` has run,
                and the workers have left.
            cancel_futures: cancel the calls that have not been started.
        """
        with _making:
            self._is_shut = True
            pool, engine = self._pool, self._engine
        if pool is None or engine is None or engine.state.is_forked:
            return
        pool.close()
        if cancel_futures:
            engine.terminator.cancel_where(lambda job: True)
        if wait:
            pool.join()

    def terminate_workers(self) -> None:
        """Shut down, without waiting, and send SIGTERM to all workers that run a call. Calls that
        have not been started are cancelled; those that run fail with `Terminated`, unless they
        survive the signal: then their own results count."""
        self._end_calls(signal.SIGTERM)

    def kill_workers(self) -> None:
        """The same by SIGKILL, also to what the calls have started."""
        self._end_calls(signal.SIGKILL)

    def _end_calls(self, signum: int) -> None:
        self.shutdown(wait=False, cancel_futures=True)
        if (engine := self._engine) is not None and not engine.state.is_forked:
            engine.terminator.terminate_where(lambda job: True, signum)

    def __del__(self) -> None:
        """Nobody will hand in more: what has been is finished, as in the standard library."""
        if (pool := getattr(self, "_pool", None)) is not None:
            pool.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise NotImplementedError("an executor cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        if (pool := self._pool) is not None:
            return f"<{type(self).__name__} of {pool!r}>"
        state = "shut down" if self._is_shut else f"not started, {self._max_workers} workers"
        return f"<{type(self).__name__}: {state}>"


# ---- the end of the process

_making = RLock()  # re-entrant: a signal handler may hand in a call, too
_unfinished: weakref.WeakSet[Engine] = weakref.WeakSet()
_finalized = 0  # the process whose end is seen to, if it is a child of multiprocessing
_main_file: str | None = None  # where the main module is from


def _finish_at_exit(engine: Engine) -> None:
    global _finalized, _main_file  # noqa: PLW0603
    _main_file = getattr(sys.modules.get("__main__"), "__file__", None) or _main_file
    _unfinished.add(engine)
    if _finalized != os.getpid():
        _finalized = os.getpid()
        util.Finalize(None, _finish_all, exitpriority=EXIT_PRIORITY)


def _finish_all() -> None:
    """Wait for what executors have been given."""
    engines = [engine for engine in _unfinished if not engine.state.is_forked]
    for engine in engines:
        engine.lifecycle.close()
    with _main_module_as_it_was():
        for engine in engines:
            engine.join()
            engine.callbacks.handle_event()  # if Python (3.12.1) lets no thread start any more


@contextlib.contextmanager
def _main_module_as_it_was() -> Iterator[None]:
    """A worker that is started by forkserver or spawn imports the main module, from where that says
    that it is from; and Python takes that away from it when it has run."""
    main = sys.modules.get("__main__")
    if main is None or _main_file is None or hasattr(main, "__file__"):
        yield
        return
    main.__file__ = _main_file
    try:
        yield
    finally:
        del main.__file__


def _after_in_child() -> None:
    global _making  # noqa: PLW0603
    _making = RLock()
    _unfinished.clear()


os.register_at_fork(after_in_child=_after_in_child)
# In the main process it is done before the other exit functions: once these run, Python starts no
# more threads and processes, and calls that are left may need some. (In a child, it is too late.)
std_internals.before_threads_end(_finish_all)
