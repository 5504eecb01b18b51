"""Checks of what users pass in: a wrong argument gets its error at once, and by its name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = [
    "NO_LIMITS",
    "Limits",
    "check_callables",
    "check_count",
    "check_counts",
    "check_iterable",
    "seconds",
]


class Limits(NamedTuple):
    """Times that a job may take, in seconds; None is no limit. And how often it is retried."""

    timeout: float | None = None
    soft_timeout: float | None = None
    lost_worker_timeout: float | None = 10.0
    retries: int = 0

    def override(
        self,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        retries: int = 0,
    ) -> Limits:
        """These limits, but for what is not None; infinity is no limit.

        Raises:
            TypeError, ValueError: it is no number of seconds.
        """
        if timeout is None and soft_timeout is None and lost_worker_timeout is None and not retries:
            return self
        hard, soft, lost, _ = self
        check_count("retries", retries, least=0)
        return Limits(
            hard if timeout is None else seconds("timeout", timeout),
            soft if soft_timeout is None else seconds("soft_timeout", soft_timeout),
            lost
            if lost_worker_timeout is None
            else seconds("lost_worker_timeout", lost_worker_timeout, zero=True),
            retries,
        )


NO_LIMITS = Limits(lost_worker_timeout=None)


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
