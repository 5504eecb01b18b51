"""A node of `prefork.cluster.Pool`: one process, with an agent and a pool of its own, for one
client; and what starts it in a task of the executor's (`run_slot`).

    the executor's worker   run_slot ─► starts the node, waits for it
    the node                main ─► make_pool, Agent ◄─ letters ─► the client

A node is a program of its own, not a fork of the executor's worker: that may have threads, may be
a daemonic process, which may have no children of `multiprocessing`'s, and is left as it is
whatever the node's tasks do. The node ends when its client has gone, or the executor's worker: it
reads its standard input, whose other end only that has.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO, Final, NamedTuple

from prefork._system.resources import available_cpus
from prefork.cluster.agent import Agent, make_pool
from prefork.cluster.codecs import BY_VALUE
from prefork.cluster.letters import node_box
from prefork.cluster.names import Anything
from prefork.cluster.posting import OnConnection, OnLetter, Post
from prefork.cluster.sockets import Address, Spoke

__all__ = ["Order", "main", "run_slot"]

SHORTEST_LIFE: Final = 5.0  # seconds: a node that fails within them has hardly lived
MOST_SHORT_LIVES: Final = 2  # in a row; after one more no other node is started
LEAVE_SECONDS: Final = 10.0  # that a node has to end by itself when its worker is interrupted
_PROGRAM: Final = (
    "import sys; sys.path[:] = {path!r}; from prefork.cluster.node import main; main()"
)


class Order(NamedTuple):
    """What a node is to be.

    Attributes:
        slot: its number.
        where: its client listens.
        processes: how many it has; None: as many as there are CPUs to use.
        patience: seconds without its client after which it ends what runs.
    """

    slot: int
    where: Address
    processes: int | None
    patience: float


# ---- in the executor's worker


def run_slot(order: tuple[int, tuple[str, int, bytes], int | None, float]) -> None:
    """Have a node, and another one if that has died, until its client has gone.

    Raises:
        RuntimeError: nodes cannot be started here, or do not live.
    """
    short_lives = 0
    if not sys.executable:
        raise RuntimeError("there is no Python to start a node with: sys.executable is empty")
    while True:
        began = time.monotonic()
        code = _run_node(order)
        if code == 0:
            return
        short_lives = short_lives + 1 if time.monotonic() < began + SHORTEST_LIFE else 0
        if short_lives > MOST_SHORT_LIVES:
            raise RuntimeError(
                f"the node of slot {order[0]} on {socket.gethostname()} has ended at once, "
                f"{short_lives} times, with {code}: its standard error, which is this worker's, "
                "may say why"
            )


def _run_node(order: object) -> int:
    """Its exit code, once it has ended."""
    command = [sys.executable, "-c", _PROGRAM.format(path=[str(each) for each in sys.path])]
    node = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert node.stdin is not None
    try:
        pickle.dump(order, node.stdin)
        node.stdin.flush()
        return node.wait()
    except BrokenPipeError:
        return node.wait()
    except BaseException:  # the worker is interrupted
        _close(node.stdin)
        try:
            node.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()
        raise
    finally:
        _close(node.stdin)


def _close(stdin: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):  # of what was not flushed: it has ended
        stdin.close()


# ---- in the node


def main() -> None:
    slot, where, processes, patience = pickle.load(sys.stdin.buffer)
    order = Order(slot, Address(*where), processes, patience)
    logging.basicConfig(format="prefork node: %(message)s")
    pool, board = make_pool(order.processes or available_cpus())  # while there are no threads

    def make_post(receive: OnLetter, on_connection: OnConnection) -> Post:
        return Spoke(
            node_box(),
            order.where,
            order.patience,
            receive,
            on_connection,
            on_gone,
        )

    def on_gone() -> None:
        agent.abandon()

    name = f"{socket.gethostname()}/{order.slot}"
    codecs = frozenset({BY_VALUE.name})
    agent = Agent(make_post, name, Anything(), codecs, pool, board, order.patience)
    agent.start()
    signal.signal(signal.SIGTERM, lambda *_: agent.leave())
    threading.Thread(target=_watch_worker, args=(agent,), daemon=True).start()
    agent.ended.wait()
    pool.terminate()
    agent.join()


def _watch_worker(agent: Agent) -> None:
    """End with the executor's worker that has started this."""
    while os.read(sys.stdin.fileno(), 1):  # not by the file object: that has a lock, at the end
        pass
    agent.abandon()
    if not agent.ended.wait(LEAVE_SECONDS):
        os._exit(1)
