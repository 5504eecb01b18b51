"""What takes messages may be slow, raise, or block: the rest goes on."""

from __future__ import annotations

import threading

import pytest

from helpers import DEADLINE
from prefork._observe import emitter
from prefork._observe.emitter import Emitter


class NoLog:
    def __init__(self):
        self.notes = []

    def note(self, level, text, *args, error=None):
        self.notes.append(text % args)


@pytest.fixture
def log():
    return NoLog()


def put(emitter, *calls):
    for call in calls:
        emitter.put(call, 10)
    emitter.wake()


def test_all_are_called_in_their_order(log):
    called, some = [], Emitter(log)
    for number in range(1000):
        put(some, lambda number=number: called.append(number))
    some.close()
    assert some.flush(None)
    assert called == list(range(1000))


def test_one_that_raises_is_told_of_once(log):
    called, some = [], Emitter(log)

    def fail():
        called.append(1)
        raise SystemExit("no")

    put(some, fail, fail, fail)
    some.close()
    assert some.flush(None)
    assert len(called) == 3
    assert len(log.notes) == 1


def test_what_is_too_much_is_dropped_and_counted(log, monkeypatch):
    monkeypatch.setattr(emitter, "MOST_BYTES", 10 * (emitter.OVERHEAD + 10) - 1)
    release, called, some = threading.Event(), [], Emitter(log)
    going = threading.Event()

    def hold():
        going.set()
        release.wait(DEADLINE)

    put(some, hold)
    assert going.wait(DEADLINE)
    put(some, *[lambda: called.append(1)] * 100)
    release.set()
    some.close()
    assert some.flush(None)
    assert len(called) == 9  # and the one that was being called
    assert log.notes == [
        f"{91} log records or lines of workers were dropped: what takes them is too slow"
    ]


def test_one_that_is_stuck_is_not_waited_for(log, monkeypatch):
    monkeypatch.setattr(emitter, "STUCK_SECONDS", 0.01)
    release, some = threading.Event(), Emitter(log)
    put(some, lambda: release.wait(DEADLINE))
    some.close()
    assert not some.flush(None)
    release.set()
    some._thread.join(DEADLINE)


def test_where_no_thread_can_be_started_the_end_calls_them(log, monkeypatch):
    called, some = [], Emitter(log)

    def refuse():
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(some._thread, "start", refuse)
    put(some, lambda: called.append(1))
    some.close()
    assert some.flush(None)
    assert called == [1]


def test_nothing_came(log):
    some = Emitter(log)
    some.close()
    assert some.flush(None)
