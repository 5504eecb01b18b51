"""What becomes of tasks, in a worker that goes on: results, errors, deaths, limits, revocation."""

from __future__ import annotations

import os
import signal

import pytest
from celery.exceptions import (
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)

from helpers import eventually, has_ended, marked

SOON = 0.8


@pytest.fixture(scope="module")
def worker(start_shared, broker):
    return start_shared("-E", broker=broker)


def test_results(worker):
    results = [worker.send("add", x, x) for x in range(200)]
    assert [worker.get(result) for result in results] == [2 * x for x in range(200)]
    assert worker.run("large", 1 << 20) == "x" * (1 << 20)


def test_an_exception_of_the_task(worker):
    result = worker.send("fail")
    error = worker.outcome(result)
    assert isinstance(error, ValueError)
    assert "it went wrong" in result.traceback


def test_an_exception_that_cannot_be_pickled(worker):
    assert "no arguments to make it again with" in str(worker.outcome(worker.send("fail_badly")))


def test_a_retry(worker):
    assert worker.run("retry") == 2


def test_a_crash_is_reported_with_the_stack(worker):
    result = worker.send("crash")
    error = worker.outcome(result)
    assert isinstance(error, WorkerLostError)
    assert "was killed by SIGSEGV while it ran project.crash" in str(error)
    assert "in crash" in str(error)
    note = f"{result.id} {worker.process.pid} WorkerLostError"
    eventually(lambda: note in worker.noted("task_failure"), "celery's signal tells of it")
    assert worker.run("add", 1, 1) == 2


def test_a_task_that_exits_has_lost_its_worker(worker):
    error = worker.outcome(worker.send("leave", 3))
    assert isinstance(error, WorkerLostError)
    assert "exited with code 3" in str(error)


def test_a_hard_limit_tells_where_the_task_hung(worker):
    result = worker.send("hang", time_limit=SOON)
    error = worker.outcome(result)
    assert isinstance(error, TimeLimitExceeded)
    assert error.args == (SOON,)
    note = "Task handler raised error: TimeLimitExceeded("
    assert "in hang_here" in worker.logged(note).partition(note)[2]
    worker.logged(f"Hard time limit ({SOON}s) exceeded for project.hang[{result.id}]")
    assert worker.run("add", 1, 1) == 2


def test_a_soft_limit_raises_what_celery_exports(worker):
    name = f"{SoftTimeLimitExceeded.__module__}.{SoftTimeLimitExceeded.__name__}"
    assert worker.run("spin", soft_time_limit=SOON) == f"caught {name}"


def test_revoke_while_it_runs(worker, gate, tmp_path):
    path = tmp_path / "unwound"
    result = worker.send("unwind", gate._address, str(path))
    pid = gate.arrival().pid
    result.revoke(terminate=True)
    assert isinstance(worker.outcome(result), TaskRevokedError)
    assert marked(path) == "unwound"  # SIGTERM runs what is in `finally`
    eventually(lambda: has_ended(pid), "the worker process leaves")
    assert worker.run("add", 1, 1) == 2


def test_revoke_by_sigkill(worker, gate):
    result = worker.send("enter", gate._address)
    pid = gate.arrival().pid
    result.revoke(terminate=True, signal="SIGKILL")
    assert isinstance(worker.outcome(result), TaskRevokedError)
    eventually(lambda: has_ended(pid), "the worker process is killed")


def test_revoke_before_it_starts(worker, gate):
    blockers = [worker.send("enter", gate._address) for _ in range(2)]
    visitors = [gate.arrival() for _ in blockers]
    waiting = worker.send("enter", gate._address)
    eventually(
        lambda: any(task["id"] == waiting.id for task in worker.control("reserved")), "reserved"
    )
    waiting.revoke(terminate=True)
    worker.logged(f"{waiting.id}", 2)
    for visitor in visitors:
        visitor.go()
    assert isinstance(worker.outcome(waiting), TaskRevokedError)
    for blocker in blockers:
        worker.get(blocker)
    assert worker.run("add", 1, 1) == 2


def test_nobody_else_is_hit_by_revocations(worker, tmp_path):
    """Short tasks that are revoked all the time: each is revoked or done, no other is harmed."""
    revoked = [worker.send("add", x, 0) for x in range(60)]
    others = [worker.send("add", x, 1) for x in range(60)]
    for result in revoked:
        result.revoke(terminate=True, signal="SIGKILL")
    for x, result in enumerate(revoked):
        outcome = worker.outcome(result)
        assert outcome == x or isinstance(outcome, TaskRevokedError)
    assert [worker.get(result) for result in others] == [x + 1 for x in range(60)]


def test_a_killed_worker_process_takes_one_task_along(worker, gate):
    result = worker.send("enter", gate._address)
    pid = gate.arrival().pid
    others = [worker.send("add", x, 1) for x in range(20)]
    os.kill(pid, signal.SIGKILL)
    assert isinstance(worker.outcome(result), WorkerLostError)
    assert [worker.get(other) for other in others] == [x + 1 for x in range(20)]


def test_tasks_may_use_multiprocessing(worker):
    assert worker.run("use_multiprocessing") == [0, 2, 4, 6, 8]


@pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")  # older celery
def test_chords_and_groups(worker):
    from celery import chord, group

    add = worker.app.signature("project.add", queue=worker.queue)
    parts = group(add.clone((x, x)) for x in range(5))
    assert parts.apply_async().get(timeout=30) == [0, 2, 4, 6, 8]
    total = worker.app.signature("project.add", queue=worker.queue)
    assert chord([add.clone((1, 1))] * 2)(total.clone(([5],))).get(timeout=30) == [2, 2, 5]
