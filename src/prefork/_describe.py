"""How things are called in messages: types, functions, exceptions, ends of processes."""

from __future__ import annotations

import contextlib
import reprlib
import signal
from collections.abc import Callable
from typing import Any, Final

__all__ = [
    "describe",
    "describe_exit",
    "function_name",
    "message",
    "short_repr",
    "trim_notes",
    "type_name",
]


def type_name(obj: object) -> str:
    """The qualified name of an object's type."""
    cls = type(obj)
    if cls.__module__ == "builtins":
        return cls.__qualname__
    return f"{cls.__module__}.{cls.__qualname__}"


def short_repr(obj: object) -> str:
    """At most some 200 characters; never raises."""
    try:
        return _reprlib.repr(obj)
    except Exception:
        return "(its repr cannot be had)"


_reprlib = reprlib.Repr()
_reprlib.maxstring = _reprlib.maxother = 200


KEPT_NOTES: Final = 4
"""How many notes of an exception are kept at the beginning, and at the end."""


def trim_notes(exc: BaseException) -> None:
    """Python 3.14 notes each level of what cannot be pickled: tens of thousands, where a nested
    object is too deep for it."""
    notes = getattr(exc, "__notes__", None)
    if isinstance(notes, list) and (dropped := len(notes) - 2 * KEPT_NOTES) > 1:
        notes[KEPT_NOTES:-KEPT_NOTES] = [f"... and {dropped} notes more"]


def describe_exit(exitcode: int | None) -> str:
    """How a process ended, in words: `describe_exit(-9)` is "was killed by SIGKILL"."""
    if exitcode is None:
        return "ended with unknown status"
    if exitcode >= 0:
        return f"exited with code {exitcode}"
    try:
        return f"was killed by {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"was killed by signal {-exitcode}"


def function_name(func: Callable[..., Any]) -> str:
    """The qualified name for messages; follows partials and falls back on `repr`."""
    name = module = None
    with contextlib.suppress(Exception):  # a proxy, for instance, may raise anything
        inner = getattr(func, "func", func)
        module = getattr(inner, "__module__", None)
        name = getattr(inner, "__qualname__", None)
    if name is None:
        return f"{type_name(func)} object"
    return f"{module}.{name}" if module else str(name)


MAX_TEXT: Final = 500


def message(exc: BaseException) -> str:
    """Of an exception; never raises."""
    try:
        return str(exc)
    except Exception:
        return "(its message cannot be had)"


def describe(exc: BaseException) -> str:
    """Type and message of an exception, in at most some 500 characters; never raises."""
    text = message(exc)
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}… ({len(text)} characters)"
    return f"{type_name(exc)}: {text}" if text else type_name(exc)
