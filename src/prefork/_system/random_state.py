"""Random numbers in forked children.

A child that is forked continues the sequence of its parent's generators, and so would draw the same
numbers as its siblings. The module `random` sees to that itself; numpy's global generator, behind
`numpy.random.rand` and the like, does not.
"""

from __future__ import annotations

import contextlib
import os
import sys

__all__ = ["renew"]

_inherited = False  # this process was forked by one that had numpy's generator


def _note() -> None:
    global _inherited  # noqa: PLW0603
    _inherited = "numpy.random" in sys.modules


os.register_at_fork(after_in_child=_note)


def renew() -> None:
    """Give numpy's global generator a sequence of its own, if it is inherited; numpy is not
    imported for it."""
    random = sys.modules.get("numpy.random")
    if random is None or not _inherited:
        return
    # A new generator of the same kind, rather than another seed for the old one: a thread of the
    # parent may have held its lock at the fork. If numpy was still being imported there, or is too
    # old for this (before 1.24), everything stays as it is.
    with contextlib.suppress(Exception):
        random.set_bit_generator(type(random.get_bit_generator())())
