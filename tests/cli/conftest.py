"""Fixtures for the command `prefork`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import Prefork


@pytest.fixture
def prefork(tmp_path: Path) -> Iterator[Prefork]:
    runner = Prefork(tmp_path)
    yield runner
    runner.close()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def read_pids(fifo: Path) -> Iterator[Callable[[int], list[int]]]:
    """Waits for so many processes to write their pid to the fifo."""
    # Open for writing, too: there is always a writer, so no end of file.
    with open(os.open(fifo, os.O_RDWR), encoding="ascii") as file:
        yield lambda count: [int(file.readline()) for _ in range(count)]
