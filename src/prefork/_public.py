"""What users see is called by the name that they import it by."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["public"]

T = TypeVar("T", bound=type | Callable[..., object])


def public(thing: T) -> T:
    """The decorated class or function is a public name of the package, wherever its home is: so
    tracebacks, documentation and pickles name it, and who unpickles it finds it there."""
    thing.__module__ = "prefork"
    return thing
