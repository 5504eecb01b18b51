"""What drives a pool's roles: threads, or an event loop. The roles are stand-ins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from fakes import Clock, FakePool, Readable
from prefork._engine.drivers import WAIT_INSIDE, Roles, Threads
from prefork._engine.loop_driver import EventLoop
from prefork._system.condition import Condition
from prefork._system.selector import MAX_TIMEOUT, is_readable


class FakeRole:
    """A role that notes what it is told."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self.is_started = self.is_running = False
        self.threads: set[int] | None = None
        self.due: float | None = None
        self.readable = Readable()
        self.trouble: BaseException | None = None
        self.crash: Callable[[BaseException], object] | None = None
        self.on_event: Callable[[], object] = lambda: None
        self.error: BaseException | None = None
        self.has_ended = False

    def note(self, what: str) -> None:
        self.log.append(f"{self.name} {what}")

    def start(
        self, on_crash: Callable[[BaseException], object], threads: set[int] | None = None
    ) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.is_started = self.is_running = True
        self.crash = on_crash
        self.threads = threads
        self.note("starts")

    def has_waiting(self) -> bool:
        return False

    def stop(self) -> None:
        self.note("stops")

    def join(self, timeout: float | None = None) -> bool:
        self.note("ends")
        return not self.is_running or timeout is None

    def rearm(self) -> None:
        self.note("rearmed")

    def timeout(self) -> float | None:
        return self.due

    def fileno(self) -> int:
        return self.readable.fileno()

    def body(self) -> None:
        self.note("runs here")

    def handle_event(self) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.note("event")
        self.on_event()


class Workers:
    """The supervisor's part of the pool."""

    ended = False

    def crash(self, error: BaseException) -> None:
        raise AssertionError

    def wait_until_ended(self) -> bool:
        self.ended = True
        return True


class Cast:
    """All roles of a pool of fakes."""

    def __init__(self, pool: FakePool) -> None:
        self.log: list[str] = []
        self.pool = pool
        self.results = FakeRole("results", self.log)
        self.limits = FakeRole("limits", self.log)
        self.supervisor = FakeRole("supervisor", self.log)
        self.callbacks = FakeRole("callbacks", self.log)
        self.workers = Workers()
        parts: Any = (
            *(self.results, self.limits, self.supervisor, self.callbacks),
            *(pool.state, pool.lifecycle, self.workers),
        )
        self.roles = Roles(*parts)

    def said(self) -> list[str]:
        """What was noted since the last time."""
        said = list(self.log)
        self.log.clear()
        return said

    def close(self) -> None:
        for role in (self.results, self.limits, self.supervisor, self.callbacks):
            role.readable.close()


@pytest.fixture
def cast(pool: FakePool) -> Any:
    cast = Cast(pool)
    yield cast
    cast.close()


# ---- threads


def test_threads_are_started_when_there_is_work_for_them(cast: Cast) -> None:
    driver = Threads()
    driver.rearm()  # there are no roles yet: the first look is when they start
    driver.on_call()
    driver.end()
    assert driver.join()
    assert not driver.supervises()
    assert not driver.is_busy_here()
    driver.start(cast.roles)
    assert cast.said() == ["results starts", "supervisor starts"]
    assert driver.supervises()
    driver.rearm()
    driver.rearm()
    assert cast.said() == ["limits starts", "limits rearmed", "limits rearmed"]
    driver.on_call()
    driver.on_call()
    assert cast.said() == ["callbacks starts"]


def test_what_a_thread_raises_ends_the_pool(cast: Cast) -> None:
    driver = Threads()
    driver.start(cast.roles)
    driver.rearm()
    assert cast.results.crash == cast.pool.lifecycle.crash_and_deliver
    assert cast.supervisor.crash == cast.workers.crash
    assert cast.limits.crash == cast.pool.lifecycle.crash


def test_a_callback_that_gets_no_thread_is_said(cast: Cast) -> None:
    driver = Threads()
    driver.start(cast.roles)
    cast.callbacks.trouble = RuntimeError("can't start new thread")
    driver.on_call()
    assert cast.pool.log.notes == [
        (30, "a callback has no thread to run on: can't start new thread")
    ]


