"""Words to the compiler, mypyc: it takes the stub beside this file for the module.

Run from the source, they do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["mypyc_attr"]

C = TypeVar("C", bound=type)


def mypyc_attr(**_: bool) -> Callable[[C], C]:
    def leave(cls: C) -> C:
        return cls

    return leave
