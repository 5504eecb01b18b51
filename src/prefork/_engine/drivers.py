"""What drives the roles of a pool: threads of their own, or whoever has an event loop.

Threads      a thread for each role that is needed; who waits for a result just waits
EventLoop    no threads: readers and a timer on a loop; who waits for a result handles events
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from prefork._engine.callbacks import CallbackRunner
from prefork._engine.roles import ResultHandler, Role, Supervisor, TaskHandler, TimeoutHandler
from prefork._engine.supervisor import Staff
from prefork._system.condition import Condition
from prefork._system.log import WARNING, log

__all__ = ["Driver", "EventLoop", "Loop", "Roles", "Threads"]

TIMER_SLACK = 0.0005  # seconds


class Roles(NamedTuple):
    results: ResultHandler
    limits: TimeoutHandler
    supervisor: Supervisor
    callbacks: CallbackRunner


class Driver(Protocol):
    """Has the roles of one pool do their work."""

    def start(self) -> None:
        """The workers are hired: begin."""

    def supervises(self) -> bool:
        """Whether a pool that is told to terminate will do so of itself."""

    def feed(self, feeder: TaskHandler, here: bool, wait: bool) -> None:
        """Have an input read.

        Args:
            here: by the caller, as far as there is room, which is quick: for a short list.
            wait: by the caller, to its end, for which this waits.
        """

    def wait(
        self, signal: Condition, condition: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait until `condition()`, at most `timeout` seconds; returns what it is then.

        Raises:
            RuntimeError: the caller is called by what it would wait for.
        """

    def join(self, timeout: float | None = None) -> bool:
        """The pool has ended: wait until the roles and the callbacks have, too."""

    def dropped(self) -> None:
        """Nobody holds the pool any more, and it was told to terminate; called by a finalizer."""

    def is_busy_here(self) -> bool:
        """Whether the caller is called by one of the roles, so that waiting would be in vain."""


WAIT_INSIDE = (
    "this waits for the pool, but is called by the pool itself, while it reads a result: "
    "nothing could arrive. Was it an object's own unpickling code?"
)


