"""The roles of a running pool; each on a thread of its own, or in somebody's event loop.

    TaskHandler      a lazy input → jobs, no further ahead than there is room for
    ResultHandler    the workers' outboxes → results, to whoever waits for them
    TimeoutHandler   time limits → a signal, or a kill
    Supervisor       ends of workers → accounts and successors; the end of the pool
    CallbackRunner   the users' callbacks, one after another

A role has three faces. `fileno()` is readable when there is work (or `timeout()` says when there
will be); `handle_event()` does what can be done now, without waiting; `body()` waits and handles
events until the role is stopped, and is what the role's thread runs. Which of them are used, the
pool's driver decides (`prefork.drivers`).

Subclasses may override any of these, and are used by a pool whose class names them:
`class MyPool(Pool): Supervisor = MySupervisor`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from prefork._system.condition import Condition
from prefork._system.threads import BackgroundThread

if TYPE_CHECKING:
    from prefork._engine.dispatcher import Wait
    from prefork._engine.outcomes import OutcomeQueue
    from prefork._engine.supervisor import WorkerSupervisor
    from prefork._engine.worker_handle import WorkerHandle
    from prefork._inspection.endpoint import Endpoint
    from prefork._policy.job import Job
    from prefork._system.selector import Selector

__all__ = ["ResultHandler", "Role", "Supervisor", "TaskHandler", "TimeoutHandler"]


class Role:
    """What the roles share: a thread that runs `body` until `stop`."""

    def __init__(self) -> None:
        self._stopped = False
        self._thread: BackgroundThread | None = None

    def start(
        self, on_crash: Callable[[BaseException], object], threads: set[int] | None = None
    ) -> None:
        """Run `body` on a daemon thread; what it raises, a bug, goes to `on_crash`.

        Args:
            threads: has the thread's identifier as long as it runs.

        Raises:
            RuntimeError: the interpreter is ending, or the system has no thread left.
        """

        def run() -> None:
            ident = threading.get_ident()
            if threads is not None:
                threads.add(ident)
            try:
                self.body()
            except BaseException as exc:
                on_crash(exc)
            finally:
                if threads is not None:
                    threads.discard(ident)

        self._thread = BackgroundThread(run, f"prefork-{type(self).__name__}")
        self._thread.start()

    @property
    def is_started(self) -> bool:
        """Whether it has a thread."""
        return self._thread is not None and self._thread.is_started

    @property
    def is_running(self) -> bool:
        """Whether it has a thread that has not ended."""
        return self._thread is not None and self._thread.is_running

    def ends(self) -> list[tuple[Condition, Callable[[], bool]]]:
        """What is notified when its thread has ended, and what tells whether it has; if there is
        one, and it is not this."""
        thread = self._thread
        if thread is None or thread.is_current or not thread.is_running:
            return []
        return [(thread.end, lambda: not thread.is_running)]

    def timeout(self) -> float | None:
        """Seconds until `handle_event` is to be called in any case, or None."""
        return None

    def handle_event(self) -> None:
        """Do what can be done now, without waiting."""
        raise NotImplementedError

    def body(self) -> None:
        """Wait and handle events until stopped."""
        raise NotImplementedError

    def stop(self) -> None:
        """Have `body` return soon."""
        self._stopped = True

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread; a role that calls this on itself returns at once. Whether it has
        ended, or never was."""
        return self._thread is None or self._thread.join(timeout)


class ResultHandler(Role):
    """Takes the results from the workers and gives them to those who wait.

    Args:
        outqueue: the outboxes of all workers; it has a `fileno()`, and a `wakeup` to be woken by.
        get: called with the workers whose outboxes are readable; returns what is
            to be told about jobs.
        cache: the open jobs by id.
        poll: waits at most so many seconds (None: for ever) and returns the readable workers.
        join_exited_workers: called when all has been told, for what waits for ends of jobs.
        putlock: notified then, too: who waits for a free worker waits for it.
    """

    def __init__(
        self,
        outqueue: Selector[WorkerHandle],
        get: Callable[[Iterable[WorkerHandle]], OutcomeQueue],
        cache: Mapping[int, Job],
        poll: Callable[[float | None], list[WorkerHandle]],
        join_exited_workers: Callable[[], object],
        putlock: Condition,
    ) -> None:
        super().__init__()
        self.outqueue = outqueue
        self.get = get
        self.cache = cache
        self.poll = poll
        self.join_exited_workers = join_exited_workers
        self.putlock = putlock

    def fileno(self) -> int:
        return self.outqueue.fileno()

    def body(self) -> None:
        while not self._stopped:
            self._handle(self.poll(None))
        self.handle_event()

    def handle_event(self) -> None:
        self._handle(self.poll(0))

    def _handle(self, workers: list[WorkerHandle]) -> None:
        if workers and len(self.cache) == 1:
            self._wake_early()
        outcomes = self.get(workers)
        if not outcomes:
            return
        outcomes.deliver()
        self.putlock.notify_all()
        self.join_exited_workers()

    def _wake_early(self) -> None:
        """It must be the result of the only job there is. A thread needs longer to wake up than
        the result takes to be read; an event loop would look in vain, and has to be woken again."""
        for job in list(self.cache.values()):
            if (condition := job.sink.waiters()) is not None:
                condition.wake_threads()

    def stop(self) -> None:
        super().stop()
        self.outqueue.wakeup.set()


