"""The worker's end of a channel; `channel.py` tells how the two work together."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
from collections.abc import Iterable
from multiprocessing import reduction
from typing import Any

from prefork._ipc.constants import FUNCTION, annexed_constant, open_constant
from prefork._ipc.descriptors import ArrivedFds
from prefork._ipc.memfd import CACHE_SECONDS, MemfdCache, Transport
from prefork._ipc.page import WorkersPage
from prefork._ipc.payload import (
    FILE,
    FdSocket,
    FilePayload,
    Payload,
    keep_reserve,
    receive_beside,
    receive_fds,
    receive_file,
    send_fds,
    send_file,
)
from prefork._ipc.pieces import read_all, read_pieces
from prefork._ipc.wire import (
    ANNEXED,
    BESIDE,
    BESIDE_IN_ANNEX,
    BOARD,
    CALLS,
    DISCARD,
    FILE_SENT,
    FORGET,
    IN_ANNEX,
    INLINE,
    INSIDE,
    KEPT,
    LARGE,
    LEAVE,
    MARK,
    MEMORY,
    PAGE,
    POSITION,
    REPORT,
    RESULTS,
    TICKET,
    UNIT,
    WITH_FDS,
    Ticket,
)
from prefork._system import at_fork
from prefork._system.selector import wait_for


class WorkerEnd:
    """The worker's side. The pool makes it, starts a child that keeps its descriptors, and closes
    its copy: `owned`, those that are not the pool's, too."""

    def __init__(
        self,
        inbox: int,
        outbox: int,
        payloads: int,
        memory: int,
        transport: Transport,
        owned: at_fork.Descriptors,
    ) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._post = FdSocket(payloads, blocking=True)
        self._memory_fd = memory
        self._transport = transport
        self._owned = owned
        self._memfd_cache = MemfdCache()
        self._inode = 0
        self._borrowed: dict[int, Any] = {}  # shared objects, by their keys
        self._annexed = 0  # results, so far
        self._annex_end = 0  # of the part that is in use

    def __reduce__(self) -> tuple[Any, ...]:
        # Only while a child is being spawned: multiprocessing duplicates the descriptors into it.
        return _rebuild_worker_end, (*map(reduction.DupFd, self.fds()), self._transport)

    def fds(self) -> tuple[int, int, int, int]:
        """What the child needs of this process's descriptors."""
        return self._inbox, self._outbox, self._post.fileno(), self._memory_fd

    @property
    def closed(self) -> bool:
        return self._inbox < 0

    def open(self) -> int:
        """In the child: map the shared memory. Returns the file of the black box."""
        if not self._owned.are_ours:
            self._owned = at_fork.Descriptors(*self.fds())
        at_fork.register(self)
        keep_reserve()
        self._inode = os.fstat(self._memory_fd).st_ino
        memory = mmap.mmap(self._memory_fd, MEMORY)
        self._memory = memoryview(memory)
        self.board = self._memory[:BOARD].cast("Q")
        self.clock = self._memory[:BOARD].cast("d")
        self.page = WorkersPage(self.board, self.clock, self._memory[PAGE:MEMORY])
        self._poll = select.poll()
        self._poll.register(self._inbox, select.POLLIN)
        return self._memory_fd

    def receive(self) -> Ticket | None:
        """Wait for the next ticket; None when there will be no more. The task is then ours."""
        while True:
            try:
                data = os.read(self._inbox, TICKET.size)
            except BlockingIOError:
                if not wait_for(self._poll, CACHE_SECONDS if self._memfd_cache else None):
                    self._memfd_cache.clear()
                continue
            if not data:
                return None
            if self._memfd_cache:
                self._memfd_cache.tidy()
            ticket: Ticket = TICKET.unpack(data)
            if not ticket[-1] & (LEAVE | FORGET | DISCARD):
                return ticket
            if ticket[-1] & LEAVE:
                return None
            if ticket[-1] & FORGET:
                self._borrowed.pop(ticket[0], None)
            else:
                self._post.discard(ticket[0])

    def read_call(
        self, ticket: Ticket
    ) -> tuple[memoryview, list[memoryview], ArrivedFds | None, list[memoryview] | None]:
        """The task's pickled call, its buffers, descriptors that belong to it, and its function
        with the buffers of that, if it has come as a constant.

        Raises:
            OSError: they cannot be had.
        """
        job, _, _, offset, length, _, flags = ticket
        if not flags & (LARGE | IN_ANNEX | BESIDE):
            start = BOARD + offset
            return self._memory[start : start + length], [], None, None
        function = self._receive_constants(job) if flags & BESIDE else None
        buffers: list[memoryview] = []
        if flags & LARGE:
            pickled, *buffers = receive_file(self._post, job)
        elif flags & BESIDE_IN_ANNEX:
            (pickled, *buffers), *rest = read_all(self._memory_fd, CALLS + offset * UNIT)
            function = self._keep_constants(map(annexed_constant, rest))
        elif flags & IN_ANNEX:
            pickled, *buffers = read_pieces(self._memory_fd, CALLS + offset * UNIT)
        else:
            start = BOARD + offset
            pickled = self._memory[start : start + length]
        fds = None
        if flags & WITH_FDS:
            fds = ArrivedFds(receive_fds(self._post, job, length))
        return pickled, buffers, fds, function

    def _receive_constants(self, job: int) -> list[memoryview] | None:
        fds = at_fork.Descriptors(*receive_beside(self._post, job))
        try:
            return self._keep_constants(map(open_constant, fds.fds))
        finally:
            fds.close()

    def _keep_constants(
        self, constants: Iterable[tuple[int, list[memoryview]]]
    ) -> list[memoryview] | None:
        """Keep these until the pool says that nobody needs them. A function is returned instead."""
        function = None
        for key, pieces in constants:
            if key == FUNCTION:
                function = pieces
            else:
                from prefork._ipc.shared import arrived  # not before there is one

                self._borrowed[key] = arrived(key, pieces)
        return function

    def report(
        self,
        kind: int,
        job: int = 0,
        started: float = 0.0,
        seconds: float = 0.0,
        pickled: bytes = b"",
        buffers: list[memoryview] | None = None,
        fds: list[int] | None = None,
    ) -> None:
        """Tell the pool; waits while the outbox is full.

        The buffers are dropped when they have been copied: they may be in a file of the pool's,
        which can then be used again as soon as it hears of this.

        Args:
            fds: to be sent along; they stay open here.

        Raises:
            OSError: the object cannot be sent; nothing was told.
        """
        where = INSIDE
        if buffers or len(pickled) > INLINE:
            where, pickled = self._put_aside(job, pickled, buffers or [])
        if fds:
            send_fds(self._post, job, fds)
        count = len(fds) if fds else 0
        header = REPORT.pack(job, started, seconds, len(pickled), kind, where, count, MARK)
        frame = header + pickled
        written = os.write(self._outbox, frame)
        while written < len(frame):
            written += os.write(self._outbox, frame[written:])

    def _put_aside(self, job: int, pickled: bytes, buffers: list[memoryview]) -> tuple[int, bytes]:
        """Send an object in a file, or copy it to the annex; what the report says of it. What is
        usually the slower way is taken where the other one cannot be.

        Raises:
            OSError: neither can be.
        """
        payload = Payload(pickled, buffers)
        buffers.clear()
        ways = [self._annex, self._send_file]
        if payload.nbytes > FILE:
            ways.reverse()
        try:
            return ways[0](job, payload)
        except OSError:  # no descriptor, no memory for a file, a limit of the size of files
            return ways[1](job, payload)

    def _send_file(self, job: int, payload: Payload) -> tuple[int, bytes]:
        pickled, *buffers = payload.pieces
        file = FilePayload(pickled, buffers, None, self._transport, self._memfd_cache)
        with contextlib.closing(file):
            send_file(self._post, job, file)
        return FILE_SENT, b""

    def _annex(self, job: int, payload: Payload) -> tuple[int, bytes]:
        """Copy it behind what the pool has not read yet."""
        fd = self._memory_fd
        if os.fstat(fd).st_ino != self._inode:
            raise OSError("a task has closed the descriptors of its process")
        if self._annexed == self.board[3]:  # all is read
            if self._annex_end > KEPT:
                os.ftruncate(fd, RESULTS + KEPT)
            self._annex_end = 0
        start = self._annex_end
        self._annex_end = payload.write(fd, RESULTS + start) - RESULTS
        self._annexed += 1
        return ANNEXED, POSITION.pack(start)

    def close(self) -> None:
        if self._inbox < 0:
            return
        at_fork.unregister(self)
        self._memfd_cache.close()
        self._post.detach()
        self._owned.close()
        self._inbox = self._outbox = self._memory_fd = -1

    def close_in_child(self) -> None:
        self.close()


def _rebuild_worker_end(
    inbox: Any, outbox: Any, payloads: Any, memory: Any, transport: Transport
) -> WorkerEnd:
    fds = [part.detach() for part in (inbox, outbox, payloads, memory)]
    for fd in fds:  # they came through an exec, but what the tasks start must not get them
        os.set_inheritable(fd, False)
    owned = at_fork.Descriptors(*fds)
    return WorkerEnd(fds[0], fds[1], fds[2], fds[3], transport, owned)
