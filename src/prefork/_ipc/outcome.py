"""What becomes of a call, and how it is written down: a result, or an exception."""

# Annotations are evaluated here: as strings, those of `Outcome` would be looked up in `prefork`.

import copyreg
import operator
import traceback
from types import CoroutineType
from typing import Any, Final, NamedTuple

from prefork._describe import describe, type_name
from prefork._ipc.descriptors import ArrivedFds, arriving
from prefork._ipc.page import NotedOutcome
from prefork._ipc.pickling import (
    dumps,
    load,
    pack,
    pickle_as_itself,
    pickle_in_band,
    unpack,
)
from prefork._ipc.wire import Kind
from prefork._public import public
from prefork.errors import (
    MaybeDecodingError,
    PreforkError,
    SoftTimeLimitExceeded,
    remote_traceback,
)


class PickledError(NamedTuple):
    """A task's exception on its way back."""

    pickled: bytes
    type_name: str
    traceback: str


@public
class Outcome(NamedTuple):
    """What became of one call of several: `value` is its result, or the exception if not `ok`."""

    ok: bool
    value: Any


def encode_result(
    value: object,
    soft_limit: type[BaseException] = SoftTimeLimitExceeded,
    fds: list[int] | None = None,
) -> tuple[int, bytes, list[memoryview]]:
    """A task's result as kind and payload of a report; raises only for a soft time limit.

    Args:
        fds: duplicates of the descriptors that it has are added here.
    """
    try:
        return Kind.DONE, *pack(value, fds, soft_limit)
    except soft_limit:
        raise
    except Exception as exc:
        error = _encoding_error(exc, value)
        text = format_traceback(error)
        return Kind.FAILED, dumps((_bare(error), type_name(error), text)), []


def encode_failure(exc: BaseException, fds: list[int] | None = None) -> tuple[bytes, str, str]:
    """The fields of a `PickledError`; never raises. `fds`: as in `encode_result`."""
    text = format_traceback(exc)
    try:
        pickled = dumps(exc) if fds is None else pickle_in_band(exc, fds)
    except Exception as reason:
        pickled = _pickle_otherwise(exc, reason)
    return pickled, type_name(exc), text


def _pickle_otherwise(exc: BaseException, reason: Exception) -> bytes:
    """Where a library has reducers for all exceptions (tblib's, which dask uses), they take along
    what an exception comes from, and that may be too deep or cannot be pickled."""
    try:
        if type(exc) in copyreg.dispatch_table:
            return pickle_as_itself(exc)
    except Exception as exc_itself:
        reason = exc_itself
    return _bare(_encoding_error(reason, exc))


def _bare(error: Exception) -> bytes:
    """The pickle of an error of ours, without the one that it comes from: that could not be pickled
    perhaps, and reducers that others register for all exceptions (tblib's, which dask uses) take it
    along."""
    error.__cause__ = error.__context__ = None
    return dumps(error.with_traceback(None))


def _encoding_error(reason: Exception, value: object) -> Exception:
    error: Exception
    if isinstance(value, CoroutineType):
        name = value.__qualname__
        value.close()  # else there would be a warning that nobody has awaited it
        return TypeError(
            f"{name} is a coroutine function, and nobody awaits in a worker what it returns: await "
            "is on this side, as in `await pool.submit(f, x)` with a plain function f. One that "
            "calls asyncio.run has a loop of its own in the worker"
        )
    try:
        from prefork._ipc.encoding_error import MaybeEncodingError

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


_OWN_MODULES: Final = (
    "prefork._worker.main",
    "prefork._worker.seeding",
    "prefork._ipc.outcome",
    "prefork._ipc.pickling",
    "prefork._engine.job_factory",
)


class Large:
    """What has come with a report and is not in it: the pickle, then its out-of-band buffers; and
    descriptors that belong to the object."""

    __slots__ = ("fds", "nbytes", "pieces")

    def __init__(self, pieces: list[memoryview], fds: ArrivedFds | None = None) -> None:
        self.pieces = pieces
        self.fds = fds
        self.nbytes = sum(piece.nbytes for piece in pieces)


class Part(NamedTuple):
    """What is known of some items of a job."""

    items: int
    payload: Any  # of a PART report; or what all of them have failed with


