"""Ending one job, queued or running, and never another."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from gate import enter
from helpers import DEADLINE, eventually, mark, mark_and_stay, marked, stop
from prefork import Terminated, TimeLimitExceeded, WorkerLostError


def square(x):
    return x * x


def slow_goodbye(path):
    """Unwinds on SIGTERM, and says so."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    try:
        mark_and_stay(path)
    finally:
        mark(path.with_suffix(".unwound"))


def survive(path):
    signal.signal(signal.SIGTERM, lambda *_: mark(path.with_suffix(".signalled")))
    mark(path, os.getpid())
    while not path.with_suffix(".signalled").exists():
        time.sleep(0.001)
    return os.getpid()


@pytest.fixture
def blocked(make_pool, gate):
    """A pool of one worker, a job that runs, a job that is sent, and a job that is queued."""
    pool = make_pool(1)
    running = pool.apply_async(enter, (gate, "running"))
    visitor = gate.arrival()
    waiting = [pool.apply_async(square, (x,)) for x in range(300)]
    return pool, visitor, running, waiting


@pytest.mark.promise(number=2)
@pytest.mark.parametrize("verb", ["cancel", "terminate"])
def test_a_job_that_waits_never_runs(blocked, verb):
    pool, visitor, running, waiting = blocked
    for x in (0, 1, 150, 299):
        assert getattr(waiting[x], verb)()
        with pytest.raises(Terminated, match=f"job {waiting[x].job} .*cancelled before it started"):
            waiting[x].get(DEADLINE)
        assert not getattr(waiting[x], verb)()
    visitor.go()
    assert running.get(DEADLINE) == "running"
    for x, handle in enumerate(waiting):
        if x not in (0, 1, 150, 299):
            assert handle.get(DEADLINE) == x * x
    assert pool.statistics().failed == 4


def test_all_waiting_jobs_are_cancelled_and_the_pool_goes_on(blocked):
    pool, visitor, _, waiting = blocked
    assert all(handle.cancel() for handle in reversed(waiting))
    later = pool.apply_async(square, (7,))
    visitor.go()
    assert later.get(DEADLINE) == 49
    pool.close()
    assert pool.join(DEADLINE)


def test_a_running_job_is_not_cancelled(blocked):
    _, visitor, running, waiting = blocked
    assert not running.cancel()
    visitor.go()
    assert running.get(DEADLINE) == "running"
    assert [handle.get(DEADLINE) for handle in waiting] == [x * x for x in range(300)]
    assert not running.terminate()


@pytest.mark.promise(number=3)
def test_a_running_job_is_terminated_alone(blocked):
    _, visitor, running, waiting = blocked
    assert running.terminate()
    with pytest.raises(Terminated, match=f"job {running.job} .*worker process {visitor.pid}"):
        running.get(DEADLINE)
    assert [handle.get(DEADLINE) for handle in waiting] == [x * x for x in range(300)]


def test_the_job_of_a_process_is_terminated(blocked):
    pool, visitor, running, waiting = blocked
    assert not pool.terminate_job(os.getpid())
    assert pool.terminate_job(visitor.pid)
    with pytest.raises(Terminated):
        running.get(DEADLINE)
    assert [handle.get(DEADLINE) for handle in waiting] == [x * x for x in range(300)]
    assert not pool.terminate_job(visitor.pid)


def test_an_idle_worker_is_not_hit(make_pool):
    pool = make_pool(1)
    pid = pool.apply(os.getpid)
    assert not pool.terminate_job(pid)
    assert pool.apply(os.getpid) == pid


def test_a_signal_lets_the_task_unwind(make_pool, tmp_path):
    pool = make_pool(1)
    handle = pool.apply_async(slow_goodbye, (tmp_path / "at",))
    pid = int(marked(tmp_path / "at"))
    assert pool.terminate_job(pid, signal.SIGTERM)
    with pytest.raises(Terminated):
        handle.get(DEADLINE)
    marked(tmp_path / "at.unwound")
    assert pool.apply(square, (3,)) == 9


def test_a_task_that_survives_the_signal_keeps_its_result_and_the_worker_leaves(
    make_pool, tmp_path
):
    pool = make_pool(1)
    handle = pool.apply_async(survive, (tmp_path / "at",))
    pid = int(marked(tmp_path / "at"))
    others = [pool.apply_async(os.getpid) for _ in range(20)]
    assert handle.terminate(signal.SIGTERM)
    assert handle.get(DEADLINE) == pid
    assert pid not in [other.get(DEADLINE) for other in others]


