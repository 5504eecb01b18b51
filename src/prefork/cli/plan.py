"""What is asked of a run, and how many inputs go to a worker at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefork.cli.feeder import Item
from prefork.cli.work import Task, Work

__all__ = ["Chunks", "Plan"]

LONG = 0.25  # seconds: after so long, the rest of a chunk is given back
WINDOW = 32  # chunks on their way, per worker
ORDERED_WINDOW = 1024  # inputs at least, with --ordered: so many may wait for a slow one
CHUNK_SECONDS = 0.005  # of work in a chunk, if nobody says how large it is to be
MOST_IN_CHUNK = 100  # inputs, likewise
WEIGHT = 0.2  # of the newest chunk, in the mean of what an input takes


@dataclass(frozen=True)
class Plan:
    """What is asked for; times in seconds, memory in KiB."""

    work: Work
    processes: int
    timeout: float | None = None
    soft_timeout: float | None = None
    max_memory: int | None = None  # of a worker while it runs one input
    retries: int = 0
    chunksize: int | None = None
    ordered: bool = False
    start_method: str | None = None
    max_tasks_per_child: int | None = None
    max_failures: int | None = None  # after so many, it is stopped
    log_dir: str | None = None
    app: Any = None  # of celery: its workers have the processes
    app_name: str = ""
    queue: str | None = None  # of theirs


class Chunks:
    """How many inputs a worker is given at once: as many as one asks for, or by what the last ones
    have taken, so that to hand them over costs little."""

    def __init__(self, plan: Plan) -> None:
        self._given = plan.chunksize
        self._least_window = ORDERED_WINDOW if plan.ordered else 1
        self._per_size = WINDOW * plan.processes
        self._mean = CHUNK_SECONDS

    def size(self) -> int:
        return self._given or max(1, min(MOST_IN_CHUNK, int(CHUNK_SECONDS / self._mean)))

    def window(self) -> int:
        """So many may be on their way."""
        return max(self._per_size * self.size(), self._least_window)

    def measure(self, seconds: list[float]) -> None:
        if seconds:
            mean = sum(seconds) / len(seconds) + 1e-6
            self._mean += (mean - self._mean) * WEIGHT

    def tasks(self, items: list[Item]) -> list[Task]:
        """For a worker; it gives back what it has not begun in time, unless one has asked for
        chunks of this size."""
        budget = None if self._given else LONG
        return [
            Task(item.number, item.value, 0 if i and budget else budget)
            for i, item in enumerate(items)
        ]
