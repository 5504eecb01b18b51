"""Where a task was when it had to be killed, and limits of tasks that defend themselves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from gate import enter
from helpers import DEADLINE, at_leisure, eventually, has_ended, mark, marked, stop
from prefork import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError

SOON = 0.1
EARLY, LATE = 0.5, 2.0


def square(x):
    return x * x


def import_this_module():
    pass


def stuck_in_python():
    innermost()


def innermost():
    while True:
        pass


def stuck_in_c():
    re.fullmatch(r"(?:a+)+$", "a" * 100 + "b")


def stuck_beside_a_thread():
    threading.Thread(target=another_thread, daemon=True).start()
    innermost()


def another_thread():
    signal.sigwait([signal.SIGUSR2])


def stuck_and_swallowing():
    while True:
        try:
            innermost()
        except BaseException:
            continue


def stuck_and_stopped():
    os.kill(os.getpid(), signal.SIGSTOP)
    innermost()


def stuck_and_blocking():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    innermost()


def stuck_with_a_child(path):
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    mark(path, child.pid)
    innermost()


PLACES = {
    stuck_in_python: "in innermost",
    stuck_in_c: "in fullmatch",
    stuck_beside_a_thread: "in another_thread",
    stuck_and_swallowing: "in innermost",
    stuck_and_stopped: "in stuck_and_stopped",
    stuck_and_blocking: "(no stack could be had",
}


@pytest.mark.promise(number=4)
@pytest.mark.parametrize("task", PLACES)
@pytest.mark.parametrize("soft", [None, EARLY, LATE], ids=["hard alone", "soft", "late soft"])
def test_the_error_tells_where_the_task_was_stuck(make_pool, task, soft):
    """The soft limit passes after a part of the hard one."""

    def attempt(seconds):
        pool = make_pool(1)
        pool.apply(import_this_module)  # not within the limit
        calls = []
        handle = pool.apply_async(
            task,
            timeout=seconds,
            soft_timeout=soft and soft * seconds,
            timeout_callback=lambda **kw: calls.append(kw),
        )
        with pytest.raises((SoftTimeLimitExceeded, TimeLimitExceeded)) as caught:
            handle.get(DEADLINE)
        was_hard = isinstance(caught.value, TimeLimitExceeded)
        if was_hard and soft == EARLY:
            assert caught.value.stack  # it may be on its way out by the soft one
        elif was_hard:
            assert PLACES[task] in caught.value.stack
            assert caught.value.stack in str(caught.value)
            assert task.__name__ in str(caught.value)
            assert "worker.py" not in caught.value.stack
        assert was_hard or soft == EARLY
        assert pool.apply(square, (3,)) == 9
        pool.close()
        assert pool.join(DEADLINE)
        limit = seconds if was_hard else soft * seconds
        assert calls[-1] == {"soft": not was_hard, "timeout": limit}

    at_leisure(attempt)


@pytest.mark.promise(number=4)
def test_a_task_in_each_start_method_tells_where_it_was(context, make_pool):
    pool = make_pool(1, context=context)
    pool.apply(import_this_module)

    def attempt(seconds):
        with pytest.raises(TimeLimitExceeded) as caught:
            pool.apply(stuck_in_c, timeout=seconds)
        assert "in fullmatch" in caught.value.stack
        assert "in stuck_in_c" in caught.value.stack

    at_leisure(attempt)


@pytest.mark.promise(number=6)
def test_what_the_task_has_started_goes_with_it(make_pool, tmp_path):
    pool = make_pool(1)
    pool.apply(import_this_module)
    with pytest.raises(TimeLimitExceeded):
        pool.apply(stuck_with_a_child, (tmp_path / "child",), timeout=10 * SOON)
    child = int(marked(tmp_path / "child"))
    eventually(lambda: has_ended(child), "the child of the task ends")


@pytest.mark.promise(number=4)
@pytest.mark.parametrize("verb", ["map", "starmap", "imap", "imap_unordered"])
@pytest.mark.parametrize("chunksize", [1, 3])
def test_the_map_family_takes_limits_for_each_item(make_pool, verb, chunksize):
    pool = make_pool(1)
    items = [(0.0,), (0.0,), (60.0,)] if verb == "starmap" else [0.0, 0.0, 60.0]
    for limit, error in [("timeout", TimeLimitExceeded), ("soft_timeout", SoftTimeLimitExceeded)]:
        with pytest.raises(error):
            list(getattr(pool, verb)(time.sleep, items, chunksize, **{limit: SOON}))


@pytest.mark.promise(number=4)
def test_the_items_of_a_chunk_may_take_longer_together(make_pool):
    assert list(make_pool(1).imap(time.sleep, [0.3] * 7, 7, timeout=2.0)) == [None] * 7


@pytest.mark.promise(number=4)
@pytest.mark.parametrize("verb", ["map_async", "starmap_async"])
def test_the_asynchronous_maps_take_limits(make_pool, verb):
    pool = make_pool(1)
    items = [(60.0,)] if verb == "starmap_async" else [60.0]
    with pytest.raises(TimeLimitExceeded):
        getattr(pool, verb)(time.sleep, items, timeout=SOON).get(DEADLINE)


@pytest.mark.promise(number=2)
def test_a_worker_that_does_not_read_its_job_is_replaced(make_pool, monkeypatch):
    """It was stopped while it had nothing to do; the job has not started, and runs elsewhere."""
    monkeypatch.setattr("prefork._policy.timers.UNREAD_SECONDS", 0.0)
    pool = make_pool(1)
    pid = pool.apply(os.getpid)
    stop(pid)
    handle = pool.apply_async(os.getpid, timeout=10 * SOON)
    assert handle.get(DEADLINE) != pid
    eventually(lambda: has_ended(pid), "the stopped worker has been replaced")


def test_a_hard_limit_after_the_result_was_sent_hits_nobody(make_pool, gate):
    """Limits that end at about the moment that the task does: each job is as it says, and the
    next one is never hit."""
    pool = make_pool(2)
    outcomes = []
    for round in range(30):
        short = 0.002 + round * 1e-4
        timed = [pool.apply_async(time.sleep, (0.004,), timeout=short) for _ in range(4)]
        others = [pool.apply_async(square, (x,)) for x in range(20)]
        assert [other.get(DEADLINE) for other in others] == [x * x for x in range(20)]
        for handle in timed:
            try:
                outcomes.append(handle.get(DEADLINE))
            except TimeLimitExceeded as exc:
                outcomes.append(exc.job - handle.job)
    assert {outcome for outcome in outcomes if outcome is not None} <= {0}


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)
    innermost()


def test_a_crash_after_a_look_tells_its_own_stack(make_pool, gate):
    pool = make_pool(1)
    handle = pool.apply_async(enter, (gate,))
    gate.arrival().go()
    handle.get(DEADLINE)
    assert pool.dump_stacks()
    with pytest.raises(WorkerLostError) as caught:
        pool.apply(crash)
    assert "in crash" in caught.value.stack
    assert "enter" not in caught.value.stack
