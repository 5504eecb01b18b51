"""Results that are awaited in tasks of anyio: over asyncio, and over trio."""

from __future__ import annotations

import asyncio

import pytest

from gate import enter
from helpers import has_ended
from prefork import Pool, Terminated

anyio = pytest.importorskip("anyio")


@pytest.fixture(params=["asyncio", "trio"])
def backend(request):
    pytest.importorskip(request.param)
    return request.param


def square(x):
    return x * x


def test_results_arrive(backend):
    async def main():
        async with Pool(2) as pool:
            found = {}

            async def work(x):
                found[x] = await pool.submit(square, x)

            async with anyio.create_task_group() as group:
                for x in range(100):
                    group.start_soon(work, x)
            assert found == {x: x * x for x in range(100)}
            assert await pool.map_async(square, range(10)) == [x * x for x in range(10)]
            results = pool.imap(square, range(500))
            assert [r async for r in results] == [x * x for x in range(500)]
            await pool.aclose()

    anyio.run(main, backend=backend)


def test_a_scope_that_is_cancelled_ends_its_jobs(backend, gate):
    async def main():
        async with Pool(2) as pool:
            handle, results = pool.submit(enter, gate), pool.imap(enter, [gate] * 10)
            visitors = [await anyio.to_thread.run_sync(gate.arrival) for _ in range(2)]

            async def take_all():
                async for _ in results:
                    pass

            with anyio.move_on_after(0.01) as scope:
                await handle
            assert scope.cancelled_caught
            async with anyio.create_task_group() as group:
                group.start_soon(take_all)
                await anyio.sleep(0)
                group.cancel_scope.cancel()
            for visitor in visitors:
                while not has_ended(visitor.pid):
                    await anyio.sleep(0.002)
            with pytest.raises(Terminated):
                await handle
            assert await pool.submit(square, 3) == 9

    anyio.run(main, backend=backend)


def test_a_scope_that_is_cancelled_ends_a_pool_in_it(backend, gate):
    async def main():
        with anyio.CancelScope() as scope:
            async with Pool(1) as pool:
                handle = pool.submit(enter, gate)
                visitor = await anyio.to_thread.run_sync(gate.arrival)
                scope.cancel()
                await handle
        return pool, visitor

    pool, visitor = anyio.run(main, backend=backend)
    pool.terminate()
    assert has_ended(visitor.pid)


def test_what_trio_cannot_do_says_so(make_pool):
    trio = pytest.importorskip("trio")

    async def items():
        yield 1

    async def main():
        with pytest.raises(RuntimeError, match="async iterable is read by asyncio's"):
            pool.imap(square, items())
        with pytest.raises(RuntimeError, match="not by trio"):
            await without.submit(square, 3)

    pool, without = make_pool(1), make_pool(1, threads=False)
    trio.run(main)


def test_trio_may_be_a_guest_of_asyncio(make_pool):
    trio = pytest.importorskip("trio")
    pool = make_pool(1)

    async def guest():
        return await pool.submit(square, 3)

    async def main():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        assert await pool.submit(square, 4) == 16
        return (await done).unwrap()

    assert asyncio.run(main()) == 9
