"""Calls that run on other machines, by the names of their functions; whatever takes them there.

    engine      the pool, as verbs and handles see it
    backlog     what is to be sent, and what it has come to
    calls       jobs whose arguments are texts
    sizes       how many items go at once
    runner      what a node's process calls for each item
    names       which functions there are, and which are allowed
    codecs      values and errors as texts

It knows no broker and no library of clusters: `prefork.celery` brings one. Nothing here imports
what is sent by others, but for functions that a list allows.
"""

from __future__ import annotations

from prefork.cluster.errors import NodeLostError, NotAllowedError
from prefork.cluster.statistics import ClusterStatistics, NodeStatistics

__all__ = ["ClusterStatistics", "NodeLostError", "NodeStatistics", "NotAllowedError"]
