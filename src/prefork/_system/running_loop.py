"""Which event loop runs in this thread, further up the stack: asked before each wait for a result.

Neither asyncio nor trio is imported here: whoever has a loop of theirs has imported it. Either may
just be being imported by another thread, and lack what it will have.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

__all__ = ["asyncio_loop", "is_any_running", "is_trio_task"]


def asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """The loop of asyncio that runs here; None: there is none."""
    events: Any = sys.modules.get("asyncio.events")
    if events is None or (ask := getattr(events, "_get_running_loop", None)) is None:
        return None
    return ask()  # type: ignore[no-any-return]


def is_trio_task() -> bool:
    """Whether a task of trio runs here. It is asked before asyncio, whose guest trio may be."""
    trio: Any = sys.modules.get("trio")
    if trio is None or (lowlevel := getattr(trio, "lowlevel", None)) is None:
        return False
    return bool(lowlevel.in_trio_task())


def is_any_running() -> bool:
    """Whether an event loop runs here, which would be held up by who waits in it."""
    return asyncio_loop() is not None or is_trio_task()