class TaskHandler(Role):
    """Reads one lazy input and makes jobs of it, as room allows. One for each such input, so that
    no input can hold up another.

    Args:
        taskqueue: yields the jobs; reading the user's iterable happens in here.
        put: hands one job to the workers.
        outqueue: the collection that the results go to; tells whether there is room for more.
        pool: the running pool, to be told of the end of the input.
    """

    def __init__(
        self,
        taskqueue: Generator[Job, None, None],
        put: Callable[[Job], object],
        outqueue: LazyOutput,
        pool: InputEnd,
    ) -> None:
        super().__init__()
        self.taskqueue = taskqueue
        self.put = put
        self.outqueue = outqueue
        self.pool = pool
        self.error: BaseException | None = None  # what ended the input early
        self._has_all_room = False
        self.has_ended = False
        self._is_reading = False

    def body(self) -> None:
        while not self.has_ended:
            self.pool.wait_for(self.outqueue.room, self._can_go_on)
            self.handle_event()

    def handle_event(self) -> None:
        """Submit as many jobs as there is room for."""
        if self._is_reading or self.has_ended:  # the user's iterable has had the pool call this
            return
        self._is_reading = True
        try:
            while not self._is_over():
                if not (self._has_all_room or self.outqueue.has_room()):
                    return
                if (job := next(self.taskqueue, None)) is None:
                    break
                self.put(job)
            self._end()
        except BaseException as exc:  # of the user's iterable: it goes to who reads the results
            # The exception holds this frame, and the result the exception. A job that was not taken
            # holds the result, and the garbage collector, which does not know of jobs, would never
            # see the cycle.
            job = None
            self.error = exc
            self._end()
        finally:
            self._is_reading = False

    def _is_over(self) -> bool:
        return self._stopped or self.outqueue.cancelled

    def _can_go_on(self) -> bool:
        return self._is_over() or self._has_all_room or self.outqueue.has_room()

    def _end(self) -> None:
        self.has_ended = True
        try:
            self.taskqueue.close()  # and with it the user's generator
            self.outqueue.end(self.error)
        finally:
            self.pool.end_input(self)

    def abort(self, reason: Exception) -> None:
        """End the results with this error, even while the user's iterable keeps us waiting."""
        self.outqueue.end(reason)
        self.stop()

    def read_on(self) -> None:
        """Do not wait for room any more: nobody will make any before the input's end."""
        self._has_all_room = True
        self.outqueue.room.notify_all()

    def is_needed(self) -> bool:
        return not self.outqueue.cancelled

    def stop(self) -> None:
        super().stop()
        self.outqueue.room.notify_all()


class InputEnd(Protocol):
    """The running pool, as it is told of the end of an input."""

    wait_for: Wait

    def end_input(self, reader: TaskHandler, /) -> None: ...


class LazyOutput(Protocol):
    """Where the results of a lazy input go."""

    room: Condition
    cancelled: bool

    def has_room(self) -> bool: ...

    def end(self, error: BaseException | None = None) -> None: ...


class LimitedProcesses(Protocol):
    """The workers as the time limits see them."""

    @property
    def next_due(self) -> Callable[[], float | None]: ...

    def run_due(self, now: float) -> None: ...


class TimeoutHandler(Role):
    """Enforces the time limits. It sleeps until the next one can expire; nothing is polled.

    Args:
        processes: tells when a limit can expire, and does what follows when it has.
        cache: the open jobs by id.
        t_soft, t_hard: the limits of jobs that ask for none, seconds; None is no limit.
    """

    def __init__(
        self,
        processes: LimitedProcesses,
        cache: Mapping[int, Job],
        t_soft: float | None,
        t_hard: float | None,
    ) -> None:
        super().__init__()
        self.processes = processes
        self.cache = cache
        self.t_soft = t_soft
        self.t_hard = t_hard
        self._rearmed = Condition()
        self._armed_for: float | None = None

    def timeout(self) -> float | None:
        """Seconds until `handle_event` is to be called, or None while no limit runs."""
        return _seconds_until(self.processes.next_due())

    def body(self) -> None:
        while not self._stopped:
            self._armed_for = self.processes.next_due()
            self._rearmed.wait(self._is_rearmed, _seconds_until(self._armed_for))
            self.handle_event()

    def _is_rearmed(self) -> bool:
        return self._stopped or self.processes.next_due() != self._armed_for

    def handle_event(self) -> None:
        now = time.monotonic()
        next_due = self.processes.next_due()
        if next_due is None or now < next_due:
            return
        self.processes.run_due(now)

    def rearm(self) -> None:
        """The next limit may expire earlier than was known."""
        self._rearmed.notify_all()

    def stop(self) -> None:
        super().stop()
        self._rearmed.notify_all()


def _seconds_until(due: float | None) -> float | None:
    return None if due is None else max(0.0, due - time.monotonic())


class Supervisor(Role):
    """Notices the ends of workers, has them accounted for and replaced; ends the pool.

    Args:
        pool: the workers of the running pool, and what is done about them.
    """

    def __init__(self, pool: WorkerSupervisor) -> None:
        super().__init__()
        self.pool = pool
        self.exits = pool.exits
        self._wait: float | None = None

    def fileno(self) -> int:
        return self.exits.fileno()

    def timeout(self) -> float | None:
        """Seconds until `handle_event` is to be called in any case, or None."""
        return self._wait

    def body(self) -> None:
        while not self.pool.ended:
            self._handle(self.exits.ready(self._wait))

    def handle_event(self) -> None:
        if not self.pool.ended:
            self._handle(self.exits.ready(0))

    def _handle(self, ready: Iterable[WorkerHandle | Endpoint]) -> None:
        self._wait = self.pool.supervise(ready)
        if self.pool.is_over():
            self.pool.release()
