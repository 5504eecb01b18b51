"""The worker's end of a channel; `channel.py` tells how the two work together."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
from multiprocessing import reduction
from typing import Any

from prefork._ipc.layout import BOARD, MEMORY
from prefork._ipc.memfd import CACHE_SECONDS, MemfdCache, Transport
from prefork._ipc.payload import FdSocket, Payload, receive_payload, send_payload
from prefork._ipc.wire import INLINE, LARGE, LEAVE, MARK, REPORT, TICKET, Ticket
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
        self._payloads = FdSocket(payloads, blocking=True)
        self._memory_fd = memory
        self._transport = transport
        self._owned = owned
        self._memfd_cache = MemfdCache()

    def __reduce__(self) -> tuple[Any, ...]:
        # Only while a child is being spawned: multiprocessing duplicates the descriptors into it.
        return _rebuild_worker_end, (*map(reduction.DupFd, self.fds()), self._transport)

    def fds(self) -> tuple[int, int, int, int]:
        """What the child needs of this process's descriptors."""
        return self._inbox, self._outbox, self._payloads.fileno(), self._memory_fd

    @property
    def closed(self) -> bool:
        return self._inbox < 0

    def open(self) -> int:
        """In the child: map the shared memory. Returns the file of the black box."""
        if not self._owned.are_ours:
            self._owned = at_fork.Descriptors(*self.fds())
        at_fork.register(self)
        memory = mmap.mmap(self._memory_fd, MEMORY)
        self._memory = memoryview(memory)
        self.board = self._memory[:BOARD].cast("Q")
        self.clock = self._memory[:BOARD].cast("d")
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
            return None if ticket[-1] & LEAVE else ticket

    def read_call(self, ticket: Ticket) -> tuple[memoryview, list[memoryview]]:
        """The task's pickled call, and its buffers."""
        job, _, offset, length, _, flags = ticket
        if flags & LARGE:
            pickled, *buffers = receive_payload(self._payloads, job)
            return pickled, buffers
        start = BOARD + offset
        return self._memory[start : start + length], []

    def report(
        self,
        kind: int,
        job: int = 0,
        started: float = 0.0,
        seconds: float = 0.0,
        pickled: bytes = b"",
        buffers: list[memoryview] | None = None,
    ) -> None:
        """Tell the pool; waits while the outbox is full.

        The buffers are dropped when they have been copied: they may be in a file of the pool's,
        which can then be used again as soon as it hears of this.
        """
        payload = bool(buffers) or len(pickled) > INLINE
        if payload:
            sent = Payload(pickled, buffers or (), self._transport, self._memfd_cache)
            if buffers is not None:
                buffers.clear()
            with contextlib.closing(sent):
                send_payload(self._payloads, job, sent)
            pickled = b""
        header = REPORT.pack(job, started, seconds, len(pickled), kind, payload, MARK)
        frame = header + pickled
        written = os.write(self._outbox, frame)
        while written < len(frame):
            written += os.write(self._outbox, frame[written:])

    def close(self) -> None:
        if self._inbox < 0:
            return
        at_fork.unregister(self)
        self._memfd_cache.close()
        self._payloads.detach()
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
