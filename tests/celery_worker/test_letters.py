"""Letters that get lost, come twice, or wait: what is numbered is read once, in order."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.cluster.letters import AGAIN_SECONDS, Letter, Link, written


class Writing:
    """As a post that is told what has become of a letter."""

    def __init__(self, write: Callable[[bytes], bool], is_lossy: bool = True) -> None:
        self._write = write
        self.is_lossy = is_lossy

    def send(self, box: str, body: bytes, told: object = None) -> bool:
        return self._write(body)

    def tell(self, box: str, body: bytes) -> bool:
        return self._write(body)


def linked(write: Callable[[bytes], bool]) -> Link:
    """What is sent and what is told go the same way, as over a broker."""
    return Link("s", Writing(write), "box")


@given(st.integers(0, 30), st.integers(0, 30), st.integers())
def test_two_sides_and_a_bad_broker(here, there, seed):
    chance = random.Random(seed)
    queues = deque(), deque()
    reading = [True]

    def sender(queue):
        def send(body):
            if reading and chance.random() < 0.3:
                return chance.random() < 0.5  # it is lost, and that may be known or not
            queue.append(body)
            if reading and chance.random() < 0.2:
                queue.append(body)
            return True

        return send

    links = [linked(sender(queue)) for queue in queues]
    read = [], []
    left = [list(range(here)), list(range(there))]
    now = 0.0
    for step in range(400):
        if step == 300:
            reading.clear()  # from now on it is a good one
        now += AGAIN_SECONDS / 2
        for side, link in enumerate(links):
            if left[side]:
                link.send("x", {"value": left[side].pop(0)}, now)
            link.tell("renew", {})
            link.send_again(now)
            inbox = queues[1 - side]
            while inbox and (not reading or chance.random() < 0.8):
                letter = Letter.read(inbox.popleft())
                if link.heed(letter, now) and letter.kind == "x":
                    read[side].append(letter.head["value"])
    assert read == (list(range(there)), list(range(here)))


def test_it_is_known_that_something_is_missing():
    """Though what has come since needed no number."""
    queue: list[bytes] = []
    here = linked(lambda body: not queue.append(body))
    there = linked(lambda body: True)
    here.tell("renew", {})
    assert there.heed(Letter.read(queue.pop()), 0.0)
    assert not there.is_behind
    here.send("report", {}, 0.0)
    lost = queue.pop()
    here.tell("renew", {})
    assert there.heed(Letter.read(queue.pop()), 0.0)
    assert there.is_behind
    assert there.heed(Letter.read(lost), 0.0)
    assert not there.is_behind


def test_what_is_on_its_way_is_not_missing_where_nothing_is_lost():
    """A lease is renewed while a large report comes slowly."""
    queue: list[bytes] = []
    post = Writing(lambda body: not queue.append(body), is_lossy=False)
    here = Link("s", post, "there")
    there = Link("s", post, "here")
    for kind in ("first", "second"):
        here.send(kind, {}, 0.0)
    first, second = queue
    here.tell("renew", {})
    assert there.heed(Letter.read(queue.pop()), 0.0)
    assert not there.is_behind
    assert not there.heed(Letter.read(second), 0.0)  # the first was on another connection
    assert there.is_behind
    assert there.heed(Letter.read(first), 0.0)
    assert there.heed(Letter.read(second), 0.0)
    assert not there.is_behind


def test_a_letter_that_is_too_large_for_the_broker():
    """What is sent in its place has its number, so that what follows can be read."""
    read = []

    def send(body: bytes) -> bool:
        if len(body) > 100_000:
            return False
        letter = Letter.read(body)
        if there.heed(letter, now):
            read.append(letter.kind)
        return True

    here, there = linked(send), linked(lambda body: True)
    now = 0.0
    assert not here.send("large", {}, now, ["x" * 200_000], lambda: ("nothing", {}, ()))
    assert here.send("small", {}, now)
    for _ in range(10):
        here.tell("renew", {})
        now += AGAIN_SECONDS
        here.send_again(now)
    assert [kind for kind in read if kind != "renew"][:2] == ["nothing", "small"]


def test_nothing_is_too_large_where_there_is_no_broker():
    """What could not be sent there had no connection, whatever has gone through since."""
    post = Writing(lambda body: len(body) < 100_000, is_lossy=False)
    here = Link("s", post, "there")
    here.send("large", {}, 0.0, ["x" * 200_000], lambda: pytest.fail("it is not"))
    for step in range(10):
        here.tell("renew", {})
        here.send_again(step * AGAIN_SECONDS)


def test_while_nothing_can_be_sent_nothing_is_too_large():
    here = linked(lambda body: False)
    here.send("large", {}, 0.0, ["x" * 200_000], lambda: pytest.fail("it is not"))
    for step in range(10):
        here.tell("renew", {})
        here.send_again(step * AGAIN_SECONDS)
    assert not here.is_open


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"[]",
        b"{}",
        b"\xff",
        b'{"version": 2, "kind": "x"}',
        b'{"version": 1}',
        b'{"version": 1, "kind": 3}',
    ],
)
def test_what_is_no_letter(body):
    with pytest.raises(ValueError):  # noqa: PT011
        Letter.read(body)


def test_fields_have_types():
    letter = Letter.read(written("x", {"number": True, "text": "t"}, ["1", "2"]))
    assert letter.texts == ["1", "2"]
    assert letter.field("text", str) == "t"
    for name, cls in (("number", int), ("text", int), ("none", str)):
        with pytest.raises(ValueError, match="its field"):
            letter.field(name, cls)
