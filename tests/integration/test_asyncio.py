"""Results that are awaited: in asyncio and uvloop, of pools with threads and without."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import os
import signal
import threading
import warnings

import pytest

from gate import enter
from helpers import DEADLINE, eventually, has_ended, log_start
from prefork import Cancelled, Pool, Terminated

SOON = 0.1


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Runs a coroutine in a loop of its own."""
    factory = pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else None

    def run(main):
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(asyncio.wait_for(main, DEADLINE))

    return run


@pytest.fixture(params=[True, False], ids=["threads", "no threads"])
def threads(request):
    return request.param


@pytest.fixture
def pool(make_pool, threads):
    return make_pool(2, threads=threads)


def square(x):
    return x * x


def fail(text):
    raise ValueError(text)


def arrival(gate):
    """The next task at the gate; the loop goes on meanwhile."""
    return asyncio.to_thread(gate.arrival)


async def until(look):
    async with asyncio.timeout(DEADLINE):
        while not look():
            await asyncio.sleep(0.002)


async def awaited(handle):
    return await handle


async def driven(pool):
    """A pool without threads is driven by the loop from the first wait on."""
    assert await pool.submit(square, 0) == 0


async def started(*handles):
    """Tasks that wait for these."""
    tasks = [asyncio.create_task(awaited(handle)) for handle in handles]
    await asyncio.sleep(0)
    return tasks


# --- outcomes


def test_all_handles_can_be_awaited(pool, run):
    async def main():
        assert await pool.submit(square, 3) == 9
        assert await pool.apply_async(square, (4,)) == 16
        assert await pool.map_async(square, range(100), 7) == [x * x for x in range(100)]
        assert await pool.starmap_async(pow, [(2, 3)]) == [8]
        assert [o.value for o in await pool.each_async(square, range(3))] == [0, 1, 4]
        assert await pool.options(timeout=DEADLINE).submit(square, 5) == 25
        assert await pool.executor().submit(square, 6) == 36
        for x in range(200):
            assert await pool.submit(square, x) == x * x
        many = [pool.submit(square, x) for x in range(1000)]
        assert await asyncio.gather(*many) == [x * x for x in range(1000)]

    run(main())


def test_errors_are_those_of_the_task(pool, run):
    async def main():
        for handle in pool.submit(fail, "text"), pool.apply_async(fail, ("text",)):
            for _ in range(2):
                with pytest.raises(ValueError, match="text") as caught:
                    await handle
                assert "in fail" in str(caught.value.__cause__)

    run(main())


def test_a_handle_that_has_finished_was_cancelled_or_terminated(pool, run, gate):
    async def main():
        blocking = [pool.submit(enter, gate, n) for n in range(2)]
        visitors = {(v := await arrival(gate)).value: v for _ in blocking}
        waiting = pool.submit(square, 2)
        assert waiting.cancel()
        with pytest.raises(Cancelled, match="cancelled before it started"):
            await waiting
        assert blocking[0].terminate()
        with pytest.raises(Terminated, match="terminated while it ran"):
            await blocking[0]
        visitors[1].go()
        assert [await blocking[1] for _ in range(3)] == [1] * 3
        return blocking[1]

    assert run(awaited(run(main()))) == 1


def test_a_handle_that_is_cancelled_while_it_is_awaited(pool, run, gate):
    async def main():
        blocking = [pool.submit(enter, gate) for _ in range(2)]
        for _ in blocking:
            await arrival(gate)
        waiting = pool.submit(square, 2)
        (task,) = await started(waiting)
        assert waiting.cancel()
        with pytest.raises(Cancelled):
            await task
        assert not task.cancelled()  # nobody has cancelled this one

    run(main())


def raise_it(error):
    raise error


@pytest.mark.parametrize("error", [asyncio.CancelledError(), StopIteration(), GeneratorExit()])
def test_no_error_of_a_task_is_taken_for_the_loops_own(pool, run, error):
    async def main():
        with pytest.raises(RuntimeError, match=type(error).__name__):
            await pool.submit(raise_it, error)
        with pytest.raises(RuntimeError, match="StopAsyncIteration"):
            await anext(pool.imap(raise_it, [StopAsyncIteration()]))

    run(main())


