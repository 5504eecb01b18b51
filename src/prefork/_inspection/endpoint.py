"""Where a pool is asked from outside what it does (see `questions.py`).

    who looks ──question──► socket ──► the thread that supervises the workers
        ▲                                  │ `Endpoint.serve`
        └─────────── answer ◄──────────────┘

It is one descriptor among those that the supervisor waits for: no thread, and no system call while
nobody asks. Nothing here waits. Who asks must be of the same user (or root), by what the kernel
says; who does not fetch the answer does not get it. Who asks a lot is heard only so many times a
second.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from prefork._inspection.questions import (
    CREDENTIALS,
    IS_SUPPORTED,
    LONGEST_QUESTION,
    Address,
    sender,
)
from prefork._system import at_fork
from prefork._system.selector import Selector

__all__ = ["VARIABLE", "Endpoint", "is_wanted"]

VARIABLE: Final = "PREFORK_OBSERVABLE"
"""`0` in the environment: no pool can be asked from outside."""

PER_SECOND: Final = 200
"""So many questions are heard in a second, whoever asks them: any process of this machine could
keep the pool's process busy otherwise."""

_TRIES: Final = 8  # names: one may be in use by a process of another PID namespace
_ROOT: Final = 0
_DONT_WAIT: Final = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_CMSG_CLOEXEC", 0)

_numbers = itertools.count(1)


def is_wanted() -> bool:
    """Whether the environment does not say that no pool is to be observable."""
    return os.environ.get(VARIABLE, "").strip().lower() not in ("0", "no", "false", "off")


class Endpoint:
    """
    Args:
        answer: called with a question; returns the answer. It is not to wait.

    Attributes:
        address: where it is found.

    Raises:
        OSError: there can be none: this system has no abstract sockets, or no descriptor left.
    """

    def __init__(self, answer: Callable[[str], bytes]) -> None:
        if not IS_SUPPORTED:
            raise OSError("this system has no abstract Unix sockets")
        self._answer = answer
        self._selector: Selector[Any] | None = None
        self._descriptors = at_fork.Descriptors()
        self._heard = 0  # questions since then
        self._since = 0.0  # monotonic
        self._is_paused = False
        with at_fork.creating():
            listening = _socket()
            try:
                self.address = _bind(listening)
            except BaseException:
                listening.close()
                raise
            # As a number: in a forked child an object would close what is another's by then.
            self._fd = self._descriptors.add(at_fork.above_stdio(listening.detach()))

    def fileno(self) -> int:
        return self._fd

    def begin(self, selector: Selector[Any]) -> None:
        """Be among what is waited for there. Who finds this to be ready calls `serve`."""
        self._selector = selector
        selector.add(self, self)

    def serve(self) -> None:
        """Answer what has been asked, as far as that may be now."""
        with self._socket() as listening:
            while self._may_hear():
                try:
                    question, ancillary, _, asker = listening.recvmsg(
                        LONGEST_QUESTION, socket.CMSG_SPACE(CREDENTIALS.size), _DONT_WAIT
                    )
                except OSError:  # nobody asks any more
                    return
                who = sender(ancillary)
                if asker and who is not None and who[1] in (os.geteuid(), _ROOT):
                    answer = self._answer(question.decode("ascii", "replace").strip())
                    with contextlib.suppress(OSError):  # it is gone, or does not read
                        listening.sendto(answer, _DONT_WAIT, asker)

    def next_time(self) -> float | None:
        """When `serve` is to be called in any case (monotonic); None: when somebody asks."""
        if not self._is_paused:
            return None
        due = self._since + 1.0
        if time.monotonic() < due:
            return due
        self._is_paused = False
        if self._selector is not None:
            self._selector.add(self, self)
        return None

    def _may_hear(self) -> bool:
        """Whether one more question is heard; else nobody waits for any, for the rest of this
        second."""
        now = time.monotonic()
        if now - self._since >= 1.0:
            self._since, self._heard = now, 0
        self._heard += 1
        if self._heard <= PER_SECOND:
            return True
        if not self._is_paused and self._selector is not None:
            self._is_paused = True
            self._selector.discard(self)
        return False

    @contextlib.contextmanager
    def _socket(self) -> Iterator[socket.socket]:
        borrowed = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0, self._fd)
        try:
            yield borrowed
        finally:
            borrowed.detach()

    def close(self) -> None:
        """It is asked no more; the name is free, too."""
        selector, self._selector = self._selector, None
        if selector is not None and not self._is_paused:
            selector.discard(self)
        self._descriptors.close()


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return made


def _bind(listening: socket.socket) -> Address:
    for attempt in range(_TRIES):
        address = Address(os.geteuid(), os.getpid(), next(_numbers))
        try:
            listening.bind(address.name)
        except OSError:
            if attempt + 1 == _TRIES:
                raise
        else:
            return address
    raise AssertionError("unreachable")
