"""Workers that are replaced: after so many tasks, for their memory, at a restart; and those that
cannot start."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import pytest

from gate import enter
from helpers import DEADLINE, METHODS, NEVER, at_leisure, eventually, has_ended, log_start, mark
from prefork import MemoryLimitExceeded, Pool, PoolBrokenError, WorkerLostError
from prefork._system.resources import resident
from prefork.adapters import AdapterPool

MIB = 1 << 20


def square(x):
    return x * x


def length(data):
    return len(data)


hoard: list[bytearray] = []


def keep(mib):
    """A task that makes its worker larger for good."""
    hoard.append(bytearray(os.urandom(1)) * (mib * MIB))
    return os.getpid()


def borrow(mib):
    """A task that makes its worker larger for a while."""
    bytearray(b"x") * (mib * MIB)
    return os.getpid()


def eat(limit):
    """More than it may, by a GiB: no more than the machine has until somebody looks."""
    while True:
        if resident(os.getpid()) < limit + 1024 * 1024:
            hoard.append(bytearray(b"x") * (10 * MIB))
        time.sleep(0.001)


# --- after so many tasks


def test_workers_do_not_all_leave_at_once(make_pool):
    pool = make_pool(1, maxtasksperchild=20, maxtasksperchild_jitter=19, context="fork")
    for x in range(200):
        assert pool.apply(square, (x,)) == x * x
    counts = [left.tasks for left in pool.statistics().exits]
    assert len(set(counts)) > 1
    assert all(1 <= count <= 20 for count in counts)


@pytest.mark.parametrize(
    ("tasks", "jitter", "error"),
    [(None, 1, ValueError), (5, 5, ValueError), (5, -1, ValueError), (5, 1.5, TypeError)],
)
def test_jitter_is_checked(make_pool, tasks, jitter, error):
    with pytest.raises(error, match="maxtasksperchild_jitter must be"):
        make_pool(1, maxtasksperchild=tasks, maxtasksperchild_jitter=jitter)


@pytest.mark.promise(number=1)
@pytest.mark.promise(number=2)
def test_recycling_loses_no_queued_work(make_pool, context):
    pool = make_pool(2, maxtasksperchild=1, context=context)
    data = bytes(MIB)
    handles = [pool.apply_async(length, (data,)) for _ in range(30)]
    assert [handle.get(DEADLINE) for handle in handles] == [MIB] * 30
    pool.close()
    assert pool.join(DEADLINE)
    assert all(left.tasks <= 1 for left in pool.statistics().exits)


# --- for their memory


def beyond_ours(mib):
    """KiB: a forked worker starts with memory of this process."""
    with Pool(1) as pool:
        return resident(pool.apply(os.getpid)) + mib * 1024


def test_a_worker_that_has_grown_is_replaced(make_pool):
    limit = beyond_ours(150)
    pool = make_pool(1, max_memory_per_child=limit)
    pid = pool.apply(keep, (10,))
    assert pool.apply(keep, (10,)) == pid
    assert pool.apply(keep, (200,)) == pid  # the task completes
    handles = [pool.apply_async(os.getpid) for _ in range(50)]
    assert pid not in {handle.get(DEADLINE) for handle in handles}
    left = eventually(lambda: pool.statistics().exits, "the large worker leaves")
    assert [(each.pid, each.exitcode) for each in left] == [(pid, 0)]
    assert f"KiB of memory, more than {limit} KiB" in left[0].reason


def test_memory_that_was_given_back_does_not_count(make_pool):
    pool = make_pool(1, max_memory_per_child=beyond_ours(150))
    pid = pool.apply(borrow, (300,))
    assert pool.apply(os.getpid) == pid


@pytest.mark.promise(number=3)
def test_a_task_that_takes_too_much_memory_fails_alone(make_pool, context):
    limit = beyond_ours(200)
    pool = make_pool(2, max_memory_per_task=limit, context=context)
    others = [pool.apply_async(square, (x,)) for x in range(100)]
    handle = pool.apply_async(eat, (limit,))
    with pytest.raises(MemoryLimitExceeded) as caught:
        handle.get(DEADLINE)
    error = caught.value
    assert error.limit == limit < error.resident
    assert (error.job, error.function) == (handle.job, "test_recycling.eat")
    assert "in eat" in error.stack or "(no stack" in error.stack  # on a very busy machine
    assert f"{error.resident} KiB of memory" in str(error)
    assert [other.get(DEADLINE) for other in others] == [x * x for x in range(100)]


@pytest.mark.parametrize("name", ["max_memory_per_child", "max_memory_per_task"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (1.5, TypeError)])
def test_memory_limits_are_checked(make_pool, name, value, error):
    with pytest.raises(error, match=f"{name} must be"):
        make_pool(1, **{name: value})


# --- at a restart


def test_a_restart_leaves_no_gap_in_service(make_pool, gate):
    """The only worker serves until its successor has run its initializer."""
    pool = make_pool(1, enter, (gate,))
    first = gate.arrival()
    first.go()
    assert pool.apply(os.getpid) == first.pid
    pool.restart()
    second = gate.arrival()
    assert pool.apply_async(os.getpid).get(DEADLINE) == first.pid
    second.go()
    eventually(lambda: pool.apply(os.getpid) == second.pid, "the successor serves")
    eventually(lambda: has_ended(first.pid), "the first worker leaves")


def test_a_restart_replaces_a_worker_that_is_starting(make_pool, gate):
    """It may have inherited what was changed before the restart."""
    pool = make_pool(1, enter, (gate,))
    first = gate.arrival()
    first.go()
    pool.restart()
    second = gate.arrival()
    pool.restart()
    second.go()
    third = gate.arrival()
    third.go()
    eventually(lambda: pool.apply(os.getpid) == third.pid, "the last one serves")
    eventually(lambda: has_ended(first.pid) and has_ended(second.pid), "the others leave")


def test_a_restart_replaces_workers_one_after_another(make_pool, gate):
    pool = make_pool(3)
    handles = [pool.apply_async(enter, (gate, n)) for n in range(3)]
    visitors = [gate.arrival() for _ in range(3)]
    old = {visitor.pid for visitor in visitors}
    pool.restart()
    later = [pool.apply_async(enter, (gate, n)) for n in range(3)]
    visitors += [gate.arrival() for _ in range(3)]  # the new ones serve while the old ones work
    for visitor in visitors:
        visitor.go()
    assert [handle.get(DEADLINE) for handle in handles + later] == [0, 1, 2] * 2
    eventually(lambda: all(map(has_ended, old)), "the old workers leave")
    eventually(lambda: len(pool.statistics().workers) == 3, "as many as before")


def test_shrinking_lets_busy_workers_finish(make_pool, gate):
    pool = make_pool(3)
    handles = [pool.apply_async(enter, (gate, n)) for n in range(3)]
    visitors = [gate.arrival() for _ in range(3)]
    pool.shrink(2)
    eventually(
        lambda: [w.state for w in pool.statistics().workers].count("retiring") == 2,
        "two workers are told to leave",
    )
    for visitor in visitors:
        visitor.go()
    assert [handle.get(DEADLINE) for handle in handles] == [0, 1, 2]
    eventually(lambda: len(pool.statistics().workers) == 1, "one worker is left")
    with pytest.raises(ValueError, match="cannot shrink 1 processes by 1: one must be left"):
        pool.shrink()


# --- those that cannot start


class WellBegun(AdapterPool):
    """Its first workers have time to start; only those that replace them are to be in a hurry."""

    first_start_timeout = DEADLINE


def hang(path):
    log_start(path, os.getpid())
    signal.pause()


def hang_unless(path):
    if not path.exists():
        mark(path)
    else:
        signal.pause()


def freeze(path):
    log_start(path, os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)


def die(path):
    log_start(path, os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.promise(number=1)
@pytest.mark.parametrize("how", [hang, freeze])
def test_an_initializer_that_hangs(make_pool, tmp_path, how):
    def attempt(seconds):
        log = tmp_path / f"{seconds:g}"
        pool = make_pool(2, how, (log,), context="fork", start_timeout=seconds)
        handle = pool.apply_async(square, (3,))
        with pytest.raises(PoolBrokenError, match=f"not ready within {seconds:g} s") as caught:
            handle.get(DEADLINE)
        assert f"in {how.__name__}" in str(caught.value)
        assert pool.join(DEADLINE)
        assert len(log.read_text().split()) == 2

    at_leisure(attempt, 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_initializer_of_a_program_that_blocks_all_signals(make_pool, tmp_path, method):
    """It is continued only to say its last words: the program's mask must not keep these back."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        # (The limit is also for a fork server that begins, on a busy machine.)
        pool = make_pool(1, freeze, (tmp_path / "log",), context=method, start_timeout=4.0)
        with pytest.raises(PoolBrokenError, match=r"not ready within 4 s"):
            pool.apply_async(square, (3,)).get(DEADLINE)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_a_later_initializer_that_hangs_is_tried_again(make_pool, tmp_path):
    pool = make_pool(
        1,
        hang_unless,
        (tmp_path / "once",),
        context="fork",
        start_timeout=0.5,
        max_restarts=1,
        pool_class=WellBegun,
    )
    assert pool.apply(square, (3,)) == 9
    with pytest.raises(WorkerLostError):
        pool.apply(os._exit, (1,))
    handle = pool.apply_async(square, (3,))
    with pytest.raises(PoolBrokenError, match="failed starts in a row: 2"):
        handle.get(DEADLINE)


