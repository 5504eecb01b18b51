"""What carries letters between clients and nodes, as both see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["MakePost", "OnConnection", "OnLetter", "Post", "Told"]

OnLetter = Callable[[bytes], object]
Told = Callable[[bool], object]


class OnConnection(Protocol):
    """Called with whether there is a connection now, and why not.

    Args:
        box: whose connection is new, if each has one of its own: what was sent there before may
            have been lost.
    """

    def __call__(self, here: bool, error: Exception | None, box: str = "") -> object: ...


class Post(Protocol):
    """
    Attributes:
        name: of the box that is read: where the other side writes to.
        is_lossy: letters may be lost though the connection lasts.
    """

    name: str
    is_lossy: bool

    @property
    def address(self) -> str:
        """Of what is between the two sides, for messages: without a password."""

    @property
    def advice(self) -> str:
        """What to do if there is no node."""

    def start(self) -> None:
        """Read; what comes, and whether there is a connection, is told by another thread."""

    # These are for one thread. They say whether the letter is on its way.

    def send(self, box: str, body: bytes, told: Told | None = None) -> bool:
        """What is sent to one box stays in order.

        Args:
            told: called, by any thread, with whether it has arrived where it will be read if the
                reader lives, once that is known.
        """

    def tell(self, box: str, body: bytes) -> bool:
        """For what may be lost. It may overtake what is sent."""

    def tell_all(self, body: bytes) -> bool:
        """The same, to all nodes."""

    def delete(self, box: str) -> None:
        """Of somebody who has gone, with all that is left in it."""

    def stop(self) -> None:
        """Read no more, and leave nothing behind; for the thread that sends."""

    def join(self, timeout: float | None = None) -> bool:
        """Wait for its threads; whether they have ended."""


MakePost = Callable[[OnLetter, OnConnection], Post]
