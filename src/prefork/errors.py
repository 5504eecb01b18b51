"""Every exception that the pool raises, under one base class.

Each message says what happened, to which job, in which process, and what can be done about it.
All of them survive pickling, so that a pool inside a pool's task reports them unchanged.
"""

from __future__ import annotations

import importlib
from multiprocessing import TimeoutError
from typing import TYPE_CHECKING, Any

from prefork._describe import describe_exit
from prefork._public import public

__all__ = [
    "Cancelled",
    "DeadlineExceeded",
    "LimitExceeded",
    "MaybeDecodingError",
    "MemoryLimitExceeded",
    "PoolBrokenError",
    "PreforkError",
    "RemoteTraceback",
    "SoftTimeLimitExceeded",
    "Terminated",
    "TimeLimitExceeded",
    "TimeoutError",
    "WorkerLostError",
    "remote_traceback",
]

OUT_OF_MEMORY = "the kernel was out of memory"
"""A `WorkerLostError.note`."""


@public
class PreforkError(Exception):
    """Base class of all errors that come from the pool itself, not from the user's function."""


@public
class WorkerLostError(PreforkError):
    """The worker process ended while it ran this job; no other job is affected.

    Attributes:
        job: the job's number in its pool (int).
        function: the qualified name of the function that ran (str).
        pid: the process id of the worker that ended (int).
        exitcode: as in `multiprocessing.Process.exitcode`: negative is the number of the signal
            that ended it, None is unknown: somebody else collected the child's status.
        stack: the Python stack at the moment of a crash, or "" (str).
        note: what else is known, such as a lack of memory, or "" (str).
        seconds: how long it had run (float), or None if that is not known.
    """

    seconds: float | None = None

    def __init__(
        self,
        job: int,
        function: str,
        pid: int,
        exitcode: int | None,
        stack: str = "",
        note: str = "",
    ) -> None:
        super().__init__(job, function, pid, exitcode, stack, note)
        self.job = job
        self.function = function
        self.pid = pid
        self.exitcode = exitcode
        self.stack = stack
        self.note = note

    def __str__(self) -> str:
        how = describe_exit(self.exitcode)
        text = f"worker process {self.pid} {how} while it ran job {self.job} ({self.function})"
        if self.note:
            text += f": {self.note}"
        return f"{text}\n{self.stack.rstrip()}" if self.stack else text


@public
class LimitExceeded(PreforkError):
    """The job had more of something than it may have, so its worker was killed. This is the base
    class of `TimeLimitExceeded`, `DeadlineExceeded` and `MemoryLimitExceeded`, for those who treat
    them alike.

    Attributes:
        limit: what it was allowed (int or float).
        job: the job's number in its pool (int).
        function: the qualified name of the function that ran (str).
        pid: the process id of the worker that was killed (int); 0: no worker ran it.
        stack: the Python stack where the task was, of all threads; or why there is none, in
            parentheses (str).
        seconds: how long it had run (float), or None if that is not known.
    """

    seconds: float | None = None
    limit: float
    job: int
    function: str
    pid: int
    stack: str

    def _set(self, limit: float, job: int, function: str, pid: int, stack: str) -> None:
        self.limit = limit
        self.job = job
        self.function = function
        self.pid = pid
        self.stack = stack

    def _message(self, what: str) -> str:
        text = f"job {self.job} ({self.function}) {what}; its worker process {self.pid} was killed"
        return f"{text}\n{self.stack.rstrip()}" if self.stack else text


@public
class TimeLimitExceeded(LimitExceeded):
    """The job ran longer than its hard time limit, so its worker was killed.

    Attributes:
        limit: the limit in seconds, counted from the moment the worker started the task (float).
        job, function, pid, stack: as in `LimitExceeded`.
    """

    def __init__(
        self, limit: float, job: int = 0, function: str = "", pid: int = 0, stack: str = ""
    ) -> None:
        super().__init__(limit, job, function, pid, stack)
        self._set(limit, job, function, pid, stack)

    def __str__(self) -> str:
        return self._message(f"exceeded its time limit of {self.limit:g} s")


