"""Which build of prefork this is: its modules compiled, or plain Python; and why."""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path
from typing import NamedTuple

from prefork._public import public

__all__ = ["BuildInfo", "build_info"]

COMPILED_TOO = "prefork._policy.scheduler"  # one of the modules that can be
NOTE = Path(__file__).with_name("_build.txt")  # the build hook leaves it in each wheel


@public
class BuildInfo(NamedTuple):
    """How the package that was imported had been built; `str` makes one line of it."""

    version: str  # of prefork
    compiled: bool  # whether the modules that every call goes through are machine code
    how: str  # in words: what compiled it; or why it is plain Python

    def __str__(self) -> str:
        python = f"{platform.python_implementation()} {platform.python_version()}"
        return f"prefork {self.version} ({self.how}; {python})"


@public
def build_info() -> BuildInfo:
    """Tell which build this is: `build_info().compiled` is false for plain Python.

    Both behave alike; calls of small functions take less time if it is compiled. It looks for the
    modules without importing them, and raises nothing.
    """
    version: str = sys.modules["prefork"].__version__
    spec = importlib.util.find_spec(COMPILED_TOO)
    compiled = spec is not None and not (spec.origin or "").endswith((".py", ".pyc"))
    return BuildInfo(version, compiled, _how(compiled))


def _how(compiled: bool) -> str:
    try:
        note = NOTE.read_text(encoding="utf-8").strip()
    except OSError:  # no wheel was built: it runs from a checkout, or its editable install
        return "compiled" if compiled else "plain Python, run from its source"
    if note.startswith("compiled") and not compiled:
        return f"plain Python: it was {note}, but for another Python"
    return note
