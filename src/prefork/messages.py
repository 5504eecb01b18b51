"""What travels between the pool and a worker, and how it is written down.

A *task* goes out as a pickled call (`calls.py`) with a fixed-size `Ticket` that says where it
lies. A *report* comes back: a fixed-size header and a pickle.
"""

from __future__ import annotations

import marshal
import pickle
import struct
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from prefork.errors import (
    MaybeDecodingError,
    PreforkError,
    RemoteTraceback,
    SoftTimeLimitExceeded,
    type_name,
)

PROTOCOL: Final = 5
"""Pickle protocol: the first with out-of-band buffers (PEP 574)."""


Ticket = tuple[int, float, int, int, int, int]
"""The right to run one task; whoever reads it from the inbox owns the task.

- the job
- its soft limit in seconds; 0.0 is none
- where the pickled call lies in the shared memory
- its length in bytes; 0 when it comes as a parcel
- how many of these are the function's pickle, if that has one of its own
- flags
"""

TICKET: Final = struct.Struct("<QdIIII")

# A ticket's flags.
LEAVE: Final = 1  # no task: finish and exit
ACCEPT: Final = 2  # report the start of the task
PARCEL: Final = 4  # the call travels in a file of its own
LIMITED: Final = 8  # it has a time limit
KEYWORDS: Final = 16  # the arguments are a pair, (args, kwargs)

# How to apply the function to the arguments: one of these is among the flags, too.
CALL: Final = 0  # func(*args)
MAP: Final = 32  # [func(item) for item in items]; the first exception fails the chunk
STARMAP: Final = 64  # [func(*item) for item in items]; the same
EACH: Final = 96  # like MAP, but each item has an outcome of its own
MODE: Final = 96  # these bits


class Kind:
    """What a report says. Those of DONE, FAILED and OUTCOMES end a job."""

    READY: Final = 0  # the worker has run its initializer
    ACCEPTED: Final = 1  # the task has started
    DONE: Final = 2  # the payload is the pickled result
    FAILED: Final = 3  # a pickled `Failure`
    OUTCOMES: Final = 4  # a pickled list: (True, pickled result) or (False, a `Failure`)
    EXITING: Final = 5  # the task has the process exit: its pickled exit code, and why
    BROKEN: Final = 6  # the initializer failed: a pickled `Failure`
    LEAVING: Final = 7  # the worker leaves of itself: why, pickled
    CORRUPTED: Final = 8  # is never sent: something came here that is no report


Report = tuple[int, int, float, float, Any]
"""What a worker says.

- its kind
- the job
- when that was started (monotonic clock of the machine, seconds)
- how many seconds it ran
- the payload: bytes; a list of buffers, if it came as a parcel; or why it could not come
"""

REPORT: Final = struct.Struct("<QddQBB2x4s")
"""A report's header: job, started, seconds, length, kind, 1 if it is a parcel, `MARK`."""

MARK: Final = b"\xc1PF\xfe"
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
    """What became of one call of several: `value` is its result, or the exception if not `ok`."""

    ok: bool
    value: Any


OUT_OF_BAND: Final = 1 << 16
"""Buffers (PEP 574) of at least this many bytes are kept out of the pickle, so that they are
copied once, into the file that they travel in."""


_PLAIN: Final = frozenset({type(None), bool, int, float, complex})
"""Types whose values are written by `marshal`, as short text is, in a third of the time that
`pickle` takes. Text of 2 GiB is more than marshal takes."""
_BYTES: Final = frozenset({bytes, bytearray})


class _Beside:
    """Bytes or a bytearray: pickled as a buffer beside the pickle, and unpickled as themselves."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self._data), (pickle.PickleBuffer(self._data),)


def _is_plain(obj: object) -> bool:
    kind = type(obj)
    return kind in _PLAIN or (kind is str and len(obj) < OUT_OF_BAND)  # type: ignore[arg-type]


def _is_large(obj: object) -> bool:
    return type(obj) in _BYTES and len(obj) >= OUT_OF_BAND  # type: ignore[arg-type]


_PICKLE: Final = 0x80
"""Each pickle begins with this byte (the opcode PROTO), and nothing of marshal's does."""

