"""What can be seen of a running pool, without disturbing it."""

from __future__ import annotations

import threading
import time

from prefork._engine.supervisor import Staff
from prefork._engine.worker_handle import Worker
from prefork._system.stacks import LOOK
from prefork.statistics import PoolStatistics, WorkerState

__all__ = ["Observer"]

STACK_SECONDS = 1.0
"""How long to wait for a worker's stack; it takes less than a millisecond, if the worker runs."""
_PAUSE = 0.0002  # seconds between two looks at whether it is there


class Observer:
    def __init__(self, staff: Staff) -> None:
        self._staff = staff
        self._one_at_a_time = threading.Lock()

    def statistics(self) -> PoolStatistics:
        staff, jobs = self._staff, self._staff.jobs
        with jobs.lock:
            workers = tuple(worker.statistics() for worker in jobs.workers)
            running = sum(worker.current_job() is not None for worker in jobs.workers)
            return PoolStatistics(
                staff.processes,
                workers,
                len(jobs.accounts.open) - running,
                running,
                jobs.accounts.finished,
                jobs.accounts.failed,
                jobs.accounts.retried,
                tuple(staff.history),
            )

    def stacks(self) -> dict[int, str]:
        """The Python stack of every worker, by process id; where there is none, why, in
        parentheses."""
        with self._one_at_a_time:
            with self._staff.jobs.lock:
                asked = {worker: self._ask(worker) for worker in self._staff.jobs.workers}
            deadline = time.monotonic() + STACK_SECONDS
            return {
                worker.pid: refusal or self._stack(worker, deadline)
                for worker, refusal in asked.items()
            }

    def _ask(self, worker: Worker) -> str:
        """Why a worker cannot tell its stack, or ""; then it has been asked."""
        if LOOK is None:
            return "(this system has no signal for it)"
        if worker.exited:
            return "(it has ended)"
        if not worker.process.catches(LOOK):
            return f"(it is {WorkerState.STARTING if not worker.ready else WorkerState.RETIRING})"
        if worker.process.is_stopped():
            return "(it is stopped)"
        worker.channel.black_box.rewind()
        worker.process.signal(LOOK)
        return ""

    def _stack(self, worker: Worker, deadline: float) -> str:
        while time.monotonic() < deadline:
            if LOOK is None or worker.process.has_handled(LOOK):
                with self._staff.jobs.lock:
                    if worker.gone:
                        return "(it has ended)"
                    if text := worker.channel.black_box.text():
                        return text
            time.sleep(_PAUSE)
        return "(it does not take signals)"
