"""Tasks of an event loop wait here for what threads do.

    another thread: Condition.notify_all ─► a waiter ─► the loop's inbox ─► the loop: it looks again

The loops are asyncio's, whoever has made them (uvloop), and trio's. Neither is imported here: who
waits in one has imported it.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from prefork._system.condition import Condition
from prefork._system.running_loop import asyncio_loop, is_trio_task

if TYPE_CHECKING:
    import asyncio
    import contextvars

__all__ = [
    "Inbox",
    "Until",
    "checkpoint",
    "here",
    "warn_of_blocking",
]


# ---- what holds up a loop


def warn_of_blocking() -> None:
    """An event loop is held up here. In a notebook it is that of the notebook, which waits for the
    cell in any case."""
    if (shell := getattr(sys.modules.get("IPython"), "get_ipython", None)) is not None and shell():
        return
    warnings.warn(
        "this waits for a result, and holds up the event loop that runs in this thread: `await` "
        "the handle instead of get() or result(), use `async for` with imap()",
        RuntimeWarning,
        stacklevel=_depth_of_caller(),
    )


def _depth_of_caller() -> int:
    """How far up the stack of whoever calls this is the code that has called the package."""
    frame, depth = sys._getframe(1), 1
    while frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth


_PACKAGE: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep

# ---- what is to be called in a loop


class Inbox:
    """What is to be called in one event loop, from whichever thread. The loop is woken once for
    all that has come meanwhile: to wake it costs more than most of what it is woken for."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        self._is_posted = False  # the loop will look in here

    def put(self, call: Callable[[], object]) -> bool:
        """Have this called soon, which may raise only what ends the loop. False if it will not be:
        the loop has ended, and nobody in there waits for anything."""
        self._calls.append(call)
        if self._is_posted and not self._has_ended():
            return True
        self._is_posted = True
        try:
            self._post()
        except Exception:  # it is closed; or it is somebody's own loop, and that is how it ends
            self._calls.clear()
            self._is_posted = False
            return False
        return True

    def _empty(self) -> None:
        """In the loop. What comes from here on posts this again."""
        self._is_posted = False
        try:
            count = len(self._calls)
            while count and self._calls:  # a task may run the loop in itself, and so empty this
                count -= 1
                self._calls.popleft()()
        finally:
            if self._calls and not self._is_posted:  # a task has ended the loop, as by sys.exit()
                self._is_posted = True
                self._post()

    def _post(self) -> None:
        """Have the loop call `_empty`.

        Raises:
            Exception: it does not run any more.
        """
        raise NotImplementedError

    def _has_ended(self) -> bool:
        """Whether it is known that the loop has ended."""
        raise NotImplementedError

    def waiter(self, predicate: Callable[[], bool]) -> Waiter:
        """What lets a task of the loop wait for it."""
        raise NotImplementedError


class Waiter:
    """One task that waits; told by being called, in whichever thread, to look at its predicate."""

    __slots__ = ("_inbox", "_is_told", "_predicate")

    _inbox: Inbox
    _predicate: Callable[[], bool]
    _is_told: bool  # it is going to look

    def __call__(self) -> None:
        if not self._is_told:
            self._is_told = True
            self._inbox.put(self._look)

    def _look(self) -> None:
        self._is_told = False
        if self._predicate():
            self._wake()

    def _wake(self) -> None:
        raise NotImplementedError

    def sleep(self) -> Awaitable[object]:
        """To be awaited once: until it is woken."""
        raise NotImplementedError


class _AsyncioInbox(Inbox):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop = weakref.ref(loop)  # the inbox of a thread's last loop is kept

    def _post(self) -> None:
        if (loop := self.loop()) is None:
            raise RuntimeError("the event loop has gone")
        loop.call_soon_threadsafe(self._empty)

    def _has_ended(self) -> bool:
        return (loop := self.loop()) is None or loop.is_closed()

    def waiter(self, predicate: Callable[[], bool]) -> Waiter:
        return _AsyncioWaiter(self, predicate)


