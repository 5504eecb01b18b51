"""What must be done as a whole, whatever signals come.

Python runs signal handlers between two bytecodes of the main thread, and a handler that raises, as
that of Ctrl-C does, leaves half done what it has hit. To block signals is not enough: the system
hands a signal that the main thread blocks to another thread, and its handler runs in the main
thread all the same.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from prefork._system.signals import get_action, set_action

__all__ = ["in_any_case", "uninterrupted"]

T = TypeVar("T")

_SIGNALS = range(1, signal.NSIG)


def uninterrupted(call: Callable[[], T]) -> T:
    """Call it; the handlers of signals that come meanwhile run after it.

    For what takes no longer than a moment, and is seldom done: it costs some microseconds. Other
    threads than the main one run no handlers, so there it is a plain call.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    came: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        came.append(signum)

    actions = enumerate(map(get_action, _SIGNALS), 1)
    handlers = {signum: action for signum, action in actions if callable(action)}
    try:
        for signum in handlers:
            set_action(signum, note)
        return call()
    finally:
        try:
            _set_actions(handlers)
        finally:
            _set_actions(handlers)  # if one of them, just set again, has raised in the middle
            _raise(came)


def in_any_case(call: Callable[[], object]) -> None:
    """The same for what clears up after something that was interrupted: it is called although a
    handler raises before it has begun, as when Ctrl-C comes once more."""
    has_begun = False

    def begin() -> None:
        nonlocal has_begun
        has_begun = True
        call()

    try:
        uninterrupted(begin)
    finally:
        if not has_begun:
            in_any_case(call)


def _set_actions(handlers: dict[int, Any]) -> None:
    deque(map(set_action, handlers.keys(), handlers.values()), 0)


def _raise(signums: list[int]) -> None:
    """Have these signals come, again; the handler of each runs, even if another one's raises."""
    while signums:
        try:
            signal.raise_signal(signums.pop(0))
        finally:
            _raise(signums)
