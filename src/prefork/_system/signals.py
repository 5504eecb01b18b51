"""What happens at a signal, and when it must not happen.

Some functions of `signal` are taken as they are in C: those of the module itself make members of
enumerations of what they return, which took a good part of a worker's start.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

__all__ = [
    "DEFAULT",
    "IGNORE",
    "Hold",
    "blocked",
    "forget_handlers",
    "get_action",
    "holding_interrupts",
    "let_through",
    "set_action",
    "threads",
    "unblock",
    "was_started_with",
]

Action = Callable[[int, FrameType | None], object] | int
try:
    _signal: Any = importlib.import_module("_signal")
except ImportError:
    _signal = signal
DEFAULT, IGNORE = _signal.SIG_DFL, _signal.SIG_IGN
_BLOCK, _UNBLOCK = int(signal.SIG_BLOCK), int(signal.SIG_UNBLOCK)
_SET_MASK = int(signal.SIG_SETMASK)
_ALL = tuple(sorted(map(int, _signal.valid_signals())))
set_action: Callable[[int, Action], object] = _signal.signal
"""What happens at a signal: a function is called, or DEFAULT, or IGNORE."""
get_action: Callable[[int], Action | None] = _signal.getsignal
"""The same; None: what that is was not said in Python."""

_held: Iterable[int] | None = None
"""In a child that was forked, or started, with signals blocked: the mask that its parent had
before."""


def unblock(*signums: int) -> None:
    _signal.pthread_sigmask(_UNBLOCK, signums)


def forget_handlers(signums: Iterable[int] = _ALL) -> None:
    """The default instead of each Python function."""
    for signum in signums:
        if callable(get_action(signum)):
            set_action(signum, DEFAULT)


def let_through() -> None:
    """In a child: it has handlers of its own now, so what was blocked since before its start may
    come. Does nothing if it was not started so."""
    global _held
    held, _held = _held, None
    if held is not None:
        _signal.pthread_sigmask(_SET_MASK, held)


@contextlib.contextmanager
def holding_interrupts() -> Iterator[None]:
    """No Ctrl-C in this thread inside of this, nor in an interpreter that it starts, until that
    lets it through."""
    mask = blocked()
    try:
        _signal.pthread_sigmask(_BLOCK, (signal.SIGINT,))
        yield
    finally:
        _signal.pthread_sigmask(_SET_MASK, mask)


def blocked() -> set[int]:
    """The signals that are blocked in this thread."""
    return set(map(int, _signal.pthread_sigmask(_BLOCK, ())))


def was_started_with(mask: Iterable[int] | None) -> None:
    """In an interpreter that was started inside of `holding_interrupts`.

    Args:
        mask: what its parent had blocked before.
    """
    global _held  # noqa: PLW0603
    _held = mask


class Hold:
    """No signal handler of Python's runs between `begin` and `end`, in this thread or, if this is
    the main one, in the process; and none of them runs in a child that is forked in between.

    To block all signals in this thread is not all: where there are others, the kernel lets one of
    those take the signal, and Python runs its handler in the main thread in any case. So there,
    while there are others, each handler is replaced by this object, which notes the signal. `end`
    puts them back, and then has those noted handled. Not done where there is one thread, since a
    handler that is put back has lost what `signal.siginterrupt` has said of it.
    """

    def __init__(self) -> None:
        self._mask: Iterable[int] | None = None
        self._handlers: dict[int, Callable[..., object]] = {}  # those that were replaced
        self._noted: list[int] = []
        self._is_noting = True

    def begin(self) -> None:
        """If this is interrupted by a signal's handler, `end` is to be called all the same."""
        self._mask = _signal.pthread_sigmask(_BLOCK, ())
        _signal.pthread_sigmask(_BLOCK, _ALL)
        if threading.get_ident() == threading.main_thread().ident and threads() != 1:
            with contextlib.suppress(ValueError):  # a main thread that may not set any
                for signum in _ALL:
                    self._replace(signum)

    def _replace(self, signum: int) -> None:
        handler = _signal.getsignal(signum)
        if callable(handler) and not isinstance(handler, Hold):
            self._handlers[signum] = handler
            set_action(signum, self)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The handler, meanwhile; and afterwards, should it not have been possible to put back the
        one that was replaced: signals that come at that very moment have handlers, too."""
        if self._is_noting:
            self._noted.append(signum)
        else:
            self._handlers[signum](signum, frame)

    def end(self) -> None:
        """All is as it was before, and the signals that have come meanwhile are handled.

        Raises:
            BaseException: whatever their handlers raise; the rest is done all the same.
        """
        try:
            self._put_back()
        finally:
            try:
                self._unblock()
            finally:
                self._handle_noted()

    def leave_to_child(self) -> None:
        """In a forked child: it will `forget_handlers`, and then `let_through` what was blocked."""
        global _held  # noqa: PLW0603
        _held = self._mask

    def _put_back(self) -> None:
        self._is_noting = False
        for signum, handler in self._handlers.items():
            if _signal.getsignal(signum) is self:
                set_action(signum, handler)

    def _unblock(self) -> None:
        if self._mask is None:
            return
        try:
            _signal.pthread_sigmask(_SET_MASK, self._mask)
        finally:
            # Python looks for signals in here. If a handler has raised, it may forget to look for
            # the others that have come at the same time, until something else happens.
            _signal.pthread_sigmask(_BLOCK, ())

    def _handle_noted(self) -> None:
        try:
            while self._noted:
                signum = self._noted.pop(0)
                self._handlers[signum](signum, sys._getframe())
        finally:
            if self._noted:  # a handler has raised
                self._handle_noted()


def threads() -> int:
    """How many threads this process has, those that Python does not know of included; 0 if that is
    not told. Takes no descriptor."""
    try:
        return max(0, os.stat("/proc/self/task").st_nlink - 2)
    except OSError:
        return 0
