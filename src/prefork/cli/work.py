"""What runs in a worker: the work on one input after another; what comes back is JSON text.

Whatever is done with an input stays here: exceptions and results, of whatever type, become text in
the worker, so nothing else is pickled, or must be importable elsewhere.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Protocol

from prefork._describe import describe_exit
from prefork.cli.jsontext import NotJSONError, to_json
from prefork.cli.target import Target
from prefork.errors import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError

__all__ = [
    "AGAIN",
    "DONE",
    "FAILED",
    "LATER",
    "Call",
    "Function",
    "Outcome",
    "Task",
    "Work",
    "WorkFailed",
    "describe",
    "describe_text",
    "start_worker",
]

DONE, FAILED, AGAIN, LATER = range(4)


class Task(NamedTuple):
    """What a worker is asked to do; plain, since there are many.

    Attributes:
        number: of the input, from 1 on.
        value: the input.
        chunk: how many seconds its chunk may take before what has not begun is given back, if it
            is the first one of a chunk; None: for ever; 0: it is not the first one.
    """

    number: int
    value: Any
    chunk: float | None


class Outcome(NamedTuple):
    """What became of one input."""

    kind: int  # DONE; FAILED; AGAIN, it has failed in a way that may pass; LATER, it has not begun
    text: bytes  # the result, or a description of the error, as JSON
    seconds: float
    pid: int
    started: float = 0.0  # monotonic; 0.0: nobody knows


class WorkFailed(Exception):
    """It has failed, in a way of its own.

    Attributes:
        kind: the type of the error, in the record.
        fields: what else the record is to say of it.
    """

    def __init__(self, kind: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.fields = fields


class Work(Protocol):
    """What is done with each input. It is pickled for the workers; `str` is for people.

    Attributes:
        keeps_limits: it does so itself, so the pool does not.
        tells_memory: results tell what the work had; it is not the worker's.
    """

    keeps_limits: ClassVar[bool]
    tells_memory: ClassVar[bool]

    def check(self) -> str:
        """Before the run: a fingerprint of its source.

        Raises:
            TargetError: there is no such thing.
        """

    def terms(self) -> dict[str, Any]:
        """What else decides what becomes of an input, by the names of options."""

    def named(self) -> object:
        """What has the name that the pool's messages and watchers tell."""

    def load(self) -> Callable[[int, Any], Any]:
        """In a worker: what is called with the number of an input, and the input."""

    def end(self) -> None:
        """After a run that was stopped: end what a worker that was killed may have left behind."""


@dataclass(frozen=True)
class Function:
    """A function is called with each input.

    Attributes:
        star: a list is its arguments, an object its keywords; anything else its only argument.
        keywords: that it always gets.
        initializer: called once in each worker.
    """

    keeps_limits: ClassVar[bool] = False
    tells_memory: ClassVar[bool] = False

    target: Target
    star: bool = False
    keywords: dict[str, Any] = field(default_factory=dict)
    initializer: Target | None = None

    def __str__(self) -> str:
        return str(self.target)

    def check(self) -> str:
        self.target.load()
        if self.initializer is not None:
            self.initializer.load()
        return self.target.source()

    def terms(self) -> dict[str, Any]:
        return {"star": self.star or None, "kwargs": self.keywords or None}

    def named(self) -> object:
        return self.target.load()

    def load(self) -> Callable[[int, Any], Any]:
        function = self.target.load()
        if self.initializer is not None:
            self.initializer.load()()
        if not self.star and not self.keywords:
            return lambda number, value: function(value)

        def call(number: int, value: Any) -> Any:
            args, keywords = self.arguments(value)
            return function(*args, **keywords)

        return call

    def arguments(self, value: Any) -> tuple[list[Any], dict[str, Any]]:
        """What the function is called with for an input."""
        if self.star and isinstance(value, list):
            return value, self.keywords
        if self.star and isinstance(value, dict):
            return [], {**self.keywords, **value}
        return [value], self.keywords

    def end(self) -> None:
        pass


