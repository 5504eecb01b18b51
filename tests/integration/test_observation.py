"""What can be seen of a pool: statistics, reprs, the log, and the stacks of its workers."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time

import pytest

from gate import enter
from helpers import DEADLINE, eventually, stop
from prefork import FailureCounts, TimeLimitExceeded, WorkerLostError, WorkerState


def square(x):
    return x * x


def fail():
    raise ValueError("oops")


def stuck_in_c():
    re.fullmatch(r"(?:a+)+$", "a" * 100 + "b")


def test_statistics_of_a_pool_at_work(make_pool, gate, context):
    pool = make_pool(2, context=context)
    started = time.monotonic()
    running = pool.apply_async(enter, (gate, 1))
    visitor = gate.arrival()
    other = pool.apply_async(enter, (gate, 2))
    other_visitor = gate.arrival()
    queued = [pool.apply_async(square, (x,)) for x in range(10)]
    statistics = pool.statistics()
    assert (statistics.processes, statistics.running, statistics.queued) == (2, 2, 10)
    assert (statistics.finished, statistics.failed, statistics.retried) == (0, 0, 0)
    assert statistics.exits == ()
    its = next(worker for worker in statistics.workers if worker.pid == visitor.pid)
    assert (its.state, its.job, its.function, its.tasks) == ("busy", running.job, "gate.enter", 0)
    assert started < its.since < time.monotonic()
    assert its.memory > 1000
    assert its.name.startswith("PreforkWorker-")
    visitor.go()
    other_visitor.go()
    for handle in [running, other, *queued]:
        handle.get(DEADLINE)
    pool.apply_async(fail).wait(DEADLINE)
    statistics = pool.statistics()
    assert (statistics.queued, statistics.running) == (0, 0)
    assert (statistics.finished, statistics.failed) == (12, 1)
    assert sum(worker.tasks for worker in statistics.workers) == 13
    assert {worker.state for worker in statistics.workers} == {WorkerState.IDLE}
    assert all(
        worker.job is worker.function is worker.since is None for worker in statistics.workers
    )
    with pytest.raises(AttributeError):
        statistics.queued = 3


def test_failures_are_counted_by_kind(make_pool, gate):
    pool = make_pool(1)
    pool.apply_async(fail).wait(DEADLINE)
    pool.apply_async(os._exit, (7,)).wait(DEADLINE)
    pool.apply_async(time.sleep, (60,), timeout=0.05).wait(DEADLINE)
    pool.apply_async(square, (threading.Lock(),)).wait(DEADLINE)  # cannot be pickled
    running = pool.apply_async(enter, (gate,))
    gate.arrival()
    waiting = pool.apply_async(square, (1,))
    assert waiting.cancel()
    running.terminate()
    for handle in (running, waiting):
        handle.wait(DEADLINE)
    statistics = pool.statistics()
    expected = FailureCounts(
        raised=1, worker_lost=1, time_limit=1, cancelled=1, terminated=1, other=1
    )
    assert statistics.failures == expected
    assert statistics.failed == sum(expected) == 6


def test_how_long_jobs_wait_and_run(make_pool, gate):
    pool = make_pool(1)
    blocker = pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    waiting = [pool.apply_async(square, (x,)) for x in range(3)]
    since = time.monotonic()
    eventually(lambda: time.monotonic() - since > 0.02, "they have waited")
    visitor.go()
    for handle in (blocker, *waiting):
        handle.get(DEADLINE)
    pool.apply_async(time.sleep, (60,), timeout=0.05).wait(DEADLINE)  # it has run, too
    queue, run = pool.statistics().queue_time, pool.statistics().run_time
    assert sum(queue.counts) == sum(run.counts) == 5
    assert len(queue.counts) == len(queue.bounds) + 1
    assert queue.seconds > 3 * 0.02
    assert run.seconds > 0.02 + 0.04
    slow = sum(n for n, bound in zip(run.counts[1:], run.bounds, strict=True) if bound >= 0.01)
    assert slow >= 2  # what blocked the others, and what was ended


def test_what_the_end_of_the_pool_cuts_short_has_run_too(make_pool, gate):
    pool = make_pool(1)
    pool.apply_async(enter, (gate,))
    pool.apply_async(square, (3,))  # which has not begun
    gate.arrival()
    pool.terminate()
    assert sum(pool.statistics().run_time.counts) == 1


def test_statistics_as_json(make_pool, gate):
    pool = make_pool(1)
    pool.apply_async(os._exit, (7,)).wait(DEADLINE)
    before = time.time()
    pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    statistics = pool.statistics()
    told = json.loads(json.dumps(statistics.as_dict()))
    visitor.go()
    assert set(told) == set(statistics._fields)
    (worker,) = told["workers"]
    assert (worker["state"], worker["function"]) == ("busy", "gate.enter")
    assert before - 1 <= worker["since_time"] <= told["time"] <= time.time()
    assert told["ended"] == len(told["exits"]) == 1
    assert before - DEADLINE <= told["exits"][0]["time"] <= told["time"]
    assert told["failures"]["worker_lost"] == 1
    assert told["run_time"]["counts"] == list(statistics.run_time.counts)


def test_the_history_of_exits(make_pool):
    pool = make_pool(1, maxtasksperchild=3)
    for _ in range(3):
        pool.apply(square, (1,))
    # A successor may be at work before the one before it is accounted for.
    eventually(lambda: len(pool.statistics().exits) == 1, "the first one leaves")
    with pytest.raises(WorkerLostError):
        pool.apply(os._exit, (7,))
    eventually(lambda: len(pool.statistics().exits) == 2, "the second one ends")
    with pytest.raises(TimeLimitExceeded):
        pool.apply(time.sleep, (60,), timeout=0.05)
    eventually(lambda: len(pool.statistics().exits) == 3, "three exits")
    first, second, third = pool.statistics().exits
    assert (first.exitcode, first.tasks, first.reason) == (0, 3, "it has run 3 tasks")
    assert (second.exitcode, second.tasks) == (7, 0)
    assert re.fullmatch(r"it ran job \d+ \(posix._exit\)", second.reason)
    assert third.exitcode < 0
    assert "exceeded its time limit of 0.05 s" in third.reason


def test_starting_workers_are_seen(make_pool, gate):
    pool = make_pool(1, enter, (gate,))
    visitor = gate.arrival()
    (worker,) = pool.statistics().workers
    assert (worker.state, worker.job) == ("starting", None)
    visitor.go()
    assert pool.apply(square, (3,)) == 9


def test_a_worker_that_runs_its_first_job_is_busy(make_pool, gate):
    """Whether or not the pool has looked since it was started: nobody drives this one."""
    pool = make_pool(1, threads=False)
    pool.apply_async(enter, (gate,))
    gate.arrival()
    (worker,) = pool.statistics().workers
    assert worker.state is WorkerState.BUSY


def test_reprs(make_pool, gate):
    pool = make_pool(1)
    handle = pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    pool.apply_async(square, (3,))
    assert repr(pool) == "<Pool: running, 1 processes, 2 jobs unfinished>"
    visitor.go()
    assert handle.get(DEADLINE) is None


# --- the log


def test_the_log_tells_every_start_and_end_once(make_pool, caplog):
    caplog.set_level(logging.DEBUG, "prefork")
    pool = make_pool(1, maxtasksperchild=2)
    pids = [pool.apply(os.getpid) for _ in range(2)]
    pids.append(pool.apply(os.getpid))
    eventually(lambda: len(pool.statistics().exits) == 1, "the first one leaves")
    with pytest.raises(WorkerLostError):
        pool.apply(os._exit, (3,))
    pids.append(pool.apply(os.getpid))
    pool.close()
    assert pool.join(DEADLINE)
    for pid in dict.fromkeys(pids):
        lines = [r for r in caplog.records if re.search(rf"\b{pid}\b", r.getMessage())]
        assert [line.getMessage().split()[0] for line in lines] == ["started", "worker"]
    ends = [(r.levelname, r.getMessage()) for r in caplog.records if "exited" in r.getMessage()]
    levels = [level for level, _ in ends]
    assert levels == ["DEBUG", "WARNING", "DEBUG"]
    assert "it has run 2 tasks" in ends[0][1]
    assert "exited with code 3: it ran job" in ends[1][1]
    assert "the pool is closed" in ends[2][1]


def test_the_log_tells_what_has_killed_a_worker_that_was_to_leave(make_pool, gate, caplog):
    pool = make_pool(2)
    limited = pool.apply_async(enter, (gate,), timeout=0.5)
    gate.arrival()
    killed = pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    pool.restart()
    eventually(lambda: len(pool.statistics().workers) > 2, "they are to be replaced")
    os.kill(visitor.pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError):
        killed.get(DEADLINE)
    with pytest.raises(TimeLimitExceeded):
        limited.get(DEADLINE)
    pool.close()
    assert pool.join(DEADLINE)
    assert re.search(r"was killed: job \d+ .* exceeded its time limit", caplog.text)
    assert re.search(r"was killed by SIGKILL: it ran job \d+", caplog.text)


# --- stacks


def test_stacks_of_all_workers(make_pool, gate, context):
    pool = make_pool(3, context=context)
    handles = [pool.apply_async(enter, (gate, 1)), pool.apply_async(stuck_in_c)]
    waiting = gate.arrival()
    busy = eventually(lambda: handles[1].pid, "the other task runs")
    frames = {"in fullmatch", "in stuck_in_c"}  # an import may call fullmatch(), too

    def look():
        """They are where they are to be; and have had a chance to say so."""
        stacks = pool.dump_stacks()
        is_there = all(frame in stacks[busy] for frame in frames)
        return is_there and "in enter" in stacks[waiting.pid] and stacks

    stacks = eventually(look, "all have come so far")
    assert set(stacks) == {worker.pid for worker in pool.statistics().workers}
    waiting.go()
    assert handles[0].get(DEADLINE) == 1
    assert not handles[1].ready()
    assert {worker.pid for worker in pool.statistics().workers} == set(stacks)


def test_looking_disturbs_no_task(make_pool):
    pool = make_pool(2)
    handles = [pool.apply_async(time.sleep, (0.001,)) for _ in range(300)]
    while not handles[-1].ready():
        assert len(pool.dump_stacks()) == 2
    assert [handle.get(DEADLINE) for handle in handles] == [None] * 300
    assert pool.statistics().exits == ()


def block_signals(gate):
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    gate.enter()


def test_workers_that_cannot_tell(make_pool, gate, monkeypatch):
    monkeypatch.setattr("prefork._engine.observer.STACK_SECONDS", 0.05)
    pool = make_pool(2)
    handles = [pool.apply_async(block_signals, (gate,)), pool.apply_async(enter, (gate,))]
    visitors = {v.pid: v for v in [gate.arrival(), gate.arrival()]}
    deaf, stopped = handles[0].pid, handles[1].pid
    stop(stopped)
    assert pool.dump_stacks() == {deaf: "(it does not take signals)", stopped: "(it is stopped)"}
    os.kill(stopped, signal.SIGCONT)
    for visitor in visitors.values():
        visitor.go()
    for handle in handles:
        handle.get(DEADLINE)


def test_a_starting_worker_is_left_alone(make_pool, gate):
    pool = make_pool(1, enter, (gate,))
    visitor = gate.arrival()
    eventually(lambda: "in enter" in pool.dump_stacks()[visitor.pid], "it says where it is")
    visitor.go()
    assert pool.apply(square, (3,)) == 9
