"""What can go wrong on the way to another machine, beside what can on one."""

from __future__ import annotations

from prefork.errors import PreforkError, WorkerLostError

__all__ = ["NodeLostError", "NotAllowedError"]


class NodeLostError(WorkerLostError):
    """The node that had started this item has not been heard of for longer than its lease. The item
    may have run, to its end or in part; it is not run again, unless the call said `retries`.

    Attributes:
        node: the name of the node (str).
        job, function: as in `WorkerLostError`. Its `pid` is 0, and its `exitcode` None.
    """

    def __init__(self, job: int, function: str, node: str, seconds: float) -> None:
        super().__init__(job, function, 0, None)
        self.args = (job, function, node, seconds)
        self.node = node
        self.silence = seconds

    def __str__(self) -> str:
        return (
            f"node {self.node} has been silent for {self.silence:.1f} s, and had started job "
            f"{self.job} ({self.function}): whether that has run cannot be known"
        )


class NotAllowedError(PreforkError):
    """A function was asked for that the node is not allowed to run; or that it does not find under
    the name that it was asked for."""
