"""The processes of a worker: what they are, what celery is told of them, how many there are."""

from __future__ import annotations

import os
import signal

import pytest

from helpers import eventually, has_ended

SETTINGS = {"worker_pool_restarts": True}


@pytest.fixture(scope="module")
def worker(start_shared):
    return start_shared("--logfile", "tasks-%i.log", settings=SETTINGS)


def settled(worker, count):
    """Wait until there are so many processes that can run tasks; their ids."""

    def look():
        workers = [w["pid"] for w in worker.stats["workers"] if w["state"] in {"idle", "busy"}]
        return len(workers) == count and workers

    return eventually(look, f"there are {count} processes")


def test_what_a_task_sees(worker):
    info = worker.run("info")
    assert info["ppid"] == worker.process.pid
    assert info["name"] == info["billiard"]
    assert info["name"].startswith("ForkPoolWorker-")
    assert info["index"] in range(4)  # a restart has more for a moment
    assert info["threads"] == 1
    assert info["sigint"]
    assert info["title"] == f"[celeryd: {worker.node}:{info['name']}]"


def test_the_main_process_has_no_threads(worker):
    worker.run("add", 1, 1)
    assert len(os.listdir(f"/proc/{worker.process.pid}/task")) == 1


def test_each_process_logs_to_its_file(worker):
    worker.run("say", "hello")
    texts = {path.name: path.read_text() for path in worker.log_file.parent.glob("tasks-*.log")}
    assert {"tasks-0.log", "tasks-1.log", "tasks-2.log"} <= set(texts)  # 0 is the main process
    found = [name for name, text in texts.items() if "said: hello" in text]
    assert len(found) == 1
    assert found[0] != "tasks-0.log"
    assert "WARNING/ForkPoolWorker-" in texts[found[0]]


def test_stats_show_what_runs_since_when(worker, gate):
    result = worker.send("enter", gate._address)
    visitor = gate.arrival()

    def look():
        pool = worker.stats
        found = [w for w in pool["workers"] if w["task"] == f"project.enter[{result.id}]"]
        return found and (pool, found[0])

    pool, shown = eventually(look, "the task is shown")
    assert shown["pid"] == visitor.pid
    assert shown["state"] == "busy"
    assert shown["id"] == result.id
    assert shown["seconds"] >= 0
    assert shown["since"] > 1.7e9
    assert pool["implementation"] == "prefork.celery.prefork:TaskPool"
    assert pool["max-concurrency"] == 2
    assert sorted(pool["processes"]) == sorted(w["pid"] for w in pool["workers"])
    assert pool["put-guarded-by-semaphore"]
    writes = pool["writes"]
    assert writes["total"] == sum(map(int, writes["raw"].split(", "))) >= 1
    assert writes["inqueues"] == {"total": len(pool["processes"]), "active": 1}
    active = worker.control("active")
    assert [(task["id"], task["worker_pid"]) for task in active] == [(result.id, visitor.pid)]
    visitor.go()
    worker.get(result)


def test_grow_and_shrink(worker, gate):
    before = settled(worker, 2)
    assert worker.control("pool_grow", n=1) == {"ok": "pool will grow"}
    assert set(before) < set(settled(worker, 3))
    results = [worker.send("enter", gate._address) for _ in range(3)]
    visitors = [gate.arrival() for _ in results]  # three at once: the semaphore has grown, too
    assert len({visitor.pid for visitor in visitors}) == 3
    assert worker.control("pool_shrink", n=1) == {"ok": "pool will shrink"}
    for visitor in visitors:
        visitor.go()
    assert [worker.get(result) for result in results] == [None] * 3
    settled(worker, 2)
    results = [worker.send("enter", gate._address) for _ in range(3)]
    visitors = [gate.arrival() for _ in range(2)]
    eventually(lambda: len(worker.control("active")) == 2, "two run, as the semaphore has shrunk")
    for visitor in visitors:
        visitor.go()
    gate.arrival().go()
    for result in results:
        worker.get(result)


def test_shrinking_to_nothing_is_refused(worker):
    assert "one must be left" in str(worker.control("pool_shrink", n=2))
    settled(worker, 2)


def test_restart(worker, gate):
    before = set(settled(worker, 2))
    result = worker.send("enter", gate._address, "done")
    visitor = gate.arrival()
    worker.control("pool_restart")
    visitor.go()
    assert worker.get(result) == "done"  # what runs is not disturbed
    eventually(lambda: not before & set(settled(worker, 2)), "all are new")


def test_signals_of_celery(worker):
    pids = settled(worker, 2)
    inits = worker.noted("process_init")
    assert {str(pid) for pid in pids} <= set(inits)
    assert set(worker.noted("before_create")) == {str(worker.process.pid)}
    assert len(worker.noted("before_create")) == len(inits)
    os.kill(pids[0], signal.SIGTERM)
    eventually(lambda: has_ended(pids[0]), "an idle process leaves on SIGTERM")
    assert f"{pids[0]} {pids[0]} 143" in worker.noted("process_shutdown")
    settled(worker, 2)


def test_a_thread_of_a_task_does_not_hold_its_process(start_worker):
    worker = start_worker("--max-tasks-per-child", "1")
    pids = {worker.run("leave_a_thread") for _ in range(4)}

    def exits():
        return {each["pid"]: each["exitcode"] for each in worker.stats["exits"]}

    eventually(lambda: pids <= exits().keys(), "they leave")
    found = exits()
    assert [found[pid] for pid in pids] == [0] * 4  # nobody has had to kill them


def test_nothing_of_a_task_is_left_with_its_process(worker):
    orphan = worker.run("leave_orphan")
    assert not has_ended(orphan)
    for pid in settled(worker, 2):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: has_ended(orphan), "the orphan ends with the worker's group")
    settled(worker, 2)


def test_rate_limits_and_eta(worker):
    times = sorted(worker.get(worker.send("limited")) for _ in range(3))
    assert times[2] - times[0] > 0.7
    assert worker.run("add", 1, 2, countdown=0.2) == 3
