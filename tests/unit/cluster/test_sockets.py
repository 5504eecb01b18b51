"""What goes over the connections between a client and its nodes; the two sides as threads."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any, TypeAlias

import pytest

from helpers import DEADLINE
from prefork.cluster import lines, sockets
from prefork.cluster.sockets import MOST_STRANGERS, Address, Hub, Spoke

LARGE = b"l" * (64 << 20)  # more than what is between the two takes

Inbox: TypeAlias = "queue.SimpleQueue[Any]"


class Sides:
    """A client and its nodes. What each of them reads is in a queue."""

    def __init__(self, port: int = 0) -> None:
        self.client: Inbox = queue.SimpleQueue()
        self.is_connected = threading.Event()
        self.hub = Hub(
            "client",
            "127.0.0.1",
            port,
            b"key",
            self.client.put,
            self._on_connection,
            lambda: None,
            lambda: None,
            lambda: "",
        )
        self.spokes: list[Spoke] = []
        self.gates: list[Gate] = []
        self.is_over = False
        self.hub.start()

    def _on_connection(self, here: bool, error: Exception | None, box: str = "") -> None:
        if box:
            self.is_connected.set()

    def node(self, name: str = "node", where: Address | None = None) -> tuple[Spoke, Inbox]:
        inbox: Inbox = queue.SimpleQueue()
        spoke = Spoke(
            name,
            where or self.hub.where,
            DEADLINE,
            inbox.put,
            lambda here, error, box="": inbox.put(here),
            lambda: inbox.put("gone"),
        )
        self.spokes.append(spoke)
        spoke.start()
        return spoke, inbox

    def connected(self) -> tuple[Spoke, Inbox]:
        """A node that both sides know to be connected."""
        return self._connect(self.hub.where)

    def gated(self) -> tuple[Gate, Spoke, Inbox]:
        """The same, behind a gate."""
        gate = Gate(self.hub.where)
        self.gates.append(gate)
        return gate, *self._connect(gate.where)

    def _connect(self, where: Address) -> tuple[Spoke, Inbox]:
        spoke, inbox = self.node(where=where)
        assert inbox.get(timeout=DEADLINE) is True
        assert self.is_connected.wait(DEADLINE)
        return spoke, inbox

    def end_client(self) -> None:
        if not self.is_over:
            self.is_over = True
            self.hub.stop()
        assert self.hub.join(DEADLINE)

    def close(self) -> None:
        for spoke in self.spokes:
            spoke.stop()
        self.end_client()
        for spoke in self.spokes:
            assert spoke.join(DEADLINE)
        for gate in self.gates:
            gate.join()


@pytest.fixture
def sides() -> Iterator[Sides]:
    with contextlib.closing(Sides()) as sides:
        yield sides


class Gate:
    """A link between the two on which nothing moves before it is opened."""

    def __init__(self, where: Address) -> None:
        self._target = where
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.where = where._replace(port=self._listener.getsockname()[1])
        self.is_open = threading.Event()
        self.is_open.set()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as node:
            address = self._target.host, self._target.port
            with socket.create_connection(address) as client:
                back = threading.Thread(target=self._carry, args=(client, node))
                back.start()
                self._carry(node, client)
                back.join()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.is_open.wait()
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        self.is_open.set()
        self._thread.join(DEADLINE)


def test_what_is_told_overtakes_what_is_large(sides):
    gate, spoke, inbox = sides.gated()
    known: Inbox = queue.SimpleQueue()
    gate.is_open.clear()
    assert spoke.send("client", LARGE, known.put)
    assert spoke.send("client", b"after it")
    assert spoke.tell("client", b"renew")
    gate.is_open.set()
    assert [sides.client.get(timeout=DEADLINE) for _ in range(3)] == [b"renew", LARGE, b"after it"]
    assert known.get(timeout=DEADLINE) is True
    gate.is_open.clear()
    assert sides.hub.send("node", LARGE)
    assert sides.hub.tell("node", b"grant")
    gate.is_open.set()
    assert [inbox.get(timeout=DEADLINE) for _ in range(2)] == [b"grant", LARGE]


def test_what_was_asked_for_is_answered_if_the_connection_ends(sides):
    gate, spoke, _ = sides.gated()
    known: Inbox = queue.SimpleQueue()
    gate.is_open.clear()
    for number in range(3):
        spoke.send("client", LARGE, lambda is_known, number=number: known.put((number, is_known)))
    sides.end_client()  # it does not wait for a letter that does not come
    gate.is_open.set()
    assert sorted(known.get(timeout=DEADLINE) for _ in range(3)) == [(n, False) for n in range(3)]
    assert known.empty()
    assert not spoke.send("client", b"too late", known.put)
    assert known.get(timeout=DEADLINE) is False


def test_what_was_sent_arrives_before_a_node_ends(sides):
    spoke, _ = sides.connected()
    for number in range(100):
        spoke.send("client", b"%d" % number)
    spoke.stop()
    assert spoke.join(DEADLINE)
    assert [sides.client.get(timeout=DEADLINE) for _ in range(100)] == [
        b"%d" % number for number in range(100)
    ]


def test_a_node_goes_when_it_is_told_to(sides):
    _, inbox = sides.connected()
    sides.end_client()
    assert inbox.get(timeout=DEADLINE) == "gone"


def is_connected_at_last(inbox: Inbox) -> bool:
    while (heard := inbox.get(timeout=DEADLINE)) is False:
        pass
    return heard is True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_a_node_that_is_refused_tries_again(monkeypatch):
    """It may be the way to the client that does not work yet."""
    monkeypatch.setattr(sockets, "REFUSED_SECONDS", DEADLINE)
    port = free_port()
    with contextlib.closing(Sides()) as other:
        _, inbox = other.node(where=Address("127.0.0.1", port, b"key"))
        assert inbox.get(timeout=DEADLINE) is False
        with contextlib.closing(Sides(port)):
            assert is_connected_at_last(inbox)


def test_a_node_that_is_refused_all_along_goes(monkeypatch, sides):
    monkeypatch.setattr(sockets, "REFUSED_SECONDS", 0.0)
    _, inbox = sides.node(where=Address("127.0.0.1", free_port(), b"key"))
    heard = [inbox.get(timeout=DEADLINE) for _ in range(3)]
    assert heard[0] is False
    assert "gone" in heard


def test_strangers_who_say_nothing_are_few(sides, monkeypatch):
    """And keep no node out."""
    monkeypatch.setattr(lines, "HANDSHAKE_SECONDS", 10 * DEADLINE)  # they are not sent away for it
    where = sides.hub.where
    with contextlib.ExitStack() as stack:
        silent = []
        for _ in range(MOST_STRANGERS + 1):
            stranger = stack.enter_context(socket.create_connection((where.host, where.port)))
            stranger.settimeout(DEADLINE)
            assert stranger.recv(1)  # of the challenge: it is attended to
            silent.append(stranger)
        while silent[0].recv(1 << 10):
            pass  # the oldest is sent away
        _, inbox = sides.node()
        assert inbox.get(timeout=DEADLINE) is True
