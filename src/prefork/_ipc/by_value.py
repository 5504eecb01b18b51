"""Functions and classes that cannot be found by a name where they are sent to: they go by value.

`cloudpickle` does that, with two differences. What belongs to `__main__` is not repeated in each
pickle but refers to the receiver's own `__main__`: as it would if that had been imported there. So
what an initializer or another task has set there is seen, a class is the same one in all calls, and
what comes back is of the class that the sender has. And what that `__main__` lacks, or has in an
older version, goes along in front of the call, as *definitions*: each global with a pickle of its
own, which a worker applies when it is not the one that it has applied last.

This module is imported when something has to be sent that way; `arrival.py` is what receives it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import sys
import weakref
from collections import ChainMap
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, Final

from prefork._describe import describe, type_name
from prefork._ipc.arrival import Definition, arrive, namespace
from prefork._ipc.descriptors import collecting
from prefork._ipc.main_module import (
    DEFINITIONS,
    MAIN,
    WorkersMain,
    is_definition,
    mentions,
    name_in_main,
)
from prefork._system import at_fork, std_internals

try:
    from cloudpickle import CloudPickler
    from cloudpickle.cloudpickle import _class_setstate
except ImportError as exc:
    raise ImportError(
        "functions and classes that a worker cannot find by their names need cloudpickle: "
        "pip install prefork[notebook]"
    ) from exc

__all__ = ["dumps_result", "dumps_whole", "dumps_with_definitions"]

PROTOCOL: Final = 5
Keep = Callable[[pickle.PickleBuffer], bool]

_reducers: Final = std_internals.reducers()
_made_here: weakref.WeakSet[type] = weakref.WeakSet()
"""Classes that are complete here: one that comes back with a result changes nothing in them."""


class _Namespace:
    """In a pickle: the globals of the module of that name in the receiver."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __reduce__(self) -> tuple[Any, ...]:
        return namespace, (self._module,)


