"""Functions go to other machines by their names: which have one, and which are allowed.

    module:function        `package.module:function`, identifiers and dots only

What is asked for is matched against the list of what is allowed before anything is imported. Then
the module is imported, and one attribute is looked up: it must be a plain function that calls
itself by that very name. So neither a module that is imported there, nor an object's attribute, nor
what another module has imported from elsewhere can be reached.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Callable, Iterable
from types import FunctionType, ModuleType
from typing import Any, Final, Protocol

from prefork._describe import function_name, short_repr
from prefork.cluster.errors import NotAllowedError

__all__ = ["AllowList", "Allowed", "Anything", "code_hash", "find", "name_of"]

_IDENTIFIER: Final = r"[^\W\d]\w*"
_MODULE: Final = rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*"
_NAME: Final = re.compile(rf"({_MODULE}):({_IDENTIFIER})")
_PATTERN: Final = re.compile(rf"{_MODULE}(\.\*|:{_IDENTIFIER})?")


def name_of(func: Callable[..., Any]) -> str:
    """The name by which another machine finds this function.

    Raises:
        TypeError: it has none; the message says what to do.
    """
    advice = "move it to a module that the nodes have, too, as a plain function at its top level"
    if type(func) is not FunctionType:
        raise TypeError(
            f"{short_repr(func)} is no plain function, and a cluster's nodes find functions by "
            f"their names: write one that calls it, and {advice}"
        )
    module, name = func.__module__, func.__qualname__
    if module == "__main__":
        raise TypeError(
            f"{name} is of the script that runs here, which the nodes do not have: {advice}"
        )
    if "<" in name or "." in name:
        raise TypeError(f"{function_name(func)} cannot be found by its name: {advice}")
    if getattr(sys.modules.get(module), name, None) is not func:
        raise TypeError(
            f"{module}.{name} is another function than this: a decorator may have replaced it. "
            f"Use that one, or {advice}"
        )
    return f"{module}:{name}"


class Allowed(Protocol):
    """What a node runs."""

    def check(self, name: str, by_value: bool) -> None:
        """Nothing is imported here.

        Args:
            by_value: its code comes with the call.

        Raises:
            NotAllowedError: this function is not to be run.
        """


class Anything:
    """All functions: for nodes that run whatever else their clients say, too."""

    def check(self, name: str, by_value: bool) -> None:
        pass


class AllowList:
    """Which functions a node runs.

    Args:
        allow: each is a module (`"work"`: its functions), a package with all below it
            (`"work.*"`), or a function (`"work:resize"`).

    Raises:
        TypeError, ValueError: one of them is none of these.
    """

    def __init__(self, allow: Iterable[str]) -> None:
        if isinstance(allow, str):
            raise TypeError(f"allow must be a list of names, not the string {allow!r}")
        self.patterns = tuple(allow)
        if not self.patterns:
            raise ValueError("allow is empty: a node that may run nothing serves nobody")
        for pattern in self.patterns:
            if not _PATTERN.fullmatch(pattern):
                raise ValueError(
                    f"allow has {pattern!r}: it is to be a module ('work'), a package with all "
                    "below it ('work.*') or a function ('work:resize')"
                )

    def check(self, name: str, by_value: bool = False) -> None:
        """As `Allowed.check`; no function whose code comes with the call is."""
        if by_value:
            raise NotAllowedError(f"{name!r} comes with its code, which this node does not run")
        if (match := _NAME.fullmatch(name)) is None:
            raise NotAllowedError(f"{name!r} is no name of a function, as 'module:function' is")
        module = match[1]
        for pattern in self.patterns:
            if pattern in (name, module):
                return
            package = pattern.removesuffix(".*")
            is_below = module == package or module.startswith(f"{package}.")
            # To import a package's `__main__` is to run the program that it is.
            if package != pattern and is_below and "__main__" not in module.split("."):
                return
        raise NotAllowedError(
            f"{name} is not among what this node may run, which is {', '.join(self.patterns)}: "
            "see the `allow` of prefork.celery.serve"
        )


def find(name: str) -> FunctionType:
    """The function of that name, which has been checked.

    Raises:
        NotAllowedError: there is none, or what is there is no plain function of that very name.
        Exception: what the import of its module raises.
    """
    module_name, _, attribute = name.partition(":")
    module = importlib.import_module(module_name)
    found = vars(module).get(attribute)
    if (
        type(found) is not FunctionType
        or found.__module__ != module_name
        or found.__qualname__ != attribute
    ):
        what = "nothing" if found is None else f"no plain function of its own but {found!r}"
        raise NotAllowedError(f"{name}: {module_name} has {what} of that name on this node")
    return found


def code_hash(name: str, modules: dict[str, ModuleType] | None = None) -> str:
    """Of the source of the module of this function, which has been imported; "" if it has none."""
    module = (sys.modules if modules is None else modules).get(name.partition(":")[0])
    file = getattr(module, "__file__", None)
    if file is None:
        return ""
    with open(file, "rb") as source:
        return hashlib.sha256(source.read()).hexdigest()[:16]
