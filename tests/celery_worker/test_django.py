"""Tasks of a Django site use its database: no connection goes from one process to another."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from celery.exceptions import WorkerLostError
from running import CELERY

from helpers import eventually


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return tmp_path_factory.mktemp("site") / "database"


@pytest.fixture(scope="module")
def worker(start_shared, database):
    return start_shared(project="django_site", env={"SITE_DATABASE": str(database)})


def has_open(pid: int, database: Path) -> bool:
    """Whether this process has a connection to the database."""
    folder = f"/proc/{pid}/fd"
    return str(database) in {os.path.realpath(f"{folder}/{fd}") for fd in os.listdir(folder)}


def settled(worker):
    """Wait until two processes can run tasks; their ids."""

    def look():
        workers = [w["pid"] for w in worker.stats["workers"] if w["state"] == "idle"]
        return len(workers) == 2 and workers

    return eventually(look, "there are two processes")


def test_tasks_use_it_in_several_processes(worker, gate):
    results = [worker.send("tasks.write", "at once", gate._address) for _ in range(2)]
    visitors = [gate.arrival() for _ in results]
    for visitor in visitors:
        visitor.go()
    written = {worker.get(result) for result in results}
    found = worker.run("tasks.read", "at once")
    assert {note for note, _ in found} == written
    assert {pid for _, pid in found} == {visitor.pid for visitor in visitors}
    assert len(written) == 2


def test_a_new_process_does_not_use_the_connection_of_its_parent(worker, database):
    before = settled(worker)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    after = eventually(lambda: set(pids := settled(worker)).isdisjoint(before) and pids, "new ones")
    assert has_open(worker.process.pid, database)
    assert [has_open(pid, database) for pid in after] == [False, False]
    ids = [worker.run("tasks.write", "anew") for _ in range(10)]
    assert [note for note, _ in worker.run("tasks.read", "anew")] == ids


def test_a_connection_is_closed_after_the_task(worker, database, gate):
    """Whatever `CONN_MAX_AGE` says."""
    result = worker.send("tasks.write", "for a moment", gate._address)
    visitor = gate.arrival()
    assert has_open(visitor.pid, database)
    visitor.go()
    worker.get(result)
    eventually(lambda: not has_open(visitor.pid, database), "it is closed")


def test_transactions(worker):
    """Neither a task that fails nor one that dies leaves a note, or a lock."""
    assert isinstance(worker.outcome(worker.send("tasks.write_and_fail", "half")), ValueError)
    assert isinstance(worker.outcome(worker.send("tasks.write_and_die", "half")), WorkerLostError)
    assert worker.run("tasks.read", "half") == []
    assert worker.run("tasks.write", "whole") > 0


@pytest.mark.skipif(CELERY < (5, 4), reason="new in celery 5.4")
def test_a_task_that_is_sent_on_commit(worker):
    worker.run("tasks.write_later", "on commit", worker.queue)
    eventually(lambda: worker.run("tasks.read", "on commit"), "it has run")


@pytest.mark.skipif(CELERY < (5, 7), reason="new in celery 5.7")
def test_spawned_processes(start_worker, database):
    worker = start_worker(
        "--pool-start-method",
        "spawn",
        concurrency=1,
        project="django_site",
        env={"SITE_DATABASE": str(database)},
    )
    note = worker.run("tasks.write", "spawned")
    [[found, pid]] = worker.run("tasks.read", "spawned")
    assert found == note
    assert pid in worker.workers
    assert worker.stop() == 0
