"""Checks of what users pass in: a wrong argument gets its error at once, and by its name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

__all__ = ["check_callables", "check_count", "check_counts", "check_iterable", "seconds"]


def check_count(name: str, value: object, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def check_counts(**values: object) -> None:
    """None is fine, too: no limit."""
    for name, value in values.items():
        if value is not None:
            check_count(name, value)


def check_callables(**functions: object) -> None:
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable, not {function!r}")


def check_iterable(name: str, value: Iterable[Any]) -> tuple[Any, ...]:
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(f"{name} must be iterable, not {value!r}") from None


def seconds(name: str, value: object, zero: bool = False) -> float | None:
    """A time limit as a float; infinity is None."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not (value > 0 or (zero and value == 0)):
        least = "at least" if zero else "more than"
        raise ValueError(f"{name} must be {least} 0 seconds, not {value}")
    try:
        return None if math.isinf(value) else float(value)
    except OverflowError:
        raise ValueError(f"{name} is out of range: {value} seconds") from None