class Threads:
    """The default: plain threads, which sleep until there is work."""

    def __init__(self, roles: Roles, staff: Staff) -> None:
        self._roles = roles
        self._staff = staff
        self._starting = threading.Lock()
        staff.jobs.limit_sent = self._rearm
        roles.callbacks.on_call = self._start_callbacks
        staff.at_end += [
            *(roles.results.stop, roles.results.join),
            *(roles.limits.stop, roles.limits.join),
            roles.callbacks.stop,
        ]

    def start(self) -> None:
        self._roles.results.start(self._staff.jobs.crash_and_tell)
        self._roles.supervisor.start(self._staff.crash)

    def supervises(self) -> bool:
        return self._roles.supervisor.is_running

    def _rearm(self) -> None:
        if not self._roles.limits.is_started:
            with self._starting:
                if not self._roles.limits.is_started:
                    self._roles.limits.start(self._staff.jobs.crash)
        self._roles.limits.rearm()

    def _start_callbacks(self) -> None:
        callbacks = self._roles.callbacks
        if callbacks.is_started:
            return
        try:
            with self._starting:
                if not callbacks.is_started:
                    callbacks.start(self._staff.jobs.crash)
        except RuntimeError as exc:  # the system has no more threads
            if count := callbacks.give_up():
                log(WARNING, "%d callbacks are not called: %s", count, exc)

    def feed(self, feeder: TaskHandler, here: bool, wait: bool) -> None:
        if wait:
            feeder.body()
        elif here:
            feeder.handle_event()
        if not feeder.has_ended:
            feeder.start(self._staff.jobs.crash)
        elif feeder.error is not None and not isinstance(feeder.error, Exception):
            raise feeder.error  # KeyboardInterrupt: it is for this thread

    def wait(
        self, signal: Condition, condition: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        if self._own_thread():
            raise RuntimeError(WAIT_INSIDE)
        return signal.wait(condition, timeout)

    def _own_thread(self) -> bool:
        roles = self._roles
        return any(role.is_current for role in (roles.results, roles.limits, roles.supervisor))

    def is_busy_here(self) -> bool:
        return self._own_thread()

    def dropped(self) -> None:
        pass  # the supervisor's thread ends the pool

    def join(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._roles.supervisor.join(timeout) and self._roles.callbacks.join(_left(deadline))


class Timer(Protocol):
    def cancel(self) -> object: ...


class Loop(Protocol):
    """What is used of an event loop; asyncio's and kombu's have it."""

    def add_reader(self, fd: int, callback: Callable[..., object], /) -> object: ...

    def remove_reader(self, fd: int, /) -> object: ...

    def call_later(self, delay: float, callback: Callable[..., object], /) -> Any: ...


class EventLoop:
    """No threads: everything happens in the thread that calls `handle_events`, or that runs the
    loop which this is attached to, and in there also the callbacks."""

    def __init__(self, roles: Roles, staff: Staff) -> None:
        self._roles = roles
        self._staff = staff
        self._loop: Loop | None = None
        self._timer: Timer | None = None
        self._timer_due = 0.0  # monotonic
        self._handling = False
        self._poll = select.poll()
        self._fds = (roles.results.fileno(), roles.supervisor.fileno())
        for fd in self._fds:
            self._poll.register(fd, select.POLLIN)
        staff.jobs.limit_sent = self._set_timer
        staff.jobs.scheduler.hold_no_more()  # timers on a loop cost more than that saves
        roles.callbacks.on_call = self._on_call
        staff.at_end += [roles.results.handle_event, self.detach]

    def start(self) -> None:
        pass  # whoever drives this begins when it likes

    def supervises(self) -> bool:
        return False

    # ---- on a loop

    def attach(self, loop: Loop) -> None:
        """Be driven by this loop from now on, to be called in its thread.

        May be called again with the same loop, when that has forgotten its readers.
        """
        self.detach()
        if self._staff.ended:
            return
        self._loop = loop
        results, exits = self._fds
        loop.add_reader(results, self._on_results)
        loop.add_reader(exits, self._on_event)
        self._set_timer()

    def detach(self) -> None:
        """Leave the loop; `handle_events` or another `attach` goes on."""
        loop, self._loop = self._loop, None
        self._cancel_timer()
        if loop is not None:
            for fd in self._fds:
                with contextlib.suppress(KeyError, ValueError, OSError):
                    loop.remove_reader(fd)

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _set_timer(self) -> None:
        """Have the timer fire in time. One that fires earlier stays, and is set again then: loops
        keep what was cancelled until it would have been due."""
        if self._loop is None or (delay := self._delay()) is None:
            return
        due = time.monotonic() + delay
        if self._timer is None or due < self._timer_due - TIMER_SLACK:
            self._cancel_timer()
            self._timer_due = due
            self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_call(self) -> None:
        if not self._handling:  # else they are run in a moment, anyway
            self._staff.jobs.outboxes.wakeup.set()

    def _delay(self) -> float | None:
        """Seconds until a role wants to be called in any case."""
        times = (self._roles.limits.timeout(), self._roles.supervisor.timeout())
        return min((time for time in times if time is not None), default=None)

    def _on_timer(self) -> None:
        """Telling is left to the readers. Kombu's hub fires timers right before it waits: what a
        callback has the hub do, such as an acknowledgement, would wait as long."""
        self._timer = None
        if self._roles.supervisor.timeout() is None:
            self._handle(self._roles.limits)
        else:
            self._handle(self._roles.limits, self._roles.supervisor)
        self._set_timer()

    def _on_results(self) -> None:
        """The frequent case: there is nothing but results."""
        self._handle(self._roles.results)

    def _on_event(self) -> None:
        self._handle(self._roles.results, self._roles.limits, self._roles.supervisor)
        self._set_timer()

    def _handle(self, *roles: Role) -> None:
        if self._handling:
            return
        self._handling = True
        try:
            for role in roles:
                role.handle_event()
            self._feed()
        except BaseException as exc:
            self._staff.jobs.crash(exc)
            raise
        finally:
            self._handling = False
        self._roles.callbacks.handle_event()  # outside: a callback may wait for the pool

    def _feed(self) -> None:
        for feeder in list(self._staff.jobs.feeders):
            feeder.handle_event()

    # ---- by hand

    def handle_events(self, timeout: float | None = None) -> None:
        """Wait at most so many seconds (None: as long as it takes) for something to happen, and
        handle it."""
        if self._staff.ended:
            return
        self._feed()  # somebody may have taken results since
        times = [time for time in (timeout, self._delay()) if time is not None]
        self._poll.poll(min(times) * 1000 if times else None)
        self._on_event()

    def feed(self, feeder: TaskHandler, here: bool, wait: bool) -> None:
        if here or wait:
            feeder.handle_event()
        else:  # reading the user's input may take long: that is for who drives the pool
            self._staff.jobs.outboxes.wakeup.set()

    def wait(
        self, signal: Condition, condition: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        if self._handling:
            raise RuntimeError(WAIT_INSIDE)
        deadline = None if timeout is None else time.monotonic() + timeout
        while not condition():
            left = _left(deadline)
            if self._staff.ended:
                self._roles.callbacks.handle_event()
                return condition()
            if left == 0.0:
                return condition()
            self.handle_events(left)
        return True

    def is_busy_here(self) -> bool:
        return self._handling

    def dropped(self) -> None:
        """A loop goes on for the pool; if there is none, it ends here."""
        if self._loop is None and not self._handling:
            self._staff.wait_until_ended()

    def join(self, timeout: float | None = None) -> bool:
        self._roles.callbacks.handle_event()
        return True


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
