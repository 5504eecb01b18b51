"""A pool without threads: whoever has an event loop drives it, or whoever waits."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from prefork._engine.drivers import WAIT_INSIDE, time_left
from prefork._system.running_loop import asyncio_loop
from prefork._system.selector import MAX_TIMEOUT, Selector

if TYPE_CHECKING:
    from prefork._engine.drivers import Roles
    from prefork._engine.roles import Role, TaskHandler
    from prefork._system.condition import Condition

__all__ = ["EventLoop", "Loop"]

TIMER_SLACK = 0.0005  # seconds


class Timer(Protocol):
    def cancel(self) -> object: ...


class Loop(Protocol):
    """What is used of an event loop; asyncio's and kombu's have it."""

    def add_reader(self, fd: int, callback: Callable[..., object], /) -> object: ...

    def remove_reader(self, fd: int, /) -> object: ...

    def call_later(self, delay: float, callback: Callable[..., object], /) -> Any: ...


class EventLoop:
    """No threads: everything happens in the thread that calls `handle_events`, or that runs the
    loop which this is attached to, and in there also the callbacks.

    A signal handler may interrupt who waits here, and wait itself, even until the pool has ended.
    So what is waited for is a `Selector`: others may be entered twice neither by two threads nor by
    one, or would go on to wait for descriptors whose numbers have become another's meanwhile.
    """

    def __init__(self) -> None:
        self._roles: Roles | None = None
        self._loop: Loop | None = None
        self._timer: Timer | None = None
        self._timer_due = 0.0  # monotonic
        self._handling = False
        self._events: Selector[Role] = Selector()
        self._fds = (-1, -1)

    def start(self, roles: Roles) -> None:
        """Whoever drives this begins when it likes."""
        self._roles = roles
        self._fds = (roles.results.fileno(), roles.supervisor.fileno())
        self._events.add(roles.results, roles.results)
        self._events.add(roles.supervisor, roles.supervisor)

    def supervises(self) -> bool:
        return False

    def _running(self) -> Roles | None:
        """The roles, unless the pool has ended, or could not be started."""
        roles = self._roles
        return None if roles is None or roles.workers.ended else roles

    # ---- on a loop

    def attach(self, loop: Loop) -> None:
        """Be driven by this loop from now on, to be called in its thread.

        May be called again with the same loop, when that has forgotten its readers.
        """
        self.detach()
        if self._running() is None:
            return
        self._loop = loop
        results, exits = self._fds
        loop.add_reader(results, self._on_results)
        loop.add_reader(exits, self._on_event)
        self.rearm()

    def serve_loop(self) -> None:
        """Be driven by the loop that runs here, from now on until it ends or another one takes
        over; unless whoever uses the pool has attached it to another one."""
        if (roles := self._running()) is None:
            return
        if (loop := asyncio_loop()) is None:
            raise RuntimeError("a pool without threads can be driven by asyncio, and not by trio")
        if (attached := self._loop_that_runs()) is not loop:
            if attached is not None and getattr(attached, "is_running", lambda: True)():
                raise RuntimeError("this pool has no threads, and is driven by another event loop")
            self.attach(loop)
        if roles.state.inputs:  # somebody may have taken results since
            roles.state.outboxes.wakeup.set()

    def last_threads(self) -> list[tuple[Condition, Callable[[], bool]]]:
        return []

    def _loop_that_runs(self) -> Loop | None:
        """What drives this; a loop of asyncio may have been closed since it was attached, and that
        has let go of the descriptors."""
        if self._loop is not None and getattr(self._loop, "is_closed", lambda: False)():
            self._loop = self._timer = None
        return self._loop

    def detach(self) -> None:
        """Leave the loop; `handle_events` or another `attach` goes on."""
        loop = self._loop_that_runs()
        self._loop = None
        self._cancel_timer()
        if loop is not None:
            for fd in self._fds:
                with contextlib.suppress(KeyError, ValueError, OSError):
                    loop.remove_reader(fd)

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def rearm(self) -> None:
        """Have the timer fire in time. One that fires earlier stays, and is set again then: loops
        keep what was cancelled until it would have been due.

        The loop is somebody else's. With the lock held it is not called, but woken: then it calls.
        """
        if (loop := self._loop_that_runs()) is None or (delay := self._delay()) is None:
            return
        due = time.monotonic() + delay
        if self._timer is None or due < self._timer_due - TIMER_SLACK:
            if self._roles is not None and self._roles.state.is_lock_held():
                self._roles.state.wake_supervisor()
                return
            self._cancel_timer()
            self._timer_due = due
            self._timer = loop.call_later(delay, self._on_timer)

    def on_call(self) -> bool:
        if (roles := self._roles) is None:
            return False
        if not self._handling:  # else they are run in a moment, anyway
            roles.state.outboxes.wakeup.set()
        return True

    def _delay(self) -> float | None:
        """Seconds until a role wants to be called in any case; or until this is to be asked again:
        neither poll nor every loop takes any number."""
        if (roles := self._roles) is None:
            return None
        times = (roles.limits.timeout(), roles.supervisor.timeout())
        known = [time for time in times if time is not None]
        return min(*known, MAX_TIMEOUT) if known else None

    def _on_timer(self) -> None:
        """Telling is left to the readers. Kombu's hub fires timers right before it waits: what a
        callback has the hub do, such as an acknowledgement, would wait as long."""
        self._timer = None
        if (roles := self._roles) is not None:
            if roles.supervisor.timeout() is None:
                self._handle(roles, roles.limits)
            else:
                self._handle(roles, roles.limits, roles.supervisor)
        self.rearm()

    def _on_results(self) -> None:
        """The frequent case: there is nothing but results."""
        if (roles := self._roles) is not None:
            self._handle(roles, roles.results)

    def _on_event(self) -> None:
        if (roles := self._roles) is not None:
            self._handle(roles, roles.results, roles.limits, roles.supervisor)
        self.rearm()

    def _handle(self, roles: Roles, *events: Role) -> None:
        if self._handling:
            return
        self._handling = True
        try:
            for role in events:
                role.handle_event()
            self._read_inputs(roles)
        except BaseException as exc:
            roles.lifecycle.crash(exc)
            raise
        finally:
            self._handling = False
        # Outside, since callbacks and the handlers of the log may wait for the pool.
        roles.callbacks.handle_event()
        roles.state.log.write()

    @staticmethod
    def _read_inputs(roles: Roles) -> None:
        for reader in list(roles.state.inputs):
            reader.handle_event()

    # ---- by hand

    def handle_events(self, timeout: float | None = None) -> None:
        """Wait at most so many seconds (None: as long as it takes) for something to happen, and
        handle it.

        Raises:
            RuntimeError: the caller is called by what would handle it.
        """
        if (roles := self._running()) is None:
            return
        if self._handling or roles.state.is_lock_held():
            raise RuntimeError(WAIT_INSIDE)
        self._read_inputs(roles)  # somebody may have taken results since
        times = [time for time in (timeout, self._delay()) if time is not None]
        if roles.callbacks.has_waiting():  # one before has raised what was for the caller
            times.append(0.0)
        try:
            self._events.ready(min(times) if times else None)
        except (OSError, ValueError):  # a signal handler has waited for the end, meanwhile
            if self._running() is not None:
                raise
        if self._running() is not None:
            self._on_event()

    def feed(self, reader: TaskHandler, here: bool, at_once: bool) -> None:
        if here or at_once:
            reader.handle_event()
        elif (roles := self._roles) is not None:  # it may take long: that is for who drives this
            roles.state.outboxes.wakeup.set()

    def wait(
        self, condition: Condition, predicate: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        if self._handling or (self._roles is not None and self._roles.state.is_lock_held()):
            raise RuntimeError(WAIT_INSIDE)
        deadline = None if timeout is None else time.monotonic() + timeout
        while not predicate():
            left = time_left(deadline)
            if self._running() is None:
                self.join()
                return predicate()
            if left == 0.0:
                return predicate()
            self.handle_events(left)
        return True

    def is_busy_here(self) -> bool:
        return self._handling

    def dropped(self) -> None:
        """A loop goes on for the pool; if there is none, it ends here."""
        if self._loop_that_runs() is not None or self._handling:
            return
        if (roles := self._roles) is not None:
            roles.workers.wait_until_ended()

    def end(self) -> None:
        if self._roles is not None:
            self._roles.results.handle_event()
        self.detach()
        self._events.close()

    def join(self, timeout: float | None = None) -> bool:
        if self._roles is not None:
            self._roles.callbacks.handle_event()
        return True
