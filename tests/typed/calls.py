"""Calls as users write them, for type checkers: mypy and pyright must refuse the lines that are
marked as wrong, and no other. The tests also run those that are to be accepted: all of them are
right."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import multiprocessing.pool
import operator
import os
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Executor, Future
from typing import Any, Literal, TypedDict, TypeVar, assert_type

import prefork
from prefork import ApplyResult, IMapIterator, IMapUnorderedIterator, MapResult, Outcome, Pool

T = TypeVar("T")
U = TypeVar("U")


class Settings(TypedDict):
    size: int


def double(x: int) -> int:
    return 2 * x


def many(a: int, b: int, c: int, d: int, e: int, f: int, g: int, h: str) -> str:
    return h * (a + b + c + d + e + f + g)


def some(x: int, y: str = "", *, z: int = 1) -> float:
    return x + len(y) + z + 0.5


def both(x: int, y: str) -> str:
    return y * x


def added(x: int, y: int) -> int:
    return x + y


def most(*numbers: int) -> str:
    return str(max(numbers, default=0))


def options(x: int, **names: str) -> bytes:
    return bytes(x + len(names))


def either(x: int | str) -> bytes:
    return str(x).encode()


def maybe(x: int | None, y: float = 0) -> bytes:
    return bytes(int((x or 0) + y))


def nothing() -> None:
    pass


def configured(settings: dict[str, object], weights: list[float] = []) -> int:  # noqa: B006
    return len(settings) + len(weights)


def sized(settings: Settings) -> int:
    return settings["size"]


def moved(side: Literal["left", "right"], by: int = 1) -> int:
    return by if side == "right" else -by


def placed(point: tuple[float, str]) -> float:
    return point[0]


def total(numbers: Sequence[float]) -> float:
    return sum(numbers)


def same(x: T) -> T:
    return x


def use(*_: object, **__: object) -> None:
    pass


class Model:
    def __init__(self, x: int, y: int = 0) -> None:
        self.x = x + y

    def __call__(self, x: int) -> str:
        return str(x + self.x)

    def scaled(self, x: int) -> float:
        return x * self.x / 2

    @classmethod
    def of(cls, x: int) -> Model:
        return cls(x)

    @staticmethod
    def name(x: int) -> str:
        return str(x)


# --- accepted, and run


def single_calls(pool: Pool) -> None:
    assert_type(pool.apply(double, (1,)), int)
    assert_type(pool.apply_async(double, (1,)), ApplyResult[int])
    assert_type(pool.apply_async(double, (1,)).get(), int)
    assert_type(pool.apply_async(double, args=(1,)).get(30), int)
    assert_type(pool.apply(double, [1]), int)
    assert_type(pool.apply(both, [1, "a"]), str)
    assert_type(pool.apply(double, iter([1])), int)
    assert_type(pool.apply(double, range(1)), int)
    assert_type(pool.apply(double, {1}), int)
    assert_type(pool.apply(both, dict.fromkeys((1, "a"))), str)
    assert_type(pool.apply(double, (True,)), int)
    assert_type(pool.apply(nothing), None)
    assert_type(pool.apply(nothing, ()), None)
    assert_type(pool.apply(nothing, []), None)
    assert_type(pool.apply(some, (1,)), float)
    assert_type(pool.apply(some, (1, "a")), float)
    assert_type(pool.apply(some, (1,), {"z": 2}), float)
    assert_type(pool.apply(some, (1,), kwds={"z": 2}), float)
    assert_type(pool.apply(some, kwds={"x": 2}), float)
    assert_type(pool.apply(some, (1,), {}), float)
    assert_type(pool.apply(options, (1,), {"a": "b"}), bytes)
    assert_type(pool.apply(options, (1,)), bytes)
    assert_type(pool.apply(most), str)
    assert_type(pool.apply(most, (1, 2, 3)), str)
    assert_type(pool.apply(maybe, (None, 1)), bytes)
    assert_type(pool.apply(either, ("a",)), bytes)
    assert_type(pool.apply(same, ("a",)), str)
    assert_type(pool.apply(total, ([1, 2],)), float)
    assert_type(pool.apply(total, ((1, 2),)), float)
    assert_type(pool.apply(configured, ({"a": 1},)), int)
    assert_type(pool.apply(configured, ({"a": 1, "b": "c"}, [1])), int)
    assert_type(pool.apply(sized, ({"size": 1},)), int)
    assert_type(pool.apply(moved, ("left",)), int)
    assert_type(pool.apply(placed, ((1, "a"),)), float)
    assert_type(pool.apply(double, (1,), timeout=9, soft_timeout=8.5, retries=1), int)
    assert_type(pool.apply(double, (1,), timeout=None), int)
    assert_type(pool.apply(double, (1,), {}, timeout=math.inf), int)


def callbacks(pool: Pool) -> None:
    floats: list[float] = []
    future: Future[int] = Future()
    assert_type(pool.apply_async(double, (1,), callback=future.set_result).get(), int)
    assert_type(pool.apply_async(double, (1,), callback=floats.append).get(), int)
    assert_type(pool.apply_async(double, (1,), callback=lambda x: use(x.bit_length())).get(), int)
    assert_type(pool.apply_async(double, (1,), {}, use, use, use, use).get(), int)
    assert_type(
        pool.apply_async(double, (1,), {}, None, None, None, None, True, 8, 9, 1).get(), int
    )
    assert_type(pool.apply_async(some, [1], {"z": 2}, callback=floats.append).get(), float)
    assert_type(pool.apply_async(some, kwds={"x": 2}, callback=floats.append).get(), float)
    assert_type(pool.apply_async(nothing, callback=use, error_callback=use).get(), None)
    assert_type(pool.apply_async(double, (1,), error_callback=failed).get(), int)
    assert_type(pool.apply_async(double, (1,), accept_callback=accepted).get(), int)
    assert_type(pool.apply_async(double, (1,), timeout_callback=late, timeout=9).get(), int)
    assert_type(pool.apply_async(double, (1,), waitforslot=True).get(), int)
    assert_type(pool.apply_async(double, (1,), lost_worker_timeout=1.5).get(), int)
    assert_type(pool.map_async(double, [1], callback=floats.extend).get(), list[int])
    assert_type(pool.map_async(double, [1], None, listed, failed).get(), list[int])
    assert_type(pool.starmap_async(both, [(1, "a")], 1, use, use).get(), list[str])


def failed(error: Exception) -> None:
    pass


def accepted(pid: int, since: float) -> None:
    pass


def late(soft: bool, timeout: float) -> None:
    pass


def listed(numbers: list[int]) -> None:
    pass


def maps(pool: Pool) -> None:
    assert_type(pool.map(double, [1, 2]), list[int])
    assert_type(pool.map(double, (1, 2)), list[int])
    assert_type(pool.map(double, range(3), 2), list[int])
    assert_type(pool.map(double, range(3), progress=True), list[int])
    assert_type(pool.options(timeout=3).imap(double, range(3), progress="all"), IMapIterator[int])
    assert_type(pool.map(double, {1: "a"}, chunksize=1), list[int])
    assert_type(pool.map(double, (x for x in range(3)), timeout=9, retries=1), list[int])
    assert_type(pool.map(double, []), list[int])
    assert_type(pool.map(some, [1]), list[float])
    assert_type(pool.map(most, [1]), list[str])
    assert_type(pool.map(total, [[1], [2.5]]), list[float])
    assert_type(pool.map(total, [[], (1, 2)]), list[float])
    assert_type(pool.map(maybe, [1, None]), list[bytes])
    assert_type(pool.map(either, [1, "a"]), list[bytes])
    assert_type(pool.map(either, (1, "a")), list[bytes])
    assert_type(pool.map(configured, [{"a": 1}, {"b": "c"}, {}]), list[int])
    assert_type(pool.map(sized, [{"size": 1}]), list[int])
    assert_type(pool.map(moved, ["left", "right"]), list[int])
    assert_type(pool.map(placed, [(1, "a")]), list[float])
    assert_type(pool.map(placed, ((x, "a") for x in range(2))), list[float])
    assert_type(pool.map(same, ["a"]), list[str])
    assert_type(pool.map_async(double, [1]), MapResult[int])
    assert_type(pool.map_async(double, [1]).get(30), list[int])
    assert_type(pool.map_async(either, [1, "a"], 1).get(), list[bytes])
    assert_type(pool.imap(double, [1]), IMapIterator[int])
    assert_type(list(pool.imap(double, [1], 1, None, buffersize=9)), list[int])
    assert_type(next(pool.imap(double, [1])), int)
    assert_type(pool.imap(double, [1]).next(timeout=30), int)
    assert_type([*pool.imap(either, [1, "a"])], list[bytes])
    assert_type(pool.imap_unordered(double, [1]), IMapUnorderedIterator[int])
    assert_type(sorted(pool.imap_unordered(some, itertools.repeat(1, 3), timeout=9)), list[float])
    assert_type(dict(pool.imap_unordered(divided, range(3))), dict[int, int])
    assert_type(list(zip("ab", pool.imap(double, [1, 2]))), list[tuple[str, int]])  # noqa: B905


def divided(x: int) -> tuple[int, int]:
    return divmod(x, 2)


def starmaps(pool: Pool) -> None:
    assert_type(pool.starmap(both, [(1, "a"), (2, "b")]), list[str])
    assert_type(pool.starmap(both, [[1, "a"]]), list[str])
    assert_type(pool.starmap(both, zip([1], ["a"])), list[str])  # noqa: B905
    assert_type(pool.starmap(both, {1: "a"}.items(), 1), list[str])
    assert_type(pool.starmap(both, enumerate(["a"]), chunksize=2, timeout=9), list[str])
    assert_type(pool.starmap(both, ((x, "a") for x in range(2))), list[str])
    assert_type(pool.starmap(added, itertools.product([1], [2])), list[int])
    assert_type(pool.starmap(added, itertools.pairwise([1, 2, 3])), list[int])
    assert_type(pool.starmap(added, ([1, 2], (3, 4))), list[int])
    assert_type(pool.starmap(added, (range(2) for _ in range(3))), list[int])
    assert_type(pool.starmap(some, [(1, "a"), (3, "b")]), list[float])
    assert_type(pool.starmap(some, [(1,)]), list[float])
    assert_type(pool.starmap(most, [(1, 2), (3,)]), list[str])
    assert_type(pool.starmap(maybe, [(None, 1), (3, 1.5)]), list[bytes])
    assert_type(pool.starmap(moved, [("left", 1), ("right", 2)]), list[int])
    assert_type(pool.starmap(configured, [({"a": 1},)]), list[int])
    assert_type(pool.starmap(configured, [({"a": 1}, [1])]), list[int])
    assert_type(pool.starmap_async(both, [(1, "a")]), MapResult[str])
    assert_type(pool.starmap_async(both, [(1, "a")]).get(30), list[str])


def all_kinds_of_functions(pool: Pool) -> None:
    model = Model(1)
    assert_type(pool.apply(Model, (1,)), Model)
    assert_type(pool.apply(Model, (1, 2)), Model)
    assert_type(pool.apply(model, (1,)), str)
    assert_type(pool.apply(model.scaled, (1,)), float)
    assert_type(pool.apply(Model.of, (1,)), Model)
    assert_type(pool.apply(Model.name, (1,)), str)
    assert_type(pool.apply(Model.scaled, (model, 1)), float)
    assert_type(pool.apply(functools.partial(both, 1), ("a",)), str)
    assert_type(pool.apply(functools.partial(both, 1, "a")), str)
    assert_type(pool.apply(functools.partial(both, y="a"), (1,)), str)
    assert_type(pool.apply(len, ("a",)), int)
    assert_type(pool.apply(int, ("1",)), int)
    assert_type(pool.apply(str, (1,)), str)
    assert_type(pool.apply(abs, (-1,)), int)
    assert_type(pool.apply(max, (1, 2)), int)
    assert_type(pool.apply(max, ([1, 2],)), int)
    assert_type(pool.apply(sorted, ([1],)), list[int])
    assert_type(pool.apply(math.sqrt, (1,)), float)
    assert_type(pool.apply(os.getpid), int)
    assert_type(pool.apply(os.path.join, ("a", "b")), str)
    assert_type(pool.apply(str.upper, ("a",)), str)
    assert_type(pool.apply("-".join, (["a"],)), str)
    assert_type(pool.apply(print, ("", "", ""), {"end": ""}), None)
    use(pool.apply(pow, (1, 2)), pool.apply(round, (1.5,)), pool.apply(operator.add, (1, 2)))
    counts: dict[str, int] = pool.apply(dict, kwds={"a": 1})
    use(counts, pool.apply(dict), pool.apply(dict, ([("a", 1)],)), pool.apply(range, (1, 2)))
    assert_type(pool.map(Model, [1]), list[Model])
    assert_type(pool.map(model, [1]), list[str])
    assert_type(pool.map(model.scaled, [1]), list[float])
    assert_type(pool.map(functools.partial(both, 1), ["a"]), list[str])
    assert_type(pool.map(functools.partial(both, y="a"), [1]), list[str])
    assert_type(pool.map(len, ["a"]), list[int])
    assert_type(pool.map(int, "123"), list[int])
    assert_type(pool.map(str, [1, "a", None]), list[str])
    assert_type(pool.map(float, ["1", 2]), list[float])
    assert_type(pool.map(abs, range(3)), list[int])
    assert_type(pool.map(max, [[1, 2]]), list[int])
    assert_type(pool.map(sorted, [[1, 2]]), list[list[int]])
    assert_type(pool.map(math.sqrt, [1]), list[float])
    assert_type(pool.map(os.path.basename, ["a"]), list[str])
    assert_type(pool.map(str.upper, ["a"]), list[str])
    assert_type(pool.map(list, ["a"]), list[list[str]])
    assert_type(pool.map(bool, [1]), list[bool])
    use(pool.map(sum, [[1]]), pool.map(dict, [[("a", 1)]]), pool.map(operator.itemgetter(0), ["a"]))
    use(pool.map(os.listdir, ["."]), pool.map(os.stat, ["."]), pool.map(round, [1.5]))
    assert_type(pool.starmap(max, [(1, 2)]), list[int])
    use(pool.starmap(pow, [(1, 2), (3, 4)]), pool.starmap(os.path.join, [("a", "b"), ("a", "b")]))


def what_is_only_known_in_part(
    pool: Pool,
    anything: Any = double,
    function: Callable[..., int] = double,
    one: Callable[[int], str] = str,
    numbers: tuple[int, ...] = (1,),
    row: tuple[Any, ...] = (1,),
    sequence: Sequence[int] = (1,),
    iterable: Iterable[Any] = (1,),
    objects: Iterable[object] = (1,),
    long: tuple[Any, ...] = (*range(7), "a"),
    named: Mapping[str, object] = {},
    settings: list[Any] = [1],  # noqa: B006
) -> None:
    assert_type(pool.apply(anything, (1,)), Any)
    assert_type(pool.apply(anything, settings), Any)
    assert_type(pool.map(anything, settings), list[Any])
    assert_type(pool.apply(function, (1,)), int)
    assert_type(pool.apply(function, objects), int)
    assert_type(pool.apply(function, (1,), named), int)
    assert_type(pool.map(function, objects), list[int])
    assert_type(pool.starmap(function, [(1,)]), list[int])
    assert_type(pool.apply(one, (1,)), str)
    assert_type(pool.apply(double, numbers), int)
    assert_type(pool.apply(double, row), int)
    assert_type(pool.apply(both, (*row, "a")), str)
    assert_type(pool.apply(many, long), str)
    assert_type(pool.apply(many, (1, 2, 3, 4, 5, 6, 7, "a")), str)
    assert_type(pool.starmap(many, [long]), list[str])
    assert_type(pool.apply(double, sequence), int)
    assert_type(pool.apply(double, iterable), int)
    assert_type(pool.apply(double, iter(iterable)), int)
    assert_type(pool.apply(most, numbers), str)
    assert_type(pool.apply(double, settings, dict(named)), int)
    assert_type(pool.apply_async(double, numbers).get(), int)
    assert_type(pool.apply_async(double, iterable).get(), int)
    assert_type(pool.map(double, settings), list[int])
    assert_type(pool.starmap(double, [numbers]), list[int])
    assert_type(pool.starmap(double, [row]), list[int])
    assert_type(pool.starmap(double, [iterable]), list[int])
    assert_type(through(pool, double, [1]), list[int])
    assert_type(handle_of(pool, both, 1, "a"), str)


def through(pool: Pool, function: Callable[[T], U], items: Iterable[T]) -> list[U]:
    return list(pool.imap(function, items))


def handle_of(pool: Pool, function: Callable[..., T], *args: object, **kwds: object) -> T:
    return pool.apply_async(function, args, kwds).get()


def wider_types(pool: Pool) -> None:
    number: float = pool.apply(double, (1,))
    numbers: list[float] = pool.map(double, [1])
    handle: ApplyResult[float] = pool.apply_async(double, (1,))
    listed: MapResult[float] = pool.map_async(double, [1])
    iterator: Iterator[float] = pool.imap(double, [1])
    results: Iterable[float] = pool.imap_unordered(double, [1])
    handles: list[ApplyResult[str]] = [pool.apply_async(both, (1, "a")) for _ in range(2)]
    use(number, numbers, handle.get(), listed.get(), list(iterator), list(results))
    assert_type([each.get() for each in handles], list[str])


def in_the_place_of_the_standard_library(pool: Pool) -> None:
    assert_type(handed_to(pool), int)
    standard: multiprocessing.pool.AsyncResult[int] = pool.apply_async(double, (1,))
    listed: multiprocessing.pool.MapResult[int] = pool.map_async(double, [1])
    iterator: multiprocessing.pool.IMapIterator[int] = pool.imap(double, [1])
    use(standard.get(), listed.get(), list(iterator))
    with OtherPool(1) as other:
        assert_type(other.map(double, [1]), list[int])
    with prefork.get_context("fork").Pool(1) as third:
        assert_type(third.map(double, [1]), list[int])


def handed_to(pool: multiprocessing.pool.Pool) -> int:
    assert isinstance(pool, multiprocessing.pool.Pool)
    return pool.apply(double, (1,))


class OtherProcess(Pool.Process):
    pass


class OtherHandler(Pool.ResultHandler):
    def body(self) -> None:
        super().body()


class OtherPool(Pool):
    Process = OtherProcess
    ResultHandler = OtherHandler

    def __init__(self, processes: int) -> None:
        super().__init__(processes, timeout=30)

    def terminate(self) -> None:
        super().terminate()


def the_rest(pool: Pool) -> None:
    outcomes = pool.each_async(either, [1, "a"]).get()
    assert_type(outcomes, list[Outcome])
    use(*(outcome.value for outcome in outcomes if outcome.ok))
    use(pool.statistics().workers[0].pid + pool.processes)
    try:
        pool.apply(divmod, (1, 0))
    except prefork.LimitExceeded as error:
        use(error.limit, error.job, error.stack)
    except prefork.WorkerLostError as error:
        use(error.pid, error.exitcode)
    except ZeroDivisionError:
        pass


def futures(pool: Pool) -> None:
    future = pool.submit(double, 1)
    assert_type(future, prefork.Future[int])
    assert_type(future.result(3), int)
    assert_type(future.get(), int)
    future.add_done_callback(print)
    use(future.exception())
    standard: Future[int] = future
    handle: ApplyResult[int] = future
    use(standard, handle)
    assert_type(pool.submit(some, 1, y="a", z=2).result(), float)
    assert_type(pool.submit(options, 1, timeout="a").result(), bytes)
    limited = pool.options(timeout=3, retries=1)
    assert_type(limited.submit(double, x=1).result(), int)
    assert_type(limited.apply_async(double, (1,)).get(), int)
    assert_type(limited.map(double, [1]), list[int])
    retry = prefork.Retry(3, on=(ConnectionError, KeyError), backoff=0.1, jitter=1)
    urgent = limited.options(retries=retry, priority=-1, deadline=9.5)
    assert_type(urgent.submit(double, 1).result(), int)
    assert_type(urgent.submit(double, 1).attempts, tuple[prefork.Attempt, ...])
    assert_type(pool.apply(double, (1,), retries=retry), int)
    for attempt in pool.apply_async(double, (1,), retries=2).attempts:
        assert_type(attempt.error, BaseException)
    executor = pool.executor()
    assert_type(executor.submit(double, 1).result(), int)
    assert_type(executor.options(timeout=3).submit(double, 1).result(), int)
    assert_type(executor.options(priority=3, deadline=3).submit(double, 1).result(), int)
    assert_type(list(executor.map(double, [1], timeout=3)), list[int])
    any_executor: Executor = executor
    with prefork.ProcessPoolExecutor(1, timeout=3) as own:
        assert_type(own.submit(double, 1).result(), int)
        assert_type(own.pool, Pool)
        any_executor = own
        use(any_executor)


async def awaits(pool: Pool) -> None:
    assert_type(await pool.submit(double, 1), int)
    assert_type(await pool.apply_async(double, (1,)), int)
    assert_type(await pool.map_async(double, [1]), list[int])
    assert_type(await pool.options(timeout=3).submit(some, 1, y="a"), float)
    awaitable: Awaitable[int] = pool.submit(double, 1)
    pair = await asyncio.gather(awaitable, pool.submit(some, 1, y="a"))
    assert_type(pair, tuple[int, float])
    assert_type([each async for each in pool.imap(double, [1])], list[int])
    results = pool.imap_unordered(double, numbers())
    assert_type(await anext(results), int)
    await results.aclose()
    async with Pool(1) as other:
        assert_type(other, Pool)
        await other.aclose()


async def numbers() -> AsyncIterator[int]:
    yield 1


def asynchronous(pool: Pool) -> None:
    asyncio.run(awaits(pool))


ACCEPTED = [
    single_calls,
    futures,
    asynchronous,
    callbacks,
    maps,
    starmaps,
    all_kinds_of_functions,
    what_is_only_known_in_part,
    wider_types,
    in_the_place_of_the_standard_library,
    the_rest,
]


# --- only checked, since they cannot be pickled


def functions_without_a_name(pool: Pool) -> None:
    use(pool.apply(lambda x: x + 1, (1,)))
    assert_type(pool.map(lambda s: s.upper(), ["a"]), list[str])
    assert_type(pool.map(lambda pair: pair[0], [("a", 1)]), list[str])
    use(pool.starmap(lambda a, b: a + b, [(1, 2)]), pool.apply(lambda: 1))


# --- refused


def words(text: str) -> None:
    pass


def wrong_arguments(pool: Pool, numbers: tuple[int, ...], names: Sequence[str]) -> None:
    pool.apply(double, ("a",))  # wrong
    pool.apply(double, (None,))  # wrong
    pool.apply(double)  # wrong
    pool.apply(both, (1,))  # wrong
    pool.apply(both, (1, "a", 2))  # wrong
    pool.apply(many, (1, 2, 3, 4, 5, 6, "a", 7))  # wrong
    pool.apply(both, ("a", 1))  # wrong
    pool.apply(both, numbers)  # wrong
    pool.apply(double, names)  # wrong
    pool.apply(some, ("a",))  # wrong
    pool.apply(Model, ("a",))  # wrong
    pool.apply(math.sqrt, ("a",))  # wrong
    pool.apply(sized, ({"weight": 1},))  # wrong
    pool.apply(double, 1)  # wrong
    pool.apply(double(1), (1,))  # wrong
    pool.apply_async(double, ("a",))  # wrong
    pool.apply_async(both, ("a", 1), callback=print)  # wrong
    pool.apply_async(double)  # wrong


def wrong_items(pool: Pool, names: list[str]) -> None:
    pool.map(double, ["a"])  # wrong
    pool.map(double, names)  # wrong
    pool.map(double, "abc")  # wrong
    pool.map(double, 3)  # wrong
    pool.map(double, [1, None])  # wrong
    pool.map(both, [1])  # wrong
    pool.map(nothing, [1])  # wrong
    pool.map(sized, [{"size": "a"}])  # wrong
    pool.map(moved, ["up"])  # wrong
    pool.map(None, [1])  # wrong
    pool.map(double(1), [1])  # wrong
    pool.map_async(double, names)  # wrong
    pool.imap(double, names)  # wrong
    pool.imap_unordered(double, names)  # wrong
    pool.starmap(added, [("a", "b")])  # wrong
    pool.starmap(added, [(1, "b")])  # wrong
    pool.starmap(both, [("a", 1)])  # wrong
    pool.starmap(added, [1, 2])  # wrong
    pool.starmap(both, zip(["a"], ["b"]))  # noqa: B905  # wrong
    pool.starmap_async(both, [("a", 1)])  # wrong


def wrong_use(pool: Pool) -> None:
    text: str = pool.apply(double, (1,))  # wrong
    text = pool.apply_async(double, (1,)).get()  # wrong
    texts: list[str] = pool.map(double, [1])  # wrong
    texts = pool.map_async(double, [1]).get()  # wrong
    texts = pool.starmap(added, [(1, 2)])  # wrong
    texts = list(pool.imap(double, [1]))  # wrong
    text = next(pool.imap_unordered(double, [1]))  # wrong
    pool.apply(double, (1,)).upper()  # wrong
    handle: ApplyResult[str] = pool.apply_async(double, (1,))  # wrong
    pool.apply_async(double, (1,), callback=words)  # wrong
    pool.map_async(double, [1], callback=words)  # wrong
    use(text, texts, handle)


def wrong_futures(pool: Pool) -> None:
    pool.submit(double, "a")  # wrong
    pool.submit(double)  # wrong
    pool.submit(double, 1, timeout=3)  # wrong
    pool.submit(double(1))  # wrong
    text: str = pool.submit(double, 1).result()  # wrong
    pool.options(timeout="3")  # wrong
    pool.options(callback=print)  # wrong
    pool.executor().submit(double, "a")  # wrong
    use(text, prefork.ProcessPoolExecutor(max_workers="2"))  # wrong
    prefork.ProcessPoolExecutor(processes=2)  # wrong


async def wrong_awaits(pool: Pool) -> None:
    text: str = await pool.submit(double, 1)  # wrong
    texts: list[str] = await pool.map_async(double, [1])  # wrong
    await pool.apply(double, (1,))  # wrong
    more: list[str] = [each async for each in pool.imap(double, [1])]  # wrong
    pool.imap(str.upper, numbers())  # wrong
    use(text, texts, more)


def wrong_options(pool: Pool) -> None:
    pool.apply(double, (1,), timeout="3")  # wrong
    pool.apply(double, (1,), callback=print)  # wrong
    pool.apply_async(double, (1,), timeout="3")  # wrong
    pool.apply_async(double, (1,), callback=3)  # wrong
    pool.apply_async(double, (1,), time_limit=3)  # wrong
    pool.map(double, [1], timeout="3")  # wrong
    pool.map(double, [1], time_limit=3)  # wrong
    pool.map(double, [1], chunksize="3")  # wrong
    pool.imap(double, [1], buffersize="3")  # wrong
    pool.apply(double, (1,), retries=None)  # wrong
    pool.options(priority="high")  # wrong
    pool.options(deadline="soon")  # wrong
    pool.options(retries=2.5)  # wrong
    prefork.Retry(3, on=ValueError())  # wrong
    Pool(2, max_workers=3)  # wrong
    Pool(processes="2")  # wrong
