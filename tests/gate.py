"""A gate that tasks stop at, until their test lets them through."""

from __future__ import annotations

import os
import pickle
import socket
from types import TracebackType
from typing import Self

from helpers import DEADLINE


class Gate:
    """Made by a test, passed to tasks as an argument; works in any process.

    A task calls `enter()`, which returns when the test has let it go. The test calls `arrival()`,
    which returns when a task has come. Nobody polls.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(DEADLINE)
        self._address = self._listener.getsockname()
        self._visitors: list[Visitor] = []

    def __reduce__(self) -> tuple[type[Door], tuple[object]]:
        return Door, (self._address,)

    def enter(self, value: object = None) -> object:
        """The door's; for a forked child, which has not received its arguments as a pickle."""
        return Door(self._address).enter(value)

    def arrival(self) -> Visitor:
        """Wait until a task has come to the gate."""
        connection, _ = self._listener.accept()
        connection.settimeout(DEADLINE)
        self._visitors.append(Visitor(connection))
        return self._visitors[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()
        for visitor in self._visitors:
            visitor.close()


class Visitor:
    """A task at the gate, as the test sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        pid, self.value = pickle.loads(connection.recv(4096))
        self.pid: int = pid

    def go(self) -> None:
        """Let it through."""
        self._connection.sendall(b"!")

    def close(self) -> None:
        self._connection.close()


class Door:
    """The gate, as a task sees it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    def __reduce__(self) -> tuple[type[Door], tuple[object]]:
        return Door, (self._address,)

    def enter(self, value: object = None) -> object:
        """Come, wait, and return the value (a short one)."""
        with socket.create_connection(self._address) as connection:
            connection.sendall(pickle.dumps((os.getpid(), value)))
            if not connection.recv(1):
                raise ConnectionError("the test is over")
        return value


def enter(gate: Gate | Door, value: object = None) -> object:
    """A task that waits at the gate and returns the value."""
    return gate.enter(value)
