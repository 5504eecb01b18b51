"""In a worker: log records and warnings go to the pool, instead of to handlers and standard error.

A worker that was forked has inherited its parent's handlers. They stay silent here: what they would
write the parent's own will.
"""

from __future__ import annotations

import logging
import marshal
import warnings
from collections.abc import Callable
from typing import Any, Final, TextIO

from prefork._observe.frames import RECORD, WARNING, Sender
from prefork._observe.levels import Levels
from prefork._observe.records import encode

__all__ = ["send_records", "send_warnings"]

Current = Callable[[], tuple[int | None, str | None]]
"""Tells the number of the job that runs and the name of its function, if one does."""

SHOWN: Final = 10_000
"""Places of warnings to remember, at most."""

_silenced: list[logging.Handler] = []  # kept: what they write to may be flushed when it goes


class _Handler(logging.Handler):
    def __init__(self, sender: Sender, current: Current, soft_limit: type[BaseException]) -> None:
        super().__init__()
        self._sender = sender
        self._current = current
        self._soft_limit = soft_limit

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._sender.send(RECORD, encode(record, *self._current(), self._soft_limit))
        except self._soft_limit:  # the task has just passed it, and that is its own
            raise
        except Exception:
            self.handleError(record)


def send_records(
    logger: str,
    sender: Sender,
    current: Current,
    soft_limit: type[BaseException],
    levels: Levels | None,
) -> None:
    """From now on, what this logger and those below it let through goes to the pool.

    Args:
        logger: its name; "": the root logger.
        soft_limit: what is raised in a task that has passed its limit.
        levels: what is let through; None: what was inherited.
    """
    if levels is not None:
        levels.set()
    handler = _Handler(sender, current, soft_limit)
    top = logging.getLogger(logger or None)
    found = list(logging.root.manager.loggerDict.items())
    below = [
        other
        for name, other in found
        if isinstance(other, logging.Logger) and (not logger or name.startswith(f"{logger}."))
    ]
    for other in (top, *below):
        _silenced.extend(other.handlers)
        # Records climb up to the first logger that does not pass them on.
        other.handlers[:] = [handler] if other is top or not other.propagate else []
    if logger:
        top.propagate = False


def send_warnings(sender: Sender) -> None:
    """From now on, each warning goes to the pool, once for each place that it comes from."""
    shown: set[tuple[Any, ...]] = set()
    show_in_file = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is not None:
            show_in_file(message, category, filename, lineno, file, line)
            return
        text = str(message)[:SHOWN]
        place = text, category.__module__, category.__qualname__, str(filename), int(lineno)
        if place not in shown:
            if len(shown) >= SHOWN:
                shown.clear()
            shown.add(place)
            sender.send(WARNING, marshal.dumps(place))

    warnings.showwarning = show
