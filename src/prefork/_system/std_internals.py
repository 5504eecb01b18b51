"""Every use of what is private in `multiprocessing`, in one place.

The standard library has no public way for these. They differ between versions of Python, and may go
in any later one; `tests/unit/system/test_std_internals.py` fails, and names what has gone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any

__all__ = ["finalize", "fork_server_of", "preload", "sharing_tracker"]


def finalize() -> None:
    """In a child: run the finalizers (`util.Finalize`), end the daemonic child processes, join the
    others; once, however often this is called."""
    from multiprocessing import util

    util._exit_function()  # type: ignore[attr-defined]


def fork_server_of(context: BaseContext) -> Any:
    """The fork server of a start method's context: one of its own (`own_server.py`), or the
    standard library's; None, if it has none."""
    if context.get_start_method() != "forkserver":
        return None
    from multiprocessing import forkserver  # large

    return getattr(context, "server", forkserver._forkserver)


def preload(server: Any, module: str) -> None:
    """Have a fork server, unless it runs already, import a module once for all its children, beside
    what the program wants it to."""
    if module not in server._preload_modules:
        kept: dict[str, Any] = {}
        if sys.version_info >= (3, 15):
            kept["on_error"] = server._preload_on_error
        server.set_forkserver_preload([*server._preload_modules, module], **kept)


@contextmanager
def sharing_tracker() -> Iterator[None]:
    """A child that this thread forks inside of this shares this process's resource tracker, as one
    that the standard library forks.

    Newer versions of Python take the tracker away from every other forked process. That would start
    one of its own, which removes what the process has made for others (its shared memory, for
    instance) once the process has ended.
    """
    # Whoever has not imported the tracker has none to share.
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    intent: Any = getattr(tracker, "_fork_intent", None)
    if intent is None:
        yield
        return
    intent.preserve_fd = True
    try:
        yield
    finally:  # in both processes
        intent.preserve_fd = False
