"""Flower beside a worker: it shows the pool and the tasks, and its buttons work."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from servers import Server

from helpers import DEADLINE, eventually, has_ended

SOON = 0.8
HERE = Path(__file__).resolve().parent


class Flower(Server):
    def __init__(self, folder: Path, broker: str, backend: str) -> None:
        self.broker, self.backend = broker, backend
        super().__init__(folder)

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "celery", "-A", "project", "flower"),
            *("--address=127.0.0.1", f"--port={self.port}"),
        ]

    def environment(self) -> dict[str, str]:
        return {
            "PROJECT_BROKER": self.broker,
            "PROJECT_BACKEND": self.backend,
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
            "FLOWER_UNAUTHENTICATED_API": "true",
        }

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.request("/api/workers?status=true") is not None
        return False

    def request(self, path: str, **form: object) -> Any:
        """What a page of its API says; with a form, or an empty one, it is sent there."""
        data = urllib.parse.urlencode(form).encode() if form else None
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.port}{path}", data, timeout=DEADLINE
        ) as answer:
            return json.load(answer)

    def page(self, path: str) -> str:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.port}{path}", timeout=DEADLINE
        ) as answer:
            return str(answer.read(), "utf-8")


@pytest.fixture(scope="module")
def worker(start_shared):
    return start_shared("-E", settings={"worker_pool_restarts": True})


@pytest.fixture(scope="module")
def flower(worker, tmp_path_factory):
    broker, backend = worker._urls
    with contextlib.closing(Flower(tmp_path_factory.mktemp("flower"), broker, backend)) as server:
        eventually(
            lambda: server.request("/api/workers?status=true").get(worker.node), "it is online"
        )
        shown(server, worker)  # only workers that it has asked once can be controlled
        yield server


def shown(flower, worker):
    """What it knows of the worker's pool."""
    return eventually(lambda: inspected(flower, worker).get("stats"), "it is shown")["pool"]


def inspected(flower, worker):
    """What it knows of the worker, newly asked.

    If it was just asking the worker, for a page say, then the answer is that question's, which
    can be older than what the test has done.
    """
    found = flower.request(f"/api/workers?refresh=1&workername={worker.node}")
    return found.get(worker.node, {})


def state_of(flower, result):
    with contextlib.suppress(urllib.error.HTTPError):  # not known yet
        return flower.request(f"/api/task/info/{result.id}")
    return {"state": None}


def becomes(flower, result, state):
    eventually(lambda: state_of(flower, result)["state"] == state, f"a task is {state}")
    return state_of(flower, result)


def test_it_shows_the_pool(flower, worker):
    pool = shown(flower, worker)
    assert pool == {**worker.stats, **{name: pool[name] for name in ("workers", "tasks")}}
    assert pool["max-concurrency"] == 2
    page = flower.page(f"/worker/{worker.node}")
    assert "Worker pool options" in page
    assert "taskpool" in page.lower()
    for pid in worker.workers:
        assert str(pid) in page


def test_it_shows_tasks(flower, worker, gate):
    running = worker.send("enter", gate._address)
    visitor = gate.arrival()
    assert becomes(flower, running, "STARTED")["worker"] == worker.node
    [active] = eventually(lambda: inspected(flower, worker).get("active"), "it is shown as active")
    assert (active["id"], active["worker_pid"]) == (running.id, visitor.pid)
    visitor.go()
    assert becomes(flower, running, "SUCCESS")["runtime"] > 0
    failed = worker.send("crash")
    info = becomes(flower, failed, "FAILURE")
    assert "was killed by SIGSEGV while it ran project.crash" in info["exception"]
    assert {running.id, failed.id} <= set(flower.request("/api/tasks"))


def test_it_grows_and_shrinks_the_pool(flower, worker):
    answer = flower.request(f"/api/worker/pool/grow/{worker.node}", n=2)
    assert answer["message"].startswith("Growing")
    eventually(lambda: len(shown(flower, worker)["processes"]) == 4, "four are shown")
    flower.request(f"/api/worker/pool/shrink/{worker.node}", n=2)
    eventually(lambda: len(shown(flower, worker)["processes"]) == 2, "two are shown")
    with pytest.raises(urllib.error.HTTPError) as caught:
        flower.request(f"/api/worker/pool/shrink/{worker.node}", n=2)
    assert "one must be left" in str(caught.value.read())


def test_it_restarts_the_pool(flower, worker):
    before = set(shown(flower, worker)["processes"])
    flower.request(f"/api/worker/pool/restart/{worker.node}", n=1)
    eventually(lambda: not before & set(shown(flower, worker)["processes"]), "all are new")
    assert worker.run("add", 1, 1) == 2


def test_it_ends_a_task(flower, worker, gate):
    result = worker.send("enter", gate._address)
    pid = gate.arrival().pid
    flower.request(f"/api/task/revoke/{result.id}", terminate=True, signal="SIGKILL")
    assert isinstance(worker.outcome(result), TaskRevokedError)
    becomes(flower, result, "REVOKED")
    eventually(lambda: has_ended(pid), "its process is killed")


def test_it_sets_time_limits(flower, worker):
    flower.request("/api/task/timeout/project.hang", hard=SOON, workername=worker.node)
    flower.request(f"/api/worker/pool/restart/{worker.node}", n=1)  # celery heeds them then
    result = worker.send("hang")
    assert isinstance(worker.outcome(result), TimeLimitExceeded)
    assert "TimeLimitExceeded" in becomes(flower, result, "FAILURE")["exception"]
