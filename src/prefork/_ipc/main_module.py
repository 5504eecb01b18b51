"""What the workers of a pool have as their `__main__`, and whether that is what it is now.

Pickle sends a function or a class by its name, and a worker looks up what has that name there. For
an importable module that is the same thing. For `__main__` it may be another one: a forked worker
has what was there when it was forked; one that was spawned has what the script defines, or nothing
at all, if it was typed into a notebook or an interpreter. So what was defined since the pool was
made has to go along with a call (`by_value.py`). Whether it has to is told here.
"""

from __future__ import annotations

import copyreg
import functools
import io
import operator
import pickle
import sys
import weakref
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple

from prefork._ipc.descriptors import collecting
from prefork._system import at_fork, std_internals

__all__ = ["DEFINITIONS", "MAIN", "Uses", "WorkersMain", "is_definition", "is_typed_in", "mentions"]

MAIN: Final = "__main__"
_CACHED: Final = type(functools.lru_cache(lambda: None))
DEFINITIONS: Final = (FunctionType, type, _CACHED)


def is_typed_in() -> bool:
    """Whether `__main__` is a notebook, a REPL, `python -c` or standard input: nothing that another
    process could import."""
    file = getattr(sys.modules.get(MAIN), "__file__", None) or "<none>"
    return file.startswith("<") or hasattr(sys, "ps1") or bool(sys.flags.interactive)


def is_definition(value: object) -> bool:
    """Whether it is a function or a class that `__main__` has defined."""
    return isinstance(value, DEFINITIONS) and getattr(value, "__module__", None) == MAIN


def name_in_main(obj: Any) -> str | None:
    """The global name in `__main__` by which pickle finds a definition, or what it is part of: for
    a method, its class. None: pickle does not find it."""
    path = getattr(obj, "__qualname__", None)
    if getattr(obj, "__module__", None) != MAIN or not isinstance(path, str):
        return None
    found: Any = sys.modules.get(MAIN)
    for part in path.split("."):
        found = getattr(found, part, None)
    return path.partition(".")[0] if found is obj else None


# ---- what a definition mentions


def _names(code: CodeType) -> set[str]:
    """Of globals, and of attributes, which look alike here."""
    names = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, CodeType):
            names |= _names(const)
    return names


def mentions(definition: object) -> set[str]:
    """The names in `__main__` that a function or a class may use when it runs, and some more: each
    that its code has for anything."""
    names: set[str] = set()
    seen: set[int] = set()
    todo: list[Any] = [definition]
    namespace = vars(sys.modules[MAIN])
    while todo:
        obj = todo.pop()
        if id(obj) in seen:
            continue
        seen.add(id(obj))
        if isinstance(obj, FunctionType):
            if obj.__globals__ is namespace:
                names |= _names(obj.__code__)
            cells = obj.__closure__ or ()
            todo += [c.cell_contents for c in cells if _is_full(c)]
            todo += [*(obj.__defaults__ or ()), *(obj.__kwdefaults__ or {}).values()]
            todo.append(getattr(obj, "__wrapped__", None))
        elif isinstance(obj, type):
            if obj.__module__ == MAIN:
                names.add(obj.__qualname__.partition(".")[0])
                todo += [*vars(obj).values(), *obj.__bases__, type(obj)]
        elif isinstance(obj, functools.partial):
            todo += [obj.func, *obj.args, *obj.keywords.values()]
        elif isinstance(obj, (staticmethod, classmethod, _CACHED)):
            todo.append(obj.__wrapped__)
        elif isinstance(obj, property):
            todo += [obj.fget, obj.fset, obj.fdel]
        elif isinstance(obj, functools.cached_property):
            todo.append(obj.func)
        elif type(obj).__module__ == MAIN:
            todo.append(type(obj))
    return names


