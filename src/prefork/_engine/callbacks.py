"""Runs the users' callbacks, one after another."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Iterator

from prefork._engine.roles import Role
from prefork._system.locks import Lock
from prefork._system.log import ERROR, Log

__all__ = ["CallbackRunner"]

_this_thread = threading.local()  # `calls`: the callbacks that it is at, one inside of the other


class CallbackRunner(Role):
    """Runs the users' callbacks, one after another.

    A callback may call the pool, wait for other jobs, raise or block; only results that have
    callbacks of their own wait for it.

    Args:
        on_call: told of each call that comes in; returns whether anybody will see to it.
        log: where it is noted what they raise.
    """

    def __init__(self, on_call: Callable[[], bool], log: Log) -> None:
        super().__init__()
        self._log = log
        self._on_call = on_call
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._is_over = False  # the thread has ended, or is about to
        self._turn = Lock()  # who holds it, goes next
        self._going = Lock()  # held while a callback runs on the thread

    def __call__(self, callback: Callable[..., object], *args: object, **kwargs: object) -> bool:
        """Have this called soon. False if it cannot be, as no thread is left for it: then it is
        called with the next one that can."""
        self._queue.put(functools.partial(callback, *args, **kwargs))
        if self._is_over:  # its thread may not have seen this one
            self.handle_event()
            return True
        return self._on_call()

    def has_waiting(self) -> bool:
        return not self._queue.empty()

    @staticmethod
    def is_calling_here() -> bool:
        """Whether the caller is, further up the stack, a callback of whatever pool: callbacks of
        two pools that wait for each other's jobs do not wait for ever."""
        return getattr(_this_thread, "calls", 0) > 0

    def body(self) -> None:
        try:
            while (call := self._queue.get()) is not None:
                with self._turn:
                    self._going.acquire()
                try:
                    self._run(call)
                finally:
                    self._going.release()
                del call
        finally:
            self._is_over = True
            self.handle_event()

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
        while True:
            try:  # not: while there is one. A signal handler may take it in between
                call = self._queue.get_nowait()
            except queue.Empty:
                return
            if call is not None:
                self._run(call)

    def _run(self, call: Callable[[], object]) -> None:
        before = getattr(_this_thread, "calls", 0)
        _this_thread.calls = before + 1
        try:
            self.run(call)
        finally:
            _this_thread.calls = before

    def run(self, call: Callable[[], object]) -> None:
        """Run one callback; what it raises is logged, and harms nothing.

        Raises:
            BaseException: what is no mere error, such as KeyboardInterrupt, without a thread: it
                is for who drives the pool.
        """
        try:
            call()
        except BaseException as exc:
            if not (self.is_started or isinstance(exc, Exception)):
                raise
            self._log.note(ERROR, "a callback raised; its job is not affected", error=exc)

    def stop(self) -> None:
        """End the thread after the callbacks that are waiting."""
        self._queue.put(None)
