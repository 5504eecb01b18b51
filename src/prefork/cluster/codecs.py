"""How arguments, results and errors are written down, as texts of one line.

JSON is the default: what comes from another machine is data then, and cannot have anything run.
What JSON has not, it changes or refuses: tuples arrive as lists, keys of mappings as strings.

An error is always written as JSON: the name of its class, its arguments, its traceback. Whoever
reads it makes it of a class that has been imported already, and imports nothing for it.
"""

from __future__ import annotations

import base64
import json
import pickle
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from prefork._describe import describe
from prefork._ipc.encoding_error import MaybeEncodingError
from prefork.errors import MaybeDecodingError, remote_traceback

__all__ = ["ALL_CODECS", "BY_VALUE", "CODECS", "Codec", "read_error", "to_json", "write_error"]

MOST_ERROR: Final = 1 << 16
"""Characters of an error's arguments, and of its traceback: brokers refuse messages that are too
large."""

_encode: Final[Callable[[Any], str]] = json.JSONEncoder(separators=(",", ":")).encode
_quoted: Final[Callable[[str], str]] = json.encoder.encode_basestring_ascii


def to_json(value: Any) -> str:
    """In one line of ASCII. What is most frequent goes the shortest way."""
    if type(value) is int:
        return int.__repr__(value)
    if type(value) is str:
        return _quoted(value)
    return _encode(value)


MOST_ARGUMENT: Final = 1 << 20
MOST_RESULT: Final = 7 << 20
"""So a letter has less than 16 MiB, which a RabbitMQ takes that is not told otherwise."""
MOST_BY_SOCKET: Final = 256 << 20


class Codec(NamedTuple):
    """One way to write values down.

    Attributes:
        functions: whether functions are written down, too; else they go by name.
        most_argument: bytes of what one item is written down as.
        most_result: bytes of one result; and of all that a chunk has come to, after which no
            further item of it is begun.
        way: what takes no more than that, for messages.
    """

    name: str
    write: Callable[[Any], str]
    read: Callable[[str], Any]
    read_all: Callable[[Sequence[str]], list[Any]]
    functions: bool = False
    most_argument: int = MOST_ARGUMENT
    most_result: int = MOST_RESULT
    way: str = "a message broker"


def _json_all(texts: Sequence[str]) -> list[Any]:
    values: list[Any] = json.loads(f"[{','.join(texts)}]")
    if len(values) != len(texts):
        raise ValueError("a text holds more than one value")
    return values


def _pickled(value: Any) -> str:
    return base64.b64encode(pickle.dumps(value, pickle.HIGHEST_PROTOCOL)).decode()


def _unpickled(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))


def _unpickled_all(texts: Sequence[str]) -> list[Any]:
    return list(map(_unpickled, texts))


_PLAIN: Final = (type(None), bool, int, float, str, bytes)


def _by_value(value: Any) -> str:
    """What cannot be found by a name elsewhere goes along, if there is what does that."""
    if type(value) in _PLAIN:
        return _pickled(value)
    try:
        import cloudpickle
    except ImportError:
        return _pickled(value)
    return base64.b64encode(cloudpickle.dumps(value, pickle.HIGHEST_PROTOCOL)).decode()


CODECS: Final = {
    "json": Codec("json", to_json, json.loads, _json_all),
    "pickle": Codec("pickle", _pickled, _unpickled, _unpickled_all),
}
"""Those that celery's workers can be told to accept."""

BY_VALUE: Final = Codec(
    "by value",
    _by_value,
    _unpickled,
    _unpickled_all,
    functions=True,
    most_argument=MOST_BY_SOCKET,
    most_result=MOST_BY_SOCKET,
    way="a cluster's pool",
)
ALL_CODECS: Final = {**CODECS, BY_VALUE.name: BY_VALUE}


# ---- errors


