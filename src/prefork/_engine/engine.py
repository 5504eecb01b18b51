"""A running pool from the inside: its workers, its jobs, its roles, and what drives them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from multiprocessing import util
from typing import NamedTuple

from prefork._engine.callbacks import CallbackRunner
from prefork._engine.drivers import Driver, EventLoop, Roles, Threads
from prefork._engine.job_factory import JobFactory
from prefork._engine.observer import Observer
from prefork._engine.roles import LazyOutput, ResultHandler, Supervisor, TaskHandler, TimeoutHandler
from prefork._engine.spawner import Options
from prefork._engine.state import State
from prefork._engine.supervisor import Staff
from prefork._engine.terminator import Enforcement
from prefork._policy.job import Job
from prefork._policy.limits import Limits
from prefork.errors import Terminated

__all__ = ["Engine", "RoleClasses"]

CALLBACK_SECONDS = 5.0
"""How long the callbacks of a pool that was left behind may take at the interpreter's exit."""


class RoleClasses(NamedTuple):
    """What the roles are made of; a subclass of the pool may name others."""

    results: type[ResultHandler]
    tasks: type[TaskHandler]
    limits: type[TimeoutHandler]
    supervisor: type[Supervisor]
    callbacks: type[CallbackRunner]


class Engine:
    """Made first, then started, so that somebody holds it who will drop it, whatever happens."""

    def __init__(
        self, options: Options, limits: Limits, classes: RoleClasses, threads: bool
    ) -> None:
        self.limits = limits
        self.staff = staff = Staff(options)
        self.jobs = jobs = staff.jobs
        self.make = JobFactory(jobs.accounts.may_open_payload, staff.memfd_cache)
        self.enforcement = Enforcement(jobs, options.max_memory_per_task)
        self.observer = Observer(staff)
        self._task_handler = classes.tasks
        self.callbacks = classes.callbacks(threads)
        self.driver = self._make_driver(classes, threads)

    def _make_driver(self, classes: RoleClasses, threads: bool) -> Driver:
        jobs, limits = self.jobs, self.limits
        roles = Roles(
            classes.results(
                jobs.outboxes,
                jobs.collect,
                jobs.accounts.open,
                jobs.outboxes.ready,
                jobs.check_done,
                jobs.slot_free,
            ),
            classes.limits(
                self.enforcement, jobs.accounts.open, limits.soft_timeout, limits.timeout
            ),
            classes.supervisor(self.staff),
            self.callbacks,
        )
        return Threads(roles, self.staff) if threads else EventLoop(roles, self.staff)

    def start(self) -> None:
        """The workers are hired first, as a fork is best done before there are threads.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        try:
            self._start()
        except BaseException:
            self._undo()
            raise

    def _undo(self) -> None:
        why = "the pool could not be started"
        if self.driver.supervises():  # it was interrupted at the very end
            self.staff.request_termination(why)
            self.staff.wait_until_ended()
            return
        with contextlib.ExitStack() as undo:  # last in, first out; each is done in any case
            undo.callback(self.staff.release)
            undo.callback(self.staff.kill_all)
            self.jobs.stop(Terminated(why))

    def _start(self) -> None:
        has_threads = isinstance(self.driver, Threads)
        if has_threads and self.staff.options.context.get_start_method() == "fork":
            self.staff.recruiter.pausing = self.callbacks.pausing
        elif has_threads:
            self.staff.recruiter.starts_aside = True
        self.jobs.wait_for = self.driver.wait
        # At the interpreter's exit, before multiprocessing waits for its children.
        finalizer = util.Finalize(None, self._at_exit, exitpriority=15)
        self.staff.at_end.append(finalizer.cancel)
        self.staff.recruiter.hire_first()
        self.driver.start()

    def feed(
        self,
        jobs: Generator[Job, None, None],
        result: LazyOutput,
        here: bool = False,
        wait: bool = False,
    ) -> None:
        """Have the jobs of an input made and submitted as there is room; see `Driver.feed`."""
        feeder = self._task_handler(jobs, self.jobs.submit_fed, result, self.jobs)
        try:
            self.jobs.begin_feed(feeder)
            self.driver.feed(feeder, here, wait)
        except BaseException:
            self.jobs.end_feed(feeder)
            raise

    def call_soon(self, call: Callable[..., object], *args: object) -> None:
        self.callbacks(call, *args)

    def is_busy_here(self) -> bool:
        """Whether the caller is called by a role, or has interrupted one that holds the lock."""
        return self.driver.is_busy_here() or self.jobs.lock._is_owned()  # type: ignore[attr-defined]

    # ---- the end

    def terminate(self) -> None:
        """Terminate and wait for the end; unless a role of the pool asks for it, or a finalizer
        that interrupted one: they would wait for themselves."""
        self.staff.request_termination()
        if not self.is_busy_here():
            self.staff.wait_until_ended()

    def join(self, timeout: float | None = None) -> bool:
        if self.jobs.state is State.RUN:
            self.jobs.check_owner()
            raise ValueError("the pool is still running: call close() or terminate() before join()")
        deadline = None if timeout is None else time.monotonic() + timeout
        self.jobs.read_on()
        if not self.staff.wait_until_ended(timeout):
            return False
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return self.driver.join(left)

    def drop(self) -> None:
        """Nobody holds the pool any more."""
        if not self.staff.ended:
            self.staff.request_termination("the pool object was dropped")
            self.driver.dropped()

    def _at_exit(self) -> None:
        """Terminate a pool that was left behind. Its callbacks get a while to end: a thread that
        is still printing when the interpreter is taken down would take the process down with it."""
        self.terminate()
        self.callbacks.join(CALLBACK_SECONDS)
