"""Remote control of a worker: what it tells, and what can be changed while it runs."""

from __future__ import annotations

import pytest
from celery.exceptions import TaskRevokedError, TimeLimitExceeded

from helpers import eventually, has_ended

SOON = 0.8


@pytest.fixture(scope="module")
def worker(start_shared, broker):
    return start_shared(broker=broker, settings={"worker_pool_restarts": True})


def known(worker, *results):
    """Wait until celery knows that these run."""
    ids = {result.id for result in results}
    eventually(lambda: ids <= {task["id"] for task in worker.control("active")}, "active")


def state_of(worker, result):
    """Where celery has this task: active, reserved, ready; None: nowhere."""
    return worker.control("query_task", ids=[result.id]).get(result.id, [None])[0]


def test_what_it_tells_of_tasks(worker, gate):
    assert "project.add" in worker.control("registered")
    running = [worker.send("enter", gate._address) for _ in range(2)]
    visitors = [gate.arrival() for _ in running]
    known(worker, *running)
    waiting = worker.send("add", 1, 1)
    later = worker.send("add", 1, 1, countdown=3600)
    eventually(lambda: state_of(worker, waiting) == "reserved", "it is reserved")
    eventually(
        lambda: later.id in {entry["request"]["id"] for entry in worker.control("scheduled")},
        "it is scheduled",
    )
    assert [state_of(worker, result) for result in running] == ["active"] * 2
    for visitor in visitors:
        visitor.go()
    assert worker.get(waiting) == 2
    worker.control("revoke", task_id=later.id)
    assert later.id in worker.control("revoked")
    total = worker.control("stats")["total"]
    assert total["project.enter"] >= 2


def test_time_limits(worker):
    """Celery heeds new ones from the next restart of the pool, or of its connection, on."""
    worker.control("time_limit", task_name="project.hang", hard=SOON)
    worker.control("time_limit", task_name="project.spin", soft=SOON)
    worker.control("pool_restart", modules=[])
    assert isinstance(worker.outcome(worker.send("hang")), TimeLimitExceeded)
    assert worker.run("spin").startswith("caught ")


def test_a_rate_limit_holds_up_nobody_else(worker):
    assert "ok" in worker.control("rate_limit", task_name="project.limited", rate_limit="1/h")
    first, second = worker.send("limited"), worker.send("limited")
    eventually(lambda: first.ready() or second.ready(), "one may run")
    assert [worker.run("add", x, 1) for x in range(10)] == list(range(1, 11))
    assert [first.ready(), second.ready()].count(True) == 1
    worker.control("rate_limit", task_name="project.limited", rate_limit="0")
    for result in (first, second):
        result.revoke()
    assert worker.run("limited")


def test_terminate(worker, gate):
    result = worker.send("enter", gate._address)
    pid = gate.arrival().pid
    known(worker, result)
    worker.control("terminate", task_id=result.id, signal="SIGKILL")
    assert isinstance(worker.outcome(result), TaskRevokedError)
    eventually(lambda: has_ended(pid), "its process is killed")


def present(worker):
    return frozenset(worker.control("stats")["pool"]["processes"])


def test_terminate_what_has_ended(worker):
    """Nobody else is hit."""
    # A restart of the pool, by another test, replaces its processes one after another.
    eventually(lambda: len({present(worker) for _ in range(3)}) == 1, "no process is replaced")
    results = [worker.send("info") for _ in range(4)]
    pids = {worker.get(result)["pid"] for result in results}
    # A task stores its result before it reports that it has ended: until then it can be hit.
    eventually(lambda: not worker.control("active"), "celery knows that they have ended")
    for result in results:
        worker.control("terminate", task_id=result.id, signal="SIGKILL")
    assert worker.run("info")["pid"] in pids
    assert not [pid for pid in pids if has_ended(pid)]
    assert {result.state for result in results} == {"SUCCESS"}


def test_revoke_by_a_stamp(worker, gate):
    """Those that run are ended, those that come do not run, others do."""

    def send(customer):
        return worker.send(
            "enter", gate._address, customer, stamped_headers=["customer"], customer=customer
        )

    bad, good = send("bad"), send("good")
    visitors = {visitor.value: visitor for visitor in (gate.arrival(), gate.arrival())}
    known(worker, bad, good)
    worker.control("revoke_by_stamped_headers", headers={"customer": ["bad"]}, terminate=True)
    assert isinstance(worker.outcome(bad), TaskRevokedError)
    eventually(lambda: has_ended(visitors["bad"].pid), "its process leaves")
    assert isinstance(worker.outcome(send("bad")), TaskRevokedError)
    visitors["good"].go()
    assert worker.get(good) == "good"


def test_a_restart_that_loads_modules(worker):
    """New processes have what the main process has loaded."""
    module = f"module_{worker.name}"
    path = worker.log_file.parent / f"{module}.py"
    path.write_text("VALUE = 1")
    worker.control("pool_restart", modules=[module])
    eventually(lambda: worker.outcome(worker.send("value_of", module)) == 1, "it is loaded")
    path.write_text("VALUE = 20")  # of another size, as the time may be the same
    worker.control("pool_restart", modules=[module])
    assert worker.run("value_of", module) == 1
    worker.control("pool_restart", modules=[module], reload=True)
    eventually(lambda: worker.run("value_of", module) == 20, "it is loaded again")
