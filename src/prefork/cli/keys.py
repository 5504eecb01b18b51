"""A terminal that gives single keys."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import time
import tty
from collections.abc import Iterator
from types import FrameType
from typing import Final

from prefork.cli.interrupts import STOPPING, Interrupted

__all__ = ["BACKSPACE", "DOWN", "END", "ENTER", "ESCAPE", "UP", "Keys", "raw_keys"]

UP, DOWN, ENTER, ESCAPE, BACKSPACE, END = "up", "down", "enter", "escape", "backspace", "end"
"""Keys that are no characters; END: nobody types there any more."""

_NAMED: Final = {
    "\x1b[A": UP,
    "\x1b[B": DOWN,
    "\x1bOA": UP,
    "\x1bOB": DOWN,
    "\r": ENTER,
    "\n": ENTER,
    "\x1b": ESCAPE,
    "\x7f": BACKSPACE,
    "\x08": BACKSPACE,
}
_LONGEST: Final = 3


class Keys:
    """
    Args:
        fd: of the terminal.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._typed = ""

    def next(self, seconds: float) -> str | None:
        """What was typed next; None: nothing, within so many seconds."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while not self._typed:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return None
            try:
                data = os.read(self._fd, 64)
            except OSError:  # the terminal is gone
                data = b""
            if not data:
                return END
            self._typed = data.decode("utf-8", "ignore")
        for length in range(_LONGEST, 0, -1):
            if (key := _NAMED.get(self._typed[:length])) is not None:
                self._typed = self._typed[length:]
                return key
        key, self._typed = self._typed[0], self._typed[1:]
        return key


@contextlib.contextmanager
def raw_keys(fd: int) -> Iterator[Keys]:
    """Each key comes as it is typed, and is not shown. Afterwards the terminal is as it was, also
    if a signal ends this: then `Interrupted` is raised."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    before = termios.tcgetattr(fd)
    handlers = {signum: signal.signal(signum, stop) for signum in STOPPING}
    try:
        tty.setcbreak(fd)
        yield Keys(fd)
    finally:
        with contextlib.suppress(termios.error):  # it is gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
