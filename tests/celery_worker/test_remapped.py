"""REMAP_SIGTERM=SIGQUIT, as some hosts need it: they send SIGTERM to all processes of a worker."""

from __future__ import annotations

import os
import signal

import pytest
from celery.exceptions import TaskRevokedError
from running import CELERY

from helpers import eventually, has_ended, marked

pytestmark = pytest.mark.skipif(CELERY < (5, 5), reason="celery has SIGKILL only before 5.5")

REMAPPED = {"REMAP_SIGTERM": "SIGQUIT"}


def known(worker, *results):
    """Wait until celery knows that these run."""
    ids = {result.id for result in results}
    eventually(lambda: ids <= {task["id"] for task in worker.control("active")}, "active")


@pytest.mark.parametrize("soft", [0, 0.5])
def test_sigterm_is_a_cold_shutdown(start_worker, broker, gate, tmp_path, soft):
    settings = {"worker_soft_shutdown_timeout": soft}
    worker = start_worker(broker=broker, env=REMAPPED, settings=settings)
    path = tmp_path / "mark"
    late = worker.send("clean_up", gate._address, str(path))
    gate.arrival().go()
    known(worker, late)
    worker.process.send_signal(signal.SIGTERM)
    worker.ended()
    assert marked(path) == "cleaned up"
    other = start_worker(broker=broker, queue=worker.queue)
    gate.arrival()  # nothing was acknowledged: the broker delivers it again
    other.kill()


def test_sigterm_to_all_processes_leaves_tasks_their_time(start_worker, broker, gate):
    settings = {"worker_soft_shutdown_timeout": 5}
    worker = start_worker(broker=broker, env=REMAPPED, settings=settings)
    result = worker.send("enter", gate._address, "in time")
    visitor = gate.arrival()
    known(worker, result)
    for pid in [*worker.workers, worker.process.pid]:
        os.kill(pid, signal.SIGTERM)
    worker.logged("Initiating Soft Shutdown")
    visitor.go()
    assert worker.get(result) == "in time"
    worker.ended()


def test_revoke_and_terminate(start_worker, broker, gate, tmp_path):
    worker = start_worker(broker=broker, env=REMAPPED)
    path = tmp_path / "mark"
    result = worker.send("clean_up", gate._address, str(path))
    visitor = gate.arrival()
    visitor.go()
    known(worker, result)
    worker.control("terminate", task_id=result.id, signal="SIGQUIT")
    assert isinstance(worker.outcome(result), TaskRevokedError)
    eventually(lambda: has_ended(visitor.pid), "its process leaves")
    assert marked(path) == "cleaned up"


def test_what_a_task_forks_heeds_sigterm(start_worker):
    assert start_worker(env=REMAPPED).run("end_a_pool") == "ended"
