"""One start of a worker: its parts, and what becomes of them if it fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Any, Protocol

from prefork._engine.taps import Tap
from prefork._engine.templates import Origin
from prefork._engine.worker_handle import WorkerHandle
from prefork._ipc.channel import Channel
from prefork._system import std_internals
from prefork._system.child import Child, fork_server_pid
from prefork._system.condition import Condition
from prefork._system.newborn import SettingName
from prefork._system.process import Process
from prefork._system.threads import BackgroundThread
from prefork._worker.environment import Place

__all__ = ["BackgroundStart", "PendingWorker", "persist"]

LATE_SECONDS = 10.0
"""How long to wait for the end of a worker whose start has come too late."""

DYING_SECONDS = 0.05, 0.1, 0.2, 0.4, 0.8
"""How long to wait before the next try, after the fork server has died."""


class WorkerSettings(Protocol):
    """What it is made with; see `Options`."""

    @property
    def context(self) -> BaseContext: ...

    @property
    def process_class(self) -> type[Process]: ...

    def tasks_of_next(self) -> int | None: ...

    def at_place(self, index: int) -> Place | None: ...


class PendingWorker:
    """A worker that is being started.

    Attributes:
        place: see `Process.index`.
        name: of the process.
        origin: where it comes from.
    """

    def __init__(
        self,
        options: WorkerSettings,
        run: Callable[..., object],
        name: str,
        place: int,
        origin: Origin,
        tap: Tap | None = None,
    ) -> None:
        self.place = place
        self.origin = origin
        self.name = name
        self._tasks = options.tasks_of_next()
        self._tap = tap
        self._channel = Channel()
        self._end = self._channel.take_worker_end()
        own = options.at_place(place)
        if own is not None and not std_internals.is_forking(options.context):
            name = SettingName(name, own.variables)
        args: tuple[Any, ...] = (self._end, self._tasks, own)
        fds: tuple[int, ...] = self._end.fds()
        if tap is not None:
            self._tap_end = tap.take_worker_end()
            args, fds = (*args, self._tap_end), (*fds, *self._tap_end.fds())
        self._highest = max(fds)
        try:
            self._child = Child(
                options.process_class,
                options.context,
                name,
                run,
                args,
                fds,
                place,
                origin.ties,
            )
        except BaseException:
            self._close()
            raise

    @property
    def highest_descriptor(self) -> int:
        """Of this process, as far as this worker's are concerned."""
        return self._highest

    def start(self) -> None:
        self._child.start()

    def worker(self) -> WorkerHandle:
        """It has been started.

        Raises:
            TemplateLostError: it is not known whether it has; it has to be discarded.
        """
        self._end.close()
        if self._tap is not None:
            self._tap_end.close()
        self._child.look_after()
        self._channel.open()
        generation = self.origin.generation
        worker = WorkerHandle(self._channel, self._child, self.name, generation, self._tap)
        if self._tasks is not None:
            worker.limit_tasks(self._tasks)
        return worker

    def discard(self) -> None:
        """It is not to be, or has come too late: the pool did not wait for it."""
        self._close()
        self._child.discard(LATE_SECONDS)

    def _close(self) -> None:
        self._end.close()
        self._channel.close()
        if self._tap is not None:
            self._tap_end.close()
            self._tap.close()


class BackgroundStart:
    """One worker's start, on a thread of its own.

    Args:
        spawn: starts the worker.
        done: called on that thread when there is an outcome.
    """

    def __init__(self, spawn: Callable[[], object], done: Callable[[], object]) -> None:
        self.began = time.monotonic()
        self.error: Exception | None = None
        self._spawn, self._done = spawn, done
        self.ended = False
        self._end = Condition()
        BackgroundThread(self._run, "prefork-Start").start()

    def _run(self) -> None:
        try:
            self._spawn()
        except Exception as exc:
            self.error = exc
        finally:
            self.ended = True
            self._end.notify_all()
            self._done()

    def finish(self, timeout: float | None) -> None:
        """Wait for its end, at most so many seconds.

        Raises:
            TimeoutError: it has not ended.
            Exception: what `spawn` has raised.
        """
        if not self._end.wait(lambda: self.ended, timeout):
            raise TimeoutError(f"no worker process could be started within {timeout:g} s")
        if self.error is not None:
            raise self.error


def persist(context: BaseContext, start: Callable[[], object]) -> None:
    """Start workers; again, if it is the fork server that has died over it: another one takes its
    place. One dies when somebody who is asking it for a child is interrupted. If the other one
    dies, too, it is of the program, whose main module it imports."""
    first = None
    for pause in DYING_SECONDS:
        try:
            start()
            return
        except (EOFError, ConnectionError):
            server = fork_server_pid(context)
            if server is None or server != (first := first or server):
                raise
            time.sleep(pause)  # it may still be dying, and look alive
    start()
