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
    nothing   to the node     * in the place of a letter that the broker would not take
    end       to the node     have nothing left of this client
    gone      to the client   * the node has ended
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
from typing import Any, Final, NamedTuple, Protocol

from prefork.cluster.codecs import to_json
from prefork.cluster.posting import Told

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


REFUSALS: Final = 3
"""So often a large letter can fail to be sent, while small ones can, before it is given up."""
SURELY_TAKEN: Final = 1 << 16
"""Bytes that any broker takes."""

Instead = Callable[[], tuple[str, dict[str, Any], Sequence[str]]]


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


class Carries(Protocol):
    """What of a `Post` a link needs."""

    is_lossy: bool

    def send(self, box: str, body: bytes, told: Told | None = None) -> bool: ...

    def tell(self, box: str, body: bytes) -> bool: ...


class _Sent(NamedTuple):
    """A letter that may not have come."""

    number: int
    kind: str
    head: dict[str, Any]
    texts: Sequence[str]
    instead: Instead | None


class Link:
    """One side of a session: what it has sent that may not have come, and what has come.

    Args:
        session: its name.
        post: what carries it.
        box: the other side's.

    Attributes:
        received: the number of the last one that has come.
        is_open: the last letter could be sent.
    """

    def __init__(self, session: str, post: Carries, box: str) -> None:
        self.session = session
        self._post = post
        self._box = box
        self._sent = 0
        self.received = 0
        self._known = 0  # so many have been sent by the other side, as far as that matters
        self.is_open = True
        self._unconfirmed: deque[_Sent] = deque()
        self._again_at = float("inf")
        self._refusals = 0  # of the first of these, while others could be sent
        self._is_refused = False  # it could not be sent; nor has any other one since

    def send(
        self,
        kind: str,
        head: dict[str, Any],
        now: float,
        texts: Sequence[str] = (),
        instead: Instead | None = None,
        told: Told | None = None,
    ) -> bool:
        """Send what is to come for certain. Whether it is on its way: else it is sent again later.

        Args:
            instead: called if it is too large for the broker: what is to be sent in its place.
            told: see `Post.send`; of this attempt alone.
        """
        self._sent += 1
        self._unconfirmed.append(_Sent(self._sent, kind, head, texts, instead))
        self._again_at = min(self._again_at, now + AGAIN_SECONDS)
        return self._write_numbered(self._unconfirmed[-1], told)

    def tell(self, kind: str, head: dict[str, Any]) -> bool:
        """Send what may be lost."""
        body = self._written(0, kind, head, ())
        self.is_open = is_sent = self._post.tell(self._box, body)
        if is_sent and self._is_refused:
            self._is_refused = False
            self._refusals += 1
        return is_sent

    def _written(self, number: int, kind: str, head: dict[str, Any], texts: Sequence[str]) -> bytes:
        numbers = {"number": number, "sent": self._sent, "received": self.received}
        return written(kind, {"session": self.session, **numbers, **head}, texts)

    def _write_numbered(self, letter: _Sent, told: Told | None = None) -> bool:
        self.is_open = self._post.send(self._box, self._written(*letter[:4]), told)
        if self.is_open:
            return True
        if letter is self._unconfirmed[0] and self._post.is_lossy:
            self._is_refused = True
        return False

    def heed(self, letter: Letter, now: float) -> bool:
        """A letter has come. Whether it is to be read: it has no number, or is the next one.

        Raises:
            ValueError: its numbers are none.
        """
        number, sent = letter.field("number", int), letter.field("sent", int)
        confirmed = letter.field("received", int)
        while self._unconfirmed and self._unconfirmed[0].number <= confirmed:
            self._unconfirmed.popleft()
            self._again_at = now + AGAIN_SECONDS
            self._refusals, self._is_refused = 0, False
        if not self._unconfirmed:
            self._again_at = float("inf")
        is_next: bool = number == self.received + 1
        if is_next:
            self.received = number
        # Where none is lost, those that are still on their way may be large, and are not missing.
        self._known = max(self._known, sent if self._post.is_lossy else number)
        return is_next or not number

    @property
    def is_behind(self) -> bool:
        """Something is missing that the other side has sent."""
        return self._known > self.received

    @property
    def is_awaiting(self) -> bool:
        """The other side has not said yet that all has come."""
        return bool(self._unconfirmed)

    def send_again(self, now: float, at_once: bool = False) -> None:
        """What was not confirmed for a while; or all that was not, if a connection is new."""
        if not self._unconfirmed or (now < self._again_at and not at_once):
            return
        self._again_at = now + AGAIN_SECONDS
        if self._refusals >= REFUSALS:
            self._replace_first()
        for letter in self._unconfirmed:
            if not self._write_numbered(letter):
                return

    def _replace_first(self) -> None:
        """The broker takes other letters, and not this one: it has a limit."""
        self._refusals = 0
        letter = self._unconfirmed[0]
        size = len(written(letter.kind, letter.head, letter.texts))
        if letter.instead is not None and size > SURELY_TAKEN:
            kind, head, texts = letter.instead()
            self._unconfirmed[0] = _Sent(letter.number, kind, head, texts, None)
