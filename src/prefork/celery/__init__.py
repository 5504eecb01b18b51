"""Celery's worker pool, made of a `prefork.TaskPool`.

    CELERY_CUSTOM_WORKER_POOL=prefork.celery:TaskPool celery -A proj worker -P custom

or `worker_pool = "prefork.celery:TaskPool"` in celery's settings. Layout, from the top:

    prefork     the pool, as celery's worker calls it
    child       what a worker process does before and after its tasks
    failures    prefork's errors as those that celery knows
    rejections  with threads: how messages go back to the broker
    shutdown    the end of a worker: waiting for tasks while the broker's timers go on

Nothing outside this package imports celery, kombu or billiard.
"""

from __future__ import annotations

try:
    import celery as _celery  # noqa: F401
except ImportError as exc:
    raise ImportError("prefork.celery needs celery: pip install 'prefork[celery]'") from exc

from prefork.celery.child import process_initializer
from prefork.celery.prefork import TaskPool

__all__ = ["TaskPool", "process_initializer"]