def test_an_input_is_read_by_a_thread_or_by_its_caller(cast: Cast) -> None:
    driver = Threads()
    reader: Any = FakeRole("reader", cast.log)
    driver.feed(reader, here=False, at_once=False)
    assert cast.said() == []  # nobody would take the results
    driver.start(cast.roles)
    cast.said()
    driver.feed(reader, here=False, at_once=False)
    reader.has_ended = True  # when it has run, or done what there is room for
    driver.feed(reader, here=True, at_once=False)
    driver.feed(reader, here=False, at_once=True)
    assert cast.said() == ["reader starts", "reader runs here", "reader event"]
    reader.has_ended = False
    driver.feed(reader, here=False, at_once=True)
    assert cast.said() == ["reader event", "reader starts"]
    reader.has_ended = True
    reader.error = KeyError("goes to the results")
    driver.feed(reader, here=True, at_once=False)
    reader.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        driver.feed(reader, here=True, at_once=False)


def test_a_role_that_waits_for_the_pool_would_wait_for_itself(cast: Cast) -> None:
    driver = Threads()
    driver.start(cast.roles)
    assert driver.wait(Condition(), lambda: True)
    assert not driver.wait(Condition(), lambda: False, 0.0)
    assert cast.results.threads is not None
    cast.results.threads.add(threading.get_ident())
    assert driver.is_busy_here()
    with pytest.raises(RuntimeError, match="called by the pool itself"):
        driver.wait(Condition(), lambda: True)


def test_at_the_end_the_roles_end_and_callbacks_after_those_that_wait(cast: Cast) -> None:
    driver = Threads()
    driver.start(cast.roles)
    cast.said()
    driver.dropped()
    driver.end()
    assert cast.said() == [
        *("results stops", "results ends", "limits stops", "limits ends", "callbacks stops")
    ]
    assert driver.join()
    assert cast.said() == ["supervisor ends", "callbacks ends"]
    assert not driver.join(5.0)


# ---- an event loop


class FakeLoop:
    def __init__(self) -> None:
        self.readers: dict[int, Callable[..., object]] = {}
        self.timers: list[FakeTimer] = []

    def add_reader(self, fd: int, callback: Callable[..., object], /) -> None:
        self.readers[fd] = callback

    def remove_reader(self, fd: int, /) -> None:
        del self.readers[fd]

    def call_later(self, delay: float, callback: Callable[..., object], /) -> FakeTimer:
        self.timers.append(FakeTimer(delay, callback))
        return self.timers[-1]

    def armed(self) -> list[float]:
        return [timer.delay for timer in self.timers if not timer.is_over]

    def fire(self) -> None:
        (timer,) = [timer for timer in self.timers if not timer.is_over]
        timer.is_over = True
        timer.callback()


class FakeTimer:
    def __init__(self, delay: float, callback: Callable[..., object]) -> None:
        self.delay, self.callback, self.is_over = delay, callback, False

    def cancel(self) -> None:
        self.is_over = True


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def driver(cast: Cast, clock: Clock) -> EventLoop:
    driver = EventLoop()
    driver.start(cast.roles)
    return driver


def test_before_it_is_started_it_does_nothing(loop: FakeLoop) -> None:
    driver = EventLoop()
    driver.attach(loop)
    driver.on_call()
    driver.rearm()
    driver.handle_events()
    driver.dropped()
    driver.end()
    assert driver.join()
    assert not driver.supervises()
    assert loop.readers == {}


def test_on_a_loop_each_descriptor_has_its_roles_called(
    driver: EventLoop, cast: Cast, loop: FakeLoop
) -> None:
    driver.attach(loop)
    loop.readers[cast.results.fileno()]()
    assert cast.said() == ["results event", "callbacks event"]
    loop.readers[cast.supervisor.fileno()]()
    assert cast.said() == [
        *("results event", "limits event", "supervisor event", "callbacks event")
    ]


def test_with_the_lock_held_the_loop_is_only_woken(
    driver: EventLoop, cast: Cast, loop: FakeLoop
) -> None:
    driver.attach(loop)
    cast.limits.due = 5.0
    with cast.roles.state.lock:
        driver.rearm()
        assert loop.armed() == []
    assert is_readable(cast.roles.state.exits.fileno(), 0)
    loop.readers[cast.supervisor.fileno()]()
    assert loop.armed() == [5.0]


