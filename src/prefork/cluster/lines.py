"""One TCP connection between a client and a node, and the letters on it.

Letters go in pieces, in two lanes: what is *told* (leases above all) overtakes what is *sent*, and
is never held up by it, however large that is. What is sent stays in order, and its sender can have
it *confirmed*: the other side says so once the letter is where it will be read.

Nothing is lost as long as the connection lasts. It ends when nothing moves for `QUIET_SECONDS`,
while either side tells something each second.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Final, NamedTuple

from prefork._system.threads import BackgroundThread
from prefork.cluster.posting import Told

__all__ = ["Line", "answer", "challenge", "prepared", "shut"]

logger = logging.getLogger("prefork")

QUIET_SECONDS: Final = 20.0
HANDSHAKE_SECONDS: Final = 5.0  # that each step of it may take
PIECE: Final = 1 << 18  # bytes of a letter that go together: what is told waits for no more
_TIMEVAL: Final = struct.Struct("@ll")

# What a piece begins with.
PART: Final = b"p"  # of a letter that is sent; more of it follows
LAST: Final = b"l"  # the rest of one
ASKED: Final = b"a"  # the same, and it is to be confirmed
TOLD: Final = b"t"  # a whole letter that is told
CONFIRMED: Final = b"c"
GOODBYE: Final = b"g"  # the other side is not wanted any more


# ---- how a connection begins


def _keys(key: bytes) -> tuple[bytes, bytes]:
    """What nodes prove that they know, and what the client does: were they the same, a stranger
    could have one node answer what another one has asked."""
    of_nodes, of_client = (hmac.digest(key, who, "sha256") for who in (b"node", b"client"))
    return of_nodes, of_client


def challenge(connection: Connection, key: bytes) -> None:
    """The client's part: both sides prove that they know the key.

    Raises:
        AuthenticationError, AssertionError: the other side does not. (Python 3.11 asserts what a
            challenge looks like.)
        OSError, EOFError: the connection has ended.
    """
    of_nodes, of_client = _keys(key)
    deliver_challenge(connection, of_nodes)
    answer_challenge(connection, of_client)


def answer(connection: Connection, key: bytes) -> None:
    """The node's part."""
    of_nodes, of_client = _keys(key)
    answer_challenge(connection, of_nodes)
    deliver_challenge(connection, of_client)


def prepared(sock: socket.socket) -> Connection:
    """The connection of a new socket; its reads and writes fail when nothing moves for so long as
    a handshake may take."""
    with sock:  # it is closed, unless it is handed over
        sock.settimeout(None)
        _limit(sock, HANDSHAKE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # What the system has taken and not sent yet is overtaken by nothing.
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, PIECE)
        return Connection(sock.detach())


