"""The error of a pool that has given up, as users of `concurrent.futures` expect it. Importing what
it needs takes as long as importing a pool."""

from __future__ import annotations

from concurrent.futures import process

from prefork._public import public
from prefork.errors import PoolBrokenError

__all__ = ["BrokenProcessPool"]


@public
class BrokenProcessPool(PoolBrokenError, process.BrokenProcessPool):
    """What futures and executors raise whose pool cannot start its workers.

    It is that of `concurrent.futures.process`, too. The death of a worker breaks nothing.
    """
