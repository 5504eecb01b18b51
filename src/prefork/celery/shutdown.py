"""The end of a worker: its tasks are waited for, while celery's event loop does not run any more.

In that time somebody must fire the loop's timers (the broker's heartbeats) and send the
acknowledgements of tasks that end. Nothing else of the loop may run: what it would read from the
broker are new tasks, which nobody would take.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from kombu.asynchronous import get_event_loop
from kombu.message import Message

from prefork.pool import Pool

__all__ = ["drain"]

logger = logging.getLogger("prefork")

LONGEST_WAIT = 1.0
"""Seconds between two looks at the timers: broker heartbeats are seconds apart."""


def drain(pool: Pool, look: Callable[[], object]) -> None:
    """Wait for the end of a closed pool; meanwhile call `look` each second, or more often.

    A signal handler may interrupt this and drain the pool itself.
    """
    hub = get_event_loop()
    while not pool.join(LONGEST_WAIT if hub is None else _tick(hub)):
        look()
    if hub is not None:
        acknowledge(hub)


def _tick(hub: Any) -> float:
    """Do what is due now; in how many seconds there will be more, at most."""
    delay = LONGEST_WAIT
    try:
        delay = hub.fire_timers(max_delay=LONGEST_WAIT)
    except Exception:  # a signal may have interrupted this very function
        logger.debug("a timer failed during the shutdown", exc_info=True)
    acknowledge(hub)
    return min(delay, LONGEST_WAIT)


def acknowledge(hub: Any) -> None:
    """Run what waits to acknowledge or reject a message; the rest goes on waiting."""
    waiting, hub._ready = hub._ready, set()
    for call in waiting:
        if not _is_for_a_message(call):
            hub.call_soon(call)
            continue
        try:
            call()
        except Exception:
            logger.exception("a message could not be acknowledged during the shutdown")


def _is_for_a_message(call: Any) -> bool:
    method = getattr(call, "fun", None)
    return isinstance(getattr(method, "__self__", None), Message)
