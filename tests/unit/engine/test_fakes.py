"""The fake channel keeps the contract of the real one: whatever is done with both, they say the
same. Else what the other tests in here show would be true of the fakes alone."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import FakeChannel, Readable
from prefork._ipc.channel import MAX_TICKETS, Channel
from prefork._ipc.wire import ACCEPT, LEAVE, Kind
from prefork._ipc.worker_end import WorkerEnd

KINDS = [Channel, FakeChannel]


@contextmanager
def opened(kind: type[Channel]) -> Iterator[tuple[Channel, WorkerEnd]]:
    channel = kind()
    channel.open()
    end = channel.take_worker_end()
    end.open()
    try:
        yield channel, end
    finally:
        end.close()
        channel.close()


@pytest.fixture(params=KINDS, ids=["real", "fake"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Channel, WorkerEnd]]:
    with opened(request.param) as pair:
        yield pair


def send(channel: Channel, *jobs: int, flags: int = 0) -> bool:
    tickets = [channel.stage(job, 0.5, flags, b"call", None, 3) for job in jobs]
    return channel.send([ticket for ticket in tickets if ticket is not None])


def is_readable(channel: Channel) -> bool:
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def test_a_ticket_goes_to_one_reader(pair: tuple[Channel, WorkerEnd]) -> None:
    channel, end = pair
    assert send(channel, 1, 2, 3, flags=ACCEPT)
    ticket = end.receive()
    assert ticket is not None
    job, soft_timeout, _, _, length, function_length, flags = ticket
    assert (job, soft_timeout, length, function_length, flags) == (1, 0.5, 4, 3, ACCEPT)
    assert channel.reclaim(1) == [2]
    assert channel.reclaim(MAX_TICKETS) == [3]
    assert channel.reclaim(MAX_TICKETS) == []


def test_a_worker_that_was_told_to_leave_is_so_even_if_all_is_taken_back(
    pair: tuple[Channel, WorkerEnd],
) -> None:
    channel, end = pair
    send(channel, 1)
    channel.send_leave()
    assert channel.reclaim(MAX_TICKETS) == [1]
    assert channel.reclaim(MAX_TICKETS) == []
    assert end.receive() is None


def test_an_inbox_takes_only_so_many(pair: tuple[Channel, WorkerEnd]) -> None:
    channel, _ = pair
    jobs = iter(range(1, 100_000))
    batches = 0
    while send(channel, *(next(jobs) for _ in range(10))):
        batches += 1
    assert batches * 10 >= MAX_TICKETS
    assert len(channel.reclaim(MAX_TICKETS)) == MAX_TICKETS
    assert send(channel, *(next(jobs) for _ in range(10)))


def test_an_empty_inbox_takes_a_whole_batch(pair: tuple[Channel, WorkerEnd]) -> None:
    channel, _ = pair
    if isinstance(channel, FakeChannel):
        channel.room = 1
    assert send(channel, *range(1, MAX_TICKETS + 1))


def test_reports_come_in_their_order_and_make_it_readable(pair: tuple[Channel, WorkerEnd]) -> None:
    channel, end = pair
    assert not is_readable(channel)
    assert channel.receive() is None
    end.report(Kind.READY)
    end.report(Kind.DONE, 7, 1.0, 2.0, b"value")
    assert is_readable(channel)
    assert channel.receive() == [(Kind.READY, 0, 0.0, 0.0, b""), (Kind.DONE, 7, 1.0, 2.0, b"value")]
    assert not is_readable(channel)
    assert channel.receive() is None
    assert not channel.eof


def test_its_end_comes_after_the_last_report(pair: tuple[Channel, WorkerEnd]) -> None:
    channel, end = pair
    end.report(Kind.DONE, 7)
    end.close()
    assert is_readable(channel)
    assert channel.receive() is not None
    assert not channel.eof
    assert is_readable(channel)
    assert channel.receive() is None
    assert channel.eof
    end.close()  # no harm


def test_what_is_on_the_board_can_be_seen(pair: tuple[Channel, WorkerEnd]) -> None:
    channel, end = pair
    assert channel.running() == (0, 0.0)
    if isinstance(channel, FakeChannel):
        channel.noted = 7, 1.5, 1.0
    else:
        end.board[0], end.clock[1], end.clock[2] = 7, 1.5, 1.0
    assert channel.running() == (7, 1.5)
    assert channel.accepted() == 1.0
    channel.close()
    for look in (channel.running, channel.accepted):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever a closed memoryview says
            look()


STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 5)),
    st.tuples(st.just("reclaim"), st.integers(1, 5)),
    st.tuples(st.just("read"), st.just(0)),
    st.tuples(st.just("leave"), st.just(0)),
    st.tuples(st.just("report"), st.integers(1, 9)),
    st.tuples(st.just("receive"), st.just(0)),
    st.tuples(st.just("close"), st.just(0)),
)


@given(st.lists(STEPS, max_size=30))
def test_whatever_is_done_both_say_the_same(steps: list[tuple[str, int]]) -> None:
    said = []
    for kind in KINDS:
        with opened(kind) as (channel, end):
            said.append(list(play(channel, end, steps)))
    assert said[0] == said[1]


def play(channel: Channel, end: WorkerEnd, steps: list[tuple[str, int]]) -> Iterator[object]:
    numbers = iter(range(1, 1000))
    unread = 0
    leaving = False
    for step, count in steps:
        if step == "send" and not leaving:
            yield send(channel, *(next(numbers) for _ in range(count)))
            unread += count
        elif step == "reclaim":
            taken = channel.reclaim(count)
            unread -= len(taken)
            yield taken
        elif step == "read" and unread and not end.closed:
            ticket = end.receive()
            yield ticket and ticket[0]
            unread -= 1
        elif step == "leave" and not leaving:
            channel.send_leave()
            leaving = True
        elif step == "report" and not end.closed:
            end.report(Kind.DONE, count, 1.0, 2.0, b"!")
        elif step == "receive":
            yield channel.receive(), channel.eof
        elif step == "close":
            end.close()
        yield is_readable(channel)


def test_the_ticket_that_tells_to_leave_is_no_job() -> None:
    with opened(FakeChannel) as (channel, end):
        channel.send_leave()
        assert isinstance(channel, FakeChannel)
        assert channel.inbox[0][-1] & LEAVE
        assert end.receive() is None


def test_a_descriptor_is_readable_while_it_is_set() -> None:
    readable = Readable()
    poll = select.poll()
    poll.register(readable, select.POLLIN)
    for value in (False, True, True, False, False):
        readable.set(value)
        assert bool(poll.poll(0)) is value
    readable.close()
    readable.close()
