"""The inputs, read lazily and in order: arguments, globs, lines, JSON Lines, CSV.

Files are read by a thread that must be stoppable while it waits for a slow producer, and that
wants to know *before* it waits. Hence descriptors and `poll` in place of file objects.
"""

from __future__ import annotations

import contextlib
import csv
import enum
import glob
import itertools
import json
import os
import random
import select
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from prefork.cli.jsontext import from_json

__all__ = ["PAUSE", "BadInput", "InputError", "Inputs", "Pause", "Selection"]

STDIN = "-"
COUNTED_UP_TO = 1 << 28  # bytes: the lines of a larger file are not counted for the progress bar
_READ = 1 << 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class InputError(Exception):
    """An input cannot be read; the message says which, where, and why."""


class Pause(enum.Enum):
    """Comes between the inputs when the next one may take a while."""

    PAUSE = enum.auto()


PAUSE: Final = Pause.PAUSE


class BadInput(NamedTuple):
    """In the place of an input that cannot be understood; the others go on.

    Attributes:
        text: what there is.
        reason: where it is, and what is wrong with it.
    """

    text: str
    reason: str


class Selection(NamedTuple):
    """Which of the inputs are wanted.

    Attributes:
        limit: at most so many; None: all.
        shard: the inputs are dealt out to so many shards, the second number; the first one is the
            shard that is wanted, from 1 on.
        sample: so many of these, picked by chance, but each time the same, in their order; None:
            all.
    """

    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    sample: int | None = None

    def total(self, total: int | None) -> int | None:
        """How many of so many."""
        if total is not None:
            total = len(range(self.shard[0] - 1, total, self.shard[1]))
        for most in (self.limit, self.sample):
            if most is not None and total is not None:
                total = min(total, most)
        return total

    def __call__(self, values: Iterable[Any]) -> Iterator[Any]:
        chosen = self._choose(values)
        return chosen if self.sample is None else _sample(chosen, self.sample)

    def _choose(self, values: Iterable[Any]) -> Iterator[Any]:
        numbers = itertools.count()
        left = self.limit
        for value in values:
            if left == 0:
                return
            if value is PAUSE:
                yield PAUSE
            elif next(numbers) % self.shard[1] == self.shard[0] - 1:
                yield value
                if left is not None:
                    left -= 1


ALL: Final = Selection()


def _sample(values: Iterable[Any], size: int) -> Iterator[Any]:
    """All are read first, but no more are kept than that."""
    chance = random.Random(size)
    kept: list[tuple[int, Any]] = []
    for number, value in enumerate(value for value in values if value is not PAUSE):
        if number < size:
            kept.append((number, value))
        elif (place := chance.randrange(number + 1)) < size:
            kept[place] = number, value
    yield from (value for _, value in sorted(kept, key=lambda each: each[0]))


