"""A log record on its way from a worker to the pool: as text and plain values.

Arguments that are plain travel as they are, and are put into the text by the pool's handlers, if at
all. With any others the text is made here, in the worker, where they are what they are: nobody has
to pickle them. Of an exception the traceback travels, as text.
"""

from __future__ import annotations

import logging
import marshal
import pickle
from typing import Any, Final

from prefork._observe.frames import MESSAGE

__all__ = ["decode", "encode"]

_FIELDS: Final = (
    "name",
    "levelno",
    "levelname",
    "pathname",
    "filename",
    "module",
    "lineno",
    "funcName",
    "created",
    "msecs",
    "relativeCreated",
    "thread",
    "threadName",
    "process",
    "processName",
    "stack_info",
    "taskName",  # from Python 3.12 on
)
_MADE: Final = ("msg", "args", "exc_text", "job", "function", "exc_info")
"""What follows these; the last is never anything but None."""
_ALL: Final = _FIELDS + _MADE
_KNOWN: Final = frozenset({*_ALL, "message"})
_PLAIN: Final = frozenset({type(None), bool, int, float, str})
_TEXT: Final = 1 << 16  # characters that are left of a record that is too large

_formatter: Final = logging.Formatter()


Errors = type[BaseException] | tuple[type[BaseException], ...]


def encode(
    record: logging.LogRecord, job: int | None, function: str | None, passing: Errors = ()
) -> bytes:
    """
    Args:
        job, function: what runs now; of a record that another pool's worker has sent, in here,
            those that it came with count.
        passing: errors that are not of the record's making, and are raised. All others, of its
            arguments, are told in its text.
    """
    fields = record.__dict__
    msg: Any = record.msg
    args: Any = record.args
    if type(msg) is not str or not _is_plain(args):
        msg, args = _text(record, passing), None
    exc_text = record.exc_text
    if record.exc_info and not exc_text:
        exc_text = _formatter.formatException(record.exc_info)
    get = fields.get
    if "job" in fields:
        job, function = get("job"), get("function")
    more = fields.keys() - _KNOWN
    extra = _pickle({name: fields[name] for name in more}, passing) if more else b""
    values: list[Any] = [get(name) for name in _FIELDS]
    try:
        message = marshal.dumps(([*values, msg, args, exc_text, job, function, None], extra))
    except ValueError:  # somebody has put something else there
        values = [v if type(v) in _PLAIN else str(v) for v in values]
        exc_text = exc_text and str(exc_text)
        message = marshal.dumps(([*values, msg, args, exc_text, job, function, None], extra))
    if len(message) > MESSAGE:
        msg = f"{_text(record, passing)[:_TEXT]} … (the rest was too long)"
        exc_text = exc_text and exc_text[-_TEXT:]
        message = marshal.dumps(([*values, msg, None, exc_text, job, function, None], b""))
    return message


def _is_plain(args: object) -> bool:
    if not args:
        return True
    if type(args) is not tuple:
        return False
    return all(type(arg) in _PLAIN for arg in args)


def _text(record: logging.LogRecord, passing: Errors) -> str:
    try:
        return record.getMessage()
    except passing:
        raise
    except Exception as exc:  # the arguments do not fit the text; or of a `__str__`
        return f"{record.msg!s} (its arguments cannot be shown: {type(exc).__name__}: {exc})"


def _pickle(extra: dict[str, Any], passing: Errors) -> bytes:
    try:
        return pickle.dumps(extra)
    except passing:
        raise
    except Exception:
        return pickle.dumps({name: _as_text(value, passing) for name, value in extra.items()})


def _as_text(value: object, passing: Errors) -> object:
    try:
        pickle.dumps(value)
    except passing:
        raise
    except Exception:
        return repr(value)
    return value


def decode(message: bytes) -> dict[str, Any]:
    """The attributes of the record."""
    values, extra = marshal.loads(message)
    record: dict[str, Any] = dict(zip(_ALL, values, strict=True))
    if extra:
        try:
            record.update(pickle.loads(extra))
        except Exception as exc:  # a class that there is only in the worker
            record["extra_lost"] = f"{type(exc).__name__}: {exc}"
    return record
