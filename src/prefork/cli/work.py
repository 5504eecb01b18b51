"""What runs in a worker: the function on one input after another; what comes back is JSON text.

Whatever the function does with its input stays here: its exceptions and its results, of whatever
type, become text in the worker, so nothing else is pickled, or must be importable elsewhere.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from prefork._describe import describe_exit
from prefork.cli.jsontext import NotJSONError, to_json
from prefork.cli.target import Target
from prefork.errors import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError

__all__ = [
    "CUT_SHORT",
    "DONE",
    "FAILED",
    "PLAIN",
    "Call",
    "Calling",
    "Outcome",
    "describe",
    "describe_text",
    "start_worker",
]

DONE, FAILED, CUT_SHORT = range(3)


class Outcome(NamedTuple):
    """What became of one input."""

    kind: int  # DONE; FAILED; CUT_SHORT, by a time limit or its worker's end: try again
    text: bytes  # the result, or a description of the error, as JSON
    seconds: float
    pid: int


class Call:
    """Stands for the worker's own runner: unpickled there, it is that one.

    It has the name of the function, for the pool's messages.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.func = function

    def __call__(self, value: Any) -> Outcome:
        raise RuntimeError("this runs in workers only")

    def __reduce__(self) -> tuple[Any, ...]:
        return _get_runner, ()


_runner: Runner | None = None


class Calling(NamedTuple):
    """How the function is called with an input.

    Attributes:
        star: a list is its arguments, an object its keywords; anything else its only argument.
        keywords: that it always gets.
    """

    star: bool
    keywords: dict[str, Any]

    def bind(self, function: Callable[..., Any]) -> Callable[[Any], Any]:
        """The function of an input."""
        star, keywords = self
        if not star and not keywords:
            return function

        def call(value: Any) -> Any:
            if star and isinstance(value, list):
                return function(*value, **keywords)
            if star and isinstance(value, dict):
                return function(**{**keywords, **value})
            return function(value, **keywords)

        return call


PLAIN = Calling(star=False, keywords={})


def start_worker(target: Target, calling: Calling, initializer: Target | None) -> None:
    """The workers' initializer.

    Raises:
        TargetError: a function cannot be imported here.
        Exception: what the user's initializer raises.
    """
    global _runner  # noqa: PLW0603 (one process, one runner; tasks find it by this name)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the function prints should not wait, nor go down with a worker that is killed.
        sys.stdout.reconfigure(line_buffering=True)
    function = target.load()
    if initializer is not None:
        initializer.load()()
    _runner = Runner(calling.bind(function))


def _get_runner() -> Runner:
    assert _runner is not None
    return _runner


class Runner:
    """Runs the function."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._pid = os.getpid()

    def __call__(self, value: Any) -> Outcome:
        started = time.monotonic()
        try:
            return self._run(value, started)
        except SoftTimeLimitExceeded as exc:
            # It came between the function's end and here. There is only one for each input.
            return self._failure(exc, exc.__traceback__, started)

    def _run(self, value: Any, started: float) -> Outcome:
        try:
            text = to_json(self._function(value))
        except BaseException as exc:
            return self._failure(exc, _users_frames(exc), started)
        return Outcome(DONE, text, time.monotonic() - started, self._pid)

    def _failure(self, exc: BaseException, frames: TracebackType | None, started: float) -> Outcome:
        kind = CUT_SHORT if isinstance(exc, SoftTimeLimitExceeded) else FAILED
        seconds = time.monotonic() - started
        return Outcome(kind, describe(exc, frames), seconds, self._pid)


def _users_frames(exc: BaseException) -> TracebackType | None:
    """Without those of this module, which have called the user's function."""
    frames = exc.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return frames


# ---- errors as JSON: type, message, and where there is one, the traceback


def describe(exc: BaseException, frames: TracebackType | None = None) -> bytes:
    """An exception as a record's `error`; never raises."""
    text = ""
    if isinstance(exc, (WorkerLostError, TimeLimitExceeded)):
        text = _users_part(exc.stack)
    elif frames is not None and not isinstance(exc, NotJSONError):
        text = "".join(traceback.format_exception(type(exc), exc, frames))
    return describe_text(_type(exc), _message(exc), text)


def describe_text(type_name: str, message: str, text: str = "") -> bytes:
    error = {"type": type_name, "message": message}
    if text:
        error["traceback"] = text
    try:
        return to_json(error)
    except NotJSONError:  # a message that is an odd subclass of str
        return json.dumps({key: repr(value) for key, value in error.items()}).encode()


def _type(exc: BaseException) -> str:
    cls = type(exc)
    if cls.__module__.partition(".")[0] in ("builtins", "prefork"):
        return cls.__qualname__
    return f"{cls.__module__}.{cls.__qualname__}"


def _message(exc: BaseException) -> str:
    if isinstance(exc, WorkerLostError):
        text = f"its worker process {exc.pid} {describe_exit(exc.exitcode)}"
        if exc.exitcode == -9:
            text += " (by hand, or for lack of memory?)"
        return f"{text}: {exc.note}" if exc.note else text
    if isinstance(exc, TimeLimitExceeded):
        return f"it ran for more than {exc.limit:g} s, so its worker process {exc.pid} was killed"
    if isinstance(exc, SystemExit):
        return f"it called sys.exit({exc.code!r})"
    try:
        return str(exc)
    except Exception as reason:
        return f"<{type(reason).__name__} while making the message>"


def _users_part(stack: str) -> str:
    """A crashed worker's stack, most recent call first, without what called the function."""
    lines: list[str] = []
    for line in stack.splitlines():
        if f'File "{__file__}"' in line:
            break
        lines.append(line)
    return "\n".join(lines).rstrip()
