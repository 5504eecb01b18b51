"""What a task of an event loop does with results: `await handle`, `async for … in pool.imap(…)`.

Whoever waits alone for a result takes it along: when the task that awaits is cancelled, as by a
timeout, its job ends. If it has not been started, it never runs; if it runs, its worker is killed.
While others wait for the same result, in a loop or in a thread, it goes on.

Imported when somebody awaits.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final, Protocol

from prefork._results.imap import IMapIterator, Items, Outcome
from prefork._results.protocols import EngineRef
from prefork._system import event_loops
from prefork._system.condition import Condition

__all__ = ["end", "next_of", "outcome_of"]

AT_ONCE: Final = 64
"""Results that are taken, since they are there, before other tasks of the loop get a turn."""


class Handle(Protocol):
    """Of one job or several."""

    def ready(self) -> bool: ...

    def get(self) -> Any: ...

    def failure(self) -> BaseException | None: ...

    def begin_wait(self) -> tuple[EngineRef, Condition] | None: ...

    def is_waited_for(self) -> bool: ...

    def terminate(self) -> bool: ...


def outcome_of(handle: Handle) -> Generator[Any, None, Any]:
    """What `__await__` returns."""
    if (pending := handle.begin_wait()) is not None:
        engine, condition = pending
        engine.serve_loop()
        try:
            yield from event_loops.Until(condition, handle.ready).__await__()
        except BaseException:  # its task was cancelled, or is dropped
            if not handle.is_waited_for():
                engine.do_outside(handle.terminate)
            raise
    error = handle.failure()
    if error is None or isinstance(error, Exception):
        return handle.get()
    # Such as CancelledError: raised here, it would mean this task, or end the loop.
    raise RuntimeError(f"the task raised {type(error).__name__}") from error


async def next_of(iterator: IMapIterator) -> Any:
    """What `__anext__` returns.

    Raises:
        StopAsyncIteration: there are no more.
    """
    items = iterator.items
    outcome: Outcome | None = None
    try:
        if items.taken % AT_ONCE == AT_ONCE - 1:
            await event_loops.checkpoint()
        while not items.cancelled and (outcome := items.take_ready()) is None:
            if (pending := items.begin_wait()) is None:
                break
            engine, condition = pending
            engine.serve_loop()
            await event_loops.Until(condition, items.has_news)
    except BaseException:  # its task was cancelled, or is dropped
        if not items.arrivals.has_waiters():
            end(items)
        raise
    if outcome is None:
        error = items.take_input_error()
        raise StopAsyncIteration if error is None else error
    return iterator.give(outcome)


def end(items: Items) -> None:
    """Have nothing of this run any more."""
    if (engine := items.engine()) is not None:
        engine.do_outside(items.terminate)
    else:
        items.cancel()