class Call:
    """Stands for the worker's own runner: unpickled there, it is that one.

    It has the name of the work, for the pool's messages.
    """

    def __init__(self, work: Work) -> None:
        self.func: Any = work.named()

    def __call__(self, task: Task) -> Outcome:
        raise RuntimeError("this runs in workers only")

    def __reduce__(self) -> tuple[Any, ...]:
        return _get_runner, ()


_runner: Runner | None = None


def start_worker(work: Work, log_dir: str | None) -> None:
    """The workers' initializer.

    Raises:
        TargetError: a function cannot be imported here.
        Exception: what the user's initializer raises.
    """
    global _runner  # noqa: PLW0603 (one process, one runner; tasks find it by this name)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the function prints should not wait, nor go down with a worker that is killed.
        sys.stdout.reconfigure(line_buffering=True)
    _runner = Runner(work.load(), log_dir)


def _get_runner() -> Runner:
    assert _runner is not None
    return _runner


class Runner:
    """Does the work.

    Args:
        log_dir: where what is printed goes, to one file for each input.
    """

    def __init__(self, call: Callable[[int, Any], Any], log_dir: str | None) -> None:
        self._call = call
        self._log_dir = log_dir
        self._pid = os.getpid()
        self._until: float | None = None  # when the rest of this chunk is to be given back

    def __call__(self, task: Task) -> tuple[int, bytes, float, int, float]:
        number, value, chunk = task
        started = time.monotonic()
        if chunk == 0:
            if self._until is not None and started > self._until:
                return LATER, b"", 0.0, self._pid, started
        else:
            self._until = None if chunk is None else started + chunk
        try:
            kind, text = self._run(number, value)
        except SoftTimeLimitExceeded as exc:
            # It came between the function's end and here. There is only one for each input.
            kind, text = AGAIN, describe(exc, exc.__traceback__)
        return kind, text, time.monotonic() - started, self._pid, started

    def _run(self, number: int, value: Any) -> tuple[int, bytes]:
        try:
            if self._log_dir is None:
                return DONE, to_json(self._call(number, value))
            with _printing_to(log_path(self._log_dir, number, value)):
                return DONE, to_json(self._call(number, value))
        except BaseException as exc:
            again = isinstance(exc, (SoftTimeLimitExceeded, WorkFailed))
            return AGAIN if again else FAILED, describe(exc, _users_frames(exc))


def log_path(folder: str, number: int, value: Any) -> str:
    """`17-data_x.csv.log`."""
    text = value if isinstance(value, str) else to_json(value).decode()
    name = re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII)[-80:]
    return os.path.join(folder, f"{number}-{name}.log")


@contextlib.contextmanager
def _printing_to(path: str) -> Iterator[None]:
    """Descriptors 1 and 2 lead there meanwhile, whoever writes to them."""
    with open(path, "wb", 0) as file:
        before = os.dup(1), os.dup(2)
        for fd in (1, 2):
            os.dup2(file.fileno(), fd)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # it is closed, or None
                stream.flush()
        for fd, saved in enumerate(before, 1):
            os.dup2(saved, fd)
            os.close(saved)


def _users_frames(exc: BaseException) -> TracebackType | None:
    """Without those of this module, which have called the user's function."""
    frames = exc.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return frames


# ---- errors as JSON: type, message, and where there is one, the traceback


def describe(exc: BaseException, frames: TracebackType | None = None, text: str = "") -> bytes:
    """An exception as a record's `error`; never raises.

    Args:
        frames: of its traceback.
        text: that it has if it has no other one.
    """
    if isinstance(exc, (WorkerLostError, TimeLimitExceeded)):
        text = _users_part(exc.stack)
    elif frames is not None and not isinstance(exc, NotJSONError):
        text = "".join(traceback.format_exception(type(exc), exc, frames))
    if isinstance(exc, WorkFailed):
        return describe_text(exc.kind, str(exc), **exc.fields)
    return describe_text(_type(exc), _message(exc), **({"traceback": text} if text else {}))


def describe_text(type_name: str, message: str, **fields: Any) -> bytes:
    error = {"type": type_name, "message": message, **fields}
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
