"""The pool's log: the logger "prefork" of the standard library.

`logging` is not imported for it: that would cost each worker memory, and each fork time. As long as
nobody has imported it, nobody has said where messages are to go; then it would print those from
warnings on to standard error, and so does this.
"""

from __future__ import annotations

import contextlib
import sys
import traceback

__all__ = ["CRITICAL", "DEBUG", "ERROR", "WARNING", "log"]

DEBUG, WARNING, ERROR, CRITICAL = 10, 30, 40, 50
"""As in `logging`."""


def log(level: int, text: str, *args: object, error: BaseException | None = None) -> None:
    """Log a message; `error`: with this exception and its traceback."""
    if "logging" in sys.modules:
        import logging

        logger = logging.getLogger("prefork")
        logger.log(level, text, *args, exc_info=error, stacklevel=2)
    elif level >= WARNING and sys.stderr is not None:
        message = [text % args + "\n"]
        if error is not None:
            message += traceback.format_exception(error)
        with contextlib.suppress(OSError, ValueError):  # it is closed, or full
            sys.stderr.write("".join(message))
