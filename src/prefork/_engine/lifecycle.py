"""The life of a pool: it takes jobs, is closed or terminated, and ends; or gives up.

    RUN ─► CLOSE ─► (all is done) ─► ENDED
      └──────┴────► TERMINATE ─────────┘

The supervisor makes the last step, when there are no workers any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prefork._describe import describe
from prefork._engine.state import PoolPhase, PoolState
from prefork._system.log import CRITICAL, ERROR
from prefork.errors import PoolBrokenError

if TYPE_CHECKING:
    from prefork._engine.collector import Collector
    from prefork._engine.worker_handle import WorkerHandle

__all__ = ["Lifecycle"]

TERMINATE_SECONDS = 2.0
"""A worker that runs nothing when the pool is terminated has so long for its own end."""


class Lifecycle:
    """
    Args:
        call_soon: has something called like the callbacks of jobs.
    """

    def __init__(
        self, state: PoolState, collector: Collector, call_soon: Callable[..., object]
    ) -> None:
        self._state = state
        self._collector = collector
        self._call_soon = call_soon
        self._when_broken: list[Callable[[PoolBrokenError], object]] = []

    def close(self) -> None:
        """Take no more jobs."""
        state = self._state
        with state.lock:
            if state.phase is PoolPhase.RUN:
                state.move_to(PoolPhase.CLOSE)
        state.slot_free.notify_all()
        state.wake_supervisor()

    def stop(self, reason: Exception) -> None:
        """Fail all jobs, take no more, kill the workers that run any. The others end in order:
        they write what is in their buffers, and run their exit functions."""
        state = self._state
        # First, since an input that hands in one more job will be told that the pool takes none.
        self._end_inputs(reason)
        with state.lock:
            if state.phase in (PoolPhase.TERMINATE, PoolPhase.ENDED):
                return
            state.move_to(PoolPhase.TERMINATE)
            idle: list[WorkerHandle] = []
            for worker in state.workers:
                self._collector.isolate(worker)  # what is done is done
                for job in worker.sent.values():
                    self._collector.note_run(worker, job)
                    self._collector.note_items(worker, job)
                if worker.is_idle:
                    idle.append(worker)
                elif not worker.has_exited:
                    worker.kill("the pool was terminated")
            state.scheduler.clear()
            # Each gets an error of its own: who raises it adds a traceback to it, and keeps with it
            # what that refers to.
            for job in list(state.open_jobs.by_id.values()):
                state.open_jobs.fail(job, _another(reason))
            for worker in idle:
                worker.leave("the pool was terminated", TERMINATE_SECONDS)
        self._end_inputs(reason)  # those that have begun meanwhile
        state.slot_free.notify_all()
        state.wake_supervisor()

    def _end_inputs(self, reason: Exception) -> None:
        """Without the lock: with their results goes what users gave along, such as callbacks."""
        for reader in list(self._state.inputs):
            reader.abort(_another(reason))

    def break_down(self, why: str, cause: BaseException | None = None) -> None:
        """Fail all jobs, now and later: the pool cannot go on."""
        state = self._state
        with state.lock:
            if state.broken is not None or state.phase not in (PoolPhase.RUN, PoolPhase.CLOSE):
                return
            broken = PoolBrokenError(why)
            broken.__cause__ = cause
            state.give_up(broken)
            state.log.note(ERROR, "%s", why)
            told = list(self._when_broken)
        self.stop(broken)
        for call in told:
            self._call_soon(call, broken)

    def when_broken(self, call: Callable[[PoolBrokenError], object]) -> None:
        """Have this called, like the callbacks of jobs, if the pool gives up; at once if it has."""
        with self._state.lock:
            broken = self._state.broken
            self._when_broken.append(call)
        if broken is not None:
            call(broken)

    def crash(self, error: BaseException) -> None:
        """A role of the pool has failed, which is a bug, so the pool cannot go on."""
        self._state.log.note(CRITICAL, "a thread of the pool failed", error=error)
        self.break_down(f"a thread of the pool failed: {describe(error)}", error)

    def crash_and_deliver(self, error: BaseException) -> None:
        """The result handler has failed, so what is to be told must be told here, now."""
        self.crash(error)
        self._state.outcomes.deliver()


def _another(error: Exception) -> Exception:
    """The same error as an object of its own."""
    another = type(error)(*error.args)
    another.__cause__ = error.__cause__
    return another
