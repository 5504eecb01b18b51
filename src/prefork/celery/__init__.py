"""Celery's worker pool, made of a `prefork.TaskPool`.

    CELERY_CUSTOM_WORKER_POOL=prefork.celery:TaskPool celery -A proj worker -P custom

or `worker_pool = "prefork.celery:TaskPool"` in celery's settings. Layout, from the top:

    prefork     the pool, as celery's worker calls it
    child       what a worker process does before and after its tasks
    failures    prefork's errors as those that celery knows
    rejections  with threads: how messages go back to the broker
    shutdown    the end of a worker: waiting for tasks while the broker's timers go on

And a pool whose processes are those of celery's workers, on as many machines as there are:

    cluster_pool    `ClusterPool`: the verbs, for a client
    serving         `serve`: has celery's workers be nodes
    post            how what they write to each other travels (all else is in `prefork.cluster`)

Nothing outside this package imports celery, kombu or billiard.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

try:
    import celery as _celery  # noqa: F401
except ImportError as exc:
    raise ImportError("prefork.celery needs celery: pip install 'prefork[celery]'") from exc

from prefork.celery.child import process_initializer
from prefork.celery.prefork import TaskPool

if TYPE_CHECKING:
    from prefork.celery.cluster_pool import ClusterPool
    from prefork.celery.serving import serve

__all__ = ["ClusterPool", "TaskPool", "process_initializer", "serve"]

_HOMES = {"ClusterPool": "cluster_pool", "serve": "serving"}


def __getattr__(name: str) -> object:
    """Imported when somebody asks for it: a worker's processes do without (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
