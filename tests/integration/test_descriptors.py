"""What has descriptors, or reducers of its own, arrives as with `multiprocessing`."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import socket
import threading
from multiprocessing import resource_tracker
from multiprocessing.reduction import DupFd, ForkingPickler

import pytest

from gate import enter
from helpers import DEADLINE, eventually
from prefork import Terminated, WorkerLostError, WorkerState


class Locked:
    """It cannot be pickled, but for the reducer that is registered for it."""

    def __init__(self, value):
        self.value = value
        self.lock = threading.Lock()


def rebuild(value):
    return Locked(value)


ForkingPickler.register(Locked, lambda it: (rebuild, (it.value,)))


class OpenFile:
    """It pickles itself as the standard library's types and torch's do."""

    def __init__(self, fd):
        self.fd = fd

    def __reduce__(self):
        return reopen, (DupFd(self.fd),)


def reopen(duplicate):
    return OpenFile(duplicate.detach())


def say(connection, text="hello"):
    connection.send(text)
    connection.close()
    return text


def count_and_say(connection, data):
    connection.send(len(data))
    return data


def give_back(sock):
    with sock:
        return sock.dup()


def value_of(locked):
    return locked.value


def make_locked(value):
    return Locked(value)


def make_pipe():
    reader, writer = multiprocessing.Pipe()
    writer.send(os.getpid())
    return reader


def make_pipes(count):
    return [make_pipe() for _ in range(count)]


def fail_with(connection):
    raise ConnectionProblem(connection)


class ConnectionProblem(Exception):
    pass


def write(file):
    os.write(file.fd, b"written")
    os.close(file.fd)


def numbers():
    return set(map(int, os.listdir("/proc/self/fd")))


@pytest.fixture
def pool(context, make_pool):
    return make_pool(2, context=context)


@pytest.fixture
def nothing_left(pool):
    """No descriptor is left in the pool's process, no thread, and none in the workers."""
    eventually(lambda: {w.state for w in pool.statistics().workers} == {WorkerState.IDLE}, "idle")
    pool.map(len, [bytes(1 << 20)] * 20, 1)
    before, threads = numbers(), threading.active_count()
    pids = [worker.pid for worker in pool.statistics().workers]
    open_there = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in pids}
    yield
    eventually(lambda: numbers() <= before, "descriptors are closed")
    assert threading.active_count() <= threads + 1  # the thread that enforces limits, or none
    for pid, count in open_there.items():
        eventually(
            lambda pid=pid, count=count: (  # type: ignore[misc]
                not os.path.exists(f"/proc/{pid}/fd") or len(os.listdir(f"/proc/{pid}/fd")) <= count
            ),
            "descriptors are closed in the worker",
        )


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("nested", [False, True])
def test_a_connection_as_an_argument(pool, nested):
    reader, writer = multiprocessing.Pipe()
    with reader:
        call = functools.partial(say, writer) if nested else say
        assert pool.apply(call, () if nested else (writer,)) == "hello"
        assert reader.poll(DEADLINE)
        assert reader.recv() == "hello"
        writer.close()


@pytest.mark.usefixtures("nothing_left")
def test_a_connection_beside_a_large_object(pool):
    reader, writer = multiprocessing.Pipe()
    with reader, writer:
        assert pool.apply(count_and_say, (writer, bytes(1 << 20))) == bytes(1 << 20)
        assert reader.recv() == 1 << 20


@pytest.mark.usefixtures("nothing_left")
def test_connections_as_results(pool):
    with pool.apply(make_pipe) as reader:
        assert reader.recv() in {worker.pid for worker in pool.statistics().workers}
    for readers in pool.map(make_pipes, [1, 2, 3]):
        for reader in readers:
            assert reader.recv() > 0
            reader.close()
    for outcome in pool.each_async(make_pipes, [2, "x", 3]).get(DEADLINE):
        for reader in outcome.value if outcome.ok else ():
            assert reader.recv() > 0
            reader.close()


@pytest.mark.usefixtures("nothing_left")
def test_more_than_one_message_holds(pool):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 4096:
        pytest.skip("needs 4,096 descriptors")
    readers = pool.apply(make_pipes, (100,))
    pairs = [multiprocessing.Pipe() for _ in range(300)]
    try:
        assert pool.apply(len, ([writer for _, writer in pairs],)) == 300
        assert all(reader.recv() > 0 for reader in readers)
    finally:
        for connection in (*readers, *sum(pairs, ())):
            connection.close()


