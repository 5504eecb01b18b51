"""A pool without threads: driven by asyncio, by a loop that forgets its readers, or by hand."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import random
import select
import signal
import threading
import unittest.mock

import pytest

from gate import enter
from helpers import DEADLINE, NEVER, an_unclosed_pool_says_so, eventually, has_ended
from prefork import (
    Pool,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    TimeoutError,
    WorkerLostError,
)

SOON = 0.1


def square(x):
    return x * x


def sleep_for_ever():
    signal.sigwait([signal.SIGTERM])


def spin():
    while True:
        pass


@pytest.fixture
def pool(make_pool):
    before = set(threading.enumerate())
    pool = make_pool(2, threads=False)
    yield pool
    assert set(threading.enumerate()) <= before


def in_a_loop(pool, main):
    """Run `await main()` in an asyncio loop that the pool is attached to."""

    async def attached():
        pool.attach(asyncio.get_running_loop())
        try:
            return await asyncio.wait_for(main(), DEADLINE)
        finally:
            pool.detach()

    return asyncio.run(attached())


def future_of(pool, func, *args, **options):
    """The outcome as a future: what was called back with which value, in which thread."""
    future = asyncio.get_running_loop().create_future()

    def called(name, value):
        future.set_result((name, value, threading.current_thread()))

    pool.apply_async(
        func,
        args,
        callback=functools.partial(called, "callback"),
        error_callback=functools.partial(called, "error_callback"),
        **options,
    )
    return future


# --- under asyncio


def test_results_arrive_in_the_thread_of_the_loop(pool):
    async def main():
        return await asyncio.gather(*[future_of(pool, square, x) for x in range(1000)])

    here = threading.current_thread()
    assert in_a_loop(pool, main) == [("callback", x * x, here) for x in range(1000)]


def test_a_death_and_time_limits(pool):
    async def main():
        kill = future_of(pool, os._exit, 3)
        hard = future_of(pool, sleep_for_ever, timeout=SOON)
        soft = future_of(pool, spin, soft_timeout=SOON)
        return [(await future)[:2] for future in (kill, hard, soft)]

    names, errors = zip(*in_a_loop(pool, main), strict=True)
    assert set(names) == {"error_callback"}
    assert list(map(type, errors)) == [WorkerLostError, TimeLimitExceeded, SoftTimeLimitExceeded]
    assert pool.apply(square, (3,)) == 9


def test_accept_callback_comes_first(pool):
    calls = []

    async def main():
        await future_of(pool, os.getpid, accept_callback=lambda *args: calls.append(args[0]))

    in_a_loop(pool, main)
    assert len(calls) == 1


class ByHand:
    """A loop whose readers and timers the test calls."""

    def __init__(self):
        self.readers, self.timers = {}, []

    def add_reader(self, fd, call):
        self.readers[fd] = call

    def remove_reader(self, fd):
        del self.readers[fd]

    def call_later(self, delay, call):
        self.timers.append(call)
        return unittest.mock.Mock()

    def handle_readable(self):
        for fd in select.select(self.readers, [], [], DEADLINE)[0]:
            self.readers[fd]()


def test_results_are_left_to_the_readers(make_pool, gate):
    """Kombu's hub fires timers and then waits, before it does what a callback asks for."""
    pool = make_pool(1, threads=False, accept_delay=NEVER)
    pool.apply(square, (1,))
    loop = ByHand()
    pool.attach(loop)
    results = []
    told = {"callback": results.append, "accept_callback": lambda *args: None}
    pool.apply_async(enter, (gate, 4), **told)
    visitor = gate.arrival()
    while not loop.timers:
        loop.handle_readable()
    while select.select(loop.readers, [], [], 0)[0]:
        loop.handle_readable()
    visitor.go()
    assert select.select(loop.readers, [], [], DEADLINE)[0]
    loop.timers[-1]()
    assert results == []
    while not results:
        loop.handle_readable()
    assert results == [4]
    pool.detach()


def test_a_loop_that_has_forgotten_its_readers(pool):
    async def main():
        loop = asyncio.get_running_loop()
        added = unittest.mock.Mock(wraps=loop)
        pool.attach(added)
        future = future_of(pool, square, 3)
        for call in added.add_reader.call_args_list:
            assert loop.remove_reader(call.args[0])
        pool.attach(loop)
        return (await future)[1]

    assert in_a_loop(pool, main) == 9


def test_callbacks_may_submit_wait_and_terminate(pool):
    async def main():
        done = asyncio.get_running_loop().create_future()

        def first(value):
            pool.apply_async(square, (value,), callback=second)

        def second(value):
            assert pool.apply(square, (value,)) == 256
            pool.terminate()
            done.set_result(value)

        pool.apply_async(square, (2,), callback=first)
        return await done

    assert in_a_loop(pool, main) == 16
    assert pool.join(DEADLINE)


def test_a_closed_pool_ends_in_the_loop(pool):
    async def main():
        future = future_of(pool, square, 3)
        pool.close()
        value = (await future)[1]
        while not pool.join(0):
            await asyncio.sleep(0)
        return value

    assert in_a_loop(pool, main) == 9
    assert pool.join(0)


# --- by hand, and by calls that wait


def test_calls_that_wait_handle_events(pool):
    assert pool.apply(square, (3,)) == 9
    assert pool.map(square, range(1000)) == [x * x for x in range(1000)]
    assert pool.map_async(square, range(100), 7).get(DEADLINE) == [x * x for x in range(100)]
    assert list(pool.imap(square, range(1000))) == [x * x for x in range(1000)]
    assert sorted(pool.imap_unordered(square, range(100), 3)) == [x * x for x in range(100)]
    assert list(itertools.islice(pool.imap(square, itertools.count()), 3)) == [0, 1, 4]
    pool.close()
    assert pool.join(DEADLINE)


