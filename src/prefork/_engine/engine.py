"""A running pool from the inside. Its parts are made and wired here, and nowhere else.

    state ◄── dispatcher ◄── retrier ◄── collector ◄── terminator ◄── time limits
                  ▲                          ▲
                  └──────── lifecycle ───────┘ ◄── spawner ◄── supervisor

A part knows those that its arrow points to, directly or along the arrows. What drives them all, the
driver, is made first: its ways to wait and to be woken are given to the parts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import util
from typing import Any, NamedTuple

from prefork._engine.answers import Answers
from prefork._engine.callbacks import CallbackRunner
from prefork._engine.collector import Collector
from prefork._engine.dispatcher import Dispatcher
from prefork._engine.drivers import Driver, Roles, Threads
from prefork._engine.job_factory import JobFactory
from prefork._engine.lifecycle import Lifecycle
from prefork._engine.loop_driver import EventLoop
from prefork._engine.observer import Observer
from prefork._engine.options import Options
from prefork._engine.retrier import Retrier
from prefork._engine.roles import (
    LazyOutput,
    ResultHandler,
    Supervisor,
    TaskHandler,
    TimeoutHandler,
)
from prefork._engine.spawner import Spawner
from prefork._engine.state import PoolPhase, PoolState
from prefork._engine.supervisor import WorkerSupervisor
from prefork._engine.taps import Taps
from prefork._engine.terminator import Terminator
from prefork._engine.time_limits import TimeLimits
from prefork._inspection.endpoint import Endpoint, is_wanted
from prefork._inspection.questions import IS_SUPPORTED
from prefork._ipc.main_module import WorkersMain
from prefork._ipc.memfd import MemfdCache
from prefork._policy.job import Job
from prefork._policy.limits import Limits
from prefork._policy.timers import MEMORY_SECONDS, Timers
from prefork._system import at_fork, event_loops
from prefork._system.condition import Condition
from prefork._system.locks import RLock
from prefork._system.log import DEBUG, Log
from prefork._system.resources import available_cpus
from prefork._system.running_loop import asyncio_loop
from prefork._system.threads import BackgroundThread
from prefork._system.uninterrupted import uninterrupted
from prefork.errors import Terminated

__all__ = ["Engine", "Owner", "RoleClasses"]

LOG_SECONDS = 1.0
"""How long the end of a pool waits for what it had to log; a handler may be slow, or stuck."""

CALLBACK_SECONDS = 5.0
"""How long the callbacks of a pool that was left behind may take at the interpreter's exit."""


NOT_STARTED = "the pool could not be started"


class RoleClasses(NamedTuple):
    """What the roles are made of; a subclass of the pool may name others."""

    results: type[ResultHandler]
    tasks: type[TaskHandler]
    limits: type[TimeoutHandler]
    supervisor: type[Supervisor]
    callbacks: type[CallbackRunner]