@pytest.mark.usefixtures("nothing_left")
def test_a_socket_there_and_back(pool):
    ours, theirs = socket.socketpair()
    with ours, theirs, pool.apply(give_back, (theirs,)) as back:
        back.sendall(b"through")
        assert ours.recv(100) == b"through"


@pytest.mark.usefixtures("nothing_left")
def test_what_pickles_itself_by_the_standard_function(pool, tmp_path):
    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    try:
        pool.apply(write, (OpenFile(fd),))
    finally:
        os.close(fd)
    assert (tmp_path / "file").read_bytes() == b"written"


@pytest.mark.usefixtures("nothing_left")
def test_registered_reducers(pool):
    assert pool.apply(value_of, (Locked(3),)) == 3
    assert pool.map(value_of, [Locked(n) for n in range(10)], 3) == list(range(10))
    assert pool.apply(make_locked, (4,)).value == 4
    assert [it.value for it in pool.imap(make_locked, range(5), 2)] == list(range(5))


@pytest.mark.usefixtures("nothing_left")
def test_in_an_exception(pool):
    reader, writer = multiprocessing.Pipe()
    with reader, writer:
        with pytest.raises(ConnectionProblem) as caught:
            pool.apply(fail_with, (writer,))
        (back,) = caught.value.args
        with back:
            say(back)
        assert reader.recv() == "hello"
        caught.value.args = ()
        del caught, back


@pytest.mark.promise(number=6)
def test_of_jobs_that_never_run(make_pool, gate):
    pool = make_pool(1)
    pool.apply(abs, (1,))
    pool.apply_async(enter, (gate,))
    visitor = gate.arrival()
    before = numbers()
    pairs = [multiprocessing.Pipe() for _ in range(20)]
    handles = [pool.apply_async(say, (writer,)) for _, writer in pairs]
    for connection in sum(pairs, ()):
        connection.close()
    assert all(handle.cancel() for handle in handles)
    for handle in handles:
        with pytest.raises(Terminated):
            handle.get(DEADLINE)
    eventually(lambda: numbers() <= before, "descriptors are closed")
    visitor.go()


def die_once(connection, path):
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return say(connection)


def test_a_retry_has_it_again_a_lost_job_leaves_nothing(make_pool, tmp_path):
    pool = make_pool(1)
    pool.apply(abs, (1,))
    reader, writer = multiprocessing.Pipe()
    with reader, writer:
        arguments = (writer, tmp_path / "died")
        assert pool.apply_async(die_once, arguments, retries=1).get(DEADLINE) == "hello"
        assert reader.recv() == "hello"
        with pytest.raises(WorkerLostError):
            pool.apply(die_once, (writer, tmp_path / "again"))


def test_a_lock_is_refused_as_before(make_pool):
    with pytest.raises(RuntimeError, match="inheritance"):
        make_pool(1).apply(len, ([multiprocessing.Lock()],))


@pytest.mark.promise(number=6)
def test_kept_results_hold_no_descriptors(make_pool):
    pool = make_pool(2)
    sizes = [100_000, 200_000, 600_000]
    pool.map(bytes, sizes, 1)
    before = len(numbers())
    kept = [pool.map(bytes, sizes * 20, 1), list(pool.imap(bytes, sizes * 20))]
    kept += [handle.get(DEADLINE) for handle in [pool.apply_async(bytes, (n,)) for n in sizes * 20]]
    # (Files that were of use may be of use again, and are kept for a second.)
    eventually(lambda: len(numbers()) <= before, "nothing is kept open")
    assert kept


def which_tracker():
    return os.fstat(resource_tracker.getfd()).st_ino  # type: ignore[arg-type]


def test_workers_share_the_resource_tracker(make_pool, context):
    """One of a worker's own removes what the worker has made for others when the worker ends."""
    resource_tracker.ensure_running()
    pool = make_pool(1, context=context, maxtasksperchild=1)
    for _ in range(3):  # the first worker, and others: they are not forked alike
        assert pool.apply(which_tracker) == which_tracker()
