"""Forks, and the locks that they take: nobody waits for one with another in hand."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from helpers import DEADLINE
from prefork._system import at_fork

ROUNDS = 20


def fork() -> None:
    """As any program does."""
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def fork_as_pools_do() -> None:
    with at_fork.holding_logging():
        fork()


@pytest.fixture(params=[fork, fork_as_pools_do])
def forking(request: pytest.FixtureRequest) -> Iterator[Callable[[], threading.Thread]]:
    """Starts a thread that forks; it may have come as far as it can."""
    begun = threading.Event()
    threads: list[threading.Thread] = []

    def run() -> None:
        begun.set()
        request.param()

    def start() -> threading.Thread:
        begun.clear()
        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        assert begun.wait(DEADLINE)
        return threads[-1]

    yield start
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_who_has_loggings_lock_gets_the_guard(forking: Callable[[], threading.Thread]) -> None:
    lock = logging._lock  # type: ignore[attr-defined]
    for _ in range(ROUNDS):
        with lock:
            thread = forking()
            thread.join(0.001)
            assert at_fork._guard.acquire(timeout=DEADLINE)
            at_fork._guard.release()
        thread.join(DEADLINE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_who_has_the_guard_gets_loggings_lock(forking: Callable[[], threading.Thread]) -> None:
    lock = logging._lock  # type: ignore[attr-defined]
    for _ in range(ROUNDS):
        with at_fork.creating():
            thread = forking()
            thread.join(0.001)
            assert lock.acquire(timeout=DEADLINE)
            lock.release()
        thread.join(DEADLINE)


def test_many_fork_at_the_same_time() -> None:
    def run() -> None:
        for _ in range(10):
            fork_as_pools_do()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    for lock in (at_fork._guard, logging._lock):  # type: ignore[attr-defined]
        assert lock.acquire(timeout=DEADLINE)
        lock.release()


def test_an_interrupt_leaves_nothing_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when one lock is held, and not the other."""

    def interrupted(lock: object, held: list[object]) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(at_fork, "_hold", interrupted)
        with pytest.raises(KeyboardInterrupt), at_fork.holding_logging():
            raise AssertionError
    taken: list[bool] = []

    def take() -> None:
        with at_fork.creating():
            taken.append(True)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert taken == [True]


HELD_AT_THE_END = """
import gc, os, threading
from prefork._system import at_fork

held = threading.Event()

def hold():
    with at_fork.creating():
        held.set()
        threading.Event().wait()

class Kept:
    def __init__(self):
        with at_fork.creating():
            self.fds = at_fork.Descriptors(os.dup(0))

    def __del__(self, write=os.write):
        self.fds.close()
        write(1, b"closed")

gc.disable()  # until the end, when nothing else runs any more
kept = Kept()
kept.itself = kept
del kept
threading.Thread(target=hold, daemon=True).start()
held.wait()
"""


def test_a_thread_that_ends_with_the_guard_in_hand_does_not_hold_up_the_end_of_the_interpreter():
    run = subprocess.run(
        [sys.executable, "-c", HELD_AT_THE_END],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    assert (run.returncode, run.stdout) == (0, "closed"), run.stderr
