"""What a process that receives functions by value needs for it; see `by_value.py`."""

from __future__ import annotations

import importlib
import pickle
import sys
from types import FunctionType
from typing import Any, NamedTuple

__all__ = ["Definition", "apply", "arrive", "namespace"]


class Definition(NamedTuple):
    """One global of `__main__` on its way to a worker.

    Attributes:
        name: of the global.
        pickled: its value; None: that cannot be pickled.
        is_old: it was so when the pool was made: what the worker has made of it since then stays.
        why: it cannot be pickled.
    """

    name: str
    pickled: bytes | None
    is_old: bool
    why: str


def namespace(module: str) -> dict[str, Any]:
    """The globals of a module here."""
    if module == "__main__":
        return _main_globals()
    found = sys.modules.get(module)
    return vars(importlib.import_module(module) if found is None else found)


def _main_globals() -> dict[str, Any]:
    """Those that the functions of `__main__` have. `multiprocessing` has a script run in another
    namespace than that of the module which it then calls `__main__`: that has a copy."""
    found = vars(sys.modules["__main__"])
    for value in list(found.values()):
        if getattr(value, "__module__", None) == "__mp_main__":
            members = vars(value).values() if isinstance(value, type) else [value]
            for member in members:
                if isinstance(member, FunctionType) and member.__module__ == "__mp_main__":
                    return member.__globals__
    return found


_applied: dict[str, bytes] = {}  # the last pickle of each name


def apply(definitions: tuple[tuple[Any, ...], ...]) -> None:
    """Have the globals of `__main__` as the sender has them.

    What is the same as the last time stays as it is here: a class remains the same class, and a
    counter goes on.

    Raises:
        pickle.PicklingError: one cannot be had, and there is none here.
        Exception: whatever unpickling raises.
    """
    main = namespace("__main__")
    names = vars(sys.modules["__main__"])  # where pickle looks
    for name, pickled, is_old, why in definitions:
        if pickled is None:
            if name not in main:
                raise pickle.PicklingError(why)
        elif _applied.get(name) != pickled:
            if not (is_old and name in main and name not in _applied):
                main[name] = names[name] = pickle.loads(pickled)
            _applied[name] = pickled


def arrive(definitions: bytes, pickled: bytes) -> Any:
    """What was pickled with its definitions."""
    if definitions:
        apply(pickle.loads(definitions))
    return pickle.loads(pickled)