# A name that is final is found faster.
_dumps: Final[Callable[[Any], bytes]] = marshal.dumps
_loads: Final = marshal.loads


def dumps(obj: object) -> bytes:
    return pickle.dumps(obj, PROTOCOL)


def pack(obj: object) -> tuple[bytes, list[memoryview]]:
    """For `unpack`: an object's pickle, or what marshal makes of a plain one; and views of the
    large buffers that were left out of it.

    Bytes themselves, or in a tuple such as a call's arguments, are left out, too.
    """
    if type(obj) is tuple:
        for item in obj:
            if not _is_plain(item):
                break
        else:
            return _dumps(obj), []
        if any(map(_is_large, obj)):
            obj = tuple(_Beside(o) if _is_large(o) else o for o in obj)
    elif _is_plain(obj):
        return _dumps(obj), []
    elif _is_large(obj):
        obj = _Beside(obj)  # type: ignore[arg-type]
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


MAX_TEXT: Final = 500


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
) -> tuple[int, bytes, list[memoryview]]:
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


_OWN_MODULES: Final = ("prefork.worker", "prefork.messages", "prefork.jobs")


def decode(kind: int, payload: Any) -> tuple[bool, Any]:
    """The outcome that a DONE, OUTCOMES or FAILED report carries: whether the job went well, and
    its result or the exception.

    Never raises: what cannot be unpickled fails this job alone.
    """
    if isinstance(payload, OSError):
        return False, payload
    if kind == Kind.DONE:
        return decode_result(payload)
    if kind == Kind.OUTCOMES:
        return True, [
            Outcome(*(decode_result(v) if ok else decode_failure(Failure(*v))))
            for ok, v in load(payload)
        ]
    return decode_failure(Failure(*load(payload)))


def decode_exit(payload: Any) -> tuple[int, str]:
    """What an EXITING report says: the exit code, and why; ValueError if it says nothing."""
    try:
        code, why = load(payload)
        return int(code), str(why)
    except Exception as exc:
        raise ValueError(f"a report cannot be read: {describe(exc)}") from exc


def decode_reason(payload: Any) -> str:
    """Why a worker leaves, as a LEAVING report says; ValueError if it says nothing."""
    try:
        return str(load(payload))
    except Exception as exc:
        raise ValueError(f"a report cannot be read: {describe(exc)}") from exc


def decode_result(payload: Any) -> tuple[bool, Any]:
    try:
        if type(payload) is list:
            return True, unpack(payload[0], payload[1:])
        return True, unpack(payload)
    except BaseException as exc:
        name = _first_global(payload if isinstance(payload, (bytes, memoryview)) else payload[0])
        return False, _decoding_error(name, exc)


def decode_failure(failure: Failure) -> tuple[bool, Any]:
    try:
        exc = load(failure.pickled)
        if not isinstance(exc, BaseException):
            raise TypeError(f"it unpickles to {type_name(exc)}, which is no exception")
        exc.__cause__ = RemoteTraceback(failure.traceback)
    except BaseException as reason:
        exc = _decoding_error(failure.type_name, reason, failure.traceback)
    return False, exc


def load(payload: Any) -> Any:
    """Unpickle bytes, or a list of buffers: the pickle, then its out-of-band buffers."""
    if isinstance(payload, list):
        return pickle.loads(payload[0], buffers=payload[1:])
    return pickle.loads(payload)


def unpack(packed: bytes | memoryview, buffers: Iterable[memoryview] = ()) -> Any:
    """The object of which `pack` has made this."""
    if packed[0] != _PICKLE:
        return _loads(packed)
    if not buffers:  # to pass none on takes as long as the rest
        return pickle.loads(packed)
    return pickle.loads(packed, buffers=buffers)


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