def ignore(path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mark_and_stay(path)


@pytest.mark.parametrize("is_stopped", [False, True], ids=["ignored", "stopped"])
def test_a_signal_that_does_not_end_it_leaves_it_its_time_limit(make_pool, tmp_path, is_stopped):
    pool = make_pool(1)
    handle = pool.apply_async(ignore, (tmp_path / "at",), timeout=1.0)
    pid = int(marked(tmp_path / "at"))
    if is_stopped:
        stop(pid)
    handle.terminate(signal.SIGTERM)
    with pytest.raises((Terminated, TimeLimitExceeded)):
        handle.get(DEADLINE)
    assert pool.apply(square, (3,)) == 9


def test_a_map_is_terminated(make_pool, gate):
    pool = make_pool(2)
    result = pool.map_async(gate.enter, range(1000), 1)
    for _ in range(2):
        gate.arrival()
    assert result.terminate()
    with pytest.raises(Terminated, match=r"map of .* was terminated"):
        result.get(0)
    assert not result.terminate()
    assert pool.map(square, range(10)) == [x * x for x in range(10)]
    pool.close()
    assert pool.join(DEADLINE)


def test_a_map_is_cancelled_and_what_runs_goes_on(make_pool, gate):
    pool = make_pool(2)
    result = pool.map_async(gate.enter, range(1000), 1)
    visitors = [gate.arrival() for _ in range(2)]
    assert result.cancel()
    with pytest.raises(Terminated, match=r"map of .* was terminated"):
        result.get(0)
    assert not result.cancel()
    assert sorted(w.pid for w in pool.statistics().workers) == sorted(v.pid for v in visitors)
    for visitor in visitors:
        visitor.go()
    assert pool.map(square, range(10)) == [x * x for x in range(10)]
    assert pool.statistics().exits == ()
    pool.close()
    assert pool.join(DEADLINE)


@pytest.mark.promise(number=3)
def test_terminating_at_any_moment_hits_only_that_job(make_pool):
    pool = make_pool(2)
    for round in range(100):
        handles = [pool.apply_async(square, (x,)) for x in range(12)]
        victim = handles[round % 12]
        ended = victim.terminate()
        for x, handle in enumerate(handles):
            try:
                assert handle.get(DEADLINE) == x * x
            except Terminated:
                assert ended
                assert handle is victim  # (at the very moment that it finishes, it has finished)


# --- retries


def fail_at_first(path, times):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    if len(path.read_text().split()) <= times:
        os._exit(5)
    return "done"


@pytest.mark.promise(number=2)
def test_a_job_is_not_run_again_by_itself(make_pool, tmp_path):
    pool = make_pool(1)
    handle = pool.apply_async(fail_at_first, (tmp_path / "log", 1))
    with pytest.raises(WorkerLostError):
        handle.get(DEADLINE)
    assert handle.retries == 0
    assert len((tmp_path / "log").read_text().split()) == 1


@pytest.mark.promise(number=2)
def test_a_job_is_run_again_when_its_worker_was_lost(make_pool, tmp_path):
    pool = make_pool(1)
    handle = pool.apply_async(fail_at_first, (tmp_path / "log", 2), retries=2)
    assert handle.get(DEADLINE) == "done"
    assert handle.retries == 2
    assert pool.statistics().retried == 2
    handle = pool.apply_async(fail_at_first, (tmp_path / "other", 5), retries=2)
    with pytest.raises(WorkerLostError):
        handle.get(DEADLINE)
    assert handle.retries == 2
    assert len((tmp_path / "other").read_text().split()) == 3


@pytest.mark.parametrize("verb", ["map", "imap", "imap_unordered", "starmap"])
def test_the_map_family_runs_chunks_again(make_pool, tmp_path, verb):
    pool = make_pool(2)
    logs = [(tmp_path / str(n), 1) for n in range(10)]
    if verb != "starmap":
        results = getattr(pool, verb)(star_fail, logs, 1, retries=1)
    else:
        results = pool.starmap(fail_at_first, logs, 1, retries=1)
    assert list(results) == ["done"] * 10


def star_fail(args):
    return fail_at_first(*args)


def test_a_large_job_is_run_again(make_pool, tmp_path):
    pool = make_pool(1)
    handle = pool.apply_async(length_at_last, (tmp_path / "log", b"x" * 1_000_000), retries=1)
    assert handle.get(DEADLINE) == 1_000_000


def length_at_last(path, data):
    fail_at_first(path, 1)
    return len(data)


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (1.5, TypeError), ("1", TypeError)])
def test_retries_are_checked(make_pool, value, error):
    pool = make_pool(1)
    with pytest.raises(error, match="retries must be"):
        pool.apply_async(square, (1,), retries=value)
    with pytest.raises(error, match="retries must be"):
        pool.map(square, [1], retries=value)


@pytest.mark.promise(number=3)
def test_a_job_that_kills_each_worker_that_it_meets_harms_nobody_else(make_pool):
    pool = make_pool(2)
    killer = pool.apply_async(os._exit, (1,), retries=20)
    others = [pool.apply_async(square, (x,)) for x in range(500)]
    assert [other.get(DEADLINE) for other in others] == [x * x for x in range(500)]
    with pytest.raises(WorkerLostError):
        killer.get(DEADLINE)
    assert killer.retries == 20
    eventually(lambda: len(pool.statistics().workers) == 2, "the pool is complete again")
