"""What travels between the pool and a worker, and how it is written down.

A *task* goes out as a pickle (the function and its arguments) with a fixed-size `Ticket` that
says where the pickle lies. A *report* comes back: a fixed-size header and a pickle.
"""

from __future__ import annotations

import enum
import pickle
import pickletools
import struct
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from prefork.errors import (
    MaybeDecodingError,
    MaybeEncodingError,
    RemoteTraceback,
    SoftTimeLimitExceeded,
    type_name,
)

PROTOCOL = 5
"""Pickle protocol: the first with out-of-band buffers (PEP 574)."""


class Ticket(NamedTuple):
    """The right to run one task; whoever reads it from the inbox owns the task."""

    job: int
    soft_timeout: float  # seconds; 0.0 is no limit
    offset: int  # of the pickle in the shared memory
    length: int  # bytes; 0 when the pickle comes as a parcel
    flags: int


TICKET = struct.Struct("<QdIII4x")

# A ticket's flags.
LEAVE = 1  # no task: finish and exit
ACCEPT = 2  # report the start of the task
PARCEL = 4  # the pickle travels in a file of its own


# How a worker applies a task's function to its arguments: the first item of the pickle. Plain
# integers, because an enum's member takes longer to pickle than everything else in a small task.
CALL = 0  # func(*args, **kwargs)
MAP = 1  # [func(item) for item in items]; the first exception fails the chunk
STARMAP = 2  # [func(*item) for item in items]; the same
EACH = 3  # like MAP, but each item has an outcome of its own


class Kind(enum.IntEnum):
    """What a report says."""

    READY = 0  # the worker has run its initializer
    ACCEPTED = 1  # the task has started
    DONE = 2  # the payload is the pickled result
    FAILED = 3  # the payload is a pickled `Failure`
    OUTCOMES = 4  # the payload is a pickled list: (True, pickled result) or (False, a `Failure`)
    EXITING = 5  # the task has the process exit; the payload is the pickled exit code and why
    BROKEN = 6  # the initializer failed; the payload is a pickled `Failure`
    LEAVING = 7  # the worker leaves of itself; the payload is why, pickled


class Report(NamedTuple):
    kind: int
    job: int
    started: float  # monotonic clock of the machine, seconds
    seconds: float  # how long the task ran
    payload: Any  # bytes; a list of buffers, when it came as a parcel; why it could not come


REPORT = struct.Struct("<QddQBB6x")  # job, started, seconds, length, kind, 1 if it is a parcel


class Failure(NamedTuple):
    """A task's exception on its way back."""

    pickled: bytes
    type_name: str
    traceback: str


class Outcome(NamedTuple):
    """What became of a job: `value` is its result, or the exception if not `ok`."""

    ok: bool
    value: Any


OUT_OF_BAND = 1 << 16
"""Buffers (PEP 574) of at least this many bytes are kept out of the pickle, so that they are
copied once, into the file that they travel in."""


def dumps(obj: object) -> bytes:
    return pickle.dumps(obj, PROTOCOL)


def pack(obj: object) -> tuple[bytes, list[memoryview]]:
    """Pickle an object: its pickle, and views of the large buffers that were left out of it."""
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if view.nbytes < OUT_OF_BAND:
            return True
        buffers.append(view)
        return False

    return pickle.dumps(obj, PROTOCOL, buffer_callback=keep_in_band), buffers


def function_name(func: Callable[..., Any]) -> str:
    """The qualified name for messages; follows partials and falls back on `repr`."""
    try:
        inner = getattr(func, "func", func)
        name = getattr(inner, "__qualname__", None)
        module = getattr(inner, "__module__", None)
    except Exception:  # a proxy, for instance, may raise anything
        name = None
    if name is None:
        return f"{type_name(func)} object"
    return f"{module}.{name}" if module else str(name)


MAX_TEXT = 500


def describe(exc: BaseException) -> str:
    """Type and message of an exception, in at most some 500 characters; never raises."""
    try:
        text = str(exc)
    except Exception:
        text = "(its message cannot be had)"
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}… ({len(text)} characters)"
    return f"{type_name(exc)}: {text}" if text else type_name(exc)


def encode_result(
    value: object, soft_limit: type[BaseException] = SoftTimeLimitExceeded
) -> tuple[Kind, bytes, list[memoryview]]:
    """A task's result as kind and payload of a report; raises only for a soft time limit."""
    try:
        return Kind.DONE, *pack(value)
    except soft_limit:
        raise
    except Exception as exc:
        return Kind.FAILED, dumps(encode_failure(_encoding_error(exc, value))), []


def encode_failure(exc: BaseException) -> tuple[bytes, str, str]:
    """The fields of a `Failure`; never raises."""
    text = format_traceback(exc)
    try:
        pickled = dumps(exc)
    except Exception as reason:
        pickled = dumps(_encoding_error(reason, exc))
    return pickled, type_name(exc), text


def _encoding_error(reason: Exception, value: object) -> MaybeEncodingError:
    error = MaybeEncodingError(reason, value)
    error.__cause__ = reason  # its traceback tells which attribute it was
    return error


def format_traceback(exc: BaseException) -> str:
    """The traceback as text, from the user's function on."""
    frames = exc.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") in _OWN_MODULES:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(exc), exc, frames or exc.__traceback__))


_OWN_MODULES = ("prefork.worker", "prefork.messages", "prefork.jobs")


def decode(report: Report) -> Outcome:
    """The outcome that a DONE, OUTCOMES or FAILED report carries.

    Never raises: what cannot be unpickled fails this job alone.
    """
    if isinstance(report.payload, OSError):
        return Outcome(False, report.payload)
    if report.kind == Kind.DONE:
        return decode_result(report.payload)
    if report.kind == Kind.OUTCOMES:
        items = load(report.payload)
        return Outcome(
            True,
            [decode_result(v) if ok else decode_failure(Failure(*v)) for ok, v in items],
        )
    return decode_failure(Failure(*load(report.payload)))


def decode_result(payload: Any) -> Outcome:
    try:
        return Outcome(True, load(payload))
    except BaseException as exc:
        name = _first_global(payload if isinstance(payload, (bytes, memoryview)) else payload[0])
        return Outcome(False, _decoding_error(name, exc))


def decode_failure(failure: Failure) -> Outcome:
    try:
        exc = load(failure.pickled)
        if not isinstance(exc, BaseException):
            raise TypeError(f"it unpickles to {type_name(exc)}, which is no exception")
        exc.__cause__ = RemoteTraceback(failure.traceback)
    except BaseException as reason:
        exc = _decoding_error(failure.type_name, reason, failure.traceback)
    return Outcome(False, exc)


def load(payload: Any) -> Any:
    """Unpickle bytes, or a list of buffers: the pickle, then its out-of-band buffers."""
    if isinstance(payload, list):
        return pickle.loads(payload[0], buffers=payload[1:])
    return pickle.loads(payload)


def _decoding_error(name: str, reason: BaseException, text: str = "") -> MaybeDecodingError:
    error = MaybeDecodingError(name, describe(reason), text)
    error.__cause__ = reason
    return error


def _first_global(pickled: bytes | memoryview) -> str:
    """The first class or function that a pickle names: nearly always the outermost type."""
    strings: list[str] = []
    try:
        for opcode, arg, _ in pickletools.genops(bytes(pickled)):
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:]).removeprefix("builtins.")
            if isinstance(arg, str):
                strings.append(arg)
    except Exception:
        return "result"  # truncated or foreign bytes: the caller reports why
    return "result"
