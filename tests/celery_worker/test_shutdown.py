"""Warm, soft and cold shutdown, and what becomes of tasks in them."""

from __future__ import annotations

import os
import signal
import time

import pytest
from pools import HastyPool
from running import CELERY

from helpers import eventually, has_ended, marked, stop


@pytest.fixture
def worker(start_worker, broker):
    return start_worker(broker=broker)


def known(worker, *results):
    """Wait until celery knows that these run."""
    ids = {result.id for result in results}
    eventually(lambda: ids <= {task["id"] for task in worker.control("active")}, "active")


def reserve_behind(worker, gate, name="enter"):
    """Two tasks that run, and two that wait for a process: their results, and visitors."""
    running = [worker.send(name, gate._address, x) for x in range(2)]
    visitors = [gate.arrival() for _ in running]
    waiting = [worker.send("add_late", x, 10) for x in range(2)]
    ids = {result.id for result in waiting}
    eventually(lambda: ids <= {task["id"] for task in worker.control("reserved")}, "reserved")
    return running, visitors, waiting


def test_warm(worker, gate, start_worker, broker):
    """What runs is finished and acknowledged; what has not been started is left to others."""
    running, visitors, waiting = reserve_behind(worker, gate, "enter_late")
    worker.process.send_signal(signal.SIGTERM)
    worker.logged("Warm shutdown")
    for visitor in visitors:
        visitor.go()
    assert [worker.get(result) for result in running] == [0, 1]
    assert worker.ended() == 0
    assert len(worker.noted("process_shutdown")) == 2
    other = start_worker(broker=broker, queue=worker.queue)
    assert [other.get(result) for result in waiting] == [10, 11]
    assert other.stop() == 0
    # One that found a free process in the last moment has run there. None has run twice.
    logs = worker.log + other.log
    assert [logs.count(f"[{result.id}] succeeded") for result in running + waiting] == [1] * 4


def test_cold(worker, gate, start_worker, broker, tmp_path):
    """What runs is ended, with its `finally`; what is acknowledged late runs elsewhere."""
    path = tmp_path / "unwound"
    early = worker.send("unwind", gate._address, str(path))
    visitors = [gate.arrival()]
    late = worker.send("enter_late", gate._address, "late")
    visitors.append(gate.arrival())
    known(worker, early, late)
    worker.process.send_signal(signal.SIGQUIT)
    worker.ended()
    if CELERY >= (5, 5):  # before, a cold shutdown was nothing but SIGKILL
        assert marked(path) == "unwound"
    other = start_worker(broker=broker, queue=worker.queue)
    gate.arrival().go()
    assert other.get(late) == "late"
    assert other.stop() == 0
    assert early.id not in other.log


def test_cold_in_the_moment_of_a_start(worker, gate, start_worker, broker):
    """Celery does not know yet that the task runs."""
    late = worker.send("enter_late", gate._address, "late")
    gate.arrival()
    worker.process.send_signal(signal.SIGQUIT)
    worker.ended()
    other = start_worker(broker=broker, queue=worker.queue)
    gate.arrival().go()
    assert other.get(late) == "late"


@pytest.mark.skipif(CELERY < (5, 5), reason="nothing but SIGKILL before celery 5.5")
def test_cold_in_the_moment_of_an_early_acknowledgement(worker, start_worker, broker, tmp_path):
    """A task that has started does not run again, and is cancelled as if celery had known it."""
    path = tmp_path / "starts"
    result = worker.send("quit_worker", str(path), signal.SIGQUIT)
    worker.ended()
    assert marked(path) == f"{worker.process.pid}\n"
    assert result.state == "RETRY"  # that is what celery calls a task that it has cancelled
    other = start_worker(broker=broker, queue=worker.queue)
    assert other.run("add", 1, 1) == 2
    assert other.stop() == 0
    assert marked(path) == f"{worker.process.pid}\n"


@pytest.mark.skipif(CELERY < (5, 5), reason="nothing but SIGKILL before celery 5.5")
@pytest.mark.parametrize(
    ("pool", "name"), [("HastyPool", "lock_up"), ("ImpatientPool", "shrug")], ids=["C", "Python"]
)
def test_cold_with_a_task_that_does_not_end(start_worker, broker, gate, pool, name):
    """It is killed, and accounted for, before those who stop the worker lose patience."""
    worker = start_worker(broker=broker, pool=f"pools:{pool}")
    result = worker.send(name, gate._address)
    visitor = gate.arrival()
    visitor.go()
    known(worker, result)
    worker.process.send_signal(signal.SIGQUIT)
    worker.ended()
    assert has_ended(visitor.pid)
    assert f"project.{name}[{result.id}] does not end" in worker.log


