"""The tasks of an executor that have a node each, as the client sees them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from prefork._describe import describe
from prefork._system.locks import Lock
from prefork._system.threads import BackgroundThread
from prefork.cluster.node import Order, run_slot
from prefork.errors import PoolBrokenError

__all__ = ["Slots"]


class Slots:
    """
    Args:
        executor: that has the nodes run.
        number: of nodes.
        on_end: called with the reason when the last of them has ended.
    """

    def __init__(
        self, executor: Executor, number: int, on_end: Callable[[PoolBrokenError], object]
    ) -> None:
        self._executor = executor
        self._number = number
        self._on_end = on_end
        self._lock = Lock()
        self._futures: list[Future[Any]] = []
        self._left = number
        self._errors: list[BaseException] = []
        self._is_stopped = False

    def begin(self, order: Order) -> None:
        """Have them submitted: on a thread of its own, since some executors make who submits wait,
        for a place or even for the task's end."""
        BackgroundThread(lambda: self._submit(order), "prefork-Slots").start()

    def _submit(self, order: Order) -> None:
        host, port, key = order.where
        for slot in range(self._number):
            plain = (slot, (host, port, key), order.processes, order.patience)
            try:
                future = self._executor.submit(run_slot, plain)
            except Exception as exc:
                error = PoolBrokenError(
                    f"the executor {self._executor!r} takes no task: {describe(exc)}"
                )
                error.__cause__ = exc
                self._on_end(error)
                return
            with self._lock:
                self._futures.append(future)
                is_stopped = self._is_stopped
            future.add_done_callback(self._ended)
            if is_stopped:
                future.cancel()
                return

    def _ended(self, future: Future[Any]) -> None:
        error = None if future.cancelled() else future.exception()
        with self._lock:
            self._left -= 1
            if error is not None:
                self._errors.append(error)
            if self._left or self._is_stopped:
                return
        broken = PoolBrokenError(
            "no node is left: the tasks of the executor that had them have ended"
            + "".join(f"; {describe(error)}" for error in self._errors[:1])
        )
        broken.__cause__ = self._errors[0] if self._errors else None
        self._on_end(broken)

    def advice(self) -> str:
        """What may be wrong if no node answers."""
        with self._lock:
            futures = list(self._futures)
        running = sum(future.running() for future in futures)
        waiting = self._number - sum(future.running() or future.done() for future in futures)
        text = (
            f"of the {self._number} tasks that are to start nodes, {running} run and {waiting} "
            "wait in the executor"
        )
        if waiting:
            text += ", which may have no worker that is free: start some, or raise start_timeout"
        if running:
            text += ". Can their machines reach that address? See the `host` of the pool"
        return text

    def stop(self) -> None:
        """Take back those that have not begun; the others end as their nodes do."""
        with self._lock:
            self._is_stopped = True
            futures = list(self._futures)
        for future in futures:
            future.cancel()
