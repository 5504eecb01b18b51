"""Imported by the fork server, before it forks anything: no Ctrl-C ends it, or a newborn worker.

A terminal sends Ctrl-C to the newborn, too. The fork server itself ignores it, but gives back to
each child the handler that it had before, at once; and Python's own would end a worker that has
not come so far as to ignore the signal. So the server gets another one here, which its children
take over. It notes the signal until it is known what the child is: a pool's worker ignores it, and
to any other process happens what would have happened before, a moment later.

This does nothing in any other process, nor for a fork server that ran before there was a pool.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing import process, util
from types import FrameType
from typing import Any

from prefork._system.signals import get_action, set_action, unblock

__all__: list[str] = []


class _Newborn:
    """The handler of SIGINT.

    Args:
        before: the one that it replaces.
    """

    def __init__(self, before: Any) -> None:
        self._before = before
        self._noted_by = 0  # the process to which the signal has come

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self._noted_by = os.getpid()

    def decide(self) -> None:
        """In a child that has just learnt what it is."""
        if (
            getattr(process.current_process(), "is_worker", False)
            or get_action(signal.SIGINT) != self
        ):
            return
        set_action(signal.SIGINT, self._before)
        if self._noted_by == os.getpid():
            self._before(signal.SIGINT, sys._getframe())


def _protect() -> None:
    before = get_action(signal.SIGINT)
    if callable(before):  # else it is ignored, or ends the process, as somebody has wished
        newborn = _Newborn(before)
        set_action(signal.SIGINT, newborn)
        util.register_after_fork(newborn, _Newborn.decide)
    unblock(signal.SIGINT)  # it was blocked while this interpreter started


# Newer versions of Python put the program's own arguments behind the server's code.
if any("multiprocessing.forkserver import main" in argument for argument in sys.orig_argv):
    _protect()