def last_exit(pool):
    """The exit code of the last worker that has ended, if there is one."""
    return [left.exitcode for left in pool.statistics().exits[-1:]]


def raise_unless(path):
    if path.exists():
        raise LookupError("the database is away")
    mark(path)


def test_a_later_initializer_that_raises_is_tried_again(make_pool, tmp_path):
    pool = make_pool(1, raise_unless, (tmp_path / "once",), max_restarts=8)
    assert pool.apply(square, (3,)) == 9
    for _ in range(2):
        with pytest.raises(WorkerLostError):
            pool.apply(os._exit, (3,))
        handle = pool.apply_async(square, (3,))
        eventually(lambda: 1 in last_exit(pool), "a start fails")
        (tmp_path / "once").unlink()  # the database is back
        assert handle.get(DEADLINE) == 9
    with pytest.raises(WorkerLostError):
        pool.apply(os._exit, (1,))
    with pytest.raises(PoolBrokenError, match=r"the database is away.* in a row: 9"):
        pool.apply_async(square, (3,)).get(DEADLINE)


def hang_if(path):
    if path.exists():
        signal.pause()


@pytest.mark.promise(number=3)
@pytest.mark.parametrize("threads", [True, False])
def test_workers_that_cannot_be_replaced_leave_those_that_work_alone(
    make_pool, tmp_path, gate, threads
):
    """The pool goes on with them. It breaks down with the last of them, for the jobs that nobody
    can run any more."""
    path = tmp_path / "hang"
    pool = make_pool(
        2,
        hang_if,
        (path,),
        start_timeout=0.05,
        max_restarts=2,
        context="fork",
        threads=threads,
        pool_class=WellBegun,
    )
    job = pool.apply_async(enter, (gate, "value"))
    visitor = gate.arrival()
    path.touch()
    for worker in pool.statistics().workers:
        if worker.pid != visitor.pid:
            os.kill(worker.pid, signal.SIGKILL)

    def failed_starts():
        if not threads:
            pool.handle_events(0.01)
        return len(pool.statistics().exits) - 1

    eventually(lambda: failed_starts() > 4, "more starts fail than are to be tried")
    visitor.go()
    assert job.get(DEADLINE) == "value"
    assert pool.apply(os.getpid) == visitor.pid
    with pytest.raises(WorkerLostError):
        pool.apply(os._exit, (1,))
    with pytest.raises(PoolBrokenError, match="not ready within"):
        pool.apply(square, (3,))