def _limit(sock: socket.socket, seconds: float) -> None:
    value = _TIMEVAL.pack(int(seconds), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


@contextlib.contextmanager
def _socket_of(connection: Connection) -> Iterator[socket.socket]:
    sock = socket.socket(fileno=connection.fileno())
    try:
        yield sock
    finally:
        sock.detach()


def shut(connection: Connection, how: int = socket.SHUT_RDWR) -> None:
    """Have whoever reads or writes there fail; it is closed by the one who reads."""
    with contextlib.suppress(OSError), _socket_of(connection) as sock:
        sock.shutdown(how)


# ---- letters


class _Ordinary(NamedTuple):
    """A letter that is sent."""

    body: bytes
    told: Told | None


class Line:
    """
    Args:
        connection: whose handshake is over.

    Attributes:
        is_dismissed: the other side does not want this one any more.
    """

    def __init__(self, connection: Connection) -> None:
        with _socket_of(connection) as sock:
            _limit(sock, QUIET_SECONDS)
        self.connection = connection
        self.is_dismissed = False
        self._changed = threading.Condition()
        self._urgent: deque[bytes] = deque()  # pieces
        self._ordinary: deque[_Ordinary] = deque()
        self._offset = 0  # in the first of these
        self._unconfirmed: deque[Told] = deque()
        self._is_finished = False  # nothing is to come after what there is
        self._has_ended = False
        self._parts: list[bytes] = []  # of the letter that is coming
        self._writer = BackgroundThread(self._write, "prefork-Writer")

    def start(self) -> None:
        self._writer.start()

    # ---- out, from any thread

    def send(self, body: bytes, told: Told | None = None) -> bool:
        """Whether it is on its way.

        Args:
            told: called, by some thread, with whether it has been confirmed, once that is known.
        """
        with self._changed:
            is_open = not (self._has_ended or self._is_finished)
            if is_open:
                self._ordinary.append(_Ordinary(body, told))
                self._changed.notify()
        if not is_open and told is not None:
            told(False)
        return is_open

    def tell(self, body: bytes) -> bool:
        """The same, ahead of what is sent."""
        return self._hurry(TOLD + body)

    def _hurry(self, piece: bytes) -> bool:
        with self._changed:
            if self._has_ended or self._is_finished:
                return False
            self._urgent.append(piece)
            self._changed.notify()
        return True

    def finish(self) -> None:
        """Nothing more will be sent after what there is; then the other side's `read` ends."""
        with self._changed:
            self._is_finished = True
            self._changed.notify()

    def dismiss(self) -> None:
        """The other side is not wanted any more: it is told so, and nothing else."""
        with self._changed:
            self._urgent.append(GOODBYE)
            self._ordinary.clear()
            self._is_finished = True
            self._changed.notify()

    def _write(self) -> None:
        try:
            while (piece := self._next_piece()) is not None:
                self.connection.send_bytes(piece)
            shut(self.connection, socket.SHUT_WR)
        except OSError:
            logger.debug("a connection cannot be written to", exc_info=True)
            shut(self.connection)

    def _next_piece(self) -> bytes | None:
        with self._changed:
            while not (self._urgent or self._ordinary):
                if self._is_finished or self._has_ended:
                    return None
                self._changed.wait()
            if self._urgent:
                return self._urgent.popleft()
            body, told = self._ordinary[0]
            start, self._offset = self._offset, self._offset + PIECE
            piece = body[start : self._offset]
            if self._offset < len(body):
                return PART + piece
            self._offset = 0
            self._ordinary.popleft()
            if told is None:
                return LAST + piece
            self._unconfirmed.append(told)
            return ASKED + piece

    # ---- in, for one thread

    def read(self, receive: Callable[[bytes], object]) -> None:
        """Read until there is nothing more, or the other side says goodbye.

        Args:
            receive: called with each letter.

        Raises:
            OSError, EOFError: the connection has ended.
            ValueError: this is no piece.
        """
        while not self.is_dismissed:
            piece = self.connection.recv_bytes()
            kind, rest = piece[:1], piece[1:]
            if kind == TOLD:
                receive(rest)
            elif kind == CONFIRMED and self._unconfirmed:
                self._unconfirmed.popleft()(True)
            elif kind == GOODBYE:
                self.is_dismissed = True
            elif kind in {PART, LAST, ASKED}:
                self._parts.append(rest)
                if kind != PART:
                    body, self._parts = b"".join(self._parts), []
                    receive(body)
                if kind == ASKED:
                    self._hurry(CONFIRMED)
            else:
                raise ValueError(f"{kind!r} begins no piece of a letter")

    def end(self) -> None:
        """Nothing is read any more, and nothing will be written: the connection can be closed."""
        with self._changed:
            self._has_ended = True
            self._changed.notify()
        shut(self.connection)
        if self._writer.is_started:
            self._writer.join()  # before the connection's number can be another's
        with self._changed:
            asked = [*self._unconfirmed, *(each.told for each in self._ordinary if each.told)]
            self._unconfirmed.clear()
            self._ordinary.clear()
        for told in asked:
            told(False)
