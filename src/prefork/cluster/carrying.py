"""What takes chunks to nodes, as the engine sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from prefork.cluster.engine import ClusterEngine

__all__ = ["Carrier", "Report"]


class Report(NamedTuple):
    """What a node says of a chunk.

    Attributes:
        texts: of the results, of the items that have one, in their order.
        failures: the errors of others, by their position in the chunk.
        not_run: the positions of those that were not begun.
        seconds: how long it took there.
    """

    texts: list[str]
    failures: dict[int, BaseException]
    not_run: set[int]
    seconds: float


class Carrier(Protocol):
    """Takes chunks to nodes, on a thread of its own, and brings back what they say."""

    @property
    def processes(self) -> int:
        """Of all nodes that are there."""

    def start(self, engine: ClusterEngine) -> None:
        """Begin; returns when there is a node.

        Raises:
            PoolBrokenError: there is none in time.
        """

    def wake(self) -> None:
        """There may be something to send, or something that nobody wants any more."""

    def stop(self) -> None:
        """Have all nodes end what they have of this client; returns at once."""

    def join(self, timeout: float | None) -> bool:
        """Wait for its thread; whether that has ended."""

    def is_current(self) -> bool:
        """Whether its thread is what asks."""