def test_one_that_comes_back_ends_the_trouble(make_pool, tmp_path):
    """The failed starts are counted anew."""
    path = tmp_path / "hang"
    pool = make_pool(
        1,
        hang_if,
        (path,),
        start_timeout=0.5,
        max_restarts=4,  # some of them are for a machine that is busy
        context="fork",
        pool_class=WellBegun,
    )
    for _ in range(5):
        assert pool.apply(square, (3,)) == 9
        path.touch()
        count = len(pool.statistics().exits)
        with pytest.raises(WorkerLostError):
            pool.apply(os._exit, (1,))
        handle = pool.apply_async(square, (3,))
        eventually(lambda count=count: len(pool.statistics().exits) > count + 1, "a start fails")  # type: ignore[misc]
        path.unlink()
        assert handle.get(DEADLINE) == 9


def test_a_job_that_ends_with_its_worker_has_an_outcome_of_its_own(make_pool, tmp_path, gate):
    """Though nobody else can be started: here its result comes from what its worker has forked."""
    path = tmp_path / "hang"
    pool = make_pool(
        1,
        hang_if,
        (path,),
        start_timeout=0.05,
        max_restarts=0,
        pool_class=WellBegun,
        context="fork",
        lost_worker_timeout=NEVER,
    )
    pool.apply(abs, (1,))
    path.touch()
    handle = pool.apply_async(die_and_leave_a_child, (gate,))
    visitor = gate.arrival()
    eventually(lambda: len(pool.statistics().exits) > 2, "starts fail")
    visitor.go()
    assert handle.get(DEADLINE) == "late"
    with pytest.raises(PoolBrokenError, match="not ready within"):
        pool.apply(square, (3,))


def die_and_leave_a_child(gate):
    """What it has forked, without Python's knowledge, goes on in its place."""
    if ctypes.PyDLL(None).fork():
        os._exit(1)
    return enter(gate, "late")


@pytest.mark.parametrize("restarts", [0, 3])
def test_so_many_restarts(make_pool, tmp_path, restarts):
    pool = make_pool(1, die, (tmp_path / "log",), max_restarts=restarts)
    with pytest.raises(PoolBrokenError, match=f"failed starts in a row: {restarts + 1}"):
        pool.apply_async(square, (3,)).get(DEADLINE)
    assert pool.join(DEADLINE)
    assert len((tmp_path / "log").read_text().split()) == restarts + 1


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("max_restarts", -1, ValueError),
        ("max_restarts", 1.5, TypeError),
        ("start_timeout", 0, ValueError),
        ("start_timeout", "1", TypeError),
    ],
)
def test_how_to_start_is_checked(make_pool, name, value, error):
    with pytest.raises(error, match=f"{name} must be"):
        make_pool(1, **{name: value})
