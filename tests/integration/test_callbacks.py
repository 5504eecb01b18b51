"""Callbacks: each is called once or never, in a thread of the pool, and can harm nothing."""

from __future__ import annotations

import threading
import time
from multiprocessing import TimeoutError
from queue import SimpleQueue

import pytest

import inside
from gate import enter
from helpers import DEADLINE, NEVER, eventually
from prefork import (
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from prefork._engine import spawner
from prefork._engine.callbacks import CallbackRunner


def square(x):
    return x * x


def fail(value):
    raise LookupError(value)


def odd_only(x):
    if x % 2 == 0:
        raise LookupError(x)
    return x


def end_process():
    raise SystemExit(3)


def loop():
    while True:
        pass


class Log:
    """Callbacks that note how and where they are called."""

    def __init__(self):
        self.calls = SimpleQueue()

    def __getattr__(self, name):
        def callback(*args, **kwargs):
            self.calls.put((name, args, kwargs, threading.current_thread()))

        return callback

    def next(self):
        """The next call: its name and its arguments."""
        name, args, kwargs, _ = self.calls.get(timeout=DEADLINE)
        return name, *args, *kwargs.items()

    def all(self):
        """All calls so far; to be asked when the pool was joined."""
        calls = []
        while not self.calls.empty():
            calls.append(self.next())
        return calls


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def pool(make_pool):
    return make_pool(2)


def finish(pool):
    pool.close()
    assert pool.join(DEADLINE)


# --- which, when and how often


def test_callback_gets_the_result_and_error_callback_nothing(pool, log):
    pool.apply_async(square, (3,), callback=log.done, error_callback=log.failed)
    finish(pool)
    assert log.all() == [("done", 9)]


def test_error_callback_gets_the_error_and_callback_nothing(pool, log):
    handle = pool.apply_async(fail, ("x",), callback=log.done, error_callback=log.failed)
    with pytest.raises(LookupError, match="x") as caught:
        handle.get(DEADLINE)
    finish(pool)
    assert log.all() == [("failed", caught.value)]


@pytest.mark.parametrize("verb", ["apply_async", "map_async"])
def test_to_others_a_handle_is_ready_when_its_callback_has_run(pool, verb):
    begun, go, called = threading.Event(), threading.Event(), []

    def done(value):
        begun.set()
        go.wait(DEADLINE)
        called.append(value)

    handle = getattr(pool, verb)(square, (3,), callback=done)
    assert begun.wait(DEADLINE)
    assert not handle.ready()
    handle.wait(0)
    with pytest.raises(TimeoutError):
        handle.get(0)
    go.set()
    assert handle.get(DEADLINE) in (9, [9])
    assert len(called) == 1
    assert handle.ready()


@pytest.mark.parametrize(
    ("threads", "error"),
    [
        (True, None),
        (False, None),
        (True, LookupError),
        (False, LookupError),
        (True, KeyboardInterrupt),  # (of nobody, on the pool's own thread)
    ],
)
def test_what_callbacks_collect_is_there_when_the_handles_are(make_pool, threads, error):
    pool = make_pool(2, threads=threads)
    for _ in range(20):
        got = []

        def collect(value, got=got):
            got.append(value)
            if error is not None:
                raise error

        handles = [pool.apply_async(odd_only, (x,), {}, collect, collect) for x in range(50)]
        for handle in handles:
            handle.wait(DEADLINE)
        assert len(got) == 50


def test_without_a_thread_for_its_callback_a_handle_is_ready_all_the_same(pool, monkeypatch):
    def no_thread(self, on_crash, threads=None):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(CallbackRunner, "start", no_thread)
    called = []
    assert pool.apply_async(square, (3,), callback=called.append).get(DEADLINE) == 9
    assert not called
    monkeypatch.undo()
    assert pool.apply_async(square, (4,), callback=called.append).get(DEADLINE) == 16
    assert called == [9, 16]


def test_a_callback_may_wait_for_a_handle_whose_callback_waits_for_it(pool):
    go, order = threading.Event(), SimpleQueue()

    def first(_):
        go.wait(DEADLINE)
        order.put(second.get(DEADLINE))

    pool.apply_async(square, (1,), callback=first)
    second = pool.apply_async(square, (2,), callback=order.put)
    go.set()
    assert [order.get(timeout=DEADLINE) for _ in range(2)] == [4, 4]
    assert second.get(DEADLINE) == 4


def test_in_its_callback_a_handle_is_ready(pool):
    seen = SimpleQueue()
    made = threading.Event()
    handle = None

    def done(_):
        made.wait(DEADLINE)
        seen.put(handle.ready())

    handle = pool.apply_async(square, (3,), callback=done)
    made.set()
    assert seen.get(timeout=DEADLINE)


# --- a result is ready when its callback has run

VERBS = {
    "apply_async": lambda pool, **told: pool.apply_async(square, (3,), **told),
    "map_async": lambda pool, **told: pool.map_async(square, range(3), **told),
    "empty map_async": lambda pool, **told: pool.map_async(square, [], **told),
    "starmap_async": lambda pool, **told: pool.starmap_async(square, [(3,)], **told),
    "each_async": lambda pool, **told: pool.each_async(square, range(3), **told),
    "failing apply_async": lambda pool, **told: pool.apply_async(fail, (3,), **told),
    "failing map_async": lambda pool, **told: pool.map_async(fail, range(3), **told),
    "lost": lambda pool, **told: pool.apply_async(end_process, **told),
}


class Halt:
    """A callback that stays until its test lets it go."""

    def __init__(self):
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self, *args, **kwargs):
        self.entered.set()
        assert self.go.wait(DEADLINE)


