"""Hints for habits from elsewhere: if it is clear what is meant, the error says how to do it."""

from __future__ import annotations

import select
import sys
from collections.abc import Iterable
from typing import Final

from prefork._describe import short_repr

__all__ = ["check_environment", "check_function", "unknown_option"]

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


def check_function(func: object) -> None:
    """
    Raises:
        TypeError: it cannot be called; most often, since it was called already.
    """
    if not callable(func):
        raise TypeError(
            f"the function must be callable, not {short_repr(func)}: pass the function itself, and "
            "its arguments after it, as in apply_async(f, (3,)), not apply_async(f(3))"
        )


def check_environment() -> None:
    """
    Raises:
        RuntimeError: a library has taken away what a pool needs.
    """
    if hasattr(select, "epoll") or not sys.platform.startswith("linux"):
        return
    for library in ("gevent", "eventlet"):
        if library in sys.modules:
            raise RuntimeError(
                f"{library} has patched the select module, so that there is no epoll, which a pool "
                "needs"
            )
