"""The pool that is kept for the next call of joblib, as starting workers takes long, and importing
what they need takes longer.

There is one at a time. Calls that want the same share it, those of several threads, too; one that
wants another one replaces it. When nobody has used it for a while, it is let go.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from prefork._system.locks import RLock
from prefork._system.own_server import OwnServerContext
from prefork._worker.environment import begin, depth
from prefork.adapters import AdapterPool
from prefork.joblib.pickling import dumps_whole

__all__ = ["Lease", "WorkerSettings", "lease", "shutdown"]

LEAVE_SECONDS = 5.0
"""How long idle workers may take to end in an orderly way."""


class _Pool(AdapterPool):
    load_seconds = 60.0  # imports, which a short time limit would end in each new worker again


class WorkerSettings(NamedTuple):
    """What workers are made with; whoever wants the same can share them.

    Attributes:
        processes: how many.
        environment: variables that are set in them, as sorted pairs.
        initializer, initargs, maxtasksperchild, max_memory_per_child, max_memory_per_task: as in
            `prefork.Pool`; the first may be any function that cloudpickle can take.
        idle_timeout: for how many seconds they are kept, when nobody uses them.
    """

    processes: int
    environment: tuple[tuple[str, str], ...] = ()
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    maxtasksperchild: int | None = None
    max_memory_per_child: int | None = None
    max_memory_per_task: int | None = None
    idle_timeout: float = 300.0

    def make(self) -> _Pool:
        call = b""
        if self.initializer is not None:
            call = dumps_whole((self.initializer, self.initargs))
        return _Pool(
            self.processes,
            begin,
            (depth() + 1, call),
            self.maxtasksperchild,
            context=OwnServerContext(),
            max_memory_per_child=self.max_memory_per_child,
            max_memory_per_task=self.max_memory_per_task,
            env=dict(self.environment),
        )


class _Kept:
    """A pool, and who uses it. All is guarded by `_lock`."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.pool = settings.make()
        self.users = 0
        self.idle_since = 0.0  # monotonic
        self.timer: threading.Timer | None = None

    def is_good_for(self, settings: WorkerSettings) -> bool:
        return not self.pool.is_broken and bool(self.settings == settings)

    def let_go(self) -> None:
        """Nobody uses it any more. (Not with the lock: it takes a moment.)"""
        if self.timer is not None:
            self.timer.cancel()
        self.pool.close()
        if not (self.users or self.pool.is_busy_here()):
            self.pool.join(LEAVE_SECONDS)
        self.pool.terminate()


_lock = RLock()
_now: _Kept | None = None  # what there is for the next call


class Lease:
    """The use of a pool, until it is released."""

    def __init__(self, kept: _Kept) -> None:
        self._kept: _Kept | None = kept
        self.pool = kept.pool

    def release(self) -> None:
        """May be called again."""
        with _lock:
            kept, self._kept = self._kept, None
            if kept is None:
                return
            kept.users -= 1
            if kept.users:
                return
            kept.idle_since = time.monotonic()
            if kept is _now and not kept.pool.is_broken:
                _watch(kept)
                return
        kept.let_go()


def lease(settings: WorkerSettings) -> Lease:
    """Workers as wanted: those that there are, or new ones.

    Raises:
        Exception: what `prefork.Pool` raises, and what pickling the initializer does.
    """
    global _now  # noqa: PLW0603
    replaced = None
    try:
        with _lock:
            if _now is None or not _now.is_good_for(settings):
                if _now is not None and not _now.users:
                    replaced = _now
                _now = None
                _now = _Kept(settings)
            _now.users += 1
            return Lease(_now)
    finally:
        if replaced is not None:
            replaced.let_go()


def _watch(kept: _Kept) -> None:
    """Have it let go in time. A timer is started once, not for each call: if the pool has been used
    since then, it is started again when it has run out."""
    if kept.timer is None and kept.settings.idle_timeout != float("inf"):
        wait = kept.idle_since + kept.settings.idle_timeout - time.monotonic()
        kept.timer = threading.Timer(max(wait, 0.0), _look_at, (kept,))
        kept.timer.daemon = True
        kept.timer.start()


def _look_at(kept: _Kept) -> None:
    global _now  # noqa: PLW0603
    with _lock:
        kept.timer = None
        if kept is not _now or kept.users:
            return  # whoever uses it watches it afterwards
        if time.monotonic() < kept.idle_since + kept.settings.idle_timeout:
            _watch(kept)
            return
        _now = None
    kept.let_go()


def shutdown() -> None:
    """Let the kept workers go now; the next call starts others. What still runs in them is killed,
    and fails with `Terminated`."""
    global _now
    with _lock:
        kept, _now = _now, None
    if kept is not None:
        kept.let_go()


def _after_in_child() -> None:
    """The workers are the parent's."""
    global _lock, _now
    _lock, _now = RLock(), None


atexit.register(shutdown)
os.register_at_fork(after_in_child=_after_in_child)
