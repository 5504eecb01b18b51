"""Hints for habits from elsewhere: if it is clear what is meant, the error says how to do it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Final, NamedTuple

from prefork._describe import function_name, short_repr

__all__ = ["check_environment", "check_function", "check_keywords", "unknown_option"]

_FUNCTION: Final = FunctionType  # a name that is final is found faster
_OPTIONS: Final = {
    "max_workers": "processes",  # concurrent.futures
    "mp_context": "context",
    "max_tasks_per_child": "maxtasksperchild",
    "n_jobs": "processes",  # joblib, mpire
    "start_method": "context",
    "nodes": "processes",  # pathos
    "ncpus": "processes",
    "max_tasks": "maxtasksperchild",  # pebble
}


def unknown_option(name: str, options: Iterable[str]) -> TypeError:
    """The error for arguments that there are not."""
    text = f"{name}() got an unexpected keyword argument {next(iter(options))!r}"
    hints = [
        f"{option} is called {_OPTIONS[option]} here" for option in options if option in _OPTIONS
    ]
    return TypeError(": ".join([text, ", ".join(hints)]) if hints else text)


def check_keywords(name: str, given: Mapping[str, object], known: Set[str]) -> None:
    """
    Raises:
        TypeError: an argument is given that there is not.
    """
    if given and (unknown := given.keys() - known):
        raise unknown_option(name, unknown)


def check_function(func: object) -> None:
    """
    Raises:
        TypeError: it cannot be called; most often, since it was called already. Or what it returns
            is to be awaited.
    """
    if type(func) is _FUNCTION:  # as most are
        flags = func.__code__.co_flags
    elif type(func) is BuiltinFunctionType:
        return
    elif callable(func):
        flags = _flags(func)
    else:
        raise TypeError(
            f"the function must be callable, not {short_repr(func)}: pass the function itself, and "
            "its arguments after it, as in apply_async(f, (3,)), not apply_async(f(3))"
        )
    if flags & _ASYNCHRONOUS:
        raise TypeError(
            f"{function_name(func)} is a coroutine function, and workers do not await: await is on "
            "this side, as in `await pool.submit(f, x)` with a plain function f. One that calls "
            "asyncio.run has a loop of its own in the worker"
        )


_ASYNCHRONOUS: Final = 0x80 | 0x200
"""Flags of the code of functions that return coroutines, and asynchronous generators."""


def _flags(func: Any) -> int:
    """Of the code that a call runs; 0 if that is not Python's."""
    while True:
        if type(func) is FunctionType:
            return func.__code__.co_flags
        if type(func) is functools.partial:
            func = func.func
        elif type(func) is MethodType:
            func = func.__func__
        elif type(type(func).__call__) is FunctionType:
            func = type(func).__call__
        else:
            return 0


def check_environment() -> None:
    """
    Raises:
        RuntimeError: a library has replaced what a pool needs as it is: its threads would run in
            the library's loop, and stop that when they wait.
    """
    for library, needed, advice in _PATCHING:
        module: Any = sys.modules.get(f"{library}.{needed.module}")
        if module is None:
            continue
        is_patched: Callable[[str], bool] = getattr(module, needed.ask)
        if patched := [name for name in needed.names if is_patched(name)]:
            raise RuntimeError(
                f"{library} has patched {', '.join(patched)}, which a pool needs as they are: "
                f"{advice}; or have the pool in a process of its own"
            )


class _Needed(NamedTuple):
    module: str  # of the library, that knows what is patched
    ask: str  # a function in there
    names: tuple[str, ...]  # of what must not be


_PATCHING: Final = (
    (
        "gevent",
        _Needed("monkey", "is_module_patched", ("threading", "select", "queue", "os")),
        "patch the rest only, by gevent.monkey.patch_all(thread=False, select=False, queue=False, "
        "os=False, signal=False), and wait for results in gevent.get_hub().threadpool",
    ),
    (
        "eventlet",
        _Needed("patcher", "is_monkey_patched", ("thread", "select", "os")),
        "patch the rest only, by eventlet.monkey_patch(thread=False, select=False, os=False), and "
        "wait for results in eventlet.tpool",
    ),
)
