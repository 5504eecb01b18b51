"""A child of a fork server, asked for with all descriptors at hand.

The standard library connects to the server first and makes pipes then. If no descriptor is left for
these, it forgets some, and before Python 3.14 the server ends, as it does not expect that a client
says nothing: its children are orphaned, which ends those that are stopped, and nobody can tell how
the others end.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection
from multiprocessing import popen_forkserver, spawn, util
from multiprocessing.context import set_spawning_popen
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from prefork._system import at_fork, std_internals

__all__ = ["ServerChild"]


class ServerChild(popen_forkserver.Popen):
    """
    Args:
        process: what it is to be.
        server: see `std_internals.fork_server_of`.
        unprepared: by which of `multiprocessing.spawn`'s preparations it is not to be prepared.

    Raises:
        OSError: no descriptor is left; or the server has ended.
    """

    _fds: list[int]
    pid: int
    sentinel: int

    def __init__(self, process: BaseProcess, server: Any, unprepared: Collection[str] = ()) -> None:
        self._server = server
        self._unprepared = unprepared
        super().__init__(process)

    def _launch(self, process_obj: BaseProcess) -> None:
        message = self._message(process_obj)
        ours, its = at_fork.Descriptors(), at_fork.Descriptors()
        try:
            with at_fork.creating():
                self.sentinel, status = at_fork.pipe(ours, its)
                message_end, to_child = at_fork.pipe(its, ours)
                # The child looks at the other end of this one to see whether its parent lives.
                ours.make(os.dup, to_child)
            self.finalizer = util.Finalize(self, ours.close)
            std_internals.ask_server(self._server, [message_end, status], self._fds)
            its.close()
            with open(to_child, "wb", closefd=False) as pipe:
                pipe.write(message)
            ours.remove(to_child)
            self.pid = std_internals.read_number(self.sentinel)
        except BaseException:
            its.close()
            ours.close()
            raise

    def _message(self, process_obj: BaseProcess) -> bytes:
        """What `multiprocessing.spawn` reads in the child: how it is to be prepared, and itself."""
        preparation = spawn.get_preparation_data(process_obj.name)
        for name in self._unprepared:
            preparation.pop(name, None)
        buffer = io.BytesIO()
        set_spawning_popen(self)  # so that descriptors go along
        try:
            ForkingPickler(buffer).dump(preparation)
            ForkingPickler(buffer).dump(process_obj)
        finally:
            set_spawning_popen(None)
        return buffer.getvalue()
