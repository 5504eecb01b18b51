"""What a forked child must not keep: this process's ends of pipes, sockets and files.

An end that a child holds open hides the death of whoever it belongs to. So each object that owns
such an end is registered here, and in a forked child all of them are abandoned; except what the
fork was for (`keeping`).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator
from typing import Protocol

__all__ = ["creating", "disown", "forget_imports", "keeping", "own"]


class Owned(Protocol):
    def abandon(self) -> None:
        """In a forked child: let go, without a trace for the parent."""


_owned: weakref.WeakSet[Owned] = weakref.WeakSet()
_kept = threading.local()
_guard = threading.RLock()


def own(obj: Owned) -> None:
    """From now on, forked children abandon this object."""
    _owned.add(obj)


def disown(obj: Owned) -> None:
    """The object is closed; to be called before its descriptors are."""
    _owned.discard(obj)


@contextlib.contextmanager
def creating() -> Iterator[None]:
    """No other thread forks between the making of descriptors and the call of `own`."""
    with _guard:
        yield


@contextlib.contextmanager
def keeping(obj: Owned) -> Iterator[None]:
    """A child that this thread forks meanwhile keeps this object."""
    _kept.obj = obj
    try:
        yield
    finally:
        _kept.obj = None


def forget_imports() -> None:
    """In a forked child: begin anew what other threads were importing at the time of the fork.

    They do not exist here, so whoever imports the same would wait for them for ever. There is no
    public way; where these names mean something else, nothing happens.
    """
    locks = getattr(importlib._bootstrap, "_module_locks", {})
    for name, reference in list(locks.items()):
        owner = getattr(reference(), "owner", None)
        if owner is not None and owner != threading.get_ident():
            del locks[name]
            spec = getattr(sys.modules.get(name), "__spec__", None)
            if getattr(spec, "_initializing", False):
                del sys.modules[name]


def _after_in_child() -> None:
    _guard.release()  # the thread that forked, and that lives on here, has acquired it
    kept = getattr(_kept, "obj", None)
    _kept.obj = None
    for obj in list(_owned):
        if obj is not kept:
            try:
                obj.abandon()
            except Exception:  # a bug; the others must be abandoned all the same
                traceback.print_exc()


os.register_at_fork(
    before=_guard.acquire,
    after_in_parent=_guard.release,
    after_in_child=_after_in_child,
)
