"""Random numbers that depend on the item that a task is for, and on nothing else: not on how many
workers there are, which of them runs it, what has run there before, or how often it is tried.

For the item at `position` of a call with `seed`:

    random                  random.seed(f"{seed} {position}")
    numpy.random            numpy.random.seed(sequence.generate_state(4))
    current_worker().rng    numpy.random.default_rng(sequence)

where `sequence` is `numpy.random.SeedSequence(seed, spawn_key=(position,))`: what the `spawn` of
`SeedSequence(seed)` gives as child number `position`. NumPy's own documentation tells why such
children are independent (https://numpy.org/doc/stable/reference/random/parallel.html).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.random import Generator

__all__ = ["Seeded", "arrive", "generator"]


class Seeded:
    """Calls `func`, for one item after another, with the random numbers of that item.

    Args:
        seed: at least 0.
        position: of the item of the first call.
    """

    def __init__(self, func: Callable[..., Any], seed: int, position: int) -> None:
        self.func = func  # messages look for its name here
        self._seed, self._position = seed, position

    def skip(self, count: int) -> None:
        """So many items are not called here."""
        self._position += count

    def __reduce__(self) -> tuple[Any, ...]:
        return arrive, (self.func, self._seed, self._position)

    def __call__(self, *args: Any) -> Any:
        position = self._position
        self._position += 1
        with _streams(self._seed, position):
            return self.func(*args)


def arrive(func: Callable[..., Any], seed: int, position: int) -> Seeded:
    """In the worker: NumPy is imported now, so that it takes nothing of the task's time."""
    _numpy_random()
    return Seeded(func, seed, position)


class _Now:
    """What `generator` gives. A child that is forked meanwhile has none of it."""

    pid = 0
    sequence: Any = None  # of the item that runs
    generator: Any = None  # for that; or, if there is none, that of the process

    @classmethod
    def set(cls, sequence: Any) -> None:
        cls.pid, cls.sequence, cls.generator = os.getpid(), sequence, None


@contextmanager
def _streams(seed: int, position: int) -> Iterator[None]:
    """Inside of this, all generators are those of the item; after it, they go on where they were:
    others' numbers are to be as random as before."""
    import random  # has a hook that runs in each forked child

    before = random.getstate()
    random.seed(f"{seed} {position}")
    try:
        if (numpy_random := _numpy_random()) is None:
            yield
            return
        sequence = numpy_random.SeedSequence(seed, spawn_key=(position,))
        with _global_generator(numpy_random, sequence):
            _Now.set(sequence)
            try:
                yield
            finally:
                _Now.set(None)
    finally:
        random.setstate(before)


@contextmanager
def _global_generator(numpy_random: Any, sequence: Any) -> Iterator[None]:
    """NumPy's, behind `numpy.random.rand` and the like. Another generator takes its place, which
    takes a hundredth of the time that copying its state does."""
    before = numpy_random.get_bit_generator()
    numpy_random.set_bit_generator(_ours(numpy_random))
    try:
        numpy_random.seed(sequence.generate_state(4))
        yield
    finally:
        numpy_random.set_bit_generator(before)


_found: list[Any] = []  # numpy.random, or None, once that is known
_generators: list[Any] = []  # one, once it is needed


def _ours(numpy_random: Any) -> Any:
    if not _generators:
        _generators.append(numpy_random.MT19937())
    return _generators[0]


def _numpy_random() -> Any:
    """The module, if NumPy is installed (1.24 or newer)."""
    if not _found:
        try:
            import numpy.random as found
        except ImportError:
            _found.append(None)
        else:
            _found.append(found if hasattr(found, "set_bit_generator") else None)
    return _found[0]


def generator() -> Generator:
    """NumPy's, for the item that runs; or else for this process."""
    import numpy.random

    if _Now.pid != os.getpid():
        _Now.set(None)
    if _Now.generator is None:
        _Now.generator = numpy.random.default_rng(_Now.sequence)
    found: Generator = _Now.generator
    return found
