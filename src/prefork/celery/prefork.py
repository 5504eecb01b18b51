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

from billiard.exceptions import SoftTimeLimitExceeded
from celery.concurrency import prefork as stock
from celery.platforms import EX_FAILURE
from celery.worker import state
from celery.worker.request import Request

import prefork.pool
import prefork.taskpool.pool
from prefork import errors
from prefork._engine.callbacks import CallbackRunner
from prefork._engine.drivers import Loop
from prefork.celery import child, failures, rejections, shutdown
from prefork.statistics import WorkerState
from prefork.taskpool.task import Task

__all__ = ["Pool", "TaskPool"]

logger = logging.getLogger("prefork")

ACCEPT_SECONDS = 0.005
"""How late celery may learn that a task has started: what is done by then costs less."""


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


class Pool(prefork.pool.Pool):
    CallbackRunner = Callbacks
    Process = child.Process
    SoftTimeLimitExceeded = SoftTimeLimitExceeded


class SpawnPool(Pool):
    Process = child.SpawnProcess


class TaskPool(prefork.taskpool.pool.TaskPool, stock.TaskPool):  # type: ignore[misc]
    """Celery's worker pool.

    Its stock pool is a base class for the sake of the places that ask whether a pool is one, such
    as `--concurrency auto`; nothing of it is used.
    """

    initializer = staticmethod(child.process_initializer)
    _gave_back = False  # what celery did not know to run, in a cold shutdown

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

    def did_start_ok(self) -> bool:
        """Wait until a process can run tasks; whether one can."""
        timeout = self.options.get("start_timeout") or 60.0
        deadline = time.monotonic() + timeout
        while super().did_start_ok() and time.monotonic() < deadline:
            workers = self.pool.statistics().workers
            if any(worker.state is not WorkerState.STARTING for worker in workers):
                return True
            self.pool.handle_events(deadline - time.monotonic())
        return super().did_start_ok()

    def register_with_event_loop(self, loop: Loop) -> None:
        super().register_with_event_loop(loop)

    def on_stop(self) -> None:
        if self._pool is None:
            return
        self._pool.close()
        if self._pool.is_busy_here():  # a signal handler calls, which has interrupted it
            self._pool.call_soon(self.on_stop)
            return
        if state.should_terminate and not self._gave_back:
            self._gave_back = True
            for task in list(self.tasks):
                if task.pid is None:
                    self._give_back(task)
                elif task.signum is None:  # a thread has told celery of it meanwhile
                    task.abandon(signal.SIGTERM)
        shutdown.drain(self._pool)

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
            task.abandon(signal.SIGTERM)
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

    def limit_of(self, task: Task, error: errors.TimeLimitExceeded) -> Any:
        return failures.Limit.of(error, self.name_of(task))

    def name_of(self, task: Task) -> str:
        name = next(iter(task.args), "?")
        return f"{name}[{task.id}]"
