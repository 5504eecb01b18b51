"""The clock that leases are kept by on a node: all its processes share it."""

from __future__ import annotations

import time
from typing import Final

__all__ = ["lease_time"]

# CLOCK_MONOTONIC stands still while the machine is suspended: a lease would hold when that wakes,
# long after the client has given the node up. Only Linux has the other one.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def lease_time() -> float:
    """Seconds since some moment."""
    return time.clock_gettime(_CLOCK)
