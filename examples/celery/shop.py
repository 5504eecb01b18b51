"""A small celery project that runs on prefork's pool. Needs Redis; see README.md beside it."""

from __future__ import annotations

import ctypes
import os
import time

from celery import Celery

URL = os.environ.get("SHOP_REDIS", "redis://127.0.0.1:6379/0")

app = Celery("shop", broker=URL, backend=URL)
app.conf.update(
    worker_pool="prefork.celery:TaskPool",  # the one line
    worker_concurrency=2,
    broker_connection_retry_on_startup=True,
    task_time_limit=5,
)


@app.task
def price(items: list[float]) -> float:
    """A task that is done in no time."""
    return round(sum(items) * 1.19, 2)


@app.task
def crash() -> None:
    """A library with a bug: reads from where there is nothing."""
    ctypes.string_at(0)


@app.task(time_limit=1)
def hang() -> None:
    """A service that does not answer."""
    wait_for_the_bank()


def wait_for_the_bank() -> None:
    time.sleep(3600)
