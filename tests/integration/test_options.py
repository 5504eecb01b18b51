"""What is asked for by `options`: retries, priorities, deadlines; with every verb."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import os
import pickle
import signal
import threading
import time
import weakref

import pytest

import prefork
from gate import enter
from helpers import DEADLINE, NEVER, eventually, log_start
from prefork import (
    Attempt,
    Cancelled,
    DeadlineExceeded,
    LimitExceeded,
    Retry,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)

NETWORK = Retry(3, on=ConnectionError)


def starts(path):
    """How often a task has written into its log."""
    return len(path.read_text().split()) if path.exists() else 0


def fail_at_first(path, times, error=ConnectionError):
    log_start(path, 1)
    if starts(path) <= times:
        raise error(f"attempt {starts(path)}")
    return path.name


def fail_once(path):
    return fail_at_first(path, 1)


def call(function, *args):
    return function(*args)


def note(path, number):
    log_start(path, number)


def order(path):
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture
def pool(make_pool):
    return make_pool(1)


def busy(pool, gate):
    """Its only worker is busy from now on, until the visitor may go."""
    pool.apply_async(enter, (gate,))
    return gate.arrival()


# --- retries


def test_what_a_task_raises_is_retried_if_that_is_asked_for(pool, tmp_path):
    path = tmp_path / "log"
    handle = pool.options(retries=NETWORK).apply_async(fail_at_first, (path, 2))
    assert handle.get(DEADLINE) == "log"
    assert starts(path) == 3
    assert handle.retries == pool.statistics().retried == 2
    first, second = handle.attempts
    assert isinstance(first, Attempt)
    assert [attempt.number for attempt in handle.attempts] == [1, 2]
    assert [str(attempt.error) for attempt in handle.attempts] == ["attempt 1", "attempt 2"]
    assert "fail_at_first" in str(first.error.__cause__)
    assert first.pid == second.pid == handle.pid
    assert first.seconds > 0
    assert (pool.statistics().finished, pool.statistics().failed) == (1, 0)


@pytest.mark.promise(number=2)
def test_nothing_else_is_retried(pool, tmp_path):
    for name, retries in [("0", 3), ("1", Retry(3)), ("2", Retry(3, on=(KeyError, OSError)))]:
        handle = pool.options(retries=retries).submit(
            fail_at_first, tmp_path / name, 1, ZeroDivisionError
        )
        with pytest.raises(ZeroDivisionError):
            handle.result(DEADLINE)
        assert starts(tmp_path / name) == 1
        assert (handle.retries, len(handle.attempts)) == (0, 1)
    lost = pool.options(retries=NETWORK).submit(os._exit, 3)
    with pytest.raises(WorkerLostError):
        lost.result(DEADLINE)
    assert lost.retries == 0


def test_a_job_that_has_failed_each_time_fails_with_its_last_error(pool, tmp_path):
    future = pool.options(retries=NETWORK).submit(fail_at_first, tmp_path / "log", 10)
    with pytest.raises(ConnectionError, match="attempt 4"):
        future.result(DEADLINE)
    assert [str(attempt.error) for attempt in future.attempts] == [
        f"attempt {number}" for number in (1, 2, 3, 4)
    ]
    assert future.attempts[-1].error is future.exception()
    assert (pool.statistics().failed, pool.statistics().retried) == (1, 3)


def test_all_verbs_retry(make_pool, tmp_path):
    pool = make_pool(2)
    view = pool.options(retries=NETWORK)
    verbs = {
        "submit": lambda path: view.submit(fail_once, path).result(DEADLINE),
        "apply": lambda path: view.apply(fail_once, (path,)),
        "apply_async": lambda path: view.apply_async(fail_once, (path,)).get(DEADLINE),
        "keyword": lambda path: pool.apply(fail_once, (path,), retries=NETWORK),
        "map": lambda path: view.map(fail_once, [path])[0],
        "map_async": lambda path: view.map_async(fail_once, [path]).get(DEADLINE)[0],
        "starmap": lambda path: view.starmap(fail_at_first, [(path, 1)])[0],
        "imap": lambda path: next(view.imap(fail_once, [path])),
        "chunk": lambda path: next(view.imap(fail_once, [path], chunksize=5)),
        "unordered": lambda path: next(view.imap_unordered(fail_once, [path])),
        "each": lambda path: view.each_async(fail_once, [path]).get(DEADLINE)[0].value,
        "executor": lambda path: view.executor().submit(fail_once, path).result(DEADLINE),
        "executor_map": lambda path: next(view.executor().map(fail_once, [path], chunksize=2)),
    }
    for name, verb in verbs.items():
        assert verb(tmp_path / name) == name
        assert starts(tmp_path / name) == 2
    with prefork.ProcessPoolExecutor(1) as executor:
        assert executor.options(retries=NETWORK).submit(fail_once, tmp_path / "x").result() == "x"


def test_a_chunk_is_retried_as_a_whole(pool, tmp_path):
    view = pool.options(retries=Retry(2, on=ConnectionError))
    fail = functools.partial(fail_at_first, error=ConnectionError)
    items = [(tmp_path / "0", 0), (tmp_path / "1", 2), (tmp_path / "2", 0)]
    assert view.starmap(fail, items, chunksize=3) == ["0", "1", "2"]
    assert [starts(path) for path, _ in items] == [3, 3, 1]  # `map` stops at the first error
    items = [(tmp_path / "3", 0), (tmp_path / "4", 9), (tmp_path / "5", 0)]
    results = view.imap(functools.partial(call_with, fail), items, chunksize=3)
    assert next(results) == "3"
    with pytest.raises(ConnectionError, match="attempt 3"):
        next(results)
    assert next(results) == "5"
    assert [starts(path) for path, _ in items] == [3, 3, 3]


def call_with(function, args):
    return function(*args)


def raise_at_the_limit(path):
    log_start(path, 1)
    if starts(path) == 1:
        time.sleep(NEVER)
    return "in time"


@pytest.mark.parametrize(
    ("limit", "error"),
    [("timeout", TimeLimitExceeded), ("soft_timeout", SoftTimeLimitExceeded)],
)
def test_limits_may_be_named(pool, tmp_path, limit, error):
    limited = pool.options(**{limit: 0.05})
    # So often, as one that has no chance to run is not in time either.
    future = limited.options(retries=Retry(50, on=error)).submit(raise_at_the_limit, tmp_path / "0")
    assert future.result(DEADLINE) == "in time"
    assert type(future.attempts[0].error) is error
    with pytest.raises(error):
        limited.options(retries=1).apply(raise_at_the_limit, (tmp_path / "1",))
    assert starts(tmp_path / "1") <= 1


def test_a_large_call_is_retried(pool, tmp_path):
    for size in (100_000, 1_000_000):
        job = pool.options(retries=NETWORK).submit(length, tmp_path / str(size), bytes(size))
        assert job.result(DEADLINE) == size


def length(path, data):
    fail_at_first(path, 2)
    return len(data)


def test_callbacks_are_called_once(pool, tmp_path, gate):
    told = []
    handle = pool.options(retries=Retry(2, on=ConnectionError)).apply_async(
        fail_at_first,
        (tmp_path / "log", 2),
        callback=told.append,
        error_callback=told.append,
        accept_callback=lambda pid, when: told.append("accepted"),
    )
    assert handle.get(DEADLINE) == "log"
    assert told == ["accepted", "log"]


FAR_AWAY = Retry(3, on=ConnectionError, backoff=NEVER, max_backoff=NEVER)


def waiting(pool, tmp_path):
    """A job whose first run has failed, and whose next one is far away."""
    future = pool.options(retries=FAR_AWAY).submit(fail_once, tmp_path / "waiting")
    eventually(lambda: future.retries, "it waits for its next run")
    return future


def test_a_job_that_waits_keeps_no_worker(pool, tmp_path):
    future = waiting(pool, tmp_path)
    assert pool.apply(abs, (-3,)) == 3
    assert (pool.statistics().queued, pool.statistics().running) == (1, 0)
    assert not future.running()
    assert pool.apply_async(abs, (-4,), waitforslot=True).get(DEADLINE) == 4


@pytest.mark.parametrize("how", ["cancel", "terminate"])
def test_a_job_that_waits_is_ended(pool, tmp_path, how):
    future = waiting(pool, tmp_path)
    assert getattr(future, how)()
    assert future.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(0)
    assert [str(attempt.error) for attempt in future.attempts] == ["attempt 1"]
    handle = pool.options(retries=FAR_AWAY).apply_async(fail_once, (tmp_path / "handle",))
    eventually(lambda: handle.retries, "it waits, too")
    assert getattr(handle, how)()
    with pytest.raises(Cancelled, match="before it was run again"):
        handle.get(DEADLINE)
    pool.close()
    assert pool.join(DEADLINE)


def test_an_executor_that_is_shut_down_cancels_what_waits(tmp_path):
    executor = prefork.ProcessPoolExecutor(1)
    future = waiting(executor, tmp_path)
    executor.shutdown(cancel_futures=True)
    assert future.cancelled()


def test_a_pool_that_is_terminated_ends_what_waits(pool, tmp_path):
    future = waiting(pool, tmp_path)
    pool.terminate()
    with pytest.raises(Terminated):
        future.result(0)


def test_a_closed_pool_waits_for_what_waits(pool, tmp_path):
    futures = [
        pool.options(retries=Retry(2, on=ConnectionError, backoff=0.05)).submit(
            fail_at_first, tmp_path / str(number), 2
        )
        for number in range(10)
    ]
    pool.close()
    assert pool.join(DEADLINE)
    assert [future.result(0) for future in futures] == [str(number) for number in range(10)]
    assert all(starts(tmp_path / str(number)) == 3 for number in range(10))


@pytest.mark.promise(number=2)
def test_what_somebody_ends_is_not_retried(make_pool, gate):
    pool = make_pool(2)
    view = pool.options(retries=Retry(3, on=Exception))
    for end in (
        lambda handle: handle.terminate(),
        lambda handle: handle.terminate(signal.SIGTERM),
        lambda handle: pool.terminate_job(handle.pid),
    ):
        handle = view.apply_async(enter, (gate,))
        gate.arrival()
        assert end(handle)
        with pytest.raises(Terminated):
            handle.get(DEADLINE)
        assert handle.retries == 0


def test_errors_that_refer_to_their_handle_are_let_go(pool, tmp_path):
    future = pool.options(retries=NETWORK, priority=1).submit(fail_once, tmp_path / "log")
    assert future.result(DEADLINE) == "log"
    future.attempts[0].error.future = future
    weak = weakref.ref(future)
    del future
    eventually(lambda: gc.collect() is None or weak() is None, "it is gone")


def test_errors_that_cannot_be_unpickled_are_errors_of_the_pool(pool, tmp_path):
    with pytest.raises(prefork.MaybeDecodingError):
        pool.options(retries=NETWORK).apply(fail_at_first, (tmp_path / "0", 9, Unpicklable))
    assert starts(tmp_path / "0") == 1
    view = pool.options(retries=Retry(1, on=prefork.MaybeDecodingError))
    assert view.apply(fail_at_first, (tmp_path / "1", 1, Unpicklable)) == "1"


class Unpicklable(Exception):
    def __reduce__(self):
        return int, ("no number",)


def test_retries_in_a_pool_that_a_loop_drives(make_pool, tmp_path):
    pool = make_pool(1, threads=False)
    retries = Retry(2, on=ConnectionError, backoff=0.02)
    future = pool.options(retries=retries).submit(fail_at_first, tmp_path / "log", 2)
    assert future.result(DEADLINE) == "log"
    late = pool.options(deadline=0.05).submit(time.sleep, NEVER)
    with pytest.raises(DeadlineExceeded):
        late.result(DEADLINE)


def test_a_retry_is_a_value():
    retry = Retry(3, on=(KeyError, OSError), backoff=1, max_backoff=5)
    assert repr(retry) == "Retry(3, on=(KeyError, OSError), backoff=1.0, max_backoff=5.0)"
    assert repr(Retry()) == "Retry(1)"
    assert pickle.loads(pickle.dumps(retry)) == retry
    assert len({retry, Retry(3, (KeyError, OSError), 1.0, max_backoff=5.0), Retry(3)}) == 2
    with pytest.raises(AttributeError):
        retry.retries = 4  # type: ignore[misc]


# --- priorities


def test_the_lowest_number_is_run_first_and_equal_ones_keep_their_order(pool, gate, tmp_path):
    visitor, log = busy(pool, gate), tmp_path / "log"
    priorities = [3, 0, -1, 3, 0, 7, -1, -5, 0]
    futures = [
        pool.options(priority=priority).submit(note, log, number)
        for number, priority in enumerate(priorities)
    ]
    visitor.go()
    assert len(concurrent.futures.wait(futures, DEADLINE).done) == len(futures)
    assert order(log) == sorted(range(len(priorities)), key=lambda n: priorities[n])


def test_the_first_job_with_a_priority_overtakes_what_a_worker_has_not_read(pool, gate, tmp_path):
    visitor, log = busy(pool, gate), tmp_path / "log"
    futures = [pool.submit(note, log, number) for number in range(200)]
    futures.append(pool.options(priority=-1).submit(note, log, -1))
    futures.append(pool.options(priority=1).submit(note, log, 1000))
    visitor.go()
    assert len(concurrent.futures.wait(futures, DEADLINE).done) == len(futures)
    assert order(log) == [-1, *range(200), 1000]


def test_nothing_is_given_to_a_worker_that_is_not_ready(make_pool, gate, tmp_path):
    pool = make_pool(1, initializer=enter, initargs=(gate,))
    visitor, log = gate.arrival(), tmp_path / "log"
    futures = [pool.options(priority=n).submit(note, log, n) for n in (2, 3, 1, -1)]
    visitor.go()
    assert len(concurrent.futures.wait(futures, DEADLINE).done) == len(futures)
    assert order(log) == [-1, 1, 2, 3]


def test_all_verbs_have_a_priority(pool, gate, tmp_path):
    visitor, log = busy(pool, gate), tmp_path / "log"
    pool.options(priority=0).submit(note, log, 0)
    low, high = pool.options(priority=5), pool.options(priority=5).options(priority=-5)
    last = low.map_async(functools.partial(note, log), [1], callback=None)
    rest = [
        low.imap(functools.partial(note, log), [2]),
        high.imap_unordered(functools.partial(note, log), [-2], chunksize=2),
        high.starmap_async(note, [(log, -1)]),
        high.each_async(functools.partial(note, log), [-3]),
        high.executor().submit(note, log, -4),
        high.executor().map(functools.partial(note, log), [-5]),
    ]
    eventually(lambda: pool.statistics().queued == 8, "the inputs are read")
    visitor.go()
    last.get(DEADLINE)
    assert len(rest) == 6
    pool.close()
    assert pool.join(DEADLINE)
    found = order(log)
    assert {*found[:5]} == {-1, -2, -3, -4, -5}
    assert found[5] == 0
    assert {*found[6:]} == {1, 2}


def test_jobs_with_priorities_while_workers_are_killed(make_pool, tmp_path):
    pool = make_pool(3)
    futures = {
        pool.options(priority=number % 7, retries=100).submit(note, tmp_path / "log", number)
        for number in range(2000)
    }
    for victim in [worker.pid for worker in pool.statistics().workers]:
        os.kill(victim, signal.SIGKILL)
    assert all(future.result(DEADLINE) is None for future in futures)
    found = order(tmp_path / "log")
    assert {*found} == {*range(2000)}
    # One whose worker was killed has been noted before that, or not.
    assert 2000 <= len(found) <= 2000 + sum(len(future.attempts) for future in futures)


# --- deadlines


def test_a_job_whose_deadline_passes_never_runs(pool, gate, tmp_path):
    visitor = busy(pool, gate)
    late = [pool.options(deadline=0.05).submit(note, tmp_path / "log", n) for n in range(500)]
    other = pool.submit(note, tmp_path / "log", -1)
    for future in late:
        with pytest.raises(DeadlineExceeded, match=r"not been started by its deadline of 0\.05 s"):
            future.result(DEADLINE)
        assert (future.exception().pid, future.attempts) == (0, ())
    visitor.go()
    other.result(DEADLINE)
    assert order(tmp_path / "log") == [-1]


def test_a_job_that_runs_is_killed(pool, gate):
    told = []
    assert pool.apply(abs, (-3,)) == 3  # its start does not count
    handle = pool.options(deadline=1.0).apply_async(
        enter, (gate,), timeout_callback=lambda soft, timeout: told.append((soft, timeout))
    )
    visitor = gate.arrival()
    with pytest.raises(DeadlineExceeded, match=r"had not ended by its deadline of 1 s") as caught:
        handle.get(DEADLINE)
    assert isinstance(caught.value, LimitExceeded)
    assert caught.value.pid == handle.pid == visitor.pid
    assert "in enter" in caught.value.stack
    assert told == [(False, 1.0)]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.limit) == (str(caught.value), 1.0)
    assert pool.apply(abs, (-3,)) == 3


def test_a_deadline_of_a_map_counts_from_its_call(pool, gate, tmp_path):
    """Also for those that are handed in later, since there was no room for them."""
    result = pool.options(deadline=0.2).map_async(
        functools.partial(note_but_first, gate, tmp_path / "log"), range(1000), chunksize=1
    )
    with pytest.raises(DeadlineExceeded):
        result.get(DEADLINE)
    eventually(lambda: not pool.statistics().queued, "nothing is left of it")
    assert order(tmp_path / "log") == []
    results = pool.options(deadline=NEVER).imap(abs, [-1, -2])
    assert list(results) == [1, 2]


def note_but_first(gate, path, number):
    if number == 0:
        enter(gate)
    log_start(path, number)


def test_a_job_is_not_retried_after_its_deadline(pool, tmp_path):
    never = Retry(3, on=ConnectionError, backoff=NEVER, max_backoff=NEVER)
    view = pool.options(retries=never, deadline=NEVER / 4)
    with pytest.raises(ConnectionError):  # at once, since it would come too late
        view.submit(fail_once, tmp_path / "log").result(DEADLINE)
    retries = Retry(3, on=WorkerLostError, backoff=0.01, jitter=0)
    future = pool.options(retries=retries, deadline=2.0).submit(die_or_stay, tmp_path / "other")
    with pytest.raises(DeadlineExceeded):
        future.result(DEADLINE)
    assert future.retries == 1
    assert isinstance(future.attempts[0].error, WorkerLostError)


def die_or_stay(path):
    log_start(path, 1)
    if starts(path) == 1:
        os._exit(1)
    time.sleep(NEVER)


def test_deadlines_at_the_moment_of_the_start_and_of_the_end(make_pool):
    """Whatever it is that comes first: each job has one outcome, and the pool goes on."""
    pool = make_pool(2)
    futures = [
        pool.options(deadline=0.0005 + number * 0.0001).submit(time.sleep, 0.002)
        for number in range(100)
    ]
    for future in futures:
        error = future.exception(DEADLINE)
        assert error is None or isinstance(error, DeadlineExceeded)
    assert pool.map(abs, range(100)) == [*range(100)]


# --- bad input


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"priority": "high"}, TypeError, "priority must be an int, not 'high'"),
        ({"priority": True}, TypeError, "priority must be an int, not True"),
        ({"priority": 0.5}, TypeError, r"priority must be an int, not 0\.5"),
        ({"deadline": 0}, ValueError, "deadline must be more than 0 seconds, not 0"),
        ({"deadline": "soon"}, TypeError, "deadline must be a number of seconds, not 'soon'"),
        ({"deadline": float("nan")}, ValueError, "deadline must be more than 0 seconds"),
        ({"retries": "many"}, TypeError, r"must be an int or a prefork\.Retry, not 'many'"),
        ({"retries": -1}, ValueError, "retries must be at least 0, not -1"),
    ],
)
def test_options_are_checked(pool, options, error, text):
    for view in (pool, pool.options(timeout=3), pool.executor()):
        with pytest.raises(error, match=text):
            view.options(**options)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"retries": "many"}, TypeError, "retries must be an int, not 'many'"),
        ({"on": "ConnectionError"}, TypeError, "on must be a class of exceptions, or a tuple"),
        ({"on": (int,)}, TypeError, "on must be a class of exceptions, or a tuple of them"),
        ({"backoff": -1}, ValueError, "backoff must be at least 0 seconds, not -1"),
        ({"backoff": float("inf")}, ValueError, "backoff must be finite"),
        ({"factor": 0.5}, ValueError, r"factor must be a number from 1 on, not 0\.5"),
        ({"factor": "2"}, TypeError, "factor must be a number from 1 on, not '2'"),
        ({"max_backoff": None}, TypeError, "max_backoff must be a number of seconds, not None"),
        ({"jitter": 1.5}, ValueError, r"jitter must be a number from 0 to 1, not 1\.5"),
        ({"jitter": True}, TypeError, "jitter must be a number from 0 to 1, not True"),
    ],
)
def test_a_retry_is_checked(given, error, text):
    with pytest.raises(error, match=text):
        Retry(**given)


def test_options_of_options_add_up(pool):
    view = pool.options(timeout=3, retries=2).options(priority=-1).options(deadline=9)
    told = "timeout=3.0, retries=Retry(2), priority=-1, deadline=9.0"
    assert repr(view).startswith(f"<PoolView: {told}, of <PoolView: timeout=3.0, retries=Retry(2)")
    none = view.options(priority=0, retries=0, deadline=float("inf"), timeout=float("inf"))
    assert repr(none).startswith("<PoolView: no limits, of")


def test_many_threads_with_all_options(make_pool, tmp_path):
    pool = make_pool(2)
    view = pool.options(retries=Retry(5, on=ConnectionError, backoff=0.001), deadline=NEVER)
    found = []

    def hand_in(number):
        futures = [
            view.options(priority=n % 3).submit(fail_at_first, tmp_path / f"{number}-{n}", n % 3)
            for n in range(50)
        ]
        found.extend(future.result(DEADLINE) for future in futures)

    threads = [threading.Thread(target=hand_in, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(found) == 200
    assert all(starts(tmp_path / f"{n}-{m}") == 1 + m % 3 for n in range(4) for m in range(50))
