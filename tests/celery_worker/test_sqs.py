"""Amazon SQS as the broker. Celery has its event loop for it, so the pool has no threads.

There is no remote control, unless celery is allowed to make SNS topics for it.
"""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
from celery.exceptions import TimeLimitExceeded, WorkerLostError
from servers import SQS

SOON = 0.8

TRANSPORT = {
    "region": "us-east-1",
    "is_secure": False,
    "polling_interval": 0.05,
    "wait_time_seconds": 0,  # this is how long a message that was rejected is hidden, too
}


@pytest.fixture(scope="module")
def sqs(tmp_path_factory):
    with contextlib.closing(SQS(tmp_path_factory.mktemp("sqs"))) as server:
        yield server


def start_on(sqs, start):
    worker = start(broker=sqs, settings={"broker_transport_options": TRANSPORT})
    worker.app.conf.broker_transport_options = TRANSPORT
    return worker


@pytest.fixture(scope="module")
def worker(sqs, start_shared):
    return start_on(sqs, start_shared)


def test_tasks(worker):
    assert worker.run("info")["ppid"] == worker.process.pid
    results = [worker.send("add", x, x) for x in range(30)]
    assert [worker.get(result) for result in results] == [2 * x for x in range(30)]
    assert worker.run("retry") == 2


def test_the_pool_has_no_threads(worker):
    worker.run("add", 1, 1)
    assert len(os.listdir(f"/proc/{worker.process.pid}/task")) == 1


def test_errors(worker):
    assert isinstance(worker.outcome(worker.send("crash")), WorkerLostError)
    error = worker.outcome(worker.send("hang", time_limit=SOON))
    assert isinstance(error, TimeLimitExceeded)
    assert "in hang_here" in worker.logged("Task handler raised error: TimeLimitExceeded(")
    assert worker.run("spin", soft_time_limit=SOON).startswith("caught ")


def test_a_killed_process(worker, gate):
    result = worker.send("enter_again", gate._address, "again")
    os.kill(gate.arrival().pid, signal.SIGKILL)
    gate.arrival().go()
    assert worker.get(result) == "again"


def test_warm_shutdown(start_worker, sqs, gate):
    worker = start_on(sqs, start_worker)
    results = [worker.send("enter_late", gate._address, x) for x in range(2)]
    visitors = [gate.arrival() for _ in results]
    worker.process.send_signal(signal.SIGTERM)
    worker.logged("Warm shutdown")
    for visitor in visitors:
        visitor.go()
    assert sorted(worker.get(result) for result in results) == [0, 1]
    assert worker.ended() == 0
