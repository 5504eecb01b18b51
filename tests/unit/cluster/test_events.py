"""What the client's thread is told of is handled, however much of it there is at once."""

from __future__ import annotations

import functools
import threading
from typing import Any

from helpers import DEADLINE
from prefork.cluster.carrier import MOST_AT_ONCE, LetterCarrier


class Post:
    """Carries nothing."""

    name = address = advice = ""
    is_lossy = True

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def delete(self, box: str) -> None: ...

    def send(self, box: str, body: bytes, told: Any = None) -> bool:
        return True

    def tell(self, box: str, body: bytes) -> bool:
        return True

    def tell_all(self, body: bytes) -> bool:
        return True

    def join(self, timeout: float | None = None) -> bool:
        return True


class Engine:
    """Has nothing to do."""

    def next_due(self) -> None: ...
    def run_due(self, now: float) -> None: ...
    def take(self) -> None: ...


def test_no_event_is_lost_when_many_wait():
    post: Any = Post()
    carrier = LetterCarrier("0" * 32, lambda *_: post, "json", 10, 10, 60, None)
    engine: Any = Engine()
    carrier._engine = engine
    handled: list[int] = []
    all_are = threading.Event()
    for number in range(2 * MOST_AT_ONCE + 1):
        carrier._events.put(functools.partial(handled.append, number))
    carrier._events.put(all_are.set)
    carrier._thread.start()
    assert all_are.wait(DEADLINE)
    assert handled == list(range(2 * MOST_AT_ONCE + 1))
    carrier.stop()
    assert carrier.join(DEADLINE)
