"""Locks that a signal handler that raises leaves released, in whatever moment it comes.

`with lock` has always been so, since it took the lock and began to look after it in one step. Not
in Python 3.14: there a handler may run in between, and if it raises, as that of Ctrl-C does, nobody
will ever release the lock.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from itertools import starmap
from typing import TYPE_CHECKING, Any

__all__ = ["Lock", "RLock"]

_NO_ARGUMENTS: Any = ((),)


def _take(lock: Any) -> None:
    """Python runs no handler between the end of a function that is written in Python and what is
    done next by who has called it."""
    taken: list[bool] = []
    try:
        taken.extend(starmap(lock.acquire, _NO_ARGUMENTS))  # in C: taken, and known to be so
    except BaseException:
        if taken:
            lock.release()
        raise


# What releases them is in C all the same: it is found before they are taken, and done at once.

_RLock: Any = type(threading.RLock())


class _SafeRLock(_RLock):  # type: ignore[misc]
    def __enter__(self) -> bool:
        _take(self)
        return True


class _SafeLock:
    __slots__ = ("__exit__", "acquire", "locked", "release")

    __exit__: Callable[..., None]

    def __init__(self) -> None:
        lock: Any = threading.Lock()
        self.__exit__ = lock.__exit__
        self.acquire = lock.acquire
        self.locked = lock.locked
        self.release = lock.release

    def __enter__(self) -> bool:
        _take(self)
        return True


if TYPE_CHECKING or sys.version_info[:2] != (3, 14):
    Lock = threading.Lock
    RLock = threading.RLock
else:
    Lock = _SafeLock
    RLock = _SafeRLock
