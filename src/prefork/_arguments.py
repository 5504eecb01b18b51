"""Checks of what users pass in: a wrong argument gets its error at once, and by its name."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

__all__ = [
    "check_callables",
    "check_can_iterate",
    "check_iterable",
    "count",
    "integer",
    "seconds",
    "some_count",
]


def integer(name: str, value: object) -> int:
    """An int, or what is one to `operator.index`, as numpy's integers are."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int, not {value!r}") from None


def count(name: str, value: object, least: int = 1) -> int:
    """The same, of at least so much."""
    number = integer(name, value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


def some_count(name: str, value: object) -> int | None:
    """None is fine, too: no limit."""
    return None if value is None else count(name, value)


def check_can_iterate(value: object) -> None:
    """Without asking it for an iterator.

    Raises:
        TypeError: it has none.
    """
    if not (hasattr(type(value), "__iter__") or hasattr(type(value), "__getitem__")):
        raise TypeError(f"{type(value).__name__!r} object is not iterable")


def check_callables(**functions: object) -> None:
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable, not {function!r}")


def check_iterable(name: str, value: Iterable[Any]) -> tuple[Any, ...]:
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(f"{name} must be iterable, not {value!r}") from None


def seconds(name: str, value: Any, zero: bool = False) -> float | None:
    """A time limit as a float; infinity is None."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    number: Any = value  # numpy's are registered as real, too
    if not (number > 0 or (zero and number == 0)):
        least = "at least" if zero else "more than"
        raise ValueError(f"{name} must be {least} 0 seconds, not {value}")
    try:
        return None if math.isinf(value) else float(value)
    except OverflowError:
        raise ValueError(f"{name} is out of range: {value} seconds") from None
