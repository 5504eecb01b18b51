"""A pool whose processes are elsewhere, as the verbs and the handles of a pool see it.

    the caller        submit, map, …      ─► Backlog           (with the lock)
    the carrier       Backlog.take        ─► chunks to nodes   (its own thread; see `Carrier`)
                      what nodes say      ─► Deliverer
    the deliverer     texts ─► values     ─► Backlog.settle ─► handles, callbacks

It has what `prefork._engine.engine.Engine` has for its faces, under the same names, and so the same
verbs and the same handles work with it. How chunks travel, and when a node counts as lost, is the
carrier's affair.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Generator
from multiprocessing import util
from typing import Any, Final, NamedTuple

from prefork._describe import describe
from prefork._engine.callbacks import CallbackRunner
from prefork._engine.roles import LazyOutput, Role, TaskHandler
from prefork._engine.state import PoolPhase, takes_no_jobs
from prefork._policy.job import RESOLVED, Job, Wakes
from prefork._system import at_fork, event_loops
from prefork._system.condition import Condition
from prefork._system.locks import RLock
from prefork._system.log import CRITICAL, Log
from prefork._system.running_loop import asyncio_loop
from prefork._system.uninterrupted import uninterrupted
from prefork.cluster.backlog import Backlog, Chunk, Resolved
from prefork.cluster.calls import CallFactory
from prefork.cluster.carrying import Carrier, Report
from prefork.cluster.codecs import Codec
from prefork.cluster.errors import NodeLostError
from prefork.cluster.handing_in import Dispatcher, Terminator
from prefork.cluster.life import ClusterState
from prefork.cluster.sizes import Sizes
from prefork.errors import MaybeDecodingError, PoolBrokenError, PreforkError, Terminated

__all__ = ["ClusterEngine"]

LOG_SECONDS: Final = 1.0
CALLBACK_SECONDS: Final = 5.0  # that callbacks have at the interpreter's exit


class Deliverer(Role):
    """Makes values of what nodes have said, and tells the handles.

    Args:
        on_error: called with what a call has raised, a bug; those that follow are called all the
            same, since it is they who tell of it.
    """

    def __init__(self, on_error: Callable[[BaseException], object]) -> None:
        super().__init__()
        self._on_error = on_error
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()

    def put(self, call: Callable[[], object]) -> None:
        self._queue.put(call)

    def body(self) -> None:
        while (call := self._queue.get()) is not None:
            try:
                call()
            except BaseException as exc:
                self._on_error(exc)

    def stop(self) -> None:
        self._queue.put(None)


class ClusterEngine:
    """
    Args:
        carrier: takes chunks to nodes.
        codec: how values are written down.
        chunk_seconds: see `Sizes`.
        check_code: see `CallFactory`.
    """

    def __init__(
        self, carrier: Carrier, codec: Codec, chunk_seconds: float, check_code: bool
    ) -> None:
        self._carrier = carrier
        self._codec = codec
        self._log = log = Log()
        self.state = ClusterState(log, self.check_done)
        self.sizes = Sizes(chunk_seconds)
        self.backlog = Backlog(self.sizes, random.random)
        self.factory = CallFactory(codec, check_code)
        self.callbacks = CallbackRunner(self._on_call, log)
        self._starting = RLock()
        self._deliverer = Deliverer(self._crashed)
        self._own_threads: set[int] = set()  # that results need, by identifier
        self._is_over = False
        self.end = Condition()
        self.idle = Condition()
        self.dispatcher = Dispatcher(self)
        self.terminator = Terminator(self)
        self.supervisor = self  # which tells how many processes there are
        self.lifecycle = self
        self.reports_starts = True
        self._finalizer: Any = None

    # ---- the beginning

    def start(self) -> None:
        """
        Raises:
            PoolBrokenError: the broker cannot be reached, or nobody serves.
        """
        at_fork.register(self)
        self._deliverer.start(self._crashed, self._own_threads)
        try:
            self._carrier.start(self)
        except BaseException:
            self.terminate()
            raise
        self._finalizer = util.Finalize(None, self._at_exit, exitpriority=15)

    def _crashed(self, error: BaseException) -> None:
        """A bug, in a thread that all depends on: nothing is left waiting for it."""
        self._log.note(CRITICAL, "a thread of the pool has failed: it gives up", error=error)
        broken = PoolBrokenError("a thread of the pool has failed")
        broken.__cause__ = error
        self.give_up(broken)

    def _on_call(self) -> bool:
        with self._starting:
            if not self.callbacks.is_started:
                self.callbacks.start(self._crashed)
        return True

    # ---- what faces ask for

    @property
    def processes(self) -> int:
        """How many there are on all nodes; at least 1, as new ones may come."""
        return max(1, self._carrier.processes)

    @property
    def is_broken(self) -> bool:
        return self.state.broken is not None

    def check_owner(self) -> None:
        self.state.check_owner()

    def feed(
        self,
        jobs: Generator[Job, None, None],
        result: LazyOutput,
        here: bool = False,
        at_once: bool = False,
    ) -> None:
        """Have the jobs of an input made and submitted as there is room."""
        reader = TaskHandler(jobs, self.dispatcher.submit_fed, result, self.dispatcher)
        try:
            self.dispatcher.begin_input(reader)
            if here:
                reader.body()
            elif at_once:
                reader.handle_event()
            if (here or at_once) and not isinstance(reader.error, Exception | None):
                raise reader.error  # KeyboardInterrupt: it is for this thread
            if not reader.has_ended:
                reader.start(self._crashed)
        except BaseException:
            reader.stop()
            self.dispatcher.end_input(reader)
            raise

    def wait_for(
        self, condition: Condition, predicate: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        self.state.check_owner()
        if self.is_busy_here():
            raise RuntimeError("this waits for the pool, but is called by the pool itself")
        return condition.wait(predicate, timeout)

    def do_outside(self, call: Callable[[], object]) -> None:
        if self.state.is_forked:
            return
        if self.is_busy_here():
            self.callbacks(call)
        else:
            call()

    def is_busy_here(self) -> bool:
        return (
            threading.get_ident() in self._own_threads
            or self._carrier.is_current()
            or self.state.is_lock_held()
        )

    def check_loop(self, needed: object = None) -> None:
        if needed is not None and needed is asyncio_loop():
            raise RuntimeError(
                "this would wait for ever: the event loop that runs here reads the input of these "
                "results. Take them by `async for`"
            )
        if not (self.callbacks.is_calling_here() or self.is_busy_here()):
            event_loops.warn_of_blocking()

    def serve_loop(self) -> None:
        self.state.check_owner()

    # ---- what the carrier says

    def take(self) -> Chunk | None:
        """The next chunk for a node, if there is any."""
        with self.state.lock:
            return self.backlog.take(self.processes)

    def started(self, chunk: Chunk) -> None:
        """A node has begun, or is about to."""
        self._deliverer.put(lambda: self._tell_started(chunk))

    def _tell_started(self, chunk: Chunk) -> None:
        now = time.monotonic()
        for part in chunk.parts:
            job = part.job
            if job.phase != RESOLVED and job.pid is None:
                job.note_run(0, now, 0.0)
                job.sink.job_started(job, 0, now)

    def reported(self, chunk: Chunk, report: Report) -> None:
        """A node has said what a chunk has come to."""
        self._deliverer.put(lambda: self._settle(chunk, report))

    def given_back(self, chunk: Chunk) -> None:
        """None of it was begun, nor will be."""
        with self.state.lock:
            self.backlog.put_back(chunk)

    def lost(self, chunk: Chunk, node: str, seconds: float) -> None:
        """A node had begun with it, and was not heard of for so long."""
        failures: dict[int, BaseException] = {}
        for part in chunk.parts:
            for _ in range(part.first, part.stop):
                job = part.job
                failures[len(failures)] = NodeLostError(job.id, job.function, node, seconds)
        self.reported(chunk, Report([], failures, set(), 0.0))

    def _settle(self, chunk: Chunk, report: Report) -> None:
        texts, failures, not_run, seconds = report
        failures = dict(failures)
        values, are_all = self._values(texts, chunk.size - len(failures) - len(not_run))
        if failures or not_run:
            given = iter(values)
            values = [
                None if at in failures or at in not_run else next(given) for at in range(chunk.size)
            ]
        if not are_all:
            for at, value in enumerate(values):
                if isinstance(value, _Unreadable):
                    failures[at] = value.error
        now = time.monotonic()
        with self.state.lock:
            if (run := chunk.size - len(not_run)) and seconds:
                self.sizes.measured(chunk.kind.name, run, seconds)
                for part in chunk.parts:
                    part.job.note_run(0, now - seconds, seconds * part.job.size / chunk.size)
            resolved = self.backlog.settle(chunk, values, failures, not_run, now)
        self._tell(resolved)
        self._carrier.wake()

    def _values(self, texts: list[str], expected: int) -> tuple[list[Any], bool]:
        """Of a chunk's texts, and whether all could be read; a node that says too few, or something
        else, harms these alone."""
        try:
            values = self._codec.read_all(texts)
            if len(values) == expected:
                return values, True
            reason: BaseException = ValueError(f"{len(values)} results for {expected} items")
        except BaseException as exc:  # a result's own code may raise anything
            reason = exc
        values = []
        for text in texts[:expected]:
            try:
                values += self._codec.read_all((text,))
            except BaseException as exc:
                values.append(_Unreadable(MaybeDecodingError("result", describe(exc))))
        missing = PreforkError(f"what the node has said of this item cannot be read: {reason}")
        return values + [_Unreadable(missing)] * (expected - len(values)), False

    def _tell(self, resolved: list[Resolved]) -> None:
        waiting: dict[Wakes, None] = {}
        for job, ok, value in resolved:
            sink = job.sink
            job.leave_sink()
            if (condition := sink.job_done(job, ok, value)) is not None:
                waiting[condition] = None
        for condition in waiting:
            condition.notify_all()
        if resolved:
            self.idle.notify_all()
            self.check_done()

    def tell_later(self, resolved: list[Resolved]) -> None:
        """Have handles told, by the thread that does so."""
        if resolved:
            self._deliverer.put(lambda: self._tell(resolved))

    def next_due(self) -> float | None:
        """When `run_due` is to be called (monotonic); None: not for now."""
        with self.state.lock:
            return self.backlog.next_due()

    def run_due(self, now: float) -> None:
        with self.state.lock:
            resolved = self.backlog.run_due(now)
        self.tell_later(resolved)

    def give_up(self, error: PoolBrokenError) -> None:
        """Nothing can be run any more: all that is open fails with this, and so does what comes."""
        with self.state.lock:
            if self.state.broken is None:
                self.state.broken = error
        self._stop(lambda: takes_no_jobs(self.state.phase, error))

    def give_up_after_reports(self, error: PoolBrokenError) -> None:
        """The same, once all that was reported before has been told."""
        self._deliverer.put(lambda: self.give_up(error))

    # ---- the end

    def close(self) -> None:
        with self.state.lock:
            if self.state.phase is PoolPhase.RUN:
                self.state.phase = PoolPhase.CLOSE
        self.check_done()

    def check_done(self) -> None:
        state = self.state
        with state.lock:
            is_done = (
                state.phase is PoolPhase.CLOSE
                and not self.backlog.jobs
                and not any(reader.is_needed() for reader in list(state.inputs))
            )
        if is_done:
            self._finish()

    def terminate(self) -> None:
        """All that is open fails with `Terminated`; the nodes end what they have of it."""
        self._stop(lambda: Terminated("the pool was terminated"))
        if not self.is_busy_here():
            self.join()

    def drop(self) -> None:
        """Nobody holds the pool any more."""
        if not self.state.is_forked:
            self._stop(lambda: Terminated("the pool object was dropped"))

    def _stop(self, reason: Callable[[], Exception]) -> None:
        uninterrupted(lambda: self._stop_now(reason))

    def _stop_now(self, reason: Callable[[], Exception]) -> None:
        state = self.state
        for reader in list(state.inputs):
            reader.abort(reason())
        with state.lock:
            if state.phase in (PoolPhase.TERMINATE, PoolPhase.ENDED):
                return
            state.phase = PoolPhase.TERMINATE
            resolved = [
                each
                for job in list(self.backlog.jobs.values())
                for each in self.backlog.fail(job, reason())
            ]
        self.tell_later(resolved)
        self._finish()

    def _finish(self) -> None:
        with self.state.lock:
            if self._is_over:
                return
            self._is_over = True
            if self.state.phase is PoolPhase.CLOSE:
                self.state.phase = PoolPhase.ENDED
        self._carrier.stop()
        self._deliverer.put(self._say_end)
        self._deliverer.stop()

    def _say_end(self) -> None:
        self.state.phase = PoolPhase.ENDED
        if self._finalizer is not None:
            self._finalizer.cancel()
        at_fork.unregister(self)
        self.callbacks.stop()
        self.end.notify_all()

    def has_ended(self) -> bool:
        return self.state.phase is PoolPhase.ENDED

    def join(self, timeout: float | None = None) -> bool:
        self.state.check_owner()
        if self.state.phase is PoolPhase.RUN:
            raise ValueError("the pool is still running: call close() or terminate() before join()")
        deadline = None if timeout is None else time.monotonic() + timeout
        self.dispatcher.read_on()
        if not self.wait_for(self.end, self.has_ended, timeout):
            return False
        is_all = self._deliverer.join(_left(deadline))
        is_all = is_all and self._carrier.join(_left(deadline))
        is_all = is_all and self.callbacks.join(_left(deadline))
        self._log.flush(LOG_SECONDS)
        return is_all

    async def join_in_loop(self) -> None:
        self.state.check_owner()
        self.dispatcher.read_on()
        await event_loops.Until(self.end, self.has_ended)

    async def terminate_in_loop(self) -> None:
        self._stop(lambda: Terminated("the pool was terminated"))
        await event_loops.Until(self.end, self.has_ended)

    def close_in_child(self) -> None:
        self.state.is_forked = True
        self.state.phase = PoolPhase.ENDED
        self.state.lock = RLock()

    def _at_exit(self) -> None:
        self.terminate()
        self.callbacks.join(CALLBACK_SECONDS)

    @property
    def log(self) -> Log:
        return self._log

    def wake(self) -> None:
        self._carrier.wake()


class _Unreadable(NamedTuple):
    error: BaseException


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
