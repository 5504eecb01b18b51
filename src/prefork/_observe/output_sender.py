"""In a worker: descriptors 1 and 2 go to the pool, with whatever writes to them: Python, C code,
processes that tasks start. Where a job begins and ends, a mark goes along, in each of the two.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import sys
from typing import Any, Final

__all__ = ["MARK_REST", "OutputSender"]

MARK_REST: Final = struct.Struct("<QH")
"""Follows the mark: the job's number (0: none), and how many bytes of its function's name follow.
"""
_NAME: Final = 200  # bytes of a name, at most: all of it goes in one piece
assert _NAME + 64 < select.PIPE_BUF


class OutputSender:
    """
    Args:
        mark: what no task writes.
        out, err: the pipes; they become descriptors 1 and 2.
    """

    def __init__(self, mark: bytes, out: int, err: int) -> None:
        self._mark = mark
        for fd, standard in ((out, 1), (err, 2)):
            os.dup2(fd, standard)
            os.close(fd)
        sys.stdout = sys.__stdout__ = _text_file(1)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _text_file(2)  # type: ignore[misc]
        _have_c_write_lines()

    def begin(self, job: int, function: str) -> None:
        name = function.encode("utf-8", "replace")[:_NAME]
        self._write(MARK_REST.pack(job, len(name)) + name)

    def end(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or replaced
                stream.flush()
        self._write(MARK_REST.pack(0, 0))

    def _write(self, rest: bytes) -> None:
        for fd in (1, 2):
            with contextlib.suppress(OSError):  # the task has closed it; the pool has gone
                os.write(fd, self._mark + rest)


def _text_file(fd: int) -> Any:
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _have_c_write_lines() -> None:
    """C code's own buffers hold back some kilobytes where its output is a pipe: they are told to
    go line by line, as on a terminal."""
    line_buffered = 1  # _IOLBF, in the C libraries of Linux
    with contextlib.suppress(ImportError, OSError, ValueError, AttributeError):
        import ctypes

        libc = ctypes.CDLL(None)
        for name in ("stdout", "stderr"):
            file = ctypes.c_void_p.in_dll(libc, name)
            libc.setvbuf(file, None, line_buffered, 0)
