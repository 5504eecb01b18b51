"""What all families of calls share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from prefork._arguments import count
from prefork._compat.habits import check_keywords
from prefork._verbs.signatures import MapOptions, TaskLimits

if TYPE_CHECKING:
    from prefork._engine.engine import Engine
    from prefork._observe.progress import Counts
    from prefork._policy.limits import Limits

__all__ = ["Family"]


class Family:
    """Calls that a pool has. Their overloads are explained in `_signatures`."""

    _engine: Engine
    _defaults: Limits  # of jobs that ask for none

    def _limits(
        self, name: str, options: TaskLimits, lost_worker_timeout: float | None = None
    ) -> Limits:
        """The limits for a call of that name.

        Raises:
            TypeError, ValueError: an option is not right, or there is no such option.
            ValueError, PoolBrokenError, RuntimeError: the pool takes no jobs.
        """
        check_keywords(name, options, TaskLimits.__optional_keys__)
        self._engine.state.check_running()
        return self._defaults.override(lost_worker_timeout=lost_worker_timeout, **options)

    def _map_options(
        self, name: str, options: MapOptions, lost_worker_timeout: float | None = None
    ) -> tuple[Limits, int | None, object]:
        """The limits for a call of the map family, its seed, and what shows its progress. Raises
        the same."""
        check_keywords(name, options, MapOptions.__optional_keys__)
        seed = options.pop("seed", None)  # the dictionary is the call's own
        if seed is not None:
            seed = count("seed", seed, least=0)
        progress = options.pop("progress", None)
        return self._limits(name, options, lost_worker_timeout), seed, progress

    def _drawing(
        self,
        progress: object,
        counts: Counts,
        total: int | None,
        name: str,
        until_end: bool = False,
    ) -> AbstractContextManager[object]:
        """What shows the progress of a call; see `Drawing`."""
        if progress is None or progress is False:  # (a bar may have no truth value)
            return nullcontext()
        from prefork._observe.progress import Drawing

        return Drawing(progress, counts, total, name, self._engine.state.log, until_end)
