"""Time limits, as a user meets them: in Python loops, in sleep, and in C code."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import time

import pytest

from gate import enter
from helpers import DEADLINE, NEVER, at_leisure
from prefork import SoftTimeLimitExceeded, TimeLimitExceeded

SOON = 0.1


def square(x):
    return x * x


def import_this_module():
    """In the worker, so that its import does not count; returns the worker's process id."""
    return os.getpid()


@pytest.fixture
def make_pool(make_pool):
    """As elsewhere; but workers that are ready have imported this module, whatever starts them."""
    return functools.partial(make_pool, initializer=import_this_module)


def endless_loop():
    while True:
        pass


def endless_sleep():
    time.sleep(NEVER)


def endless_c_code():
    """A regular expression that takes for ever and looks at no signal."""
    re.fullmatch(r"(?:a+)+$", "a" * 100 + "b")


def endless_lock():
    import threading

    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def until_soft_limit():
    try:
        endless_loop()
    except SoftTimeLimitExceeded as exc:
        return str(exc)


def cleaning_up_for_ever():
    try:
        endless_loop()
    except SoftTimeLimitExceeded:
        endless_sleep()


def deaf():
    while True:
        with contextlib.suppress(SoftTimeLimitExceeded):
            endless_loop()


def unlimited(gate):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gate.enter()
    endless_loop()


ENDLESS = [endless_loop, endless_sleep, endless_c_code, endless_lock]

# --- the hard limit


@pytest.mark.promise(number=4)
@pytest.mark.parametrize("func", ENDLESS)
def test_a_hard_limit_ends_the_task(make_pool, context, func):
    pool = make_pool(1, context=context)
    pool.apply(import_this_module)
    handle = pool.apply_async(func, timeout=SOON)
    with pytest.raises(TimeLimitExceeded) as caught:
        handle.get(DEADLINE)
    error = caught.value
    assert error.limit == SOON
    assert error.job == handle.job
    assert error.pid == handle.pid
    assert error.function == f"test_time_limits.{func.__name__}"
    assert handle.accepted()
    assert handle.time_accepted is not None
    text = str(error)
    assert f"job {handle.job} (test_time_limits.{func.__name__})" in text
    assert f"time limit of {SOON} s" in text
    assert f"worker process {handle.pid} was killed" in text
    assert pool.apply(square, (3,)) == 9


@pytest.mark.promise(number=4)
@pytest.mark.parametrize("func", [endless_loop, endless_sleep])
def test_a_soft_limit_raises_in_the_task(make_pool, context, func):
    pool = make_pool(1, context=context)
    pid = pool.apply(import_this_module)

    def attempt(seconds):
        handle = pool.apply_async(func, soft_timeout=seconds)
        with pytest.raises(
            SoftTimeLimitExceeded, match=f"soft time limit of {seconds} s"
        ) as caught:
            handle.get(DEADLINE)
        assert f"in {func.__name__}" in str(caught.value.__cause__)
        assert pool.apply(os.getpid) == pid  # the worker lives on

    at_leisure(attempt)


def test_a_task_may_catch_its_soft_limit_and_return(make_pool, context):
    pool = make_pool(1, context=context)
    pool.apply(import_this_module)

    def attempt(seconds):  # it may pass before the task has come to its `try`
        handle = pool.apply_async(until_soft_limit, soft_timeout=seconds)
        assert str(seconds) in handle.get(DEADLINE)
        assert handle.successful()

    at_leisure(attempt)


@pytest.mark.promise(number=4)
@pytest.mark.parametrize("func", [cleaning_up_for_ever, deaf])
def test_the_hard_limit_follows_the_soft_one(make_pool, func):
    def attempt(seconds):
        pool = make_pool(1)
        calls = []
        handle = pool.apply_async(
            func,
            soft_timeout=seconds,
            timeout=3 * seconds,
            timeout_callback=lambda **kw: calls.append(kw),
        )
        with contextlib.suppress(TimeLimitExceeded):
            raise AssertionError(f"{handle.get(DEADLINE)} is no answer")
        pool.close()
        assert pool.join(DEADLINE)
        assert calls == [
            {"soft": True, "timeout": seconds},
            {"soft": False, "timeout": 3 * seconds},
        ]

    at_leisure(attempt)


