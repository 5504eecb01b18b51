"""Runs the users' callbacks, one after another."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Iterator

from prefork._engine.roles import Role
from prefork._system.log import ERROR, log

__all__ = ["CallbackRunner"]

_this_thread = threading.local()  # has `runs_callbacks` if it does, of any pool


class CallbackRunner(Role):
    """Runs the users' callbacks, one after another.

    A callback may call the pool, wait for other jobs, raise or block: no result waits for it, but
    its own and those whose callbacks are to run after it.

    Args:
        has_thread: whether it gets a thread of its own; else callbacks run in the one that
            drives the pool.
    """

    def __init__(self, has_thread: bool = True) -> None:
        super().__init__()
        self.on_call: Callable[[], object] = lambda: None  # told of each call that comes in
        self._has_thread = has_thread
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._depth = 0  # of callbacks that run inside of one another, without a thread
        self._over = False  # its thread has ended, or is about to
        self._turn = threading.Lock()  # who holds it, goes next
        self._going = threading.Lock()  # held while a callback runs on the thread

    def prepare(self) -> None:
        """There will be callbacks: the thread is started now, while whoever asks for them can be
        told that this is not possible, rather than when there is something to tell."""
        if self._has_thread:
            self.on_call()

    def __call__(self, callback: Callable[..., object], *args: object, **kwargs: object) -> None:
        self._add(_Call(functools.partial(callback, *args, **kwargs)))

    def call_then(
        self, then: Callable[[], object], callback: Callable[..., object], *args: object
    ) -> None:
        """The same; and then call `then`, which does not raise: in any case, even if the callback
        has raised, or can never be called."""
        self._add(_Call(functools.partial(callback, *args), then))

    def _add(self, call: _Call) -> None:
        self._queue.put(call)
        self.on_call()
        if self._over:  # its thread may not have seen this one any more
            self.give_up()

    def give_up(self) -> int:
        """Nobody will run the callbacks that wait; nobody shall wait for them. How many."""
        dropped = 0
        with contextlib.suppress(queue.Empty):
            while True:
                if (call := self._queue.get_nowait()) is not None:
                    call.then()
                    dropped += 1
        return dropped

    def is_inside(self) -> bool:
        """Whether the caller is called by a callback, of whatever pool: two pools whose callbacks
        wait for each other's jobs do not wait for ever. Or there is none left that could be waited
        for: an interrupt may have come between taking one from the queue and calling it."""
        if self._has_thread:
            return hasattr(_this_thread, "runs_callbacks")
        return self._depth > 0 or self._queue.empty()

    def body(self) -> None:
        _this_thread.runs_callbacks = True
        try:
            while (call := self._queue.get()) is not None:
                with self._turn:
                    self._going.acquire()
                try:
                    self.run(call)
                finally:
                    self._going.release()
                del call
        finally:
            self._over = True
            self.give_up()

    @contextlib.contextmanager
    def pausing(self, patience: float) -> Iterator[None]:
        """The thread begins no callback inside of this, and has ended the one that it was at,
        unless that takes longer than so many seconds.

        A child that is forked meanwhile does not find a lock held by a callback, such as one of a
        library that both use: nobody there would ever release it.
        """
        with self._turn:
            is_quiet = self._going.acquire(timeout=patience)
            try:
                yield
            finally:
                if is_quiet:
                    self._going.release()

    def handle_event(self) -> None:
        while not self._queue.empty():
            if (call := self._queue.get()) is not None:
                self._depth += 1
                try:
                    self.run(call)
                finally:
                    self._depth -= 1

    def run(self, call: Callable[[], object]) -> None:
        """Run one callback; what it raises is logged, and harms nothing.

        Raises:
            BaseException: what is no mere error, such as KeyboardInterrupt, without a thread: it
                is for who drives the pool.
        """
        try:
            call()
        except BaseException as exc:
            if not (self._has_thread or isinstance(exc, Exception)):
                raise
            log(ERROR, "a callback raised; its job is not affected", error=exc)

    def stop(self) -> None:
        """End the thread after the callbacks that are waiting."""
        self._queue.put(None)


class _Call:
    """A callback that waits for its turn.

    Args:
        callback: what is called.
        then: what is called afterwards, in any case.
    """

    __slots__ = ("_callback", "then")

    def __init__(
        self, callback: Callable[[], object], then: Callable[[], object] = lambda: None
    ) -> None:
        self._callback = callback
        self.then = then

    def __call__(self) -> None:
        try:
            self._callback()
        finally:
            self.then()
