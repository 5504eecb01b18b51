"""What a user asks a pool to observe, and what its workers are told of that."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prefork._describe import short_repr

if TYPE_CHECKING:
    from prefork._observe.levels import Levels

__all__ = ["Observing", "WorkerSettings", "observing"]

PREFIX: Final = "prefix"
"""What tasks print goes to where this process prints, line by line, with who has printed it."""


class WorkerSettings:
    """What all workers of a pool are told.

    Attributes:
        logger: whose records go to the pool, "" for all loggers; None: none.
        mark: what a worker's output is marked with where a job begins or ends; empty: its output
            is not captured.
        levels: of the pool's loggers, in a worker that has not inherited them.
    """

    def __init__(self, logger: str | None, mark: bytes, levels: Levels | None = None) -> None:
        self.logger = logger
        self.mark = mark
        self.levels = levels

    def __reduce__(self) -> tuple[Any, ...]:
        """For a worker that is not forked: the levels are what they are now."""
        levels = None
        if self.logger is not None:
            from prefork._observe.levels import levels_now

            levels = levels_now()
        return WorkerSettings, (self.logger, self.mark, levels)


class Observing(NamedTuple):
    """What is asked for.

    Attributes:
        workers: what they are told.
        output: what a line is passed to; None: it is written to where this process prints, if
            output is captured at all.
    """

    workers: WorkerSettings
    output: Callable[..., object] | None


def observing(forward_logs: object, capture_output: object) -> Observing | None:
    """
    Args:
        forward_logs, capture_output: as a pool is given them.

    Returns:
        None: nothing is asked for.

    Raises:
        TypeError, ValueError: one of them is not right.
    """
    logger = _logger(forward_logs)
    output = _output(capture_output)
    if logger is None and output is None:
        return None
    mark = b"" if output is None else b"\0prefork " + os.urandom(8)
    return Observing(WorkerSettings(logger, mark), None if output == PREFIX else output)  # type: ignore[arg-type]


def _logger(value: object) -> str | None:
    if value is None or value is False:
        return None
    if value is True or value == "root":
        return ""
    if isinstance(value, str):
        return value
    raise TypeError(f"forward_logs must be True or the name of a logger, not {short_repr(value)}")


def _output(value: object) -> object:
    if value is None or value is False:
        return None
    if isinstance(value, str):
        if value != PREFIX:
            raise ValueError(f'capture_output must be "prefix" or callable, not {value!r}')
        return value
    if callable(value):
        return value
    raise TypeError(f'capture_output must be "prefix" or callable, not {short_repr(value)}')
