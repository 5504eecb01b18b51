"""The one place where tests look inside of a pool. (`test_tests.py` sees to that.)

Behaviour is tested from outside: by results, callbacks, `statistics()`, processes. Parts of the
engine are tested in `unit`, on fakes. What is left are facts that nobody outside may depend on, and
that a test of a running pool needs all the same; each has a function here that says what for.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

from helpers import DEADLINE
from prefork import Pool
from prefork.cluster.lines import shut


def _engine(pool: Pool) -> Any:
    return pool._engine


def is_lock_held(pool: Pool) -> bool:
    """Whether this thread has the pool's lock, which is never held over a user's code. A pool that
    is being made may have none yet."""
    return "_engine" in vars(pool) and _engine(pool).state.is_lock_held()


def is_start_waiting(pool: Pool) -> bool:
    """Whether a worker's start waits for the callback that is running, or forks."""
    return bool(_engine(pool).callbacks._turn.locked())


def as_while_a_worker_is_forked(pool: Pool) -> AbstractContextManager[object]:
    """Holds callbacks up as such a fork does, which nobody could make last so long."""
    pausing: AbstractContextManager[object] = _engine(pool).callbacks.pausing(DEADLINE)
    return pausing


def mean_seconds(pool: Pool) -> float | None:
    """How long the pool believes that a task takes, which decides whether tasks are held back."""
    mean: float | None = _engine(pool).state.scheduler.mean_seconds
    return mean


def templates(pool: Pool) -> list[Any]:
    """The processes that workers are or will be forked from: to lose them at any moment."""
    return list(_engine(pool)._spawner._templates._all)


def boxes_of(pool: Any) -> dict[str, str]:
    """Where the nodes of a `ClusterPool` are written to, by session: for who forges letters."""
    return {session: node.box for session, node in pool._carrier.nodes.items()}


def queue_of(pool: Any) -> str:
    """Where a `ClusterPool` is written to; it is to be gone with it."""
    name: str = pool._carrier._post.name
    return name


def break_cluster(pool: Any, bug: Any, patch: Any) -> None:
    """Puts a bug where a `ClusterPool` settles its jobs, in the thread that reads its letters."""
    patch.setattr(pool._engine, "_settle", bug)


def hold_deliveries(pool: Any) -> threading.Event:
    """Until this is set, a cluster's pool tells nobody what was reported: as when the values are
    large, and take long to be read."""
    goes_on = threading.Event()
    pool._engine._deliverer.put(goes_on.wait)
    return goes_on


def lose_all_nodes(pool: Any, error: Exception) -> None:
    """Tells a cluster's pool that no node is left; that has been handled then."""
    is_handled = threading.Event()
    events = pool._carrier._events
    events.put(lambda: pool._carrier.fail(error))
    events.put(lambda: events.put(is_handled.set))
    assert is_handled.wait(DEADLINE)


def cut_connections(pool: Any) -> None:
    """Ends all connections that a `prefork.cluster.Pool` has with its nodes, as a network may."""
    for line in list(pool._carrier._post._members.values()):
        shut(line.connection)


def listens_at(pool: Any) -> tuple[str, int]:
    """Where a `prefork.cluster.Pool` waits for its nodes: for who is none."""
    where = pool._carrier._post.where
    return where.host, where.port
