"""When messages are acknowledged, and what becomes of them if a process or the broker dies."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import Counter

import pytest
from celery.exceptions import WorkerLostError
from running import Worker
from servers import Redis

from helpers import eventually, has_ended


@pytest.fixture(scope="module")
def worker(start_shared, broker):
    return start_shared(broker=broker)


def acknowledged(worker: Worker, task_id: str) -> bool | None:
    """Whether this task, which runs, has been acknowledged."""
    found = [task for task in worker.control("active") if task["id"] == task_id]
    return found[0]["acknowledged"] if found else None


def test_early_and_late(worker, gate):
    early = worker.send("enter", gate._address)
    late = worker.send("enter_late", gate._address)
    visitors = [gate.arrival() for _ in range(2)]
    eventually(lambda: acknowledged(worker, early.id) is True, "early: when it has started")
    eventually(lambda: acknowledged(worker, late.id) is False, "late: it runs, and is not")
    for visitor in visitors:
        visitor.go()
    for result in (early, late):
        worker.get(result)


def test_reject_on_worker_lost(worker, gate):
    result = worker.send("enter_again", gate._address, "again")
    os.kill(gate.arrival().pid, signal.SIGKILL)
    gate.arrival().go()  # it was delivered and started again
    assert worker.get(result) == "again"


def test_late_without_that(worker):
    assert isinstance(worker.outcome(worker.send("die_late")), WorkerLostError)
    assert worker.run("add", 1, 1) == 2


def count_starts(path):
    return Counter(int(line) for line in path.read_text().splitlines())


def kill_one(worker: Worker) -> bool:
    """Kill a process of the pool; whether one was there."""
    with contextlib.suppress(ProcessLookupError):  # the one that was killed before
        if workers := worker.workers:
            os.kill(random.choice(workers), signal.SIGKILL)
            return True
    return False


def test_kills_under_load(worker, tmp_path):
    """Each task is started once; it fails only if its process was killed while it ran."""
    path = tmp_path / "starts"
    results = [worker.send("count", str(path), number) for number in range(600)]
    kills = 0
    while not all(result.ready() for result in results[:500]) and kills < 30:
        before = sum(result.ready() for result in results)
        kills += kill_one(worker)
        eventually(
            lambda before=before: sum(result.ready() for result in results) > before,
            "it goes on",
        )
    outcomes = [worker.outcome(result) for result in results]
    lost = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, WorkerLostError)]
    assert [o for n, o in enumerate(outcomes) if n not in lost] == [
        n for n in range(600) if n not in lost
    ]
    assert len(lost) <= kills
    starts = count_starts(path)
    assert set(starts.values()) == {1}
    assert set(range(600)) - set(starts) <= set(lost)


def test_kills_under_load_with_redelivery(worker, tmp_path):
    """With late acknowledgement and `reject_on_worker_lost`, no task is lost at all."""
    path = tmp_path / "starts"
    results = [worker.send("count_late", str(path), number) for number in range(200)]
    for _ in range(10):
        before = sum(result.ready() for result in results)
        kill_one(worker)
        eventually(
            lambda before=before: (now := sum(r.ready() for r in results)) > before or now == 200,
            "it goes on",
        )
    assert [worker.get(result) for result in results] == list(range(200))
    assert set(count_starts(path)) == set(range(200))


# --- the broker goes away, and comes again


@pytest.fixture
def own_broker(broker, tmp_path_factory):
    """One that a test may stop."""
    server = type(broker)(tmp_path_factory.mktemp("own"))
    yield server
    server.close()


def test_a_lost_connection(start_worker, own_broker, gate):
    """What runs goes on, what waits is delivered again and runs once, nothing idles after it."""
    worker = start_worker(broker=own_broker)
    running = [worker.send("enter", gate._address, x) for x in range(2)]
    visitors = [gate.arrival() for _ in running]
    waiting = [worker.send("add", x, 10) for x in range(6)]
    ids = {result.id for result in waiting}
    eventually(lambda: ids & {task["id"] for task in worker.control("reserved")}, "reserved")
    for result in running:
        eventually(lambda result=result: acknowledged(worker, result.id), "acknowledged")
    if isinstance(own_broker, Redis):
        own_broker.cut_connections()
        visitors.pop().go()
        worker.reconnect()
    else:
        own_broker.stop()
        worker.logged("Connection to broker lost")
        visitors.pop().go()  # while there is no broker
        own_broker.start()
    worker.logged("Connected to", 2)
    assert [worker.get(result) for result in waiting] == [x + 10 for x in range(6)]
    after = [worker.send("add", x, 20) for x in range(6)]
    assert [worker.get(result) for result in after] == [x + 20 for x in range(6)]
    visitors.pop().go()
    assert sorted(worker.get(result) for result in running) == [0, 1]
    # Both processes take tasks again, and no more than two run at once.
    results = [worker.send("enter", gate._address, x) for x in range(3)]
    visitors = [gate.arrival() for _ in range(2)]
    eventually(lambda: len(worker.control("active")) == 2, "two run")
    for visitor in visitors:
        visitor.go()
    gate.arrival().go()
    assert [worker.get(result) for result in results] == [0, 1, 2]
    for result in [*waiting, *after]:
        assert worker.log.count(f"[{result.id}] succeeded") == 1
    assert worker.stop() == 0


def test_a_lost_connection_ends_what_would_run_again(start_worker, tmp_path_factory, gate):
    """`worker_cancel_long_running_tasks_on_connection_loss`: those that are acknowledged late."""
    with contextlib.closing(Redis(tmp_path_factory.mktemp("own"))) as server:
        worker = start_worker(
            broker=server, settings={"worker_cancel_long_running_tasks_on_connection_loss": True}
        )
        late = worker.send("enter_late", gate._address, "again")
        early = worker.send("enter", gate._address, "once")
        visitors = {visitor.value: visitor for visitor in (gate.arrival(), gate.arrival())}
        eventually(lambda: len(worker.control("active")) == 2, "two run")
        server.cut_connections()
        eventually(lambda: has_ended(visitors["again"].pid), "it is ended")
        worker.reconnect()
        gate.arrival().go()  # it was delivered again
        visitors["once"].go()
        assert worker.get(late) == "again"
        assert worker.get(early) == "once"
        assert worker.stop() == 0
