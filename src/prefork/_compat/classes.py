"""Classes that stand for those of `multiprocessing.pool`, which are bases of ours.

So `isinstance(pool, multiprocessing.pool.Pool)` is true, as programs expect that check it. But that
module takes as long to import as all of this package, what it imports has hooks that run in each
fork, and hardly anybody needs it: so it is not imported here. Once the program has imported it, its
classes become bases of ours, when somebody first asks for the class of an object of ours, as
`isinstance` does. What is inherited of them is overridden, or finds nothing to work on.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import TypeVar

from prefork._system.locks import Lock

__all__ = ["LATER", "StandsIn", "adopt_bases", "stands_for"]

C = TypeVar("C", bound=type)

STANDARD = "multiprocessing.pool"

_waiting: list[tuple[type, str]] = []  # classes that have not got their bases, and what these are
_lock = Lock()


class StandsIn:
    """An object of a class that `stands_for` another one."""

    __slots__ = ()

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        cls = type(self)
        if not (_waiting and adopt_bases()):
            return cls
        # `isinstance` asks, and has looked at the type's bases before: it shall look again, which
        # it does if this is another class. Once, so that nobody else will see this one.
        return types.new_class(cls.__name__, (_nearest(cls),))


def _nearest(cls: type) -> type:
    """The class of this package that a class is derived from, or is."""
    return next(each for each in cls.__mro__ if each.__module__.partition(".")[0] == "prefork")


class _Later:
    """In the place of that module, where bases of generic classes are named for type checkers."""

    def __getattr__(self, name: str) -> _Later:
        return self

    def __getitem__(self, of: object) -> type:
        return StandsIn


LATER = _Later()


def stands_for(name: str) -> Callable[[C], C]:
    """The decorated class is to have that class of `multiprocessing.pool` as its last base."""

    def note(cls: C) -> C:
        _waiting.append((cls, name))
        adopt_bases()
        return cls

    return note


def adopt_bases() -> bool:
    """Give our classes their bases, if these are there; whether something has changed."""
    module = sys.modules.get(STANDARD)
    if module is None:
        return False
    with _lock:
        count = len(_waiting)
        while _waiting:
            cls, name = _waiting[0]
            if (base := getattr(module, name, None)) is None:  # it is being imported right now
                break
            cls.__bases__ += (base,)
            del _waiting[0]
        return len(_waiting) != count
