"""Messages through a pipe, whatever comes with them."""

from __future__ import annotations

import itertools
import os
import select

from hypothesis import given
from hypothesis import strategies as st

from prefork._observe.frames import RECORD, WARNING, Assembler, Sender

LARGE = 3 * select.PIPE_BUF


class Pipe:
    """What is sent, as the pieces in which it is written."""

    def __init__(self):
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        self._writer = writer
        self.sender = Sender(writer)

    def sent(self):
        try:
            return os.read(self.reader, 1 << 16)
        except BlockingIOError:
            return b""

    def close(self):
        os.close(self.reader)
        os.close(self._writer)


def pieces_of(kind, message):
    pipe = Pipe()
    try:
        pipe.sender.send(kind, message)
        data = pipe.sent()
    finally:
        pipe.close()
    return [data[i : i + select.PIPE_BUF] for i in range(0, len(data), select.PIPE_BUF)]


def assemble(chunks):
    taken = []
    assembler = Assembler(lambda kind, message: taken.append((kind, message)))
    for chunk in chunks:
        assembler.feed(chunk)
    assembler.end()
    return taken


def cut(data, positions):
    edges = [0, *sorted(p % (len(data) + 1) for p in positions), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(
    st.lists(st.tuples(st.sampled_from([RECORD, WARNING]), st.binary(max_size=50)), max_size=20),
    st.lists(st.integers(0, 10_000), max_size=10),
)
def test_what_is_sent_arrives_however_it_is_read(messages, positions):
    data = b"".join(piece for message in messages for piece in pieces_of(*message))
    assert assemble(cut(data, positions)) == messages


def test_no_piece_is_larger_than_the_kernel_takes_at_once():
    pieces = pieces_of(RECORD, bytes(LARGE))
    assert len(pieces) == 4
    assert assemble(pieces) == [(RECORD, bytes(LARGE))]


def test_messages_of_several_threads_may_come_mixed():
    pipe = Pipe()
    pipe.sender.send(RECORD, b"a" * LARGE)
    first = pipe.sent()
    pipe.sender.send(RECORD, b"b" * LARGE)
    second = pipe.sent()
    pipe.close()
    mixed = []
    for i in range(0, len(first), select.PIPE_BUF):
        mixed += [first[i : i + select.PIPE_BUF], second[i : i + select.PIPE_BUF]]
        mixed += pieces_of(WARNING, b"whole")
    assert sorted(assemble(mixed)) == [
        (RECORD, b"a" * LARGE),
        (RECORD, b"b" * LARGE),
        *[(WARNING, b"whole")] * 4,
    ]


def test_a_message_that_was_cut_short_is_dropped_alone():
    """Its sender was killed, or a soft limit has passed in the middle."""
    whole = pieces_of(RECORD, b"next")
    for kept in (1, 2, 3):
        cut_short = pieces_of(RECORD, bytes(LARGE))[:kept]
        assert assemble([*cut_short, *whole]) == [(RECORD, b"next")]
    cut_short = [pieces_of(RECORD, bytes(LARGE))[0] for _ in range(1000)]
    assert assemble([*cut_short, *whole]) == [(RECORD, b"next")]  # and takes no memory for ever


@given(st.binary(max_size=200), st.lists(st.integers(0, 1000), max_size=5))
def test_foreign_bytes_are_passed_over(nonsense, positions):
    (first,), (second,) = pieces_of(RECORD, b"first"), pieces_of(RECORD, b"second")
    data = first + nonsense + second + first + first
    taken = assemble(cut(data, positions))
    assert taken[0] == (RECORD, b"first")
    assert taken[-1] == (RECORD, b"first")


def test_marks_among_foreign_bytes():
    (message,) = pieces_of(RECORD, b"message")
    for nonsense in (message[:4] * 10, message[:10], message[4:], b"\xff" * 100):
        assert assemble([message + nonsense + bytes(select.PIPE_BUF) + message])[-1] == (
            RECORD,
            b"message",
        )


def test_nobody_reads():
    pipe = Pipe()
    os.close(pipe.reader)
    pipe.sender.send(RECORD, bytes(LARGE))  # and raises nothing
    os.close(pipe._writer)
