"""Futures of a pool's calls, and views of a pool: with other limits, and as an executor."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import as_completed, wait

import pytest

import prefork
from gate import enter
from helpers import DEADLINE, NEVER, an_unclosed_pool_says_so, eventually, log_start
from prefork import (
    ApplyResult,
    Future,
    Terminated,
    TimeLimitExceeded,
    TimeoutError,
    WorkerLostError,
)


@pytest.fixture
def pool(make_pool):
    return make_pool(2)


def square(x):
    return x * x


def keywords(**kwargs):
    return kwargs


def fail(text):
    raise ValueError(text)


def die_once(path):
    log_start(path, 1)
    if path.stat().st_size == len("1\n"):
        signal.raise_signal(signal.SIGKILL)
    return "survived"


class Large:
    pass


def make_large():
    return Large()


# --- a future is a handle, and the standard library's


def test_a_future_is_a_handle_too(pool):
    future = pool.submit(square, 3)
    assert isinstance(future, concurrent.futures.Future)
    assert isinstance(future, ApplyResult)
    assert (future.result(DEADLINE), future.get(DEADLINE)) == (9, 9)
    assert future.done()
    assert future.ready()
    assert future.successful()
    assert future.pid in [worker.pid for worker in pool.statistics().workers]
    assert future.exception() is None
    assert repr(future) == f"<Future of job {future.job} {__name__}.square: successful>"


def test_all_keywords_are_the_functions(pool):
    names = ["timeout", "soft_timeout", "retries", "func", "self", "callback", "chunksize"]
    given = dict.fromkeys(names, 1)
    assert pool.submit(keywords, **given).result(DEADLINE) == given
    assert pool.executor().submit(keywords, fn=1, **given).result(DEADLINE) == given | {"fn": 1}


def test_errors_are_those_of_the_task(pool):
    future = pool.submit(fail, "text")
    for _ in range(2):
        with pytest.raises(ValueError, match="text") as caught:
            future.result(DEADLINE)
    assert future.exception() is caught.value
    assert "fail" in str(caught.value.__cause__)


def test_waiting_takes_no_longer_than_it_may(pool, gate):
    future = pool.submit(enter, gate)
    visitor = gate.arrival()
    assert future.running()
    with pytest.raises(builtin_timeout):
        future.result(0.01)
    with pytest.raises(builtin_timeout):
        future.exception(0)
    with pytest.raises(TimeoutError):
        future.get(0)
    visitor.go()
    assert future.result(DEADLINE) is None
    assert not future.running()


builtin_timeout = concurrent.futures.TimeoutError


def test_what_waits_in_all_ways_is_told(pool, gate):
    future = pool.submit(enter, gate, "ran")
    found = []

    def completed():
        found.extend(each.result() for each in as_completed([future], DEADLINE))

    threads = [
        threading.Thread(target=completed),
        threading.Thread(target=lambda: found.append(future.result(DEADLINE))),
        threading.Thread(target=lambda: found.append(future.get(DEADLINE))),
        threading.Thread(target=lambda: found.extend(f.result() for f in wait([future]).done)),
    ]
    future.add_done_callback(lambda f: found.append(f.result()))
    for thread in threads:
        thread.start()
    gate.arrival().go()
    for thread in threads:
        thread.join(DEADLINE)
    eventually(lambda: found == ["ran"] * 5, f"all are told: {found}")


def test_many_futures_and_many_who_wait(pool):
    futures = [pool.submit(square, x) for x in range(3000)]
    found: list[set[int]] = []

    def collect(mine):
        found.append({future.result() for future in as_completed(mine, DEADLINE)})

    threads = [threading.Thread(target=collect, args=[futures[i::3]]) for i in range(3)]
    for thread in threads:
        thread.start()
    assert len(wait(futures, DEADLINE).done) == 3000
    for thread in threads:
        thread.join(DEADLINE)
    assert set().union(*found) == {x * x for x in range(3000)}


def test_a_pool_that_is_terminated_fails_its_futures(pool, gate):
    futures = [pool.submit(enter, gate) for _ in range(5)]
    gate.arrival()
    pool.terminate()
    assert all(isinstance(future.exception(DEADLINE), Terminated) for future in futures)
    assert not any(future.cancelled() for future in futures)
    with pytest.raises(ValueError, match="takes no more jobs"):
        pool.submit(square, 3)


def test_nobody_else_sets_its_outcome(pool):
    future = pool.submit(square, 3)
    for verb, args in [
        ("set_result", [1]),
        ("set_exception", [None]),
        ("set_running_or_notify_cancel", []),
    ]:
        with pytest.raises(concurrent.futures.InvalidStateError, match="its outcome from its pool"):
            getattr(future, verb)(*args)  # type: ignore[misc]
    assert future.result(DEADLINE) == 9


# --- what is left to be called


def test_a_callback_may_wait_for_other_futures_and_holds_up_nobody(pool, gate):
    first, called = pool.submit(enter, gate, 9), threading.Event()
    found = []

    def slow(future):
        assert called.wait(DEADLINE)
        found.append(pool.submit(square, future.result()).result(DEADLINE))

    first.add_done_callback(slow)  # if it were done by now, this thread would be the one that waits
    gate.arrival().go()
    assert pool.submit(square, 4).result(DEADLINE) == 16
    called.set()
    eventually(lambda: found == [81], "the callback has its result")


def test_a_callback_that_raises_is_logged(pool, caplog):
    future, after = pool.submit(square, 3), threading.Event()
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(lambda _: after.set())
    assert after.wait(DEADLINE)
    assert "exception calling callback for <Future of job" in caplog.text


THREADS = """
import threading
import prefork
with prefork.ProcessPoolExecutor(1, "fork") as executor:
    for n in range(100):
        assert executor.submit(abs, -n).result() == n
    print(*sorted(thread.name for thread in threading.enumerate()))