def test_callbacks_have_run_when_the_handle_is_awaited(pool, run):
    async def main():
        called = []
        for x in range(100):
            await pool.apply_async(square, (x,), callback=called.append)
            assert called[-1] == x * x

    run(main())


def test_the_loop_goes_on_meanwhile(pool, run, gate):
    async def main():
        handle = pool.submit(enter, gate, "ran")
        (task,) = await started(handle)
        visitor = await arrival(gate)  # the loop has run until then
        assert not task.done()
        visitor.go()
        assert await task == "ran"

    run(main())


# --- the end of who waits is the end of the job


async def give_up_by_timeout(handle):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await handle


async def give_up_by_cancel(handle):
    (task,) = await started(handle)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def give_up_by_gather(handle):
    gathered = asyncio.gather(handle)
    await asyncio.sleep(0)
    gathered.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gathered


async def give_up_by_group(handle):
    async def fails_beside_it():
        async with asyncio.TaskGroup() as group:
            group.create_task(awaited(handle))
            await asyncio.sleep(0)
            raise LookupError

    with pytest.raises(ExceptionGroup):
        await fails_beside_it()


async def give_up_by_leaving(handle):
    waiting = awaited(handle)
    waiting.send(None)
    waiting.close()


GIVE_UP = [
    give_up_by_timeout,
    give_up_by_cancel,
    give_up_by_gather,
    give_up_by_group,
    give_up_by_leaving,
]


@pytest.mark.parametrize("give_up", GIVE_UP)
def test_a_running_job_is_killed_and_a_queued_one_never_runs(pool, run, gate, tmp_path, give_up):
    async def main():
        blocking = [pool.submit(enter, gate, n) for n in range(2)]
        visitors = {(v := await arrival(gate)).value: v for _ in blocking}
        log = tmp_path / "log"
        queued = pool.submit(log_start, log, 1)
        await give_up(queued)
        with pytest.raises(Cancelled):
            await queued
        await give_up(blocking[0])
        with pytest.raises(Terminated):
            await blocking[0]
        await until(lambda: has_ended(visitors[0].pid))
        visitors[1].go()
        assert await blocking[1] == 1
        assert await asyncio.gather(*[pool.submit(square, x) for x in range(50)])
        assert not log.exists()

    run(main())


def test_a_map_that_is_given_up(pool, run, gate):
    async def main():
        await driven(pool)
        handle = pool.map_async(enter, [gate] * 50, 1)
        visitors = [await arrival(gate) for _ in range(2)]
        await give_up_by_timeout(handle)
        with pytest.raises(Terminated):
            await handle
        for visitor in visitors:
            await until(lambda pid=visitor.pid: has_ended(pid))
        assert await pool.submit(square, 3) == 9

    run(main())


def test_many_are_given_up_at_once(pool, run, gate, tmp_path):
    async def main():
        blocking = [pool.submit(enter, gate) for _ in range(2)]
        for _ in blocking:
            await arrival(gate)
        log = tmp_path / "log"
        gathered = asyncio.gather(*[pool.submit(log_start, log, n) for n in range(1000)])
        await asyncio.sleep(0)
        gathered.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gathered
        await give_up_by_cancel(asyncio.gather(*blocking))
        assert await pool.submit(square, 3) == 9
        assert not log.exists()

    run(main())


def test_a_shielded_job_goes_on(pool, run, gate):
    async def main():
        handle = pool.submit(enter, gate, "ran")
        visitor = await arrival(gate)
        await give_up_by_timeout(asyncio.shield(handle))
        await give_up_by_cancel(asyncio.shield(handle))
        visitor.go()
        assert await handle == "ran"

    run(main())


def test_a_job_goes_on_while_another_task_waits_for_it(pool, run, gate):
    async def main():
        handle = pool.submit(enter, gate, "ran")
        visitor = await arrival(gate)
        (other,) = await started(handle)
        for give_up in GIVE_UP:
            await give_up(handle)
        visitor.go()
        assert await other == await handle == "ran"

    run(main())


