"""`ClusterPool`: the verbs of a pool, whose processes are those of celery's workers."""

from __future__ import annotations

import uuid
from typing import Any

from prefork._arguments import seconds
from prefork._policy.limits import Limits
from prefork._policy.retry import Retry
from prefork.celery.post import BrokerPost
from prefork.cluster.carrier import LetterCarrier
from prefork.cluster.codecs import CODECS
from prefork.cluster.letters import client_box
from prefork.cluster.posting import OnConnection, OnLetter, Post
from prefork.cluster.sizes import CHUNK_SECONDS
from prefork.cluster.verbs import ClusterFace, finite

__all__ = ["ClusterPool"]


class ClusterPool(ClusterFace):
    """A pool whose processes are those of the workers of a celery application, on as many machines
    as there are; each has called `prefork.celery.serve`.

    The calls, their handles, errors and limits are those of `prefork.Pool`. Functions go by their
    names, so they are plain functions at the top level of modules that the nodes have, too.

    Args:
        app: the celery application; its broker is Redis or RabbitMQ. No result backend is needed.
        queue: the queue of the workers that serve; None: the application's default one.
        timeout, soft_timeout: the time limits of each task, in seconds, as in `Pool`.
        retries: how often an item is run again after its process or its node was lost, an int; or a
            `Retry`. By default an item is begun once at most.
        serializer: how arguments and results are written down. "json"; or "pickle", if the nodes
            accept that.
        lease: a node that is not heard of for so many seconds, and half a second more, is given up:
            what it had begun fails with `NodeLostError`, all else goes to others.
        start_timeout: how long to wait for the first node, in seconds.
        alone_timeout: if there has been no node for so many seconds, while the broker could be
            reached, the pool gives up, with `PoolBrokenError`.
        broker_timeout: if the broker was there and could not be reached for so many seconds since,
            the pool gives up likewise; infinity: it waits for ever.
        chunk_seconds: calls are sent several at once, as many as take so long. 0: one by one: then
            no more than one item per process is lost with a node, but short ones take longer.
        check_code: whether nodes refuse a function whose module's source is another one there.

    Raises:
        PoolBrokenError: the broker could not be reached in time, or no worker has answered.
        TypeError, ValueError: an argument is not right.
    """

    def __init__(
        self,
        app: Any,
        *,
        queue: str | None = None,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        retries: int | Retry | None = None,
        serializer: str = "json",
        lease: float = 10.0,
        start_timeout: float = 10.0,
        alone_timeout: float = 60.0,
        broker_timeout: float = 3600.0,
        chunk_seconds: float = CHUNK_SECONDS,
        check_code: bool = False,
    ) -> None:
        if serializer not in CODECS:
            raise ValueError(f"serializer must be one of {', '.join(CODECS)}, not {serializer!r}")
        client = uuid.uuid4().hex
        group = queue or app.conf.task_default_queue

        def make_post(receive: OnLetter, on_connection: OnConnection) -> Post:
            return BrokerPost(app, client_box(client), group, None, receive, on_connection)

        carrier = LetterCarrier(
            client,
            make_post,
            serializer,
            finite("lease", lease),
            finite("start_timeout", start_timeout),
            finite("alone_timeout", alone_timeout),
            seconds("broker_timeout", broker_timeout),
        )
        self._begin(
            Limits().override(timeout, soft_timeout, None, retries),
            carrier,
            CODECS[serializer],
            finite("chunk_seconds", chunk_seconds, zero=True),
            check_code,
        )
