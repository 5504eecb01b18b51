"""Runs the users' callbacks, one after another."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Iterator

from prefork._engine.roles import Role
from prefork._system.log import ERROR, Log

__all__ = ["CallbackRunner"]


class CallbackRunner(Role):
    """Runs the users' callbacks, one after another.

    A callback may call the pool, wait for other jobs, raise or block: no result waits for it.

    Args:
        on_call: told of each call that comes in.
        log: where it is noted what they raise.
    """

    def __init__(self, on_call: Callable[[], object], log: Log) -> None:
        super().__init__()
        self._log = log
        self._on_call = on_call
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._turn = threading.Lock()  # who holds it, goes next
        self._going = threading.Lock()  # held while a callback runs on the thread

    def __call__(self, callback: Callable[..., object], *args: object, **kwargs: object) -> None:
        self._queue.put(functools.partial(callback, *args, **kwargs))
        self._on_call()

    def body(self) -> None:
        while (call := self._queue.get()) is not None:
            with self._turn:
                self._going.acquire()
            try:
                self.run(call)
            finally:
                self._going.release()
            del call

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
                self.run(call)

    def run(self, call: Callable[[], object]) -> None:
        """Run one callback; what it raises is logged, and harms nothing."""
        try:
            call()
        except BaseException as exc:
            self._log.note(ERROR, "a callback raised; its job is not affected", error=exc)

    def stop(self) -> None:
        """End the thread after the callbacks that are waiting."""
        self._queue.put(None)
