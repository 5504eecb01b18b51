"""What makes a result handle a future, as `concurrent.futures` knows them.

A future is told of its job's outcome like any other handle. `concurrent.futures.wait` and
`as_completed` reach into futures: they take a condition of theirs, look at a state by its name, and
leave objects to be told. Few futures are ever waited for in that way, and to make what it takes
costs as much as the rest of a short job: so it is made when it is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar, Final

from prefork._compiler import mypyc_attr
from prefork._policy.job import Job
from prefork._results.apply import ApplyResult, Handle
from prefork._results.protocols import EngineRef
from prefork._system.condition import Condition
from prefork.errors import Cancelled, PoolBrokenError

__all__ = ["FutureHandle"]

# The standard library's names.
_PENDING: Final = "PENDING"
_FINISHED: Final = "FINISHED"
_CANCELLED: Final = "CANCELLED_AND_NOTIFIED"


PATIENT: Final = 2.0
"""Seconds; who takes it lawfully, holds it for microseconds, or some 100 ms for 100,000 futures."""
HURRIED: Final = 0.02


class _Watch:
    """What others have left at one future, to be told of its outcome."""

    __slots__ = ("callbacks", "condition", "waiters")

    _was_left: ClassVar[bool] = False  # the last one that was to be taken

    def __init__(self) -> None:
        self.condition: Any = threading.Condition()
        self.waiters: list[Any] = []
        self.callbacks: list[Callable[..., object]] = []

    def acquire(self) -> bool:
        """Take the condition; False if nobody will ever release it.

        `concurrent.futures.wait` and `as_completed` take those of all futures, one after another,
        and an interrupt (Ctrl-C) in between leaves them taken. The results of all others would wait
        for that: so the pool waits a while, and not long once this has happened.
        """
        patience = HURRIED if _Watch._was_left else PATIENT
        is_ours = bool(self.condition.acquire(timeout=patience))
        _Watch._was_left = not is_ours
        return is_ours


@mypyc_attr(allow_interpreted_subclasses=True)
class FutureHandle(ApplyResult):
    """The handle of one job that is a future, too.

    Its outcome is set once: by the pool, or by `cancel`. Whoever does so holds the watch's
    condition, or makes sure that there is no watch.
    """

    __slots__ = ("_is_cancelled", "_watch")

    def __init__(self, pool: object, engine: EngineRef) -> None:
        super().__init__(pool, engine)
        self._watch: _Watch | None = None
        self._is_cancelled = False

    # ---- what `concurrent.futures` looks at

    @property
    def _state(self) -> str:
        if self._ok is None:
            return _PENDING
        return _CANCELLED if self._is_cancelled else _FINISHED

    @property
    def _exception(self) -> Any:
        return self._result if self._ok is False else None

    @property
    def _condition(self) -> Any:
        return self._get_watch().condition

    @property
    def _waiters(self) -> list[Any]:
        return self._get_watch().waiters

    @property
    def _done_callbacks(self) -> list[Callable[..., object]]:
        return self._get_watch().callbacks

    def _get_watch(self) -> _Watch:
        """
        Raises:
            RuntimeError: in a forked child, where nobody would be told.
        """
        if self._ok is None and (engine := self._engine) is not None:
            engine.check_owner()
        if (watch := self._watch) is not None:
            return watch
        watch = _Watch()
        with self._making_signals:  # then nobody sets the outcome without a look at it
            if self._watch is None:
                self._watch = watch
            else:
                watch = self._watch
        return watch

    def is_waited_for(self) -> bool:
        watch = self._watch
        return Handle.is_waited_for(self) or (watch is not None and bool(watch.waiters))

    # ---- the user's side

    def done(self) -> bool:
        """Whether the outcome is known: a result, an error, or that it was cancelled."""
        return self._ok is not None

    def cancelled(self) -> bool:
        """Whether the call was cancelled before it started."""
        return self._is_cancelled

    def running(self) -> bool:
        """Whether a worker runs the call right now."""
        return self._ok is None and self.pid is not None

    def result(self, timeout: float | None = None) -> Any:
        """What the call has returned, waiting for it at most `timeout` seconds.

        Raises:
            TimeoutError: it is not here in time. The call goes on.
            concurrent.futures.CancelledError: the call was cancelled.
            Exception: what the call raised, with the worker's traceback as its `__cause__`; or a
                `PreforkError` that says why it did not finish.
        """
        if self._ok:
            return self._result
        error = self.exception(timeout)
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del self  # else the traceback, by this frame, would hold us, and we hold the traceback
            del error

    def exception(self, timeout: float | None = None) -> Any:
        """What the call has raised, or None, waiting for its end at most `timeout` seconds.

        Raises:
            TimeoutError, concurrent.futures.CancelledError: as `result` does.
        """
        if self._ok is None:
            self.wait(timeout)
        if self._ok is None:
            if timeout is None:
                raise self._late(timeout)
            raise TimeoutError(f"{self.title()} was not there within {timeout:g} s")
        if self._is_cancelled:
            from concurrent.futures import CancelledError

            raise CancelledError(f"job {self.job} was cancelled before it started")
        return None if self._ok else self._result

    def cancel(self) -> bool:
        """Have the call never run, unless it has been started.

        Returns:
            Whether it is cancelled: False if it runs, or has ended.
        """
        engine, job = self._engine, self._entry
        if engine is not None and job is not None and engine.terminator.cancel(job):
            error = job.cancellation()
            if self._settle(self._get_watch(), False, error, True):
                if engine.is_busy_here():  # a signal handler has interrupted it
                    engine.callbacks(self._call_all)
                else:
                    if self._signal is not None:  # else the pool notifies it, in a moment
                        self._signal.notify_all()
                    self._call_all()
        return self._is_cancelled

    def terminate(self, signal: int | None = None) -> bool:
        """End the call, wherever it is. One that has not been started is cancelled; one that runs
        fails with `Terminated`. No other job is hit.

        Args:
            signal: what to send to the worker that runs it, as in `ApplyResult.terminate`. None:
                the worker is killed, with all that the call started.

        Returns:
            Whether there was anything to end: False if the call had finished.
        """
        if self._ok is not None:
            return False
        return self.cancel() or ApplyResult.terminate(self, signal)

    # ---- the pool's side

    def job_done(self, job: Job, ok: bool, value: Any) -> Condition | None:
        if (engine := self._engine) is None:
            return self._signal  # it was cancelled
        is_cancelled = False
        if not ok:
            # One that comes from a worker is what a task has met that has a pool itself.
            is_cancelled = job.pid is None and isinstance(value, Cancelled)
            if isinstance(value, PoolBrokenError) and engine.is_broken:
                value = self._broken(value)
        with self._making_signals:
            watch = self._watch
            if watch is None:
                self._result = value
                self._is_cancelled = is_cancelled
                self._ok = ok  # now it is done
                self._let_go()
                return self._signal
        if self._settle(watch, ok, value, is_cancelled) and watch.callbacks:
            engine.callbacks(self._call_all)
        return self._signal

    def _settle(self, watch: _Watch, ok: bool, value: Any, is_cancelled: bool) -> bool:
        """Set the outcome; False if it was set before."""
        is_ours = watch.acquire()
        try:
            if self._ok is not None:
                return False
            self._result = value
            self._is_cancelled = is_cancelled
            self._ok = ok  # now it is done
            self._let_go()
            for waiter in watch.waiters:
                if is_cancelled:
                    waiter.add_cancelled(self)
                elif ok:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            if is_ours:
                watch.condition.notify_all()
        finally:
            if is_ours:
                watch.condition.release()
        return True

    def _call_all(self) -> None:
        """Call what was left to be called."""
        raise NotImplementedError

    def _broken(self, error: PoolBrokenError) -> BaseException:
        """The same error, as users of futures expect it."""
        return error

    def _describe(self) -> str:
        return "cancelled" if self._is_cancelled else ApplyResult._describe(self)