@pytest.mark.parametrize("verb", VERBS)
def test_a_result_is_not_ready_before_its_callback_has_run(pool, verb):
    halt = Halt()
    handle = VERBS[verb](pool, callback=halt, error_callback=halt)
    assert halt.entered.wait(DEADLINE)
    assert not handle.ready()
    assert "pending" in repr(handle) or "running" in repr(handle)
    with pytest.raises(ValueError, match="not ready"):
        handle.successful()
    with pytest.raises(TimeoutError):
        handle.get(0.001)
    halt.go.set()
    handle.wait(DEADLINE)
    assert handle.ready()
    assert handle.successful() == (not verb.startswith(("failing", "lost")))


@pytest.mark.parametrize("threads", [True, False])
@pytest.mark.parametrize("verb", VERBS)
def test_who_collects_by_callback_and_waits_finds_all(make_pool, verb, threads):
    pool = make_pool(2, threads=threads, context="fork")  # many are lost
    collected = []
    for handle in [
        VERBS[verb](pool, callback=collected.append, error_callback=collected.append)
        for _ in range(100)
    ]:
        handle.wait(DEADLINE)
    assert len(collected) == 100


def test_a_result_is_ready_after_its_accept_callback(pool):
    halt = Halt()
    handle = pool.apply_async(square, (3,), accept_callback=halt)
    assert halt.entered.wait(DEADLINE)
    assert not handle.ready()
    halt.go.set()
    assert handle.get(DEADLINE) == 9


def test_results_without_callbacks_do_not_wait_for_callbacks(pool):
    halt = Halt()
    pool.apply_async(square, (3,), callback=halt)
    assert halt.entered.wait(DEADLINE)
    assert pool.apply_async(square, (4,)).get(DEADLINE) == 16
    assert pool.map_async(square, range(100)).get(DEADLINE)[-1] == 99 * 99
    halt.go.set()


@pytest.mark.parametrize("threads", [True, False])
@pytest.mark.parametrize("verb", ["apply_async", "map_async"])
def test_a_callback_may_wait_for_its_own_result(make_pool, verb, threads):
    pool = make_pool(2, threads=threads)
    handles, values = SimpleQueue(), []

    def done(value):
        handle = handles.get(timeout=DEADLINE)
        values.append((handle.ready(), handle.successful(), handle.get(DEADLINE) == value))

    handle = VERBS[verb](pool, callback=done)
    handles.put(handle)
    handle.wait(DEADLINE)
    assert values == [(True, True, True)]


def test_callbacks_of_two_pools_may_wait_for_each_other(make_pool):
    """Each for a result whose callback is to run after it."""
    pools = make_pool(1), make_pool(1)
    meet = threading.Barrier(2)
    inner = [SimpleQueue(), SimpleQueue()]
    values = SimpleQueue()

    def wait_for_other(index):
        meet.wait(DEADLINE)
        inner[index].put(pools[index].apply_async(square, (index,), callback=str))
        values.put(inner[1 - index].get(timeout=DEADLINE).get(DEADLINE))

    handles = [
        pool.apply_async(square, (i,), callback=lambda _, i=i: wait_for_other(i))
        for i, pool in enumerate(pools)
    ]
    for handle in handles:
        handle.get(DEADLINE)
    assert {values.get(timeout=DEADLINE), values.get(timeout=DEADLINE)} == {0, 1}


