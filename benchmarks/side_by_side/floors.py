"""The same work with no pool: as little as Python and the kernel can do it with.

What a floor leaves out is what a pool is for: it knows beforehand who gets what, and has one thread
and no worker that could die.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import mmap
import os
import pickle
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import ForkProcess
from socket import recv_fds, send_fds
from statistics import median
from typing import TypeVar

from benchmarks.side_by_side import tasks
from benchmarks.side_by_side.meters import Cost, memory_of

Metrics = dict[str, float]
Item = TypeVar("Item")

PROCESSES = 2
BATCH = 100  # calls in one message, for floors that batch
MESSAGE = b"x" * 64
FRAME = 128  # bytes that a pickled call or result fits into
AT_ONCE = select.PIPE_BUF // FRAME  # frames that a pipe takes in one piece


@contextlib.contextmanager
def forked(body: Callable[[], object]) -> Iterator[int]:
    """A process that runs `body` and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.waitpid(pid, 0)


# --- one call after another


def _ping_pong(size: int, send: Callable[[bytes], int], receive: Callable[[int], bytes]) -> Metrics:
    seconds = []
    with Cost() as cost:
        for _ in range(size):
            begin = time.perf_counter()
            send(MESSAGE)
            receive(len(MESSAGE))
            seconds.append(time.perf_counter() - begin)
    return {**cost.per(size), "p50": median(seconds)}


@contextlib.contextmanager
def _echo() -> Iterator[socket.socket]:
    """A socket whose other end is in a process that sends back what it gets."""
    ours, theirs = socket.socketpair()

    def echo() -> None:
        ours.close()
        while message := theirs.recv(64):
            theirs.send(message)

    with forked(echo):
        theirs.close()
        try:
            yield ours
        finally:
            ours.close()


def socket_ping_pong(size: int) -> Metrics:
    """64 bytes to another process and back, over a pair of AF_UNIX sockets."""
    with _echo() as ours:
        return _ping_pong(size, ours.send, ours.recv)


def threaded_ping_pong(size: int) -> Metrics:
    """The same, but the answers are read by another thread, as in any pool whose results arrive
    while nobody waits for them."""
    with _echo() as ours:
        answered = threading.Semaphore(0)

        def read() -> None:
            while ours.recv(64):
                answered.release()

        def wait(_: int) -> bytes:
            answered.acquire()
            return MESSAGE

        thread = threading.Thread(target=read)
        thread.start()
        try:
            return _ping_pong(size, ours.send, wait)
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            thread.join()


def pipe_ping_pong(size: int) -> Metrics:
    """The same over two pipes."""
    (read_there, write_here), (read_here, write_there) = os.pipe(), os.pipe()

    def echo() -> None:
        os.close(write_here)
        while message := os.read(read_there, 64):
            os.write(write_there, message)

    with forked(echo):
        os.close(write_there)
        try:
            return _ping_pong(
                size, lambda data: os.write(write_here, data), lambda n: os.read(read_here, n)
            )
        finally:
            os.close(write_here)


# --- many calls


def _serve(connection: Connection) -> None:
    """Run batches of pickled calls: each is unpickled, and its result pickled, by itself."""
    with contextlib.suppress(EOFError):
        while True:
            results = []
            for pickled in connection.recv():
                func, args = pickle.loads(pickled)
                results.append(pickle.dumps(func(*args)))
            connection.send(results)


@contextlib.contextmanager
def _servers() -> Iterator[list[Connection]]:
    with contextlib.ExitStack() as stack:
        ours: list[Connection] = []
        for _ in range(PROCESSES):
            here, there = (Connection(end.detach()) for end in socket.socketpair())

            def serve(here: Connection = here, there: Connection = there) -> None:
                for connection in [here, *ours]:
                    connection.close()
                _serve(there)

            stack.enter_context(forked(serve))
            there.close()
            ours.append(here)
        try:
            yield ours
        finally:
            for connection in ours:
                connection.close()


def batched_calls(size: int) -> Metrics:
    """Calls pickled one by one, sent to two processes over sockets, 100 in a message."""
    with _servers() as servers, Cost() as cost:
        calls = iter(range(0, size, BATCH))

        def send(server: Connection) -> bool:
            if (start := next(calls, None)) is None:
                return False
            count = range(start, min(size, start + BATCH))
            server.send([pickle.dumps((tasks.noop, (i,))) for i in count])
            return True

        busy = {server for server in servers if send(server)}
        while busy:
            for server in wait_for(list(busy)):
                assert isinstance(server, Connection)
                for result in server.recv():
                    pickle.loads(result)
                if not send(server):
                    busy.discard(server)
    return cost.per(size)


