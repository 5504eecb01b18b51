"""What can be seen of a running pool, without disturbing it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prefork._engine.worker_handle import Phase, WorkerHandle
from prefork._system.locks import RLock
from prefork._system.stacks import LOOK
from prefork.statistics import PoolStatistics, WorkerState

if TYPE_CHECKING:
    from prefork._engine.state import PoolState
    from prefork._engine.supervisor import WorkerSupervisor

__all__ = ["Observer"]

STACK_SECONDS = 1.0
"""How long to wait for a worker's stack; it takes less than a millisecond, if the worker runs."""
_PAUSE = 0.0002  # seconds between two looks at whether it is there


class Observer:
    def __init__(self, state: PoolState, supervisor: WorkerSupervisor) -> None:
        self._state = state
        self._supervisor = supervisor
        self._one_at_a_time = RLock()

    def statistics(self) -> PoolStatistics:
        state = self._state
        with state.lock:
            workers = tuple(worker.statistics() for worker in state.workers)
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
            if LOOK is None or worker.process.has_handled(LOOK):
                with self._state.lock:
                    if worker.phase is Phase.REAPED:
                        return "(it has ended)"
                    if text := worker.channel.black_box.text():
                        return text
            time.sleep(_PAUSE)
        return "(it does not take signals)"
