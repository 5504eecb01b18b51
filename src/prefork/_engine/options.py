"""What a pool's workers are made with."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, NamedTuple

from prefork._engine.places import Places
from prefork._system.process import Process
from prefork._worker.environment import Place
from prefork._worker.options import Hook, WorkerOptions
from prefork.errors import SoftTimeLimitExceeded

if TYPE_CHECKING:
    from prefork._observe.settings import Observing

__all__ = ["Options"]


class Options(NamedTuple):
    """What a pool's workers are made with."""

    processes: int
    context: BaseContext
    initializer: Hook | None = None
    process_class: type[Process] = Process
    max_tasks: int | None = None  # of one worker
    tasks_jitter: int = 0  # so many fewer, at most, by chance
    max_memory: int | None = None  # of a worker after a task, KiB
    max_memory_per_task: int | None = None  # while it runs one, KiB
    max_restarts: int = 10  # failed starts in a row
    start_timeout: float | None = None  # seconds
    first_start_timeout: float | None = None  # of the first workers, instead of that
    soft_limit: type[BaseException] = SoftTimeLimitExceeded  # what is raised in a task
    accept_delay: float | None = None  # see `StartTimer`
    load_seconds: float = 0.0  # see `WorkerOptions`
    finalizer: Hook | None = None
    places: Places | None = None  # what each worker has of its own
    cpus: int = 0  # that there are to be used; 0: it is not known yet
    observing: Observing | None = None  # log records and output of the workers
    is_observable: bool = True  # from outside
    is_controllable: bool = False  # likewise
    capture: Callable[[], object] | None = None  # see `JobFactory`

    @property
    def start_method(self) -> str:
        return self.context.get_start_method()

    def for_workers(self) -> WorkerOptions:
        """What all workers are to know."""
        return WorkerOptions(
            self.initializer,
            self.max_memory,
            self.soft_limit,
            self.load_seconds,
            self.finalizer,
            None if self.observing is None else self.observing.workers,
        )

    def at_place(self, index: int) -> Place | None:
        """What the worker of this index has of its own; None: nothing."""
        return None if self.places is None else self.places[index]

    def tasks_of_next(self) -> int | None:
        """Of the next worker."""
        tasks = self.max_tasks
        if tasks is not None and self.tasks_jitter:
            import random  # has a hook of its own run in each forked child

            tasks -= random.randint(0, self.tasks_jitter)
        return tasks
