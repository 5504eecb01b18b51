"""Whether a cluster's pool takes jobs: as `prefork._engine.state` has it, as far as faces ask."""

from __future__ import annotations

from collections.abc import Callable

from prefork._engine.state import InputReader, PoolPhase, in_child, takes_no_jobs
from prefork._system.locks import RLock
from prefork._system.log import Log
from prefork.errors import PoolBrokenError

__all__ = ["ClusterState"]


class ClusterState:
    """The life of the pool: as `PoolState`, as far as faces ask for it."""

    def __init__(self, log: Log, check_done: Callable[[], None]) -> None:
        self.log = log
        self.lock = RLock()
        self.phase = PoolPhase.RUN
        self.broken: PoolBrokenError | None = None
        self.is_forked = False
        self.inputs: set[InputReader] = set()
        self.check_done = check_done

    def is_lock_held(self) -> bool:
        return self.lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    def check_owner(self) -> None:
        if self.is_forked:
            raise in_child()

    def check_running(self) -> None:
        if self.phase is PoolPhase.RUN and self.broken is None:
            return
        self.check_owner()
        raise takes_no_jobs(self.phase, self.broken)
