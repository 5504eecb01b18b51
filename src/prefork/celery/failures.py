"""prefork's errors as those that celery knows: it looks at their classes, and clients import them.

What has happened goes into the arguments, as these are what result backends store; but not into
those of a time limit, which celery makes of the number that the user gave.
"""

from __future__ import annotations

from billiard import exceptions as known
from billiard.einfo import ExceptionInfo

from prefork import errors
from prefork._describe import describe_exit
from prefork.taskpool.task import Task

__all__ = ["exception_info", "translate"]


def translate(error: BaseException, task: Task, name: str) -> BaseException:
    """The exception that celery is to see.

    Args:
        task: whose error it is.
        name: what it is called.
    """
    if isinstance(error, errors.TimeLimitExceeded):
        return _with_stack(known.TimeLimitExceeded(task.timeout), error.stack)
    if isinstance(error, errors.WorkerLostError):
        text = (
            f"Worker exited prematurely: process {error.pid} "
            f"{describe_exit(error.exitcode)} while it ran {name}"
        )
        if error.note:
            text += f": {error.note}"
        stack = f"\n{error.stack}" if error.stack else ""
        return _with_stack(known.WorkerLostError(text + stack.rstrip()), error.stack)
    if isinstance(error, errors.Terminated):
        return known.Terminated(task.signum or str(error))  # type: ignore[no-any-return]
    if isinstance(error, (errors.PoolBrokenError, errors.MemoryLimitExceeded)):
        return known.WorkerLostError(str(error))  # type: ignore[no-any-return]
    return error


def _with_stack(error: BaseException, stack: str) -> BaseException:
    """Have the traceback's text show the worker's stack."""
    if stack:
        error.__cause__ = errors.remote_traceback(stack)
    return error


def exception_info(error: BaseException) -> ExceptionInfo:
    """The exception in the form that celery's callbacks take."""
    try:
        raise error
    except BaseException:
        info = ExceptionInfo()
        info.exception = error  # not wrapped, as if to be pickled: events show its `repr`
        return info
    finally:
        error.__traceback__ = None  # its frame is ours, and would hold all that we hold
