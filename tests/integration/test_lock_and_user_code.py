"""The pool's lock is never held over code that is not the pool's own.

Else that code could wait for whoever needs the lock: for ever, if it waits for the pool; and while
it takes its time, no result arrives and no time limit is kept.

Everything in here that a user or another library could have written asks whether the thread that
runs it has the lock, and leaves a note if so. Not counted are those that the interpreter has run
wherever it likes: handlers of signals, and finalizers of what only the garbage collector frees.
They may find the lock held; what they may do there is tested in `test_hooks.py`.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import selectors
import signal
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from typing import Any, NoReturn

import pytest

import inside
from gate import Gate, enter
from helpers import NEVER, eventually
from prefork import (
    MaybeDecodingError,
    MaybeEncodingError,
    Pool,
    PoolBrokenError,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)

pytestmark = [pytest.mark.promise(number=1), pytest.mark.promise(number=4)]


class Watch:
    """What was called, and what of it with the lock held."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.pools: list[weakref.ref[Pool]] = []
        self.seen: set[str] = set()
        self.violations: dict[str, str] = {}

    def note(self, what: str) -> None:
        self.seen.add(what)
        if any(inside.is_lock_held(pool) for find in self.pools if (pool := find()) is not None):
            self.violations.setdefault(what, "".join(traceback.format_stack(limit=15)))


current: Watch | None = None


def ask(what: str) -> None:
    """Called by everything in here that is not the pool's; in workers it does nothing."""
    if current is not None and current.process == os.getpid():
        current.note(what)


os.register_at_fork(
    before=lambda: ask("a hook before a fork"),
    after_in_parent=lambda: ask("a hook after a fork"),
)


class Watched(Pool):
    """A pool that is asked about its lock, already while it is being made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        assert current is not None
        current.pools.append(weakref.ref(self))
        super().__init__(*args, **kwargs)

    def __del__(self, *args: Any) -> None:
        ask("a pool's finalizer")
        super().__del__(*args)


# ---- objects with code of their own


class Thing:
    """Says whenever its code runs."""

    def __init__(self, name: str, size: int = 0) -> None:
        self.name = name
        self.data = bytes(size)

    def __reduce_ex__(self, protocol: Any) -> Any:
        ask(f"{self.name}: pickled")
        return remade, (type(self), self.name), {"data": self.data}

    def __setstate__(self, state: Any) -> None:
        ask(f"{self.name}: unpickled")
        vars(self).update(state)

    def __del__(self) -> None:
        ask(f"{self.name}: finalized")

    def __repr__(self) -> str:
        ask(f"{self.name}: repr")
        return f"<{self.name}>"

    def __eq__(self, other: object) -> bool:
        ask(f"{self.name}: compared")
        return self is other

    def __hash__(self) -> int:
        ask(f"{self.name}: hashed")
        return 7

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        ask(f"{self.name}: called")


class Unreadable(Thing):
    def __setstate__(self, state: Any) -> None:
        ask(f"{self.name}: unpickled")
        if multiprocessing.parent_process() is None:
            raise ValueError(self)


class Unwritable(Thing):
    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        ask(f"{self.name}: pickled")
        raise Failure(self.name)


class Failure(Exception):
    """An error with code of its own."""

    def __reduce__(self) -> Any:
        ask("an error: pickled")
        return remade, (type(self), *map(str, self.args)), {"note": 1}

    def __setstate__(self, state: Any) -> None:
        ask("an error: unpickled")
        super().__setstate__(state)

    def __str__(self) -> str:
        ask("an error: text")
        return "it has failed"

    def __repr__(self) -> str:
        ask("an error: repr")
        return "Failure()"

    def __del__(self) -> None:
        ask("an error: finalized")


def remade(cls: type[Any], name: str = "") -> Any:
    ask(f"{cls.__name__} is made again")
    return cls(name)


def spied(base: type[Any], *names: str) -> type[Any]:
    """A class of numbers whose arithmetic says that it was called."""

    def spy(name: str) -> Callable[..., Any]:
        original = getattr(base, name)

        def method(*args: Any) -> Any:
            ask("a number's own code")
            return original(*args)

        return method

    return type(base.__name__.title(), (base,), {name: spy(name) for name in names})


ARITHMETIC = (
    *("__add__", "__radd__", "__sub__", "__rsub__", "__neg__", "__mul__", "__rmul__"),
    *("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__", "__bool__", "__hash__"),
    *("__format__", "__repr__", "__str__", "__int__", "__float__"),
)
Int: Callable[..., Any] = spied(int, *ARITHMETIC, "__index__")
Float: Callable[..., Any] = spied(float, *ARITHMETIC)


class Items:
    """An iterable with code of its own."""

    def __init__(self, *items: Any, endless: bool = False) -> None:
        self.items = items
        self.endless = endless

    def __iter__(self) -> Iterator[Any]:
        ask("an iterable: iterated")
        try:
            while True:
                for item in self.items:
                    ask("an iterable: read")
                    yield item
                if not self.endless:
                    return
        finally:
            ask("an iterable: closed")

    def __len__(self) -> int:
        ask("an iterable: length")
        return len(self.items)

    def __del__(self) -> None:
        ask("an iterable: finalized")


class Listener(logging.Handler):
    """Somebody's handler and filter in one."""

    def handle(self, record: logging.LogRecord) -> bool:
        ask("a log handler")
        record.getMessage()
        return True

    def filter(self, record: logging.LogRecord) -> bool:
        ask("a log filter")
        return True


