"""`TaskPool`: a pool for task workers, which hand in calls with callbacks and hold no results.

It stands on `prefork.Pool`, and alone: `prefork.celery` makes celery's worker pool of it.
"""

from __future__ import annotations

from prefork.taskpool.initializer import (
    WORKER_SIGIGNORE,
    WORKER_SIGRESET,
    process_initializer,
)
from prefork.taskpool.pool import TaskPool

__all__ = ["WORKER_SIGIGNORE", "WORKER_SIGRESET", "TaskPool", "process_initializer"]