def write_error(
    error: BaseException, text: str | None = None, run: tuple[float, int] | None = None
) -> str:
    """As JSON; never raises.

    Args:
        text: its traceback; None: that of the error.
        run: for how many seconds what has raised it ran, and in which process: it has them as
            `seconds` and `pid` when it is read.
    """
    if text is None:
        text = "".join(traceback.format_exception(error))
    cls = type(error)
    try:
        # An encoding error is made of two objects, of which it keeps the texts alone.
        args: Sequence[Any] = _arguments(error)
        notes = [str(note) for note in getattr(error, "__notes__", None) or ()]
    except Exception:  # its own code fails
        args, notes = [], []
    # JSON has no bytes, which a UnicodeDecodeError is made of: they go as text of the same numbers.
    raw = [at for at, arg in enumerate(args) if type(arg) is bytes]
    args = [arg.decode("latin-1") if type(arg) is bytes else arg for arg in args]
    try:
        written = to_json(args)
    except Exception:
        written = to_json([_plain(arg) for arg in args])
    if len(written) > MOST_ERROR:
        written, raw = to_json([describe(error)]), []
    fields = {
        "class": f"{cls.__module__}:{cls.__qualname__}",
        "what": describe(error),
        "traceback": text[-MOST_ERROR:],
        "notes": notes,
        "bytes": raw,
        "run": run,
    }
    return f'{to_json(fields)[:-1]},"args":{written}}}'


def _arguments(error: BaseException) -> list[Any]:
    """What its class makes it of, as far as it says so: an OSError has its file's name there."""
    made_by = error.__reduce__()
    if type(made_by) is tuple and made_by[0] is type(error):
        return list(made_by[1])
    return list(error.args)


def _plain(value: Any) -> Any:
    try:
        to_json(value)
    except Exception:
        try:
            return repr(value)
        except Exception:
            return f"({type(value).__qualname__}, whose repr cannot be had)"
    return value


def read_error(text: str) -> BaseException:
    """The exception; one whose class is not known here becomes a `MaybeDecodingError`.

    Raises:
        ValueError: this is no error that was written.
    """
    fields = json.loads(text)
    try:
        name, what, remote = fields["class"], str(fields["what"]), str(fields["traceback"])
        args, notes = list(fields["args"]), list(fields["notes"])
        module, _, qualname = name.partition(":")
        for at in fields.get("bytes", ()):
            args[at] = args[at].encode("latin-1")
    except (KeyError, TypeError, AttributeError, IndexError):
        raise ValueError("this is no error that was written") from None
    error = _make(module, qualname, args, what, remote)
    try:
        for note in notes:
            error.add_note(str(note))
        if isinstance(fields.get("run"), list):
            seconds, pid = fields["run"]
            vars(error).update(seconds=float(seconds), pid=int(pid))
        if remote:
            error.__cause__ = remote_traceback(remote)
    except Exception as exc:  # it takes no attributes, as a frozen dataclass
        reason = f"{describe(exc)}, when it was made again. It said {what}"
        return MaybeDecodingError(qualname, reason, remote)
    return error


def _make(module: str, qualname: str, args: list[Any], what: str, remote: str) -> BaseException:
    cls: Any = sys.modules.get(module)
    for part in qualname.split("."):
        cls = vars(cls).get(part) if cls is not None and hasattr(cls, "__dict__") else None
    if cls is None and module == "prefork":  # which has its names only when they are asked for
        import prefork

        cls = getattr(prefork, qualname, None)
    if not (isinstance(cls, type) and issubclass(cls, BaseException)):
        return MaybeDecodingError(qualname, f"its class is not known here. It said {what}", remote)
    try:
        if issubclass(cls, MaybeEncodingError):
            made: BaseException = cls.__new__(cls, *args)
            made.args = tuple(args)
            made.exc, made.value = args  # type: ignore[attr-defined]
            return made
        made = cls(*args)
        if not isinstance(made, BaseException):
            raise TypeError(f"it makes a {type(made).__name__}")
    except Exception as exc:
        reason = f"{describe(exc)}, when it was made again. It said {what}"
        return MaybeDecodingError(qualname, reason, remote)
    return made