@public
class DeadlineExceeded(LimitExceeded):
    """The job's deadline has passed. If it ran then, its worker was killed; else it was not run.

    Attributes:
        limit: the deadline in seconds, counted from the moment the job was handed in (float).
        job, function, pid, stack: as in `LimitExceeded`; `pid` is 0 if it did not run then.
    """

    def __init__(
        self, limit: float, job: int = 0, function: str = "", pid: int = 0, stack: str = ""
    ) -> None:
        super().__init__(limit, job, function, pid, stack)
        self._set(limit, job, function, pid, stack)

    def __str__(self) -> str:
        if not self.pid:
            return (
                f"job {self.job} ({self.function}) had not been started by its deadline of "
                f"{self.limit:g} s, so it will not be"
            )
        return self._message(f"had not ended by its deadline of {self.limit:g} s")


@public
class MemoryLimitExceeded(LimitExceeded):
    """The job's worker had more memory resident than it may have, so it was killed.

    Attributes:
        limit: `max_memory_per_task`, KiB (int).
        resident: what was measured, KiB (int).
        job, function, pid, stack: as in `LimitExceeded`.
    """

    limit: int

    def __init__(
        self, limit: int, resident: int, job: int, function: str, pid: int, stack: str = ""
    ) -> None:
        super().__init__(limit, resident, job, function, pid, stack)
        self._set(limit, job, function, pid, stack)
        self.resident = resident

    def __str__(self) -> str:
        return self._message(
            f"had {self.resident} KiB of memory resident, more than the {self.limit} KiB allowed"
        )


@public
class SoftTimeLimitExceeded(PreforkError):
    """Raised inside a task that has passed its soft time limit, to give it a chance to clean up.

    If the task does not catch it, its job fails with it.
    """


@public
class Terminated(PreforkError):
    """The pool was terminated, or the job was, before the job had finished."""


@public
class Cancelled(Terminated):
    """The job was cancelled before it started; it will never run."""


@public
class PoolBrokenError(PreforkError):
    """Workers cannot start, so the pool has given up; the message and `__cause__` say why.

    All its jobs fail with it, and it is raised by all calls that hand in others.
    """


@public
class MaybeDecodingError(PreforkError):
    """A task's result or exception arrived, but could not be unpickled in the pool's process.

    Attributes:
        type_name: the qualified name of the original type (str).
        reason: why unpickling failed (str).
        traceback: the traceback of the task's own exception, or "" for a result (str).
    """

    def __init__(self, type_name: str, reason: str, traceback: str = "") -> None:
        super().__init__(type_name, reason, traceback)
        self.type_name = type_name
        self.reason = reason
        self.traceback = traceback

    def __str__(self) -> str:
        text = f"the task's {self.type_name} came back, but unpickling it raised {self.reason}"
        return f"{text}\nThe task's own traceback:\n{self.traceback}" if self.traceback else text


def remote_traceback(traceback: str) -> Exception:
    """The `__cause__` of an exception from elsewhere: its traceback there, as text."""
    text = f'\n"""\n{traceback}"""'
    try:
        error: type[RemoteTraceback] = __getattr__("RemoteTraceback")
    except OSError:  # no descriptor is left to read its module with
        return Exception(text)
    return error(text)


if TYPE_CHECKING:

    class RemoteTraceback(Exception):
        """The standard library's; `tb` is the text."""

        tb: str

        def __init__(self, tb: str) -> None: ...


def __getattr__(name: str) -> Any:
    """The standard library's class, once somebody asks for it: its module is large, and a worker
    does without (PEP 562)."""
    if name == "RemoteTraceback":
        return importlib.import_module("multiprocessing.pool").RemoteTraceback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