class _Pickler(CloudPickler):  # type: ignore[misc] # it has no types
    """
    Args:
        keep: see `pickle.Pickler`'s `buffer_callback`.
        defining: the name in `__main__` that is being defined: what it stands for goes by value.

    Attributes:
        names: those in `__main__` that must be there when this is unpickled.
        globals: those that its functions use when they run.
    """

    def __init__(self, file: io.BytesIO, keep: Keep | None = None, defining: str = "") -> None:
        # Before the base class's constructor, which looks at it.
        self.dispatch_table = ChainMap(_reducers, super().dispatch_table)
        super().__init__(file, protocol=PROTOCOL, buffer_callback=keep)
        self._defining = defining
        self.names: dict[str, None] = {}
        self.globals: dict[str, None] = {}

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, DEFINITIONS):
            return _by_parts(obj) if isinstance(obj, MethodType) else NotImplemented
        name = name_in_main(obj)
        if name is not None and name != self._defining:
            self.names[name] = None
            return NotImplemented
        if not isinstance(obj, (FunctionType, type)):
            if name is None:
                return NotImplemented
            return _cached, (obj.__wrapped__, obj.cache_parameters())
        reduced = super().reducer_override(obj)
        if isinstance(obj, type) and type(reduced) is tuple and reduced[-1] is _class_setstate:
            return self._reduce_class(obj, reduced)
        return reduced

    def _reduce_class(self, cls: type, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        _made_here.add(cls)
        return reduced

    def _dynamic_function_reduce(self, func: FunctionType) -> Any:
        module = func.__module__
        its = getattr(sys.modules.get(module), "__dict__", None) if module else None
        is_main = func.__globals__ is vars(sys.modules[MAIN])
        is_here = is_main or (its is func.__globals__ and its.get("__spec__") is not None)
        if is_here:
            whose = _Namespace(MAIN if is_main else module)
            self.globals_ref.setdefault(id(func.__globals__), whose)
        reduced = super()._dynamic_function_reduce(func)
        if is_here:
            _, attributes = reduced[2]
            if is_main:
                self.globals.update(dict.fromkeys(attributes["__globals__"]))
            attributes["__globals__"] = {}
        return reduced


def _by_parts(method: MethodType) -> Any:
    """A method is pickled by its function's name, which may be another one than the class has."""
    func, whose = method.__func__, method.__self__
    if getattr(whose, getattr(func, "__name__", ""), None) == method:
        return NotImplemented
    return MethodType, (func, whose)


def _cached(func: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(func)


# ---- calls


def dumps_with_definitions(
    main: WorkersMain, obj: object, fds: list[int] | None, keep: Keep | None
) -> tuple[bytes, bytes]:
    """
    Returns:
        The pickle of the definitions that go along, or nothing; and the object's own.

    Raises:
        Exception: whatever pickling it raises.
    """
    file = io.BytesIO()
    pickler = _Pickler(file, keep)
    with collecting(fds) if fds is not None else contextlib.nullcontext():
        pickler.dump(obj)
    definitions = _Definitions(main)
    for name in [*pickler.names, *pickler.globals]:
        definitions.add(name, uses_data=name in pickler.globals)
    return definitions.pickle(), file.getvalue()


class _Whole:
    """A pickle and its definitions in one."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return arrive, self._parts


def dumps_whole(main: WorkersMain, obj: object) -> bytes:
    """An ordinary pickle of an object, and of what the receiver lacks for it; raises as above."""
    return pickle.dumps(_Whole(*dumps_with_definitions(main, obj, None, None)), PROTOCOL)


class _Definitions:
    """What has to be sent along so that some names in `__main__` mean there what they mean here."""

    def __init__(self, main: WorkersMain) -> None:
        self._main = main
        self._namespace = vars(sys.modules[MAIN])
        self._seen: set[tuple[str, bool]] = set()
        self._entries: list[Definition] = []

    def pickle(self) -> bytes:
        entries = tuple(tuple(entry) for entry in self._entries)
        self._main.no_longer_have(entry.name for entry in self._entries)
        return pickle.dumps(entries, PROTOCOL) if entries else b""

    def add(self, name: str, uses_data: bool) -> None:
        """What this name stands for, after what it needs.

        Args:
            uses_data: what it stands for is needed even if it is neither a function nor a class.
        """
        if (name, uses_data) in self._seen or name not in self._namespace:
            return
        self._seen.add((name, uses_data))
        value = self._namespace[name]
        is_defined = is_definition(value)
        if not (is_defined or uses_data):
            return
        is_there = self._main.have(name, value)
        if is_there and (is_defined or self._main.forks):
            for other in sorted(mentions(value)):
                self.add(other, self._main.typed_in)
        else:
            self._add_value(name, value, is_there, is_defined)

    def _add_value(self, name: str, value: object, is_there: bool, is_defined: bool) -> None:
        try:
            pickler, pickled = _dumps_global(name, value)
        except Exception as exc:
            if is_defined:
                raise
            why = f"the global {name!r}, a {type_name(value)}, cannot be pickled: {describe(exc)}"
            self._entries.append(Definition(name, None, is_there, why))
            return
        for other in pickler.names:
            self.add(other, uses_data=True)
        self._entries.append(Definition(name, pickled, is_there, ""))
        for other in pickler.globals:
            self.add(other, uses_data=True)


def _dumps_global(name: str, value: object) -> tuple[_Pickler, bytes]:
    file = io.BytesIO()
    fds: list[int] = []
    pickler = _Pickler(file, defining=name)
    with collecting(fds):
        pickler.dump(value)
    if fds:
        at_fork.Descriptors(*fds).close()
        raise pickle.PicklingError("it has descriptors, which go with arguments only")
    return pickler, file.getvalue()


# ---- results


class _ResultPickler(_Pickler):
    """For the way back: it must not change what is there."""

    def _reduce_class(self, cls: type, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*reduced[:-1], _complete)


def _complete(cls: type, state: Any) -> type:
    """Unless the class is known here already, it is new, and empty until now."""
    if cls not in _made_here:
        _made_here.add(cls)
        _class_setstate(cls, state)
    return cls


def dumps_result(obj: object, fds: list[int] | None, keep: Keep | None) -> bytes:
    """The pickle of what a task has come to.

    Raises:
        Exception: whatever pickling it raises.
    """
    file = io.BytesIO()
    with collecting(fds) if fds is not None else contextlib.nullcontext():
        _ResultPickler(file, keep).dump(obj)
    return file.getvalue()
