"""`os.setsid` in an initializer, as daemons and terminals' programs use it.

A worker leads a process group, and so the kernel would refuse it a session of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["REAL", "allowing_sessions", "setsid"]

REAL = os.setsid


def setsid() -> None:
    """Like `os.setsid`, also for the leader of a group: it leaves its group for a moment, and then
    leads one of the same number again, which ends with it as before.

    Raises:
        PermissionError: it leads a session already, or has processes of its own in its group.
    """
    own = os.getpid()
    if os.getpgrp() != own or os.getsid(0) == own:
        REAL()
        return
    os.setpgid(0, os.getpgid(os.getppid()))
    try:
        REAL()
    except OSError:
        os.setpgid(0, 0)
        raise


@contextlib.contextmanager
def allowing_sessions() -> Iterator[None]:
    """Inside of this, `os.setsid` is the one above."""
    os.setsid = setsid
    try:
        yield
    finally:
        os.setsid = REAL
