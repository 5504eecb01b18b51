"""Servers, once for each test run and process of it; workers, once for each test or module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("celery")

from running import Worker
from servers import RabbitMQ, Redis, Server, missing

Start = Callable[..., Worker]


SECONDS = 300
"""Each event has a deadline of its own; a test may wait for several, and for servers to start."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.timeout(SECONDS))
    if names := missing():
        reason = f"not installed: {', '.join(names)}"
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with contextlib.closing(Redis(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    with contextlib.closing(RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))) as server:
        yield server


def backend_of(redis: Redis) -> str:
    return f"redis://127.0.0.1:{redis.port}/1"


@pytest.fixture(scope="module")
def start_shared(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts workers that live as long as the module's tests."""
    with starter(redis, tmp_path_factory.mktemp("shared")) as start:
        yield start


@pytest.fixture
def start_worker(redis: Redis, tmp_path: Path) -> Iterator[Start]:
    """Starts workers that are killed after the test."""
    with starter(redis, tmp_path) as start:
        yield start


@contextlib.contextmanager
def starter(redis: Redis, folder: Path) -> Iterator[Start]:
    workers: list[Worker] = []

    def start(*options: str, broker: Server | str = redis, **kwargs: Any) -> Worker:
        url = broker if isinstance(broker, str) else broker.url  # type: ignore[attr-defined]
        workers.append(Worker(url, backend_of(redis), folder, *options, **kwargs))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> Server:
    """Each of the brokers that have celery's event loop."""
    server: Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture(scope="module")
def worker(start_shared: Start) -> Worker:
    """A worker for all tests of the module; none may leave it changed."""
    return start_shared()
