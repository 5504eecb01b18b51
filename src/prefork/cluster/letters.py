"""What clients and nodes write to each other, and how none of it is lost, doubled or out of order.

A letter is text: a line of JSON, the head, then a line for each item. It goes through queues of a
message broker that may lose what is in them (a broker is restarted, a connection breaks while a
message is on its way) or deliver it twice. So whoever sends what matters numbers it, and sends it
again until the other side has said that it has come (`Link`); what comes twice, or before something
that is missing, is dropped. What does not matter, as it is sent again anyway, has no number.

    hello     to all nodes    a client is there: its queue, how long its leases are
    renew     to the client   a node would like to go on working for it
    grant     to the node     it may; the node's own time comes back
    chunk     to the node     * items to be run
    drop      to the node     * chunks that nobody wants any more
    report    to the client   * chunks that are about to run, or what one has come to
    end       to the node     have nothing left of this client
    gone      to the client   the node has ended
    ask       to the node     what its processes do
    answer    to the client

A *session* is what a client and a node have with each other, from the node's first letter until one
of them gives the other up; it never goes on after that. Letters with a star are numbered.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from prefork.cluster.codecs import to_json

__all__ = ["CLIENT_QUEUE", "NODE_QUEUE", "VERSION", "Letter", "Link", "client_box", "node_box"]

VERSION: Final = 1
CLIENT_QUEUE: Final = re.compile(r"prefork\.client\.[0-9a-f]{32}")
NODE_QUEUE: Final = re.compile(r"prefork\.node\.[0-9a-f]{32}")


def client_box(client: str) -> str:
    """Where a client is written to."""
    return f"prefork.client.{client}"


def node_box() -> str:
    """Where a new node is."""
    return f"prefork.node.{uuid.uuid4().hex}"


AGAIN_SECONDS: Final = 3.0
"""After so long without a word that it has come, a letter is sent again. Each side says what has
come with all that it sends, and a lease's renewal is sent each second."""


class Letter(NamedTuple):
    """
    Attributes:
        kind: one of those above.
        head: its fields.
        texts: of items.
    """

    kind: str
    head: dict[str, Any]
    texts: list[str]

    @classmethod
    def read(cls, body: bytes) -> Letter:
        """
        Raises:
            ValueError: this is no letter, or of another version.
        """
        first, *texts = body.decode("ascii").split("\n")
        head = json.loads(first)
        if not isinstance(head, dict) or head.get("version") != VERSION:
            raise ValueError("it is no letter of this version")
        kind = head.get("kind")
        if not isinstance(kind, str):
            raise ValueError("it has no kind")
        return cls(kind, head, texts)

    def field(self, name: str, cls: type | tuple[type, ...]) -> Any:
        """
        Raises:
            ValueError: there is no such field, or it is of another type.
        """
        value = self.head.get(name)
        if not isinstance(value, cls) or (isinstance(value, bool) and cls is not bool):
            raise ValueError(f"its field {name!r} is {value!r}")
        return value


def written(kind: str, head: dict[str, Any], texts: Sequence[str] = ()) -> bytes:
    fields = {"version": VERSION, "kind": kind, **head}
    return "\n".join([to_json(fields), *texts]).encode("ascii")


class Link:
    """One side of a session: what it has sent that may not have come, and what has come.

    Args:
        session: its name.
        send: sends a letter; returns whether the broker has it.

    Attributes:
        received: the number of the last one that has come.
        is_behind: the other side has sent more than that: something is missing.
    """

    def __init__(self, session: str, send: Callable[[bytes], bool]) -> None:
        self.session = session
        self._send = send
        self._sent = 0
        self.received = 0
        self.is_behind = False
        self._unconfirmed: deque[tuple[int, str, dict[str, Any], Sequence[str]]] = deque()
        self._again_at = float("inf")

    def send(self, kind: str, head: dict[str, Any], now: float, texts: Sequence[str] = ()) -> bool:
        """Send what is to come for certain. Whether the broker has it already: else it is sent
        again later."""
        self._sent += 1
        self._unconfirmed.append((self._sent, kind, head, texts))
        self._again_at = min(self._again_at, now + AGAIN_SECONDS)
        return self._write(self._sent, kind, head, texts)

    def tell(self, kind: str, head: dict[str, Any]) -> bool:
        """Send what may be lost."""
        return self._write(0, kind, head, ())

    def _write(self, number: int, kind: str, head: dict[str, Any], texts: Sequence[str]) -> bool:
        numbers = {"number": number, "sent": self._sent, "received": self.received}
        fields = {"session": self.session, **numbers, **head}
        return self._send(written(kind, fields, texts))

    def heed(self, letter: Letter, now: float) -> bool:
        """A letter has come. Whether it is to be read: it has no number, or is the next one.

        Raises:
            ValueError: its numbers are none.
        """
        number, sent = letter.field("number", int), letter.field("sent", int)
        confirmed = letter.field("received", int)
        while self._unconfirmed and self._unconfirmed[0][0] <= confirmed:
            self._unconfirmed.popleft()
            self._again_at = now + AGAIN_SECONDS
        if not self._unconfirmed:
            self._again_at = float("inf")
        is_next: bool = number == self.received + 1
        if is_next:
            self.received = number
        self.is_behind = sent > self.received
        return is_next or not number

    def send_again(self, now: float, at_once: bool = False) -> None:
        """What was not confirmed for a while; or all that was not, if a connection is new."""
        if not self._unconfirmed or (now < self._again_at and not at_once):
            return
        self._again_at = now + AGAIN_SECONDS
        for letter in self._unconfirmed:
            if not self._write(*letter):
                return
