"""Waiting for any of many descriptors, and for a wakeup that other threads ring."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
from typing import Any, Generic, TypeVar

from prefork._system import at_fork

__all__ = ["Selector", "Wakeup", "wait_for"]

T = TypeVar("T")


def wait_for(poll: select.poll, timeout: float | None = None) -> bool:
    """Whether something is ready, within so many seconds. Here, and not where it is called:
    compiled code does not look whether a signal has come before it waits."""
    return bool(poll.poll(None if timeout is None else timeout * 1000))


MAX_TIMEOUT = 86400.0  # seconds; epoll counts milliseconds in an int. Who waits longer waits again.

_READABLE = getattr(select, "EPOLLIN", 1)


class Wakeup:
    """Wakes a thread that waits in a selector."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._is_set = False

    def fileno(self) -> int:
        return self._reader

    def set(self) -> None:
        """Safe from any thread and from finalizers; does nothing once closed."""
        if not self._is_set:
            self._is_set = True
            with contextlib.suppress(OSError):
                os.write(self._writer, b"!")

    def clear(self) -> None:
        """To be called before looking at what the wakeup was rung for: whoever rings in between
        finds it rung, and has changed what will be looked at."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 64)
        self._is_set = False

    def close(self) -> None:
        reader, writer = self._reader, self._writer
        if reader >= 0:
            self._reader = self._writer = -1
            os.close(reader)
            os.close(writer)


class _Selector:
    """The part of `select.epoll` that is used here, for systems that have none."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.fileno = self._selector.fileno
        self.unregister = self._selector.unregister
        self.close = self._selector.close

    def register(self, fd: int, eventmask: int) -> None:
        self._selector.register(fd, selectors.EVENT_READ)

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        return [(key.fd, mask) for key, mask in self._selector.select(timeout)]


_Poller = getattr(select, "epoll", _Selector)


class Selector(Generic[T]):
    """A set of descriptors, each with what it stands for."""

    def __init__(self) -> None:
        with at_fork.creating():
            self.wakeup = Wakeup()
            try:
                self._poller = _Poller()
            except OSError:
                self.wakeup.close()
                raise
            at_fork.register(self)
        self._known: dict[int, T] = {}
        self._poller.register(self.wakeup.fileno(), _READABLE)

    def fileno(self) -> int:
        """Readable when `ready(0)` would return something: the set is itself a descriptor."""
        return self._poller.fileno()

    def add(self, fileobj: Any, stands_for: T) -> None:
        fd = fileobj.fileno()
        self._known[fd] = stands_for
        self._poller.register(fd, _READABLE)

    def discard(self, fileobj: Any) -> None:
        """To be called before it is closed; no harm if it is not in the set."""
        fd = fileobj.fileno()
        if self._known.pop(fd, None) is not None:
            with contextlib.suppress(ValueError):  # this set is closed
                self._poller.unregister(fd)

    def ready(self, timeout: float | None = None) -> list[T]:
        """Wait (seconds; None: for ever) and return what has events; nothing for the wakeup."""
        if timeout is not None:
            timeout = min(timeout, MAX_TIMEOUT)
        known = self._known
        events = self._poller.poll(timeout)
        ready = [known[fd] for fd, _ in events if fd in known]
        if len(ready) < len(events):
            self.wakeup.clear()
        return ready

    def close(self) -> None:
        at_fork.unregister(self)
        self.close_in_child()

    def close_in_child(self) -> None:
        self._poller.close()
        self.wakeup.close()

    def __del__(self) -> None:
        if hasattr(self, "_poller"):
            self.close()


def is_readable(fd: int, timeout: float | None) -> bool:
    poll = select.poll()  # unlike select(), good for any descriptor
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))
