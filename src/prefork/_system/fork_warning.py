"""The warning of Python 3.12 and newer that a process is forked while it has other threads.

It is meant for whoever started those threads, and can do something about it. `os.fork` gives it
after the fork, of the pool's own threads, too; and where warnings are errors it is raised then, so
that nobody knows of the child. So it is given here, before a pool starts its first workers, and
`os.fork` is kept from it.

Of threads that Python does not know of, nothing is said: libraries that have such ones have hooks
of their own for forks.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from prefork._system.threads import is_own

__all__ = ["silenced", "warn_of_threads"]

EXISTS = sys.version_info >= (3, 12)


def warn_of_threads() -> None:
    """Workers are about to be forked, for whoever calls this.

    Raises:
        DeprecationWarning: if it is an error.
    """
    this = threading.current_thread()
    if EXISTS and any(t is not this and not is_own(t) for t in threading.enumerate()):
        warnings.warn(
            f"This process (pid={os.getpid()}) is multi-threaded, use of fork() may lead to "
            "deadlocks in the child.",
            DeprecationWarning,
            stacklevel=2,
        )


@contextmanager
def silenced(module: str) -> Iterator[None]:
    """`os.fork` says nothing in this module, in this thread.

    Not by `catch_warnings`, where that is for all threads: what another thread sets meanwhile would
    be lost at its end.
    """
    if not EXISTS:
        yield
    elif getattr(sys.flags, "context_aware_warnings", False):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=module)
            yield
    else:
        filters: Any = warnings.filters
        # As the interpreter's own at its start: the module's name as it is, no pattern.
        ours = ("ignore", None, DeprecationWarning, module, 0)
        filters.insert(0, ours)
        try:
            yield
        finally:
            with suppress(ValueError):  # somebody has removed it
                filters.remove(ours)
