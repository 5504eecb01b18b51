"""Children that are not forked from here: interpreters of their own, or a fork server's children.

What they are before they run their target is the standard library's; here is what there is to do
about it from outside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from multiprocessing import context, resource_tracker
from typing import Any

from prefork._system import fork_server, signals, std_internals

__all__ = ["SettingName", "surviving_interrupts"]


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


class SettingName(str):
    """The name of a process, which is more for the child: it sets variables of the environment.

    The first thing that a child reads is how it is to be prepared, its name among it; and then it
    imports the program's file, and with that maybe libraries that look at the variables. There is
    no other way in before that. (This process's own environment is no way: other threads start
    other processes, and C code may be reading it.)

    What the child gets is a plain string. Pickled for anything but the start of a process, as in a
    result, it is one, too.
    """

    _variables: dict[str, str]

    def __new__(cls, name: str, variables: Mapping[str, str]) -> SettingName:
        self = super().__new__(cls, name)
        self._variables = dict(variables)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        name = str(self)
        if context.get_spawning_popen() is None:
            return str, (name,)
        # Builtins are all that a child can import for certain before it is prepared.
        return eval, (f"__import__('os').environ.update({self._variables!r}) or {name!r}",)
