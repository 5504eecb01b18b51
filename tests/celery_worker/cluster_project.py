"""The celery application whose workers are the nodes of the tests' clusters."""

from __future__ import annotations

import os

from celery import Celery

from prefork.celery import serve

app = Celery("cluster_project", broker=os.environ["PROJECT_BROKER"])
app.conf.broker_connection_retry_on_startup = True
serve(
    app,
    allow=["cluster_work"],
    queue=os.environ["CLUSTER_QUEUE"],
    client_timeout=float(os.environ.get("CLUSTER_CLIENT_TIMEOUT", "60")),
)
