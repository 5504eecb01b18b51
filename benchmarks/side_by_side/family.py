"""The end of a sample: of all processes that it has started, whatever sessions they have made.

Who calls `adopt_orphans` becomes the parent of those whose own parent has ended, so that they stay
its descendants.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

from benchmarks.side_by_side.meters import descendants

PR_SET_CHILD_SUBREAPER = 36
PATIENCE = 5.0  # seconds


def adopt_orphans() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def end_all() -> None:
    """SIGKILL to all descendants of this process. Python's trackers of named resources come last:
    they end by themselves, once they have removed what the others have left."""
    _kill(trackers=False)
    deadline = time.monotonic() + PATIENCE
    while descendants() and time.monotonic() < deadline:
        _reap()
        time.sleep(0.005)
    _kill(trackers=True)


def _kill(trackers: bool) -> None:
    while pids := [pid for pid in descendants() if trackers or not _is_tracker(pid)]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap()


def _reap() -> None:
    """Of the children; as a process ends, its own become ours."""
    for pid in descendants():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _is_tracker(pid: int) -> bool:
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False  # it has ended
