"""Locks, and signal handlers that raise."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import prefork
from helpers import DEADLINE
from prefork._system import locks

KINDS = [locks.Lock, locks.RLock, locks._SafeLock, locks._SafeRLock]


class Interrupt(BaseException):
    pass


def can_be_taken_elsewhere(lock):
    found = []
    thread = threading.Thread(target=lambda: found.append(lock.acquire(timeout=0)))
    thread.start()
    thread.join(DEADLINE)
    return found == [True]


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch):
    """Calls a function again and again, until it is interrupted."""
    armed = False

    def handler(*_: object) -> None:
        nonlocal armed
        if armed:  # only once
            armed = False
            raise Interrupt

    def repeat(function: Callable[[], None]) -> None:
        nonlocal armed
        armed = True
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-4))
        while armed:
            function()

    def call(function: Callable[[], None]) -> None:
        # The loop is in a function of its own: its jump need not be within a `try` around it.
        with contextlib.suppress(Interrupt):
            repeat(function)

    before = signal.signal(signal.SIGALRM, handler)
    yield call
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_no_others_are_used():
    for path in Path(prefork.__file__).parent.rglob("*.py"):
        # (A `Condition` takes its own one after the other, without `with`.)
        if path.name not in ("locks.py", "condition.py"):
            assert not re.search(r"threading\.R?Lock\b", path.read_text()), path


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_that_is_held_is_held(kind):
    lock = kind()
    with lock as taken:
        assert taken
        assert not can_be_taken_elsewhere(lock)
    assert can_be_taken_elsewhere(lock)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_is_released_by_an_error(kind):
    lock = kind()
    with pytest.raises(LookupError), lock:
        raise LookupError
    assert can_be_taken_elsewhere(lock)


@pytest.mark.parametrize("kind", [locks.RLock, locks._SafeRLock])
def test_a_reentrant_lock(kind):
    lock = kind()
    with lock:
        with lock:
            pass
        assert lock._is_owned()
        assert not can_be_taken_elsewhere(lock)
    assert not lock._is_owned()


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_raises_leaves_no_lock_behind(kind, interrupted):
    for _ in range(300):
        lock = kind()

        def use(lock=lock):
            with lock:
                pass

        interrupted(use)
        assert can_be_taken_elsewhere(lock)


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_raises_while_the_lock_is_waited_for(kind, interrupted):
    lock = kind()
    held, done = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            done.wait(DEADLINE)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(DEADLINE)

    def use():
        with lock:
            pytest.fail("another thread has it")

    interrupted(use)
    done.set()
    thread.join(DEADLINE)
    assert can_be_taken_elsewhere(lock)
