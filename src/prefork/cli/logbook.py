"""A file that the workers write their outcomes to, so that these outlive a worker that dies.

A job of several inputs reports when all are done. If its worker dies on the way, the logbook tells
which inputs were done, with their outcomes, and which one was running: so nothing runs twice, and
only the guilty input fails.

Each job in flight has a slot, a stretch of the (sparse) file, which later jobs use again:

    note: which input is running since when │ outcome │ outcome │ … │ whatever was there before

An outcome counts only with the job's number and a checksum, so neither leftovers nor
half an entry are ever taken for one. The file has no name: it goes with its processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import tempfile
import zlib
from multiprocessing import reduction
from typing import Any, NamedTuple

__all__ = ["CUT_SHORT", "DONE", "FAILED", "Logbook", "Outcome", "Page"]

DONE, FAILED, CUT_SHORT = range(3)

SLOT = 1 << 32  # bytes of address space; only what is written takes room
NOTE = struct.Struct("<QIId")  # job, index of the running input, process id, when it started
ENTRY = struct.Struct("<IQIIBdI")  # checksum of the rest; job, index, pid, kind, seconds, length


class Outcome(NamedTuple):
    """What became of one input."""

    kind: int  # DONE; FAILED; CUT_SHORT, by a time limit or its worker's end: try again
    text: bytes  # the result, or a description of the error, as JSON
    seconds: float
    pid: int


class Page(NamedTuple):
    """What the logbook knows of one job."""

    outcomes: list[Outcome]  # of its first inputs
    started: float | None  # when the next one was started (monotonic), if it was
    pid: int | None


class Logbook:
    """The file. Any number of processes write, each to the slot of the job that it runs."""

    def __init__(self, fd: int | None = None) -> None:
        self._fd = _anonymous_file() if fd is None else fd

    # ---- in a worker

    def note_start(self, slot: int, job: int, index: int, pid: int, now: float) -> None:
        """Raises OSError: there is no room."""
        self._write(slot * SLOT, NOTE.pack(job, index, pid, now))

    def add(self, slot: int, position: int, job: int, index: int, outcome: Outcome) -> int:
        """Write an outcome behind those before it; returns the position for the next.

        Raises:
            OSError: there is no room.
        """
        kind, text, seconds, pid = outcome
        data = ENTRY.pack(0, job, index, pid, kind, seconds, len(text)) + text
        data = struct.pack("<I", zlib.crc32(data)) + data[4:]
        if NOTE.size + position + len(data) > SLOT:
            raise OSError("the slot is full")
        self._write(slot * SLOT + NOTE.size + position, data)
        return position + len(data)

    def _write(self, offset: int, data: bytes) -> None:
        if os.pwrite(self._fd, data, offset) < len(data):
            raise OSError("no room for the whole entry")

    # ---- in the pool's process, once the job is over

    def read(self, slot: int, job: int) -> Page:
        outcomes: list[Outcome] = []
        position = slot * SLOT + NOTE.size
        while (outcome := self._read_entry(position, job, len(outcomes))) is not None:
            outcomes.append(outcome)
            position += ENTRY.size + len(outcome.text)
        index, pid, started = self.note(slot, job) or (-1, None, None)
        return (
            Page(outcomes, started, pid) if index == len(outcomes) else Page(outcomes, None, None)
        )

    def note(self, slot: int, job: int) -> tuple[int, int, float] | None:
        """The index of the input that was started last, in which process and when (monotonic)."""
        note = os.pread(self._fd, NOTE.size, slot * SLOT)
        if len(note) < NOTE.size:
            return None
        noted_job, index, pid, started = NOTE.unpack(note)
        return (index, pid, started) if noted_job == job else None

    def _read_entry(self, position: int, job: int, index: int) -> Outcome | None:
        head = os.pread(self._fd, ENTRY.size, position)
        if len(head) < ENTRY.size:
            return None
        checksum, its_job, its_index, pid, kind, seconds, length = ENTRY.unpack(head)
        if (its_job, its_index) != (job, index):
            return None
        text = os.pread(self._fd, length, position + ENTRY.size)
        if zlib.crc32(b"\0\0\0\0" + head[4:] + text) != checksum:
            return None
        return Outcome(kind, text, seconds, pid)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __reduce__(self) -> tuple[Any, ...]:
        """Only on the way to a child process that is being started."""
        return _rebuild, (reduction.DupFd(self._fd),)


def _rebuild(fd: Any) -> Logbook:
    return Logbook(fd.detach())


def _anonymous_file() -> int:
    fd = -1
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            fd = os.memfd_create("prefork-logbook", os.MFD_CLOEXEC)
    if fd < 0:
        fd, path = tempfile.mkstemp(prefix="prefork-logbook")
        os.unlink(path)
    # Not in the place of a standard stream that is closed.
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return high
