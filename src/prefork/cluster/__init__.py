"""Calls that run on other machines, by the names of their functions; whatever takes them there.

    pool        `Pool`: its nodes are tasks of an executor
    slots       these tasks
    node        what they start: a program that is a node
    verbs       the calls, for all pools whose processes are elsewhere
    carrier     the client's side: chunks to nodes, leases, what is lost with a node
    agent       the node's side, in its main process
    engine      the pool, as verbs and handles see it
    nodes       what a client knows of them
    sessions    what a node knows of its clients
    letters     what they write to each other, and how none of it is lost
    posting     what carries that
    sockets     it is carried by TCP, between one client and its own nodes
    backlog     what is to be sent, and what it has come to
    calls       jobs whose arguments are texts
    sizes       how many items go at once
    runner      what a node's process calls for each item
    names       which functions there are, and which are allowed
    codecs      values and errors as texts

It knows no broker and no library of clusters: `prefork.celery` brings one. `Pool` trusts the
executor's machines as the executor does; in nodes of celery, nothing is imported for others but
functions that a list allows.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from prefork.cluster.errors import NodeLostError, NotAllowedError
from prefork.cluster.statistics import ClusterStatistics, NodeStatistics

if TYPE_CHECKING:
    from prefork.cluster.pool import Pool

__all__ = ["ClusterStatistics", "NodeLostError", "NodeStatistics", "NotAllowedError", "Pool"]


def __getattr__(name: str) -> object:
    """Imported when somebody asks for it: a worker's processes do without (PEP 562)."""
    if name != "Pool":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("prefork.cluster.pool").Pool