@pytest.mark.parametrize(
    "wait",
    [
        lambda handle: handle.get(DEADLINE),
        lambda handle: concurrent.futures.wait([handle], DEADLINE),
    ],
)
def test_a_job_goes_on_while_a_thread_waits_for_it(make_pool, run, gate, wait):
    pool = make_pool(1)

    async def main():
        handle = pool.submit(enter, gate, "ran")
        visitor = await arrival(gate)
        waiting = asyncio.create_task(asyncio.to_thread(wait, handle))
        await until(handle.is_waited_for)
        await give_up_by_cancel(handle)
        visitor.go()
        await waiting
        assert handle.get(0) == "ran"

    run(main())


def test_a_result_that_arrives_as_its_task_is_cancelled(pool, run):
    """At whichever moment, and nothing else suffers."""

    async def main():
        for n in range(200):
            handle = pool.submit(square, n)
            (task,) = await started(handle)
            for _ in range(n % 8):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                assert await task == n * n
            await until(handle.ready)
            assert handle.cancelled() or isinstance(handle.exception(), Terminated | None)
        assert await pool.submit(square, 3) == 9

    run(main())


# --- loops


def test_loops_one_after_another(pool, run):
    async def main(x):
        assert await pool.submit(square, x) == x * x
        return [r async for r in pool.imap(square, range(10))]

    for x in range(3):
        assert run(main(x)) == [x * x for x in range(10)]
        # With a limit: the loop that has ended is not asked for a timer.
        assert pool.apply(square, (x,), timeout=DEADLINE) == x * x


def test_a_loop_that_is_not_closed_and_another_one(pool):
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        for loop in (first, second, first):
            assert loop.run_until_complete(awaited(pool.submit(square, 3))) == 9
    finally:
        first.close()
        second.close()
    assert pool.apply(square, (3,)) == 9


def test_two_loops_wait_for_one_result(make_pool, run, gate):
    pool = make_pool(1)
    handle = pool.submit(enter, gate, "ran")
    visitor = gate.arrival()
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(run(awaited(handle)))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    visitor.go()
    for thread in threads:
        thread.join(DEADLINE)
    assert found == ["ran"] * 2


def test_without_threads_another_loop_says_so(make_pool, run, gate):
    pool = make_pool(1, threads=False)
    found = []

    def elsewhere(handle):
        try:
            run(awaited(handle))
        except RuntimeError as exc:
            found.append(str(exc))

    async def main():
        assert await pool.submit(square, 3) == 9
        handle = pool.submit(enter, gate, "ran")
        visitor = await arrival(gate)
        await asyncio.to_thread(elsewhere, handle)
        visitor.go()
        assert await handle == "ran"

    run(main())
    assert "another event loop" in found[0]


def test_a_loop_that_is_closed_before_the_result_arrives(pool, gate):
    loop = asyncio.new_event_loop()
    handle = pool.submit(enter, gate, "ran")
    visitor = gate.arrival()
    waiting = awaited(handle)
    loop.call_soon(waiting.send, None)
    loop.run_until_complete(asyncio.sleep(0.01, None) if pool is None else asyncio.sleep(0))
    loop.close()
    visitor.go()
    assert handle.get(DEADLINE) == "ran"
    assert pool.apply(square, (3,)) == 9
    waiting.close()


def test_a_pool_that_is_made_in_a_loop_may_run_loops_in_its_workers(run, threads, context):
    async def main():
        async with Pool(1, context=context, threads=threads) as pool:
            assert await pool.submit(run_a_loop, 3) == 9

    run(main())


def run_a_loop(x):
    async def main():
        await asyncio.sleep(0)
        return square(x)

    return asyncio.run(main())


