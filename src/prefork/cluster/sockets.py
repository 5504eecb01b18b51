"""Letters between one client and its own nodes, by TCP: the client listens (`Hub`), nodes connect
(`Spoke`), and connect again as long as somebody listens. For what goes over a connection see
`lines.py`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

from prefork._system import at_fork
from prefork._system.locks import Lock
from prefork._system.threads import BackgroundThread
from prefork.cluster.lines import (
    Line,
    answer,
    challenge,
    prepared,
    shut,
)
from prefork.cluster.posting import OnConnection, OnLetter, Told

__all__ = ["Address", "Hub", "Spoke"]

logger = logging.getLogger("prefork")

CONNECT_SECONDS: Final = 4.0
PAUSE: Final = 0.3  # seconds between two attempts to connect
REFUSED_SECONDS: Final = 1.0  # after so long nobody listens there, who has been refused all along
GOODBYE_SECONDS: Final = 0.5  # that nodes have to go when they are told to
MOST_NAME: Final = 100  # bytes
_NO_ACCESS: Final = (AuthenticationError, AssertionError)
MOST_STRANGERS: Final = 64  # connections of which it is not known yet whose they are


class Address(NamedTuple):
    """Where a client listens, and the key to it."""

    host: str
    port: int
    key: bytes


def _send_by(line: Line | None, body: bytes, told: Told | None) -> bool:
    if line is not None:
        return line.send(body, told)
    if told is not None:
        told(False)
    return False


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

    is_lossy = False

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
        self._members: dict[str, Line] = {}  # by box
        self._strangers: dict[BackgroundThread, None] = {}  # the oldest first
        self._greeting = b""  # what all were told last, for those who come
        self._is_stopped = False
        self._accepter = BackgroundThread(self._accept, "prefork-Hub")
        self._ender = BackgroundThread(self._see_off, "prefork-Hub-End")

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
            if not self._make_room() or self._is_stopped:
                sock.close()  # a node comes again
                continue
            try:
                self._attend(prepared(sock))
            except (OSError, RuntimeError):  # it has gone already; or there is no thread left
                logger.warning("a connection could not be attended to", exc_info=True)
        at_fork.unregister(self)
        self._listener.close()

    def _make_room(self) -> bool:
        """For one more stranger: the oldest is sent away. Whether there is room."""
        with self._lock:
            if len(self._strangers) >= MOST_STRANGERS:
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                shut(self._readers[oldest])
            return len(self._readers) - len(self._members) < 2 * MOST_STRANGERS

    def _attend(self, connection: Connection) -> None:
        reader = BackgroundThread(lambda: self._read(connection, reader), "prefork-Reader")
        with self._lock:
            self._readers[reader] = connection
            self._strangers[reader] = None
        try:
            reader.start()
        except RuntimeError:
            self._forget(reader)
            raise

    def _forget(self, reader: BackgroundThread) -> None:
        with self._lock:  # nobody shuts what has its number then
            self._strangers.pop(reader, None)
            self._readers.pop(reader).close()

    def _read(self, connection: Connection, reader: BackgroundThread) -> None:
        try:
            if (box := self._box_of(connection)) is not None:
                with self._lock:
                    self._strangers.pop(reader, None)
                self._read_member(box, Line(connection))
        except (OSError, EOFError, ValueError, RuntimeError):  # (there may be no thread left)
            logger.debug("a connection has ended", exc_info=True)
        finally:
            self._forget(reader)

    def _box_of(self, connection: Connection) -> str | None:
        try:
            challenge(connection, self.where.key)
            return connection.recv_bytes(MOST_NAME).decode("ascii")
        except _NO_ACCESS:
            logger.warning("somebody without the key has tried to connect as a node")
            return None

    def _read_member(self, box: str, line: Line) -> None:
        try:
            line.start()
            with self._lock:
                if self._is_stopped:
                    line.dismiss()
                if (old := self._members.get(box)) is not None:
                    shut(old.connection)
                self._members[box] = line
                if self._greeting:
                    line.tell(self._greeting)
            self._on_connection(True, None, box)
            line.read(self._receive)
        finally:
            with self._lock:
                if self._members.get(box) is line:
                    del self._members[box]
            line.end()

    # ---- writing

    def send(self, box: str, body: bytes, told: Told | None = None) -> bool:
        with self._lock:
            line = self._members.get(box)
        return _send_by(line, body, told)

    def tell(self, box: str, body: bytes) -> bool:
        with self._lock:
            line = self._members.get(box)
        return line is not None and line.tell(body)

    def tell_all(self, body: bytes) -> bool:
        with self._lock:
            self._greeting = body
            lines = list(self._members.values())
        for line in lines:
            line.tell(body)
        return True

    def delete(self, box: str) -> None:
        pass  # what is in it goes with its connection

    # ---- the end

    def stop(self) -> None:
        with self._lock:
            self._is_stopped = True
            lines = list(self._members.values())
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if not self._accepter.is_started:
            at_fork.unregister(self)
            self._listener.close()
        for line in lines:
            line.dismiss()
        try:
            self._ender.start()
        except RuntimeError:  # there is no thread left
            self._see_off()
        self._end()

    def _see_off(self) -> None:
        """Wait for the nodes to go; not for one that does not read."""
        deadline = time.monotonic() + GOODBYE_SECONDS
        with self._lock:
            readers = dict(self._readers)
        for reader in readers:
            reader.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            for connection in self._readers.values():
                shut(connection)

    def join(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            threads = [self._accepter, self._ender, *self._readers]
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
        on_gone: called when the client has gone, or does not want this node any more.
    """

    is_lossy = False

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
        self._lock = Lock()
        self._line: Line | None = None
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
        last = time.monotonic()  # that there was a connection
        refused_since: float | None = None
        while not self._is_stopped.is_set():
            error: Exception | None = None
            try:
                line = self._connect()
                if self._read_by(line):
                    self._on_gone()
                    return
                last = time.monotonic()
            except (OSError, EOFError, ValueError, *_NO_ACCESS, RuntimeError) as exc:
                error = exc
                logger.debug("the client cannot be reached", exc_info=True)
            if self._is_stopped.is_set():
                return
            self._on_connection(False, error)
            now = time.monotonic()
            if not isinstance(error, (ConnectionRefusedError, AuthenticationError)):
                refused_since = None
            elif refused_since is None:
                refused_since = now
            is_refused = refused_since is not None and now > refused_since + REFUSED_SECONDS
            if is_refused or now > last + self._patience:
                self._on_gone()
                return
            self._is_stopped.wait(PAUSE)

    def _connect(self) -> Line:
        host, port, key = self._where
        connection = prepared(socket.create_connection((host, port), CONNECT_SECONDS))
        try:
            answer(connection, key)
            connection.send_bytes(self.name.encode("ascii"))
            line = Line(connection)
            line.start()
        except BaseException:
            connection.close()
            raise
        return line

    def _read_by(self, line: Line) -> bool:
        """Whether this node is not wanted any more."""
        with self._lock:
            self._line = line
        try:
            if self._is_stopped.is_set():
                line.finish()
            self._on_connection(True, None)
            line.read(self._receive)
        except (OSError, EOFError, ValueError):
            logger.debug("the connection to the client has ended", exc_info=True)
        finally:
            with self._lock:
                self._line = None
            line.end()
            line.connection.close()
        return line.is_dismissed

    # ---- writing

    def send(self, box: str, body: bytes, told: Told | None = None) -> bool:
        with self._lock:
            line = self._line
        return _send_by(line, body, told)

    def tell(self, box: str, body: bytes) -> bool:
        with self._lock:
            line = self._line
        return line is not None and line.tell(body)

    def tell_all(self, body: bytes) -> bool:
        return self.tell("", body)

    def delete(self, box: str) -> None:
        pass  # it has gone with its client

    def stop(self) -> None:
        self._is_stopped.set()
        with self._lock:
            if self._line is not None:
                self._line.finish()  # the client closes it when it has read all

    def join(self, timeout: float | None = None) -> bool:
        return self._reader.join(timeout)
