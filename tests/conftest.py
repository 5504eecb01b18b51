"""Fixtures for tests with real processes."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from typing import Any

import pytest

from gate import Gate
from helpers import METHODS, Script
from prefork import Pool
from promises import spelled_out

# What the modules of tests import. Else each child of the fork server would do so anew, in its
# first task, within that task's time limit.
multiprocessing.set_forkserver_preload(["__main__", "pytest", "prefork.pool", "helpers", "gate"])


def pytest_configure(config: pytest.Config) -> None:
    """Promises are chosen by their numbers: `-m "promise(3)"`."""
    config.option.markexpr = spelled_out(config.option.markexpr)
    config.stash[STDERR] = os.dup(2)  # while pytest does not read what is written there
    # A shell ignores Ctrl-C for what runs in its background, and so would all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


STDERR = pytest.StashKey[int]()

TIMERS: dict[str, threading.Timer] = {}


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """A test that is over its time says where it is; pytest-timeout's own words are lost when
    tests run several at once."""
    timer = TIMERS[item.nodeid] = threading.Timer(settings.timeout, _is_over_time, (item,))
    timer.daemon = True
    timer.start()
    return True


def pytest_timeout_cancel_timer(item: pytest.Item) -> bool:
    if (timer := TIMERS.pop(item.nodeid, None)) is not None:  # a test that fails comes here twice
        timer.cancel()
    return True


def _is_over_time(item: pytest.Item) -> None:
    stderr = item.config.stash[STDERR]
    os.write(stderr, f"\nover its time: {item.nodeid}\n".encode())
    faulthandler.dump_traceback(stderr, all_threads=True)
    os._exit(1)


@pytest.fixture(params=METHODS)
def context(request: pytest.FixtureRequest) -> BaseContext:
    """Each start method in turn."""
    return multiprocessing.get_context(request.param)


@pytest.fixture
def make_pool() -> Iterator[Callable[..., Pool]]:
    """Makes pools that are terminated after the test."""
    pools: list[Pool] = []

    def make(*args: Any, pool_class: type[Pool] = Pool, **kwargs: Any) -> Pool:
        pools.append(pool_class(*args, **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        pool.terminate()


@pytest.fixture(autouse=True)
def _signals_come_through() -> Iterator[None]:
    """What blocks signals for a while lets them through again: else Ctrl-C is deaf from then on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.fixture
def without_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed; in workers that are forked, too."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    monkeypatch.delitem(sys.modules, "prefork._ipc.by_value", raising=False)


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """Start scripts that are killed after the test."""
    scripts: list[Script] = []

    def start(source: str, *args: object) -> Script:
        scripts.append(Script(source, *args))
        return scripts[-1]

    yield start
    for each in scripts:
        each.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Tasks wait at it until their test lets them go."""
    with Gate() as gate:
        yield gate
