"""What has to be set in a worker before it imports anything of a user's: libraries look at their
environment variables once, when they are loaded."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping

__all__ = ["begin", "depth"]


class _Here:
    depth = 0


def depth() -> int:
    """How many pools this process is inside of, one in the other, of those that count it."""
    return _Here.depth


def begin(depth: int, variables: Mapping[str, str], pickled: bytes) -> None:
    """An initializer for workers.

    Args:
        depth: of this worker, see `depth`.
        variables: what to set in `os.environ`.
        pickled: a pair of a function and its arguments, which is called then; or nothing.
    """
    _Here.depth = depth
    os.environ.update(variables)
    if pickled:
        func, args = pickle.loads(pickled)
        func(*args)
