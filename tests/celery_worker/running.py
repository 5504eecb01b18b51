"""A real celery worker in a process of its own, and a client of its broker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
from celery import Celery
from celery.exceptions import TimeoutError
from celery.result import AsyncResult
from servers import Guard

from helpers import DEADLINE, eventually, workers_of

HERE = Path(__file__).resolve().parent
CELERY = tuple(int(part) for part in celery.__version__.split(".")[:2])
POOL = "prefork.celery:TaskPool"
INHERITED = list(filter(None, [os.environ.get("PYTHONPATH")]))
"""Where this very test run has its modules from, if it was told."""


class Client:
    """Sends tasks to one queue, and gets their results from Redis."""

    def __init__(self, broker: str, backend: str, queue: str, project: str = "project") -> None:
        self.queue = queue
        self.project = project
        self._urls = broker, backend
        self.reconnect()

    def reconnect(self) -> None:
        """Start anew, without the connections that were kept."""
        broker, backend = self._urls
        self.app = Celery("client", broker=broker, backend=backend, set_as_current=False, fixups=[])
        self.app.conf.broker_connection_retry_on_startup = True
        # kombu shares connections between all that have the same settings.
        self.app.conf.broker_transport_options = {"client": uuid.uuid4().hex}

    def send(self, name: str, *args: Any, **options: Any) -> AsyncResult[Any]:
        return self.app.send_task(f"{self.project}.{name}", args, queue=self.queue, **options)

    def run(self, name: str, *args: Any, **options: Any) -> Any:
        return self.get(self.send(name, *args, **options))

    def get(self, result: AsyncResult[Any]) -> Any:
        result.ready()  # looks; if it is here, to wait for it would take celery 5.3 a second
        return result.get(timeout=DEADLINE, interval=0.02)

    def outcome(self, result: AsyncResult[Any]) -> Any:
        """The result, or the exception."""
        try:
            return self.get(result)
        except Exception as exc:
            return exc

    def close(self) -> None:
        self.app.backend.remove_pending_result = lambda *args: None
        with contextlib.suppress(Exception):
            self.app.backend.result_consumer.stop()
        self.app.close()


class Worker(Client):
    """A worker, and the client that sends to it."""

    def __init__(
        self,
        broker: str,
        backend: str,
        folder: Path,
        *options: str,
        settings: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        pool: str | None = POOL,
        concurrency: int | None = 2,
        queue: str | None = None,
        project: str = "project",
        ready: bool = True,
    ) -> None:
        self.name = uuid.uuid4().hex[:8]
        super().__init__(broker, backend, queue or f"queue-{self.name}", project)
        self.node = f"{self.name}@test"
        self.marks = folder / f"marks-{self.name}"
        self.marks.mkdir()
        self.log_file = folder / f"worker-{self.name}.log"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", project, "worker"),
                    *("-n", self.node, "-Q", self.queue, "-l", "INFO"),
                    *(("-P", "custom") if pool else ()),
                    *(("-c", str(concurrency)) if concurrency else ()),
                    *("--without-mingle", "--without-gossip"),
                    *options,
                ],
                env={
                    **os.environ,
                    **({"CELERY_CUSTOM_WORKER_POOL": pool} if pool else {}),
                    "PROJECT_BROKER": broker,
                    "PROJECT_BACKEND": backend,
                    "PROJECT_SETTINGS": json.dumps(settings or {}),
                    "PROJECT_MARKS": str(self.marks),
                    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *INHERITED]),
                    "PYTHONUNBUFFERED": "1",
                    **(env or {}),
                },
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._guard = Guard(self.process.pid)
        if ready:
            self.logged(" ready.")

    # ---- what it says and does

    @property
    def log(self) -> str:
        # The others: with the options --logfile tasks-%i.log and --logfile tasks%I.log
        files = (
            self.log_file,
            *self.log_file.parent.glob("tasks-0.log"),
            *self.log_file.parent.glob("tasks.log"),
        )
        return "".join(file.read_text() for file in files)

    def logged(self, text: str, times: int = 1) -> str:
        """Wait until the log has this text so often."""

        def look() -> bool:
            if self.log.count(text) >= times:
                return True
            if self.process.poll() is not None:
                raise AssertionError(f"the worker has ended ({self.process.poll()})\n{self.log}")
            return False

        with self.log_on_failure():
            eventually(look, f"the log of {self.node} says {text!r}")
        return self.log

    def get(self, result: AsyncResult[Any]) -> Any:
        with self.log_on_failure():
            return super().get(result)

    @contextlib.contextmanager
    def log_on_failure(self) -> Iterator[None]:
        try:
            yield
        except (AssertionError, TimeoutError) as exc:
            exc.add_note(self.log[-5000:])
            raise

    def noted(self, event: str) -> list[str]:
        """What the project's signal handlers have noted."""
        file = self.marks / event
        return file.read_text().splitlines() if file.exists() else []

    @property
    def workers(self) -> list[int]:
        return workers_of(self.process.pid)

    def control(self, command: str, **arguments: Any) -> Any:
        """A remote control command; the worker's answer."""
        replies = self.app.control.broadcast(
            command,
            arguments=arguments,
            destination=[self.node],
            reply=True,
            timeout=DEADLINE,
            limit=1,
        )
        assert replies, self.log
        return replies[0][self.node]

    @property
    def stats(self) -> dict[str, Any]:
        return self.control("stats")["pool"]  # type: ignore[no-any-return]

    # ---- its end

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(signum)
        return self.ended()

    def ended(self) -> int:
        """Wait for its end: its exit code. Nothing may be left."""
        with self.log_on_failure():
            eventually(lambda: self.process.poll() is not None, f"{self.node} ends")
            eventually(lambda: not self.leftovers(), f"{self.node} leaves nothing")
        return self.process.returncode

    def leftovers(self) -> list[int]:
        """The processes of its session: it, its workers, and what tasks have started. (A process
        title overwrites what /proc tells of the environment.)"""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, _, _, session, *_ = (folder / "stat").read_text().rpartition(") ")[2].split()
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(folder.name))
        return found

    def kill(self) -> None:
        deadline = time.monotonic() + DEADLINE
        while (left := self.leftovers()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._guard.dismiss()

    def close(self) -> None:
        self.kill()
        super().close()