# ---- tasks


def give(*things: Any, size: int = 0, **more: Any) -> Thing:
    return Thing("a result", size)


def give_unreadable(*things: Any) -> Unreadable:
    return Unreadable("an unreadable result")


def give_unwritable(*things: Any) -> Unwritable:
    return Unwritable("an unwritable result")


def give_until(door: Any) -> Thing:
    """Results, until it is the door's turn."""
    return Thing("a result") if door is None else enter(door)  # type: ignore[return-value]


def fail(*things: Any) -> NoReturn:
    raise Failure("of a task")


class Code(int):
    """An exit code that comes with code of its own."""

    def __reduce__(self) -> Any:
        return remade, (Code, 3)


class Text(str):
    """The same with texts."""

    def __reduce__(self) -> Any:
        return remade, (Text, "text")


def leave(*things: Any) -> NoReturn:
    raise SystemExit(Code(3))


def leave_with_text(*things: Any) -> NoReturn:
    raise SystemExit(Text("good bye"))


def interrupt(*things: Any) -> NoReturn:
    raise KeyboardInterrupt(Text("that is enough"))


def crash(*things: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def stay(*things: Any) -> None:
    while True:
        time.sleep(NEVER)


def set_up(thing: Thing) -> None:
    pass


def fail_to_set_up(thing: Thing) -> NoReturn:
    raise Failure("of an initializer")


# ---- the tests


@pytest.fixture
def watch() -> Iterator[Watch]:
    global current
    listener = Listener()
    logger = logging.getLogger("prefork")
    logger.addHandler(listener)
    logger.addFilter(listener.filter)
    propagate, logger.propagate = logger.propagate, False
    level = logger.level
    logger.setLevel(logging.DEBUG)
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()  # what only it finalizes may be finalized anywhere
    current = watch = Watch()
    yield watch
    current = None
    if was_enabled:
        gc.enable()
    logger.setLevel(level)
    logger.propagate = propagate
    logger.removeFilter(listener.filter)
    logger.removeHandler(listener)
    for what, where in watch.violations.items():
        print(f"--- with the lock held: {what}\n{where}")
    assert not watch.violations


class SpiedContext:
    """What a context of another library could look like."""

    def __getattribute__(self, name: str) -> Any:
        ask("a context")
        return super().__getattribute__(name)


class SpiedPopen:
    """A process as that library starts it, to be mixed into the standard library's class."""

    def poll(self, *args: Any) -> Any:
        ask("a context's process: asked")
        return super().poll(*args)  # type: ignore[misc]

    def close(self) -> None:
        ask("a context's process: closed")
        super().close()  # type: ignore[misc]


def spied_context(context: BaseContext) -> BaseContext:
    process: Any = context.Process

    def start(process_obj: Any) -> Any:
        popen = process._Popen(process_obj)
        popen.__class__ = type("Popen", (SpiedPopen, type(popen)), {})
        return popen

    parts: dict[str, Any] = {}
    if context.get_start_method() != "fork":  # there is no fork but the pool's own
        parts["Process"] = type("Process", (process,), {"_Popen": staticmethod(start)})
    return type("Context", (SpiedContext, type(context)), parts)()


class SpiedProcess(Pool.Process):
    """A process class of a user's."""

    def start(self) -> None:
        ask("a process is started")
        super().start()

    def __del__(self) -> None:
        ask("a process's finalizer")


class Spied(Watched):
    Process = SpiedProcess  # type: ignore[assignment]


@pytest.fixture
def make(watch: Watch, context: BaseContext) -> Iterator[Callable[..., Pool]]:
    pools: list[Pool] = []

    def make(processes: int = 2, **options: Any) -> Pool:
        pools.append(Spied(processes, context=spied_context(context), **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.terminate()
        pool.join()


def call(pool: Pool, task: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A call with an argument and callbacks that have code of their own."""
    return pool.apply_async(
        task,
        (Thing("an argument"), *args),
        {},
        Thing("a callback"),
        Thing("an error callback"),
        Thing("an accept callback"),
        Thing("a timeout callback"),
        **options,
    )


def check_seen(watch: Watch, *whats: str) -> None:
    """These have been called; the last of them may come a moment later."""
    eventually(lambda: watch.seen.issuperset(whats), f"{set(whats) - watch.seen} not called")


def test_jobs_that_go_well(watch: Watch, make: Callable[..., Pool]) -> None:
    pool = make(
        Int(2),
        initializer=set_up,
        initargs=[Thing("an initializer's argument")],
        maxtasksperchild=Int(50),
        timeout=Float(NEVER),
        max_memory_per_task=Int(1 << 40),
        max_restarts=Int(3),
    )
    for size in (0, 1 << 17, 1 << 20):
        argument = Thing("a large argument", size)
        options = {"soft_timeout": Float(NEVER), "retries": Int(1)}
        result = call(pool, give, argument, waitforslot=True, **options)
        del argument
        result.get()
        pool.apply(give, kwds={"size": size})
        del result
    things = Items(*(Thing("an item") for _ in range(9)))
    pool.map(give, things, Int(2))
    pool.map_async(give, things, callback=Thing("a callback of a map")).get()
    pool.starmap(give, Items([1], [2]))
    for _ in pool.imap(give, things, Int(2), buffersize=Int(3)):
        pass
    for _ in pool.imap_unordered(give, things):
        pass
    pool.each_async(give, things).get()
    del things
    check_seen(watch, "an argument: pickled", "an argument: finalized", "a result: unpickled")
    check_seen(watch, "a result: finalized", "a callback: called", "an accept callback: called")
    check_seen(watch, "a callback of a map: called", "a callback of a map: finalized")
    check_seen(watch, "an iterable: read", "an iterable: closed", "an iterable: finalized")
    check_seen(watch, "a number's own code", "a log handler", "a log filter", "a context")
    check_seen(watch, "a process is started")


def test_jobs_that_fail(watch: Watch, make: Callable[..., Pool]) -> None:
    pool = make()
    for _ in range(2):
        for task, error in (
            (fail, Failure),
            (give_unreadable, MaybeDecodingError),
            (give_unwritable, MaybeEncodingError),
        ):
            with pytest.raises(error) as raised:
                call(pool, task).get()
            del raised
            with pytest.raises(error):
                pool.map(task, Items(1, 2, 3), 2)
            with pytest.raises(error):
                list(pool.imap(task, Items(1, 2, 3)))
        with pytest.raises(Failure):
            call(pool, give, Unwritable("an unwritable argument")).get()
        with pytest.raises(Failure):
            pool.map(give, Items(Unwritable("an unwritable item"), 2))
        pool.each_async(fail, [1, 2], Thing("a callback")).get()
    check_seen(watch, "an error: unpickled", "an error: finalized", "an error callback: called")
    check_seen(watch, "an unreadable result: unpickled", "an unwritable argument: pickled")


def test_workers_that_leave_or_die(watch: Watch, make: Callable[..., Pool]) -> None:
    pool = make()
    for task in (leave, leave_with_text, interrupt, crash):
        with pytest.raises(WorkerLostError):
            call(pool, task, retries=Int(1)).get()
        with pytest.raises(WorkerLostError):
            pool.map(task, Items(1, 2), 1)
    check_seen(watch, "an error callback: called", "a process is started", "a log handler")


def test_recycling(watch: Watch, make: Callable[..., Pool]) -> None:
    pool = make(1, maxtasksperchild=Int(1))
    for _ in range(3):
        call(pool, give).get()
    small = make(1, max_memory_per_child=Int(1))
    for _ in range(2):
        call(small, give).get()
    small.grow(Int(1))
    small.shrink(Int(1))
    small.restart()
    call(small, give).get()
    small.statistics()
    small.dump_stacks()
    check_seen(watch, "a process is started", "a log handler")


def test_limits(watch: Watch, make: Callable[..., Pool]) -> None:
    pool = make(1)
    with pytest.raises(SoftTimeLimitExceeded):
        call(pool, stay, soft_timeout=Float(0.05)).get()
    with pytest.raises(TimeLimitExceeded):
        call(pool, stay, timeout=Float(0.05)).get()
    check_seen(watch, "a timeout callback: called", "an error callback: called")


def test_jobs_that_are_ended(watch: Watch, make: Callable[..., Pool], gate: Gate) -> None:
    pool = make(1)
    for signum in (None, Int(signal.SIGTERM)):
        running = pool.apply_async(enter, (gate,), {}, Thing("a callback"))
        waiting = call(pool, give)
        visitor = gate.arrival()
        assert waiting.cancel()
        assert pool.terminate_job(Int(visitor.pid), signum)
        for result in (running, waiting):
            with pytest.raises((Terminated, WorkerLostError)):
                result.get()
        del running, waiting, result
    running = pool.apply_async(enter, (gate,))
    gate.arrival()
    assert running.terminate(Int(signal.SIGKILL))
    many = pool.map_async(stay, Items(*range(1000)), 1, callback=Thing("a callback of a map"))
    assert many.terminate()
    del many
    check_seen(watch, "a callback: finalized", "a callback of a map: finalized")


def leave_behind(pool: Pool, gate: Gate) -> list[Any]:
    """Jobs of all kinds, of which none ends; returns handles of some of them. What those of the
    others hold, only the pool holds."""
    pool.apply_async(enter, (gate,), {}, Thing("a callback"))
    visitor = gate.arrival()
    callback = Thing("a callback of a map")
    pool.map_async(stay, Items(*range(1000)), 1, callback)  # its input waits for room
    del callback
    endless = pool.imap(stay, Items(Thing("an item"), endless=True))
    call(pool, give)
    handles = [call(pool, give), endless]
    del visitor
    return handles


@pytest.mark.parametrize("end", ["terminate", "drop", "close", "with"])
def test_ends_of_pools(watch: Watch, context: BaseContext, gate: Gate, end: str) -> None:
    pool: Pool | None = Spied(1, context=spied_context(context))
    assert pool is not None
    if end == "close":
        result = call(pool, give)
        pool.close()
        assert pool.join(NEVER)
        result.get()
    elif end == "with":
        with pool:
            leave_behind(pool, gate)
    elif end == "terminate":
        handles = leave_behind(pool, gate)
        pool.terminate()
        with pytest.raises(Terminated):
            handles[0].get()
        del handles
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            handles = leave_behind(pool, gate)
            pool.terminate()
            pool = None
        del handles
    pool = None
    if end != "close":
        check_seen(watch, "a callback of a map: finalized", "an iterable: finalized")
    check_seen(watch, "a callback: finalized", "a pool's finalizer")


def test_results_that_nobody_will_have(watch: Watch, make: Callable[..., Pool], gate: Gate) -> None:
    """A map has not ended, and some of its results are here."""
    pool = make(1)
    many = pool.map_async(give_until, Items(None, None, gate, *[None] * 1000), 1)
    gate.arrival()
    check_seen(watch, "a result: unpickled")
    pool.terminate()
    with pytest.raises(Terminated):
        many.get()
    check_seen(watch, "a result: finalized")


@pytest.mark.parametrize("cause", ["raises", "exits", "cannot be pickled"])
def test_starts_that_fail(watch: Watch, make: Callable[..., Pool], cause: str) -> None:
    initializer = leave if cause == "exits" else fail_to_set_up
    kind = Unwritable if cause == "cannot be pickled" else Thing

    def use_one() -> None:
        pool = make(1, initializer=initializer, initargs=(kind("an initializer's argument"),))
        many = pool.map_async(stay, Items(*range(1000)), 1, Thing("a callback of a map"))
        del many
        call(pool, give).get()

    with pytest.raises((PoolBrokenError, Failure)):
        use_one()
    check_seen(watch, "an error: text" if cause == "raises" else "a context")


class Loop:
    """An event loop, as other libraries have them."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.timers: list[Timer] = []

    def add_reader(self, fd: int, callback: Callable[..., object]) -> None:
        ask("a loop: reader")
        self.selector.register(fd, selectors.EVENT_READ, callback)

    def remove_reader(self, fd: int) -> None:
        ask("a loop: reader")
        self.selector.unregister(fd)

    def call_later(self, delay: float, callback: Callable[..., object]) -> Timer:
        ask("a loop: timer")
        self.timers.append(Timer(time.monotonic() + delay, callback))
        return self.timers[-1]

    def run_until(self, is_over: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not is_over():
            assert time.monotonic() < deadline
            due = [timer.due - time.monotonic() for timer in self.timers]
            for key, _ in self.selector.select(max(0.0, min([*due, 1.0]))):
                key.data()
            for timer in [t for t in self.timers if t.due <= time.monotonic()]:
                self.timers.remove(timer)
                if timer.callback is not None:
                    timer.callback()


class Timer:
    def __init__(self, due: float, callback: Callable[..., object]) -> None:
        self.due = due
        self.callback: Callable[..., object] | None = callback

    def cancel(self) -> None:
        ask("a loop: timer")
        self.callback = None


def test_an_event_loop(watch: Watch, make: Callable[..., Pool]) -> None:
    pool = make(1, threads=False)
    loop = Loop()
    pool.attach(loop)
    for limit, error in ((NEVER, None), (0.05, TimeLimitExceeded), (NEVER, None)):
        task = give if error is None else stay
        handle = call(pool, task, timeout=Float(limit))
        loop.run_until(handle.ready)
        assert handle.successful() == (error is None)
    held = call(pool, crash)
    loop.run_until(held.ready)
    many = pool.map_async(give, Items(*range(20)), callback=Thing("a callback of a map"))
    loop.run_until(many.ready)
    left = pool.map_async(stay, Items(1, 2), callback=Thing("a callback of a map"))
    del many, held, handle
    pool.terminate()
    with pytest.raises(Terminated):
        left.get()
    check_seen(watch, "a loop: timer", "a loop: reader", "a callback: called")
