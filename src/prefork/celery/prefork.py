"""The pool, as celery's worker calls it.

    hub      the worker has an event loop (Redis, RabbitMQ, SQS): the pool has no threads, the loop
             drives it, and everything is called back in the loop's thread
    threads  it has none (SQL, a file system): the pool has threads of its own

This module is called so because celery looks at the last part of a pool's module in its banner
and in `celery.contrib.testing`, where "prefork" means worker processes.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from billiard.common import TERM_SIGNAL
from billiard.exceptions import SoftTimeLimitExceeded
from celery.concurrency import prefork as stock
from celery.platforms import EX_FAILURE
from celery.worker import state
from celery.worker.request import Request

import prefork.adapters
import prefork.taskpool.pool
from prefork import errors
from prefork._engine.callbacks import CallbackRunner
from prefork._engine.loop_driver import Loop
from prefork.celery import child, failures, rejections, shutdown
from prefork.taskpool.task import Task

__all__ = ["Pool", "TaskPool"]

logger = logging.getLogger("prefork")

ACCEPT_SECONDS = 0.005
"""How late celery may learn that a task has started: what is done by then costs less."""
FIRST_START_SECONDS = 600.0
"""How long the first processes may take to start. `worker_proc_alive_timeout` is for those that
replace them, as in celery's own pool: the first ones all start at once."""


class Callbacks(CallbackRunner):
    """Celery's callbacks. What they raise on purpose ends the worker."""

    def run(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as exc:
            if not isinstance(exc, MemoryError):
                logger.exception("a callback of celery raised")
            elif self.is_started:
                stop_the_worker(exc)
            else:
                raise


def stop_the_worker(why: BaseException) -> None:
    """Have celery's loop end the worker, with an error."""
    logger.critical("the worker stops: %s", why)
    state.should_stop = EX_FAILURE


class Pool(prefork.adapters.AdapterPool):
    CallbackRunner = Callbacks
    Process = child.Process  # type: ignore[assignment]  # `Pool.Process` is no class of its own
    SoftTimeLimitExceeded = SoftTimeLimitExceeded
    first_start_timeout = FIRST_START_SECONDS


class SpawnPool(Pool):
    Process = child.SpawnProcess


class TaskPool(prefork.taskpool.pool.TaskPool, stock.TaskPool):  # type: ignore[misc]
    """Celery's worker pool.

    Its stock pool is a base class for the sake of the places that ask whether a pool is one, such
    as `--concurrency auto`; nothing of it is used.
    """

    initializer = staticmethod(child.process_initializer)

    heed_seconds = 5.0
    """In a cold shutdown, a task that celery has cancelled has so long to heed that: then a process
    whose code runs no signal handler is killed, so that its task is accounted for before those who
    stop the worker lose patience (Docker: 10 s)."""
    cold_seconds = 25.0
    """So long it has in all, its `finally` blocks included (Kubernetes, Heroku: 30 s)."""

    _cold_since: float | None = None  # monotonic: celery has cancelled what it knew to run

    # ---- its life

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.threads and self.app is not None:
            self.app.steps["consumer"].add(rejections.Rejections)

    def on_start(self) -> None:
        if not self.options.get("forking_enable", True):
            os.environ[child.FRESH] = "1"
            self.Pool = SpawnPool
        else:
            self.Pool = Pool
        super().on_start()
        if self.slots is not None and self.limit < 1:  # as with --autoscale=10,0
            self.slots.grow(1 - self.limit)
        self.pool.when_broken(stop_the_worker)

    def pool_options(self) -> dict[str, Any]:
        options = super().pool_options()
        options["context"] = "fork" if self.options.get("forking_enable", True) else "spawn"
        options["accept_delay"] = ACCEPT_SECONDS
        options.pop("max_restarts", None)  # celery's is for a pool that counts otherwise
        if self.app is not None and self.app.conf.worker_proc_alive_timeout:
            options["start_timeout"] = self.app.conf.worker_proc_alive_timeout
        return options

    def register_with_event_loop(self, loop: Loop) -> None:
        super().register_with_event_loop(loop)

    def on_stop(self) -> None:
        if self._pool is None:
            return
        self._pool.close()
        if self._pool.is_busy_here():  # a signal handler calls, which has interrupted it
            self._pool.call_soon(self.on_stop)
            return
        if state.should_terminate and self._cold_since is None:
            self._cold_since = time.monotonic()
            for task in list(self.tasks):
                if task.pid is None:
                    self._give_back(task)
                elif task.signum is None:  # a thread has told celery of it meanwhile
                    task.abandon(TERM_SIGNAL)
        shutdown.drain(self._pool, self._press)

    def _press(self) -> None:
        """In a cold shutdown: kill the processes of cancelled tasks that take too long."""
        if self._cold_since is None:
            return
        seconds = time.monotonic() - self._cold_since
        for task in list(self.tasks):
            if task.pid is None or task.signum in (None, signal.SIGKILL):
                continue
            if seconds >= self.cold_seconds or (
                seconds >= self.heed_seconds and not child.has_heeded(task.pid, task.signum)
            ):
                text = "%s does not end: process %s is killed"
                logger.warning(text, self.name_of(task), task.pid)
                task.terminate()

    def stopped_meanwhile(self) -> None:
        self.on_stop()

    def _give_back(self, task: Task) -> None:
        """In a cold shutdown, celery has just cancelled the tasks that it knows to run. This one it
        has not been told of: it goes back to the broker, as nothing is acknowledged.

        Unless it has started, and is acknowledged early: it must not run twice, so celery is told
        of the start, and cancels it like the others.
        """
        request = getattr(task.accept_callback, "__self__", None)
        if not isinstance(request, Request) or request.task.acks_late:
            task.abandon(TERM_SIGNAL)
            return

        def accepted(pid: int, since: float) -> None:
            request.on_accepted(pid, since)
            if task.handle is not None and not task.handle.ready():
                request.cancel(self)

        task.accept_callback = accepted
        task.withdraw()

    # ---- tasks

    def refuse(self, error: Exception) -> None:
        """A pool that is closed takes no task: the message is not acknowledged, so the broker
        delivers it again."""
        if self.active:
            raise error
        logger.debug("a task was not taken: %s", error)

    def flush(self) -> None:
        super().flush()
        # Celery has just declared all slots to be free. Those tasks that go on have none, or there
        # would be as many more than there are processes, for as long as tasks wait.
        for task in self.tasks:
            task.holds_slot = False

    def drops(self, task: Task, error: BaseException) -> bool:
        """What has not been started goes back to the broker, if the pool ends."""
        if isinstance(error, errors.PoolBrokenError) and task.pid is None:
            return True
        return super().drops(task, error)

    def translate(self, task: Task, error: BaseException) -> object:
        return failures.exception_info(failures.translate(error, task, self.name_of(task)))

    def name_of(self, task: Task) -> str:
        name = next(iter(task.args), "?")
        return f"{name}[{task.id}]"
