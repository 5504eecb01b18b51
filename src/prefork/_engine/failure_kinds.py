"""What a job has failed with, as it is counted."""

from __future__ import annotations

from typing import Final

from prefork.errors import (
    OUT_OF_MEMORY,
    Cancelled,
    DeadlineExceeded,
    MemoryLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from prefork.statistics import FailureCounts

__all__ = ["KINDS", "RAISED", "failure_kind"]

KINDS: Final = FailureCounts._fields
RAISED: Final = "raised"

_KINDS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (WorkerLostError, "worker_lost"),
    (TimeLimitExceeded, "time_limit"),
    (DeadlineExceeded, "deadline"),
    (MemoryLimitExceeded, "memory_limit"),
    (Cancelled, "cancelled"),  # which is a kind of the next one
    (Terminated, "terminated"),
)


def failure_kind(error: object) -> str:
    """One of `KINDS`, for an error that the pool itself has found."""
    if isinstance(error, WorkerLostError) and error.note == OUT_OF_MEMORY:
        return "out_of_memory"
    return next((kind for cls, kind in _KINDS if isinstance(error, cls)), "other")
