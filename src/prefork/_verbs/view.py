"""A pool with other limits: options travel as a view, so that no keyword of theirs can be one of
the function's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefork._policy.limits import NO_TERMS, Limits
from prefork._public import public
from prefork._verbs.calls import CallFamily
from prefork._verbs.lazy_maps import LazyMapFamily
from prefork._verbs.maps import MapFamily

if TYPE_CHECKING:
    from prefork._engine.engine import Engine
    from prefork._policy.retry import Retry
    from prefork._verbs.executors import PoolExecutor

__all__ = ["PoolView", "Verbs"]


class Verbs(CallFamily, MapFamily, LazyMapFamily):
    """All that has functions called: what a pool and a view of it have in common."""

    def options(
        self,
        *,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        retries: int | Retry | None = None,
        priority: int | None = None,
        deadline: float | None = None,
    ) -> PoolView:
        """The same pool, with other options for the jobs that it is given by this view. It is
        light, so one may be made for each call: `pool.options(timeout=5).submit(f, x)`.

        Whatever is None is as it was; so options of options add up.

        Args:
            timeout, soft_timeout, lost_worker_timeout: as those of the pool, seconds; infinity:
                no limit.
            retries: how often a job is run again after its worker was lost, an int; or a `Retry`,
                for other errors, or with pauses.
            priority: an int; of the jobs that wait, those with the lowest number are run first,
                and those with the same one in their order. It is 0 unless it is given.
            deadline: seconds from the moment a job is handed in (a `map`: from its call). When they
                are over, a job that is not done fails with `DeadlineExceeded`: it never runs, or
                its worker is killed. Infinity: none.

        Raises:
            TypeError, ValueError: one of them is no number, or out of range.
        """
        limits = self._defaults.override(timeout, soft_timeout, lost_worker_timeout, retries)
        return PoolView(self, self._engine, limits.with_terms(priority, deadline))

    def executor(self) -> PoolExecutor:
        """A `concurrent.futures.Executor` whose calls run in this pool, with the limits of this
        view. Its `shutdown` ends nothing but itself: the pool stays open."""
        from prefork._verbs.executors import PoolExecutor

        return PoolExecutor(self, self._engine, self._defaults)


@public
class PoolView(Verbs):
    """A pool with other limits, as `Pool.options` gives it. The pool lives as long as its views."""

    def __init__(self, pool: object, engine: Engine, limits: Limits) -> None:
        self._pool = pool
        self._engine = engine
        self._defaults = limits

    def __repr__(self) -> str:
        limits, default = self._defaults, Limits()
        values = {**limits._asdict(), **(limits.terms or NO_TERMS)._asdict()}
        defaults = {**default._asdict(), **NO_TERMS._asdict(), "terms": limits.terms}
        told = ", ".join(f"{k}={value}" for k, value in values.items() if value != defaults[k])
        return f"<{type(self).__name__}: {told or 'no limits'}, of {self._pool!r}>"
