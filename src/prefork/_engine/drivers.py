"""What drives the roles of a pool: threads of their own, or whoever has an event loop.

Threads      a thread for each role that is needed; who waits for a result just waits
EventLoop    no threads: readers and a timer on a loop; who waits for a result handles events
             (`loop_driver.py`)

A driver is made before the pool's parts, which are given its methods; the roles, which are made of
those parts, it gets when it is started.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, NamedTuple, Protocol

from prefork._system.locks import Lock
from prefork._system.log import WARNING

if TYPE_CHECKING:
    from prefork._engine.callbacks import CallbackRunner
    from prefork._engine.lifecycle import Lifecycle
    from prefork._engine.roles import ResultHandler, Role, Supervisor, TaskHandler, TimeoutHandler
    from prefork._engine.state import PoolState
    from prefork._engine.supervisor import WorkerSupervisor
    from prefork._system.condition import Condition

__all__ = ["WAIT_INSIDE", "Driver", "Roles", "Threads", "time_left"]


class Roles(NamedTuple):
    """The roles of one pool, and what they work on."""

    results: ResultHandler
    limits: TimeoutHandler
    supervisor: Supervisor
    callbacks: CallbackRunner
    state: PoolState
    lifecycle: Lifecycle
    workers: WorkerSupervisor


class Driver(Protocol):
    """Has the roles of one pool do their work."""

    def start(self, roles: Roles) -> None:
        """The workers are there: begin."""

    def supervises(self) -> bool:
        """Whether a pool that is told to terminate will do so of itself."""

    def feed(self, reader: TaskHandler, here: bool, at_once: bool) -> None:
        """Have an input read.

        Args:
            here: by the caller, who will wait for its end in any case.
            at_once: it is short, and iterating over it does not wait: what there is room for is
                read by the caller.
        """

    def rearm(self) -> None:
        """Something is due earlier than it was.

        Raises:
            RuntimeError: it needs a thread, and the system has none left.
        """

    def on_call(self) -> bool:
        """A callback is waiting to be run; False if there is nobody who can."""

    def wait(
        self, condition: Condition, predicate: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait until `predicate()`, at most `timeout` seconds; returns what it is then.

        Raises:
            RuntimeError: the caller is called by what it would wait for.
        """

    def end(self) -> None:
        """There are no workers any more: end the roles."""

    def join(self, timeout: float | None = None) -> bool:
        """The pool has ended: wait until the roles and the callbacks have, too."""

    def dropped(self) -> None:
        """Nobody holds the pool any more, and it was told to terminate; called by a finalizer."""

    def is_busy_here(self) -> bool:
        """Whether the caller is called by one of the roles, so that waiting would be in vain."""

    def serve_loop(self) -> None:
        """A task of the event loop that runs in this thread is about to wait for the pool.

        Raises:
            RuntimeError: another loop drives the pool.
        """

    def last_threads(self) -> list[tuple[Condition, Callable[[], bool]]]:
        """The pool has ended: what is notified when its last threads have, too, and what tells
        whether they have."""


WAIT_INSIDE = (
    "this waits for the pool, but is called by the pool itself, while it reads a result: "
    "nothing could arrive. Was it an object's own unpickling code? Or a signal handler that has "
    "interrupted the pool: then have it done by `call_soon`"
)


class Threads:
    """The default: plain threads, which sleep until there is work."""

    def __init__(self) -> None:
        self._roles: Roles | None = None
        self._starting = Lock()
        self._own_threads: set[int] = set()  # of the roles that results need, by identifier

    def start(self, roles: Roles) -> None:
        self._roles = roles
        roles.results.start(roles.lifecycle.crash_and_deliver, self._own_threads)
        roles.supervisor.start(roles.workers.crash, self._own_threads)

    def supervises(self) -> bool:
        return self._roles is not None and self._roles.supervisor.is_running

    def rearm(self) -> None:
        if (roles := self._roles) is None:
            return
        self._start_once(roles.limits, roles, self._own_threads)
        roles.limits.rearm()

    def on_call(self) -> bool:
        if (roles := self._roles) is None:
            return False
        try:
            self._start_once(roles.callbacks, roles)
        except RuntimeError as exc:
            roles.state.log.note(WARNING, "a callback has no thread to run on: %s", str(exc))
            return False
        return True

    def _start_once(self, role: Role, roles: Roles, threads: set[int] | None = None) -> None:
        if not role.is_started:
            with self._starting:
                if not role.is_started:
                    role.start(roles.lifecycle.crash, threads)

    def feed(self, reader: TaskHandler, here: bool, at_once: bool) -> None:
        if here:
            reader.body()
        elif at_once:
            reader.handle_event()
        if (here or at_once) and not isinstance(reader.error, Exception | None):
            raise reader.error  # KeyboardInterrupt: it is for this thread
        if not reader.has_ended and (roles := self._roles) is not None:
            reader.start(roles.lifecycle.crash)

    def wait(
        self, condition: Condition, predicate: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        # (Each call waits, so this is written out: no frames but its own.)
        if get_ident() in self._own_threads or (
            (roles := self._roles) is not None and roles.state.is_lock_held()
        ):
            raise RuntimeError(WAIT_INSIDE)
        return condition.wait(predicate, timeout)

    def is_busy_here(self) -> bool:
        return get_ident() in self._own_threads

    def serve_loop(self) -> None:
        pass  # these threads wake it

    def last_threads(self) -> list[tuple[Condition, Callable[[], bool]]]:
        if (roles := self._roles) is None:
            return []
        return [*roles.supervisor.ends(), *roles.callbacks.ends()]

    def dropped(self) -> None:
        pass  # the supervisor's thread ends the pool

    def end(self) -> None:
        if (roles := self._roles) is None:
            return
        for role in (roles.results, roles.limits):
            role.stop()
            role.join()
        roles.callbacks.stop()

    def join(self, timeout: float | None = None) -> bool:
        if (roles := self._roles) is None:
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        return roles.supervisor.join(timeout) and roles.callbacks.join(time_left(deadline))


def time_left(deadline: float | None) -> float | None:
    """Seconds until then (monotonic); None: there is no end."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())
