"""What the workers of `celery_noop.py` run."""

from __future__ import annotations

import os
import time

from celery import Celery
from celery.concurrency.base import BasePool

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=8,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    worker_enable_remote_control=False,
)


@app.task(name="noop")
def noop() -> None:
    pass


class EmptyPool(BasePool):
    """Runs nothing; every task is done at once."""

    def on_apply(self, target, args, kwargs, callback, accept_callback, **options):
        accept_callback(os.getpid(), time.monotonic())
        callback((0, None, 0.0))