def test_a_result_whose_callback_raises_is_ready(pool, caplog):
    def bad(_):
        raise SystemExit("no")

    assert pool.apply_async(square, (3,), callback=bad).get(DEADLINE) == 9
    assert pool.map_async(square, [3], callback=bad).get(DEADLINE) == [9]
    eventually(lambda: caplog.text.count("a callback raised") == 2, "both are logged")


def test_without_threads_an_interrupt_in_a_callback_is_for_who_drives_the_pool(make_pool):
    pool = make_pool(1, threads=False)

    def interrupted(_):
        raise KeyboardInterrupt

    handle = pool.apply_async(square, (3,), callback=interrupted)
    with pytest.raises(KeyboardInterrupt):
        handle.get(DEADLINE)
    assert handle.get(DEADLINE) == 9


def test_results_of_a_pool_that_is_terminated_while_a_callback_runs(pool, gate):
    halt, calls = Halt(), []
    first = pool.apply_async(square, (3,), callback=halt)
    assert halt.entered.wait(DEADLINE)
    others = [
        pool.apply_async(enter, (gate,), error_callback=calls.append),
        pool.map_async(enter, [gate] * 3, error_callback=calls.append),
    ]
    pool.terminate()  # does not wait for the callback
    assert not pool.join(0.001)
    assert not any(each.ready() for each in (first, *others))
    halt.go.set()
    assert first.get(DEADLINE) == 9
    for each in others:
        with pytest.raises(Terminated):
            each.get(DEADLINE)
    assert len(calls) == 2
    assert pool.join(DEADLINE)


def test_callbacks_run_in_one_thread_of_the_pool(pool, log):
    for x in range(20):
        pool.apply_async(odd_only, (x,), {}, log.done, log.failed, log.accepted)
    finish(pool)
    threads = {log.calls.get_nowait()[3] for _ in range(40)}
    assert len(threads) == 1
    assert threads.isdisjoint({threading.current_thread(), threading.main_thread()})


@pytest.mark.promise(number=1)
def test_each_job_has_its_callbacks_once(pool, log):
    for x in range(300):
        pool.apply_async(odd_only, (x,), callback=log.done, error_callback=log.failed)
    finish(pool)
    calls = log.all()
    assert sorted(x for name, x in calls if name == "done") == list(range(1, 300, 2))
    errors = sorted(error.args[0] for name, error in calls if name == "failed")
    assert errors == list(range(0, 300, 2))


def test_map_has_one_callback_for_all_items(pool, log):
    pool.map_async(square, range(10), 3, log.done, log.failed)
    pool.starmap_async(square, [(2,), (3,)], 1, log.star_done, log.failed)
    pool.map_async(square, [], 1, log.nothing_done, log.failed)
    finish(pool)
    assert sorted(log.all()) == [
        ("done", [x * x for x in range(10)]),
        ("nothing_done", []),
        ("star_done", [4, 9]),
    ]


def test_a_failed_map_has_one_error_callback(pool, log):
    handle = pool.map_async(fail, range(10), 1, log.done, log.failed)
    finish(pool)
    with pytest.raises(LookupError) as caught:
        handle.get(0)
    assert log.all() == [("failed", caught.value)]


def test_callbacks_that_are_not_callable_are_refused(pool):
    for name in ("callback", "error_callback", "accept_callback", "timeout_callback"):
        with pytest.raises(TypeError, match=f"^{name} must be callable, not 'x'"):
            pool.apply_async(square, (1,), **{name: "x"})
    for verb in (pool.map_async, pool.starmap_async):
        for name in ("callback", "error_callback"):
            with pytest.raises(TypeError, match=f"^{name} must be callable, not 5"):
                verb(square, [1], **{name: 5})


# --- accept_callback


def test_accept_callback_comes_when_the_task_starts(pool, log, gate):
    before = time.monotonic()
    handle = pool.apply_async(enter, (gate, 5), accept_callback=log.accepted, callback=log.done)
    visitor = gate.arrival()
    name, pid, time_accepted = log.next()  # while the task is still running
    assert (name, pid) == ("accepted", visitor.pid)
    assert before <= time_accepted <= time.monotonic()
    assert time_accepted == handle.time_accepted
    visitor.go()
    assert log.next() == ("done", 5)
    finish(pool)
    assert log.all() == []


def test_accept_callback_comes_before_callback(pool, log):
    for x in range(100):
        pool.apply_async(odd_only, (x,), {}, log.done, log.failed, log.accepted)
        assert log.next()[0] == "accepted"
        assert log.next()[0] == ("done" if x % 2 else "failed")


