"""Children that are not forked from here: interpreters of their own, or a fork server's children.

What they are before they run their target is the standard library's; here is what there is to do
about it from outside.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

from prefork._system import fork_server, signals

__all__ = ["preload", "surviving_interrupts"]


def preload(context: BaseContext, module: str) -> None:
    """Have the fork server, unless it runs already, import a module once for all its children."""
    if context.get_start_method() == "forkserver":
        from multiprocessing import forkserver  # large

        server: Any = forkserver._forkserver
        if module not in server._preload_modules:
            server.set_forkserver_preload([*server._preload_modules, module])


def surviving_interrupts(context: BaseContext) -> AbstractContextManager[object]:
    """For the start of a child that is not forked from here. Ctrl-C, which goes to all processes of
    a terminal, ends neither that child, as long as it is newborn, nor a fork server that has just
    been started. In the main thread it is handled after the start."""
    method = context.get_start_method()
    if method == "fork":  # by a context of the user's
        return contextlib.nullcontext()
    # It has to be there before: where it is started, Ctrl-C is let through.
    resource_tracker.ensure_running()
    if method == "spawn":
        return signals.holding_interrupts()
    preload(context, fork_server.__name__)
    with signals.holding_interrupts():
        from multiprocessing import forkserver  # large

        forkserver.ensure_running()
    return contextlib.nullcontext()
