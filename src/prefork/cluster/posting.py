"""What carries letters between clients and nodes, as both see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["MakePost", "OnConnection", "OnLetter", "Post"]

OnLetter = Callable[[bytes], object]
OnConnection = Callable[[bool, Exception | None], object]
"""Called with whether there is a connection now, and why not."""


class Post(Protocol):
    """
    Attributes:
        name: of the box that is read: where the other side writes to.
    """

    name: str

    @property
    def address(self) -> str:
        """Of what is between the two sides, for messages: without a password."""

    @property
    def advice(self) -> str:
        """What to do if there is no node."""

    def start(self) -> None:
        """Read; what comes, and whether there is a connection, is told by another thread."""

    def send(self, box: str, body: bytes) -> bool:
        """For one thread. Whether it has arrived where it can be read for certain, if the reader
        lives."""

    def send_to_all(self, body: bytes) -> bool:
        """The same, to all nodes."""

    def delete(self, box: str) -> None:
        """Of somebody who has gone, with all that is left in it."""

    def stop(self) -> None:
        """Read no more, and leave nothing behind; for the thread that sends."""

    def join(self, timeout: float | None = None) -> bool:
        """Wait for its threads; whether they have ended."""


MakePost = Callable[[OnLetter, OnConnection], Post]
