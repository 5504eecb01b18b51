"""No signal handler runs while a process is forked; no other thread writes a log message."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from helpers import DEADLINE, eventually
from prefork._system import at_fork, signals
from prefork._system.signals import Hold


@pytest.fixture
def other_thread() -> Iterator[int]:
    """One that the kernel can give signals to."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    assert thread.ident is not None
    yield thread.ident
    end.set()
    thread.join()


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """The signals that were handled; the handler of SIGUSR1 raises."""
    seen: list[int] = []

    def note(signum, frame):
        seen.append(signum)
        if signum == signal.SIGUSR1:
            raise KeyboardInterrupt

    before = {s: signal.signal(s, note) for s in (signal.SIGUSR1, signal.SIGUSR2)}
    yield seen
    for signum, handler in before.items():
        signal.signal(signum, handler)


def give(thread: int, *signums: int) -> None:
    """Have a thread take signals, so that Python wants to run their handlers in this one."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    try:
        for signum in signums:
            signal.pthread_kill(thread, signum)
            assert os.read(reader, 1) == bytes([signum])
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def test_what_another_thread_has_taken_is_handled_at_the_end(other_thread, handled):
    handler = signal.getsignal(signal.SIGUSR1)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    hold = Hold()
    hold.begin()
    give(other_thread, signal.SIGUSR1, signal.SIGUSR2)
    assert handled == []
    with pytest.raises(KeyboardInterrupt):
        hold.end()
    assert handled == [signal.SIGUSR1, signal.SIGUSR2]
    assert signal.getsignal(signal.SIGUSR1) is handler
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


def test_what_comes_to_this_thread_waits(handled):
    hold = Hold()
    hold.begin()
    os.kill(os.getpid(), signal.SIGUSR2)
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    assert handled == []
    with pytest.raises(KeyboardInterrupt):
        hold.end()
    eventually(lambda: sorted(handled) == [signal.SIGUSR1, signal.SIGUSR2], "both are handled")


def test_a_handler_that_could_not_be_put_back_is_called_all_the_same(other_thread, handled):
    hold = Hold()
    hold.begin()
    hold.end()
    signal.signal(signal.SIGUSR2, hold)
    signal.raise_signal(signal.SIGUSR2)
    assert handled == [signal.SIGUSR2]


def test_one_that_is_set_meanwhile_stays(other_thread, handled):
    hold = Hold()
    hold.begin()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    hold.end()
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN


def test_handlers_are_not_replaced_without_need(handled, monkeypatch):
    """One that is put back has lost what `signal.siginterrupt` has said."""
    monkeypatch.setattr(signals, "threads", lambda: 1)
    handler = signal.getsignal(signal.SIGUSR1)
    hold = Hold()
    hold.begin()
    try:
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        hold.end()


def test_threads_are_counted(other_thread):
    before = signals.threads()
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    eventually(lambda: signals.threads() == before + 1, "one more is counted")
    end.set()
    thread.join()


def in_thread(call):
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join(DEADLINE)
    return results[0]


def is_free(lock) -> bool:
    def look():
        if found := lock.acquire(blocking=False):
            lock.release()
        return found

    return in_thread(look)


@pytest.fixture
def handler() -> Iterator[logging.Handler]:
    handler = logging.StreamHandler()
    yield handler
    handler.close()


def test_nobody_writes_a_log_message_meanwhile(handler):
    with at_fork.holding_logging():
        assert not is_free(handler.lock)
    assert is_free(handler.lock)


def test_a_child_can_write_log_messages(handler):
    with at_fork.holding_logging():
        pid = os.fork()
    if not pid:
        free = is_free(handler.lock) and is_free(logging._lock)  # type: ignore[attr-defined]
        os._exit(0 if free else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert is_free(handler.lock)


def test_a_handler_that_is_stuck_is_not_waited_for(handler, monkeypatch):
    monkeypatch.setattr(at_fork, "LOCK_SECONDS", 0.001)
    assert handler.lock is not None
    entered, end = threading.Event(), threading.Event()

    def be_stuck():
        with handler.lock:
            entered.set()
            end.wait()

    thread = threading.Thread(target=be_stuck)
    thread.start()
    entered.wait()
    with at_fork.holding_logging():
        end.set()
    thread.join()