@pytest.mark.parametrize("threads", [True, False])
def test_a_start_that_is_told_late_comes_with_the_end(make_pool, log, threads):
    """And with a lost worker's, too."""
    pool = make_pool(1, accept_delay=NEVER, threads=threads)
    before = time.monotonic()
    for task in (odd_only, (1,)), (odd_only, (2,)), (end_process, ()):
        handle = pool.apply_async(*task, {}, log.done, log.failed, log.accepted)
        handle.wait(DEADLINE)
        name, _, time_accepted = log.next()
        assert name == "accepted"
        assert before <= time_accepted == handle.time_accepted
        assert log.next()[0] == ("done" if task[1] == (1,) else "failed")
    finish(pool)
    assert log.all() == []


def test_a_job_that_never_starts_is_not_accepted(make_pool, log, gate):
    pool = make_pool(1)
    pool.apply_async(enter, (gate,))
    gate.arrival()
    pool.apply_async(square, (1,), {}, log.done, log.failed, log.accepted)
    pool.apply_async(square, (lambda: 0,), {}, log.done, log.rejected, log.accepted)
    pool.terminate()
    assert pool.join(DEADLINE)
    calls = log.all()
    assert sorted(name for name, _ in calls) == ["failed", "rejected"]
    assert isinstance(dict(calls)["failed"], Terminated)


# --- timeout_callback


def test_timeout_callback_of_a_soft_limit(pool, log):
    pool.apply_async(
        loop, soft_timeout=0.05, timeout_callback=log.expired, error_callback=log.failed
    )
    assert log.next() == ("expired", ("soft", True), ("timeout", 0.05))
    name, error = log.next()
    assert name == "failed"
    assert isinstance(error, SoftTimeLimitExceeded)
    finish(pool)
    assert log.all() == []


def test_timeout_callback_of_a_hard_limit(pool, log):
    pool.apply_async(loop, timeout=0.05, timeout_callback=log.expired, error_callback=log.failed)
    assert log.next() == ("expired", ("soft", False), ("timeout", 0.05))
    name, error = log.next()
    assert name == "failed"
    assert isinstance(error, TimeLimitExceeded)
    finish(pool)
    assert log.all() == []


def test_no_timeout_callback_without_a_timeout(pool, log):
    handles = [
        pool.apply_async(
            square, (x,), timeout=NEVER, soft_timeout=NEVER, timeout_callback=log.expired
        )
        for x in range(20)
    ]
    assert [handle.get(DEADLINE) for handle in handles] == [x * x for x in range(20)]
    finish(pool)
    assert log.all() == []


# --- however a job ends


def test_jobs_of_a_terminated_pool_have_their_error_callbacks(make_pool, log, gate):
    pool = make_pool(1)
    for _ in range(50):
        pool.apply_async(enter, (gate,), callback=log.done, error_callback=log.failed)
    gate.arrival()
    pool.terminate()
    assert pool.join(DEADLINE)
    calls = log.all()
    assert [name for name, _ in calls] == ["failed"] * 50
    assert all(isinstance(error, Terminated) for _, error in calls)


def test_the_job_of_a_lost_worker_has_its_error_callback(pool, log):
    pool.apply_async(end_process, callback=log.done, error_callback=log.failed)
    finish(pool)
    [(name, error)] = log.all()
    assert name == "failed"
    assert isinstance(error, WorkerLostError)


def test_join_waits_for_callbacks(pool):
    log = []
    go = threading.Event()

    def slow(value):
        go.wait(DEADLINE)
        log.append(value)

    for x in range(5):
        pool.apply_async(square, (x,), callback=slow)
    pool.close()
    assert not pool.join(0.05)
    assert log == []
    go.set()
    assert pool.join(DEADLINE)
    assert sorted(log) == [0, 1, 4, 9, 16]


# --- callbacks that misbehave


class Unusual(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("oops"), SystemExit(5), Unusual("oops")], ids=repr)
def test_a_callback_that_raises_is_logged_and_harms_nothing(pool, log, caplog, error):
    def bad(*args, **kwargs):
        raise error

    handle = pool.apply_async(
        square, (3,), callback=bad, accept_callback=bad, error_callback=log.failed
    )
    pool.apply_async(fail, ("x",), error_callback=bad)
    pool.map_async(square, [1], callback=bad)
    pool.apply_async(square, (4,), callback=log.done)
    finish(pool)
    assert handle.get(0) == 9
    assert log.all() == [("done", 16)]
    records = [r for r in caplog.records if r.exc_info]
    assert [r.exc_info[1] for r in records] == [error] * 4
    assert {r.name for r in records} == {"prefork"}
    assert "in bad" in caplog.text


