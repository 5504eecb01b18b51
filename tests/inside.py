"""The one place where tests look inside of a pool. (`test_tests.py` sees to that.)

Behaviour is tested from outside: by results, callbacks, `statistics()`, processes. Parts of the
engine are tested in `unit`, on fakes. What is left are facts that nobody outside may depend on, and
that a test of a running pool needs all the same; each has a function here that says what for.
"""

from __future__ import annotations

from typing import Any

from prefork import Pool


def _engine(pool: Pool) -> Any:
    return pool._engine


def is_lock_held(pool: Pool) -> bool:
    """Whether this thread has the pool's lock, which is never held over a user's code. A pool that
    is being made may have none yet."""
    return "_engine" in vars(pool) and _engine(pool).state.is_lock_held()