def _is_full(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


# ---- what the workers have


class _Held(NamedTuple):
    """A value that can be told from any other one, kept alive only where that must be."""

    refer: Callable[[], object] | None
    value: object
    code: CodeType | None  # a function can be given another one

    @classmethod
    def of(cls, value: object) -> _Held:
        code = value.__code__ if isinstance(value, FunctionType) else None
        try:
            return cls(weakref.ref(value), None, code)
        except TypeError:
            return cls(None, value, code)

    def holds(self, value: object) -> bool:
        held = self.value if self.refer is None else self.refer()
        return held is value and (self.code is None or value.__code__ is self.code)  # type: ignore[attr-defined]


class _Snapshot(NamedTuple):
    """What one generation of workers has."""

    generation: int
    module: ModuleType | None
    names: dict[str, _Held]
    specs: dict[str, object]  # of other modules: `importlib.reload` gives a module another one


def _spec(module: ModuleType) -> object:
    return vars(module).get("__spec__")


class _Seen(NamedTuple):
    """What `__main__` was like when all its definitions were known to the workers."""

    changes: int
    types: list[type]  # of its globals, in their order
    definitions: list[str]
    values: list[object]  # of these


class WorkersMain:
    """What the workers of one pool have as `__main__`, by what it was when they were made.

    Args:
        forks: workers are forked: they have all that was there, else what can be imported.
        oldest: tells the oldest generation of workers that there is (see `Spawner.generation`).

    Attributes:
        forks: as above.
        changes: how often something was sent to workers that they had otherwise.
        typed_in: see `is_typed_in`. Then a change of any global counts that a function uses; in a
            script only that of definitions: it says itself what its workers are to know.
    """

    def __init__(self, forks: bool, oldest: Callable[[], int] = lambda: 0) -> None:
        self.forks = forks
        self.typed_in = is_typed_in()
        self.changes = 0
        self._oldest = oldest
        self._seen: _Seen | None = None
        self._snapshots: list[_Snapshot] = []
        self.note(0)

    def note(self, generation: int) -> None:
        """Workers of this generation are about to be made."""
        module = sys.modules.get(MAIN)
        names: dict[str, _Held] = {}
        specs: dict[str, object] = {}
        if self.forks:
            specs = {k: _spec(m) for k, m in list(sys.modules.items()) if type(m) is ModuleType}
        if generation and not self.forks:
            names = self._snapshots[0].names  # the script's, which says the same each time
        elif module is not None and (self.forks or not self.typed_in):
            names = {name: _Held.of(value) for name, value in list(vars(module).items())}
        self._snapshots = [*self._snapshots, _Snapshot(generation, module, names, specs)]

    def forget(self) -> None:
        """There are no workers any more."""
        self._snapshots = []
        self._seen = None

    def have(self, name: str, value: object) -> bool:
        """Whether in all workers this global has this value, or did when they were made."""
        return self._all(lambda snapshot: self._has(snapshot, name, value))

    def have_module(self, name: str) -> bool:
        """Whether no worker has another version of this module: one that was there before it was
        reloaded. (A module that no worker has yet is imported as it is.)"""
        module = sys.modules.get(name)
        if type(module) is not ModuleType:
            return True
        spec = _spec(module)
        return self._all(lambda snapshot: snapshot.specs.setdefault(name, spec) is spec)

    def _all(self, is_so: Callable[[_Snapshot], bool]) -> bool:
        while not all(map(is_so, self._snapshots)):
            rest = self._snapshots[1:]
            if not rest or rest[0].generation > self._oldest():
                return False
            self._snapshots = rest  # who had the first one has gone
        return True

    def no_longer_have(self, names: Iterable[str]) -> None:
        """These are sent now, and will have to be again, should they be as they were."""
        for name in names:
            for snapshot in self._snapshots:
                if snapshot.names.pop(name, None) is not None:
                    self.changes += 1

    @staticmethod
    def _has(snapshot: _Snapshot, name: str, value: object) -> bool:
        held = snapshot.names.get(name)
        is_same = snapshot.module is sys.modules.get(MAIN)
        return is_same and held is not None and held.holds(value)

    def may_lack(self, obj: object) -> bool:
        """Whether a worker does not find what this has names for, whose pickle has some in
        `__main__`."""
        if not self.typed_in and self._have_all_definitions():
            return False
        fds: list[int] = []
        pickler = _NamesPickler(obj, fds)
        at_fork.Descriptors(*fds).close()
        return not self.uses(pickler.names).are_there

    def _have_all_definitions(self) -> bool:
        """Asked often, and hardly ever answered otherwise than before: that is found out fast."""
        namespace = vars(sys.modules[MAIN])
        seen = self._seen
        types = list(map(type, namespace.values()))
        if (
            seen is not None
            and seen.changes == self.changes
            and seen.types == types
            and all(map(operator.is_, map(namespace.get, seen.definitions), seen.values))
        ):
            return True
        definitions = {k: v for k, v in list(namespace.items()) if is_definition(v)}
        if not all(self.have(k, v) for k, v in definitions.items()):
            return False
        self._seen = _Seen(self.changes, types, list(definitions), list(definitions.values()))
        return True

    def uses_of(self, func: Callable[..., Any]) -> Uses:
        """What is behind a function that pickle finds by its name."""
        return self.uses([func.__qualname__.partition(".")[0]])

    def uses(self, names: Iterable[str]) -> Uses:
        """What is behind these names, and what that uses in turn."""
        return Uses(self, names)


class Uses:
    """What some names in `__main__` stand for, and what that uses there in turn.

    Attributes:
        are_there: whether all workers have it.
    """

    def __init__(self, main: WorkersMain, names: Iterable[str]) -> None:
        self.are_there = True
        self._main, self._changes = main, main.changes
        self._any_counts = main.typed_in
        self._names: list[str] = []
        self._values: list[Any] = []
        namespace = vars(sys.modules[MAIN])
        self._get = namespace.get
        todo, seen = list(names), set(names)
        while todo:
            name = todo.pop()
            value = namespace.get(name)
            counts = self._any_counts or value is None or is_definition(value)
            if counts:
                self._names.append(name)
                self._values.append(_Held.of(value) if self._any_counts else value)
            if name not in namespace:
                continue
            if counts and not main.have(name, value):
                self.are_there = False
            more = mentions(value) - seen
            seen |= more
            todo += more

    def are_as_they_were(self) -> bool:
        """Whether these names still stand for the same."""
        if self._changes != self._main.changes:
            return False
        now = map(self._get, self._names)
        if self._any_counts:
            return all(map(_Held.holds, self._values, now))
        return all(map(operator.is_, self._values, now))


class _NamesPickler(pickle.Pickler):
    """Pickles something as usual, to tell which names in `__main__` that needs.

    Attributes:
        names: those.
    """

    def __init__(self, obj: object, fds: list[int]) -> None:
        super().__init__(io.BytesIO(), 5, buffer_callback=lambda _: None)
        self.dispatch_table = {**copyreg.dispatch_table, **std_internals.reducers()}
        self.names: set[str] = set()
        with collecting(fds):
            self.dump(obj)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, DEFINITIONS) and (name := name_in_main(obj)) is not None:
            self.names.add(name)
        return NotImplemented
