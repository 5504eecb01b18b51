"""A worker without celery's event loop: the pool has threads of its own. The broker is a folder."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

import pytest
from celery.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError
from kombu.transport import filesystem
from kombu.utils.json import dumps

from helpers import eventually

SOON = 0.8


@pytest.fixture(scope="module")
def transport(tmp_path_factory):
    """Settings of kombu's file system transport, for worker and client."""
    folder = tmp_path_factory.mktemp("broker")
    for name in ("messages", "control"):
        (folder / name).mkdir()
    settings = {
        "data_folder_in": str(folder / "messages"),
        "data_folder_out": str(folder / "messages"),
        "control_folder": str(folder / "control"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filesystem.Channel, "_put", put_whole)
        yield settings


def put_whole(channel, queue, payload, **_):
    """Send a message in one piece: the transport's own way shows a file before it is written, and
    a worker that finds it then loses the message."""
    path = Path(channel.data_folder_out) / f"{time.monotonic_ns()}_{uuid.uuid4()}.{queue}.msg"
    new = path.with_name(f".{path.name}.new")
    new.write_text(dumps(payload))
    new.rename(path)


@pytest.fixture(scope="module")
def worker(start_shared, transport):
    worker = start_shared(broker="filesystem://", settings={"broker_transport_options": transport})
    worker.app.conf.broker_transport_options = transport
    return worker


def test_tasks(worker):
    assert worker.run("info")["ppid"] == worker.process.pid
    assert worker.run("add", 1, 2) == 3
    results = [worker.send("add", x, x) for x in range(30)]
    assert [worker.get(result) for result in results] == [2 * x for x in range(30)]
    assert len(os.listdir(f"/proc/{worker.process.pid}/task")) > 1


def test_errors(worker):
    crash = worker.send("crash")
    hang = worker.send("hang", time_limit=SOON)
    assert isinstance(worker.outcome(crash), WorkerLostError)
    error = worker.outcome(hang)
    assert isinstance(error, TimeLimitExceeded)
    assert "in hang_here" in worker.logged("Task handler raised error: TimeLimitExceeded(")
    assert worker.run("spin", soft_time_limit=SOON).startswith("caught ")
    assert isinstance(worker.outcome(worker.send("fail")), ValueError)


def test_a_killed_process(worker, gate):
    result = worker.send("enter", gate._address)
    os.kill(gate.arrival().pid, signal.SIGKILL)
    assert isinstance(worker.outcome(result), WorkerLostError)
    assert worker.run("add", 1, 2) == 3


def test_revoke(worker, gate):
    result = worker.send("enter", gate._address)
    gate.arrival()
    worker.app.control.revoke(result.id, terminate=True)
    assert isinstance(worker.outcome(result), TaskRevokedError)


def test_warm_shutdown(start_worker, transport, gate):
    worker = start_worker(broker="filesystem://", settings={"broker_transport_options": transport})
    worker.app.conf.broker_transport_options = transport
    result = worker.send("enter", gate._address, "done")
    visitor = gate.arrival()
    worker.process.send_signal(signal.SIGTERM)
    worker.logged("Warm shutdown")
    visitor.go()
    assert worker.get(result) == "done"
    assert worker.ended() == 0


def test_a_memory_error_stops_the_worker(start_worker, transport):
    worker = start_worker(broker="filesystem://", settings={"broker_transport_options": transport})
    worker.app.conf.broker_transport_options = transport
    worker.send("out_of_memory")
    assert worker.ended() != 0


def test_processes_that_cannot_start_end_the_worker(start_worker, transport):
    worker = start_worker(
        broker="filesystem://",
        settings={"broker_transport_options": transport},
        env={"PROJECT_BROKEN": "1"},
        ready=False,
    )
    eventually(lambda: "the initializer failed" in worker.log, "the reason is logged")
    assert worker.ended() != 0
