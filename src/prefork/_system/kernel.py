"""What the kernel that is running has. Python was built on another, and a sandbox may refuse what
the kernel has: whether a call is there shows only when it is made.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, Final

__all__ = ["HAS_MEMFD", "HAS_PIDFD"]


def _gives(name: str, *args: Any) -> bool:
    """Whether a call of `os` makes a descriptor here."""
    call: Callable[..., int] | None = getattr(os, name, None)
    if call is None:
        return False
    try:
        os.close(call(*args))
    except OSError as exc:
        return exc.errno in {errno.EMFILE, errno.ENFILE}  # it would, if there was one left
    return True


HAS_PIDFD: Final = _gives("pidfd_open", os.getpid())
"""From Linux 5.3 on."""

HAS_MEMFD: Final = _gives("memfd_create", "prefork")
"""From Linux 3.17 on."""
