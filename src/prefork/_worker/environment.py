"""What a worker has of its own, by its place in the pool: variables of the environment, CPUs, and
how many threads the libraries in it may have.

It is set before anything of a user's runs: libraries look at their environment variables once, when
they are loaded. (In a process that is not forked, the variables are there even earlier, see
`newborn.py`: before the program's file is imported.)
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import sys
from typing import Any, Final, NamedTuple

__all__ = ["THREADS_VARIABLES", "Place", "begin", "depth"]

THREADS_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""By these OpenMP and the implementations of BLAS are told how many threads they may have."""


class Place(NamedTuple):
    """
    Attributes:
        variables: what to set in `os.environ`.
        cpus: those to run on; None: as they are.
        inner_threads: how many threads libraries that are loaded already may have, each; None: as
            they are. To the others the variables tell it.
        insists: somebody has asked for just that number.
    """

    variables: dict[str, str]
    cpus: frozenset[int] | None = None
    inner_threads: int | None = None
    insists: bool = False

    def take(self) -> None:
        """In a worker, first.

        Raises:
            OSError: one of the CPUs cannot be had any more.
        """
        os.environ.update(self.variables)
        if self.cpus is not None:
            try:
                os.sched_setaffinity(0, self.cpus)
            except OSError as exc:
                raise OSError(exc.errno, f"the CPUs {sorted(self.cpus)} cannot be had") from exc
        if self.inner_threads is not None:
            _bound(self.inner_threads, self.insists)


def _bound(most: int, insists: bool) -> None:
    """Have the libraries that are loaded make do with so many threads. They have read their
    variables long ago, and only threadpoolctl knows how to tell them. It takes long to be imported,
    so that is not done for a mere default."""
    if insists and "numpy" in sys.modules:
        with contextlib.suppress(ImportError):
            importlib.import_module("threadpoolctl")
    control: Any = sys.modules.get("threadpoolctl")
    if control is None:
        return
    # Another library's code, on libraries in any state: without it there are more threads.
    with contextlib.suppress(Exception):
        found = control.ThreadpoolController()
        over = {each["prefix"]: most for each in found.info() if each["num_threads"] > most}
        if over:
            found.limit(limits=over)


class _Here:
    depth = 0


def depth() -> int:
    """How many pools this process is inside of, one in the other, of those that count it."""
    return _Here.depth


def begin(depth: int, pickled: bytes) -> Any:
    """An initializer for workers.

    Args:
        depth: of this worker, see `depth`.
        pickled: a pair of a function and its arguments, which is called then; or nothing.
    """
    _Here.depth = depth
    if not pickled:
        return None
    func, args = pickle.loads(pickled)
    return func(*args)
