"""What the workers of `cluster.py` run."""

from __future__ import annotations

import os
import time

from celery import Celery

from prefork.celery import serve

app = Celery("cluster_project", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    result_backend=os.environ["BENCH_BACKEND"],
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=16,
)
serve(app, allow=["cluster_functions"], queue="cluster", processes=1)


@app.task
def nothing(x):
    return x


@app.task
def nap(seconds):
    time.sleep(seconds)
