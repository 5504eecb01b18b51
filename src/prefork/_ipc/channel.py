"""One channel between the pool and one worker, refereed by the kernel.

    pool  ── tickets ──► inbox pipe  ──► worker        who reads a ticket owns its task
          ── pickles ──► shared memory ─► worker       where a ticket says its pickle lies
          ◄── outbox pipe ── reports ─── worker
          ◄─► payloads (descriptors of files with large pickles) ◄─►

Tickets have a fixed size and are written in one piece, so a read returns whole tickets and each
ticket goes to exactly one reader. The pool keeps the inbox's reading end open too: what it reads
back there (*reclaim*) the worker has not started and never will. No lock is shared, so nobody can
die holding one.

The outbox has one writer and one reader. A death can cut its last report short, nothing else:
the cut report belongs to the task that was running. But a task can write to any descriptor of its
process: what arrives is checked, and the reports behind foreign bytes are found again.

The shared memory starts with the *board*, on which the worker notes what it runs and since when;
the pool can look at it at any time, whatever the worker is doing. Its last part is the *black
box* for the worker's Python stack (`stacks.py`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

from prefork._ipc.constants import CallWithConstants, Constant
from prefork._ipc.descriptors import ArrivedFds
from prefork._ipc.file_memory import shared_memory
from prefork._ipc.lending import Lending
from prefork._ipc.memfd import BEST, Transport, memory_file
from prefork._ipc.outcome import Large
from prefork._ipc.page import Page, read_page, running_item
from prefork._ipc.payload import (
    FdSocket,
    FilePayload,
    Payload,
    keep_reserve,
    receive_fds,
    receive_file,
    send_beside,
    send_fds,
    send_file,
)
from prefork._ipc.pieces import read_pieces
from prefork._ipc.ring import Ring
from prefork._ipc.wire import (
    ANNEXED,
    BESIDE,
    BESIDE_IN_ANNEX,
    BLACK_BOX,
    BOARD,
    CALLS,
    DISCARD,
    FILE_SENT,
    FORGET,
    HEEDED,
    IN_ANNEX,
    INLINE,
    INSIDE,
    LARGE,
    LEAVE,
    MARK,
    MEMORY,
    PAGE,
    PAGE_SIZE,
    POSITION,
    REPORT,
    RESULTS,
    RING,
    TICKET,
    UNIT,
    WITH_FDS,
    Kind,
    Report,
    Ticket,
    next_report,
)
from prefork._ipc.worker_end import WorkerEnd
from prefork._system import at_fork
from prefork._system.stacks import BlackBox

MAX_TICKETS: Final = select.PIPE_BUF // TICKET.size
"""A pipe takes up to PIPE_BUF bytes in one piece or not at all (POSIX)."""
_READ: Final = 1 << 16  # bytes at once: a pipe holds no more

# Names that are final are found faster than attributes.
_HEADER: Final = REPORT.size
_unpack_header: Final = REPORT.unpack_from


class Channel:
    """The pool's side. Once the child has been started, it is to be opened: until then there are
    only descriptors, of which other children are rid at no cost."""

    def __init__(self, transport: Transport = BEST) -> None:
        self.transport = transport
        self._inbox = -1  # until all is made
        self._is_open = False
        self._fds, their_fds = at_fork.Descriptors(), at_fork.Descriptors()
        with at_fork.creating():
            try:
                self._make(self._fds, their_fds)
            except BaseException:
                self._fds.close()
                their_fds.close()
                raise
        self._ring = Ring(RING)
        self._unparsed = bytearray()
        self._annexed: set[int] = set()  # jobs whose calls are in the annex
        self._annex_end = 0  # of the part that is in use
        self._lending = Lending()
        self._has_stale = False  # something was sent with calls that were taken back
        self._is_leaving = False
        self.eof = False

    def _make(self, ours: at_fork.Descriptors, theirs: at_fork.Descriptors) -> None:
        inbox, inbox_writer = at_fork.pipe(theirs, ours)
        self._outbox, outbox = at_fork.pipe(ours, theirs)
        kind = socket.SOCK_SEQPACKET if self.transport.seqpacket else socket.SOCK_DGRAM
        own, their = socket.socketpair(socket.AF_UNIX, kind)
        self._post = FdSocket(ours.add(own.detach()), blocking=False)
        payloads = theirs.add(their.detach())
        self._memory_fd = memory_file("prefork-channel", MEMORY, self.transport, ours)
        os.set_blocking(inbox, False)
        os.set_blocking(inbox_writer, False)
        os.set_blocking(self._outbox, False)
        try:  # one descriptor for both directions
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
            both = ours.add(at_fork.above_stdio(os.open(f"/proc/self/fd/{inbox}", flags)))
            ours.remove(inbox_writer)
            self._taken_back = inbox_writer = both
        except OSError:  # there is no /proc here
            self._taken_back = ours.add(os.dup(inbox))
        self._worker_end: WorkerEnd | None = WorkerEnd(
            inbox, outbox, payloads, self._memory_fd, self.transport, theirs
        )
        self._inbox = inbox_writer

    def open(self) -> None:
        """Raises OSError when there is no memory or descriptor for it."""
        keep_reserve()
        with at_fork.creating():
            self._memory = shared_memory(self._memory_fd, MEMORY)
            self._board = memoryview(self._memory)[:BOARD].cast("Q")
            self._clock = memoryview(self._memory)[:BOARD].cast("d")
            view = memoryview(self._memory)[BLACK_BOX:PAGE]
            self.black_box = BlackBox(self._memory_fd, view, BLACK_BOX)
            self._is_open = True
            at_fork.register(self)

    def take_worker_end(self) -> WorkerEnd:
        """The other side, once: who takes it closes it."""
        end, self._worker_end = self._worker_end, None
        assert end is not None
        return end

    def fileno(self) -> int:
        """A descriptor that is readable when `receive` has something to say."""
        return self._outbox

    # ---- sending

    def stage(
        self,
        job: int,
        soft_timeout: float,
        flags: int,
        pickled: bytes,
        payload: Payload | None = None,
        function_length: int = 0,
        first: int = 0,
        constants: Sequence[Constant] | None = None,
    ) -> bytes | None:
        """Put a task where the worker can read it; the ticket for `send`, or None: no room now.

        Args:
            constants: what it has in common with others. The worker gets those that it has not.

        Raises OSError when there is no memory for a large one.
        """
        if constants:
            lacking = self._lending.lacking(constants)
            if lacking:
                parts = job, soft_timeout, flags, pickled, payload, function_length, first
                return self._stage_with(lacking, *parts)
        if payload is None:
            offset = self._ring.allocate(job, len(pickled))
            if offset is None:
                return None
            start = BOARD + offset
            self._memory[start : start + len(pickled)] = pickled
            length = len(pickled)
            return TICKET.pack(job, soft_timeout, first, offset, length, function_length, flags)
        fds = payload.fds.fds if payload.fds is not None else []
        offset = 0
        try:
            where, offset = self._put_aside(job, payload)
            flags |= where
            if fds:
                flags |= WITH_FDS
                send_fds(self._post, job, fds)
        except BlockingIOError:
            if self._ring.is_empty():
                reason = "the worker's socket is full: of descriptors of calls that were taken back"
                raise OSError(errno.ENOBUFS, reason) from None
            return None
        except ConnectionError:
            pass  # the worker is dead: its ticket will be taken back
        self._ring.allocate(job, 0)
        return TICKET.pack(job, soft_timeout, first, offset, len(fds), function_length, flags)

    def _stage_with(
        self,
        constants: list[Constant],
        job: int,
        soft_timeout: float,
        flags: int,
        pickled: bytes,
        payload: Payload | None,
        function_length: int,
        first: int,
    ) -> bytes | None:
        """The same, and send these along; or copy all of it to the annex, if they cannot be sent
        now, or not without more descriptors on their way than there may be."""
        try:
            with contextlib.ExitStack() as files:
                send_beside(self._post, job, [files.enter_context(c.opened()) for c in constants])
            flags |= BESIDE
        except ConnectionError:
            pass  # the worker is dead: its ticket will be taken back
        except OSError as exc:
            if self._is_full_for_now(exc):
                return None
            flags |= BESIDE_IN_ANNEX
            payload = CallWithConstants(payload or Payload(pickled), constants)
        ticket = self.stage(job, soft_timeout, flags, pickled, payload, function_length, first)
        if ticket is not None:
            self._lending.go_along(job, constants)
        return ticket

    def _put_aside(self, job: int, payload: Payload) -> tuple[int, int]:
        """Send a call in its file, or copy it to the annex; what its ticket says of that. What is
        usually the slower way is taken where the other one cannot be.

        Raises:
            OSError: neither can be; BlockingIOError and ConnectionError are told as they are.
        """
        if isinstance(payload, CallWithConstants):
            return self._annex(job, payload)
        ways = [self._send_file, self._annex]
        if not payload.is_file:
            ways.reverse()
        try:
            return ways[0](job, payload)
        except ConnectionError:
            raise
        except OSError as exc:  # too many descriptors are on their way; a limit of files' sizes
            if self._is_full_for_now(exc):
                raise
            return ways[1](job, payload)

    def _is_full_for_now(self, exc: OSError) -> bool:
        """Whether the socket was full, and the worker will make room when it goes on with what it
        has. Else it is full of what was sent with calls that were taken back: the worker throws
        that away when it looks for something that was sent later, but it waits for nothing."""
        return isinstance(exc, BlockingIOError) and not self._ring.is_empty()

    def _send_file(self, job: int, payload: Payload) -> tuple[int, int]:
        if isinstance(payload, FilePayload):
            send_file(self._post, job, payload)
            return LARGE, 0
        pickled, *buffers = payload.pieces
        file = FilePayload(pickled, buffers, None, self.transport)
        with contextlib.closing(file):
            send_file(self._post, job, file)
        return LARGE, 0

    def _annex(self, job: int, payload: Payload) -> tuple[int, int]:
        if not self._annexed:
            self._annex_end = 0
        offset = self._annex_end // UNIT
        end = payload.write(self._memory_fd, CALLS + self._annex_end) - CALLS
        self._annex_end = -(-end // UNIT) * UNIT
        self._annexed.add(job)
        return IN_ANNEX, offset

    def send(self, tickets: list[bytes]) -> bool:
        """Hand over at most `MAX_TICKETS` staged tasks, in one piece; False: no room now."""
        try:
            os.write(self._inbox, b"".join(tickets))
        except BlockingIOError:
            return False
        return True

    def send_leave(self) -> None:
        """Tell the worker to leave after what it has been sent."""
        self._is_leaving = True
        os.write(self._inbox, TICKET.pack(0, 0.0, 0, 0, 0, 0, LEAVE))

    def reclaim(self, most: int) -> list[int]:
        """Take back up to `most` tasks that the worker has not read; the oldest first."""
        tickets: list[Ticket] = []
        is_all = is_untold = False
        while not (tickets or is_all):
            try:
                data = os.read(self._taken_back, most * TICKET.size)
            except BlockingIOError:
                data = b""
            is_all = not data
            whole = len(data) - len(data) % TICKET.size  # a task may have written there, too
            for ticket in TICKET.iter_unpack(data[:whole]):
                if ticket[-1] & FORGET:
                    self._lending.taken_back(ticket[0])
                    is_untold = True
                elif ticket[-1] & DISCARD:
                    self._has_stale = True
                else:
                    self._has_stale |= bool(ticket[-1] & (LARGE | WITH_FDS | BESIDE))
                    tickets.append(ticket)
        if is_untold:
            self.forget_released()
        if tickets and tickets[-1][-1] & LEAVE:
            tickets.pop()
            self.send_leave()
        jobs = [ticket[0] for ticket in tickets if self._ring.holds(ticket[0])]
        for job in jobs:
            self.forget(job)
        return jobs

    def forget(self, job: int) -> None:
        """This job's pickle is not needed any more; to be said once per staged job."""
        self._ring.free(job)
        self._annexed.discard(job)
        if self._lending.by_job:
            self._lending.end(job)
        if self._has_stale and self._ring.is_empty():
            self._discard_stale()

    def _discard_stale(self) -> None:
        """The worker has nothing to do: have it throw away what was sent with calls that were taken
        back. It would do so when it looks for something that was sent later; until then that is
        kept in memory."""
        if not self._is_leaving and self._inbox >= 0:
            number = self._post.sent
            self._has_stale = not self.send([TICKET.pack(number, 0.0, 0, 0, 0, 0, DISCARD)])

    def forget_released(self) -> bool:
        """Tell the worker to forget what nobody here holds any more. Whether there is some of which
        it could not be told now."""
        if not self._lending.lent or self._is_leaving:
            return False
        for key in self._lending.released():
            if not self.send([TICKET.pack(key, 0.0, 0, 0, 0, 0, FORGET)]):
                return True
            self._lending.told(key)
        return False

    # ---- receiving

    def receive(self) -> list[Report] | None:
        """The reports that have arrived, or None if nothing has; never waits.

        Sets `eof` when nobody is left who could send more. Bytes that are no report are passed
        over; a report of the kind CORRUPTED says where they were.
        """
        try:
            data = os.read(self._outbox, _READ)
        except BlockingIOError:
            return None
        if not data:
            self.eof = True
            return None
        if self._unparsed:
            self._unparsed += data
            if not self._is_complete():
                return []
            data = bytes(self._unparsed)
            self._unparsed.clear()
        reports, used = self._parse(data)
        if used < len(data):
            self._unparsed += data[used:]
        return reports

    def _is_complete(self) -> bool:
        """Whether a whole report has arrived (a long one is not copied again for each piece)."""
        pending = self._unparsed
        if len(pending) < _HEADER:
            return False
        length: int
        *_, length, _, _, _, mark = REPORT.unpack_from(pending)
        return bool(mark != MARK) or len(pending) >= _HEADER + min(length, INLINE)

    def _parse(self, data: bytes) -> tuple[list[Report], int]:
        reports: list[Report] = []
        position, size = 0, len(data)
        length: int
        kind: int
        while position + _HEADER <= size:
            header = _unpack_header(data, position)
            job, started, seconds, length, kind, where, fds, mark = header
            if mark != MARK or length > INLINE or kind >= Kind.CORRUPTED:
                reports.append((Kind.CORRUPTED, 0, 0.0, 0.0, None))
                position = next_report(data, position + 1)
                continue
            start = position + _HEADER
            end = start + length
            if end > size:
                break
            payload: Any = data[start:end]
            if where != INSIDE or fds:
                payload = self._receive_large(job, where, payload, fds)
            if self._lending.by_job and kind in (Kind.DONE, Kind.OUTCOMES):
                self._lending.has_arrived(job)
            reports.append((kind, job, started, seconds, payload))
            position = end
        return reports, position

    def _receive_large(self, job: int, where: int, inside: bytes, fds: int) -> Large | OSError:
        """An object that is not in its report; or why it cannot be had: its job fails with it."""
        try:
            if where == FILE_SENT:
                pieces = receive_file(self._post, job)
            elif where == ANNEXED:
                try:
                    pieces = read_pieces(self._memory_fd, RESULTS + POSITION.unpack(inside)[0])
                finally:
                    self._board[3] += 1
            else:
                pieces = [memoryview(inside)]
            return Large(pieces, ArrivedFds(receive_fds(self._post, job, fds)) if fds else None)
        except (OSError, ValueError, OverflowError, struct.error) as exc:
            return exc if isinstance(exc, OSError) else OSError(f"a result cannot be read: {exc}")

    # ---- looking

    def running(self) -> tuple[int, float]:
        """The job on the worker's board (0: none), and when its clock started to run for the
        limits (monotonic, seconds): each item of a chunk starts it anew."""
        return self._board[0], self._clock[1]

    def accepted(self) -> float:
        """When the worker took the job that is on its board (monotonic, seconds)."""
        return self._clock[2]

    def heeded(self) -> float:
        """When the clock was started of what the soft limit was raised in last."""
        return self._clock[HEEDED]

    def item(self) -> tuple[int, float] | None:
        """The item of that job which runs, and since when; see `running_item`."""
        return running_item(self._board, self._clock)

    def page(self) -> Page:
        """What the worker has noted of the items of the job that is on its board."""
        return read_page(self._board, self._memory, PAGE, PAGE_SIZE)

    def close(self) -> None:
        if self._inbox < 0:
            return
        self._post.detach()
        if self._is_open:
            at_fork.unregister(self)
            self.black_box.close()
            self._board.release()
            self._clock.release()
            self._memory.close()
        self._fds.close()
        self._inbox = self._taken_back = self._outbox = self._memory_fd = -1
        if self._worker_end is not None:
            self._worker_end.close()

    def close_in_child(self) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_inbox", -1) >= 0:
            self.close()