def each_by_itself(size: int) -> Metrics:
    """Calls that cannot fail together: two processes read, run and answer them one by one, from
    and to pipes. One thread of the caller makes calls of the input, at most 1,000 ahead of what a
    second one has read, and a third one takes the results. Nothing is accounted for."""
    to_workers, results = os.pipe(), os.pipe()
    room, arrived = threading.Semaphore(1000 // BATCH), threading.Semaphore(0)
    ready: deque[object] = deque()

    def serve() -> None:
        os.close(to_workers[1])
        while call := os.read(to_workers[0], FRAME):
            func, args = pickle.loads(call)
            os.write(results[1], pickle.dumps(func(*args)).ljust(FRAME))

    def feed() -> None:
        for start in range(0, size, BATCH):
            calls = range(start, min(size, start + BATCH))
            pickles = [pickle.dumps((tasks.noop, (i,))).ljust(FRAME) for i in calls]
            room.acquire()
            for at in range(0, len(pickles), AT_ONCE):
                os.write(to_workers[1], b"".join(pickles[at : at + AT_ONCE]))

    def take() -> None:
        count = 0
        while data := os.read(results[0], 1 << 16):
            for at in range(0, len(data), FRAME):
                ready.append(pickle.loads(data[at : at + FRAME]))
            count += len(data) // FRAME
            arrived.release()
            while count >= BATCH:
                count -= BATCH
                room.release()

    with contextlib.ExitStack() as processes:
        for _ in range(PROCESSES):
            processes.enter_context(forked(serve))
        os.close(results[1])
        with Cost() as cost:
            threads = [threading.Thread(target=body) for body in (feed, take)]
            for thread in threads:
                thread.start()
            for _ in range(size):
                while not ready:
                    arrived.acquire()
                ready.popleft()
        os.close(to_workers[1])
    for thread in threads:
        thread.join()
    os.close(to_workers[0])
    os.close(results[0])
    return cost.per(size)


def in_one_process(size: int) -> Metrics:
    """A loop in one process: nothing is handed over."""
    items = list(range(size))
    with Cost() as cost:
        list(map(tasks.noop, items))
    return cost.per(size)


# --- tasks that take time


def two_processes(func: Callable[[Item], object], share: Iterable[Item]) -> float:
    """Seconds that two bare processes take which call a function with the items of a share each."""

    def work() -> None:
        for item in share:
            func(item)

    begin = time.perf_counter()
    with forked(work), forked(work):
        pass
    return time.perf_counter() - begin


# --- large objects


def copies(array: object, copies: int, repeats: int) -> Metrics:
    """The array copied so often into fresh memory, and read there."""
    import numpy as np

    assert isinstance(array, np.ndarray)
    with Cost() as cost:
        for _ in range(repeats):
            for _ in range(copies):
                tasks.touch(array.copy())
    return cost.per(repeats)


def through_memory_files(array: object, repeats: int, back: bool) -> Metrics:
    """The array through a memory file to another process, which maps and reads it; and the same way
    back. The kernel gives each file new pages."""
    import numpy as np

    assert isinstance(array, np.ndarray)
    ours, theirs = socket.socketpair()

    def send(socket: socket.socket, array: object) -> None:
        fd = os.memfd_create("floor")
        os.write(fd, memoryview(array).cast("B"))  # type: ignore[arg-type]
        send_fds(socket, [b"!"], [fd])
        os.close(fd)

    def receive(socket: socket.socket) -> object:
        _, (fd,), _, _ = recv_fds(socket, 1, 1)
        found = np.frombuffer(mmap.mmap(fd, array.nbytes, mmap.MAP_PRIVATE), dtype=array.dtype)
        os.close(fd)
        tasks.touch(found)
        return found

    def serve() -> None:
        ours.close()
        with contextlib.suppress(ValueError):  # no descriptor has come: the other end is closed
            while True:
                found = receive(theirs)
                send(theirs, found) if back else theirs.send(b"!")

    with forked(serve):
        theirs.close()
        with Cost() as cost:
            for _ in range(repeats):
                send(ours, array)
                receive(ours) if back else ours.recv(1)
        ours.close()
    return cost.per(repeats)


def bytes_copies(data: bytes, repeats: int) -> Metrics:
    """The bytes copied twice into fresh memory."""
    with Cost() as cost:
        for _ in range(repeats):
            bytes(memoryview(bytes(memoryview(data))))
    return cost.per(repeats)


# --- processes


def forks(count: int) -> Metrics:
    """So many forks, until the last process has said a byte."""
    reader, writer = os.pipe()
    with Cost() as cost, contextlib.ExitStack() as all_of_them:
        for _ in range(count):
            all_of_them.enter_context(forked(lambda: os.write(writer, b"!")))
        said = 0
        while said < count:
            said += len(os.read(reader, count))
    return {"wall": cost.wall}


class _Private:
    """What a worker has for itself, so that nobody can take the others along: two pipes, a socket
    for large objects, a piece of shared memory, and a pipe by which the kernel ends it with us."""

    SIZE = 340 << 10

    def __init__(self) -> None:
        self.inbox, self.outbox, self.lifeline = os.pipe(), os.pipe(), os.pipe()
        self.sockets = [end.detach() for end in socket.socketpair()]
        self.memory = os.memfd_create("floor")
        os.ftruncate(self.memory, self.SIZE)

    def close(self, *but: int) -> None:
        fds = {*self.inbox, *self.outbox, *self.lifeline, *self.sockets, self.memory}
        for fd in fds.difference(but):
            os.close(fd)

    def keep(self, other: _Private) -> None:
        """In a process that is given this one."""
        if other is not self:
            other.close()
            return
        lifeline = self.lifeline[0]
        self.close(self.inbox[0], self.outbox[1], lifeline, self.sockets[1], self.memory)
        os.setpgid(0, 0)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)


