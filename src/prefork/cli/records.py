"""The output: one JSON object per line, each line written as a whole; and how to read it again."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

from prefork.cli.jsontext import digest, from_json

__all__ = ["Earlier", "Output", "OutputError", "ResumeError", "Sink", "record"]


class OutputError(Exception):
    """The output cannot be written."""

    def __init__(self, name: str, reason: OSError) -> None:
        super().__init__(f"cannot write to {name}: {reason.strerror}")
        self.is_closed = isinstance(reason, BrokenPipeError)


class ResumeError(Exception):
    """The output of an earlier run cannot be understood."""


def record(given: bytes, key: bytes, text: bytes, seconds: float, pid: int, attempts: int) -> bytes:
    """One line of output; `key` is b"result" or b"error", `given` and `text` are JSON."""
    return b'{"input": %b, "%b": %b, "seconds": %.6f, "pid": %d, "attempts": %d}\n' % (
        given, key, text, seconds, pid, attempts,
    )  # fmt: skip


class Sink(Protocol):
    """What takes complete lines."""

    def write(self, lines: bytes) -> None: ...

    def write_within(self, lines: bytes, seconds: float) -> None: ...


class Output:
    """Where the records go: a file, or whatever standard output is.

    Args:
        fd: to write to; closed with this.
        name: for messages.
        waiting: a context in which the process may be stuck for as long as a slow reader likes;
            a signal must be able to end that.
    """

    def __init__(
        self, fd: int, name: str, waiting: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self.name = name
        self.is_terminal = os.isatty(fd)
        self._fd = fd
        self._waiting = waiting
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._pending = bytearray()
        self._open_line = 0  # bytes at the end of what is written that are no complete line
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, lines: bytes) -> None:
        """Write complete lines, all of them.

        Raises:
            OutputError: not possible; a file ends with a complete line still.
        """
        self._pending += lines
        while self._pending:
            if not self._is_file:
                with self._waiting():
                    self._poll.poll()
            self._write_some()

    def write_within(self, lines: bytes, seconds: float) -> None:
        """The same, but give up on a reader that is slower than that.

        Raises:
            OutputError: see `write`.
        """
        self._pending += lines
        deadline = time.monotonic() + seconds
        while self._pending:
            left = max(0.0, deadline - time.monotonic())
            if not self._is_file and not self._poll.poll(left * 1000):
                return
            self._write_some()

    def _write_some(self) -> None:
        # A pipe that is ready takes so many bytes without blocking.
        piece = self._pending[:] if self._is_file else self._pending[: select.PIPE_BUF]
        try:
            written = os.write(self._fd, piece)
        except BlockingIOError:  # somebody who shares it has set it so, and was faster
            return
        except OSError as exc:
            if self._is_file and self._open_line:
                self._cut_open_line()
            raise OutputError(self.name, exc) from None
        end = piece.rfind(b"\n", 0, written) + 1
        self._open_line = written - end if end else self._open_line + written
        del self._pending[:written]

    def _cut_open_line(self) -> None:
        """The disk is full in the middle of a line: end with the one before."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - self._open_line)

    def close(self) -> None:
        """Raises OutputError: a file system has kept the bad news until now."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError as exc:
                raise OutputError(self.name, exc) from None


class Earlier:
    """What the output of an earlier run holds; equal inputs count as often as they are there."""

    def __init__(self) -> None:
        self._done: dict[bytes, int] = {}
        self._failed: dict[bytes, int] = {}

    def __len__(self) -> int:
        return sum(self._done.values()) + sum(self._failed.values())

    def take(self, value: object) -> bool | None:
        """Whether this input came through in the earlier run; None: it is not there (any more)."""
        if not self._done and not self._failed:
            return None
        key = digest(value)
        return next((ok for ok in (True, False) if _take_one(self._of(ok), key)), None)

    def _of(self, ok: bool) -> dict[bytes, int]:
        return self._done if ok else self._failed

    @property
    def failed(self) -> int:
        """How many inputs it holds that have failed."""
        return sum(self._failed.values())

    def forget_failures(self) -> None:
        """They are to be run again."""
        self._failed.clear()

    @staticmethod
    def lines_that_came_through(path: str) -> Iterator[bytes]:
        """Of a file that `read` has found to be good."""
        with open(path, "rb") as file:
            yield from (line for line in file if _parse(line)[1])

    def add(self, value: object, ok: bool) -> None:
        counts, key = self._of(ok), digest(value)
        counts[key] = counts.get(key, 0) + 1

    @classmethod
    def read(cls, path: str) -> Earlier:
        """Read a file of records, and mend its end: a run that was killed may have left a part of
        a line, which is cut off.

        Raises:
            OSError: it cannot be read or mended; FileNotFoundError if there is none.
            ResumeError: it holds something other than records.
        """
        earlier = cls()
        with open(path, "r+b") as file:
            for number, start, line in _lines(file):
                try:
                    earlier.add(*_parse(line))
                except ValueError as exc:
                    if not line.endswith(b"\n"):
                        file.truncate(start)
                        break
                    raise ResumeError(
                        f"{path}, line {number}: not a record of this command: {exc}"
                    ) from None
                if not line.endswith(b"\n"):
                    file.seek(0, os.SEEK_END)
                    file.write(b"\n")
        return earlier


def _take_one(counts: dict[bytes, int], key: bytes) -> bool:
    count = counts.get(key, 0)
    if count == 1:
        del counts[key]
    elif count:
        counts[key] = count - 1
    return count > 0


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    start = 0
    for number, line in enumerate(file, 1):
        yield number, start, line
        start += len(line)


def _parse(line: bytes) -> tuple[Any, bool]:
    fields = from_json(line)
    if not isinstance(fields, dict) or "input" not in fields:
        raise ValueError('it has no "input"')
    if ("result" in fields) == ("error" in fields):
        raise ValueError('it has not one of "result" and "error"')
    return fields["input"], "result" in fields
