"""The channel, both sides in one process, over both transports."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import itertools
import os
import pickle
import select
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork._ipc.channel import MAX_TICKETS, Channel
from prefork._ipc.memfd import Transport
from prefork._ipc.outcome import Large
from prefork._ipc.payload import FILE, FilePayload, Payload
from prefork._ipc.pickling import load, pack
from prefork._ipc.ring import Ring
from prefork._ipc.wire import ACCEPT, INLINE, MARK, RING, Kind, Report
from prefork._ipc.worker_end import WorkerEnd
from prefork._system import at_fork

TRANSPORTS = [Transport(True, True), Transport(False, False)]
SIZES = [1, 31, 32, 4095, 4096, 4097, INLINE - 1, INLINE, INLINE + 1, RING, 1 << 20]


@pytest.fixture(params=TRANSPORTS, ids=["memfd-seqpacket", "file-dgram"])
def pair(request) -> Iterator[tuple[Channel, WorkerEnd]]:
    pool = Channel(request.param)
    pool.open()
    worker = pool.take_worker_end()
    worker.open()
    yield pool, worker
    pool.close()
    worker.close()


def stage(
    pool: Channel, job: int, pickled: bytes = b"x", flags: int = 0, soft: float = 0.0
) -> bytes:
    """As the pool does it: what is large has a file of its own, or is copied."""
    payload: Payload | None = None
    if len(pickled) > FILE:
        payload, pickled = FilePayload(pickled, (), None, pool.transport), b""
    elif len(pickled) > INLINE:
        payload, pickled = Payload(pickled), b""
    ticket = pool.stage(job, soft, flags, pickled, payload)
    if payload is not None:
        payload.close()
    assert ticket is not None
    return ticket


def content(payload) -> bytes:
    if isinstance(payload, Large):
        return bytes(payload.pieces[0])
    return bytes(payload[0] if isinstance(payload, tuple) else payload)


@pytest.mark.parametrize("size", SIZES)
def test_a_task_arrives_whole(pair, size):
    pool, worker = pair
    data = os.urandom(size)
    pool.send([stage(pool, 7, data, ACCEPT, 1.5)])
    ticket = worker.receive()
    assert (ticket[0], ticket[1], ticket[-1] & ACCEPT) == (7, 1.5, ACCEPT)
    assert content(worker.read_call(ticket)) == data


@pytest.mark.parametrize("size", [0, *SIZES])
def test_a_report_arrives_whole(pair, size):
    pool, worker = pair
    data = os.urandom(size)
    # A report can be larger than the pipe, so one side waits for the other.
    sender = threading.Thread(target=worker.report, args=(Kind.DONE, 7, 1.0, 2.0, data))
    sender.start()
    reports: list[Report] = []
    while not reports:
        select.select([pool], [], [])
        reports = pool.receive() or []
    sender.join()
    (report,) = reports
    assert report[:4] == (Kind.DONE, 7, 1.0, 2.0)
    assert content(report[-1]) == data


def test_a_report_that_is_cut_short_by_a_death_is_no_report(pair):
    pool, worker = pair
    worker.report(Kind.DONE, 1, pickled=b"whole")
    os.write(worker._outbox, b"\0" * 10)
    assert [report[1] for report in pool.receive()] == [1]
    worker.close()
    assert pool.receive() is None
    assert pool.eof


def test_nothing_to_receive_is_not_the_end(pair):
    pool, _ = pair
    assert pool.receive() is None
    assert not pool.eof


def test_the_dismissal_is_not_taken_back(pair):
    pool, worker = pair
    pool.send([stage(pool, 1)])
    pool.send_leave()
    assert pool.reclaim(9) == [1]
    assert pool.reclaim(9) == []
    assert worker.receive() is None


def test_what_is_taken_back_is_what_the_worker_never_gets(pair):
    pool, worker = pair
    pool.send([stage(pool, job) for job in (1, 2, 3, 4)])
    assert worker.receive()[0] == 1
    assert pool.reclaim(2) == [2, 3]
    assert worker.receive()[0] == 4
    assert pool.reclaim(9) == []


def test_a_ticket_goes_to_exactly_one_of_two_readers(pair):
    pool, worker = pair
    seen: list[int] = []
    jobs = iter(range(1, 2001))
    for first in jobs:
        pool.send([stage(pool, job) for job in (first, *[next(jobs) for _ in range(9)])])
        seen.append(worker.receive()[0])
        seen += pool.reclaim(5)
        seen += [worker.receive()[0] for _ in range(4)]
    assert sorted(seen) == list(range(1, 2001))


def test_the_worker_leaves_after_what_it_has_been_sent(pair):
    pool, worker = pair
    pool.send([stage(pool, 1)])
    pool.send_leave()
    assert worker.receive()[0] == 1
    assert worker.receive() is None


def test_a_full_inbox_has_room_for_the_dismissal(pair):
    pool, worker = pair
    pool.send([stage(pool, job) for job in range(1, MAX_TICKETS + 1)])
    pool.send_leave()
    assert [worker.receive()[0] for _ in range(MAX_TICKETS)][-1] == MAX_TICKETS
    assert worker.receive() is None


def test_the_memory_is_full_until_a_task_is_finished(pair):
    pool, _ = pair
    jobs = 0
    while (ticket := pool.stage(jobs + 1, 0.0, 0, bytes(INLINE), None)) is not None:
        pool.send([ticket])
        jobs += 1
    assert jobs == RING // INLINE
    assert pool.reclaim(1) == [1]
    assert pool.stage(99, 0.0, 0, bytes(INLINE), None) is not None


def test_large_buffers_travel_beside_the_pickle_and_are_writable(pair):
    pool, worker = pair
    buffers = [bytearray(os.urandom(INLINE + n)) for n in range(3)]
    packed, views = pack([*map(pickle.PickleBuffer, buffers), b"small"])
    assert len(views) == 3
    pool.send([pool.stage(1, 0.0, 0, b"", FilePayload(packed, views, None, pool.transport))])
    pickled, received, *_ = worker.read_call(worker.receive())
    *arrived, small = load([pickled, *received])
    assert ([bytes(view) for view in arrived], small) == (buffers, b"small")  # type: ignore[comparison-overlap]
    arrived[0][0] ^= 1
    assert arrived[0] != buffers[0]
    assert views[0] == buffers[0]  # the sender keeps what it had


def test_a_parcel_whose_ticket_was_taken_back_is_skipped(pair):
    pool, worker = pair
    pool.send([stage(pool, 1, b"a" * (FILE + 1)), stage(pool, 2, b"b" * (FILE + 1))])
    assert pool.reclaim(1) == [1]
    assert content(worker.read_call(worker.receive()))[:1] == b"b"


def test_the_board_tells_what_runs_and_since_when(pair):
    pool, worker = pair
    assert pool.running() == (0, 0.0)
    worker.clock[1], worker.clock[2], worker.board[0] = 12.5, 12.25, 3
    assert pool.running() == (3, 12.5)
    assert pool.accepted() == 12.25


def test_the_black_box_keeps_what_was_written(pair):
    pool = Channel(pair[0].transport)
    pool.open()
    worker = pool.take_worker_end()
    os.write(worker.open(), b"Fatal Python error")
    worker.close()
    assert pool.black_box.text() == "Fatal Python error"
    pool.black_box.rewind()
    assert pool.black_box.text() == ""
    pool.close()


def test_descriptors_are_freed(pair):
    def count() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for _ in range(3):
        pool = Channel(pair[0].transport)
        pool.take_worker_end().close()
        pool.open()
        pool.close()
        Channel(pair[0].transport)  # dropped
        FilePayload(b"x", (), None, pair[0].transport)
    assert count() == before


def test_descriptors_are_above_those_that_a_task_may_take_for_the_standard_streams():
    saved = os.dup(0)
    try:
        os.close(0)
        with contextlib.closing(at_fork.Descriptors()) as fds:
            assert min(at_fork.pipe(fds, fds)) > 2
    finally:
        os.dup2(saved, 0)
        os.close(saved)


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(0, 400)), max_size=60))
def test_blocks_of_the_ring_never_overlap_and_are_all_given_back(steps):
    """A step frees what its key holds, or allocates: a job may come back and be sent again."""
    ring = Ring(1000)
    held: dict[int, range] = {}
    for key, length in steps:
        if held.pop(key, None) is not None:
            ring.free(key)
        elif (offset := ring.allocate(key, length)) is None:
            assert held
        else:
            block = range(offset, offset + length)
            assert block.stop <= 1000
            assert not any(set(block) & set(other) for other in held.values())
            held[key] = block
    for key in held:
        ring.free(key)
    assert ring.allocate(-1, 1000) == 0


def test_large_result_of_a_worker_that_died_before_it_took_a_large_task(pair):
    """The kernel reports the unread task to the pool as an error, before the result."""
    pool, worker = pair
    large = b"x" * (FILE + 1)
    pool.send([stage(pool, 1, large)])
    assert pool.reclaim(1) == [1]
    worker.report(Kind.DONE, 2, 0.0, 0.0, large)
    worker.close()
    (report,) = pool.receive()
    assert report[1] == 2
    assert content(report[-1]) == large


@pytest.mark.parametrize("size", [INLINE + 1, FILE + 1])
def test_a_large_task_for_a_worker_that_has_died_is_taken_back(pair, size):
    """That it has died is found out later, in order; to send it something is no error."""
    pool, worker = pair
    worker.close()
    pool.send([stage(pool, 1, b"x" * size)])
    assert pool.reclaim(9) == [1]


@given(st.lists(st.tuples(st.binary(max_size=200), st.binary(max_size=300)), max_size=5))
def test_reports_are_found_between_foreign_bytes(parts):
    pool = Channel()
    pool.open()
    worker = pool.take_worker_end()
    try:
        for job, (foreign, pickled) in enumerate(parts, 1):
            os.write(worker._outbox, foreign)
            worker.report(Kind.DONE, job, pickled=pickled)
        worker.close()
        reports: list[Report] = []
        while not pool.eof:
            reports += pool.receive() or []
    finally:
        pool.close()
        worker.close()
    whole = [(r[1], r[-1]) for r in reports if r[0] != Kind.CORRUPTED]
    assert whole == [(job, pickled) for job, (_, pickled) in enumerate(parts, 1)]
    assert any(r[0] == Kind.CORRUPTED for r in reports) == any(foreign for foreign, _ in parts)


@given(st.binary(max_size=5000), st.lists(st.integers(1, 50), max_size=20))
def test_any_bytes_in_any_pieces_can_be_received(data, cuts):
    pool = Channel()
    pool.open()
    worker = pool.take_worker_end()
    try:
        data = data.replace(b"M", MARK)  # nearly a report
        pieces = [data[i:j] for i, j in itertools.pairwise([0, *itertools.accumulate(cuts), None])]
        for piece in filter(None, pieces):
            os.write(worker._outbox, piece)
            pool.receive()
        worker.report(Kind.READY)
        worker.close()
        kinds = [r[0] for reports in iter(pool.receive, None) for r in reports]
    finally:
        pool.close()
        worker.close()
    assert kinds[-1:] == [Kind.READY]


@pytest.mark.parametrize("near", [INLINE, 1 << 16, RING, FILE, select.PIPE_BUF])
def test_sizes_around_each_threshold(pair, near):
    pool, worker = pair
    for size in range(near - 41, near + 42):
        data = bytes([size % 251]) * size
        pool.send([stage(pool, size, data)])
        assert content(worker.read_call(worker.receive())) == data
        pool.forget(size)
        sender = threading.Thread(target=worker.report, args=(Kind.DONE, size, 0.0, 0.0, data))
        sender.start()
        while not (reports := pool.receive()):
            select.select([pool], [], [])
        sender.join()
        assert [(r[1], content(r[-1])) for r in reports] == [(size, data)]


def test_a_full_inbox_takes_tickets_later(pair):
    """Users with very many pipes get small ones."""
    pool, worker = pair
    fcntl.fcntl(pool._inbox, fcntl.F_SETPIPE_SZ, 4096)
    tickets = [stage(pool, job) for job in range(MAX_TICKETS)]
    assert pool.send(tickets)
    more = stage(pool, MAX_TICKETS)
    assert not pool.send([more])
    for _ in tickets:
        worker.receive()
    assert pool.send([more])
    assert worker.receive()[0] == MAX_TICKETS