def test_a_timer_is_set_for_what_is_due_first(
    driver: EventLoop, cast: Cast, loop: FakeLoop, clock: Clock
) -> None:
    driver.attach(loop)
    assert loop.armed() == []
    cast.limits.due = 5.0
    driver.rearm()
    driver.rearm()
    assert loop.armed() == [5.0]
    cast.supervisor.due = 2.0
    driver.rearm()
    assert loop.armed() == [2.0]
    clock.passes(1.0)
    cast.supervisor.due = None
    driver.rearm()
    assert loop.armed() == [2.0]  # one that is too early stays
    loop.fire()
    assert cast.said() == ["limits event", "callbacks event"]
    assert loop.armed() == [5.0]
    cast.supervisor.due = 1.0
    driver.rearm()
    loop.fire()
    assert cast.said() == ["limits event", "supervisor event", "callbacks event"]


def test_a_wait_that_no_loop_can_take_is_cut_to_a_day(
    driver: EventLoop, cast: Cast, loop: FakeLoop
) -> None:
    cast.supervisor.due = float("inf")
    driver.attach(loop)
    assert loop.armed() == [MAX_TIMEOUT]
    cast.results.readable.set()
    driver.handle_events(1e300)
    driver.handle_events()


def test_a_loop_is_left_without_a_trace(driver: EventLoop, cast: Cast, loop: FakeLoop) -> None:
    cast.limits.due = 5.0
    driver.attach(loop)
    driver.detach()
    assert (loop.readers, loop.armed()) == ({}, [])
    driver.attach(loop)
    loop.readers.clear()  # the loop has forgotten them
    driver.attach(loop)
    assert len(loop.readers) == 2
    cast.workers.ended = True
    driver.attach(loop)
    assert loop.readers == {}


def test_by_hand_events_are_handled_and_inputs_read(driver: EventLoop, cast: Cast) -> None:
    reader: Any = FakeRole("reader", cast.log)
    driver.feed(reader, here=True, at_once=False)
    assert cast.said() == ["reader event"]
    cast.pool.state.inputs.add(reader)
    driver.handle_events(0.0)
    assert cast.said() == [
        *("reader event", "results event", "limits event", "supervisor event"),
        *("reader event", "callbacks event"),
    ]
    cast.workers.ended = True
    driver.handle_events()
    assert cast.said() == []


def test_who_waits_handles_events_until_it_is_true_or_too_late(
    driver: EventLoop, cast: Cast, clock: Clock
) -> None:
    cast.limits.due = 0.0
    assert driver.wait(Condition(), lambda: cast.log.count("results event") == 3)
    cast.limits.on_event = lambda: clock.passes(1.0)
    cast.said()
    assert not driver.wait(Condition(), lambda: False, 3.5)
    assert cast.said().count("limits event") == 4
    cast.limits.on_event = cast.workers.wait_until_ended
    assert not driver.wait(Condition(), lambda: False)


def test_events_are_not_handled_while_events_are_handled(
    driver: EventLoop, cast: Cast, loop: FakeLoop
) -> None:
    driver.attach(loop)
    busy: list[bool] = []

    def inside() -> None:
        busy.append(driver.is_busy_here())
        loop.readers[cast.results.fileno()]()
        driver.on_call()
        driver.dropped()
        with pytest.raises(RuntimeError, match="called by the pool itself"):
            driver.wait(Condition(), lambda: True)

    cast.results.on_event = inside
    loop.readers[cast.results.fileno()]()
    assert busy == [True]
    assert cast.said() == ["results event", "callbacks event"]
    assert not driver.is_busy_here()
    assert cast.pool.state.outboxes.ready(0) == []
    assert WAIT_INSIDE


def test_a_callback_that_comes_from_outside_wakes_the_loop(driver: EventLoop, cast: Cast) -> None:
    driver.on_call()
    assert cast.pool.state.outboxes.wakeup._is_set


def test_what_a_role_raises_breaks_the_pool_and_is_raised(driver: EventLoop, cast: Cast) -> None:
    cast.results.trouble = KeyError("a bug")
    with pytest.raises(KeyError):
        driver.handle_events(0.0)
    assert cast.pool.state.broken is not None
    assert not driver.is_busy_here()


def test_a_pool_that_nobody_holds_ends_here_unless_a_loop_goes_on(
    driver: EventLoop, cast: Cast, loop: FakeLoop
) -> None:
    driver.attach(loop)
    driver.dropped()
    assert not cast.workers.ended
    driver.detach()
    driver.dropped()
    assert cast.workers.ended


def test_at_the_end_the_last_results_are_told(
    driver: EventLoop, cast: Cast, loop: FakeLoop
) -> None:
    driver.attach(loop)
    driver.end()
    assert driver.join()
    assert cast.said() == ["results event", "callbacks event"]
    assert loop.readers == {}