"""


def test_no_thread_more_than_a_pool_has(script):
    code, out, err = script(THREADS).finish()
    assert (code, err) == (0, "")
    always = {"MainThread", "prefork-ResultHandler", "prefork-Supervisor"}
    assert always <= set(out.split()) <= always | {"prefork-TimeoutHandler"}


# --- asyncio


def test_asyncio_takes_them(pool, gate):
    async def main():
        loop = asyncio.get_running_loop()
        executor = pool.executor()
        squares = [loop.run_in_executor(executor, square, x) for x in range(50)]
        assert await asyncio.gather(*squares) == [x * x for x in range(50)]
        assert await asyncio.wrap_future(pool.submit(square, 3)) == 9
        with pytest.raises(ValueError, match="text"):
            await loop.run_in_executor(executor, fail, "text")
        blocking = [pool.submit(enter, gate) for _ in range(2)]
        visitors = [await loop.run_in_executor(None, gate.arrival) for _ in blocking]
        waiting = pool.submit(square, 3)
        task = asyncio.wrap_future(waiting)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait, [waiting], DEADLINE)
        assert waiting.cancelled()
        for visitor in visitors:
            visitor.go()

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


def test_futures_of_a_pool_that_a_loop_drives(make_pool):
    pool = make_pool(1, threads=False)
    assert pool.submit(square, 3).result(DEADLINE) == 9

    async def main():
        pool.attach(asyncio.get_running_loop())
        assert await asyncio.wrap_future(pool.submit(square, 4)) == 16
        pool.detach()

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


# --- what is kept


def test_a_result_is_not_kept(pool):
    future = pool.submit(make_large)
    gone = weakref.ref(future.result(DEADLINE))
    weak = weakref.ref(future)
    del future
    eventually(lambda: (gc.collect(), gone(), weak())[1:] == (None, None), "both are gone")


def test_an_interrupted_wait(pool, gate):
    class Interrupted(BaseException):
        pass

    def interrupt(signum, frame):
        raise Interrupted

    def interrupted(wait):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        wait()

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        future = pool.submit(enter, gate, "ran")
        visitor = gate.arrival()
        for how in (future.result, lambda: wait([future]), lambda: list(as_completed([future]))):
            with pytest.raises(Interrupted):
                interrupted(how)
        visitor.go()
        assert future.result(DEADLINE) == "ran"
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_wait_that_was_interrupted_half_way_holds_up_nobody(pool, gate):
    left = [pool.submit(enter, gate, "left") for _ in range(2)]
    visitors = [gate.arrival() for _ in left]
    for future in left:  # as `wait` does, and as it leaves them if it is interrupted there
        future._condition.acquire()
    others = [pool.submit(square, x) for x in range(100)]
    for visitor in visitors:
        visitor.go()
    assert [future.result(DEADLINE) for future in others] == [x * x for x in range(100)]
    assert [future.result(DEADLINE) for future in left] == ["left", "left"]


# --- views


def test_options_hold_for_all_verbs(make_pool, tmp_path):
    pool = make_pool(1)
    limited = pool.options(timeout=0.05)
    for call in (
        lambda: limited.submit(time.sleep, NEVER).result(DEADLINE),
        lambda: limited.apply(time.sleep, (NEVER,)),
        lambda: limited.apply_async(time.sleep, (NEVER,)).get(DEADLINE),
        lambda: limited.map(time.sleep, [NEVER]),
        lambda: list(limited.imap(time.sleep, [NEVER])),
        lambda: limited.executor().submit(time.sleep, NEVER).result(DEADLINE),
        lambda: list(limited.executor().map(time.sleep, [NEVER])),
        lambda: pool.executor().options(timeout=0.05).submit(time.sleep, NEVER).result(DEADLINE),
    ):
        with pytest.raises(TimeLimitExceeded, match=r"time limit of 0\.05 s"):
            call()
    assert repr(limited) == f"<PoolView: timeout=0.05, of {pool!r}>"
    assert pool.submit(time.sleep, 0.1).result(DEADLINE) is None
    with pytest.raises(WorkerLostError):
        pool.submit(die_once, tmp_path / "0").result(DEADLINE)
    again = pool.options(retries=1)
    assert again.submit(die_once, tmp_path / "1").result(DEADLINE) == "survived"
    assert again.options(timeout=DEADLINE).apply(die_once, (tmp_path / "2",)) == "survived"
    with pytest.raises(WorkerLostError):
        again.apply(die_once, (tmp_path / "3",), retries=0)
    with pytest.raises(ValueError, match="timeout must be more than 0"):
        pool.options(timeout=-1)


def test_a_view_of_a_pool_is_shut_down_alone(pool, gate):
    executor = pool.executor()
    mine, others = executor.submit(enter, gate, "mine"), pool.submit(enter, gate, "other")
    visitors = {visitor.value: visitor for visitor in (gate.arrival(), gate.arrival())}
    waiting = [executor.submit(square, x) for x in range(300)]
    assert "301 calls unfinished" in repr(executor)
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 3)
    assert wait(waiting, DEADLINE).done == set(waiting)
    assert all(future.cancelled() for future in waiting)
    ended = threading.Thread(target=executor.shutdown)
    ended.start()
    visitors["mine"].go()
    ended.join(DEADLINE)
    assert mine.result(0) == "mine"
    assert not others.done()
    visitors["other"].go()
    assert others.result(DEADLINE) == "other"
    assert pool.submit(square, 3).result(DEADLINE) == 9


def test_a_pool_lives_as_long_as_its_views():
    view = prefork.Pool(1).options(retries=1)
    assert view.submit(square, 3).result(DEADLINE) == 9
    executor = view.executor()
    del view
    gc.collect()
    assert executor.submit(square, 3).result(DEADLINE) == 9
    with an_unclosed_pool_says_so():
        del executor


def test_the_standard_library_is_not_imported_for_nothing(script):
    code = "import prefork.pool, sys; print('concurrent.futures' in sys.modules)"
    assert script(code).finish() == (0, "False\n", "")


def test_names_are_public():
    assert Future.__module__ == prefork.ProcessPoolExecutor.__module__ == "prefork"
    assert sys.modules["prefork"].Future is Future