def test_the_soft_limit_is_raised_once(make_pool):
    """`deaf` above would be interrupted again and again."""
    pool = make_pool(1)

    def attempt(seconds):
        handle = pool.apply_async(soft_limits_in_a_row, (5 * seconds,), soft_timeout=seconds)
        assert handle.get(DEADLINE) == 1

    at_leisure(attempt)


def soft_limits_in_a_row(seconds):
    count = 0
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            time.sleep(left)
        except SoftTimeLimitExceeded:
            count += 1
    return count


def load_slowly():
    time.sleep(3 * SOON)
    return 5 * SOON


class SlowToLoad:
    """As is a call whose module the worker has not imported yet."""

    def __reduce__(self):
        return load_slowly, ()


def lose_the_signal():
    """As one is lost that comes just before the task begins to sleep."""
    signals = {signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    assert signal.sigtimedwait(signals, DEADLINE)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    time.sleep(NEVER)


class SlowToGo:
    def __del__(self):
        time.sleep(DEADLINE)


def be_in_a_destructor():
    SlowToGo()  # where the limit passes
    time.sleep(NEVER)


@pytest.mark.parametrize("func", [lose_the_signal, be_in_a_destructor])
def test_a_soft_limit_that_was_lost_is_raised_all_the_same(make_pool, func):
    pool = make_pool(1)
    with pytest.raises(SoftTimeLimitExceeded):
        pool.apply_async(func, soft_timeout=SOON).get(DEADLINE)


def test_a_soft_limit_is_raised_in_a_task_that_took_long_to_load(make_pool):
    pool = make_pool(1)

    def attempt(_):
        calls = []
        handle = pool.apply_async(
            soft_limits_in_a_row,
            (SlowToLoad(),),
            soft_timeout=SOON,
            timeout_callback=lambda soft, timeout: calls.append(soft),
        )
        assert handle.get(DEADLINE) == 1
        assert calls == [True]

    at_leisure(attempt)


class SlowToPickle:
    def __reduce__(self):
        endless_loop()


def slow_result():
    return SlowToPickle()


def test_the_soft_limit_covers_the_pickling_of_the_result(make_pool):
    pool = make_pool(1)
    with pytest.raises(SoftTimeLimitExceeded):
        pool.apply_async(slow_result, soft_timeout=SOON).get(DEADLINE)
    with pytest.raises(TimeLimitExceeded):
        pool.apply_async(slow_result, timeout=SOON).get(DEADLINE)


# --- whose limit, and for whom


@pytest.mark.promise(number=4)
def test_limits_of_the_pool_apply_to_all_its_calls(make_pool):
    pool = make_pool(2, timeout=SOON)
    with pytest.raises(TimeLimitExceeded):
        pool.apply(endless_loop)
    with pytest.raises(TimeLimitExceeded):
        pool.map(call, [endless_loop, os.getpid])
    with pytest.raises(TimeLimitExceeded):
        next(pool.imap(call, [endless_loop]))
    with pytest.raises(TimeLimitExceeded):
        pool.starmap(call, [(endless_loop,)])
    pool = make_pool(1, soft_timeout=SOON)
    with pytest.raises(SoftTimeLimitExceeded):
        pool.apply(endless_loop)
    with pytest.raises(SoftTimeLimitExceeded):
        pool.map(call, [endless_loop], 1)


def call(func):
    return func()


def test_a_limit_of_the_call_goes_before_the_pools(make_pool):
    pool = make_pool(1, timeout=NEVER, soft_timeout=NEVER)
    with pytest.raises(TimeLimitExceeded, match=f"of {SOON} s"):
        pool.apply_async(endless_loop, timeout=SOON).get(DEADLINE)
    with pytest.raises(SoftTimeLimitExceeded, match=f"of {SOON} s"):
        pool.apply_async(endless_loop, soft_timeout=SOON).get(DEADLINE)
    pool = make_pool(1, timeout=SOON)
    handle = pool.apply_async(time.sleep, (3 * SOON,), timeout=NEVER)
    assert handle.get(DEADLINE) is None


@pytest.mark.promise(number=4)
def test_a_limit_counts_from_the_start_of_the_task(make_pool):
    pool = make_pool(1)
    slow = pool.apply_async(time.sleep, (12 * SOON,))
    waiting = [pool.apply_async(square, (x,), timeout=10 * SOON) for x in range(3)]
    assert [handle.get(DEADLINE) for handle in waiting] == [0, 1, 4]
    assert slow.ready()


@pytest.mark.promise(number=3)
def test_only_the_job_that_is_over_its_limit_fails(make_pool, gate):
    pool = make_pool(2)
    others = [pool.apply_async(enter, (gate, "other"))]
    visitor = gate.arrival()
    late = pool.apply_async(endless_loop, timeout=SOON)
    others += [pool.apply_async(square, (x,)) for x in range(50)]
    with pytest.raises(TimeLimitExceeded):
        late.get(DEADLINE)
    visitor.go()
    assert [handle.get(DEADLINE) for handle in others] == ["other", *(x * x for x in range(50))]


@pytest.mark.promise(number=4)
def test_a_task_that_ignores_sigterm_is_killed(make_pool, gate):
    pool = make_pool(1)
    handle = pool.apply_async(unlimited, (gate,), timeout=SOON)
    with pytest.raises(TimeLimitExceeded):
        handle.get(DEADLINE)


def test_a_task_with_limits_that_is_quick_is_not_disturbed(make_pool):
    pool = make_pool(2, timeout=NEVER, soft_timeout=NEVER)
    assert pool.map(square, range(1000), 1) == [x * x for x in range(1000)]


@pytest.mark.promise(number=3)
def test_tiny_limits_interrupt_or_kill_no_other_job(make_pool):
    """Whenever the signal comes, before, while or after the task runs, only the task feels it."""
    pool = make_pool(2)
    handles = []
    for x in range(1000):
        handles.append(pool.apply_async(square, (x,), soft_timeout=1e-6, accept_callback=ignore))
        handles.append(pool.apply_async(square, (x,)))
    pids = set()
    for number, handle in enumerate(handles):
        try:
            assert handle.get(DEADLINE) == (number // 2) ** 2
        except SoftTimeLimitExceeded:
            assert number % 2 == 0
        pids.add(handle.pid)
    assert len(pids) <= 2


def ignore(*_):
    pass


@pytest.mark.parametrize("chunksize", [1, 5])
def test_tiny_soft_limits_hit_only_items(make_pool, chunksize):
    pool = make_pool(1, soft_timeout=1e-6)
    results = pool.imap(square, range(2000), chunksize)
    for x in range(2000):
        with contextlib.suppress(SoftTimeLimitExceeded):
            assert next(results) == x * x


@pytest.mark.parametrize("limit", [float("inf"), 1e300, 10**12])
def test_huge_limits_are_none(make_pool, limit):
    pool = make_pool(1)
    for name in ("timeout", "soft_timeout", "lost_worker_timeout"):
        assert pool.apply_async(square, (3,), **{name: limit}).get(DEADLINE) == 9
    pool = make_pool(1, timeout=limit, soft_timeout=limit, lost_worker_timeout=limit)
    assert pool.apply_async(square, (3,)).get(DEADLINE) == 9
    with pytest.raises(TimeLimitExceeded):
        pool.apply_async(endless_loop, timeout=SOON).get(DEADLINE)
    assert pool.apply_async(square, (3,)).get(DEADLINE) == 9


@pytest.mark.parametrize("name", ["timeout", "soft_timeout", "lost_worker_timeout"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-1, ValueError),
        (float("nan"), ValueError),
        (float("-inf"), ValueError),
        ("x", TypeError),
        ("1", TypeError),
        (True, TypeError),
        ([], TypeError),
        (1j, TypeError),
    ],
    ids=str,
)
def test_limits_that_are_none_are_refused(make_pool, name, value, error):
    pool = make_pool(1)
    with pytest.raises(error, match=f"^{name} must be .*seconds, not "):
        pool.apply_async(square, (3,), **{name: value})
    with pytest.raises(error, match=f"^{name} must be .*seconds, not "):
        make_pool(1, **{name: value})
    if name == "lost_worker_timeout":
        for verb in (pool.imap, pool.imap_unordered):
            with pytest.raises(error, match=f"^{name} must be .*seconds, not "):
                verb(square, [3], 1, value)
    assert pool.apply(square, (3,)) == 9


def test_a_limit_of_zero_is_refused(make_pool):
    pool = make_pool(1)
    for name in ("timeout", "soft_timeout"):
        with pytest.raises(ValueError, match=f"^{name} must be more than 0 seconds, not 0"):
            pool.apply_async(square, (3,), **{name: 0})
    assert pool.apply_async(square, (3,), lost_worker_timeout=0).get(DEADLINE) == 9