def test_a_callback_that_blocks_holds_no_result_back(pool):
    go = threading.Event()
    pool.apply_async(square, (1,), callback=lambda _: go.wait(DEADLINE))
    assert pool.apply_async(square, (2,)).get(DEADLINE) == 4
    assert pool.map_async(square, range(100)).get(DEADLINE) == [x * x for x in range(100)]
    assert list(pool.imap(square, range(100))) == [x * x for x in range(100)]
    go.set()


def call_in_callback(pool, call):
    """What `call()` returns or raises, called in a callback."""
    answers = SimpleQueue()

    def callback(_):
        try:
            answers.put(call())
        except Exception as exc:
            answers.put(exc)

    pool.apply_async(square, (1,), callback=callback)
    return answers.get(timeout=DEADLINE)


@pytest.mark.promise(number=1)
def test_a_callback_may_call_the_pool_and_wait(pool, log):
    def nested():
        inner = pool.apply_async(
            square, (5,), callback=log.inner_done, accept_callback=log.inner_accepted
        )
        value = inner.get(DEADLINE)
        log.outer()
        return value

    assert call_in_callback(pool, nested) == 25
    # The callbacks of the inner call come when the outer one has returned.
    assert [log.next()[0] for _ in range(3)] == ["outer", "inner_accepted", "inner_done"]


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (lambda pool: pool.apply(square, (3,)), 9),
        (lambda pool: pool.map(square, range(100)), [x * x for x in range(100)]),
        (lambda pool: list(pool.imap(square, range(100))), [x * x for x in range(100)]),
        (lambda pool: pool.apply_async(square, (3,), waitforslot=True).get(DEADLINE), 9),
        (lambda pool: (pool.grow(), pool.shrink(), pool.restart()), (None, None, None)),
    ],
    ids=["apply", "map", "imap", "waitforslot", "resize"],
)
def test_a_callback_may_use_every_verb(pool, call, result):
    assert call_in_callback(pool, lambda: call(pool)) == result
    finish(pool)


def test_a_callback_may_close_and_join(pool):
    assert call_in_callback(pool, lambda: (pool.close(), pool.join(DEADLINE))) == (None, True)
    assert pool.join(DEADLINE)


def test_a_callback_may_terminate_and_join(pool, gate):
    pending = pool.apply_async(enter, (gate,))
    gate.arrival()
    answer = call_in_callback(pool, lambda: (pool.terminate(), pool.join(DEADLINE)))
    assert answer == (None, True)
    assert pool.join(DEADLINE)
    with pytest.raises(Terminated):
        pending.get(0)


def test_an_error_callback_of_termination_may_terminate_and_join(make_pool, gate):
    pool = make_pool(1)
    done = SimpleQueue()

    def callback(_):
        pool.terminate()
        done.put(pool.join(DEADLINE))

    pool.apply_async(enter, (gate,), error_callback=callback)
    gate.arrival()
    pool.terminate()
    assert done.get(timeout=DEADLINE)
    assert pool.join(DEADLINE)


# --- callbacks, and workers that are forked beside their thread

SHARED = threading.Lock()  # as of a library that callbacks and tasks use


def take_shared():
    return SHARED.acquire(timeout=DEADLINE)


@pytest.mark.promise(number=1)
def test_no_worker_is_forked_while_a_callback_holds_a_lock(make_pool, monkeypatch):
    """Nobody would release it in there."""
    monkeypatch.setattr(spawner, "QUIET_SECONDS", DEADLINE)
    pool = make_pool(1, context="fork")

    def callback(error):
        with SHARED:
            eventually(lambda: inside.is_start_waiting(pool), "a start waits for the callback")

    pool.apply_async(end_process, error_callback=callback)
    assert pool.apply_async(take_shared).get(DEADLINE)


def test_a_callback_that_blocks_holds_no_worker_back(make_pool, monkeypatch):
    monkeypatch.setattr(spawner, "QUIET_SECONDS", 0.01)
    pool = make_pool(1, context="fork")
    go = threading.Event()
    pool.apply_async(end_process, error_callback=lambda _: go.wait(DEADLINE))
    assert pool.apply_async(square, (3,)).get(DEADLINE) == 9
    go.set()


def test_callbacks_wait_while_a_worker_is_forked(make_pool, log):
    pool = make_pool(1)
    with inside.as_while_a_worker_is_forked(pool):
        pool.apply_async(square, (3,), callback=log.done)
        pool.apply_async(square, (4,)).get(DEADLINE)
        assert log.all() == []
    assert log.next() == ("done", 9)