def _serve_alone(mine: _Private, channels: list[_Private]) -> None:
    for channel in channels:
        mine.keep(channel)
    shared = mmap.mmap(mine.memory, _Private.SIZE)
    faulthandler.enable(mine.memory)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while call := os.read(mine.inbox[0], FRAME):
        func, args = pickle.loads(call)
        shared[:8] = b"running!"
        os.write(mine.outbox[1], pickle.dumps(func(*args)))


@contextlib.contextmanager
def _served_alone(count: int) -> Iterator[tuple[list[_Private], list[ForkProcess]]]:
    """So many processes of the standard library, each with a channel of its own."""
    import_module("prefork.pool")  # to be as large as the process that is compared with this one
    channels = [_Private() for _ in range(count)]
    processes = [ForkProcess(target=_serve_alone, args=(c, channels)) for c in channels]
    for process in processes:
        process.start()
    try:
        yield channels, processes
    finally:
        for channel in channels:
            channel.close()
        for process in processes:
            process.join()


def processes_with_channels(count: int) -> Metrics:
    """From nothing to the first result of so many processes that share nothing."""
    import_module("prefork.pool")
    begin = time.perf_counter()
    with _served_alone(count) as (channels, _):
        maps = [mmap.mmap(channel.memory, _Private.SIZE) for channel in channels]
        os.write(channels[0].inbox[1], pickle.dumps((tasks.noop, ())))
        pickle.loads(os.read(channels[0].outbox[0], FRAME))
        seconds = time.perf_counter() - begin
        del maps
    return {"wall": seconds}


def channel_memory() -> Metrics:
    """One of two such processes, once it has run something."""
    with _served_alone(2) as (channels, processes):
        for channel in channels:
            os.write(channel.inbox[1], pickle.dumps((tasks.noop, ())))
            os.read(channel.outbox[0], FRAME)
        time.sleep(0.1)
        return {"bytes": memory_of(processes[0].pid or 0).total}


def forked_memory() -> Metrics:
    """One of two bare forked processes that wait."""
    reader, writer = os.pipe()

    def wait() -> None:
        os.close(writer)
        os.read(reader, 1)

    with forked(wait) as pid, forked(wait):
        time.sleep(0.1)
        total = memory_of(pid).total
        os.close(writer)
    return {"bytes": total}


# --- queued jobs


def pickled_and_kept(size: int) -> Metrics:
    """The calls pickled, and the pickles kept in a list."""
    return {"wall": _keep(size, lambda i: pickle.dumps((tasks.noop, (i,))))}


class _Kept:
    __slots__ = ("job", "pickled")

    job: _Kept
    pickled: bytes


def _handle(i: int) -> _Kept:
    handle = _Kept()
    handle.job = _Kept()
    handle.job.pickled = pickle.dumps((tasks.noop, (i,)))
    return handle


def objects_and_kept(few: int, size: int) -> Metrics:
    """The same with two small objects for each call, a handle and a job: what Python's garbage
    collector does with them as they become more."""
    of_few, of_all = _keep(few, _handle), _keep(size, _handle)
    return {"few": of_few, "wall": of_all, "growth": of_all / of_few}


def _keep(count: int, make: Callable[[int], object]) -> float:
    """Seconds for each."""
    kept = []
    with Cost() as cost:
        for i in range(count):
            kept.append(make(i))
    return cost.wall / count
