"""Nodes for tests, and the pools that use them."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery import Celery
from running import Worker
from servers import Server

from prefork.celery import ClusterPool

LEASE = 4.0
"""Seconds; a node that does not get to run for so long is given up."""


class Cluster:
    """Two nodes of one process each, unless told otherwise."""

    def __init__(
        self, broker: Server, folder: Path, nodes: int = 2, env: dict[str, str] | None = None
    ) -> None:
        self.broker = broker
        self.queue = f"cluster-{uuid.uuid4().hex[:8]}"
        self._folder = folder
        self._env = {"CLUSTER_QUEUE": self.queue, **(env or {})}
        self.nodes = [self._node(ready=False) for _ in range(nodes)]
        for node in self.nodes:
            node.logged(" ready.")
        self._pools: list[ClusterPool] = []

    def _node(self, ready: bool = True) -> Worker:
        return Worker(
            self.broker.url,  # type: ignore[attr-defined]
            "disabled://",
            self._folder,
            *("-P", "solo"),
            pool=None,
            concurrency=1,
            queue=self.queue,
            project="cluster_project",
            env=self._env,
            ready=ready,
        )

    def add(self) -> Worker:
        self.nodes.append(self._node())
        return self.nodes[-1]

    def app(self) -> Celery:
        url = self.broker.url  # type: ignore[attr-defined]
        return Celery("client", broker=url, set_as_current=False, fixups=[])

    def pool(self, **options: Any) -> ClusterPool:
        """One that has seen all nodes."""
        given = {"queue": self.queue, "lease": LEASE, "start_timeout": 30.0, **options}
        pool = ClusterPool(self.app(), **given)
        self._pools.append(pool)
        return pool

    def close(self) -> None:
        for pool in self._pools:
            pool.terminate()
        for node in self.nodes:
            node.close()


@contextlib.contextmanager
def cluster_on(broker: Server, folder: Path, **options: Any) -> Iterator[Cluster]:
    with contextlib.closing(Cluster(broker, folder, **options)) as cluster:
        yield cluster


def stop_all(node: Worker) -> list[int]:
    """SIGSTOP to all of its processes."""
    pids = node.leftovers()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids


def let_go_on(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
