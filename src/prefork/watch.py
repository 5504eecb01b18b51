"""Waiting for any of many descriptors, and for a bell that other threads ring."""

from __future__ import annotations

import contextlib
import os
import selectors
from typing import Any, Generic, TypeVar

from prefork import forks

__all__ = ["Bell", "Watch"]

T = TypeVar("T")

MAX_TIMEOUT = 86400.0  # seconds; epoll counts milliseconds in an int. Who waits longer waits again.


class Bell:
    """Wakes a thread that waits in a selector."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._rung = False

    def fileno(self) -> int:
        return self._reader

    def ring(self) -> None:
        """Safe from any thread and from finalizers; does nothing once closed."""
        if not self._rung:
            self._rung = True
            with contextlib.suppress(OSError):
                os.write(self._writer, b"!")

    def silence(self) -> None:
        """To be called before looking at what the bell was rung for: whoever rings in between
        finds it rung, and has changed what will be looked at."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 64)
        self._rung = False

    def close(self) -> None:
        reader, writer = self._reader, self._writer
        if reader >= 0:
            self._reader = self._writer = -1
            os.close(reader)
            os.close(writer)


class Watch(Generic[T]):
    """A set of descriptors, each with what it stands for."""

    def __init__(self) -> None:
        with forks.creating():
            self.bell = Bell()
            try:
                self._selector = selectors.DefaultSelector()
            except OSError:
                self.bell.close()
                raise
            forks.own(self)
        self._selector.register(self.bell, selectors.EVENT_READ)

    def fileno(self) -> int:
        """Readable when `ready(0)` would return something: the set is itself a descriptor."""
        return self._selector.fileno()

    def add(self, fileobj: Any, stands_for: T) -> None:
        self._selector.register(fileobj, selectors.EVENT_READ, stands_for)

    def discard(self, fileobj: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fileobj)

    def ready(self, timeout: float | None = None) -> list[T]:
        """Wait (seconds; None: for ever) and return what has events; nothing for the bell."""
        if timeout is not None:
            timeout = min(timeout, MAX_TIMEOUT)
        events = self._selector.select(timeout)
        ready: list[T] = [key.data for key, _ in events if key.data is not None]
        if len(ready) < len(events):
            self.bell.silence()
        return ready

    def close(self) -> None:
        forks.disown(self)
        self._selector.close()
        self.bell.close()

    abandon = close

    def __del__(self) -> None:
        if hasattr(self, "_selector"):
            self.close()
