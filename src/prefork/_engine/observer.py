"""What can be seen of a running pool, without disturbing it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prefork._engine.worker_handle import Phase, WorkerHandle
from prefork._ipc.constants import Use
from prefork._policy.durations import BOUNDS, Durations
from prefork._system.locks import RLock
from prefork._system.stacks import LOOK
from prefork.statistics import FailureCounts, Histogram, PoolStatistics, WorkerState

if TYPE_CHECKING:
    from prefork._engine.state import PoolState
    from prefork._engine.supervisor import WorkerSupervisor

__all__ = ["Observer"]

STACK_SECONDS = 1.0
"""How long to wait for a worker's stack; it takes less than a millisecond, if the worker runs."""
NO_SIGNALS = "(it does not take signals)"
_PAUSE = 0.0002  # seconds between two looks at whether it is there


class Observer:
    def __init__(self, state: PoolState, supervisor: WorkerSupervisor) -> None:
        self._state = state
        self._supervisor = supervisor
        self._one_at_a_time = RLock()
        self._looks: dict[int, float] = {}  # by process id: until when an answer may come

    def statistics(self, measured: bool = True) -> PoolStatistics:
        """
        Args:
            measured: the memory of workers, too. The system is asked for it, with the lock held.
        """
        state = self._state
        with state.lock:
            workers = tuple(worker.statistics(measured) for worker in state.workers)
            running = sum(worker.current_job() is not None for worker in state.workers)
            return PoolStatistics(
                self._supervisor.processes,
                workers,
                len(state.open_jobs.by_id) - running,
                running,
                state.open_jobs.finished,
                state.open_jobs.failed,
                state.open_jobs.retried,
                tuple(self._supervisor.history),
                self._supervisor.ended_workers,
                FailureCounts(**state.open_jobs.failures),
                _histogram(state.open_jobs.queue_time),
                _histogram(state.open_jobs.run_time),
                time.time(),
                time.monotonic(),
                *Use.counts(),
            )

    def stacks(self) -> dict[int, str]:
        """The Python stack of every worker, by process id; where there is none, why, in
        parentheses."""
        with self._one_at_a_time:
            with self._state.lock:
                asked = {worker: self._ask(worker) for worker in self._state.workers}
            deadline = time.monotonic() + STACK_SECONDS
            return {
                worker.pid: refusal or self._stack(worker, deadline)
                for worker, refusal in asked.items()
            }

    def stack_so_far(self, pid: int) -> str | None:
        """The same for one worker, without waiting: None is an invitation to call again soon. The
        first call asks the worker, and one of the next ones gets the answer."""
        if not self._one_at_a_time.acquire(blocking=False):
            return None  # somebody looks at all of them
        try:
            now = time.monotonic()
            self._looks = {pid: until for pid, until in self._looks.items() if now < until}
            with self._state.lock:
                worker = next((each for each in self._state.workers if each.pid == pid), None)
                if worker is None:
                    return "(it has ended)"
                if pid not in self._looks:
                    refusal = self._ask(worker)
                    if not refusal:
                        self._looks[pid] = now + STACK_SECONDS
                    return refusal or None
            text = self._written(worker)
            if text:
                del self._looks[pid]
            return text or None
        finally:
            self._one_at_a_time.release()

    def _ask(self, worker: WorkerHandle) -> str:
        """Why a worker cannot tell its stack, or ""; then it has been asked."""
        if LOOK is None:
            return "(this system has no signal for it)"
        if worker.has_exited:
            return "(it has ended)"
        if not worker.process.catches(LOOK):
            return f"(it is {WorkerState.STARTING if not worker.ready else WorkerState.RETIRING})"
        if worker.process.is_stopped():
            return "(it is stopped)"
        worker.channel.black_box.rewind()
        worker.process.signal(LOOK)
        return ""

    def _stack(self, worker: WorkerHandle, deadline: float) -> str:
        while time.monotonic() < deadline:
            if text := self._written(worker):
                return text
            time.sleep(_PAUSE)
        return NO_SIGNALS

    def _written(self, worker: WorkerHandle) -> str:
        """What it has written, once that is complete; else ""."""
        if LOOK is not None and not worker.process.has_handled(LOOK):
            return ""
        with self._state.lock:
            if worker.phase is Phase.REAPED:
                return "(it has ended)"
            return worker.channel.black_box.text()


def _histogram(durations: Durations) -> Histogram:
    return Histogram(BOUNDS, durations.counts(), durations.seconds)