class _AsyncioWaiter(Waiter):
    """It is what asyncio's tasks wait for: like a future, as far as they know those. One of
    asyncio's own would have the task go on in the next round of the loop, which costs as much as
    all that is done here."""

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_context", "_loop", "_resume")

    def __init__(self, inbox: _AsyncioInbox, predicate: Callable[[], bool]) -> None:
        self._inbox = inbox
        self._predicate = predicate
        self._is_told = False
        self._loop = inbox.loop()
        self._resume: Callable[[object], object] | None = None  # has the task go on, once
        self._context: contextvars.Context | None = None
        self._cancelled: BaseException | None = None  # what the task gets
        self._asyncio_future_blocking = False

    def _wake(self) -> None:
        resume, self._resume = self._resume, None
        if resume is not None and self._context is not None:
            self._context.run(resume, self)

    def sleep(self) -> Awaitable[object]:
        return self

    def __await__(self) -> Generator[object, None, None]:
        self._asyncio_future_blocking = True  # so the task knows that it was not yielded by chance
        yield self

    # ---- what the task calls

    def get_loop(self) -> asyncio.AbstractEventLoop | None:
        return self._loop

    def add_done_callback(
        self, call: Callable[[object], object], *, context: contextvars.Context
    ) -> None:
        self._resume, self._context = call, context

    def cancel(self, msg: object = None) -> bool:
        """Whether the task will go on, with CancelledError: False if it is about to go on."""
        resume, self._resume = self._resume, None
        if resume is None or self._loop is None:
            return False
        error: type[BaseException] = sys.modules["asyncio"].CancelledError
        self._cancelled = error() if msg is None else error(msg)
        self._loop.call_soon(resume, self)
        return True

    def result(self) -> None:
        error, self._cancelled = self._cancelled, None
        if error is not None:
            raise error


class _TrioInbox(Inbox):
    def __init__(self, trio: Any) -> None:
        super().__init__()
        self.new_event: Any = trio.Event
        self._token: Any = trio.lowlevel.current_trio_token()

    def _post(self) -> None:
        self._token.run_sync_soon(self._empty)

    def _has_ended(self) -> bool:
        return True  # nobody can tell: so it is always posted

    def waiter(self, predicate: Callable[[], bool]) -> Waiter:
        return _TrioWaiter(self, predicate)


class _TrioWaiter(Waiter):
    __slots__ = ("_event",)

    def __init__(self, inbox: _TrioInbox, predicate: Callable[[], bool]) -> None:
        self._inbox = inbox
        self._predicate = predicate
        self._is_told = False
        self._event = inbox.new_event()

    def _wake(self) -> None:
        self._event.set()

    def sleep(self) -> Awaitable[object]:
        return self._event.wait()  # type: ignore[no-any-return]


_this_thread = threading.local()  # `inbox`: that of the last loop of asyncio that was waited in


def here() -> Inbox:
    """The inbox of the loop that runs in this thread.

    Raises:
        RuntimeError: there is none.
    """
    if is_trio_task():
        return _TrioInbox(sys.modules["trio"])
    if (loop := asyncio_loop()) is None:
        raise RuntimeError("no event loop of asyncio or trio runs in this thread")
    inbox: _AsyncioInbox | None = getattr(_this_thread, "inbox", None)
    if inbox is None or inbox.loop() is not loop:
        _this_thread.inbox = inbox = _AsyncioInbox(loop)
    return inbox


# ---- for its tasks


class Until:
    """`await Until(condition, predicate)` lets other tasks run until `predicate()`, which the
    condition is notified of.

    Raises:
        RuntimeError: this is no task of asyncio or trio.
        BaseException: how the loop ends a wait: the task was cancelled, or is dropped.
    """

    __slots__ = ("_condition", "_predicate")

    def __init__(self, condition: Condition, predicate: Callable[[], bool]) -> None:
        self._condition = condition
        self._predicate = predicate

    def __await__(self) -> Generator[Any, Any, None]:
        condition, predicate = self._condition, self._predicate
        waiter = here().waiter(predicate)
        condition.listen(waiter)
        try:
            # Looked at after it has begun to listen: whoever makes it true does so before it
            # notifies.
            if not predicate():
                yield from waiter.sleep().__await__()
        finally:
            condition.listen_no_more(waiter)


async def checkpoint() -> None:
    """Let other tasks run, for a moment."""
    if is_trio_task():
        trio: Any = sys.modules["trio"]
        await trio.lowlevel.checkpoint()
    else:
        asyncio: Any = sys.modules["asyncio"]
        await asyncio.sleep(0)