def test_a_forked_child_is_told_that_the_pool_is_not_its_own(pool, gate):
    handle = pool.submit(enter, gate)
    visitor = gate.arrival()
    if (pid := os.fork()) == 0:
        try:
            asyncio.run(awaited(handle))
        except RuntimeError as exc:
            os._exit(42 if "belongs to the process that made it" in str(exc) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    visitor.go()
    assert handle.get(DEADLINE) is None


def test_await_without_a_loop_says_so(make_pool, gate):
    waiting = awaited(make_pool(1).submit(enter, gate))
    gate.arrival()
    with pytest.raises(RuntimeError, match="no event loop"):
        waiting.send(None)


# --- what would hold up the loop


def test_a_get_in_a_loop_says_that_it_blocks(pool, run, gate):
    def let_go(caught):
        # Not sooner: a result that is ready before it is asked for holds up nobody.
        visitor = gate.arrival()
        try:
            eventually(lambda: len(caught), "somebody waits")
        finally:
            visitor.go()

    async def main():
        for wait in (
            lambda: pool.submit(enter, gate, 9).result(),
            lambda: pool.submit(enter, gate, 9).get(),
            lambda: next(pool.imap(functools.partial(enter, gate), [9])),
            lambda: pool.apply(enter, (gate, 9)),
        ):
            with warnings.catch_warnings(record=True, action="always") as caught:
                opening = threading.Thread(target=let_go, args=[caught])
                opening.start()
                assert wait() == 9
                opening.join()
            assert [(w.category, w.filename) for w in caught] == [(RuntimeWarning, __file__)]
            assert "holds up the event loop" in str(caught[0].message)

    run(main())


def test_a_result_that_is_ready_can_be_got_in_a_loop(pool, run):
    async def main():
        handle, many = pool.submit(square, 3), pool.map_async(square, range(3))
        await asyncio.gather(handle, many)
        assert (handle.get(), handle.result(), many.get()) == (9, 9, [0, 1, 4])
        late = pool.submit(signal.pause)
        with pytest.raises(concurrent.futures.TimeoutError):
            late.result(0)  # that does not wait

    run(main())


def test_callbacks_may_wait(pool, run):
    async def main():
        await driven(pool)
        waits = asyncio.Event()
        loop = asyncio.get_running_loop()

        def call_back(x):
            assert pool.apply(square, (x,)) == 81
            loop.call_soon_threadsafe(waits.set)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pool.apply_async(square, (3,), callback=call_back)
            await waits.wait()

    run(main())


PLAIN = """
import sys
import prefork
with prefork.Pool(1) as pool:
    assert pool.map(abs, [-1]) == [1]
    assert pool.submit(abs, -1).result() == 1
    assert list(pool.imap(abs, [-1])) == [1]
    assert not pool.apply(eval, ("'asyncio' in __import__('sys').modules",))
assert "asyncio" not in sys.modules
"""


def test_who_does_not_use_asyncio_does_not_import_it(script):
    assert script(PLAIN).finish() == (0, "", "")


# --- async for


@pytest.mark.parametrize("verb", ["imap", "imap_unordered"])
@pytest.mark.parametrize("chunksize", [1, 7])
def test_results_one_by_one(pool, run, verb, chunksize):
    async def main():
        results = getattr(pool, verb)(square, range(3000), chunksize)
        found = [result async for result in results]
        assert sorted(found) == [x * x for x in range(3000)]
        assert verb == "imap_unordered" or found == sorted(found)
        with pytest.raises(StopAsyncIteration):
            await anext(results)

    run(main())


def test_an_item_that_fails_and_an_input_that_does(pool, run):
    def items():
        yield from [1, 2]
        raise LookupError("of the input")

    async def main():
        results = pool.imap(pow, iter([(1,), (2,)]))
        with pytest.raises(TypeError):
            await anext(results)
        results = pool.imap(square, items())
        assert [await anext(results), await anext(results)] == [1, 4]
        with pytest.raises(LookupError, match="of the input"):
            await anext(results)
        with pytest.raises(StopAsyncIteration):
            await anext(results)

    run(main())


def test_other_tasks_get_their_turn_while_all_results_are_there(pool, run):
    async def main():
        await driven(pool)
        results = pool.imap(square, range(500), buffersize=500)
        await until(lambda: results.items.arrived == 500)
        turns = []

        async def count():
            while True:
                turns.append(1)
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        assert len([result async for result in results]) == 500
        counting.cancel()
        assert len(turns) >= 5

    run(main())


def test_several_tasks_share_one_iterator(pool, run):
    async def main():
        results = pool.imap(square, range(500))

        async def consume():
            return [result async for result in results]

        found = await asyncio.gather(consume(), consume(), consume())
        assert sorted(itertools.chain(*found)) == [x * x for x in range(500)]

    run(main())


@pytest.mark.parametrize("verb", ["imap", "imap_unordered"])
@pytest.mark.parametrize("end", ["cancel", "aclose"])
def test_what_nobody_takes_any_more_is_ended(pool, run, gate, verb, end):
    async def main():
        await driven(pool)
        results = getattr(pool, verb)(enter, [gate] * 1000)
        visitors = [await arrival(gate) for _ in range(2)]
        task = asyncio.create_task(anext(results))
        await asyncio.sleep(0)
        if end == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await results.aclose()
            with pytest.raises(StopAsyncIteration):
                await task
        for visitor in visitors:
            await until(lambda pid=visitor.pid: has_ended(pid))
        with pytest.raises(StopAsyncIteration):
            await anext(results)
        assert await pool.submit(square, 3) == 9

    run(main())


def test_an_iterator_goes_on_while_another_task_waits_at_it(pool, run, gate):
    async def main():
        await driven(pool)
        results = pool.imap(enter, [gate])
        visitor = await arrival(gate)
        first, second = (asyncio.create_task(anext(results)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        visitor.go()
        assert await second is None

    run(main())


# --- async iterables


class Source:
    """An async iterable that notes what was read of it, and that it was closed."""

    def __init__(self, count, fail_at=None):
        self.count, self.fail_at = count, fail_at
        self.read, self.is_closed = 0, False

    async def __aiter__(self):
        try:
            for x in range(self.count):
                if x == self.fail_at:
                    raise LookupError("of the input")
                self.read += 1
                yield x
                if x % 50 == 0:
                    await asyncio.sleep(0)
        finally:
            self.is_closed = True


@pytest.mark.parametrize("verb", ["imap", "imap_unordered"])
@pytest.mark.parametrize("chunksize", [1, 7])
def test_an_async_iterable_is_an_input(pool, run, verb, chunksize):
    async def main():
        source = Source(1000)
        results = getattr(pool, verb)(square, source, chunksize)
        assert sorted([r async for r in results]) == [x * x for x in range(1000)]
        assert source.is_closed
        results = getattr(pool, verb)(square, Source(1000, 500), chunksize)
        found = [await anext(results) for _ in range(500)]
        assert sorted(found) == [x * x for x in range(500)]
        with pytest.raises(LookupError, match="of the input"):
            await anext(results)

    run(main())


def test_it_is_read_no_further_ahead_than_there_is_room(pool, run):
    async def main():
        source, taken = Source(10**9), 0
        results = pool.imap(square, source, buffersize=20)
        async for _ in results:
            taken += 1
            assert source.read <= taken + 20
            if taken == 200:
                break
        del results
        await until(lambda: source.is_closed)
        assert source.read <= taken + 21

    run(main())


class Never:
    """It keeps who reads it waiting, and notes when that has an end."""

    def __init__(self):
        self.ended = False

    async def __aiter__(self):
        yield 3
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.ended = True


@pytest.mark.parametrize("leave", ["drop", "aclose", "terminate"])
def test_an_input_that_keeps_us_waiting_is_left(pool, run, leave):
    async def main():
        source = Never()
        results = pool.imap(square, source)
        assert await anext(results) == 9
        if leave == "aclose":
            await results.aclose()
        elif leave == "terminate":
            waiting = asyncio.create_task(anext(results))
            await asyncio.sleep(0)
            async with pool:
                pass
            with pytest.raises(Terminated):
                await waiting
        results = None
        await until(lambda: source.ended)

    run(main())


def test_a_pool_that_is_closed_reads_it_to_its_end(pool, run):
    async def main():
        source = Source(500)
        results = pool.imap(square, source, buffersize=5)
        await pool.aclose()
        assert source.is_closed
        assert [r async for r in results] == [x * x for x in range(500)]

    run(main())


def test_a_thread_may_take_the_results(make_pool, run):
    pool = make_pool(2)

    async def main():
        results = pool.imap(square, Source(500), buffersize=5)
        found = await asyncio.to_thread(list, results)
        assert found == [x * x for x in range(500)]

    run(main())


def test_who_would_wait_for_ever_is_told(pool, run):
    async def main():
        results = pool.imap(square, Source(3))
        with pytest.raises(RuntimeError, match="async for"):
            next(results)
        assert [r async for r in results] == [0, 1, 4]
        return results

    run(main())
    with pytest.raises(RuntimeError, match="where one runs"):
        pool.imap(square, Source(3))


@pytest.mark.parametrize("end", ["run", "close"])
def test_the_loop_that_reads_it_ends(make_pool, end):
    pool = make_pool(1)
    source = Never()

    async def main():
        results = pool.imap(square, source)
        assert await anext(results) == 9
        return results

    loop = asyncio.new_event_loop()
    results = loop.run_until_complete(main())
    if end == "run":  # as asyncio.run ends one
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(until(lambda: source.ended))
    loop.close()
    pool.close()
    assert pool.join(DEADLINE)
    with pytest.raises(RuntimeError, match="not read to its end"):
        next(results)


# --- async with, and the end of a pool


def test_the_loop_goes_on_while_a_pool_ends(run, threads, gate):
    async def main():
        turns = []

        async def count():
            while True:
                turns.append(1)
                await asyncio.sleep(0)

        async with Pool(2, threads=threads) as pool:
            running = pool.submit(enter, gate)
            visitor = await arrival(gate)
            counting = asyncio.create_task(count())
            before = len(turns)
        assert len(turns) > before  # how many, is up to the machine
        counting.cancel()
        assert has_ended(visitor.pid)
        with pytest.raises(Terminated):
            await running
        with pytest.raises(ValueError, match="takes no more jobs"):
            async with pool:
                pass

    run(main())


def test_a_pool_ends_though_its_end_is_cancelled(run, threads, gate):
    async def leave(pool, begun):
        async with pool:
            begun.set()

    async def main():
        pool, begun = Pool(1, threads=threads), asyncio.Event()
        running = pool.submit(enter, gate)
        visitor = await arrival(gate)
        task = asyncio.create_task(leave(pool, begun))
        await begun.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        with pytest.raises(Terminated):
            await running
        await until(lambda: has_ended(visitor.pid))
        await pool.__aexit__(None, None, None)

    run(main())


def test_aclose_waits_for_all_that_there_is_to_do(run, threads, gate):
    before = set(threading.enumerate())
    called = []

    async def main():
        pool = Pool(2, threads=threads)
        running = pool.apply_async(enter, (gate, "ran"), callback=called.append)
        queued = [pool.submit(square, x) for x in range(100)]
        visitor = await asyncio.to_thread(gate.arrival)
        closing = asyncio.create_task(pool.aclose())
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="closed"):
            pool.submit(square, 3)
        visitor.go()
        await closing
        assert called == ["ran"]
        assert [handle.get(0) for handle in queued] == [x * x for x in range(100)]
        assert running.ready()
        await pool.aclose()

    run(main())
    assert not [t for t in set(threading.enumerate()) - before if "asyncio" not in t.name]


def test_a_worker_that_dies_fails_the_awaited_job_only(pool, run, gate):
    async def main():
        handle = pool.submit(enter, gate)
        visitor = await arrival(gate)
        others = await started(*[pool.submit(square, x) for x in range(20)])
        os.kill(visitor.pid, signal.SIGKILL)
        with pytest.raises(Exception, match="was killed by SIGKILL"):
            await handle
        assert await asyncio.gather(*others) == [x * x for x in range(20)]

    run(main())


def test_nothing_is_kept_of_what_was_awaited(pool, run):
    async def main():
        handle = pool.submit(enter, None)  # fails
        with contextlib.suppress(Exception):
            await handle
        for _ in range(100):
            await pool.submit(square, 3)
        assert not handle.is_waited_for()

    run(main())
    eventually(lambda: "unfinished" not in repr(pool), "all jobs have ended")
