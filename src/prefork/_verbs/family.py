"""What all families of calls share."""

from __future__ import annotations

from typing import Any

from prefork._compat.habits import check_keywords
from prefork._engine.engine import Engine
from prefork._policy.limits import Limits
from prefork._results.apply import ApplyResult
from prefork._results.map import MapResult
from prefork._verbs.signatures import TaskLimits

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

    @staticmethod
    def _outcome(result: ApplyResult | MapResult) -> Any:
        """What `get` returns, or raises. The handle is nobody's: whoever interrupts this with
        Ctrl-C has its jobs ended, which would otherwise keep the workers from any other."""
        try:
            return result.get()
        except KeyboardInterrupt:
            result.terminate()
            raise
