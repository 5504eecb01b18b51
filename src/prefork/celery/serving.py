"""`serve`: has the workers of a celery application serve the clients of `ClusterPool`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any, Final

from celery import bootsteps
from celery.worker import state

from prefork._arguments import seconds, some_count
from prefork.celery.post import BrokerPost
from prefork.cluster.agent import Agent, make_pool
from prefork.cluster.codecs import CODECS
from prefork.cluster.letters import node_box
from prefork.cluster.names import AllowList
from prefork.cluster.posting import OnConnection, OnLetter, Post
from prefork.pool import Pool

__all__ = ["serve"]

logger = logging.getLogger("prefork")

CLIENT_SECONDS: Final = 60.0
LEAVE_SECONDS: Final = 1.0  # between two looks at whether the worker has been told to hurry


def serve(
    app: Any,
    allow: Iterable[str],
    *,
    queue: str | None = None,
    processes: int | None = None,
    accept: Iterable[str] = ("json",),
    client_timeout: float = CLIENT_SECONDS,
) -> None:
    """Have the workers of this application run functions for clients that have a `ClusterPool`.

    To be called where the application is made. A worker serves if it consumes the queue, as it
    does with `-Q`; it runs the functions in a pool of its own.

    Args:
        app: the celery application.
        allow: what may be run: modules (`"work"`), packages with all below them (`"work.*"`),
            functions (`"work:resize"`). Nothing else is imported or run, whatever is asked for.
        queue: the name of the queue; None: the application's default one.
        processes: how many each worker has for it, an int; None: its concurrency (`-c`).
        accept: how arguments and results may be written down: "json", "pickle". With pickle,
            whoever can write to the broker can have anything run.
        client_timeout: what runs for a client that is not heard of any more is ended after so many
            seconds without a lease (int or float). Nothing new is begun as soon as that has ended.

    Raises:
        TypeError, ValueError: an argument is not right.
    """
    allowed = AllowList(allow)
    codecs = frozenset([accept] if isinstance(accept, str) else accept)
    if unknown := codecs - CODECS.keys():
        raise ValueError(f"accept has {sorted(unknown)}: there are {', '.join(CODECS)}")
    number = some_count("processes", processes)
    found = seconds("client_timeout", client_timeout)
    if found is None:
        raise ValueError("client_timeout must be finite: else a dead client's calls run for ever")
    patience: float = found

    class ClusterNode(_Node):
        group = queue
        allow_list = allowed
        accepted = codecs
        wanted = number
        client_timeout = patience

    app.steps["worker"].add(ClusterNode)


class _Node(bootsteps.StartStopStep):  # type: ignore[misc]
    """In celery's worker: the pool is made before celery makes its own, while there are no threads
    yet; and the agent begins when all else has."""

    requires = ("celery.worker.components:Timer",)

    group: str | None
    allow_list: AllowList
    accepted: frozenset[str]
    wanted: int | None
    client_timeout: float

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._pool: Pool | None = None
        self._agent: Agent | None = None

    def start(self, worker: Any) -> None:
        app = worker.app
        queue = self.group or app.conf.task_default_queue
        if queue not in app.amqp.queues.consume_from:
            return
        self._pool, board = make_pool(self.wanted or worker.concurrency or os.cpu_count() or 1)
        name = worker.hostname

        def make_post(receive: OnLetter, on_connection: OnConnection) -> Post:
            return BrokerPost(app, node_box(), queue, name, receive, on_connection)

        self._agent = Agent(
            make_post,
            name,
            self.allow_list,
            self.accepted,
            self._pool,
            board,
            self.client_timeout,
        )
        self._agent.start()
        logger.info("serves the cluster of queue %s", queue)

    def stop(self, worker: Any) -> None:
        """Warm: what runs is finished."""
        if self._agent is None or self._pool is None:
            return
        self._agent.leave()
        while not self._agent.ended.wait(LEAVE_SECONDS):
            if state.should_terminate:
                self._agent.abandon()
        self._pool.terminate()

    def terminate(self, worker: Any) -> None:
        """Cold: it is ended."""
        if self._agent is None or self._pool is None:
            return
        self._agent.abandon()
        self._agent.ended.wait()
        self._pool.terminate()
