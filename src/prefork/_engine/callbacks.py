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
        self._turn = threading.Lock()  # who holds it, goes next
        self._going = threading.Lock()  # held while a callback runs on the thread
        self._caller = 0  # the thread that runs a callback

    def __call__(self, callback: Callable[..., object], *args: object, **kwargs: object) -> bool:
        """Have this called soon. False if it cannot be, as no thread is left for it: then it is
        called with the next one that can."""
        self._queue.put(functools.partial(callback, *args, **kwargs))
        return self._on_call()

    def is_calling_here(self) -> bool:
        """Whether the caller is, further up the stack, a callback that this runs."""
        return self._caller == threading.get_ident()

    def body(self) -> None:
        while (call := self._queue.get()) is not None:
            with self._turn:
                self._going.acquire()
            try:
                self._run(call)
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
        while True:
            try:  # not: while there is one. A signal handler may take it in between
                call = self._queue.get_nowait()
            except queue.Empty:
                return
            if call is not None:
                self._run(call)

    def _run(self, call: Callable[[], object]) -> None:
        before, self._caller = self._caller, threading.get_ident()
        try:
            self.run(call)
        finally:
            self._caller = before

    def run(self, call: Callable[[], object]) -> None:
        """Run one callback; what it raises is logged, and harms nothing."""
        try:
            call()
        except BaseException as exc:
            self._log.note(ERROR, "a callback raised; its job is not affected", error=exc)

    def stop(self) -> None:
        """End the thread after the callbacks that are waiting."""
        self._queue.put(None)
