"""The places of a pool's workers, which are numbered from 0: which of them the next worker takes,
and what it finds there (`Place`).

Who replaces a worker takes its place, so that whatever hangs on the number, such as a device, goes
over to it; at a restart both have it, from the start of the new one to the end of the old one.
"""

from __future__ import annotations

import itertools
import math
import operator
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from prefork._arguments import count
from prefork._describe import short_repr
from prefork._engine.worker_handle import WorkerHandle
from prefork._worker.environment import THREADS_VARIABLES, Place

__all__ = ["Affinity", "Environment", "Places", "free_places", "make_places"]

Environment = Mapping[str, str] | Callable[[int], Mapping[str, str]]
"""The same variables for all workers, or those for the worker of an index."""

Affinity = bool | Sequence[int | Iterable[int]] | Callable[[int], int | Iterable[int]]
"""Whether each worker has a CPU to itself; or which CPUs each has, by its index (a sequence begins
again when it is at its end)."""


def free_places(
    workers: Iterable[WorkerHandle], wanted: int, generation: int, processes: int
) -> list[int]:
    """So many places for new workers.

    First those that nobody has, then those of workers that will not stay: who leaves, and then who
    is of an older generation, in the order in which they will be dismissed.
    """
    staying: set[int] = set()
    outdated: dict[int, None] = {}
    leaving: set[int] = set()
    for worker in workers:
        if worker.holds_place:
            place = worker.process.index
            if worker.is_retiring:
                leaving.add(place)
            elif worker.generation != generation:
                outdated[place] = None
            else:
                staying.add(place)
    held = staying.union(leaving, outdated)
    wishes = itertools.chain(
        (place for place in range(processes) if place not in held),
        (place for place in sorted(leaving) if place < processes),
        outdated,
        itertools.count(processes),
    )
    found: dict[int, None] = {}
    while len(found) < wanted:
        if (place := next(wishes)) not in staying:
            found[place] = None
    return list(found)


def make_places(
    processes: int,
    cpus: int,
    is_forking: bool,
    env: Environment | None,
    cpu_affinity: Affinity | None,
    inner_max_num_threads: float | None,
) -> Places:
    """The places of so many workers.

    Args:
        cpus: how many there are to be used.
        is_forking: they are forked, with the libraries that are loaded in this process.

    Raises:
        TypeError, ValueError: one of the arguments makes no sense.
        NotImplementedError: this system cannot bind processes to CPUs.
        Exception: what a user's function raises.
    """
    threads = _inner_threads(inner_max_num_threads, processes, cpus)
    insists = inner_max_num_threads is not None and threads is not None
    places = Places(env, cpu_affinity, threads, insists)
    places.make(processes)
    if insists:
        _prepare_to_bound(is_forking)
    return places


