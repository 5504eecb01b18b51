"""What a worker has printed, line by line, with the job that was running."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from prefork._observe.output_sender import MARK_REST
from prefork._public import public

__all__ = ["LineSplitter", "OutputLine"]

LONGEST: Final = 1 << 16
"""Bytes of a line; what is longer comes in several."""


@public
class OutputLine(NamedTuple):
    """A line that a task has printed, or something that it called or started.

    Attributes:
        text: the line, without its end.
        stream: "stdout" or "stderr".
        worker: the name of the worker process.
        pid: its process id.
        job: the number of the job that ran; None: none did.
        function: the name of its function; None likewise.
    """

    text: str
    stream: str
    worker: str
    pid: int
    job: int | None
    function: str | None

    def __str__(self) -> str:
        """The line with who has printed it, as `capture_output="prefix"` writes it."""
        job = "" if self.job is None else f", job {self.job} ({self.function})"
        return f"[{self.worker}{job}] {self.text}"


class LineSplitter:
    """Makes lines of the bytes that come from one descriptor of one worker.

    Args:
        mark: what comes before a job's number.
        take: called with each line, and what is running: the number of a job and the name of its
            function, or None and None.
    """

    def __init__(
        self, mark: bytes, take: Callable[[bytes, int | None, str | None], object]
    ) -> None:
        self._mark = mark
        self._take = take
        self._unparsed = b""
        self._line = b""  # that has begun
        self._job: int | None = None
        self._function: str | None = None

    def feed(self, data: bytes) -> None:
        data = self._unparsed + data
        self._unparsed = b""
        while (found := data.find(self._mark)) >= 0:
            self._add(data[:found])
            rest = data[found + len(self._mark) :]
            if len(rest) < MARK_REST.size:
                self._unparsed = data[found:]
                return
            job, length = MARK_REST.unpack_from(rest)
            end = MARK_REST.size + length
            if len(rest) < end:
                self._unparsed = data[found:]
                return
            self._end_line()
            self._job = job or None
            name = rest[MARK_REST.size : end].decode("utf-8", "replace")
            self._function = name if job else None
            data = rest[end:]
        # The beginning of a mark may be at the end.
        for length in range(min(len(self._mark) - 1, len(data)), 0, -1):
            if data.endswith(self._mark[:length]):
                self._unparsed = data[-length:]
                data = data[:-length]
                break
        self._add(data)

    def _add(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._tell(line)
        while len(self._line) >= LONGEST:
            part, self._line = self._line[:LONGEST], self._line[LONGEST:]
            self._tell(part)

    def _tell(self, line: bytes) -> None:
        self._take(line.removesuffix(b"\r"), self._job, self._function)

    def _end_line(self) -> None:
        """What has no end of its own ends with its job."""
        if self._line:
            line, self._line = self._line, b""
            self._tell(line)

    def end(self) -> None:
        """Nothing more comes."""
        self._add(self._unparsed)
        self._unparsed = b""
        self._end_line()
