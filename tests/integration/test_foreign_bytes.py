"""Tasks that write into the channel of their own worker: only they fail."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gate import Gate
from helpers import DEADLINE, eventually, has_ended, log_start
from prefork import ApplyResult, Pool, PoolBrokenError, WorkerLostError
from prefork._engine import roles
from prefork._engine.worker_handle import WorkerHandle
from prefork._ipc.wire import INLINE, MARK, REPORT, Kind
from prefork._ipc.worker_end import WorkerEnd
from prefork._system import at_fork

GARBAGE = {
    "a byte": b"\0",
    "text": b"hello, world\n",
    "zeros": bytes(1000),
    "more than a read takes": b"\xff" * 100_000,
    "an unknown kind": REPORT.pack(1, 0.0, 0.0, 0, 200, 0, 0, MARK),
    "a length of 2**64 - 1": REPORT.pack(1, 0.0, 0.0, 2**64 - 1, Kind.DONE, 0, 0, MARK),
    "a length above the threshold": REPORT.pack(1, 0.0, 0.0, INLINE + 1, Kind.DONE, 0, 0, MARK),
    "another's result": REPORT.pack(2**60, 0.0, 0.0, 0, Kind.DONE, 0, 0, MARK),
    "a reason that is no text": REPORT.pack(0, 0.0, 0.0, 3, Kind.LEAVING, 0, 0, MARK) + b"\xff" * 3,
    "marks": MARK * 100,
    "half a header": REPORT.pack(1, 0.0, 0.0, 0, Kind.DONE, 0, 0, MARK)[:20],
}


def own_end() -> WorkerEnd:
    """In a task: its worker's end of the channel."""
    return next(
        obj for find in at_fork._registered.values() if isinstance(obj := find(), WorkerEnd)
    )


def write_out(data: bytes, gate: Gate | None = None) -> int:
    """A task that writes into its outbox, and then waits or returns."""
    fd = own_end()._outbox
    while data:
        data = data[os.write(fd, data) :]
    if gate is not None:
        gate.enter()
    return os.getpid()


def exit_with(payload: bytes, gate: Gate) -> None:
    """A task that sends a report of its exit that nobody can read."""
    job = own_end().board[0]
    header = REPORT.pack(job, 0.0, 0.0, len(payload), Kind.EXITING, 0, 0, MARK)
    os.write(own_end()._outbox, header + payload)
    gate.enter()


def write_parcels(messages: list[bytes], size: int) -> bytes:
    """A task that writes into its socket for large objects, then returns a large one."""
    with socket.socket(fileno=os.dup(own_end()._post.fileno())) as own:
        for message in messages:
            own.send(message)
        with open(os.devnull, "rb") as null:
            socket.send_fds(own, [struct.pack("<Q", 2**60)], [null.fileno()])
    return bytes(size)


def write_in(data: bytes) -> int:
    """A task that writes into its inbox, of which it has the reading end."""
    fd = os.open(f"/proc/self/fd/{own_end()._inbox}", os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, data)
    os.close(fd)
    return os.getpid()


def corrupted(guilty: ApplyResult) -> WorkerLostError:
    """The error that a job must fail with, if its task has written into the channel."""
    with pytest.raises(WorkerLostError) as raised:
        guilty.get(DEADLINE)
    assert raised.value.note.startswith("its channel was corrupted: ")
    return raised.value


@pytest.mark.promise(number=3)
@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_a_task_that_writes_to_its_outbox_fails_alone(
    data: bytes, gate: Gate, make_pool: Callable[..., Pool]
) -> None:
    pool = make_pool(2)
    others = [pool.apply_async(abs, (-n,)) for n in range(20)]
    guilty = pool.apply_async(write_out, (data, None))
    others += [pool.apply_async(abs, (-n,)) for n in range(20, 60)]
    assert [other.get(DEADLINE) for other in others] == list(range(60))
    error = corrupted(guilty)
    eventually(lambda: has_ended(error.pid), "the worker goes")
    assert pool.apply(abs, (-1,)) == 1


