"""What `joblib.parallel_config(backend="prefork", …)` takes, beside joblib's own options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from prefork._arguments import check_callables, check_iterable, seconds, some_count
from prefork._policy.retry import Retry, retry_of

__all__ = ["Options"]


class Options(NamedTuple):
    """
    Attributes:
        timeout: the hard time limit of each task, in seconds (int or float); its worker is killed.
        soft_timeout: the soft limit, likewise; `SoftTimeLimitExceeded` is raised in the task.
        retries: how often a task is run again after its worker was lost, an int; or a
            `prefork.Retry`.
        max_memory_per_task, max_memory_per_child, maxtasksperchild: as in `prefork.Pool`.
        initializer, initargs: a function and its arguments, called in each worker when it starts.
        idle_worker_timeout: for how many seconds workers are kept, when nobody uses them.
    """

    timeout: float | None = None
    soft_timeout: float | None = None
    retries: int | Retry = 0
    max_memory_per_task: int | None = None
    max_memory_per_child: int | None = None
    maxtasksperchild: int | None = None
    initializer: Callable[..., object] | None = None
    initargs: Iterable[Any] = ()
    idle_worker_timeout: float | None = 300.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """
        Raises:
            TypeError: there is no such option, or it is of the wrong type.
            ValueError: it is out of range.
        """
        if unknown := [name for name in given if name not in cls._fields]:
            known = ", ".join(cls._fields)
            raise TypeError(f"prefork's backend has no option {unknown[0]!r}; it has {known}")
        self = cls(**given)
        for name in ("timeout", "soft_timeout"):
            if getattr(self, name) is not None:
                seconds(name, getattr(self, name))
        for name in ("max_memory_per_task", "max_memory_per_child", "maxtasksperchild"):
            some_count(name, getattr(self, name))
        check_callables(initializer=self.initializer)
        idle = self.idle_worker_timeout
        return self._replace(
            retries=retry_of(self.retries) or 0,
            initargs=check_iterable("initargs", self.initargs),
            idle_worker_timeout=(
                None if idle is None else seconds("idle_worker_timeout", idle, zero=True)
            ),
        )

    @property
    def concern_tasks(self) -> bool:
        """Whether something is asked of each single task, so that it has to be a job of its own."""
        limits = self.timeout, self.soft_timeout, self.max_memory_per_task
        return self.retries != 0 or any(limit is not None for limit in limits)