def _inner_threads(most: float | None, processes: int, cpus: int) -> int | None:
    """How many threads each library may have in a worker; None: it is not bounded.

    Args:
        most: what the caller wants: None is a fair share of the CPUs, infinity as many as it likes.
        cpus: that there are to be used.

    Raises:
        TypeError, ValueError: it is no such number.
    """
    if most is None:
        share = max(1, cpus // processes)
        return share if share < _visible_cpus() else None
    if most == math.inf:
        return None
    return count("inner_max_num_threads", most)


def _visible_cpus() -> int:
    """How many threads a library takes that knows no better."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Places:
    """What each place has of its own.

    A user's functions are called here, in the thread that makes the pool, or has it grow; not when
    a worker takes its place.

    Args:
        env: variables for the environment.
        cpu_affinity: on which CPUs it runs.
        threads: how many threads each library may have in a worker; None: it is not bounded.
        insists: somebody has asked for just that number.

    Raises:
        TypeError, ValueError: one of them makes no sense.
        NotImplementedError: this system cannot bind processes to CPUs.
    """

    def __init__(
        self,
        env: Environment | None = None,
        cpu_affinity: Affinity | None = None,
        threads: int | None = None,
        insists: bool = False,
    ) -> None:
        self._env = _checked_env(env)
        self._cpus_of = _affinity(cpu_affinity)
        has_own = any(name in os.environ for name in THREADS_VARIABLES)
        self._threads = threads if insists or not has_own else None
        self._insists = insists
        self._places: list[Place | None] = []

    def make(self, number: int) -> None:
        """There are to be so many; those that there are stay as they are. Raises as above, and what
        a user's function does."""
        new = [self._make(index) for index in range(len(self._places), number)]
        self._places += new

    def _make(self, index: int) -> Place | None:
        variables = _variables_of(self._env, index)
        cpus = None if self._cpus_of is None else self._cpus_of(index)
        threads = self._threads
        if threads is not None and not self._insists:
            if any(name in variables for name in THREADS_VARIABLES):
                threads = None  # the user knows better
            elif cpus is not None:
                threads = len(cpus)
        if threads is not None:
            variables = dict.fromkeys(THREADS_VARIABLES, str(threads)) | variables
        if not variables and cpus is None:
            return None
        return Place(variables, cpus, threads, self._insists)

    def __getitem__(self, index: int) -> Place | None:
        """None: nothing."""
        return self._places[index] if index < len(self._places) else None


# ---- env


def _checked_env(env: Environment | None) -> Environment:
    if env is None:
        return {}
    if callable(env):
        return env
    return _checked_variables(env, "env")


def _variables_of(env: Environment, index: int) -> dict[str, str]:
    return _checked_variables(env(index), f"env({index})") if callable(env) else dict(env)


def _checked_variables(variables: object, name: str) -> dict[str, str]:
    if not isinstance(variables, Mapping):
        raise TypeError(
            f"{name} must map names of variables to strings, not {short_repr(variables)}"
        )
    for key, value in variables.items():
        for text in (key, value):
            if not isinstance(text, str):
                raise TypeError(
                    f"{name} must map strings to strings, as os.environ does, not {key!r} to "
                    f"{short_repr(value)}"
                )
        if not key or "=" in key or "\0" in key + value:
            raise ValueError(f"{name} has a variable that there cannot be: {key!r}={value!r}")
    return {str(key): str(value) for key, value in variables.items()}


# ---- cpu_affinity

NO_AFFINITY: Final = "cpu_affinity: this system does not bind processes to CPUs"


def _affinity(wish: Affinity | None) -> Callable[[int], frozenset[int]] | None:
    if wish is None or wish is False:
        return None
    if not hasattr(os, "sched_setaffinity"):
        raise NotImplementedError(NO_AFFINITY)
    allowed = sorted(os.sched_getaffinity(0))
    if wish is True:
        return lambda index: frozenset({allowed[index % len(allowed)]})
    if callable(wish):
        ask = wish
        return lambda index: _checked_cpus(ask(index), allowed, f"cpu_affinity({index})")
    given: Any = wish
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or not given:
        raise TypeError(
            "cpu_affinity must be True, a function of the worker's index, or a sequence of what "
            f"each worker may run on, not {short_repr(wish)}"
        )
    each = [_checked_cpus(cpus, allowed, f"cpu_affinity[{i}]") for i, cpus in enumerate(given)]
    return lambda index: each[index % len(each)]


def _checked_cpus(cpus: Any, allowed: list[int], name: str) -> frozenset[int]:
    try:
        if isinstance(cpus, str | bytes | bool):
            raise TypeError
        some = cpus if isinstance(cpus, Iterable) else [cpus]
        found = frozenset(map(operator.index, some))
    except TypeError:
        raise TypeError(
            f"{name} must be the number of a CPU, or several, not {short_repr(cpus)}"
        ) from None
    if not found:
        raise ValueError(f"{name} has no CPU: a worker must run somewhere")
    if unknown := found.difference(allowed):
        raise ValueError(
            f"{name} has CPU {min(unknown)}, which there is not, or which this process may not "
            f"use; it may use {', '.join(map(str, allowed))}"
        )
    return found


# ---- threads


def _prepare_to_bound(is_forking: bool) -> None:
    """Somebody insists on a number of threads, and workers are to be forked, with the libraries
    that are loaded here: what can tell these so is imported once for all workers."""
    if not is_forking or "numpy" not in sys.modules:
        return
    import importlib.util

    if importlib.util.find_spec("threadpoolctl") is None:
        warnings.warn(
            "inner_max_num_threads: NumPy is loaded already, and forked workers go on with as many "
            "threads as it has: install threadpoolctl, or use the start method forkserver or spawn",
            RuntimeWarning,
            stacklevel=5,
        )
        return
    importlib.import_module("threadpoolctl")
