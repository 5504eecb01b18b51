"""What can be seen of a cluster's pool: immutable snapshots."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ClusterStatistics", "NodeStatistics"]


class NodeStatistics(NamedTuple):
    """One node, as the client knows it.

    Attributes:
        name: of celery's worker; or of the machine, and a number.
        processes: how many it has.
        chunks: how many it has been sent that it has not reported.
        started: how many of these it has begun.
        items: how many have come back from it.
        python: its version.
        silence: for how many seconds it has not been heard of.
    """

    name: str
    processes: int
    chunks: int
    started: int
    items: int
    python: str
    silence: float


class ClusterStatistics(NamedTuple):
    """A cluster's pool, at the moment of asking.

    Attributes:
        processes: of all nodes.
        nodes: those that there are.
        waiting: how many items have not been sent.
        unfinished: how many jobs are open.
        finished, failed: how many have had a result, or an error.
        retried: how many runs have followed one that had failed.
        late: how many letters have come from nodes that had been given up.
    """

    processes: int
    nodes: tuple[NodeStatistics, ...]
    waiting: int
    unfinished: int
    finished: int
    failed: int
    retried: int
    late: int