@pytest.mark.skipif(CELERY < (5, 5), reason="nothing but SIGKILL before celery 5.5")
def test_cold_with_a_task_that_cleans_up(start_worker, broker, gate, tmp_path):
    """It has heeded the signal, so it gets more time."""
    worker = start_worker(broker=broker, pool="pools:HastyPool")
    path = tmp_path / "mark"
    result = worker.send("clean_up", gate._address, str(path), gate._address)
    gate.arrival().go()
    known(worker, result)
    worker.process.send_signal(signal.SIGQUIT)
    visitor = gate.arrival()
    later = time.monotonic() + 20 * HastyPool.heed_seconds
    eventually(lambda: time.monotonic() > later, "the pool has looked at it")
    visitor.go()
    worker.ended()
    assert marked(path) == "cleaned up"


@pytest.mark.skipif(CELERY < (5, 5), reason="new in celery 5.5")
def test_soft(start_worker, broker, gate):
    """A cold shutdown that gives the tasks time first."""
    worker = start_worker(broker=broker, settings={"worker_soft_shutdown_timeout": 5})
    result = worker.send("enter", gate._address, "in time")
    visitor = gate.arrival()
    known(worker, result)
    worker.process.send_signal(signal.SIGQUIT)
    worker.logged("Initiating Soft Shutdown")
    visitor.go()
    assert worker.get(result) == "in time"
    worker.ended()


@pytest.mark.skipif(CELERY < (5, 5), reason="new in celery 5.5")
def test_soft_without_tasks(start_worker):
    """What a worker has reserved for later is worth the time, too, if the settings say so."""
    worker = start_worker(
        settings={
            "worker_soft_shutdown_timeout": 0.5,
            "worker_enable_soft_shutdown_on_idle": True,
        }
    )
    late = worker.send("add_late", 1, 1, countdown=3600)
    eventually(lambda: worker.control("scheduled"), "it is scheduled")
    worker.process.send_signal(signal.SIGQUIT)
    worker.logged("Initiating Soft Shutdown")
    worker.ended()
    assert not late.ready()


def test_two_interrupts(worker, gate):
    """Ctrl-C is warm, Ctrl-C again is cold."""
    worker.send("enter", gate._address)
    pid = gate.arrival().pid
    worker.process.send_signal(signal.SIGINT)
    worker.logged("Hitting Ctrl+C again")
    worker.logged("Warm shutdown")
    worker.process.send_signal(signal.SIGINT)
    worker.ended()
    assert has_ended(pid)


@pytest.mark.skipif(CELERY < (5, 5), reason="nothing but SIGKILL before celery 5.5")
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_warm_shutdown_that_becomes_a_cold_one(worker, gate, first, tmp_path):
    """The second signal interrupts the wait for tasks, and waits itself."""
    path = tmp_path / "mark"
    result = worker.send("clean_up", gate._address, str(path))
    gate.arrival().go()
    known(worker, result)
    worker.process.send_signal(first)
    worker.logged("Warm shutdown")
    worker.process.send_signal(signal.SIGQUIT)
    worker.ended()
    assert marked(path) == "cleaned up"
    assert "Traceback" not in worker.log


def test_a_process_that_was_stopped_does_not_hold_up_the_end(worker):
    worker.run("add", 1, 1)
    eventually(lambda: not worker.control("active"), "celery knows that it is done")
    for pid in worker.workers:
        stop(pid)
    assert worker.stop() == 0


def test_a_task_that_ignores_all_ends_with_a_worker_that_is_killed(worker, gate):
    worker.send("enter", gate._address)
    pid = gate.arrival().pid
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.ended()
    assert has_ended(pid)


def test_a_second_worker_goes_on(worker, start_worker, broker, gate):
    """Workers on several machines share one broker: what one leaves, the other does."""
    other = start_worker(broker=broker, queue=worker.queue)
    results = [worker.send("add_late", x, 1) for x in range(100)]
    assert worker.stop() == 0
    assert [other.get(result) for result in results] == [x + 1 for x in range(100)]
