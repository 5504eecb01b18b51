"""Letters between one client and its own nodes, by TCP: the client listens (`Hub`), nodes connect
(`Spoke`), and connect again as long as somebody listens.

Both sides have to know a key (HMAC, as in `multiprocessing.connection`) before anything is read.
A node's letter is *confirmed* by an empty message, once it is where the client will read it; so a
node knows what the client was told of. Who says nothing for `QUIET_SECONDS`, or takes nothing, is
disconnected: each side writes every second.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Final, NamedTuple

from prefork._system import at_fork
from prefork._system.locks import Lock
from prefork._system.threads import BackgroundThread
from prefork.cluster.posting import OnConnection, OnLetter

__all__ = ["Address", "Hub", "Spoke"]

logger = logging.getLogger("prefork")

CONNECT_SECONDS: Final = 4.0
PAUSE: Final = 0.3  # seconds between two attempts to connect
QUIET_SECONDS: Final = 20.0
CONFIRM_SECONDS: Final = 10.0
MOST_NAME: Final = 100  # bytes
_TIMEVAL: Final = struct.Struct("@ll")


class Address(NamedTuple):
    """Where a client listens, and the key to it."""

    host: str
    port: int
    key: bytes


def _keys(key: bytes) -> tuple[bytes, bytes]:
    """What nodes prove that they know, and what the client does: were they the same, a stranger
    could have one node answer what another one has asked."""
    of_nodes, of_client = (hmac.digest(key, who, "sha256") for who in (b"node", b"client"))
    return of_nodes, of_client


def _prepared(sock: socket.socket) -> Connection:
    """A connection whose reads and writes fail when nothing moves for so long."""
    seconds = _TIMEVAL.pack(int(QUIET_SECONDS), 0)
    with sock:  # it is closed, unless it is handed over
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Connection(sock.detach())


def _shut(connection: Connection) -> None:
    """Have whoever reads or writes there fail; it is closed by the one who reads."""
    with contextlib.suppress(OSError), socket.socket(fileno=connection.fileno()) as sock:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        finally:
            sock.detach()


class _Member:
    """One connection of the client's.

    Args:
        connection: to a node that has said its name.
    """

    def __init__(self, box: str, connection: Connection) -> None:
        self.box = box
        self.connection = connection
        self.letters: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.writer = BackgroundThread(self._write, "prefork-Writer")

    def _write(self) -> None:
        try:
            while (body := self.letters.get()) is not None:
                self.connection.send_bytes(body)
        except OSError:
            logger.debug("a node cannot be written to", exc_info=True)
        finally:
            _shut(self.connection)


class Hub:
    """The client's side: a `Post`.

    Args:
        name: its box.
        host: the name or address of this machine that nodes connect to.
        port: 0: any.
        key: for nodes.
        receive, on_connection: see `Post.start`.
        begin: called when it listens.
        end: called when no node is wanted any more.
        advice: see `Post`.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        key: bytes,
        receive: OnLetter,
        on_connection: OnConnection,
        begin: Callable[[], object],
        end: Callable[[], object],
        advice: Callable[[], str],
    ) -> None:
        self.name = name
        self._readers: dict[BackgroundThread, Connection] = {}
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with at_fork.creating():
            self._listener = socket.create_server((host, port), family=family, backlog=128)
            at_fork.register(self)
        self.where = Address(host, self._listener.getsockname()[1], key)
        self._receive = receive
        self._on_connection = on_connection
        self._begin = begin
        self._end = end
        self._advice = advice
        self._lock = Lock()
        self._members: dict[str, _Member] = {}  # by box
        self._greeting = b""  # what was sent to all last, for those who come
        self._is_stopped = False
        self._writers: set[BackgroundThread] = set()
        self._accepter = BackgroundThread(self._accept, "prefork-Hub")

    @property
    def address(self) -> str:
        return f"{self.where.host}:{self.where.port}"

    @property
    def advice(self) -> str:
        return self._advice()

    def start(self) -> None:
        self._accepter.start()
        self._on_connection(True, None)
        self._begin()

    def close_in_child(self) -> None:
        """Else it would look to nodes as if the client lived as long as its children."""
        with contextlib.suppress(OSError):
            self._listener.close()
        for connection in self._readers.values():
            with contextlib.suppress(OSError):
                connection.close()

    # ---- reading

    def _accept(self) -> None:
        while not self._is_stopped:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                if not self._is_stopped:  # no descriptor is left, or the peer has gone already
                    logger.warning("a connection could not be accepted", exc_info=True)
                    time.sleep(PAUSE)
                continue
            if self._is_stopped:
                sock.close()
                break
            try:
                self._attend(_prepared(sock))
            except (OSError, RuntimeError):  # it has gone already; or there is no thread left
                logger.warning("a connection could not be attended to", exc_info=True)
        at_fork.unregister(self)
        self._listener.close()

    def _attend(self, connection: Connection) -> None:
        reader = BackgroundThread(lambda: self._read(connection, reader), "prefork-Reader")
        with self._lock:
            self._readers[reader] = connection
        try:
            reader.start()
        except RuntimeError:
            with self._lock:
                del self._readers[reader]
            connection.close()
            raise

    def _read(self, connection: Connection, reader: BackgroundThread) -> None:
        member: _Member | None = None
        try:
            of_nodes, of_client = _keys(self.where.key)
            deliver_challenge(connection, of_nodes)
            answer_challenge(connection, of_client)
            member = self._welcome(connection)
            while True:
                body = connection.recv_bytes()
                self._receive(body)
                member.letters.put(b"")
        except (AuthenticationError, AssertionError):
            logger.warning("somebody without the key has tried to connect as a node")
        except (OSError, EOFError, ValueError):
            logger.debug("a connection has ended", exc_info=True)
        finally:
            if member is not None:
                self._leave(member)
            with self._lock:
                del self._readers[reader]
            connection.close()

    def _welcome(self, connection: Connection) -> _Member:
        member = _Member(connection.recv_bytes(MOST_NAME).decode("ascii"), connection)
        with self._lock:
            if self._is_stopped:
                raise EOFError
            old = self._members.get(member.box)
            self._members[member.box] = member
            self._writers.add(member.writer)
            if self._greeting:
                member.letters.put(self._greeting)
        if old is not None:
            old.letters.put(None)
        member.writer.start()
        return member

    def _leave(self, member: _Member) -> None:
        with self._lock:
            if self._members.get(member.box) is member:
                del self._members[member.box]
        member.letters.put(None)
        _shut(member.connection)
        member.writer.join()  # before the connection's number can be another's
        with self._lock:
            self._writers.discard(member.writer)

    # ---- writing

    def send(self, box: str, body: bytes) -> bool:
        with self._lock:
            member = self._members.get(box)
        if member is None:
            return False
        member.letters.put(body)
        return True

    def send_to_all(self, body: bytes) -> bool:
        with self._lock:
            self._greeting = body
            members = list(self._members.values())
        for member in members:
            member.letters.put(body)
        return True

    def delete(self, box: str) -> None:
        pass  # what is in it goes with its connection

    # ---- the end

    def stop(self) -> None:
        with self._lock:
            self._is_stopped = True
            members = list(self._members.values())
            known = [member.connection for member in members]
            for connection in self._readers.values():
                if connection not in known:
                    _shut(connection)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if not self._accepter.is_started:
            at_fork.unregister(self)
            self._listener.close()
        for member in members:
            member.letters.put(None)  # after what it is to have
        self._end()

    def join(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            threads = [self._accepter, *self._readers, *self._writers]
        for thread in threads:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not thread.join(left):
                return False
        return True


class Spoke:
    """A node's side: a `Post`.

    Args:
        name: its box.
        where: the client listens.
        patience: seconds without a connection after which the client has gone.
        receive, on_connection: see `Post.start`.
        on_gone: called when the client has gone: nobody listens there any more.
    """

    def __init__(
        self,
        name: str,
        where: Address,
        patience: float,
        receive: OnLetter,
        on_connection: OnConnection,
        on_gone: Callable[[], object],
    ) -> None:
        self.name = name
        self._where = where
        self._patience = patience
        self._receive = receive
        self._on_connection = on_connection
        self._on_gone = on_gone
        self._is_stopped = threading.Event()
        self._changed = threading.Condition()
        self._connection: Connection | None = None
        self._sent = self._confirmed = 0  # on this connection
        self._reader = BackgroundThread(self._read, "prefork-Spoke")

    @property
    def address(self) -> str:
        return f"{self._where.host}:{self._where.port}"

    @property
    def advice(self) -> str:
        return ""

    def start(self) -> None:
        self._reader.start()

    def _read(self) -> None:
        last = time.monotonic()
        while not self._is_stopped.is_set():
            error: Exception | None = None
            try:
                connection = self._connect()
                try:
                    self._read_by(connection)
                finally:
                    last = time.monotonic()
                    self._have(None)
                    connection.close()
            except (OSError, EOFError, AuthenticationError, AssertionError) as exc:
                error = exc  # (Python 3.11 asserts what a challenge looks like)
                logger.debug("there is no connection to the client", exc_info=True)
            if self._is_stopped.is_set():
                return
            self._on_connection(False, error)
            is_refused = isinstance(error, (ConnectionRefusedError, AuthenticationError))
            if is_refused or time.monotonic() > last + self._patience:
                self._on_gone()
                return
            self._is_stopped.wait(PAUSE)

    def _connect(self) -> Connection:
        host, port, key = self._where
        sock = socket.create_connection((host, port), CONNECT_SECONDS)
        connection = _prepared(sock)
        try:
            of_nodes, of_client = _keys(key)
            answer_challenge(connection, of_nodes)
            deliver_challenge(connection, of_client)
            connection.send_bytes(self.name.encode("ascii"))
        except BaseException:
            connection.close()
            raise
        return connection

    def _read_by(self, connection: Connection) -> None:
        self._have(connection)
        self._on_connection(True, None)
        while not self._is_stopped.is_set():
            if body := connection.recv_bytes():
                self._receive(body)
            else:
                with self._changed:
                    self._confirmed += 1
                    self._changed.notify_all()

    def _have(self, connection: Connection | None) -> None:
        with self._changed:
            self._connection = connection
            self._sent = self._confirmed = 0
            self._changed.notify_all()

    def send(self, box: str, body: bytes) -> bool:
        with self._changed:
            connection = self._connection
            if connection is None:
                return False
            self._sent += 1
            number = self._sent
            # With the lock: the reader closes the connection only once it has had that.
            try:
                connection.send_bytes(body)
            except OSError:
                logger.debug("a letter could not be sent", exc_info=True)
                _shut(connection)
                return False
            self._changed.wait_for(
                lambda: self._connection is not connection or self._confirmed >= number,
                CONFIRM_SECONDS,
            )
            if self._connection is not connection:
                return False
            if self._confirmed < number:
                _shut(connection)
                return False
            return True

    def send_to_all(self, body: bytes) -> bool:
        return self.send("", body)

    def delete(self, box: str) -> None:
        pass  # it has gone with its client

    def stop(self) -> None:
        self._is_stopped.set()
        with self._changed:
            if self._connection is not None:
                _shut(self._connection)

    def join(self, timeout: float | None = None) -> bool:
        return self._reader.join(timeout)
