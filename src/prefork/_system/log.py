"""The pool's log: the logger "prefork" of the standard library.

Whoever has something to say notes it, and goes on: it may hold a lock, and a logging handler is a
user's code, which may be slow, block for ever (a terminal that nobody reads), or use the pool. The
notes are written by a thread of their own, which is there only while there is something to write;
or, in a pool without threads, by whoever handles its events.

`logging` is not imported for it: that would cost each worker memory, and each fork time. As long as
nobody has imported it, nobody has said where messages are to go; then it would print those from
warnings on to standard error, and so does this.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections import deque
from typing import Any, NamedTuple

from prefork._system.condition import Condition
from prefork._system.threads import BackgroundThread

__all__ = ["CRITICAL", "DEBUG", "ERROR", "WARNING", "Log"]

DEBUG, WARNING, ERROR, CRITICAL = 10, 30, 40, 50
"""As in `logging`."""


class _Note(NamedTuple):
    level: int
    text: str
    args: tuple[object, ...]
    error: BaseException | None


class Log:
    """What one pool has to say.

    Args:
        in_background: it is written by a thread. Else `write` is to be called.
    """

    def __init__(self, in_background: bool = True) -> None:
        self._in_background = in_background
        self._notes: deque[_Note] = deque()
        self._is_writing = False
        self._written = Condition()
        self._writers: list[BackgroundThread] = []  # that may not have ended

    def note(
        self, level: int, text: str, *args: object, error: BaseException | None = None
    ) -> None:
        """Have `text % args` written soon; `error`: with this exception and its traceback.

        Never waits, takes no lock, calls nothing of a user's: the arguments are plain values.
        """
        if _is_wanted(level):
            self._notes.append(_Note(level, text, args, error))
            if self._in_background and not self._is_writing:
                self._start()

    def _start(self) -> bool:
        """Have a thread write; False if there can be none: the interpreter is ending, or the
        system has none left."""
        self._is_writing = True
        writer = BackgroundThread(self.write, "prefork-Log")
        self._writers = [*(w for w in self._writers if not w.join(0)), writer]
        try:
            writer.start()
        except BaseException as exc:
            self._is_writing = False
            if not isinstance(exc, RuntimeError):  # a signal handler's
                raise
        return self._is_writing

    def write(self) -> None:
        """Write all that was noted; no lock of the pool's may be held."""
        while self._notes:
            self._is_writing = True
            try:
                while self._notes:
                    _write(self._notes.popleft())
            except IndexError:  # somebody else writes, too
                pass
            finally:
                self._is_writing = False
            # Once more, if there are notes again: who made them has seen somebody write, who had
            # found none any more.
        self._written.notify_all()

    def flush(self, timeout: float) -> None:
        """Wait until all is written and nobody is left who writes, at most so many seconds."""
        deadline = time.monotonic() + timeout
        if self._notes and not self._is_writing and not (self._in_background and self._start()):
            self.write()
        self._written.wait(lambda: not (self._notes or self._is_writing), timeout)
        for writer in self._writers:
            writer.join(max(0.0, deadline - time.monotonic()))


def _is_wanted(level: int) -> bool:
    """Whether anybody may want to read this. Looks at nothing that has a lock."""
    logging: Any = sys.modules.get("logging")
    root = getattr(logging, "root", None)
    if root is None:  # it is not imported, or is being imported
        return level >= WARNING and sys.stderr is not None
    logger = root.manager.loggerDict.get("prefork")
    lowest = getattr(logger, "level", 0) or root.level
    return bool(level >= lowest and level > root.manager.disable)


def _write(note: _Note) -> None:
    level, text, args, error = note
    try:
        if "logging" in sys.modules:
            import logging

            logging.getLogger("prefork").log(level, text, *args, exc_info=error)
            return
        message = text % args + "\n"
        if error is not None:
            message += "".join(traceback.format_exception(error))
    except Exception:  # a filter's, a handler's, or of the exception that is to be shown
        message = f"a message of the pool could not be logged: {traceback.format_exc()}"
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or there is none
        sys.stderr.write(message)
