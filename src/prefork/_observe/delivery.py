"""The last step of what workers have sent: to the handlers of this process, to what shows its
warnings, to where it prints. All of that is a user's, and may raise or block."""

from __future__ import annotations

import builtins
import logging
import marshal
import sys
import warnings
from typing import Any, Final

from prefork._observe.lines import OutputLine
from prefork._observe.records import decode

__all__ = ["SHOWN", "handle_record", "show_warning", "write_line"]

SHOWN: Final = 10_000
"""Places of warnings to remember, at most."""


def handle_record(message: bytes) -> None:
    """As if it had been logged here. Its level was looked at in the worker."""
    attributes = decode(message)
    if logging.getLogRecordFactory() is logging.LogRecord:
        # As `makeLogRecord` does it, but for the values of a new record, which would be replaced.
        record = logging.LogRecord.__new__(logging.LogRecord)
        record.__dict__ = attributes
    else:
        record = logging.makeLogRecord(attributes)
    logging.getLogger(record.name).handle(record)


def show_warning(message: bytes) -> None:
    """As this process shows its own: on standard error, or by `logging.captureWarnings`."""
    text, module, name, filename, lineno = marshal.loads(message)
    category = _category(module, name)
    try:
        shown = category(text)
    except Exception:  # it takes other arguments
        shown = Warning(text)
    warnings.showwarning(shown, category, filename, lineno)


def _category(module: str, name: str) -> type[Warning]:
    """The class, if it is known here; nothing is imported for it."""
    home: Any = builtins if module == "builtins" else sys.modules.get(module)
    found = getattr(home, name, None)
    return found if isinstance(found, type) and issubclass(found, Warning) else UserWarning


def write_line(line: OutputLine) -> None:
    stream = sys.stdout if line.stream == "stdout" else sys.stderr
    if stream is not None:
        stream.write(f"{line}\n")