class Inputs:
    """All inputs of a run, in the order of the arguments here.

    Args:
        arguments: strings that are inputs themselves.
        patterns: globs, each of which must match something; `**` is any depth. Only a pattern
            that ends with a slash is for directories.
        lines: files with one input per line; "-" is standard input.
        jsonl: files with one JSON value per line, likewise.
        csv: files with one row per line, likewise; the first one names the columns. An input is an
            object.
        end: what a line of `lines` ends with.
        selection: which of all these are wanted.

    Iterating yields values, `BadInput` where one cannot be understood, and PAUSE before waiting.

    Raises:
        InputError: a pattern matches nothing, or a file cannot be opened.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        patterns: Iterable[str] = (),
        lines: Iterable[str] = (),
        jsonl: Iterable[str] = (),
        csv: Iterable[str] = (),
        end: bytes = b"\n",
        selection: Selection = ALL,
    ) -> None:
        self._selection = selection
        self._known = [*arguments]
        for pattern in patterns:
            self._known.extend(_expand(pattern))
        self._stop_reader, self._stop_writer = os.pipe()
        self._files: list[tuple[_LineFile, Callable[[_LineFile], Iterator[Any]]]] = []
        kinds = ((_lines, lines, end), (_json_values, jsonl, b"\n"), (_csv_rows, csv, b"\n"))
        try:
            for read, paths, its_end in kinds:
                for path in paths:
                    self._files.append((_LineFile(path, self._stop_reader, its_end), read))
        except InputError:
            self.close()
            raise

    @property
    def total(self) -> int | None:
        """How many there will be, at most; None: nobody knows."""
        total = len(self._known)
        for file, read in self._files:
            if file.count is None:
                return None
            total += max(0, file.count - (read is _csv_rows))
        return self._selection.total(total)

    def holds(self, status: os.stat_result) -> bool:
        """Whether this file is one of those that are read."""
        return any(os.path.samestat(os.fstat(file.fd), status) for file, _ in self._files)

    def __iter__(self) -> Iterator[Any]:
        return self._selection(self._all())

    def _all(self) -> Iterator[Any]:
        yield from self._known
        for file, read in self._files:
            yield from read(file)

    def stop(self) -> None:
        """End a reading that waits, from any thread."""
        with contextlib.suppress(OSError):
            os.write(self._stop_writer, b"!")

    def close(self) -> None:
        for fd in (self._stop_reader, self._stop_writer):
            os.close(fd)
        for file, _ in self._files:
            file.close()


def _expand(pattern: str) -> list[str]:
    found = glob.iglob(pattern, recursive=True)
    if not pattern.endswith(os.sep):
        found = (path for path in found if not os.path.isdir(path))
    paths = sorted(found)
    if not paths:
        raise InputError(f"no file matches {pattern!r}")
    return paths


def _decode(line: bytes) -> str:
    # As in sys.argv and os.listdir: bytes that are not UTF-8 become lone surrogates.
    return line.decode("utf-8", "surrogateescape")


def _lines(file: _LineFile) -> Iterator[Any]:
    for line in file:
        yield PAUSE if line is PAUSE else _decode(line.removesuffix(b"\r"))


def _json_values(file: _LineFile) -> Iterator[Any]:
    """The values of lines; blank ones count for nothing."""
    for line in file:
        if line is PAUSE:
            yield PAUSE
        elif line.strip():
            yield _json_value(file, line)


def _json_value(file: _LineFile, line: bytes) -> Any:
    try:
        return from_json(line.decode())
    except json.JSONDecodeError as exc:
        why = f"{exc.msg} (column {exc.colno})"
    except UnicodeDecodeError:
        why = "it is not UTF-8"
    except ValueError as exc:
        why = str(exc)
    return BadInput(_decode(line), f"{file.name}, line {file.line}: not JSON: {why}")


def _csv_rows(file: _LineFile) -> Iterator[Any]:
    """Rows as objects. A row may go over several lines, if a value in quotes does."""
    read: list[str] = []  # of the row that is being read

    def lines() -> Iterator[str]:
        for line in file:
            if line is not PAUSE:
                read.append(_decode(line.removesuffix(b"\r")))
                yield read[-1] + "\n"

    rows = csv.reader(lines(), strict=True)
    names: list[str] | None = None
    while True:
        try:
            row = next(rows, None)
            why = ""
        except csv.Error as exc:
            row, why = [], str(exc)
        if row is None:
            return
        text = "\n".join(read)
        read.clear()
        if names is None:
            if why or not row:
                raise InputError(f"{file.name}: the first line names no columns: {why or text!r}")
            if twice := [name for number, name in enumerate(row) if name in row[:number]]:
                raise InputError(f"{file.name}: the first line names the column {twice[0]!r} twice")
            names = row
        elif why:
            yield BadInput(text, f"{file.name}, line {file.line}: not CSV: {why}")
        elif row and len(row) != len(names):
            why = f"{len(row)} values for {len(names)} columns"
            yield BadInput(text, f"{file.name}, line {file.line}: {why}")
        elif row:
            yield dict(zip(names, row, strict=True))


class _LineFile:
    """The lines of one file, pipe or terminal, without their ends."""

    def __init__(self, path: str, stop_fd: int, end: bytes) -> None:
        self._end = end
        self.name = "standard input" if path == STDIN else path
        self.line = 0  # the number of the last one that was read
        self._own = path != STDIN
        try:
            # Not blocking: a named pipe has perhaps no writer yet.
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) if self._own else 0
            status = os.fstat(self.fd)
            if stat.S_ISDIR(status.st_mode):
                self.close()
                raise InputError(f"cannot read {self.name}: it is a directory")
            self.count = _count_lines(self.fd, status, end)
        except OSError as exc:
            raise InputError(f"cannot read {self.name}: {exc.strerror}") from None
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)
        self._poll.register(stop_fd, select.POLLIN)
        self._stop_fd = stop_fd

    def __iter__(self) -> Iterator[Any]:
        rest: list[bytes] = []  # the beginning of the next line, in pieces
        for data in self._blocks():
            if data is PAUSE:
                yield PAUSE
                continue
            first, *others = data.split(self._end)
            rest.append(first)
            for piece in others:
                yield self._next_line(b"".join(rest))
                rest = [piece]
        last = b"".join(rest)
        if last:
            yield self._next_line(last)

    def _next_line(self, line: bytes) -> bytes:
        self.line += 1
        return line.removeprefix(_BYTE_ORDER_MARK) if self.line == 1 else line

    def _blocks(self) -> Iterator[Any]:
        """What can be read, in blocks, and PAUSE before waiting; ends early when stopped."""
        while True:
            ready = self._poll.poll(0)
            if not ready:
                yield PAUSE
                ready = self._poll.poll()
            if any(fd == self._stop_fd for fd, _ in ready):
                return
            try:
                data = os.read(self.fd, _READ)
            except BlockingIOError:
                continue
            except OSError as exc:
                raise InputError(f"cannot read {self.name}: {exc.strerror}") from None
            if not data:
                return
            yield data

    def close(self) -> None:
        if self._own:
            os.close(self.fd)


def _count_lines(fd: int, status: os.stat_result, end: bytes) -> int | None:
    if not stat.S_ISREG(status.st_mode) or status.st_size > COUNTED_UP_TO:
        return None
    position = os.lseek(fd, 0, os.SEEK_CUR)  # standard input may have been read from
    lines, last = 0, end
    while data := os.pread(fd, 1 << 20, position):
        lines += data.count(end)
        position += len(data)
        last = data[-1:]
    return lines + (last != end)
