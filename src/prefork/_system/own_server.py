"""A fork server of our own, whose children do not import the program's `__main__`.

The standard library's forkserver and spawn have each child run the program's file again, which is
why programs need `if __name__ == "__main__"`. Where functions travel by value nothing needs that
file, and a program without such a line, or a notebook, works as well.
"""

from __future__ import annotations

import io
import os
from multiprocessing import forkserver, popen_forkserver, spawn, util
from multiprocessing.context import ForkServerContext, ForkServerProcess, set_spawning_popen
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from prefork._system import std_internals

__all__ = ["OwnServerContext"]

_OF_MAIN = ("init_main_from_name", "init_main_from_path")  # what has a child import `__main__`


def _new_server() -> Any:
    server: Any = forkserver.ForkServer()
    server.set_forkserver_preload([])  # else it would run the program's file, too
    return server


class _Shared:
    server: Any = _new_server()


os.register_at_fork(after_in_child=lambda: std_internals.disown(_Shared.server))


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


class _Popen(popen_forkserver.Popen):
    """One child of that server."""

    _fds: list[int]
    pid: int
    sentinel: int

    def _launch(self, process_obj: BaseProcess) -> None:
        message = self._message(process_obj)
        self.sentinel, data = _Shared.server.connect_to_new_process(self._fds)
        # The child looks at the other end of this one to see whether its parent is still there.
        kept = os.dup(data)
        self.finalizer = util.Finalize(self, _close, (kept, self.sentinel))
        with open(data, "wb") as pipe:
            pipe.write(message)
        self.pid = forkserver.read_signed(self.sentinel)

    def _message(self, process_obj: BaseProcess) -> bytes:
        """What `multiprocessing.spawn` reads in the child: how it is to be prepared, and itself."""
        preparation = spawn.get_preparation_data(process_obj.name)
        for name in _OF_MAIN:
            preparation.pop(name, None)
        buffer = io.BytesIO()
        set_spawning_popen(self)  # so that descriptors go along
        try:
            ForkingPickler(buffer).dump(preparation)
            ForkingPickler(buffer).dump(process_obj)
        finally:
            set_spawning_popen(None)
        return buffer.getvalue()


class _Process(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        return _Popen(process_obj)


class OwnServerContext(ForkServerContext):
    """The start method "forkserver", with a server of its own, and without `__main__`."""

    Process = _Process

    @property
    def server(self) -> Any:
        """The server of this process, which runs from the first child on."""
        return _Shared.server

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnServerContext, ()
