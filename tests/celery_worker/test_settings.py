"""Settings and options of a worker that concern its pool."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from celery import Task
from celery.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError
from running import CELERY

from helpers import eventually, has_ended
from prefork._system.resources import available_cpus

SOON = 0.8


def test_the_pool_as_a_setting(start_worker):
    worker = start_worker(pool=None, settings={"worker_pool": "prefork.celery:TaskPool"})
    assert worker.stats["implementation"] == "prefork.celery.prefork:TaskPool"
    assert "concurrency: 2 (prefork)" in worker.log


def test_limits_of_all_tasks(start_worker):
    worker = start_worker("--time-limit", "3", "--soft-time-limit", str(SOON))
    assert worker.stats["timeouts"] == [SOON, 3]
    assert worker.run("spin").startswith("caught ")
    assert isinstance(worker.outcome(worker.send("hang")), TimeLimitExceeded)
    assert "in hang_here" in worker.logged("Task handler raised error: TimeLimitExceeded(")
    worker.logged(f"Soft time limit ({SOON}s) exceeded for project.spin")


def test_a_limit_is_told_as_it_was_given(start_worker):
    worker = start_worker(settings={"task_time_limit": 1})
    result = worker.send("hang")
    error = worker.outcome(result)
    assert (type(error), repr(error.args)) == (TimeLimitExceeded, "(1,)")
    worker.logged(f"Hard time limit (1s) exceeded for project.hang[{result.id}]")


def test_max_tasks_per_child(start_worker):
    worker = start_worker("--max-tasks-per-child", "3", concurrency=1)
    assert worker.stats["max-tasks-per-child"] == 3
    pids = [worker.get(result)["pid"] for result in [worker.send("info") for _ in range(9)]]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3]


def test_max_memory_per_child(start_worker):
    worker = start_worker("--max-memory-per-child", "200000", concurrency=1)  # KiB
    before = worker.run("info")["pid"]
    assert worker.run("add", 1, 1) == 2
    assert worker.run("info")["pid"] == before
    assert worker.run("grow", 300) == before
    eventually(lambda: has_ended(before), "the process that has grown leaves")
    assert worker.run("add", 1, 1) == 2


@pytest.mark.parametrize("option", ["-Odefault", "-Ofair"])
def test_without_locks_and_either_optimization(start_worker, gate, option):
    """All that was prefetched is in the pool: nothing idles, nothing is held up by a long task."""
    settings = {"worker_pool_putlocks": False, "worker_prefetch_multiplier": 20}
    worker = start_worker(option, settings=settings)
    long = worker.send("enter", gate._address)
    visitor = gate.arrival()
    shorts = [worker.send("add", x, 1) for x in range(60)]
    assert [worker.get(short) for short in shorts] == [x + 1 for x in range(60)]
    visitor.go()
    worker.get(long)


def test_autoscale(start_worker, gate):
    worker = start_worker("--autoscale", "4,1", env={"AUTOSCALE_KEEPALIVE": "0.5"})
    assert worker.stats["max-concurrency"] == 1
    results = [worker.send("enter", gate._address) for _ in range(4)]
    visitors = [gate.arrival() for _ in results]
    assert len({visitor.pid for visitor in visitors}) == 4
    for visitor in visitors:
        visitor.go()
    for result in results:
        worker.get(result)
    eventually(lambda: worker.stats["max-concurrency"] == 1, "it has scaled down")
    eventually(lambda: len(worker.workers) == 1, "processes have left")
    assert worker.run("add", 1, 1) == 2


def test_autoscale_from_nothing(start_worker):
    worker = start_worker("--autoscale", "3,0")
    assert worker.run("add", 1, 1) == 2


@pytest.mark.skipif(CELERY < (5, 7), reason="new in celery 5.7")
def test_concurrency_auto(start_worker):
    worker = start_worker("-c", "auto")
    assert worker.stats["max-concurrency"] == available_cpus()


@pytest.mark.skipif(CELERY < (5, 7), reason="new in celery 5.7")
def test_spawn(start_worker):
    worker = start_worker(
        "--pool-start-method", "spawn", settings={"worker_proc_alive_timeout": 30}
    )
    info = worker.run("info")
    assert info["name"].startswith("SpawnPoolWorker-")
    assert info["billiard"] == info["name"]
    assert worker.run("spin", soft_time_limit=SOON).startswith("caught ")
    assert isinstance(worker.outcome(worker.send("hang", time_limit=SOON)), TimeLimitExceeded)
    os.kill(worker.run("info")["pid"], signal.SIGKILL)
    assert worker.run("add", 1, 1) == 2
    assert len(worker.noted("process_init")) >= 3
    assert worker.stop() == 0


def test_events(start_worker):
    """What Flower and other monitors get to see."""
    worker = start_worker("-E")
    seen = []
    with worker.app.connection_for_read() as connection:
        receiver = worker.app.events.Receiver(connection, handlers={"*": seen.append})

        def kinds(task):
            return [event["type"] for event in seen if event.get("uuid") == task.id]

        with receiver.consumer_context(wakeup=False) as (own_connection, _, _):
            while not seen:  # a heartbeat: the subscription is there
                own_connection.drain_events(timeout=20)
            result = worker.send("add", 1, 1)
            killed = worker.send("crash")
            while len(kinds(result)) < 3 or len(kinds(killed)) < 3:
                own_connection.drain_events(timeout=20)
    assert set(kinds(result)) == {"task-received", "task-started", "task-succeeded"}
    assert set(kinds(killed)) == {"task-received", "task-started", "task-failed"}


# --- workers that do not start


def test_an_initializer_that_fails_ends_the_worker(start_worker):
    worker = start_worker(env={"PROJECT_BROKEN": "1"}, ready=False)
    assert worker.ended() != 0
    assert "the initializer failed in a worker: SystemExit: the database is not there" in worker.log


def test_processes_that_are_killed_at_their_start_end_the_worker(start_worker):
    worker = start_worker(env={"PROJECT_KILLED": "1"}, ready=False)
    assert worker.ended() != 0
    assert "could not start" in worker.log


def test_first_processes_that_do_not_start_end_the_worker(start_worker):
    worker = start_worker(env={"PROJECT_SLOW": "/"}, pool="pools:PoolInAHurry", ready=False)
    assert worker.ended() != 0
    assert "not ready within 0.5 s" in worker.log


def test_first_processes_may_take_longer_than_their_successors(start_worker):
    limit = 0.2
    worker = start_worker(
        env={"PROJECT_SLOW": "/"},
        settings={"worker_proc_alive_timeout": limit},
        concurrency=1,
        ready=False,
    )
    result = worker.send("info")
    eventually(lambda: worker.noted("process_init"), "a process is starting")
    later = time.monotonic() + 3 * limit
    eventually(lambda: time.monotonic() > later, "it takes too long for a successor")
    (pid,) = worker.noted("process_init")
    os.kill(int(pid), signal.SIGUSR2)
    assert worker.get(result)["pid"] == int(pid)


def test_successors_that_do_not_start_leave_those_that_work_alone(start_worker, gate, tmp_path):
    slow = tmp_path / "slow"
    worker = start_worker(
        env={"PROJECT_SLOW": str(slow)}, settings={"worker_proc_alive_timeout": 0.3}
    )
    result = worker.send("enter", gate._address, "done")
    busy = gate.arrival()
    slow.touch()
    for pid in worker.workers:
        if pid != busy.pid:
            os.kill(pid, signal.SIGKILL)
    worker.logged("failed starts in a row: 11")
    busy.go()
    assert worker.get(result) == "done"
    assert worker.run("info")["pid"] == busy.pid
    slow.unlink()
    eventually(lambda: len({worker.run("info")["pid"] for _ in range(4)}) == 2, "it has company")
    assert worker.stop() == 0


# --- a task's memory error stops the worker, as celery wants it


def test_a_memory_error_stops_the_worker(start_worker):
    worker = start_worker()
    worker.send("out_of_memory")
    assert worker.ended() != 0


# --- a lost result is waited for


def test_worker_lost_wait(start_worker, gate):
    """The process is lost. The result is not, as long as somebody could send it."""
    worker = start_worker(settings={"worker_lost_wait": 3600})
    result = worker.send("leave_a_child", gate._address, "late")
    visitor = gate.arrival()
    eventually(lambda: len(worker.noted("process_init")) == 3, "it has a successor")
    assert [worker.run("add", x, 1) for x in range(5)] == [1, 2, 3, 4, 5]  # nobody else waits
    assert [task["id"] for task in worker.control("active")] == [result.id]
    assert not result.ready()
    visitor.go()
    assert worker.get(result) == "late"
    eventually(lambda: not worker.control("active"), "celery knows that it is done")
    assert "Worker exited prematurely" not in worker.log


def test_worker_lost_wait_is_over(start_worker, gate):
    worker = start_worker(settings={"worker_lost_wait": 2 * SOON})
    before = time.monotonic()
    result = worker.send("leave_a_child", gate._address)
    visitor = gate.arrival()
    error = worker.outcome(result)
    assert isinstance(error, WorkerLostError)
    assert "exited with code 1 while it ran project.leave_a_child" in str(error)
    assert time.monotonic() - before >= 2 * SOON
    eventually(lambda: has_ended(visitor.pid), "the child is killed")


# --- what is revoked stays revoked


def test_statedb(start_worker, tmp_path):
    state = str(tmp_path / "state")
    worker = start_worker("--statedb", state)
    worker.control("revoke", task_id="unwanted")
    for pid in worker.workers:
        os.kill(pid, signal.SIGTERM)
    assert worker.run("add", 1, 1) == 2
    assert worker.stop() == 0
    worker = start_worker("--statedb", state, queue=worker.queue)
    assert worker.control("revoked") == ["unwanted"]
    unwanted = worker.send("add", 1, 1, task_id="unwanted")
    assert isinstance(worker.outcome(unwanted), TaskRevokedError)
    assert worker.run("add", 1, 1) == 2
    assert worker.stop() == 0


# --- what else there is


def test_as_many_processes_as_there_are_cpus(start_worker):
    """And each has a log file of its own."""
    worker = start_worker("--logfile", "tasks%I.log", concurrency=None)
    assert worker.stats["max-concurrency"] == os.cpu_count()
    worker.run("say", "hello")
    texts = {path.name: path.read_text() for path in worker.log_file.parent.glob("tasks*.log")}
    assert {"tasks.log", "tasks-1.log"} <= set(texts)
    [found] = [name for name, text in texts.items() if "said: hello" in text]
    assert found != "tasks.log"


def test_late_acknowledgement_of_all_tasks(start_worker, gate):
    """Tasks that fail are rejected. Those whose process is lost, or that exceed their limit, go
    back to the broker."""
    worker = start_worker(
        settings={
            "task_acks_late": True,
            "task_reject_on_worker_lost": True,
            "task_acks_on_failure_or_timeout": False,
        }
    )
    result = worker.send("enter", gate._address, "again")
    os.kill(gate.arrival().pid, signal.SIGKILL)
    gate.arrival().go()
    assert worker.get(result) == "again"
    assert isinstance(worker.outcome(worker.send("fail")), ValueError)
    if hasattr(Task, "acks_on_timeout"):  # older celery forgets about it
        slow = worker.send("enter", gate._address, time_limit=SOON)
        for _ in range(2):
            gate.arrival()
        slow.revoke(terminate=True)
    eventually(lambda: not messages_in_redis(worker), "no message is left")
    assert worker.stop() == 0


def messages_in_redis(worker):
    """Those in the queue, and those that were delivered and not acknowledged; these lie in one
    place for all queues."""
    with worker.app.connection_for_read() as connection:
        client = connection.default_channel.client
        delivered = [json.loads(text) for text in client.hvals("unacked")]
        mine = [message for message, _, routing_key in delivered if routing_key == worker.queue]
        return client.lrange(worker.queue, 0, -1) + mine