class Owner:
    """Held by whoever holds the pool: when nobody does any more, the pool is dropped."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.drop()


class Engine:
    """Made first, then started, so that somebody holds it who will drop it, whatever happens.

    Attributes:
        state, dispatcher, lifecycle, terminator, supervisor, observer: the parts that faces call.
        factory: makes jobs of calls.
        callbacks: calls what users want to have called.
        driver: drives all of them.
        options: what the workers are made with.
        limits: of jobs that ask for none.
    """

    def __init__(
        self, options: Options, limits: Limits, classes: RoleClasses, threads: bool
    ) -> None:
        self.limits = limits
        self.options = options
        self._classes = classes
        self._growing = RLock()
        self._was_left_running = False  # it was dropped, and nobody had ended it
        self._has_started = False
        self._undoing = BackgroundThread(self._undo_here, "prefork-Undo")
        self._finalizer: Any = None
        self.driver: Driver = Threads() if threads else EventLoop()
        self._log = log = Log(in_background=threads)
        self.callbacks = classes.callbacks(self.driver.on_call, log)
        self.state = state = PoolState(log, max(2, options.cpus or available_cpus()))
        if not threads:
            state.scheduler.hold_no_more()  # timers on a loop cost more than that saves
        measures = options.max_memory_per_task is not None
        timers = Timers(MEMORY_SECONDS if measures else None, options.accept_delay)
        memfd_cache = MemfdCache(state.wake_supervisor)
        self._main = WorkersMain(options.start_method == "fork", state.oldest_generation)
        self.factory = JobFactory(
            state.open_jobs.may_open_file, memfd_cache, self._main, options.capture
        )
        self.dispatcher = dispatcher = Dispatcher(
            state, timers, self.driver.rearm, self.driver.wait, self.callbacks
        )
        retrier = Retrier(state, timers, dispatcher)
        collector = Collector(state, timers, dispatcher, retrier)
        self.lifecycle = lifecycle = Lifecycle(state, collector, self.callbacks)
        self.terminator = terminator = Terminator(state, dispatcher, collector)
        time_limits = TimeLimits(
            state, timers, dispatcher, terminator, retrier, options.max_memory_per_task
        )
        self._taps = self._make_taps()
        self._spawner = Spawner(
            options,
            state,
            dispatcher,
            lifecycle,
            in_background=threads and options.start_method != "fork",
            pausing=self._pausing(threads),
            on_generation=self._main.note,
            taps=self._taps,
        )
        self.supervisor = supervisor = WorkerSupervisor(
            options.processes,
            state,
            dispatcher,
            collector,
            lifecycle,
            self._spawner,
            memfd_cache,
            self._on_end,
        )
        self.observer = Observer(state, supervisor)
        self._roles = Roles(
            classes.results(
                state.outboxes,
                collector.collect,
                state.open_jobs.by_id,
                state.outboxes.ready,
                state.check_done,
                state.slot_free,
            ),
            classes.limits(time_limits, state.open_jobs.by_id, limits.soft_timeout, limits.timeout),
            classes.supervisor(supervisor),
            self.callbacks,
            state,
            lifecycle,
            supervisor,
        )
        at_fork.register(self)

    def _make_taps(self) -> Taps | None:
        """What reads that which workers send beside their results; None: nobody has asked."""
        if self.options.observing is None:
            return None
        from prefork._observe.receiver import Receiver

        return Receiver(self.options.observing, self._log)

    def _pausing(self, threads: bool) -> Callable[[float], AbstractContextManager[object]]:
        """What a start waits for: with fork, that the thread of the callbacks is quiet."""
        if threads and self.options.start_method == "fork":
            return self.callbacks.pausing
        return nullcontext

    # ---- the beginning

    def start(self) -> None:
        """The workers are started first, as a fork is best done before there are threads.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        try:
            # At the interpreter's exit, before multiprocessing waits for its children.
            self._finalizer = util.Finalize(None, self._at_exit, exitpriority=15)
            self._spawner.spawn_first()
            uninterrupted(self._be_observable)
            if self._taps is not None:
                self._taps.start()
            self.driver.start(self._roles)
            self._has_started = True
        except BaseException:
            self._undo()
            self._log.flush(LOG_SECONDS)
            raise

    def _be_observable(self) -> None:
        """It can be asked from outside what it does; unless that is not wanted, or not possible."""
        if not (self.options.is_observable and is_wanted() and IS_SUPPORTED):
            return
        answers = Answers(self.state, self.observer, self.terminator, self.options)
        try:
            endpoint = Endpoint(answers)
        except OSError as exc:  # no descriptor is left; or where it runs, none is allowed
            self._log.note(DEBUG, "this pool cannot be asked from outside: %s", str(exc))
            return
        self.supervisor.serve(endpoint)

    def _undo(self) -> None:
        """The start has failed, or was interrupted: end what there is, and wait for that."""
        if self.driver.supervises():  # it was interrupted at the very end
            self.supervisor.request_termination(NOT_STARTED)
            self.supervisor.wait_until_ended()
        else:
            uninterrupted(self._undo_aside)
            self._undoing.join()

    def _undo_aside(self) -> None:
        """On a thread, where no signal handler that raises can interrupt it, which would leave the
        workers to nobody. Whoever has begun this need not wait for its end."""
        if self._undoing.is_started:
            return
        try:
            self._undoing.start()
        except RuntimeError:  # the system has no thread left
            self._undo_here()

    def _undo_here(self) -> None:
        with contextlib.ExitStack() as undo:  # last in, first out; each is done in any case
            undo.callback(self.supervisor.release)
            undo.callback(self.supervisor.kill_all)
            self.lifecycle.stop(Terminated(NOT_STARTED))

    # ---- what faces ask for

    def feed(
        self,
        jobs: Generator[Job, None, None],
        result: LazyOutput,
        here: bool = False,
        at_once: bool = False,
    ) -> None:
        """Have the jobs of an input made and submitted as there is room; see `Driver.feed`."""
        reader = self._classes.tasks(jobs, self.dispatcher.submit_fed, result, self.dispatcher)
        try:
            self.dispatcher.begin_input(reader)
            self.driver.feed(reader, here, at_once)
        except BaseException:
            reader.stop()
            self.dispatcher.end_input(reader)
            raise

    def grow(self, number: int) -> None:
        """So many more workers are wanted.

        Raises:
            Exception: what the user's functions raise that say what the new ones are to have.
        """
        with self._growing:  # not the pool's lock: these are called here
            if (places := self.options.places) is not None:
                self.state.check_running()
                places.make(self.supervisor.processes + number)
            self.supervisor.resize(+number)

    @property
    def reports_starts(self) -> bool:
        """Whether workers report the starts of jobs themselves; else they are looked for."""
        return self.options.accept_delay is None

    @property
    def is_broken(self) -> bool:
        """Whether the pool has given up, since its workers cannot start."""
        return self.state.broken is not None

    def check_owner(self) -> None:
        """
        Raises:
            RuntimeError: in a forked child, where this pool is the parent's.
        """
        self.state.check_owner()

    def call_soon(self, call: Callable[..., object], *args: object) -> None:
        self.callbacks(call, *args)

    def wait_for(
        self, condition: Condition, predicate: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait until `predicate()`, at most `timeout` seconds; returns what it is then.

        Raises:
            RuntimeError: in a forked child, where this pool is the parent's; or when called by
                the pool itself, while it reads a result.
        """
        self.state.check_owner()
        return self.driver.wait(condition, predicate, timeout)

    def do_outside(self, call: Callable[[], object]) -> None:
        """Call it; but not inside of the pool's own work, which a finalizer may have interrupted:
        then soon. And not at all in a forked child."""
        if self.state.is_forked:
            return
        if self.is_busy_here():
            self.callbacks(call)
        else:
            call()

    def is_busy_here(self) -> bool:
        """Whether the caller is called by a role, or has interrupted one that holds the lock."""
        return self.driver.is_busy_here() or self.state.is_lock_held()

    # ---- in an event loop

    def check_loop(self, needed: object = None) -> None:
        """The caller is about to wait in a way that holds up the event loop of its thread: warn.
        Not in callbacks, which may wait, as they have a pool's thread, or a pool that has none.

        Args:
            needed: the loop that must run for what is waited for, if one must.

        Raises:
            RuntimeError: that one runs here, and would be waited for in vain.
        """
        if needed is not None and needed is asyncio_loop():
            raise RuntimeError(
                "this would wait for ever: the event loop that runs here reads the input of these "
                "results. Take them by `async for`"
            )
        if not (self.callbacks.is_calling_here() or self.is_busy_here()):
            event_loops.warn_of_blocking()

    def serve_loop(self) -> None:
        """A task of the event loop that runs in this thread is about to wait for the pool.

        Raises:
            RuntimeError: it would wait in vain: in a forked child; or another loop drives the pool.
        """
        self.state.check_owner()
        self.driver.serve_loop()

    async def terminate_in_loop(self) -> None:
        """As `terminate`, and other tasks of the event loop run meanwhile."""
        self.serve_loop()
        self.supervisor.request_termination()
        await event_loops.Until(self.supervisor.end, self.supervisor.has_ended)
        self._log.flush(0.0)

    async def join_in_loop(self) -> None:
        """As `join`, and other tasks of the event loop run meanwhile."""
        self.serve_loop()
        self.dispatcher.read_on()
        self.state.wake_supervisor()
        await event_loops.Until(self.supervisor.end, self.supervisor.has_ended)
        for end, has_ended in self.driver.last_threads():
            await event_loops.Until(end, has_ended)
        self.driver.join()
        self._log.flush(0.0)

    # ---- the end

    def terminate(self) -> None:
        """Terminate and wait for the end; unless a role of the pool asks for it, or a finalizer
        that interrupted one: they would wait for themselves."""
        self.supervisor.request_termination()
        if not self.is_busy_here():
            self.supervisor.wait_until_ended()
            if self._taps is not None:
                self._taps.flush()
            self._log.flush(LOG_SECONDS)

    def join(self, timeout: float | None = None) -> bool:
        # A pool that has given up stops by itself, a moment after it has said so.
        if self.state.phase is PoolPhase.RUN and self.state.broken is None:
            self.state.check_owner()
            raise ValueError("the pool is still running: call close() or terminate() before join()")
        deadline = None if timeout is None else time.monotonic() + timeout
        self.dispatcher.read_on()
        self.state.wake_supervisor()  # in case that close() was interrupted before it did
        if not self.supervisor.wait_until_ended(timeout):
            return False
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not self.driver.join(left):
            return False
        if self._taps is not None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            is_all = self._taps.flush(left)
            if not is_all and deadline is not None and time.monotonic() >= deadline:
                return False
        self._log.flush(LOG_SECONDS)
        return True

    def drop(self, _run: PoolPhase = PoolPhase.RUN) -> None:
        """Nobody holds the pool any more. At the interpreter's end the globals of this module may
        have gone."""
        if not (self.supervisor.ended or self.state.is_forked):
            self._was_left_running = self.is_left_running(_run)
            self.supervisor.request_termination("the pool object was dropped")
            if self._has_started:
                self.driver.dropped()
            elif not self.driver.supervises():  # what was to undo the start was interrupted, too
                uninterrupted(self._undo_aside)

    def is_left_running(self, _run: PoolPhase = PoolPhase.RUN) -> bool:
        """Whether nobody has ended the pool, which is being dropped, perhaps in several steps: the
        garbage collector calls the finalizers of a cycle in any order, and the first step ends it.
        """
        return self._was_left_running or self.state.phase is _run

    def close_in_child(self) -> None:
        """In a forked child: the pool is the parent's."""
        self.state.close_in_child()

    def _on_end(self) -> None:
        """There are no workers any more."""
        if self._finalizer is not None:
            self._finalizer.cancel()
        if self._taps is not None:
            self._taps.stop()
        self._main.forget()
        self.driver.end()
        at_fork.unregister(self)

    def _at_exit(self) -> None:
        """Terminate a pool that was left behind. Its callbacks get a while to end: a thread that
        is still printing when the interpreter is taken down would take the process down with it."""
        self.terminate()
        self.callbacks.join(CALLBACK_SECONDS)
