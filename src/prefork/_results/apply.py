"""What callers hold while their jobs run: result handles.

The pool's threads tell a handle once what has become of its job; callers wait. Everything else that
a handle knows it asks its job.

A handle that has callbacks is ready when they have run, as in `multiprocessing`: who collects by
callback and then waits for the handles finds everything collected. Only callbacks themselves see a
result as soon as it is here, so that one may wait for any job, its own included.
"""

from __future__ import annotations

import os
from multiprocessing import TimeoutError
from typing import Any, ClassVar

from prefork._arguments import check_callables
from prefork._compiler import mypyc_attr
from prefork._policy.job import Job
from prefork._policy.retry import Attempt
from prefork._results.protocols import Callback, EngineRef, RunCallback
from prefork._system.condition import Condition
from prefork._system.locks import RLock
from prefork._system.running_loop import is_any_running

__all__ = ["ApplyResult", "callbacks_for"]


class Callbacks:
    """What is to be called about the jobs of one handle, and by whom."""

    __slots__ = ("accepted", "done", "expired", "failed", "run")

    def __init__(
        self,
        run: RunCallback,
        done: Callback,
        failed: Callback,
        accepted: Callback,
        expired: Callback,
    ) -> None:
        self.run = run
        self.done = done
        self.failed = failed
        self.accepted = accepted
        self.expired = expired


def callbacks_for(
    run: RunCallback,
    callback: Callback,
    error_callback: Callback,
    accept_callback: Callback = None,
    timeout_callback: Callback = None,
) -> Callbacks | None:
    """Those that a caller has given, if any.

    Raises:
        TypeError: one cannot be called.
    """
    if callback is error_callback is accept_callback is timeout_callback is None:
        return None
    check_callables(
        callback=callback,
        error_callback=error_callback,
        accept_callback=accept_callback,
        timeout_callback=timeout_callback,
    )
    return Callbacks(run, callback, error_callback, accept_callback, timeout_callback)