class Whole(NamedTuple):
    """What is known of a job whose items came to their outcomes one part after another."""

    parts: list[Part | NotedOutcome]  # in the order of the items
    size: int  # how many items there are in all
    kind: int  # of the last report
    payload: Any  # of that; or what the items that are left have failed with


def decode(kind: int, payload: Any) -> tuple[bool, Any]:
    """The outcome that a DONE, OUTCOMES or FAILED report carries: whether the job went well, and
    its result or the exception.

    Never raises: what cannot be unpickled fails this job alone.

    Args:
        payload: bytes, a `Large` or a `Whole`; or why it could not be had.
    """
    if type(payload) is bytes:  # as most are
        return _decode(kind, payload)
    if isinstance(payload, BaseException):
        return False, payload
    if type(payload) is Whole:
        return True, _decode_whole(payload)
    if type(payload) is Large:
        with arriving(payload.fds):
            return _decode(kind, payload.pieces)
    return _decode(kind, payload)


def _decode(kind: int, payload: Any) -> tuple[bool, Any]:
    if kind == Kind.DONE:
        return decode_result(payload)
    if kind == Kind.OUTCOMES:
        return True, [
            Outcome(*(decode_result(v) if ok else decode_failure(PickledError(*v))))
            for ok, v in load(payload)
        ]
    return decode_failure(PickledError(*load(payload)))


def _decode_whole(whole: Whole) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for part in whole.parts:
        if type(part) is Part:
            outcomes += _decode_part(part.items, Kind.OUTCOMES, part.payload)
        else:
            ok, pieces = part
            outcomes.append(Outcome(*(decode_result(pieces) if ok else _load_failure(pieces[0]))))
    left = whole.size - len(outcomes)
    return outcomes + _decode_part(left, whole.kind, whole.payload) if left > 0 else outcomes


def _decode_part(count: int, kind: int, payload: Any) -> list[Outcome]:
    ok, value = decode(kind, payload)
    return value if ok else [Outcome(False, value)] * count


def _load_failure(pickled: Any) -> tuple[bool, Any]:
    try:
        return decode_failure(PickledError(*load(pickled)))
    except BaseException as exc:  # a task has written there
        return False, _decoding_error("exception", exc)


# What a worker says of itself is text, and no pickle: it is read with the pool's lock held, where
# no code of a user's may run.


def encode_reason(why: str) -> bytes:
    """What a LEAVING report says: why the worker leaves."""
    return why.encode(errors="backslashreplace")


def decode_reason(payload: Any) -> str:
    """
    Raises:
        ValueError: it says nothing.
    """
    try:
        if isinstance(payload, bytes):
            return payload.decode()
    except UnicodeDecodeError:
        pass
    raise ValueError("a report cannot be read: it is no text")


def encode_exit(code: int, why: str) -> bytes:
    """What an EXITING report says: the exit code, and why."""
    code = operator.index(code)  # a subclass may say anything of itself
    if code.bit_length() > MOST_BITS:
        code &= 0xFF  # as the system would have it
    return encode_reason(f"{code} {why}")


def decode_exit(payload: Any) -> tuple[int, str]:
    """
    Raises:
        ValueError: it says nothing.
    """
    code, _, why = decode_reason(payload).partition(" ")
    try:
        return int(code), why
    except ValueError:
        raise ValueError("a report cannot be read: it has no exit code") from None


MOST_BITS: Final = 63  # of an exit code; Python does not write down numbers of any length


def decode_result(payload: Any) -> tuple[bool, Any]:
    try:
        if type(payload) is list:
            return True, unpack(payload[0], payload[1:])
        return True, unpack(payload)
    except BaseException as exc:
        name = _first_global(payload if isinstance(payload, (bytes, memoryview)) else payload[0])
        return False, _decoding_error(name, exc)


def decode_failure(failure: PickledError) -> tuple[bool, Any]:
    try:
        exc = load(failure.pickled)
        if not isinstance(exc, BaseException):
            raise TypeError(f"it unpickles to {type_name(exc)}, which is no exception")
        exc.__cause__ = remote_traceback(failure.traceback)
    except BaseException as reason:
        exc = _decoding_error(failure.type_name, reason, failure.traceback)
    return False, exc


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
