"""`Pool`: the verbs of a pool, whose processes are wherever an executor has its workers."""

from __future__ import annotations

import secrets
import uuid
import weakref
from concurrent.futures import Executor
from typing import Any, Final

from prefork._arguments import count, some_count
from prefork._policy.limits import Limits
from prefork._policy.retry import Retry
from prefork._system import std_internals
from prefork.cluster.carrier import LetterCarrier
from prefork.cluster.codecs import BY_VALUE
from prefork.cluster.letters import client_box
from prefork.cluster.node import Order
from prefork.cluster.posting import OnConnection, OnLetter, Post
from prefork.cluster.sizes import CHUNK_SECONDS
from prefork.cluster.slots import Slots
from prefork.cluster.sockets import Hub
from prefork.cluster.verbs import ClusterFace, finite
from prefork.errors import PoolBrokenError

__all__ = ["Pool"]

LOOPBACK: Final = "127.0.0.1"
ANYWHERE: Final = ("", "0.0.0.0", "::")


class Pool(ClusterFace):
    """A pool whose processes are on the machines of an executor: of dask
    (`client.get_executor(pure=False)`), executorlib, MPI, or any other with the interface of
    `concurrent.futures`.

    The executor is given `nodes` tasks, each of which starts a *node* and waits for its end: a
    process with a pool of its own, which connects to this program and works for it alone. So a
    task that crashes or is killed costs itself, and not the executor's worker. The nodes end with
    this pool.

    The calls, their handles, errors and limits are those of `prefork.Pool`. Functions, arguments
    and results are pickled; if `cloudpickle` is installed here and there, functions and classes of
    a script or a notebook go along.

    Args:
        executor: must have as many free workers as there are nodes, and `prefork` there.
        nodes: how many, an int.
        processes_per_node: how many processes each has, an int; None: as many as there are CPUs
            to use where it is.
        timeout, soft_timeout: the time limits of each task, in seconds, as in `prefork.Pool`.
        retries: how often an item is run again after its process or its node was lost, an int; or
            a `Retry`. By default an item is begun once at most.
        host: the name or address of this machine that nodes connect to. The default one can be
            reached from this machine alone.
        port: that is listened at; 0: any that is free.
        lease: a node that is not heard of for so many seconds, and half a second more, is given
            up: what it had begun fails with `NodeLostError`, all else goes to others. (Not before,
            even if its connection has ended: it may come back, and go on.)
        start_timeout: how long to wait for the first node, in seconds.
        alone_timeout: if there has been no node for so many seconds, the pool gives up, with
            `PoolBrokenError`.
        client_timeout: a node that has had no connection to this program for so many seconds ends
            what it runs. If this program has ended, it does so within two seconds.
        chunk_seconds: calls are sent several at once, as many as take so long. 0: one by one.

    Raises:
        PoolBrokenError: the executor takes no tasks, or no node has answered in time.
        TypeError, ValueError: an argument is not right.
        OSError: it is not possible to listen at this address.
    """

    def __init__(
        self,
        executor: Executor,
        nodes: int = 1,
        *,
        processes_per_node: int | None = None,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        retries: int | Retry | None = None,
        host: str = LOOPBACK,
        port: int = 0,
        lease: float = 10.0,
        start_timeout: float = 60.0,
        alone_timeout: float = 60.0,
        client_timeout: float = 60.0,
        chunk_seconds: float = CHUNK_SECONDS,
    ) -> None:
        if not callable(getattr(executor, "submit", None)):
            raise TypeError(f"executor must have a submit(), as an Executor has, not {executor!r}")
        if host in ANYWHERE:
            raise ValueError(f"host is to be a name that nodes can connect to, not {host!r}")
        processes = some_count("processes_per_node", processes_per_node)
        patience = finite("client_timeout", client_timeout)
        chunk = finite("chunk_seconds", chunk_seconds, zero=True)
        client = uuid.uuid4().hex

        def on_end(error: PoolBrokenError) -> None:
            carrier.fail(error)

        slots = Slots(executor, count("nodes", nodes), on_end)

        def make_post(receive: OnLetter, on_connection: OnConnection) -> Post:
            hub = Hub(
                client_box(client),
                host,
                port,
                secrets.token_bytes(32),
                receive,
                on_connection,
                lambda: slots.begin(Order(0, hub.where, processes, patience)),
                slots.stop,
                slots.advice,
            )
            return hub

        limits = Limits().override(timeout, soft_timeout, None, retries)
        carrier = LetterCarrier(
            client,
            make_post,
            BY_VALUE.name,
            finite("lease", lease),
            finite("start_timeout", start_timeout),
            finite("alone_timeout", alone_timeout),
            None,
        )
        self._begin(limits, carrier, BY_VALUE, chunk, False)
        _end_before_executors(self._engine)


def _end_before_executors(engine: Any) -> None:
    """At the interpreter's end: the threads of executors are waited for then, and theirs wait for
    the nodes."""
    its = weakref.ref(engine)

    def end() -> None:
        if (found := its()) is not None and not found.state.is_forked:
            found.terminate()

    try:
        std_internals.before_threads_end(end)
    except RuntimeError:  # it ends already
        engine.terminate()
        raise PoolBrokenError("the interpreter is ending: there can be no new pool") from None