@mypyc_attr(allow_interpreted_subclasses=True)
class Handle:
    """What all handles share: one outcome, set once; waiters and callbacks told once.

    It is ready when its outcome is known and its callback has run, as in `multiprocessing`. To a
    callback, any handle is ready whose outcome is known: the other callbacks wait for this one.

    It has few attributes, since Python's garbage collector looks at each of them, again and again
    while a million handles wait for their jobs.

    Args:
        pool: who was asked for it, a pool or a view of one; kept alive until the result is here.
        engine: who runs that pool.
    """

    __slots__ = ("_callbacks", "_engine", "_ok", "_pool", "_result", "_signal")

    # Re-entrant, like the other locks that callers take: a signal handler may call, too.
    _making_signals: ClassVar[Any] = RLock()

    def __init__(self, pool: object, engine: EngineRef, callbacks: Callbacks | None = None) -> None:
        self._pool: object = pool
        self._engine: EngineRef | None = engine  # until the result is here, too
        self._callbacks = callbacks  # until they have run
        self._ok: bool | None = None  # not known yet
        self._result: Any = None  # or the exception if not ok
        self._signal: Condition | None = None

    def ready(self) -> bool:
        """Whether the result, or the error, is here, and the callback for it has run."""
        if self._ok is None:
            return False
        callbacks = self._callbacks
        return callbacks is None or callbacks.run.is_calling_here()

    def successful(self) -> bool:
        """Whether the call completed without an error.

        Raises:
            ValueError: it is not ready.
        """
        ok = self._ok
        if ok is None or not self.ready():
            raise ValueError(f"{self.title()} is not ready")
        return ok

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the result is here and its callbacks have run.

        Args:
            timeout: at most so many seconds (int or float); None: for ever.

        Raises:
            RuntimeError: it would wait in vain: in a forked child, whose pool this is not; or in
                the pool's own work.
        """
        if (pending := self.begin_wait()) is not None:
            engine, condition = pending
            if (timeout is None or timeout > 0) and is_any_running():
                engine.check_loop()
            engine.wait_for(condition, self.ready, timeout)

    def begin_wait(self) -> tuple[EngineRef, Condition] | None:
        """Who runs the pool, and what is notified when this is ready; None if it is."""
        if (engine := self._engine) is None or self.ready():
            return None
        if (condition := self._signal) is None:
            with self._making_signals:
                if self._signal is None:
                    self._signal = Condition()
                condition = self._signal
        return engine, condition

    def is_waited_for(self) -> bool:
        """Whether anybody waits for it, in a thread or in an event loop."""
        return self._signal is not None and self._signal.has_waiters()

    def failure(self) -> BaseException | None:
        """What it has failed with, if it has."""
        return self._result if self._ok is False else None

    def get(self, timeout: float | None = None) -> Any:
        """The result.

        Args:
            timeout: how many seconds to wait for it at most (int or float); None: for ever.

        Raises:
            multiprocessing.TimeoutError: it is not here in time. The job goes on.
            RuntimeError: it will never be here, as in `wait`; or since the pool has ended.
            Exception: what the task raised, with the worker's traceback as its `__cause__`; or a
                `PreforkError` that says why the task did not finish.
        """
        if self._ok is None or self._callbacks is not None:
            self.wait(timeout)
            if not self.ready():
                raise self._late(timeout)
        if self._ok:
            return self._result
        try:
            raise self._result
        finally:
            del self  # else the traceback, by this frame, would hold us, and we hold the traceback

    def _late(self, timeout: float | None) -> Exception:
        """What `get` raises when there is nothing in time."""
        if timeout is None:
            return RuntimeError(f"{self.title()} will never be ready: its pool has ended")
        return TimeoutError(f"{self.title()} was not ready within {timeout:g} s")

    def waiters(self) -> Condition | None:
        return self._signal

    def _finish(self, ok: bool, value: Any) -> Condition | None:
        """Returns what is to be notified of it."""
        self._result = value
        callbacks = self._callbacks
        if callbacks is not None:
            self._ok = ok
            if callbacks.run(self._call_back, callbacks.done if ok else callbacks.failed):
                return self._signal  # a callback may be waiting for this
            self._callbacks = None
        self._ok = ok  # now it is ready
        self._let_go()
        return self._signal

    def _let_go(self) -> None:
        """It needs nobody any more."""
        self._engine = None
        self._pool = None

    def _call_back(self, callback: Callback) -> None:
        try:
            if callback is not None:
                callback(self._result)
        finally:
            self._callbacks = None  # now it is ready
            self._let_go()
            if self._signal is not None:
                self._signal.notify_all()

    def title(self) -> str:
        """What messages call it."""
        return "the result"

    def _describe(self) -> str:
        if not self.ready():
            return "pending"
        return "successful" if self._ok else f"failed: {self._result!r}"


def _after_in_child() -> None:
    Handle._making_signals = RLock()


os.register_at_fork(after_in_child=_after_in_child)


@mypyc_attr(allow_interpreted_subclasses=True)
class ApplyResult(Handle):
    """The result of one job (`apply_async`)."""

    __slots__ = ("_entry",)

    def __init__(self, pool: object, engine: EngineRef, callbacks: Callbacks | None = None) -> None:
        super().__init__(pool, engine, callbacks)
        self._entry: Job | None = None  # the pool's record of it

    # ---- what a user wants to know of a running job

    @property
    def job(self) -> int:
        """The job's number in its pool (int); it is in the messages of the errors, too."""
        return self._entry.id if self._entry else 0

    @property
    def pid(self) -> int | None:
        """The process id of the worker that runs or ran the job; None if it has not started."""
        return self._entry.running_pid() if self._entry else None

    @property
    def time_accepted(self) -> float | None:
        """When the worker started the job (`time.monotonic`, seconds), or None."""
        return self._entry.running_since() if self._entry else None

    @property
    def seconds(self) -> float | None:
        """How long the finished job ran (float, seconds), as its worker measured it; None: it has
        not finished."""
        return self._entry.seconds if self._entry and self.ready() else None

    @property
    def retries(self) -> int:
        """How often the job was run again (int), after an attempt had failed."""
        return self._entry.retried() if self._entry else 0

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The attempts that have failed, the first one first; each tells its `number`, the `pid`
        of the worker, the `error` and how many `seconds` it took. The last one of a job that has
        failed is among them, if it was run."""
        job = self._entry
        if job is None:
            return ()
        failed = job.attempts()
        if self._ok is False and job.pid is not None:
            failed = (*failed, Attempt(len(failed) + 1, job.pid, self._result, job.seconds))
        return failed

    def accepted(self) -> bool:
        """Whether a worker has started the job."""
        return self.pid is not None

    def cancel(self) -> bool:
        """Have the job never run, unless it has been started; it fails with `Terminated`.

        Returns:
            Whether it was cancelled.
        """
        engine, job = self._engine, self._entry
        return engine is not None and job is not None and engine.terminator.cancel(job)

    def terminate(self, signal: int | None = None) -> bool:
        """End the job, wherever it is; it fails with `Terminated`. No other job is hit.

        Args:
            signal: the number of what to send to the worker, if one runs the job. If the task
                survives that, its own result counts, and the worker leaves after it. None: the
                worker is killed, with all that the task started.

        Returns:
            Whether there was anything to end: False if the job had finished.
        """
        engine, job = self._engine, self._entry
        return engine is not None and job is not None and engine.terminator.terminate(job, signal)

    # ---- the pool's side

    def job_added(self, job: Job) -> None:
        self._entry = job

    def job_started(self, job: Job, pid: int, time_accepted: float) -> None:
        callbacks = self._callbacks
        if callbacks is not None and callbacks.accepted is not None:
            callbacks.run(callbacks.accepted, pid, time_accepted)
            callbacks.accepted = None

    def job_done(self, job: Job, ok: bool, value: Any) -> Condition | None:
        if self._callbacks is not None and job.pid is not None and job.started:
            self.job_started(job, job.pid, job.started)  # if it was over before that was told
        return self._finish(ok, value)

    def limit_passed(self, job: Job, soft: bool, timeout: float) -> None:
        """The job has passed its soft or hard time limit."""
        callbacks = self._callbacks
        if callbacks is not None and callbacks.expired is not None:
            callbacks.run(callbacks.expired, soft=soft, timeout=timeout)

    def title(self) -> str:
        return f"the result of job {self.job} ({self._entry.function if self._entry else '?'})"

    def __repr__(self) -> str:
        function = self._entry.function if self._entry else "?"
        state = self._describe()
        if not self.ready() and self.pid is not None:
            state = f"running in process {self.pid}"
        return f"<{type(self).__name__} of job {self.job} {function}: {state}>"
