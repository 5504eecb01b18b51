"""How letters travel: through the broker that celery's application names, by kombu.

One thread reads, another one (whoever owns this) writes, each with a connection of its own; both
connect again as long as it takes. Messages are read without acknowledgement: what is lost is sent
again by those who write, and nothing is ever delivered again by the broker.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.transport import virtual

from prefork._system.threads import BackgroundThread
from prefork.cluster.posting import OnConnection, OnLetter, Told

__all__ = ["BrokerPost"]

logger = logging.getLogger("prefork")

CONNECT_SECONDS: Final = 4.0
PAUSE: Final = 0.3  # seconds between two attempts to connect
LOOK_SECONDS: Final = 1.0  # between two looks at whether to go on, and at heartbeats
KEPT_SECONDS: Final = 60.0  # that a broker keeps a queue which nobody reads, if it can
# A connection whose network is cut, without a word of that, is noticed by the kernel within 25 s.
KEEPALIVE: Final = {
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
}
UNANSWERED_MILLISECONDS: Final = 25_000
CONTENT_TYPE: Final = "application/x-prefork-letter"


class BrokerPost:
    """
    Args:
        app: the celery application.
        name: of the queue that is read.
        group: of nodes; all of them get what is sent there.
        member: None: a client, which sends to the group; or a name that no other node has.
        receive: called with each letter's bytes, in the reading thread.
        on_connection: called there with whether there is a connection now, and why not.
    """

    is_lossy = True

    def __init__(
        self,
        app: Any,
        name: str,
        group: str,
        member: str | None,
        receive: OnLetter,
        on_connection: OnConnection,
    ) -> None:
        self._app = app
        self.name = name
        self._group = group
        self._exchange = Exchange(f"prefork.{group}", type="fanout", durable=True)
        kept = {"durable": True, "expires": KEPT_SECONDS}
        self._queues = [Queue(name, **kept)]
        if member is not None:
            inbox = f"prefork.hello.{group}.{member}"
            self._queues.append(Queue(inbox, self._exchange, **kept))
        self._receive = receive
        self._on_connection = on_connection
        self._is_stopped = threading.Event()
        self._reader = BackgroundThread(self._read, "prefork-Post")
        self._writing: Any = None  # a connection
        self._producer: Any = None
        self._next_try = 0.0

    # ---- connections

    def _connect(self) -> Connection:
        connection = self._app.connection_for_write()
        options = {
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": CONNECT_SECONDS * 3,
            "confirm_publish": True,
            "read_timeout": None,
            "write_timeout": CONNECT_SECONDS * 3,
            "socket_settings": KEEPALIVE,  # of RabbitMQ's; these are of Redis'
            "socket_keepalive": True,
            "socket_keepalive_options": {
                **KEEPALIVE,
                socket.TCP_USER_TIMEOUT: UNANSWERED_MILLISECONDS,
            },
        }
        transport = connection.transport_options or {}
        connection.transport_options = {**options, **transport, "confirm_publish": True}
        connection.connect_timeout = CONNECT_SECONDS
        return connection

    @property
    def address(self) -> str:
        return f"the broker {self._app.connection_for_write().as_uri()}"

    @property
    def advice(self) -> str:
        return (
            "start one that calls prefork.celery.serve and consumes the queue "
            f"{self._group!r} (celery worker -Q {self._group})"
        )

    def start(self) -> None:
        self._reader.start()

    def _read(self) -> None:
        while not self._is_stopped.is_set():
            error: Exception | None = None
            try:
                with self._connect() as connection:
                    self._read_by(connection)
            except Exception as exc:  # what the libraries of brokers raise has no common class
                error = exc
                logger.debug("the connection to the broker is lost", exc_info=True)
            if not self._is_stopped.is_set():
                self._on_connection(False, error)
                self._is_stopped.wait(PAUSE)

    def _read_by(self, connection: Any) -> None:
        connection.connect()
        consumer = Consumer(
            connection.channel(), self._queues, on_message=self._on_message, no_ack=True
        )
        consumer.consume()
        self._on_connection(True, None)
        next_beat = time.monotonic()
        while not self._is_stopped.is_set():
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=LOOK_SECONDS)
            if (now := time.monotonic()) >= next_beat:
                next_beat = now + LOOK_SECONDS
                connection.heartbeat_check()

    def _on_message(self, message: Any) -> None:
        body = message.body
        self._receive(body.encode() if isinstance(body, str) else bytes(body))

    # ---- writing; for one thread

    def send(self, queue: str, body: bytes, told: Told | None = None) -> bool:
        """Whether the broker has it."""
        has_it = self._publish(body, routing_key=queue) and self._do(lambda: self._limit(queue))
        if told is not None:
            told(has_it)
        return has_it

    def tell(self, queue: str, body: bytes) -> bool:
        return self.send(queue, body)

    def _limit(self, queue: str) -> None:
        """In Redis a queue is a list, which would be there for ever if nobody reads it any more."""
        channel = self._producer.channel
        if hasattr(channel, "conn_or_acquire"):
            with channel.conn_or_acquire() as client:
                client.pexpire(queue, int(KEPT_SECONDS * 1000))

    def tell_all(self, body: bytes) -> bool:
        """To all nodes of the group."""
        return self._publish(body, exchange=self._exchange, declare=[self._exchange])

    def delete(self, queue: str) -> None:
        """A queue of somebody who has gone, with all that is left in it."""
        self._do(lambda: self._delete(queue))

    def _delete(self, queue: str) -> None:
        channel = self._producer.channel
        if isinstance(channel, virtual.Channel):  # there a queue is what is in it
            channel.queue_purge(queue)
        else:
            channel.queue_delete(queue)

    def _publish(self, body: bytes, **where: Any) -> bool:
        return self._do(
            lambda: self._producer.publish(
                body,
                content_type=CONTENT_TYPE,
                content_encoding="binary",
                delivery_mode=1,
                retry=False,
                timeout=CONNECT_SECONDS * 3,
                **where,
            )
        )

    def _do(self, call: Callable[[], object]) -> bool:
        if self._producer is None and not self._begin_writing():
            return False
        try:
            call()
        except Exception:
            logger.debug("a letter could not be sent", exc_info=True)
            self._end_writing()
            return False
        return True

    def _begin_writing(self) -> bool:
        now = time.monotonic()
        if now < self._next_try:
            return False
        try:
            self._writing = self._connect()
            self._writing.heartbeat = 0  # nobody would see to that while nothing is written
            self._writing.connect()
            self._producer = Producer(self._writing.channel(), auto_declare=False)
        except Exception:
            logger.debug("the broker cannot be reached", exc_info=True)
            self._end_writing()
        return self._producer is not None

    def _end_writing(self) -> None:
        writing, self._writing, self._producer = self._writing, None, None
        self._next_try = time.monotonic() + PAUSE
        if writing is not None:
            try:
                writing.collect()
            except Exception:
                logger.debug("a broken connection could not be closed", exc_info=True)

    # ---- the end

    def stop(self) -> None:
        """Read no more, and leave nothing behind; to be called by who writes."""
        self._is_stopped.set()
        self.send(self.name, b"")  # have the reader look
        if self._reader.join(2 * LOOK_SECONDS):
            self.delete(self.name)
        self._end_writing()

    def join(self, timeout: float | None = None) -> bool:
        return self._reader.join(timeout)
