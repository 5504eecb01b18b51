"""A fork server of our own, whose children do not import the program's `__main__`.

The standard library's forkserver and spawn have each child run the program's file again, which is
why programs need `if __name__ == "__main__"`. Where functions travel by value nothing needs that
file, and a program without such a line, or a notebook, works as well.
"""

from __future__ import annotations

import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from typing import Any

from prefork._system import std_internals
from prefork._system.server_child import ServerChild

__all__ = ["OwnServerContext"]

_OF_MAIN = ("init_main_from_name", "init_main_from_path")  # what has a child import `__main__`


def _new_server() -> Any:
    server: Any = forkserver.ForkServer()
    server.set_forkserver_preload([])  # else it would run the program's file, too
    return server


class _Shared:
    server: Any = _new_server()


os.register_at_fork(after_in_child=lambda: std_internals.disown(_Shared.server))


class _Process(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        return ServerChild(process_obj, _Shared.server, _OF_MAIN)


class OwnServerContext(ForkServerContext):
    """The start method "forkserver", with a server of its own, and without `__main__`."""

    Process = _Process

    @property
    def server(self) -> Any:
        """The server of this process, which runs from the first child on."""
        return _Shared.server

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnServerContext, ()
