"""Children that are not forked from here: interpreters of their own, or a fork server's children.

What they are before they run their target is the standard library's; here is what there is to do
about it from outside.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from multiprocessing import resource_tracker
from typing import Any

from prefork._system import fork_server, signals, std_internals

__all__ = ["surviving_interrupts"]


def surviving_interrupts(method: str, server: Any = None) -> AbstractContextManager[object]:
    """For the start of a child that is not forked from here. Ctrl-C, which goes to all processes of
    a terminal, ends neither that child, as long as it is newborn, nor a fork server that has just
    been started. In the main thread it is handled after the start.

    Args:
        method: the start method.
        server: its fork server, if it has one.
    """
    if method == "fork":  # by a context of the user's
        return contextlib.nullcontext()
    # It has to be there before: where it is started, Ctrl-C is let through.
    resource_tracker.ensure_running()
    if method == "spawn":
        return signals.holding_interrupts()
    std_internals.preload(server, fork_server.__name__)
    with signals.holding_interrupts():
        server.ensure_running()
    return contextlib.nullcontext()
