"""Functions of `signal` as they are in C. Those of the module itself make members of enumerations
of what they return, which took a good part of a worker's start.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

__all__ = ["DEFAULT", "IGNORE", "forget_handlers", "get_action", "set_action", "unblock"]

Action = Callable[[int, FrameType | None], object] | int
try:
    _signal: Any = importlib.import_module("_signal")
except ImportError:
    _signal = signal
DEFAULT, IGNORE = _signal.SIG_DFL, _signal.SIG_IGN
_UNBLOCK = int(signal.SIG_UNBLOCK)
set_action: Callable[[int, Action], object] = _signal.signal
"""What happens at a signal: a function is called, or DEFAULT, or IGNORE."""
get_action: Callable[[int], Action | None] = _signal.getsignal
"""The same; None: what that is was not said in Python."""


def unblock(*signums: int) -> None:
    _signal.pthread_sigmask(_UNBLOCK, signums)


def forget_handlers(signums: Iterable[int] = range(1, signal.NSIG)) -> None:
    """The default instead of each Python function."""
    for signum in signums:
        if callable(get_action(signum)):
            set_action(signum, DEFAULT)
