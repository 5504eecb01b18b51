"""What adapters of other libraries hang on: classes that a subclass names, places, calls."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import queue
import select
import signal
import threading
import unittest.mock

import pytest

from gate import enter
from helpers import DEADLINE, eventually
from prefork import Pool, PoolBrokenError
from prefork._system.process import Process
from prefork.adapters import AdapterPool

SOON = 0.05


class TooLong(Exception):
    pass


class OtherProcess(Process):
    kind = "OtherWorker"


class OtherPool(Pool):
    SoftTimeLimitExceeded = TooLong
    Process = OtherProcess  # type: ignore[assignment]


def loop():
    while True:
        pass


def reset_the_signal():
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def my_place(gate):
    gate.enter()
    me = multiprocessing.current_process()
    return os.getpid(), me.index, me.name


def test_the_soft_limit_raises_what_the_subclass_names(context):
    with OtherPool(1, context=context) as pool, pytest.raises(TooLong, match=r"limit of 0\.05 s"):
        pool.apply(loop, soft_timeout=SOON)


def test_an_initializer_may_reset_the_signal_of_soft_limits():
    with OtherPool(1, reset_the_signal) as pool, pytest.raises(TooLong):
        pool.apply(loop, soft_timeout=SOON)


def test_a_freed_place_is_taken_again(context, gate):
    with OtherPool(2, context=context) as pool:

        def places():
            jobs = [pool.apply_async(my_place, (gate,)) for _ in range(2)]
            for visitor in [gate.arrival() for _ in jobs]:
                visitor.go()
            return {index: (pid, name) for pid, index, name in (job.get(DEADLINE) for job in jobs)}

        before = places()
        assert {name for _, name in before.values()} == {"OtherWorker-1", "OtherWorker-2"}
        os.kill(before[0][0], signal.SIGKILL)
        eventually(lambda: pool.statistics().exits, "it is accounted for")
        after = eventually(
            lambda: (now := places())[0][0] != before[0][0] and now, "a new worker comes"
        )
        assert after[1] == before[1]
        assert after[0][1] == "OtherWorker-3"


@pytest.mark.parametrize("threads", [True, False])
def test_call_soon_comes_after_the_callbacks(make_pool, threads):
    pool = make_pool(1, threads=threads, pool_class=AdapterPool)
    calls = queue.SimpleQueue()
    pool.apply_async(os.getpid, callback=calls.put)
    threading.Thread(target=pool.call_soon, args=(calls.put, "soon")).start()
    while not threads and calls.qsize() < 2:
        pool.handle_events(DEADLINE)
    assert "soon" in {calls.get(timeout=DEADLINE), calls.get(timeout=DEADLINE)}


@pytest.mark.parametrize("threads", [True, False])
def test_the_end_of_a_broken_pool_is_told(make_pool, threads):
    told = queue.SimpleQueue()
    pool = make_pool(1, os._exit, (3,), threads=threads, pool_class=AdapterPool)
    pool.when_broken(told.put)
    while not threads and not told.qsize():
        pool.handle_events(DEADLINE)
    assert isinstance(told.get(timeout=DEADLINE), PoolBrokenError)


class Asker:
    """When it arrives, it asks the pool."""

    pool = None
    answers = ()

    def __reduce__(self):
        return Asker.ask, ()

    @staticmethod
    def ask():
        if Asker.pool is not None:
            Asker.answers += (Asker.pool.is_busy_here(),)


@pytest.mark.parametrize("threads", [True, False])
def test_a_pool_is_busy_while_it_works(make_pool, threads, monkeypatch):
    pool = make_pool(1, threads=threads, pool_class=AdapterPool)
    assert not pool.is_busy_here()
    monkeypatch.setattr(Asker, "pool", pool)
    monkeypatch.setattr(Asker, "answers", ())
    pool.apply(Asker)
    assert Asker.answers == (True,)  # type: ignore[comparison-overlap]
    assert not pool.is_busy_here()


class CountingLoop:
    """A loop that keeps count of its timers, and never fires them."""

    def __init__(self):
        self.timers = []

    def add_reader(self, fd, callback):
        pass

    def remove_reader(self, fd):
        pass

    def call_later(self, delay, callback):
        self.timers.append(delay)
        return self

    def cancel(self):
        pass


def test_a_timer_that_is_early_enough_is_kept(make_pool, gate):
    pool = make_pool(1, threads=False)
    loop = CountingLoop()
    pool.attach(loop)
    pool.apply_async(enter, (gate,), timeout=1000)
    visitor = gate.arrival()
    pool.handle_events(0)
    before = len(loop.timers)
    for _ in range(10):
        pool.handle_events(0)
    assert len(loop.timers) == before
    visitor.go()


def test_no_wakeup_without_news():
    """What a loop handles leaves nothing behind that would wake it once more."""

    async def main():
        pool = Pool(1, threads=False)
        loop = unittest.mock.Mock(wraps=asyncio.get_running_loop())
        pool.attach(loop)
        descriptors = [call.args[0] for call in loop.add_reader.mock_calls]

        async def call():
            done = loop.create_future()
            pool.apply_async(os.getpid, callback=done.set_result)
            await done
            return select.select(descriptors, [], [], 0)[0]

        await call()
        while select.select(descriptors, [], [], 0)[0]:
            await asyncio.sleep(0)  # the start of a worker is news for several
        readable = await call()
        pool.terminate()
        return readable

    assert asyncio.run(main()) == []