def test_waiting_for_a_slot(pool, gate):
    handles = [pool.apply_async(enter, (gate,)) for _ in range(2)]
    visitors = [gate.arrival() for _ in range(2)]
    visitors[0].go()
    assert pool.apply_async(square, (3,), waitforslot=True).get(DEADLINE) == 9
    visitors[1].go()
    for handle in handles:
        handle.get(DEADLINE)


def test_get_gives_up_in_time(pool, gate):
    handle = pool.apply_async(enter, (gate,))
    gate.arrival()
    with pytest.raises(TimeoutError):
        handle.get(0.01)
    pool.terminate()
    with pytest.raises(Terminated):
        handle.get(0)


@pytest.mark.parametrize("seconds", [1e8, 1e300])
def test_a_wait_and_a_limit_of_any_length(pool, seconds):
    limited = pool.apply_async(square, (3,), timeout=seconds)
    assert pool.apply_async(square, (2,)).get(seconds) == 4
    assert limited.get() == 9
    pool.terminate()
    assert pool.join(seconds)


def test_handle_events_runs_the_callbacks(pool):
    calls = []
    pool.apply_async(square, (3,), callback=calls.append)
    while not calls:
        pool.handle_events(DEADLINE)
    assert calls == [9]


def test_grow_shrink_and_restart(pool):
    pids = {pool.apply(os.getpid)}
    pool.grow(2)
    pool.shrink(3)
    pool.restart()
    eventually(lambda: pool.apply(os.getpid) not in pids, "restarted")
    assert pool.processes == 1


def test_a_pool_that_is_dropped():
    pool = Pool(1, threads=False)
    pid = pool.apply(os.getpid)
    with an_unclosed_pool_says_so():
        del pool
    eventually(lambda: has_ended(pid), "the worker of the dropped pool ends")


def test_a_pool_with_threads_cannot_be_attached(make_pool):
    pool = make_pool(1)
    for call in (pool.handle_events, pool.detach):
        with pytest.raises(RuntimeError, match="threads=False"):
            call()


# --- waiting for the pool inside of the pool


class Greedy:
    """Waits for the pool that it comes from while it is unpickled there."""

    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return wait_for_the_pool, (os.getpid(), self.how)


def wait_for_the_pool(made_in, how):
    if os.getpid() == made_in:
        return
    if how == "get":
        the_pool.apply_async(square, (3,)).get(NEVER)
    else:
        the_pool.handle_events()


the_pool = None


@pytest.mark.parametrize(
    ("threads", "how"), [(True, "get"), (False, "get"), (False, "handle_events")]
)
def test_a_result_that_waits_for_the_pool_fails_alone(make_pool, threads, how):
    global the_pool
    the_pool = pool = make_pool(1, threads=threads)
    with pytest.raises(Exception, match="waits for the pool") as caught:
        pool.apply_async(Greedy, (how,)).get(DEADLINE)
    assert "RuntimeError" in str(caught.value)
    assert pool.apply(square, (3,)) == 9


# --- calls from signal handlers that have interrupted others


@contextlib.contextmanager
def interrupting(call):
    """Have this called by a signal handler, a moment from now."""

    def handle(signum, frame):
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        call()

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, SOON)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_a_wait_inside_of_a_wait(pool, gate):
    outer = pool.apply_async(enter, (gate, "outer"))
    visitor = gate.arrival()
    inner = []

    def call():
        inner.append(pool.apply(square, (3,)))
        visitor.go()

    with interrupting(call):
        assert outer.get(DEADLINE) == "outer"
    assert inner == [9]


@pytest.mark.parametrize("outer", ["join", "get", "handle_events"])
@pytest.mark.parametrize("end", ["terminate", "join"])
def test_the_end_inside_of_a_wait(pool, gate, outer, end):
    """The descriptors that the outer one waits for are gone then, and their numbers others'."""
    handle = pool.apply_async(enter, (gate, "value"))
    visitor = gate.arrival()
    others = []

    def call():
        visitor.go()
        pool.close()
        getattr(pool, end)()
        others.extend(os.pipe() for _ in range(10))

    if outer == "join":
        pool.close()
    with interrupting(call):
        if outer == "join":
            assert pool.join(DEADLINE)
        elif outer == "get":
            with contextlib.suppress(Terminated):
                assert handle.get(DEADLINE) == "value"
        else:
            while not others:
                pool.handle_events(DEADLINE)
    assert pool.join(DEADLINE)
    assert handle.ready()
    for fd in itertools.chain(*others):
        os.close(fd)


def test_signals_at_any_moment(pool):
    """Their handler does what can be done then: it waits, or is told that nothing could arrive."""
    told, handles, inner, refused = [], [], [], []

    def call(signum, frame):
        try:
            handles.append(pool.apply_async(square, (3,)))
            pool.handle_events(0)
            inner.append(pool.apply(square, (3,)))
        except RuntimeError as exc:
            refused.append(str(exc))
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.001))

    before = signal.signal(signal.SIGALRM, call)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    try:
        for x in range(2000):
            pool.apply_async(square, (x,), callback=told.append)
            pool.handle_events(0)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert {handle.get(DEADLINE) for handle in handles} == {9}
    pool.close()
    assert pool.join(DEADLINE)
    assert sorted(told) == [x * x for x in range(2000)]
    assert set(inner) == {9}
    assert all("this waits for the pool" in text for text in refused)
