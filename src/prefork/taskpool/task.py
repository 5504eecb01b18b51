"""One call in a `TaskPool`, from `apply_async` to the last of its callbacks."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from prefork._results.protocols import Callback
from prefork.errors import Terminated, TimeLimitExceeded
from prefork.results import ApplyResult

__all__ = ["Slots", "Task", "TaskOwner"]


class TaskOwner(Protocol):
    """The pool, as a task sees it."""

    slots: Slots | None
    tasks: dict[Task, None]  # those that have not ended
    running: dict[int, Task]  # those that were accepted, by process id

    def drops(self, task: Task, error: BaseException) -> bool:
        """Whether nobody is to be told of this error."""

    def translate(self, task: Task, error: BaseException) -> object:
        """What the `error_callback` is called with."""

    def name_of(self, task: Task) -> str:
        """What a task is called, for people."""

    def run_or_defer(self, call: Callable[..., object], *args: object) -> None:
        """Call this now, or as soon as the pool is not in the middle of something."""


class Slots(Protocol):
    """A semaphore that its owner acquires before `apply_async`; the pool releases it."""

    def release(self) -> object: ...

    def grow(self, n: int = 1) -> object: ...

    def shrink(self, n: int = 1) -> object: ...

    def clear(self) -> object: ...


class Task:
    """One call in a `TaskPool`, which holds it until the call has ended.

    Attributes:
        target, args: what is called.
        accept_callback: called when it has started.
        id: the caller's own name for it (`correlation_id`).
        soft_timeout, timeout: its limits, as the user gave them: seconds, None or 0: none.
        pid: the process that has started it; None: none yet.
        since: when (`time.monotonic`, seconds).
        signum: the last signal that was asked for, to terminate it.
        holds_slot: whether its end releases a slot of the semaphore.
    """

    __slots__ = (
        "__weakref__",
        "_callback",
        "_error_callback",
        "_pool",
        "_timeout_callback",
        "_withdrawn",
        "accept_callback",
        "args",
        "handle",
        "holds_slot",
        "id",
        "pid",
        "signum",
        "since",
        "soft_timeout",
        "target",
        "timeout",
    )

    def __init__(
        self,
        pool: TaskOwner,
        target: Callable[..., Any],
        args: Iterable[Any],
        callback: Callback,
        error_callback: Callback,
        accept_callback: Callback,
        timeout_callback: Callback,
        id: object,
        soft_timeout: float | None,
        timeout: float | None,
    ) -> None:
        self.target = target
        self.args = args
        self.id = id
        self.soft_timeout, self.timeout = soft_timeout, timeout
        self.pid: int | None = None
        self.since = 0.0
        self.signum: int | None = None
        self.holds_slot = True
        self.handle: ApplyResult[Any] | None = None  # until it has ended
        self._pool = pool
        self._callback = callback
        self._error_callback = error_callback
        self.accept_callback = accept_callback
        self._timeout_callback = timeout_callback
        self._withdrawn = False

    # ---- the caller's side

    def terminate(self, signum: int | None = None) -> None:
        """End the call, wherever it is: not to run it, or to send this signal to the process
        that does. None: to kill that. Asking again for the same changes nothing."""
        handle, signum = self.handle, signum or signal.SIGKILL
        if handle is None or self.signum == signum:
            return
        self.signum = signum
        self._pool.run_or_defer(handle.terminate, None if signum == signal.SIGKILL else signum)

    def withdraw(self) -> None:
        """Have it never run, and call nobody back; a call that has been started goes on."""
        if self.pid is None and (handle := self.handle) is not None:
            self._withdrawn = True
            self._pool.run_or_defer(handle.cancel)

    def abandon(self, signum: int) -> None:
        """End it without calling anybody back."""
        self._callback = self._error_callback = None
        self.accept_callback = self._timeout_callback = None
        self.terminate(signum)

    # ---- the pool's side: each of these is called once at most, in this order

    def accepted(self, pid: int, since: float) -> None:
        self.pid, self.since = pid, since
        self._pool.running[pid] = self
        if self.accept_callback is not None:
            self.accept_callback(pid, since)

    def succeeded(self, value: object) -> None:
        self._end(self._callback, value)

    def expired(self, soft: bool, timeout: float) -> None:
        """A limit has passed. A hard one is told with the error, when more is known."""
        if soft and self._timeout_callback is not None:
            self._timeout_callback(soft=True, timeout=self.soft_timeout)

    def failed(self, error: BaseException) -> None:
        dropped = self._pool.drops(self, error) or (
            self._withdrawn and self.pid is None and isinstance(error, Terminated)
        )
        if dropped or self._error_callback is None:
            self._end(None, None)
            return
        try:
            if isinstance(error, TimeLimitExceeded) and self._timeout_callback is not None:
                self._timeout_callback(soft=False, timeout=self.timeout)
        finally:
            self._end(self._error_callback, self._pool.translate(self, error))

    def _end(self, callback: Callback, value: object) -> None:
        pool, self.handle = self._pool, None
        pool.tasks.pop(self, None)
        if self.pid is not None and pool.running.get(self.pid) is self:
            del pool.running[self.pid]
        try:
            if callback is not None:
                callback(value)
        finally:
            if self.holds_slot and pool.slots is not None:
                pool.slots.release()

    def __repr__(self) -> str:
        where = f"in process {self.pid}" if self.pid else "waiting"
        return f"<{type(self).__name__} {self._pool.name_of(self)}: {where}>"
