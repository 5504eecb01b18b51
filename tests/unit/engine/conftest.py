"""A pool's parts on fakes, for each test anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fakes import TIMED, Clock, FakePool, Nursery, fork_options


@pytest.fixture(autouse=True)
def nothing_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test in here starts a process or a thread."""

    def refuse(*args: object) -> None:
        raise AssertionError("a unit test of the engine starts a process or a thread")

    monkeypatch.setattr("os.fork", refuse)
    monkeypatch.setattr("threading.Thread.start", refuse)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of all parts."""
    clock = Clock()
    for name in (*TIMED, "drivers", "loop_driver"):
        monkeypatch.setattr(f"prefork._engine.{name}.time", clock)
    return clock


@pytest.fixture
def nursery(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nursery]:
    """Where the spawner's workers come from."""
    nursery = Nursery()
    monkeypatch.setattr("prefork._engine.starts.Channel", nursery.channel)
    monkeypatch.setattr("prefork._engine.starts.Child", nursery.child)
    yield nursery
    nursery.close()


@pytest.fixture
def make(clock: Clock, nursery: Nursery) -> Iterator[Callable[..., FakePool]]:
    """Makes pools: `make(processes, **options)`."""
    pools: list[FakePool] = []
    for_parts = ("cpus", "memory_interval", "in_background", "pausing")

    def make(processes: int = 2, **options: Any) -> FakePool:
        parts = {name: options.pop(name) for name in for_parts if name in options}
        pools.append(FakePool(clock, nursery, fork_options(processes, **options), **parts))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def pool(make: Callable[..., FakePool]) -> FakePool:
    """One without workers."""
    return make()
