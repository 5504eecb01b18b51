"""What travels between the pool and a worker, and how it is written down.

A *task* goes out as a pickled call (`calls.py`) with a fixed-size `Ticket` that says where it
lies. A *report* comes back: a fixed-size header and a pickle.
"""

from __future__ import annotations

import enum
import pickle
import struct
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from prefork.errors import (
    MaybeDecodingError,
    PreforkError,
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
    offset: int  # of the pickled call in the shared memory
    length: int  # bytes; 0 when it comes as a parcel
    function_length: int  # bytes of it that are the function's pickle, if that has one of its own
    flags: int


TICKET = struct.Struct("<QdIIII")

# A ticket's flags.
LEAVE = 1  # no task: finish and exit
ACCEPT = 2  # report the start of the task
PARCEL = 4  # the call travels in a file of its own
LIMITED = 8  # it has a time limit
KEYWORDS = 16  # the arguments are a pair, (args, kwargs)

# How to apply the function to the arguments: one of these is among the flags, too.
CALL = 0  # func(*args)
MAP = 32  # [func(item) for item in items]; the first exception fails the chunk
STARMAP = 64  # [func(*item) for item in items]; the same
EACH = 96  # like MAP, but each item has an outcome of its own
MODE = 96  # these bits


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
    CORRUPTED = 8  # is never sent: something came here that is no report


_DONE = int(Kind.DONE)


class Report(NamedTuple):
    kind: int
    job: int
    started: float  # monotonic clock of the machine, seconds
    seconds: float  # how long the task ran
    payload: Any  # bytes; a list of buffers, when it came as a parcel; why it could not come


REPORT = struct.Struct("<QddQBB2x4s")
"""A report's header: job, started, seconds, length, kind, 1 if it is a parcel, `MARK`."""

MARK = b"\xc1PF\xfe"
"""Ends each header, so that foreign bytes are told from reports, and the next report is found
behind them. No task's text in UTF-8 contains it."""


def next_report(data: bytes, position: int) -> int:
    """Where a report may start, from this position on: where a mark says so, or at the end."""
    mark = data.find(MARK, position + REPORT.size - len(MARK))
    if mark < 0:
        return max(position, len(data) - REPORT.size + 1)
    return mark + len(MARK) - REPORT.size


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


_PLAIN = frozenset({type(None), bool, int, float, complex, str})
"""Types without buffers."""
_BYTES = frozenset({bytes, bytearray})


class _Beside:
    """Bytes or a bytearray: pickled as a buffer beside the pickle, and unpickled as themselves."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self._data), (pickle.PickleBuffer(self._data),)


def _is_large(obj: object) -> bool:
    return type(obj) in _BYTES and len(obj) >= OUT_OF_BAND  # type: ignore[arg-type]


def dumps(obj: object) -> bytes:
    return pickle.dumps(obj, PROTOCOL)


def pack(obj: object) -> tuple[bytes, list[memoryview]]:
    """Pickle an object: its pickle, and views of the large buffers that were left out of it.

    Bytes themselves, or in a tuple such as a call's arguments, are left out, too.
    """
    kind = type(obj)
    if kind in _PLAIN or (kind is tuple and _PLAIN.issuperset(map(type, obj))):  # type: ignore[call-overload]
        return pickle.dumps(obj, PROTOCOL), []
    if _is_large(obj):
        obj = _Beside(obj)  # type: ignore[arg-type]
    elif kind is tuple and any(map(_is_large, obj)):  # type: ignore[call-overload]
        obj = tuple(_Beside(o) if _is_large(o) else o for o in obj)  # type: ignore[attr-defined]
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


def _encoding_error(reason: Exception, value: object) -> PreforkError:
    error: PreforkError
    try:
        from prefork.encoding import MaybeEncodingError

        error = MaybeEncodingError(reason, value)
    except Exception as exc:  # it cannot be imported: no descriptor left, no memory
        error = PreforkError(f"a {type_name(value)} cannot be pickled: {reason!r}; {exc!r}")
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
    if report.kind == _DONE:
        return decode_result(report.payload)
    if report.kind == Kind.OUTCOMES:
        items = load(report.payload)
        return Outcome(
            True,
            [decode_result(v) if ok else decode_failure(Failure(*v)) for ok, v in items],
        )
    return decode_failure(Failure(*load(report.payload)))


def decode_exit(report: Report) -> tuple[int, str]:
    """What an EXITING report says: the exit code, and why; ValueError if it says nothing."""
    try:
        code, why = load(report.payload)
        return int(code), str(why)
    except Exception as exc:
        raise ValueError(f"a report cannot be read: {describe(exc)}") from exc


def decode_reason(report: Report) -> str:
    """Why a worker leaves, as a LEAVING report says; ValueError if it says nothing."""
    try:
        return str(load(report.payload))
    except Exception as exc:
        raise ValueError(f"a report cannot be read: {describe(exc)}") from exc


def decode_result(payload: Any) -> Outcome:
    try:
        return Outcome(True, pickle.loads(payload) if type(payload) is bytes else load(payload))
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
        import pickletools  # large, and hardly ever needed

        for opcode, arg, _ in pickletools.genops(bytes(pickled)):
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:]).removeprefix("builtins.")
            if isinstance(arg, str):
                strings.append(arg)
    except Exception:
        return "result"  # truncated or foreign bytes: the caller reports why
    return "result"
