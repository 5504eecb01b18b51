"""Redis, RabbitMQ and a likeness of Amazon SQS, each started for one test run: on loopback, with a
port and a folder of its own, and stopped after it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

DEADLINE = 60.0
"""Seconds to start or to stop."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing() -> list[str]:
    """The server programs that are not installed."""
    programs = {"redis-server": "redis-server", "rabbitmq-server": "rabbitmq-server"}
    return [name for name, program in programs.items() if find(program) is None]


def find(program: str) -> str | None:
    return shutil.which(
        program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/lib/rabbitmq/bin"
    )


def epmd() -> str:
    """Erlang's name server is not on the PATH."""
    found = [*Path("/usr/lib/erlang").glob("erts-*/bin/epmd"), *Path("/usr/bin").glob("epmd")]
    if not found:
        raise RuntimeError("epmd is not installed: it comes with rabbitmq-server")
    return str(found[0])


class Guard:
    """Kills a process group when this process is gone, even by SIGKILL: a pipe ends then."""

    def __init__(self, group: int) -> None:
        self._process = subprocess.Popen(
            ["sh", "-c", 'read line; kill -KILL "-$0"', str(group)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """The group has ended; its number may become another's."""
        self._process.kill()
        self._process.communicate()


class Server:
    """A process in a session of its own, so that what it starts ends with it.

    Attributes:
        largest_message: that it takes, bytes; None: as many as it does by itself.
    """

    largest_message: int | None = None

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with (self.folder / f"{type(self).__name__}.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                env={**os.environ, **self.environment()},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._guard = Guard(self.process.pid)
        deadline = time.monotonic() + DEADLINE
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                text = (self.folder / f"{type(self).__name__}.log").read_text()
                raise RuntimeError(f"{type(self).__name__} does not start:\n{text[-4000:]}")
            time.sleep(0.05)

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def answers(self) -> bool:
        raise NotImplementedError

    def stop(self) -> None:
        """As an operator does it: in order."""
        if self.process is not None:
            self.process.terminate()
            self._reap()

    def kill(self) -> None:
        """All at once; connections break."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self._reap()

    def _reap(self) -> None:
        assert self.process is not None
        self.process.wait(DEADLINE)
        self._guard.dismiss()
        self.process = None

    def close(self) -> None:
        self.kill()


class Redis(Server):
    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        program = find("redis-server")
        assert program is not None
        largest = self.largest_message
        limit = () if largest is None else ("--proto-max-bulk-len", str(largest))
        return [
            *(program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
            *("--save", "", "--appendonly", "yes", "--appendfsync", "no"),  # outlives a restart
            *limit,
        ]

    def cut_connections(self) -> None:
        """Close the connections of all clients."""
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            for kind in (b"normal", b"pubsub"):
                connection.sendall(b"CLIENT KILL TYPE " + kind + b" SKIPME yes\r\n")
                connection.recv(64)

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


class SQS(Server):
    """Amazon's queues, as a server that imitates them."""

    @property
    def url(self) -> str:
        return f"sqs://key:secret@127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


class RabbitMQ(Server):
    """Without plugins. It has a name server of its own: one that it starts would outlive it."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self._epmd_port, self._dist_port = free_port(), free_port()
        self._epmd = subprocess.Popen(
            [epmd(), "-port", str(self._epmd_port), "-address", "127.0.0.1"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._epmd_guard = Guard(self._epmd.pid)
        try:
            super().__init__(folder, port)
        except BaseException:
            self._stop_epmd()
            raise

    def _stop_epmd(self) -> None:
        self._epmd.kill()
        self._epmd.wait()
        self._epmd_guard.dismiss()

    def close(self) -> None:
        self.kill()
        self._stop_epmd()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def command(self) -> list[str]:
        # Not the wrapper in /usr/sbin, which changes to a user of its own.
        for program in ("/usr/lib/rabbitmq/bin/rabbitmq-server", find("rabbitmq-server")):
            if program and os.path.exists(program):
                return [program]
        raise RuntimeError("rabbitmq-server is not installed")

    def environment(self) -> dict[str, str]:
        folder = self.folder
        largest = self.largest_message
        limit = "" if largest is None else f"max_message_size = {largest}\n"
        (folder / "enabled_plugins").write_text("[].")
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "loopback_users.guest = true\n"
            "vm_memory_high_watermark.relative = 0.2\n"
            "disk_free_limit.absolute = 1MB\n"
            f"{limit}"
        )
        return {
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"prefork{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 -kernel inet_dist_use_interface "
            "{127,0,0,1}",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(connection.recv(8))
        except OSError:
            return False