def test_it_is_killed_when_it_goes_on(gate: Gate, make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(1)
    guilty = pool.apply_async(write_out, (bytes(1000), gate))
    waiting = pool.map_async(abs, range(50), chunksize=1)
    error = corrupted(guilty)
    assert "killed by SIGKILL" in str(error)
    assert waiting.get(DEADLINE) == list(range(50))


class DeafPool(Pool):
    """Reads what its workers report only as long as `listens` is set."""

    listens: threading.Event

    class ResultHandler(roles.ResultHandler):
        def _handle(self, workers: list[WorkerHandle]) -> None:
            DeafPool.listens.wait(DEADLINE)
            super()._handle(workers)


@pytest.fixture
def deaf_pool() -> Iterator[Pool]:
    """One worker, which is sent several short jobs at once."""
    DeafPool.listens = threading.Event()
    DeafPool.listens.set()
    with DeafPool(1) as pool:
        pool.map(abs, range(20), chunksize=1)
        yield pool
        DeafPool.listens.set()


def start_and_enter(log: Path, gate: Gate, number: int) -> int:
    log_start(log, number)
    gate.enter()
    return number


def test_what_was_started_behind_it_is_finished(
    gate: Gate, deaf_pool: DeafPool, tmp_path: Path
) -> None:
    """The pool sees the bytes late: the worker is on another job by then."""
    deaf_pool.listens.clear()
    guilty = deaf_pool.apply_async(write_out, (b"x" * 7,))
    innocent = deaf_pool.apply_async(start_and_enter, (tmp_path / "log", gate, 1))
    behind = deaf_pool.apply_async(start_and_enter, (tmp_path / "log", gate, 2))
    visitor = gate.arrival()
    deaf_pool.listens.set()
    error = corrupted(guilty)
    assert not innocent.ready()
    gate.arrival().go()  # the last one, elsewhere: it was not started
    assert behind.get(DEADLINE) == 2
    assert behind.pid != error.pid
    visitor.go()
    assert innocent.get(DEADLINE) == 1
    assert innocent.pid == error.pid
    eventually(lambda: has_ended(error.pid), "the worker goes, after what it runs")
    assert deaf_pool.apply(abs, (-1,)) == 1
    assert sorted((tmp_path / "log").read_text().split()) == ["1", "2"]


@pytest.mark.parametrize("retries", [0, 1])
def test_what_was_started_behind_it_and_dies_is_accounted_for(
    gate: Gate, deaf_pool: DeafPool, tmp_path: Path, retries: int
) -> None:
    deaf_pool.listens.clear()
    guilty = deaf_pool.apply_async(write_out, (b"x" * 7,))
    victim = deaf_pool.apply_async(start_and_enter, (tmp_path / "log", gate, 1), retries=retries)
    gate.arrival()
    deaf_pool.listens.set()
    error = corrupted(guilty)
    os.kill(error.pid, signal.SIGKILL)
    if retries:
        gate.arrival().go()
        assert victim.get(DEADLINE) == 1
    else:
        with pytest.raises(WorkerLostError) as lost:
            victim.get(DEADLINE)
        assert (lost.value.pid, lost.value.exitcode) == (error.pid, -signal.SIGKILL)
    assert (tmp_path / "log").read_text().split() == ["1"] * (1 + retries)


def test_a_retry_is_made_elsewhere(gate: Gate, make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(1)
    guilty = pool.apply_async(write_out, (bytes(1000), gate), retries=2)
    corrupted(guilty)
    assert guilty.retries == 2


def test_an_exit_that_cannot_be_read(gate: Gate, make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(1)
    guilty = pool.apply_async(exit_with, (b"no number", gate))
    error = corrupted(guilty)
    assert error.note.endswith("a report cannot be read: it has no exit code")
    assert pool.apply(abs, (-1,)) == 1


def test_an_initializer_that_writes_to_the_outbox_breaks_the_pool(
    make_pool: Callable[..., Pool],
) -> None:
    pool = make_pool(1, write_out, (bytes(1000),), max_restarts=1)
    with pytest.raises(PoolBrokenError, match="its channel was corrupted"):
        list(pool.imap(abs, itertools.repeat(-1)))  # what is sent before it is noticed is done


@pytest.mark.parametrize("size", [10, 1 << 20], ids=["small", "large"])
def test_foreign_messages_among_the_large_objects_are_passed_over(
    size: int, make_pool: Callable[..., Pool]
) -> None:
    pool = make_pool(1)
    messages = [b"x", b"12345678", bytes(100)]
    assert pool.apply(write_parcels, (messages, size)) == bytes(size)
    assert pool.apply(bytes, (1 << 20,)) == bytes(1 << 20)


@pytest.mark.parametrize("data", [b"x", bytes(32), b"\xff" * 333], ids=["byte", "ticket", "more"])
def test_a_task_that_writes_to_its_inbox_stops_nobody(
    data: bytes, make_pool: Callable[..., Pool]
) -> None:
    pool = make_pool(2)
    pool.apply_async(write_in, (data,)).wait(DEADLINE)
    for n in range(20):  # jobs whose ticket is damaged fail; the pool goes on
        pool.apply_async(abs, (-n,)).wait(DEADLINE)
    assert pool.apply(abs, (-1,)) == 1
